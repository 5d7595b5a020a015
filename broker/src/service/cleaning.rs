//! Compaction by the clock: one partition after the other is cleaned where it is due, and tombstones are agreed on.
//!
//! Invariant: one partition at a time, so memory and disk are used as configured however many partitions there are. What a
//! failed cleaning left undone waits for a while, so that a bad disk is not read over and over.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use busbar_proto::{
    GroupId, NodeId,
    peer::{Cleaned, frame::Body},
};

use super::{broker::Broker, hosted::Hosted};
use crate::{
    partition::{Replica, cleaner::CleaningOptions},
    raft::network::link::Lane,
};

/// After a failure a partition is left alone for so long.
const FAILED_REST: Duration = Duration::from_secs(600);

impl Broker {
    fn cleaning_options(&self) -> CleaningOptions {
        let config = &self.config().compaction;
        CleaningOptions {
            dirty_percent: config.dirty_percent,
            memory_bytes: config.memory_bytes.as_usize(),
            bytes_per_second: config.bytes_per_second.get(),
            delete_retention_ms: config.delete_retention_ms.get(),
        }
    }

    fn compacted(&self) -> Vec<Arc<Replica>> {
        let replicas = self.local().into_iter().filter_map(|hosted| match hosted {
            Hosted::Partition(replica) => Some(replica),
            Hosted::Shard(_) => None,
        });
        replicas.filter(|replica| replica.config().cleanup.compacts()).collect()
    }

    pub(super) async fn keep_cleaned(self: Arc<Self>) {
        let options = self.cleaning_options();
        let mut failed = BTreeMap::new();
        loop {
            tokio::time::sleep(Duration::from_millis(self.config().compaction.check_interval_ms.get())).await;
            let now = self.clock().now();
            failed.retain(|_, at| now.duration_since(*at) < FAILED_REST);
            for replica in self.compacted() {
                let group = replica.group_id();
                let now_ms = self.clock().unix_ms();
                if failed.contains_key(&group) || !replica.needs_cleaning(&options, now_ms) {
                    continue;
                }
                match replica.clean(&options, now_ms).await {
                    Ok(cleaned) => tracing::info!(%group, ?cleaned, "compacted"),
                    Err(error) => {
                        tracing::warn!(%group, %error, "compaction is held up; trying again later");
                        failed.insert(group, self.clock().now());
                    }
                }
            }
        }
    }

    pub(super) async fn keep_settled(self: Arc<Self>) {
        let options = self.cleaning_options();
        loop {
            tokio::time::sleep(Duration::from_millis(self.config().compaction.check_interval_ms.get())).await;
            for replica in self.compacted() {
                let group = replica.group_id();
                if let Some((leader, told)) = replica.tells_of_tombstones() {
                    self.parts.links.get(leader, Lane::Control).notify(group, 0, Body::Cleaned(told));
                }
                if let Err(refusal) = replica.settle_tombstones(&options, self.clock().unix_ms()).await {
                    tracing::debug!(%group, %refusal, "tombstones are not settled yet");
                }
            }
        }
    }

    /// A node tells what its replica of a compacted partition still holds.
    pub(super) fn heard_cleaned(&self, node: NodeId, group: GroupId, told: Cleaned) {
        let hosted = self.replicas.read().get(&group).cloned();
        if let Some(Hosted::Partition(replica)) = hosted {
            replica.hears_of_tombstones(node, told);
        }
    }
}
