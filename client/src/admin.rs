//! Administration: topics, placement, nodes. Any node is asked and forwards changes itself. A change whose
//! connection broke is never repeated here, as it may have been done: the error says so.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use busbar_proto::{NodeId, TopicId, v1};
use bytes::Bytes;

use crate::{
    cluster::{Call, Cluster, Repeat},
    error::ClientError,
    pool,
};

/// Time allowed to a change, which the catalog's leader must replicate first.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// What an acknowledgement of a topic's records means.
///
/// ```
/// use busbar_client::Durability;
///
/// assert_eq!("replicated".parse(), Ok(Durability::Replicated));
/// assert_eq!(Durability::default().as_str(), "fsync");
/// ```
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
///
/// ```
/// use busbar_client::Durability;
///
/// let error = "never".parse::<Durability>().unwrap_err();
/// assert_eq!(error.to_string(), "durability is fsync or replicated, not \"never\"");
/// ```
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

/// What becomes of a topic's old records.
///
/// ```
/// use busbar_client::{Cleanup, TopicOptions};
///
/// let newest_of_each_key = TopicOptions { cleanup: Cleanup::Compact, ..TopicOptions::default() };
/// # assert_eq!(newest_of_each_key.cleanup.to_string(), "compact");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cleanup {
    /// Retention removes them; without one they stay.
    #[default]
    Delete,
    /// The newest record of each key stays for ever, older ones go: the topic is a table that can be read again from the
    /// start. Each record needs a key; [`Record::tombstone`](crate::Record::tombstone) deletes one.
    Compact,
    /// Older ones go, and so does everything that is beyond retention.
    Both,
}

impl Cleanup {
    fn to_wire(self) -> v1::Cleanup {
        match self {
            Self::Delete => v1::Cleanup::Delete,
            Self::Compact => v1::Cleanup::Compact,
            Self::Both => v1::Cleanup::Both,
        }
    }
}

impl fmt::Display for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delete => "delete",
            Self::Compact => "compact",
            Self::Both => "both",
        })
    }
}

/// How a topic is created.
///
/// ```
/// use busbar_client::{Durability, TopicOptions};
///
/// let metrics = TopicOptions {
///     partitions: 8,
///     durability: Durability::Replicated,
///     retention_ms: Some(3_600_000),
///     ..TopicOptions::default()
/// };
/// assert_eq!(metrics.replicas, 3);
/// ```
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
    /// What becomes of old records. Default: retention removes them.
    pub cleanup: Cleanup,
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
            cleanup: Cleanup::Delete,
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
    cluster: Arc<Cluster>,
}

