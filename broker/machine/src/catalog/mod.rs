//! The cluster as all nodes agree on it: nodes, topics, where partitions live, which are moving, and the counters that
//! hand out identities. One raft group (group 0) replicates it.
//!
//! ```text
//!   Command ──▶ Catalog::apply ──▶ Outcome        refused: nothing changed; else version + 1, if anything changed
//! ```
//! Invariants:
//! - node ids, group ids and producer ids are never handed out twice, not even after a removal;
//! - each replica is on a registered node, no partition has two on one;
//! - a refused command changes nothing, a repeated one changes nothing more;
//! - a topic id, a node's reachability, an incarnation are arguments: whoever proposes a command looked or drew.
//!
//! It records what should be. That replicas are where it says is the work of who watches it; [`Command::FinishMove`]
//! tells it when a move is done.

mod claims;
mod command;
mod config;
mod moves;
mod names;
mod nodes;
mod placement;
mod snapshot;
mod topics;

use std::collections::{BTreeMap, BTreeSet};

use busbar_proto::{GroupId, NodeId, PartitionId, ProducerId, Reason, Refusal, TopicId, TopicName};
use serde::{Deserialize, Serialize};

use topics::NewTopic;

pub use claims::NamedProducer;
pub use command::{Command, Outcome};
pub use config::{Cleanup, Durability, MAX_BATCH_BYTES_MIN, TopicConfig};

/// Partitions of all topics together.
pub const PARTITIONS_MAX: usize = 100_000;
/// Nodes registered at one time.
pub const NODES_MAX: usize = 1_000;
/// The largest node id that may be asked for by number.
pub const NODE_ID_MAX: u64 = 1 << 32;
/// Producer ids that one command may take.
pub const PRODUCER_IDS_PER_BLOCK_MAX: u32 = 1_000_000;
/// Bytes of a node's `host:port`.
pub const ADDRESS_BYTES_MAX: usize = 261;

/// A registered broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its identity, never used again after it is removed.
    pub id: NodeId,
    /// `host:port` for clients.
    pub address: String,
    /// `host:port` for other brokers.
    pub peer_address: String,
    /// Whether its replicas are being moved away, and it gets no new one.
    pub draining: bool,
}

/// The reserved topic whose partitions are the shards of consumer groups.
pub const GROUPS_TOPIC: &str = "__groups";
/// Names that begin with this are the cluster's own.
pub const RESERVED_PREFIX: &str = "__";

/// What a topic's partitions hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TopicKind {
    /// Records that clients publish.
    #[default]
    Records,
    /// Consumer groups: the topic is the cluster's own and hidden from clients.
    Groups,
}

impl TopicKind {
    fn is_records(&self) -> bool {
        *self == Self::Records
    }
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its identity.
    pub id: TopicId,
    /// Its name, unique among the topics there are.
    pub name: TopicName,
    /// What it holds.
    pub kind: TopicKind,
    /// How it is kept.
    pub config: TopicConfig,
    /// The raft groups of its partitions, from partition 0; never empty.
    pub partitions: Vec<GroupId>,
}

/// A partition: one raft group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Its raft group, never used again.
    pub group: GroupId,
    /// Its topic.
    pub topic: TopicId,
    /// Its number in the topic.
    pub partition: PartitionId,
    /// Where it lives; the first one leads, if it can.
    pub replicas: Vec<NodeId>,
    /// Where it will live, while a move is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<Vec<NodeId>>,
    /// Number of its last move, counted from 1; 0 = it never moved.
    pub move_id: u64,
}

impl Partition {
    /// Whether `node` has a replica of it, or is getting one.
    pub fn involves(&self, node: NodeId) -> bool {
        self.replicas.contains(&node) || self.moving_to.as_ref().is_some_and(|to| to.contains(&node))
    }

    /// Where it lives when a move under way is done.
    pub fn target(&self) -> &[NodeId] {
        self.moving_to.as_deref().unwrap_or(&self.replicas)
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    cluster: Option<Identity>,
    version: u64,
    next_node_id: NodeId,
    next_group_id: GroupId,
    next_producer_id: ProducerId,
    nodes: BTreeMap<NodeId, Node>,
    removed_nodes: BTreeSet<NodeId>,
    topics: BTreeMap<TopicId, Topic>,
    topic_ids: BTreeMap<TopicName, TopicId>,
    partitions: BTreeMap<GroupId, Partition>,
    producers: claims::NamedProducers,
}

/// What tells this cluster from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    name: String,
    incarnation: String,
}

impl Default for Catalog {
    fn default() -> Self {
        Self::new()
    }
}

impl Catalog {
    /// The catalog of a cluster that is not there yet.
    pub fn new() -> Self {
        Self {
            cluster: None,
            version: 0,
            next_node_id: NodeId::new(1),
            next_group_id: GroupId::new(1),
            next_producer_id: ProducerId::new(1),
            nodes: BTreeMap::new(),
            removed_nodes: BTreeSet::new(),
            topics: BTreeMap::new(),
            topic_ids: BTreeMap::new(),
            partitions: BTreeMap::new(),
            producers: claims::NamedProducers::default(),
        }
    }

