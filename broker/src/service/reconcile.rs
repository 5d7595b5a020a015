//! Keeps the replicas on this node as the catalog says: starts what should be here, stops and deletes what no longer
//! should.
//!
//! Deleting is the dangerous half: a voter that forgets its log can bring back a lost minority's history. So a local
//! group goes only when the catalog has no use for it here, the catalog's leader has been heard of meanwhile, and
//! either the group's own membership agrees or the state has lasted `ORPHAN_AFTER`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use busbar_machine::{
    catalog::{Durability, TopicConfig, TopicKind},
    group::GroupShard,
    partition::PartitionMachine,
};
use busbar_proto::{GroupId, NodeId, PartitionId, TopicId};
use futures::{StreamExt as _, stream};

use super::{broker::Broker, hosted::Hosted, producers::CatalogClaims, rebuild};
use crate::{
    groups::{Shard, ShardOptions},
    partition::{Replica, ReplicaOptions},
    raft::{Group, GroupOptions, group::GroupError, rebuild::Stored},
};

/// How long a group that the catalog does not want here is kept when its own membership can't confirm it.
const ORPHAN_AFTER: Duration = Duration::from_secs(30);
/// How long the preferred leader has to found a new group before the others do.
const FOUNDING_GRACE: Duration = Duration::from_secs(2);
/// How often a node that waits for the catalog says so.
const RECOVERY_REPORT_EVERY: Duration = Duration::from_secs(5);
/// Replicas that are opened, and that are stopped and deleted, side by side.
const OPENED_AT_ONCE: usize = 32;
const DELETED_AT_ONCE: usize = 32;
/// How long one of them may take to stop.
const STOP_MAX: Duration = Duration::from_secs(5);
/// From so many on it is worth a line in the log.
const MANY: usize = 64;
/// The state is looked at this often even without a change.
const TICK: Duration = Duration::from_secs(1);

/// A replica that should be on this node.
struct Wanted {
    group: GroupId,
    topic: TopicId,
    partition: PartitionId,
    kind: TopicKind,
    config: TopicConfig,
    replicas: Vec<NodeId>,
    /// The group is new: whoever is in `replicas` may found it.
    founding: bool,
}

impl Broker {
    pub(super) async fn keep_reconciled(self: Arc<Self>) {
        let mut applied = self.cluster().group().shared().watch();
        let mut orphans = BTreeMap::new();
        // An old state replayed after a restart must not be acted on.
        loop {
            // But the addresses in it are needed to find the others: after a stop of the whole cluster nobody else tells
            // a node that had joined where they are. Newer ones come with the catalog.
            self.learn_addresses();
            match self.cluster().group().recovered(RECOVERY_REPORT_EVERY).await {
                Ok(true) => break,
                Ok(false) => tracing::info!("waiting for the catalog: is a majority of the cluster's nodes running?"),
                Err(_) => return, // the node is stopping
            }
        }
        loop {
            self.reconcile(&mut orphans).await;
            let _ = tokio::time::timeout(TICK, applied.changed()).await;
        }
    }

    async fn reconcile(self: &Arc<Self>, orphans: &mut BTreeMap<GroupId, Instant>) {
        let wanted = self.wanted();
        self.learn_addresses();
        let mut missing = Vec::new();
        for want in wanted.values() {
            let known = self.replicas.read().get(&want.group).cloned();
            match known {
                Some(replica) => replica.reconfigure(want.config),
                None => missing.push(want),
            }
        }
        if !missing.is_empty() {
            let began = self.clock().now();
            let count = missing.len();
            let opened = stream::iter(missing).for_each_concurrent(OPENED_AT_ONCE, |want| async {
                if let Err(error) = self.open_replica(want).await {
                    tracing::error!(group = %want.group, %error, "a replica can't be opened; trying again");
                }
            });
            opened.await;
            self.leaders().bump();
            if count >= MANY {
                let took = self.clock().now().saturating_duration_since(began);
                tracing::info!(count, ?took, "replicas are open");
            }
        }
        self.delete_unwanted(&wanted, orphans).await;
    }

    fn wanted(&self) -> BTreeMap<GroupId, Wanted> {
        let node = self.node();
        self.cluster().read(|catalog| {
            let mine = catalog.partitions_of_node(node).filter_map(|partition| {
                let topic = catalog.topic_by_id(partition.topic)?;
                Some((
                    partition.group,
                    Wanted {
                        group: partition.group,
                        topic: partition.topic,
                        partition: partition.partition,
                        kind: topic.kind,
                        config: topic.config,
                        founding: partition.move_id == 0 && partition.replicas.contains(&node),
                        replicas: partition.replicas.clone(),
                    },
                ))
            });
            mine.collect()
        })
    }

    fn learn_addresses(&self) {
        self.cluster().read(|catalog| {
            for node in catalog.nodes() {
                self.parts.addresses.insert(node.id, node.peer_address.clone());
            }
            self.parts.identity.set_registered(catalog.nodes().map(|node| node.id).collect());
            if let Some(incarnation) = catalog.incarnation() {
                let mut known = self.parts.identity.incarnation.write();
                if known.is_empty() {
                    *known = incarnation.to_owned();
                }
            }
        });
    }

