//! How a topic is kept: its settings, their defaults and limits.

use busbar_proto::{Reason, Refusal, limits, v1};
use serde::{Deserialize, Serialize};

use crate::retention;

/// The least that a topic's batch limit may be: below, hardly a record fits.
pub const MAX_BATCH_BYTES_MIN: u32 = 1 << 10;

const _: () = assert!(MAX_BATCH_BYTES_MIN as usize > busbar_proto::batch::HEADER_BYTES);

/// When a record counts as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// A majority of the replicas has synced it.
    #[default]
    Fsync,
    /// A majority has it in memory; the sync follows.
    Replicated,
}

/// What becomes of old records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cleanup {
    /// Retention removes them.
    #[default]
    Delete,
    /// The newest record of each key stays, whatever its age; older ones go.
    Compact,
    /// Superseded ones go, and so does everything that is beyond retention.
    Both,
}

impl Cleanup {
    /// Whether superseded records go.
    pub fn compacts(self) -> bool {
        matches!(self, Self::Compact | Self::Both)
    }

    fn is_delete(&self) -> bool {
        *self == Self::Delete
    }
}

/// A topic's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicConfig {
    /// Replicas of each partition. 0, in a command only: 3, or as many as there are nodes for.
    pub replicas: u32,
    /// When a record counts as stored.
    pub durability: Durability,
    /// Bytes of a partition that are kept at least; `None` = all.
    pub retention_bytes: Option<u64>,
    /// Milliseconds that a record is kept at least; `None` = for ever.
    pub retention_ms: Option<u64>,
    /// The largest batch, header included.
    pub max_batch_bytes: u32,
    /// What becomes of old records.
    #[serde(default, skip_serializing_if = "Cleanup::is_delete")]
    pub cleanup: Cleanup,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            replicas: 0,
            durability: Durability::Fsync,
            retention_bytes: None,
            retention_ms: None,
            max_batch_bytes: limits::BATCH_BYTES_DEFAULT,
            cleanup: Cleanup::Delete,
        }
    }
}

impl TopicConfig {
    /// From the wire; what is absent or 0 gets its default.
    ///
    /// # Errors
    /// [`Reason::InvalidArgument`] for a value out of its limits.
    pub fn from_wire(config: Option<&v1::TopicConfig>) -> Result<Self, Refusal> {
        let Some(wire) = config else { return Ok(Self::default()) };
        let durability = match v1::Durability::try_from(wire.durability) {
            Ok(v1::Durability::Unspecified | v1::Durability::Fsync) => Durability::Fsync,
            Ok(v1::Durability::Replicated) => Durability::Replicated,
            Err(_) => {
                let message = format!("durability {} is not known here: use fsync or replicated", wire.durability);
                return Err(Refusal::new(Reason::InvalidArgument, message));
            }
        };
        let cleanup = match v1::Cleanup::try_from(wire.cleanup) {
            Ok(v1::Cleanup::Unspecified | v1::Cleanup::Delete) => Cleanup::Delete,
            Ok(v1::Cleanup::Compact) => Cleanup::Compact,
            Ok(v1::Cleanup::Both) => Cleanup::Both,
            Err(_) => {
                let message = format!("cleanup {} is not known here: use delete, compact or both", wire.cleanup);
                return Err(Refusal::new(Reason::InvalidArgument, message));
            }
        };
        let config = Self {
            replicas: wire.replicas,
            durability,
            retention_bytes: Some(wire.retention_bytes).filter(|&bytes| bytes > 0),
            retention_ms: Some(wire.retention_ms).filter(|&ms| ms > 0),
            max_batch_bytes: match wire.max_batch_bytes {
                0 => limits::BATCH_BYTES_DEFAULT,
                bytes => bytes,
            },
            cleanup,
        };
        config.validate()?;
        Ok(config)
    }

