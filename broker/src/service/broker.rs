//! The broker of one node: its replicas, the catalog, and the use-cases on them. Knows no protocol.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use busbar_machine::catalog::Catalog;
use busbar_proto::{GroupId, NodeId, Offset, PartitionId, Reason, Refusal, TopicId};
use busbar_storage::LogEngine;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, watch};

use super::{cluster::Cluster, hosted::Hosted, leaders::Leaders};
use crate::{
    config::Config,
    env::{Clock, StateStore, Tasks},
    partition::{Offered, PublishResult, Replica, reader::Reader, sequencer::not_leader},
    raft::{
        RaftTiming, Registry,
        network::{AddressBook, Identity, Links, calls::Calls},
    },
};

/// What a broker is made of.
pub struct BrokerOptions {
    /// The configuration.
    pub config: Arc<Config>,
    /// Who this node is.
    pub identity: Arc<Identity>,
    /// The log engine.
    pub engine: LogEngine,
    /// Checkpoints.
    pub store: Arc<dyn StateStore>,
    /// The catalog.
    pub cluster: Cluster,
    /// Peers' addresses.
    pub addresses: Arc<AddressBook>,
    /// Links to peers.
    pub links: Arc<Links>,
    /// Unary calls to peers.
    pub calls: Arc<Calls>,
    /// Groups by id.
    pub registry: Arc<Registry>,
    /// Who leads what.
    pub leaders: Arc<Leaders>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Background tasks.
    pub tasks: Tasks,
    /// What others are told of where this node listens: for clients, for peers.
    pub advertised: (String, String),
}

/// See the module.
pub struct Broker {
    pub(super) parts: BrokerOptions,
    pub(super) replicas: RwLock<BTreeMap<GroupId, Hosted>>,
    pub(super) node_budget: Arc<Semaphore>,
    pub(super) producer_ids: Mutex<std::ops::Range<i64>>,
    /// What this node leads has changed.
    pub(super) leads_changed: Notify,
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// The log start.
    Earliest,
    /// The high watermark: only what comes from now on.
    Latest,
    /// That offset.
    Offset(Offset),
    /// The first batch with a record of that time or later, milliseconds since the Unix epoch; else the high watermark.
    Time(i64),
}

impl Broker {
    /// No replica yet; [`Broker::start`] makes them.
    pub fn new(parts: BrokerOptions) -> Arc<Self> {
        let budget = usize::try_from(parts.config.limits.node_in_flight_bytes.get()).unwrap_or(usize::MAX);
        Arc::new(Self {
            parts,
            replicas: RwLock::default(),
            node_budget: Arc::new(Semaphore::new(budget.min(Semaphore::MAX_PERMITS))),
            producer_ids: Mutex::new(0..0),
            leads_changed: Notify::new(),
        })
    }

    /// Starts the background work: replicas as the catalog says, reports to peers, upkeep.
    pub fn start(self: &Arc<Self>) {
        let tasks = &self.parts.tasks;
        tasks.spawn("reconcile", self.clone().keep_reconciled());
        tasks.spawn("register", self.clone().keep_registered());
        tasks.spawn("leader reports", self.clone().keep_reporting());
        tasks.spawn("moves", self.clone().keep_moving());
        tasks.spawn("retention", self.clone().keep_trimmed());
        tasks.spawn("compaction", self.clone().keep_cleaned());
        tasks.spawn("tombstones", self.clone().keep_settled());
        tasks.spawn("catalog members", self.clone().keep_catalog_members());
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.parts.identity.node
    }

    /// Who this node is to its peers.
    pub fn identity(&self) -> &Identity {
        &self.parts.identity
    }

    /// Follows whether the cluster has refused this node for good; the text is for the operator.
    pub fn expelled(&self) -> watch::Receiver<Option<String>> {
        self.parts.identity.expelled()
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.parts.config
    }

