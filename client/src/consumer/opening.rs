//! The names of one opening of a subscription: whose stay it belongs to, which stream feeds it, what it is called on the
//! wire. What is left of an earlier opening is told from the present one by these.

use busbar_proto::{NodeId, PartitionId, limits};

use super::subscription::StartAt;

/// Tells one stay of a partition with a consumer from the stays before: what is left of those must not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tenure(u64);

impl Tenure {
    pub(crate) const fn new(raw: u64) -> Self {
        Self(raw)
    }

    pub(crate) const fn get(self) -> u64 {
        self.0
    }
}

/// Names one opening of one subscription on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SubscriptionId(u32);

impl SubscriptionId {
    const PARTITION_BITS: u32 = 14;

    pub(crate) fn new(partition: PartitionId, opening: u32) -> Self {
        Self(opening << Self::PARTITION_BITS | partition.get())
    }

    pub(crate) const fn from_wire(raw: u32) -> Self {
        Self(raw)
    }

    pub(crate) const fn get(self) -> u32 {
        self.0
    }

    pub(crate) const fn partition(self) -> PartitionId {
        PartitionId::new(self.0 & ((1 << Self::PARTITION_BITS) - 1))
    }
}

const _: () = assert!(limits::PARTITIONS_PER_TOPIC_MAX <= 1 << SubscriptionId::PARTITION_BITS);

/// Names one stream to one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FeedId {
    pub(crate) node: NodeId,
    pub(crate) number: u64,
}

/// What opens a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) id: SubscriptionId,
    pub(crate) from: StartAt,
    pub(crate) credit: u64,
}