    /// For the wire.
    pub fn to_wire(&self) -> v1::TopicConfig {
        let durability = match self.durability {
            Durability::Fsync => v1::Durability::Fsync,
            Durability::Replicated => v1::Durability::Replicated,
        };
        let cleanup = match self.cleanup {
            Cleanup::Delete => v1::Cleanup::Delete,
            Cleanup::Compact => v1::Cleanup::Compact,
            Cleanup::Both => v1::Cleanup::Both,
        };
        v1::TopicConfig {
            replicas: self.replicas,
            durability: durability.into(),
            retention_bytes: self.retention_bytes.unwrap_or(0),
            retention_ms: self.retention_ms.unwrap_or(0),
            max_batch_bytes: self.max_batch_bytes,
            cleanup: cleanup.into(),
        }
    }

    /// Checks each value for itself; whether there are nodes enough is for the catalog.
    ///
    /// # Errors
    /// [`Reason::InvalidArgument`], naming the value and its limits.
    pub fn validate(&self) -> Result<(), Refusal> {
        let invalid = |message: String| Err(Refusal::new(Reason::InvalidArgument, message));
        if self.replicas > limits::REPLICAS_MAX {
            return invalid(format!("replicas is {}: a partition has 1 to {}", self.replicas, limits::REPLICAS_MAX));
        }
        let batch_bytes = MAX_BATCH_BYTES_MIN..=limits::BATCH_BYTES_MAX;
        if !batch_bytes.contains(&self.max_batch_bytes) {
            let (found, least, most) = (self.max_batch_bytes, batch_bytes.start(), batch_bytes.end());
            return invalid(format!("max_batch_bytes is {found}: it may be {least} to {most}"));
        }
        if self.retention_bytes == Some(0) || self.retention_ms == Some(0) {
            return invalid("a retention of 0 keeps nothing: leave it out to keep everything".to_owned());
        }
        let is_limited = self.retention_bytes.is_some() || self.retention_ms.is_some();
        if self.cleanup == Cleanup::Compact && is_limited {
            return invalid(
                "cleanup compact keeps the newest record of each key for ever: leave retention out, or use both"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// What its partitions' logs may keep.
    pub fn retention(&self) -> retention::Limits {
        retention::Limits { bytes: self.retention_bytes, ms: self.retention_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_forms() {
        let absent = TopicConfig::from_wire(None).unwrap();
        assert_eq!(absent, TopicConfig::from_wire(Some(&v1::TopicConfig::default())).unwrap());
        assert_eq!(absent, TopicConfig::default());
        let all = TopicConfig {
            replicas: 5,
            durability: Durability::Replicated,
            retention_bytes: Some(1),
            retention_ms: Some(2),
            max_batch_bytes: 4_096,
            cleanup: Cleanup::Both,
        };
        for config in [all, absent] {
            assert_eq!(TopicConfig::from_wire(Some(&config.to_wire())).unwrap(), config);
        }
    }

    #[test]
    fn limits_are_named() {
        let sound = TopicConfig::default().to_wire();
        for (wire, want) in [
            (v1::TopicConfig { replicas: 8, ..sound }, "replicas is 8: a partition has 1 to 7"),
            (v1::TopicConfig { durability: 9, ..sound }, "durability 9 is not known here: use fsync or replicated"),
            (v1::TopicConfig { max_batch_bytes: 1_023, ..sound }, "max_batch_bytes is 1023: it may be 1024 to 8388608"),
            (v1::TopicConfig { cleanup: 9, ..sound }, "cleanup 9 is not known here: use delete, compact or both"),
            (
                v1::TopicConfig { cleanup: v1::Cleanup::Compact.into(), retention_ms: 5, ..sound },
                "cleanup compact keeps the newest record of each key for ever: leave retention out, or use both",
            ),
            (
                v1::TopicConfig { max_batch_bytes: (8 << 20) + 1, ..sound },
                "max_batch_bytes is 8388609: it may be 1024 to 8388608",
            ),
        ] {
            let refusal = TopicConfig::from_wire(Some(&wire)).unwrap_err();
            assert_eq!((refusal.reason, refusal.message.as_str()), (Reason::InvalidArgument, want));
        }
    }
}
