//! Who takes part: newtypes for every identity, so that one can't be passed where another is meant.
//! Invariant: node ids and group ids are handed out by the catalog and never reused.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::limits;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Wraps a raw number.
            pub const fn new(raw: $inner) -> Self {
                Self(raw)
            }
            /// The raw number, for the wire and for printing.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}
pub(crate) use number;

number!(
    /// A broker process' identity. Zero is never assigned and means "none" on the wire.
    NodeId(u64)
);
number!(
    /// Number of a partition within its topic, from 0.
    PartitionId(u32)
);
number!(
    /// A raft group. Group 0 is the catalog; the catalog numbers the others and never reuses one.
    GroupId(u64)
);
number!(
    /// A producer's identity, from the catalog's never-reused sequence. Negative = no idempotence.
    ProducerId(i64)
);
number!(
    /// Incarnation of a named producer; a larger one fences the smaller.
    ProducerEpoch(i16)
);
number!(
    /// A producer's record counter within one partition; wraps from `i32::MAX` to 0, as Kafka's does.
    Sequence(i32)
);

number!(
    /// A consumer group's member, numbered by the group's shard and never used again. Zero means "none" on the wire.
    MemberId(u64)
);
number!(
    /// The right of one member to one partition of its group; a larger one fences the smaller. Zero is never given.
    ClaimId(u64)
);
number!(
    /// One agreed assignment within a consumer group; grows with each change.
    Generation(u64)
);

impl GroupId {
    /// The raft group that replicates the catalog.
    pub const CATALOG: Self = Self(0);
}

impl ProducerId {
    /// What a batch of a producer without idempotence carries.
    pub const NONE: Self = Self(-1);
}

impl Sequence {
    /// The sequence `records` later, wrapping from `i32::MAX` to 0.
    #[must_use]
    pub const fn advance(self, records: u32) -> Self {
        let sum = self.0 as i64 + records as i64;
        Self((sum % (i32::MAX as i64 + 1)) as i32)
    }
}

/// A topic's 128-bit identity: a deleted topic and its namesake created later differ in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId([u8; 16]);

impl TopicId {
    /// From its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
    /// From wire bytes; `None` unless there are exactly 16.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

impl FromStr for TopicId {
    type Err = InvalidTopicId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 32 || !text.is_ascii() {
            return Err(InvalidTopicId);
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(pair).map_err(|_| InvalidTopicId)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| InvalidTopicId)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for TopicId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TopicId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Text that is not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a topic id is 32 hexadecimal digits")]
pub struct InvalidTopicId;

/// A legal topic name: 1 to 249 of `a-z A-Z 0-9 . _ -`, not `.` or `..` (Kafka's rule, so that its clients agree).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TopicName(String);

impl TopicName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TopicName {
    type Err = InvalidTopicName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name.is_empty() {
            return Err(InvalidTopicName::Empty);
        }
        if name.len() > limits::TOPIC_NAME_BYTES_MAX {
            return Err(InvalidTopicName::TooLong { bytes: name.len() });
        }
        if name == "." || name == ".." {
            return Err(InvalidTopicName::Dots);
        }
        match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
            Some(found) => Err(InvalidTopicName::IllegalCharacter { found }),
            None => Ok(Self(name.to_owned())),
        }
    }
}

impl<'de> Deserialize<'de> for TopicName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A legal name of a consumer group, or of a member of one: the same rule as for topics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName(String);

impl GroupName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for GroupName {
    type Err = InvalidGroupName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        name.parse::<TopicName>().map(|TopicName(name)| Self(name)).map_err(|_| InvalidGroupName)
    }
}

/// Text that is no name of a consumer group or of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a group or member has a name of 1 to {} of a-z A-Z 0-9 . _ -, and neither '.' nor '..'",
    limits::TOPIC_NAME_BYTES_MAX
)]
pub struct InvalidGroupName;

/// Why a text is no topic name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopicName {
    /// No character at all.
    #[error("a topic name can't be empty")]
    Empty,
    /// Over the limit.
    #[error("a topic name has at most {} bytes, this one has {bytes}", limits::TOPIC_NAME_BYTES_MAX)]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// `.` or `..`.
    #[error("'.' and '..' are no topic names")]
    Dots,
    /// A character outside the alphabet.
    #[error("a topic name is made of a-z A-Z 0-9 . _ -, not {found:?}")]
    IllegalCharacter {
        /// The first such character.
        found: char,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn topic_names() {
        for (name, legal) in [
            ("orders", true),
            ("a.b_c-D9", true),
            ("", false),
            (".", false),
            ("..", false),
            ("a b", false),
            ("größe", false),
            ("a/b", false),
        ] {
            assert_eq!(name.parse::<TopicName>().is_ok(), legal, "{name:?}");
        }
        for (name, legal) in [("billing", true), ("", false), ("..", false), ("a/b", false)] {
            assert_eq!(name.parse::<GroupName>().is_ok(), legal, "{name:?}");
        }
        assert!("x".repeat(249).parse::<TopicName>().is_ok());
        assert_eq!("x".repeat(250).parse::<TopicName>(), Err(InvalidTopicName::TooLong { bytes: 250 }));
    }

    #[test]
    fn sequence_wraps_to_zero() {
        assert_eq!(Sequence::new(i32::MAX).advance(1), Sequence::new(0));
        assert_eq!(Sequence::new(i32::MAX - 1).advance(3), Sequence::new(1));
    }

    #[test]
    fn topic_id_round_trips_as_text() {
        let id = TopicId::from_bytes([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("ab".parse::<TopicId>(), Err(InvalidTopicId));
    }
}