/// Makes a method that sends one request to any node.
macro_rules! ask {
    ($self:ident, $what:literal, $repeat:ident, $timeout:expr, $stub:ident.$rpc:ident, $request:expr) => {{
        let call = Call { what: $what, repeat: Repeat::$repeat, timeout: $timeout };
        let request = $request;
        let ask = |channel| {
            let request = request.clone();
            async move { pool::$stub(channel).$rpc(request).await }
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
        let TopicOptions { partitions, replicas, durability, retention_bytes, retention_ms, max_batch_bytes, .. } =
            options;
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
            cleanup: options.cleanup.to_wire().into(),
        };
        let request = v1::CreateTopicRequest { name: name.into(), partitions, config: Some(config) };
        let created = ask!(self, "create the topic", Unsent, CHANGE_TIMEOUT, admin.create_topic, request)?;
        created.topic.ok_or_else(|| ClientError::Protocol("the topic was created, but the answer lacks it".to_owned()))
    }

    /// Deletes a topic and its records.
    ///
    /// # Errors
    /// No such topic.
    pub async fn delete_topic(&self, name: impl Into<String>) -> Result<(), ClientError> {
        let request = v1::DeleteTopicRequest { name: name.into() };
        ask!(self, "delete the topic", Unsent, CHANGE_TIMEOUT, admin.delete_topic, request).map(drop)
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn list_topics(&self) -> Result<Vec<v1::Topic>, ClientError> {
        let timeout = self.cluster.request_timeout;
        let listed = ask!(self, "list topics", Safe, timeout, admin.list_topics, v1::ListTopicsRequest {})?;
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
        ask!(self, "describe the topic", Safe, timeout, admin.describe_topic, request)
    }

    /// Nodes, leaders and lag of the whole cluster.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn describe_cluster(&self) -> Result<v1::DescribeClusterResponse, ClientError> {
        let timeout = self.cluster.request_timeout;
        ask!(self, "describe the cluster", Safe, timeout, admin.describe_cluster, v1::DescribeClusterRequest {})
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
        ask!(self, "move the partition", Unsent, CHANGE_TIMEOUT, admin.move_partition, request).map(drop)
    }

    /// Moves every replica off a node; returns the number of moves recorded.
    ///
    /// # Errors
    /// No such node; too few nodes left.
    pub async fn drain_node(&self, node: u64) -> Result<u32, ClientError> {
        let request = v1::DrainNodeRequest { node };
        ask!(self, "drain the node", Unsent, CHANGE_TIMEOUT, admin.drain_node, request).map(|done| done.moves)
    }

    /// Forgets a node that holds no replica. Its id is never used again.
    ///
    /// # Errors
    /// No such node; replicas left on it.
    pub async fn remove_node(&self, node: u64) -> Result<(), ClientError> {
        let request = v1::RemoveNodeRequest { node };
        ask!(self, "remove the node", Unsent, CHANGE_TIMEOUT, admin.remove_node, request).map(drop)
    }

    /// All consumer groups, and the shards whose groups are missing because nobody answered for them.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn list_groups(&self) -> Result<v1::ListGroupsResponse, ClientError> {
        let timeout = self.cluster.request_timeout;
        ask!(self, "list consumer groups", Safe, timeout, groups.list_groups, v1::ListGroupsRequest::default())
    }

    /// A consumer group: its members, who holds which partition, how far it is.
    ///
    /// # Errors
    /// No such group.
    pub async fn describe_group(&self, group: impl Into<String>) -> Result<v1::DescribeGroupResponse, ClientError> {
        let request = v1::DescribeGroupRequest { group: group.into(), direct: false };
        let timeout = self.cluster.request_timeout;
        ask!(self, "describe the consumer group", Safe, timeout, groups.describe_group, request)
    }

    /// Sets offsets of a consumer group by hand: all of them or none. Without `force` only while it has no members; with
    /// it they lose their claims, and begin anew at these offsets.
    ///
    /// # Errors
    /// No such group or topic; members that are there.
    pub async fn reset_group(
        &self,
        group: impl Into<String>,
        entries: Vec<v1::reset_group_request::Entry>,
        force: bool,
    ) -> Result<(), ClientError> {
        let request = v1::ResetGroupRequest { group: group.into(), entries, force, direct: false };
        ask!(self, "reset the consumer group", Unsent, CHANGE_TIMEOUT, groups.reset_group, request).map(drop)
    }

    /// Forgets a consumer group without members, and its offsets.
    ///
    /// # Errors
    /// No such group; members that are there.
    pub async fn delete_group(&self, group: impl Into<String>) -> Result<(), ClientError> {
        let request = v1::DeleteGroupRequest { group: group.into(), direct: false };
        ask!(self, "delete the consumer group", Unsent, CHANGE_TIMEOUT, groups.delete_group, request).map(drop)
    }

    /// The offset of the first batch with a record at or after a time, in milliseconds since the Unix epoch; the high
    /// watermark if there is none. Records of that batch before it may be older.
    ///
    /// # Errors
    /// No such topic or partition, or none of its replicas answers.
    pub async fn offset_at(&self, topic_id: TopicId, partition: u32, time_ms: i64) -> Result<u64, ClientError> {
        let topic_id = Bytes::copy_from_slice(topic_id.as_bytes());
        let request = v1::OffsetsRequest { topic_id, partition, at_time_ms: Some(time_ms) };
        let timeout = self.cluster.request_timeout;
        let found = ask!(self, "find an offset by time", Safe, timeout, broker.offsets, request)?;
        found.offset_at_time.ok_or_else(|| ClientError::Protocol("the answer lacks the offset at that time".to_owned()))
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