    async fn open_replica(self: &Arc<Self>, want: &Wanted) -> Result<(), GroupError> {
        let failed = |message: String| GroupError { group: want.group, message };
        let log_id = busbar_storage::GroupId(want.group.get());
        let log = self.parts.engine.group(log_id).map_err(|error| failed(error.to_string()))?;
        let stored = Stored { id: want.group, log: log.clone(), store: self.parts.store.clone() };
        rebuild::complete(&stored, &self.parts.addresses.others(self.node()), &self.parts.calls).await?;
        let tasks = self.tasks().child();
        let options = GroupOptions {
            id: want.group,
            node: self.node(),
            log,
            store: self.parts.store.clone(),
            links: self.parts.links.clone(),
            registry: self.parts.registry.clone(),
            timing: self.timing(),
            clock: self.clock().clone(),
            tasks: tasks.clone(),
            lazy: want.config.durability == Durability::Replicated,
        };
        let replica = match want.kind {
            TopicKind::Records => Hosted::Partition(Replica::start(ReplicaOptions {
                topic: want.topic,
                partition: want.partition,
                group: Group::start(options, PartitionMachine::new()).await?,
                config: want.config,
                engine: self.parts.engine.clone(),
                clock: self.clock().clone(),
                claims: CatalogClaims::of(self.cluster()),
                tasks: tasks.clone(),
                node_budget: self.node_budget.clone(),
                partition_bytes: self.config().limits.partition_in_flight_bytes.as_usize(),
            })),
            TopicKind::Groups => {
                let shard = Shard::new(ShardOptions {
                    topic: want.topic,
                    partition: want.partition,
                    group: Group::start(options, GroupShard::new()).await?,
                    clock: self.clock().clone(),
                    tasks: tasks.clone(),
                });
                tasks.spawn("coordinate groups", self.clone().coordinate(shard.clone()));
                Hosted::Shard(shard)
            }
        };
        self.replicas.write().insert(want.group, replica.clone());
        if want.founding {
            let (voters, first) = (want.replicas.clone(), want.replicas.first() == Some(&self.node()));
            tasks.spawn("found group", found(replica.clone(), voters, first));
        }
        tasks.spawn("follow leader", self.clone().follow_leader(replica));
        Ok(())
    }

    /// Tells watchers at once when a replica's leader changes.
    async fn follow_leader(self: Arc<Self>, replica: Hosted) {
        let mut watch = replica.group().watch_leadership();
        let mut seen = watch.current();
        while watch.changed().await {
            let now = watch.current();
            if (now.leader, now.term) != (seen.leader, seen.term) {
                seen = now;
                self.leads_changed.notify_one();
            }
        }
    }

    async fn delete_unwanted(&self, wanted: &BTreeMap<GroupId, Wanted>, orphans: &mut BTreeMap<GroupId, Instant>) {
        let now = self.clock().now();
        let has_leader = self.cluster().group().leadership().leader.is_some();
        let mut groups: BTreeSet<GroupId> =
            self.parts.engine.groups().into_iter().map(|group| GroupId::new(group.0)).collect();
        groups.remove(&GroupId::CATALOG);
        orphans.retain(|group, _| groups.contains(group) && !wanted.contains_key(group));
        let mut going = Vec::new();
        for group in groups.into_iter().filter(|group| !wanted.contains_key(group)) {
            let since = *orphans.entry(group).or_insert(now);
            let replica = self.replicas.read().get(&group).cloned();
            let is_deleted = self.cluster().read(|catalog| catalog.partition(group).is_none());
            let left = replica.as_ref().is_some_and(|replica| {
                let (voters, learners) = replica.group().members();
                !voters.contains(&self.node()) && !learners.contains(&self.node())
            });
            let confirmed = (is_deleted && replica.is_some()) || left;
            if !has_leader || !(confirmed || now.duration_since(since) > ORPHAN_AFTER) {
                continue;
            }
            orphans.remove(&group);
            going.push(group);
        }
        if !going.is_empty() {
            let deleted = stream::iter(going).for_each_concurrent(DELETED_AT_ONCE, |group| self.delete_replica(group));
            deleted.await;
            self.leaders().bump();
        }
    }

    async fn delete_replica(&self, group: GroupId) {
        tracing::info!(%group, "deleting a replica that the catalog does not want here");
        let replica = self.replicas.write().remove(&group);
        // A group that waits for room in a full journal ends when there is some: by then its log is removed.
        if let Some(replica) = &replica
            && tokio::time::timeout(STOP_MAX, replica.stop(false)).await.is_err()
        {
            tracing::warn!(%group, "a replica does not stop in time; its log is removed all the same");
        }
        // The log first: a log without its checkpoints could not be opened, should the partition ever come back.
        match self.parts.engine.remove_group(busbar_storage::GroupId(group.get())) {
            Err(error) => {
                tracing::error!(%group, %error, "a deleted replica's log could not be removed; trying again");
            }
            Ok(()) => {
                if let Some(Err(error)) = replica.map(|replica| replica.group().forget_checkpoints()) {
                    tracing::warn!(%group, %error, "checkpoints of a deleted replica stay");
                }
            }
        }
    }
}

/// Founds a new group: the preferred leader at once, the others when it has not done so in time. All of them write the
/// same first entry, so it does not matter who was first or whether several were.
async fn found(replica: Hosted, voters: Vec<NodeId>, first: bool) {
    let group = replica.group();
    if !first {
        let mut leadership = group.watch_leadership();
        let contacted = async { while leadership.current().leader.is_none() && leadership.changed().await {} };
        let _ = tokio::time::timeout(FOUNDING_GRACE, contacted).await;
    }
    if group.is_initialized().await {
        return;
    }
    if let Err(error) = group.initialize(voters).await {
        tracing::error!(%error, "a new partition could not be founded");
    }
}
