//! openraft's type configuration and the aliases that the adapter's files share.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use openraft::{Config, SnapshotPolicy, alias, impls::EmptyNode};

use super::machine::Applied;
use crate::config;

/// One proposal: what becomes the payload of a normal raft entry.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Offset after the entry's last record; what the log can be searched by. Monotone per group except for
    /// entries that will be voided; the log store takes the maximum.
    pub mark: u64,
    /// Largest record time stamp, milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// The first bytes of `payload` that make up the summary which apply sees.
    pub head_len: u32,
    /// Summary, then body.
    pub payload: Bytes,
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal(mark {}, {} + {} bytes)", self.mark, self.head_len, self.payload.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// openraft's types as Busbar uses them. Leader ids are of the standard kind: at most one leader a term, so a term alone
/// names the leader and is what is stamped into batches as leader epoch. (The declaring macro can't set `Responder`.)
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub struct TypeConfig {}

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Applied;
    type NodeId = u64;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Proposal, u64, EmptyNode>;
    type Entry = openraft::Entry<<Self::LeaderId as openraft::vote::RaftLeaderId>::Committed, Self::Payload>;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type AsyncRuntime = super::runtime::Runtime;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type RaftVote = alias::VoteOf<TypeConfig>;
pub(crate) type RaftEntry = alias::EntryOf<TypeConfig>;
pub(crate) type RaftMembership = openraft::Membership<u64, EmptyNode>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = alias::SnapshotOf<TypeConfig, Bytes>;

/// How fast a group notices a lost leader, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftTiming {
    /// Between two heartbeats of an idle leader.
    pub heartbeat_ms: u64,
    /// Least time without a leader before a follower stands.
    pub election_min_ms: u64,
    /// Greatest such time; also the leader's lease.
    pub election_max_ms: u64,
}

/// A group's own timers are this many times slower than the node's watch over its peers, which is what notices a lost
/// leader: see [`super::succession`].
const GROUP_SLOWNESS: u64 = 8;

impl RaftTiming {
    /// Of the groups of a node that is configured so.
    pub fn of_groups(config: &config::Raft) -> Self {
        Self {
            heartbeat_ms: config.heartbeat_ms.get() * GROUP_SLOWNESS,
            election_min_ms: config.election_min_ms.get() * GROUP_SLOWNESS,
            election_max_ms: config.election_max_ms.get() * GROUP_SLOWNESS,
        }
    }

    /// openraft's configuration for a group whose log is the message log: the application decides when to
    /// checkpoint, and everything up to the checkpoint may go. `lazy`: appends are acknowledged from memory, so a
    /// restarted follower may have lost what it had acknowledged and must be fed again; elsewhere that is a fault.
    pub(crate) fn to_config(self, name: String, lazy: bool) -> Result<Arc<Config>, openraft::ConfigError> {
        let config = Config {
            cluster_name: name,
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: 0,
            purge_batch_size: 1,
            max_payload_entries: 256,
            install_snapshot_timeout: 10_000,
            enable_pre_vote: Some(true),
            allow_log_reversion: Some(lazy),
            // A restarted leader must not resume its term before its applied state is rebuilt.
            enable_leader_restore: Some(false),
            quorum_loss_probe_interval: Some(self.election_max_ms * 3),
            // Times of an entry's way that nobody reads: 24 bytes each, six times.
            log_stage_capacity: Some(1),
            ..Config::default()
        };
        config.validate().map(Arc::new)
    }
}
