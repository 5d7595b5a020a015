//! What this node hosts besides the catalog: replicas of partitions and of shards of consumer groups. Moves, leadership,
//! reconciliation and checkpoints treat both alike, as a raft group with a place in the catalog.

use std::sync::Arc;

use busbar_machine::catalog::TopicConfig;
use busbar_proto::{GroupId, Offset, PartitionId, Refusal, TopicId};

use crate::{groups::Shard, partition::Replica, raft::GroupHandle};

/// A replica on this node. Cheap to clone.
#[derive(Clone)]
pub(super) enum Hosted {
    /// Of a partition.
    Partition(Arc<Replica>),
    /// Of a shard of consumer groups.
    Shard(Arc<Shard>),
}

impl Hosted {
    pub(super) fn group(&self) -> &GroupHandle {
        match self {
            Self::Partition(replica) => replica.group(),
            Self::Shard(shard) => shard.group(),
        }
    }

    pub(super) fn group_id(&self) -> GroupId {
        self.group().id()
    }

    pub(super) fn topic(&self) -> TopicId {
        match self {
            Self::Partition(replica) => replica.topic(),
            Self::Shard(shard) => shard.topic(),
        }
    }

    pub(super) fn partition(&self) -> PartitionId {
        match self {
            Self::Partition(replica) => replica.partition(),
            Self::Shard(shard) => shard.partition(),
        }
    }

    /// Takes the topic's configuration, where it has changed.
    pub(super) fn reconfigure(&self, config: TopicConfig) {
        match self {
            Self::Partition(replica) if replica.config() != config => replica.reconfigure(config),
            Self::Partition(_) | Self::Shard(_) => {}
        }
    }

    /// Log start and high watermark; a shard has no records.
    pub(super) fn bounds(&self) -> (Offset, Offset) {
        match self {
            Self::Partition(replica) => replica.bounds(),
            Self::Shard(_) => (Offset::ZERO, Offset::ZERO),
        }
    }

    /// Whether this replica leads and knows everything that was committed before it did.
    pub(super) fn require_leading(&self) -> Result<(), Refusal> {
        match self {
            Self::Partition(replica) => replica.require_leading(),
            Self::Shard(shard) => shard.require_leading().map(drop),
        }
    }

    /// Stops it. The log stays.
    pub(super) async fn stop(&self, checkpoint: bool) {
        match self {
            Self::Partition(replica) => replica.stop(checkpoint).await,
            Self::Shard(shard) => shard.stop(checkpoint).await,
        }
    }
}
