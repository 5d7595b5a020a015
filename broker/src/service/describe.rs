//! States of topics and of the cluster, gathered from every node; and the administrative commands.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use busbar_machine::catalog::{Command, Outcome, TopicConfig, TopicKind};
use busbar_proto::{NodeId, PartitionId, Reason, Refusal, TopicId, TopicName, v1};
use bytes::Bytes;
use futures::future::join_all;

use super::{broker::Broker, hosted::Hosted, leaders::SILENCE_MAX};
use crate::raft::group::Lag;

/// A replica counts as in sync when it is at most this many raft entries behind its leader.
const IN_SYNC_ENTRIES: u64 = 1_024;
const GATHER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a node that is to be removed may take to leave the catalog's voters.
const CATALOG_LEAVE_WAIT: Duration = Duration::from_secs(10);
/// How long a created topic's partitions may take to elect their leaders before the answer is given anyway.
const LEADERS_WAIT: Duration = Duration::from_secs(10);

type Key = (TopicId, u32);

/// The states of replicas by partition, and which nodes answered.
pub(super) struct Gathered {
    pub(super) states: BTreeMap<Key, v1::ReplicaState>,
    answered: BTreeSet<NodeId>,
}

impl Broker {
    /// The replicas on this node.
    pub fn describe_replicas(&self, topic: Option<TopicId>) -> Vec<v1::ReplicaState> {
        let local = self.local();
        local.iter().filter(|replica| topic.is_none_or(|id| replica.topic() == id)).map(|r| self.state(r)).collect()
    }

    fn state(&self, replica: &Hosted) -> v1::ReplicaState {
        let now = self.clock().now();
        let leadership = replica.group().leadership();
        // A new leader counts once it knows what is committed: before, its high watermark may be an old one.
        let is_leader = replica.require_leading().is_ok();
        let (log_start, high_watermark) = replica.bounds();
        let lags = if is_leader { replica.group().lags() } else { Vec::new() };
        // Its node may be alive while this replica is not: it may be impossible to open.
        let answers = |lag: &&Lag| lag.silent.is_some_and(|silent| silent <= SILENCE_MAX);
        let near = lags.iter().filter(|lag| lag.entries <= IN_SYNC_ENTRIES && self.leaders().is_alive(lag.node, now));
        let near = near.filter(answers);
        let in_sync: BTreeSet<u64> = near.map(|lag| lag.node.get()).chain([self.node().get()]).collect();
        v1::ReplicaState {
            topic_id: Bytes::copy_from_slice(replica.topic().as_bytes()),
            partition: replica.partition().get(),
            is_leader,
            leader: leadership.leader.map_or(0, NodeId::get),
            epoch: leadership.term.get(),
            log_start: log_start.get(),
            high_watermark: high_watermark.get(),
            in_sync: if is_leader { in_sync.into_iter().collect() } else { Vec::new() },
            lag: lags.iter().map(|lag| v1::ReplicaLag { node: lag.node.get(), entries: lag.entries }).collect(),
            last_index: replica.group().log().state().last.map_or(0, |last| last.index),
            asleep: replica.group().is_asleep(),
        }
    }

