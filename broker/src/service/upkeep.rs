//! What happens by the clock: registration of this node, reports to the others, retention, and who votes on the
//! catalog.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use busbar_machine::{
    catalog::{Command, Outcome},
    retention::{self, Segment},
};
use busbar_proto::{
    GroupId, LogIndex, NodeId, Offset, Term,
    peer::{Leaders as LeaderReport, frame::Body, leaders::Led},
};

use super::{broker::Broker, hosted::Hosted};
use crate::{partition::Replica, raft::network::link::Lane};

const REPORT_EVERY: Duration = Duration::from_millis(1000);
/// Between two reports at least.
const REPORT_GAP: Duration = Duration::from_millis(10);
const REGISTER_RETRY: Duration = Duration::from_millis(200);
const MEMBERS_EVERY: Duration = Duration::from_millis(500);
/// Voters of the catalog, in clusters large enough.
const CATALOG_VOTERS: usize = 3;
/// Catalog entries kept for lagging nodes before a checkpoint takes their place.
const CATALOG_ENTRIES_KEPT: u64 = 10_000;

impl Broker {
    /// Makes this node known to the catalog, once it has a leader.
    pub(super) async fn keep_registered(self: Arc<Self>) {
        let (address, peer_address) = self.parts.advertised.clone();
        let node = self.node();
        let is_current = |broker: &Self| {
            broker.cluster().read(|catalog| {
                let known = catalog.node(node);
                catalog.incarnation().is_some()
                    && known.is_some_and(|known| known.address == address && known.peer_address == peer_address)
            })
        };
        while !is_current(&self) {
            let incarnation = format!("{:032x}", rand::random::<u128>());
            let name = Command::InitCluster { cluster: self.config().cluster.name.clone(), incarnation };
            let register = Command::RegisterNode {
                node: Some(node),
                address: address.clone(),
                peer_address: peer_address.clone(),
            };
            let done = async {
                let _: Outcome = self.cluster().submit(name).await?;
                self.identity().remembered().await;
                self.cluster().submit(register).await
            };
            match done.await {
                Ok(_) => tracing::info!(%node, "registered"),
                Err(refusal) => tracing::warn!(%refusal, "not registered yet; trying again"),
            }
            self.cluster().applied(REGISTER_RETRY, |catalog| catalog.node(node).is_some()).await;
        }
    }

    /// The groups led here, with their terms.
    pub(super) fn led_groups(&self) -> Vec<(GroupId, Term)> {
        let local = self.local();
        let led = local.iter().map(|replica| (replica.group_id(), replica.group().leadership()));
        led.filter(|(_, now)| now.is_self).map(|(group, now)| (group, now.term)).collect()
    }

    fn report_now(&self) {
        let led = self.led_groups();
        self.leaders().report(self.node(), self.clock().now(), led.iter().copied());
        let report = LeaderReport {
            led: led.into_iter().map(|(group, term)| Led { group: group.get(), term: term.get() }).collect(),
        };
        let others: Vec<NodeId> = self.cluster().read(|catalog| catalog.nodes().map(|node| node.id).collect());
        self.leaders().expect(self.clock().now(), others.iter().copied());
        for other in others.into_iter().filter(|other| *other != self.node()) {
            let link = self.parts.links.get(other, Lane::Control);
            link.notify(GroupId::CATALOG, 0, Body::Leaders(report.clone()));
        }
    }

    pub(super) async fn keep_reporting(self: Arc<Self>) {
        let mut applied = self.cluster().group().shared().watch();
        let mut version = self.cluster().read(|catalog| catalog.version());
        loop {
            self.report_now();
            self.leaders().expire(self.clock().now());
            // A report names every group that is led here: what changes in one go, as when a node is lost or a topic of a
            // thousand partitions is made, is told in one.
            tokio::time::sleep(REPORT_GAP).await;
            tokio::select! {
                () = self.leads_changed.notified() => {}
                // A change of the catalog is news for watchers, and new nodes want a report.
                _ = applied.changed() => {}
                () = tokio::time::sleep(REPORT_EVERY) => {}
            }
            let now = self.cluster().read(|catalog| catalog.version());
            if now != version {
                version = now;
                self.leaders().bump();
            }
        }
    }

