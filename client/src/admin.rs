//! Administration: topics, placement, nodes. Any node is asked and forwards changes itself. A change whose
//! connection broke is never repeated here, as it may have been done: the error says so.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use busbar_proto::{NodeId, v1};

use crate::{
    cluster::{Call, Cluster, Repeat},
    error::ClientError,
    pool,
};

/// Time allowed to a change, which the catalog's leader must replicate first.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// What an acknowledgement of a topic's records means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Fsynced on a majority of the replicas.
    #[default]
    Fsync,
    /// In the memory or page cache of a majority; fsync follows within the flush interval.
    Replicated,
}

impl Durability {
    /// The word for it in options and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Replicated => "replicated",
        }
    }

    /// Of a topic's configuration; unspecified means fsync.
    pub fn of(config: &v1::TopicConfig) -> Self {
        match config.durability() {
            v1::Durability::Replicated => Self::Replicated,
            v1::Durability::Fsync | v1::Durability::Unspecified => Self::Fsync,
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that names no durability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("durability is fsync or replicated, not {0:?}")]
pub struct UnknownDurability(String);

impl FromStr for Durability {
    type Err = UnknownDurability;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Fsync, Self::Replicated]
            .into_iter()
            .find(|durability| durability.as_str() == text)
            .ok_or_else(|| UnknownDurability(text.to_owned()))
    }
}

/// How a topic is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicOptions {
    /// Number of partitions, for good. Default 1.
    pub partitions: u32,
    /// Replicas of each partition. Default 3.
    pub replicas: u32,
    /// What an acknowledgement means. Default fsync.
    pub durability: Durability,
    /// Bytes that a partition keeps; `None` = no limit.
    pub retention_bytes: Option<u64>,
    /// Milliseconds that a record is kept; `None` = for ever.
    pub retention_ms: Option<u64>,
    /// Bytes of the largest batch; `None` = 1 MiB.
    pub max_batch_bytes: Option<u32>,
}

impl Default for TopicOptions {
    fn default() -> Self {
        Self {
            partitions: 1,
            replicas: 3,
            durability: Durability::Fsync,
            retention_bytes: None,
            retention_ms: None,
            max_batch_bytes: None,
        }
    }
}

/// Administers the cluster. Cheap to clone.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), busbar_client::ClientError> {
/// use busbar_client::TopicOptions;
///
/// let admin = client.admin();
/// admin.create_topic("orders", TopicOptions { partitions: 8, ..TopicOptions::default() }).await?;
/// for topic in admin.list_topics().await? {
///     println!("{}: {} partitions", topic.name, topic.partitions.len());
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Admin {
    pub(crate) cluster: Arc<Cluster>,
}

/// Makes a method that sends one request to any node.
macro_rules! ask {
    ($self:ident, $what:literal, $repeat:ident, $timeout:expr, $rpc:ident, $request:expr) => {{
        let call = Call { what: $what, repeat: Repeat::$repeat, timeout: $timeout };
        let request = $request;
        let ask = |channel| {
            let request = request.clone();
            async move { pool::admin(channel).$rpc(request).await }
        };
        $self.cluster.call(call, ask).await
    }};
}