    /// Asks every node for its replicas and keeps, for each partition, what the newest leader says.
    pub(super) async fn gather(&self, topic: Option<TopicId>) -> Gathered {
        let topic_id = topic.map(|id| Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default();
        let others: Vec<(NodeId, String)> = self.cluster().read(|catalog| {
            let others = catalog.nodes().filter(|node| node.id != self.node());
            others.map(|node| (node.id, node.address.clone())).collect()
        });
        let calls = others.iter().map(|(node, address)| {
            let topic_id = topic_id.clone();
            async move { (*node, self.parts.calls.describe_replicas(address, topic_id, GATHER_TIMEOUT).await) }
        });
        let mut answers = vec![(self.node(), self.describe_replicas(topic))];
        for (node, answer) in join_all(calls).await {
            match answer {
                Ok(response) => answers.push((node, response.replicas)),
                Err(refusal) => tracing::debug!(%node, %refusal, "a node did not describe its replicas"),
            }
        }
        let mut states: BTreeMap<Key, v1::ReplicaState> = BTreeMap::new();
        for state in answers.iter().flat_map(|(_, states)| states) {
            let Some(id) = TopicId::from_slice(&state.topic_id) else { continue };
            let known = states.get(&(id, state.partition));
            if known.is_none_or(|known| (state.is_leader, state.epoch) > (known.is_leader, known.epoch)) {
                states.insert((id, state.partition), state.clone());
            }
        }
        Gathered { states, answered: answers.into_iter().map(|(node, _)| node).collect() }
    }

    /// The partitions of a topic (or of all), as their leaders see them.
    fn partition_states(&self, gathered: &Gathered, topic: Option<TopicId>) -> Vec<v1::TopicPartitionState> {
        self.cluster().read(|catalog| {
            let topics = catalog.topics().filter(|found| topic.is_none_or(|id| found.id == id));
            let partitions = topics.flat_map(|topic| topic.partitions.iter().map(move |group| (topic, *group)));
            partitions
                .filter_map(|(topic, group)| {
                    let partition = catalog.partition(group)?;
                    let state = gathered.states.get(&(topic.id, partition.partition.get()));
                    let leading = state.filter(|state| state.is_leader);
                    Some(v1::TopicPartitionState {
                        topic: topic.name.as_str().to_owned(),
                        state: Some(v1::PartitionState {
                            partition: partition.partition.get(),
                            leader: leading.map_or(0, |state| state.leader),
                            epoch: state.map_or(0, |state| state.epoch),
                            replicas: partition.replicas.iter().map(|node| node.get()).collect(),
                            in_sync: leading.map(|state| state.in_sync.clone()).unwrap_or_default(),
                            log_start: state.map_or(0, |state| state.log_start),
                            high_watermark: state.map_or(0, |state| state.high_watermark),
                            lag: leading.map(|state| state.lag.clone()).unwrap_or_default(),
                            moving_to: partition.moving_to.iter().flatten().map(|node| node.get()).collect(),
                            asleep: leading.is_some_and(|state| state.asleep),
                        }),
                    })
                })
                .collect()
        })
    }

    /// A topic and the state of its partitions.
    pub async fn describe_topic(&self, name: &str) -> Result<v1::DescribeTopicResponse, Refusal> {
        let (id, config) =
            self.cluster().read(|catalog| catalog.require_topic(name).map(|topic| (topic.id, topic.config)))?;
        let gathered = self.gather(Some(id)).await;
        let partitions = self.partition_states(&gathered, Some(id)).into_iter().filter_map(|found| found.state);
        Ok(v1::DescribeTopicResponse {
            name: name.to_owned(),
            id: Bytes::copy_from_slice(id.as_bytes()),
            config: Some(config.to_wire()),
            partitions: partitions.collect(),
        })
    }

    /// Every topic.
    pub fn list_topics(&self) -> v1::ListTopicsResponse {
        self.cluster().read(|catalog| v1::ListTopicsResponse {
            topics: catalog
                .topics()
                .filter(|topic| topic.kind == TopicKind::Records)
                .map(|topic| self.topic(catalog, topic))
                .collect(),
        })
    }

    /// Nodes and partitions.
    pub async fn describe_cluster(&self) -> v1::DescribeClusterResponse {
        let gathered = self.gather(None).await;
        let partitions = self.partition_states(&gathered, None);
        let catalog_leader = self.cluster().group().leadership().leader.map_or(0, NodeId::get);
        let nodes = self.cluster().read(|catalog| self.nodes(catalog));
        let states = || partitions.iter().filter_map(|partition| partition.state.as_ref());
        let nodes = nodes.into_iter().map(|node| v1::NodeState {
            leaders: count(states().filter(|state| state.leader == node.id)),
            replicas: count(states().filter(|state| state.replicas.contains(&node.id))),
            answered: gathered.answered.contains(&NodeId::new(node.id)),
            node: Some(node),
        });
        v1::DescribeClusterResponse {
            cluster: self.config().cluster.name.clone(),
            catalog_leader,
            nodes: nodes.collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            partitions,
        }
    }

    pub(super) fn unreachable_nodes(&self) -> Vec<NodeId> {
        let now = self.clock().now();
        let is_silent = |node: &NodeId| *node != self.node() && self.leaders().is_silent(*node, now);
        self.cluster().read(|catalog| catalog.nodes().map(|node| node.id).filter(is_silent).collect())
    }

    /// Creates a topic and waits until its partitions have leaders.
    pub async fn create_topic(&self, request: v1::CreateTopicRequest) -> Result<v1::Topic, Refusal> {
        let name: TopicName = request
            .name
            .parse()
            .map_err(|error| Refusal::new(Reason::InvalidName, format!("topic {:?}: {error}", request.name)))?;
        let config = TopicConfig::from_wire(request.config.as_ref())?;
        let id = TopicId::from_bytes(rand::random());
        let command = Command::CreateTopic {
            name: name.as_str().to_owned(),
            id,
            partitions: request.partitions,
            config,
            unreachable: self.unreachable_nodes(),
            node_replicas_max: Some(self.config().limits.replicas_max),
        };
        let _: Outcome = self.cluster().submit(command).await?;
        self.cluster().applied(LEADERS_WAIT, |catalog| catalog.topic_by_id(id).is_some()).await;
        let mut watch = self.leaders().watch();
        let all_led = watch.wait_for(|_| self.is_led(id));
        let _ = tokio::time::timeout(LEADERS_WAIT, all_led).await;
        let gone = || Refusal::new(Reason::UnknownTopic, format!("topic {name} was deleted meanwhile"));
        self.cluster().read(|catalog| Ok(self.topic(catalog, catalog.topic_by_id(id).ok_or_else(gone)?)))
    }

    fn is_led(&self, topic: TopicId) -> bool {
        self.cluster().read(|catalog| {
            let found = catalog.topic_by_id(topic);
            found.is_none_or(|topic| topic.partitions.iter().all(|group| self.leaders().leader(*group).is_some()))
        })
    }

    /// Deletes a topic.
    pub async fn delete_topic(&self, name: String) -> Result<(), Refusal> {
        self.cluster().submit(Command::DeleteTopic { name }).await.map(drop)
    }

    /// Starts to move a partition.
    pub async fn move_partition(&self, topic: String, partition: u32, to: Vec<u64>) -> Result<(), Refusal> {
        let to = to.into_iter().map(NodeId::new).collect();
        let command = Command::MovePartition { topic, partition: PartitionId::new(partition), to };
        self.cluster().submit(command).await.map(drop)
    }

    /// Starts to move everything off a node; how many partitions that moves.
    pub async fn drain_node(&self, node: u64) -> Result<u32, Refusal> {
        let command = Command::DrainNode { node: NodeId::new(node), unreachable: self.unreachable_nodes() };
        match self.cluster().submit(command).await? {
            Outcome::DrainStarted { moves } => Ok(moves),
            other => Err(Refusal::new(Reason::Internal, format!("the catalog answered {other:?}"))),
        }
    }

    /// Forgets a node that holds nothing. From then on the others refuse it, so it must have left the catalog's voters
    /// before: the rest might be no majority of them. A draining node leaves them by itself; that is waited for.
    pub async fn remove_node(&self, node: u64) -> Result<(), Refusal> {
        let node = NodeId::new(node);
        let draining = self.cluster().read(|catalog| catalog.node(node).is_some_and(|node| node.draining));
        if draining {
            let group = self.cluster().group();
            let mut applied = group.shared().watch();
            let left = applied.wait_for(|_| !group.members().0.contains(&node));
            let left = tokio::time::timeout(CATALOG_LEAVE_WAIT, left).await;
            left.map(drop).map_err(|_| {
                let message = format!(
                    "node {node} still votes on the catalog: that changes as soon as a majority of its voters answers"
                );
                Refusal::new(Reason::FailedPrecondition, message)
            })?;
        }
        self.cluster().submit(Command::RemoveNode { node }).await.map(drop)
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
