//! The shapes in which topics, partitions and nodes are printed as JSON: stable, documented in `docs/CLI.md`, and made
//! here from the wire's. Node 0 on the wire ("none") is `null` here.

use busbar_proto::{TopicId, v1};
use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct TopicSettings {
    pub(crate) replicas: u32,
    pub(crate) durability: &'static str,
    pub(crate) retention_bytes: Option<u64>,
    pub(crate) retention_ms: Option<u64>,
    pub(crate) max_batch_bytes: u32,
    pub(crate) cleanup: &'static str,
}

impl From<v1::TopicConfig> for TopicSettings {
    fn from(config: v1::TopicConfig) -> Self {
        Self {
            durability: match config.durability() {
                v1::Durability::Replicated => "replicated",
                v1::Durability::Fsync | v1::Durability::Unspecified => "fsync",
            },
            cleanup: match config.cleanup() {
                v1::Cleanup::Unspecified | v1::Cleanup::Delete => "delete",
                v1::Cleanup::Compact => "compact",
                v1::Cleanup::Both => "both",
            },
            replicas: config.replicas,
            retention_bytes: some_unless_zero(config.retention_bytes),
            retention_ms: some_unless_zero(config.retention_ms),
            max_batch_bytes: config.max_batch_bytes,
        }
    }
}

impl TopicSettings {
    /// For people: what is kept, and how safely.
    pub(crate) fn summary(&self) -> String {
        let mut kept = Vec::new();
        kept.extend(self.retention_bytes.map(|bytes| format!("{bytes} bytes a partition")));
        kept.extend(
            self.retention_ms.map(|ms| format!("{}", humantime::format_duration(std::time::Duration::from_millis(ms)))),
        );
        let kept = match (self.cleanup, kept.is_empty()) {
            ("delete", true) => "everything".to_owned(),
            ("delete", false) => kept.join(", "),
            (_, true) => "the newest record of each key".to_owned(),
            (_, false) => format!("the newest record of each key, {}", kept.join(", ")),
        };
        format!("{} replicas, durability {}, keeps {kept}", self.replicas, self.durability)
    }
}

/// One partition as its leader sees it.
#[derive(Serialize)]
pub(crate) struct PartitionView {
    pub(crate) partition: u32,
    pub(crate) leader: Option<u64>,
    pub(crate) epoch: u64,
    pub(crate) replicas: Vec<u64>,
    pub(crate) in_sync: Vec<u64>,
    pub(crate) log_start: u64,
    pub(crate) high_watermark: u64,
    pub(crate) lag: Vec<ReplicaLag>,
    pub(crate) moving_to: Vec<u64>,
    pub(crate) asleep: bool,
}

#[derive(Serialize)]
pub(crate) struct ReplicaLag {
    pub(crate) node: u64,
    pub(crate) entries: u64,
}

impl From<v1::PartitionState> for PartitionView {
    fn from(state: v1::PartitionState) -> Self {
        Self {
            partition: state.partition,
            leader: some_unless_zero(state.leader),
            epoch: state.epoch,
            replicas: state.replicas,
            in_sync: state.in_sync,
            log_start: state.log_start,
            high_watermark: state.high_watermark,
            lag: state.lag.into_iter().map(|lag| ReplicaLag { node: lag.node, entries: lag.entries }).collect(),
            moving_to: state.moving_to,
            asleep: state.asleep,
        }
    }
}

impl PartitionView {
    pub(crate) fn is_under_replicated(&self) -> bool {
        self.in_sync.len() < self.replicas.len()
    }

    pub(crate) fn is_moving(&self) -> bool {
        !self.moving_to.is_empty()
    }

    /// For people: `1,2(-17),3`, where node 2 is 17 entries behind.
    pub(crate) fn replicas_with_lag(&self) -> String {
        let behind = |node: u64| self.lag.iter().find(|lag| lag.node == node).map_or(0, |lag| lag.entries);
        let shown = self.replicas.iter().map(|&node| match behind(node) {
            0 => node.to_string(),
            entries => format!("{node}(-{entries})"),
        });
        crate::output::list(&shown.collect::<Vec<_>>())
    }
}

/// `1`, or `none`.
pub(crate) fn leader_text(leader: Option<u64>) -> String {
    leader.map_or_else(|| "none".to_owned(), |node| node.to_string())
}

/// A topic's id from the wire, as 32 hexadecimal digits.
pub(crate) fn topic_id_text(bytes: &[u8]) -> String {
    TopicId::from_slice(bytes).map_or_else(|| "?".to_owned(), |id| id.to_string())
}

/// The wire's 0 for "none".
pub(crate) fn some_unless_zero(number: u64) -> Option<u64> {
    (number != 0).then_some(number)
}