    pub(super) async fn keep_trimmed(self: Arc<Self>) {
        let every = Duration::from_millis(self.config().retention.check_interval_ms.get());
        loop {
            tokio::time::sleep(every).await;
            for replica in self.local() {
                let trimmed = match &replica {
                    Hosted::Partition(replica) => self.trim(replica).await,
                    Hosted::Shard(shard) => shard.trim().await.map_err(|error| error.to_string()),
                };
                if let Err(error) = trimmed {
                    tracing::warn!(group = %replica.group_id(), error, "retention is held up");
                }
            }
            let catalog = self.cluster().group();
            let covered = catalog.shared().applied().at.index.get().saturating_sub(CATALOG_ENTRIES_KEPT);
            if let Err(error) = catalog.allow_purge_to(LogIndex::new(covered)).await {
                tracing::warn!(%error, "the catalog's log is not shortened");
            }
        }
    }

    /// The leader moves the log start; every replica then lets its log go up to there.
    async fn trim(&self, replica: &Replica) -> Result<(), String> {
        let now_ms = self.clock().unix_ms();
        let log = replica.group().log();
        let (log_start, _) = replica.bounds();
        let limits = replica.config().retention();
        let keeps_everything = limits.bytes.is_none() && limits.ms.is_none();
        if !keeps_everything && replica.group().leadership().is_self {
            let segments: Vec<Segment> = log
                .oldest_segments()
                .into_iter()
                .map(|segment| Segment {
                    first_offset: Offset::new(segment.first_mark),
                    next_offset: Offset::new(segment.last_mark),
                    bytes: segment.bytes,
                    last_time_ms: segment.last_time_ms,
                    sealed: segment.sealed,
                })
                .collect();
            let start = retention::new_log_start(log_start, &segments, log.size_bytes(), now_ms, limits);
            if let Some(start) = start {
                replica.trim(start, now_ms).await.map_err(|error| error.to_string())?;
            }
        }
        let (log_start, _) = replica.bounds();
        if log_start > Offset::ZERO {
            let first = log.find_mark(log_start.get()).await.map_err(|error| error.to_string())?;
            let first = first.or_else(|| log.state().last.map(|last| last.index + 1)).unwrap_or(0);
            if let Some(covered) = LogIndex::new(first).prev() {
                replica.group().allow_purge_to(covered).await.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// On the catalog's leader: every registered node follows the catalog, a few vote on it.
    pub(super) async fn keep_catalog_members(self: Arc<Self>) {
        loop {
            tokio::time::sleep(MEMBERS_EVERY).await;
            if self.cluster().group().leadership().is_self
                && let Err(error) = self.adjust_catalog_members().await
            {
                tracing::warn!(%error, "the catalog's members are not as they should be; trying again");
            }
        }
    }

    async fn adjust_catalog_members(&self) -> Result<(), crate::raft::group::GroupError> {
        let group = self.cluster().group();
        let nodes: BTreeMap<NodeId, bool> =
            self.cluster().read(|catalog| catalog.nodes().map(|node| (node.id, node.draining)).collect());
        if nodes.is_empty() {
            return Ok(()); // nobody has registered yet
        }
        let (voters, learners) = group.members();
        for node in nodes.keys().filter(|node| !voters.contains(node) && !learners.contains(node)) {
            tracing::info!(%node, "a node joins the catalog");
            group.add_learner_nowait(*node).await?;
        }
        let registered: BTreeSet<NodeId> = nodes.keys().copied().collect();
        // Founding voters that have not registered yet may still do so: only known nodes are judged.
        let mut wanted: BTreeSet<NodeId> =
            voters.iter().copied().filter(|node| nodes.get(node).is_none_or(|draining| !draining)).collect();
        let removed: BTreeSet<NodeId> = self
            .cluster()
            .read(|catalog| voters.iter().chain(&learners).copied().filter(|node| catalog.is_removed(*node)).collect());
        wanted.retain(|node| !removed.contains(node));
        let now = self.clock().now();
        let spare = nodes
            .iter()
            .filter(|(node, draining)| !**draining && learners.contains(node) && self.leaders().is_alive(**node, now));
        for (node, _) in spare {
            if wanted.len() < CATALOG_VOTERS {
                wanted.insert(*node);
            }
        }
        if wanted != voters && !wanted.is_empty() {
            if !wanted.contains(&self.node()) {
                if let Some(next) = wanted.iter().find(|node| self.leaders().is_alive(**node, now)) {
                    group.transfer_leader(*next).await?;
                }
                return Ok(());
            }
            tracing::info!(?voters, ?wanted, "changing who votes on the catalog");
            group.set_voters(wanted).await?;
            return Ok(());
        }
        let gone: BTreeSet<NodeId> =
            learners.into_iter().filter(|node| removed.contains(node) || !registered.contains(node)).collect();
        if !gone.is_empty() {
            group.remove_learners(gone).await?;
        }
        Ok(())
    }
}
