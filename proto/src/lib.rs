//! Busbar's words: the newtypes, limits, errors, record batch codec and gRPC contracts that broker and client
//! share. Pure: no clock, no I/O, no task is ever started here.
//!
//! | module | owns |
//! |---|---|
//! | [`ids`] | who: nodes, topics, partitions, groups, producers |
//! | [`offset`] | where: record offsets, raft indexes, terms |
//! | [`keys`] | which partition a key belongs to |
//! | [`limits`] | every cap that a peer or a user can run into |
//! | [`error`] | the reasons an operation can fail, by what the caller can do |
//! | [`batch`] | the RecordBatch v2 codec |
//! | [`compaction`] | digests of keys, which brokers tell superseded records by |
//! | [`filter`] | what subscriptions select by, and the digests that it is decided on |
//! | [`v1`], [`peer`] | generated gRPC code |

pub mod batch;
pub mod compaction;
pub mod error;
pub mod filter;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod offset;

/// The public protocol, `busbar.v1`.
#[allow(missing_docs, clippy::all, clippy::disallowed_methods, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("busbar.v1");
}

/// The protocol between brokers, `busbar.peer.v1`.
#[allow(missing_docs, clippy::all, clippy::disallowed_methods, unreachable_pub)]
pub mod peer {
    tonic::include_proto!("busbar.peer.v1");
}

pub use error::{Reason, Refusal};
pub use ids::{
    ClaimId, Generation, GroupId, GroupName, MemberId, NodeId, PartitionId, ProducerEpoch, ProducerId, Sequence,
    TopicId, TopicName,
};
pub use keys::partition_of_key;
pub use offset::{LogIndex, LogPosition, Offset, Term};