    /// Applies one committed command.
    pub fn apply(&mut self, command: Command) -> Outcome {
        let result = match command {
            Command::InitCluster { cluster, incarnation } => self.init_cluster(cluster, incarnation),
            Command::RegisterNode { node, address, peer_address } => self.register_node(node, address, peer_address),
            Command::CreateTopic { name, id, partitions, config, unreachable, node_replicas_max } => {
                let wanted = NewTopic { id, partitions, config, node_replicas_max };
                self.create_topic(&name, wanted, &unreachable)
            }
            Command::CreateGroupShards { id, shards, unreachable } => {
                self.create_group_shards(id, shards, &unreachable)
            }
            Command::DeleteTopic { name } => self.delete_topic(&name),
            Command::MovePartition { topic, partition, to } => self.move_partition(&topic, partition, to),
            Command::FinishMove { group, move_id, replicas } => self.finish_move(group, move_id, &replicas),
            Command::DrainNode { node, unreachable } => self.drain_node(node, &unreachable),
            Command::RemoveNode { node } => self.remove_node(node),
            Command::AllocateProducerIds { count } => self.allocate_producer_ids(count),
            Command::ClaimProducer { name, instance, renews, now_ms } => {
                self.claim_producer(name, claims::Claim { instance, renews, now_ms })
            }
        };
        result.unwrap_or_else(Outcome::from)
    }

    /// The cluster's name, once there is one.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_ref().map(|identity| identity.name.as_str())
    }

    /// What was drawn when the cluster was first started; two clusters of one name differ in it.
    pub fn incarnation(&self) -> Option<&str> {
        self.cluster.as_ref().map(|identity| identity.incarnation.as_str())
    }

    /// Changes so far.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Every registered node, by id.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.values()
    }

    /// The node of that id.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// Whether a node had this id and was removed.
    pub fn is_removed(&self, id: NodeId) -> bool {
        self.removed_nodes.contains(&id)
    }

    /// Every topic, by name; the cluster's own too.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.topic_ids.values().filter_map(|id| self.topics.get(id))
    }

    /// The topic of that name.
    pub fn topic_by_name(&self, name: &str) -> Option<&Topic> {
        let name = name.parse::<TopicName>().ok()?;
        self.topic_by_id(*self.topic_ids.get(&name)?)
    }

    /// The topic whose partitions are the shards of consumer groups, once there is one.
    pub fn groups_topic(&self) -> Option<&Topic> {
        self.topic_by_name(GROUPS_TOPIC).filter(|topic| topic.kind == TopicKind::Groups)
    }

    /// The topic of that id.
    pub fn topic_by_id(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(&id)
    }

    /// Every partition, by raft group.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = &Partition> {
        self.partitions.values()
    }

    /// The partition that a raft group replicates.
    pub fn partition(&self, group: GroupId) -> Option<&Partition> {
        self.partitions.get(&group)
    }

    /// A partition by its topic and number.
    pub fn partition_of_topic(&self, topic: TopicId, partition: PartitionId) -> Option<&Partition> {
        let group = self.topics.get(&topic)?.partitions.get(usize::try_from(partition.get()).ok()?)?;
        self.partition(*group)
    }

    /// The partitions that have a replica on `node`, or are getting one.
    pub fn partitions_of_node(&self, node: NodeId) -> impl Iterator<Item = &Partition> {
        self.partitions.values().filter(move |partition| partition.involves(node))
    }

    fn init_cluster(&mut self, name: String, incarnation: String) -> Result<Outcome, Refusal> {
        if name.is_empty() || incarnation.is_empty() {
            return Err(refusal(Reason::InvalidArgument, "a cluster needs a name and an incarnation, one is empty"));
        }
        let known = self.cluster.get_or_insert_with(|| {
            self.version += 1;
            Identity { name: name.clone(), incarnation }
        });
        if known.name != name {
            let message = format!("this is cluster '{}', not '{name}': check the node's configuration", known.name);
            return Err(refusal(Reason::WrongCluster, message));
        }
        Ok(Outcome::ClusterReady { incarnation: known.incarnation.clone() })
    }

    fn allocate_producer_ids(&mut self, count: u32) -> Result<Outcome, Refusal> {
        if !(1..=PRODUCER_IDS_PER_BLOCK_MAX).contains(&count) {
            let message = format!("can't take {count} producer ids at once: ask for 1 to {PRODUCER_IDS_PER_BLOCK_MAX}");
            return Err(refusal(Reason::InvalidArgument, message));
        }
        let start = claims::take_ids(&mut self.next_producer_id, count)?;
        self.version += 1;
        Ok(Outcome::ProducerIds { start, count })
    }
}

fn refusal(reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal::new(reason, message)
}

/// `1, 2 and 3`, for messages.
fn list(nodes: impl IntoIterator<Item = NodeId>) -> String {
    let all: Vec<String> = nodes.into_iter().map(|node| node.to_string()).collect();
    match all.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => "none".to_owned(),
    }
}
