//! What can be asked of the catalog and what it answers, with their encodings.
//!
//! Both are JSON with a version: they are few and small, and a person can read them in a log. Invariant: a command of
//! a version or with a field that this build doesn't know is an error, never half understood.

use busbar_proto::{GroupId, NodeId, PartitionId, ProducerEpoch, ProducerId, Reason, Refusal, TopicId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{TopicConfig, snapshot};
use crate::codec::DecodeError;

/// A change of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Names the cluster. The first one counts; later ones learn its incarnation.
    InitCluster {
        /// The cluster's name, from the configuration.
        cluster: String,
        /// Random text, drawn by the proposer.
        incarnation: String,
    },
    /// Makes a node known, or changes its addresses.
    RegisterNode {
        /// The id that it has; `None` = assign one.
        node: Option<NodeId>,
        /// `host:port` for clients.
        address: String,
        /// `host:port` for other brokers.
        peer_address: String,
    },
    /// Creates a topic and places its partitions.
    CreateTopic {
        /// Its name; checked when it is applied.
        name: String,
        /// Random, drawn by the proposer. The same name and id again is a repetition, not a second topic.
        id: TopicId,
        /// How many partitions.
        partitions: u32,
        /// How it is kept; 0 replicas = 3, or as many as there are nodes for.
        config: TopicConfig,
        /// Nodes that the proposer could not reach lately: they get no replica.
        unreachable: Vec<NodeId>,
        /// Replicas that a node may have, on average over those that may get one; `None` = any number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node_replicas_max: Option<u32>,
    },
    /// Makes the shards of consumer groups, unless they are there: the first one counts.
    CreateGroupShards {
        /// Random, drawn by the proposer.
        id: TopicId,
        /// How many.
        shards: u32,
        /// Nodes that the proposer could not reach lately: they get no replica, if there are three without them.
        unreachable: Vec<NodeId>,
    },
    /// Deletes a topic and its records.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// Starts to move a partition.
    MovePartition {
        /// The topic's name.
        topic: String,
        /// Which of its partitions.
        partition: PartitionId,
        /// Its new replicas, preferred leader first.
        to: Vec<NodeId>,
    },
    /// Notes that a move is done.
    FinishMove {
        /// The partition's raft group.
        group: GroupId,
        /// Which of its moves.
        move_id: u64,
        /// Where it lives now.
        replicas: Vec<NodeId>,
    },
    /// Starts to move every replica off a node.
    DrainNode {
        /// The node.
        node: NodeId,
        /// Nodes that the proposer could not reach lately: nothing is moved to them.
        unreachable: Vec<NodeId>,
    },
    /// Forgets a drained node.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// Takes a block of producer ids.
    AllocateProducerIds {
        /// How many.
        count: u32,
    },
    /// Takes a producer's name for one instance, away from the one that had it.
    ClaimProducer {
        /// The name; checked when it is applied.
        name: String,
        /// What the instance drew. The same again is a repetition, not another instance; 0 is always another one.
        instance: u64,
        /// The instance has the name and needs an epoch after this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        renews: Option<ProducerEpoch>,
        /// The proposer's clock, in milliseconds since the Unix epoch.
        now_ms: i64,
    },
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[must_use]
pub enum Outcome {
    /// The cluster has its name.
    ClusterReady {
        /// The incarnation that counts: of the first command that named the cluster.
        incarnation: String,
    },
    /// The node is known under its addresses.
    NodeRegistered {
        /// Its id.
        node: NodeId,
    },
    /// The topic is there.
    TopicCreated {
        /// Its id.
        id: TopicId,
    },
    /// The topic is gone.
    TopicDeleted {
        /// Its id.
        id: TopicId,
    },
    /// The move is under way (or there is nothing to move).
    MoveStarted {
        /// The partition's raft group.
        group: GroupId,
        /// The move's number.
        move_id: u64,
    },
    /// The move is over.
    MoveFinished {
        /// The partition's raft group.
        group: GroupId,
    },
    /// The node is draining.
    DrainStarted {
        /// Moves that were started for it now.
        moves: u32,
    },
    /// The node is forgotten.
    NodeRemoved {
        /// Its id.
        node: NodeId,
    },
    /// The ids from `start` on are the proposer's.
    ProducerIds {
        /// The first.
        start: ProducerId,
        /// How many.
        count: u32,
    },
    /// The name is the instance's.
    ProducerClaimed {
        /// The producer's id.
        id: ProducerId,
        /// The newest epoch that it may write under.
        epoch: ProducerEpoch,
    },
    /// Nothing changed.
    Refused {
        /// The stable reason.
        #[serde(with = "reason_text")]
        reason: Reason,
        /// What, where and what to do.
        message: String,
    },
}

impl Command {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        snapshot::to_json(self)
    }

    /// The command that these bytes are.
    ///
    /// # Errors
    /// When they are no command of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        snapshot::from_json("a catalog command", bytes)
    }
}

impl Outcome {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        snapshot::to_json(self)
    }

    /// The outcome that these bytes are.
    ///
    /// # Errors
    /// When they are no outcome of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        snapshot::from_json("a catalog command's outcome", bytes)
    }

    /// The outcome, unless it is a refusal.
    ///
    /// # Errors
    /// The refusal.
    pub fn into_result(self) -> Result<Self, Refusal> {
        match self {
            Self::Refused { reason, message } => Err(Refusal::new(reason, message)),
            done => Ok(done),
        }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Refused { reason: refusal.reason, message: refusal.message }
    }
}

/// A reason as its stable text; one of the future is read as [`Reason::Internal`].
mod reason_text {
    use busbar_proto::Reason;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(reason.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Reason, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Reason::from_text(&text).unwrap_or(Reason::Internal))
    }
}