impl Admin {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster }
    }

    /// Creates a topic; returns when it is placed, perhaps before every partition has a leader.
    ///
    /// # Errors
    /// A name that is taken or illegal, more replicas than nodes, a number out of range.
    pub async fn create_topic(&self, name: impl Into<String>, options: TopicOptions) -> Result<v1::Topic, ClientError> {
        let TopicOptions { partitions, replicas, durability, retention_bytes, retention_ms, max_batch_bytes } = options;
        let durability = match durability {
            Durability::Fsync => v1::Durability::Fsync,
            Durability::Replicated => v1::Durability::Replicated,
        };
        let config = v1::TopicConfig {
            replicas,
            durability: durability.into(),
            retention_bytes: retention_bytes.unwrap_or(0),
            retention_ms: retention_ms.unwrap_or(0),
            max_batch_bytes: max_batch_bytes.unwrap_or(0),
        };
        let request = v1::CreateTopicRequest { name: name.into(), partitions, config: Some(config) };
        let created = ask!(self, "create the topic", Unsent, CHANGE_TIMEOUT, create_topic, request)?;
        created.topic.ok_or_else(|| ClientError::Protocol("the topic was created, but the answer lacks it".to_owned()))
    }

    /// Deletes a topic and its records.
    ///
    /// # Errors
    /// No such topic.
    pub async fn delete_topic(&self, name: impl Into<String>) -> Result<(), ClientError> {
        let request = v1::DeleteTopicRequest { name: name.into() };
        ask!(self, "delete the topic", Unsent, CHANGE_TIMEOUT, delete_topic, request).map(drop)
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn list_topics(&self) -> Result<Vec<v1::Topic>, ClientError> {
        let timeout = self.cluster.request_timeout;
        let listed = ask!(self, "list topics", Safe, timeout, list_topics, v1::ListTopicsRequest {})?;
        let mut topics = listed.topics;
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// A topic's configuration and the state of its partitions, from their leaders.
    ///
    /// # Errors
    /// No such topic.
    pub async fn describe_topic(&self, name: impl Into<String>) -> Result<v1::DescribeTopicResponse, ClientError> {
        let request = v1::DescribeTopicRequest { name: name.into() };
        let timeout = self.cluster.request_timeout;
        ask!(self, "describe the topic", Safe, timeout, describe_topic, request)
    }

    /// Nodes, leaders and lag of the whole cluster.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn describe_cluster(&self) -> Result<v1::DescribeClusterResponse, ClientError> {
        let timeout = self.cluster.request_timeout;
        ask!(self, "describe the cluster", Safe, timeout, describe_cluster, v1::DescribeClusterRequest {})
    }

    /// Places a partition on other nodes; returns when the move is recorded, not when it is done.
    ///
    /// # Errors
    /// No such topic, partition or node; a move under way.
    pub async fn move_partition(
        &self,
        topic: impl Into<String>,
        partition: u32,
        to: Vec<u64>,
    ) -> Result<(), ClientError> {
        let request = v1::MovePartitionRequest { topic: topic.into(), partition, to };
        ask!(self, "move the partition", Unsent, CHANGE_TIMEOUT, move_partition, request).map(drop)
    }

    /// Moves every replica off a node; returns the number of moves recorded.
    ///
    /// # Errors
    /// No such node; too few nodes left.
    pub async fn drain_node(&self, node: u64) -> Result<u32, ClientError> {
        let request = v1::DrainNodeRequest { node };
        ask!(self, "drain the node", Unsent, CHANGE_TIMEOUT, drain_node, request).map(|done| done.moves)
    }

    /// Forgets a node that holds no replica. Its id is never used again.
    ///
    /// # Errors
    /// No such node; replicas left on it.
    pub async fn remove_node(&self, node: u64) -> Result<(), ClientError> {
        let request = v1::RemoveNodeRequest { node };
        ask!(self, "remove the node", Unsent, CHANGE_TIMEOUT, remove_node, request).map(drop)
    }

    /// State of the replicas on one node, asked of that node itself.
    ///
    /// # Errors
    /// No such node is known, or it does not answer.
    pub async fn describe_replicas(&self, node: u64) -> Result<Vec<v1::ReplicaState>, ClientError> {
        let unknown = || ClientError::Protocol(format!("no node {node} is known; `busbar cluster status` lists them"));
        let address = self.cluster.address_of(NodeId::new(node)).ok_or_else(unknown)?;
        let timeout = self.cluster.request_timeout;
        let call = Call { what: "describe replicas", repeat: Repeat::Safe, timeout };
        let ask =
            |channel| async { pool::admin(channel).describe_replicas(v1::DescribeReplicasRequest::default()).await };
        Ok(self.cluster.call_at(call, &address, ask).await?.replicas)
    }
}