    /// Time.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.parts.clock
    }

    /// Background tasks.
    pub fn tasks(&self) -> &Tasks {
        &self.parts.tasks
    }

    /// What others are told of where this node listens: for clients, for peers.
    pub fn advertised(&self) -> &(String, String) {
        &self.parts.advertised
    }

    /// The catalog.
    pub fn cluster(&self) -> &Cluster {
        &self.parts.cluster
    }

    /// Who leads what.
    pub fn leaders(&self) -> &Leaders {
        &self.parts.leaders
    }

    pub(super) fn timing(&self) -> RaftTiming {
        RaftTiming::of_groups(&self.parts.config.raft)
    }

    /// The replicas on this node.
    pub(super) fn local(&self) -> Vec<Hosted> {
        self.replicas.read().values().cloned().collect()
    }

    /// The replica of a partition on this node.
    ///
    /// # Errors
    /// Unknown topic or partition; [`Reason::NotLeader`] when it lives on other nodes, naming the leader if known.
    pub fn replica(&self, topic: TopicId, partition: PartitionId) -> Result<Arc<Replica>, Refusal> {
        let group = self.parts.cluster.read(|catalog| group_of(catalog, topic, partition))?;
        let found = self.replicas.read().get(&group).cloned();
        let found = match found {
            Some(Hosted::Partition(replica)) => Some(replica),
            Some(Hosted::Shard(_)) => {
                let message = format!("topic {topic} is the cluster's own: it holds consumer groups, no records");
                return Err(Refusal::new(Reason::UnknownTopic, message));
            }
            None => None,
        };
        found.ok_or_else(|| {
            let leader = self.parts.leaders.leader(group).map(|(node, _)| node).filter(|node| *node != self.node());
            let message = "this node has no replica of the partition (yet): ask its leader";
            Refusal::new(Reason::NotLeader, message).led_by(leader).retry_after(Duration::from_millis(50))
        })
    }

    /// Stores a batch; `answer` is called once. Waits while the byte budgets are spent: not cancel safe.
    pub async fn publish(
        &self,
        topic: TopicId,
        partition: PartitionId,
        offered: Offered,
        answer: Box<dyn FnOnce(PublishResult) + Send>,
    ) {
        match self.replica(topic, partition) {
            Ok(replica) => replica.publish(offered, answer).await,
            Err(refusal) => answer(Err(refusal)),
        }
    }

    /// A reader of a partition's records; from its leader unless `any_replica`.
    pub async fn reader(
        &self,
        topic: TopicId,
        partition: PartitionId,
        from: StartAt,
        any_replica: bool,
    ) -> Result<(Reader, Arc<Replica>), Refusal> {
        let replica = self.replica(topic, partition)?;
        if !any_replica {
            replica.require_leading()?;
        }
        let (log_start, high_watermark) = replica.bounds();
        let offset = match from {
            StartAt::Earliest => log_start,
            StartAt::Latest => high_watermark,
            StartAt::Offset(offset) => offset,
            StartAt::Time(time_ms) => replica.offset_at(time_ms).await?,
        };
        let leadership = replica.group().leadership();
        if offset > high_watermark && !leadership.is_self {
            // Read elsewhere up to there, this replica lags: nothing is wrong with the offset.
            return Err(not_leader(leadership));
        }
        Ok((replica.reader(offset)?, replica))
    }

    /// Stops every replica, giving leadership away first. Not cancel safe.
    pub async fn stop(&self) {
        let replicas = self.local();
        self.give_leadership_away(&replicas).await;
        let stops = replicas.iter().map(|replica| replica.stop(true));
        futures::future::join_all(stops).await;
        self.parts.cluster.group().checkpoint().await;
        self.parts.cluster.group().stop().await;
    }
}

/// The raft group of a partition.
pub(super) fn group_of(catalog: &Catalog, topic: TopicId, partition: PartitionId) -> Result<GroupId, Refusal> {
    let Some(found) = catalog.topic_by_id(topic) else {
        let message =
            format!("no topic has the id {topic}: it was deleted, or created a moment ago; look it up by name");
        return Err(Refusal::new(Reason::UnknownTopic, message));
    };
    match catalog.partition_of_topic(topic, partition) {
        Some(partition) => Ok(partition.group),
        None => Err(Catalog::unknown_partition(found, partition)),
    }
}
