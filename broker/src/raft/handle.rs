//! A raft group on this node, whatever its machine: propose, follow its leader, change its members, stop. What moves,
//! reports and reconciliation need, they find here for partitions and other groups alike.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use busbar_proto::{GroupId, LogIndex, LogPosition, NodeId, Term, peer as wire};
use busbar_storage::GroupLog;
use openraft::{
    ChangeMembers, Instant as _,
    async_runtime::watch::WatchReceiver as _,
    errors::{ClientWriteError, ForwardReason, InitializeError, RaftError},
    impls::{EmptyNode, OneshotResponder},
    metrics::WaitError,
    raft::ClientWriteResult,
    vote::RaftLeaderId as _,
};
use tokio::sync::oneshot;

use super::{
    checkpoint, convert,
    group::{GroupError, RaftHandle},
    machine::Applied,
    pulse::Pulse,
    registry::Registry,
    shared::Applier,
    state_machine::Checkpoints,
    types::{Proposal, TypeConfig},
};
use crate::env::StateStore;

/// Why a proposal has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not stored: this node does not lead (in that term).
    #[error("this node does not lead")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// Certainly not stored: it leads, but no majority has confirmed that lately.
    #[error("the leader has not heard from a majority lately")]
    NoQuorum,
    /// Leadership was lost on the way: it may or may not be stored.
    #[error("leadership was lost before the outcome was known")]
    Unknown,
    /// The group has stopped.
    #[error("the group has stopped: {0}")]
    Stopped(String),
}

/// Who leads a group, as this node sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: Term,
    /// Whether that is this node.
    pub is_self: bool,
}

/// A queued proposal.
pub struct Proposed(oneshot::Receiver<ClientWriteResult<TypeConfig>>);

impl Proposed {
    /// Waits until it is applied here, or has failed. Cancel safe.
    pub async fn outcome(&mut self) -> Result<(LogPosition, Applied), ProposeError> {
        match (&mut self.0).await {
            Ok(Ok(done)) => Ok((position(&done.log_id), done.data)),
            Ok(Err(error)) => Err(refused(&error)),
            Err(_) => Err(ProposeError::Unknown),
        }
    }
}

fn position(id: &super::types::LogId) -> LogPosition {
    let at = convert::position(id);
    LogPosition::new(at.term, at.index)
}

fn refused(error: &ClientWriteError<TypeConfig>) -> ProposeError {
    match error {
        ClientWriteError::ForwardToLeader(forward) if forward.reason == ForwardReason::LeaseExpired => {
            ProposeError::NoQuorum
        }
        ClientWriteError::ForwardToLeader(forward) => {
            ProposeError::NotLeader { leader: forward.leader_id.map(NodeId::new) }
        }
        ClientWriteError::PreconditionFailed(_) => ProposeError::NotLeader { leader: None },
        ClientWriteError::LogEntryDiscarded(_) | ClientWriteError::ChangeMembershipError(_) => ProposeError::Unknown,
    }
}

/// Follows a group's leadership.
pub struct LeadershipWatch {
    node: u64,
    metrics: openraft::alias::WatchReceiverOf<TypeConfig, openraft::metrics::RaftServerMetrics<TypeConfig>>,
}

impl LeadershipWatch {
    /// The state now.
    pub fn current(&self) -> Leadership {
        // The guard is dropped at once: held, it would block openraft's core.
        let metrics = self.metrics.borrow_watched().clone();
        Leadership {
            leader: metrics.current_leader.map(NodeId::new),
            term: Term::new(metrics.vote.leader_id().term()),
            is_self: metrics.state.is_leader() && metrics.current_leader == Some(self.node),
        }
    }

    /// Waits for a change; false when the group has stopped. Cancel safe.
    pub async fn changed(&mut self) -> bool {
        self.metrics.changed().await.is_ok()
    }
}

/// How far a replica is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    /// The replica.
    pub node: NodeId,
    /// Entries that it is not known to have.
    pub entries: u64,
    /// Since it last answered in this group, zero while the group sleeps; `None` = it never has in this leader's time.
    pub silent: Option<Duration>,
}

/// See the module.
pub struct GroupHandle {
    pub(super) id: GroupId,
    pub(super) node: NodeId,
    pub(super) raft: RaftHandle,
    pub(super) pulse: Arc<Pulse>,
    pub(super) applier: Arc<dyn Applier>,
    pub(super) checkpoints: Arc<Checkpoints>,
    pub(super) log: GroupLog,
    pub(super) store: Arc<dyn StateStore>,
    pub(super) registry: Arc<Registry>,
}

impl GroupHandle {
    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The group's log, for its bounds and size.
    pub fn log(&self) -> &GroupLog {
        &self.log
    }

    /// Founds the group with these voters; does nothing when it exists already.
    pub async fn initialize(&self, voters: impl IntoIterator<Item = NodeId>) -> Result<(), GroupError> {
        let members: BTreeMap<u64, EmptyNode> = voters.into_iter().map(|node| (node.get(), EmptyNode {})).collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Whether the group has any entry, vote or membership here.
    pub async fn is_initialized(&self) -> bool {
        self.raft.is_initialized().await.unwrap_or(false)
    }

    fn failed(&self, error: &impl std::fmt::Display) -> GroupError {
        GroupError { group: self.id, message: error.to_string() }
    }

    /// Follows who leads.
    pub fn watch_leadership(&self) -> LeadershipWatch {
        LeadershipWatch { node: self.node.get(), metrics: self.raft.server_metrics() }
    }

    /// Who leads now.
    pub fn leadership(&self) -> Leadership {
        self.watch_leadership().current()
    }

    /// Queues a proposal that is refused unless this node still leads in `term`. Proposals are appended in the order
    /// of these calls. Not cancel safe: a cancelled call may have queued it.
    pub async fn propose_in(&self, proposal: Proposal, term: Term) -> Result<Proposed, ProposeError> {
        self.pulse.wake_to_write().await;
        let (responder, result) = OneshotResponder::new_pair();
        let request = self.raft.write(proposal).responder(responder).with_leader(term.get());
        request.await.map_err(|fatal| ProposeError::Stopped(fatal.to_string()))?;
        Ok(Proposed(result))
    }

    /// Proposes in whatever term this node leads and waits until it is applied.
    pub async fn propose(&self, proposal: Proposal) -> Result<Applied, ProposeError> {
        self.pulse.wake_to_write().await;
        let (responder, result) = OneshotResponder::new_pair();
        let request = self.raft.write(proposal).responder(responder);
        request.await.map_err(|fatal| ProposeError::Stopped(fatal.to_string()))?;
        Proposed(result).outcome().await.map(|(_, applied)| applied)
    }

    /// Voters and learners as last agreed here.
    pub fn members(&self) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        let metrics = self.raft.server_metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        let voters = membership.voter_ids().map(NodeId::new).collect();
        let learners = membership.membership().learner_ids().map(NodeId::new).collect();
        (voters, learners)
    }

    /// The log index at which the members were last agreed on here.
    pub fn members_at(&self) -> LogIndex {
        let metrics = self.raft.server_metrics();
        let at = metrics.borrow_watched().membership_config.log_id().as_ref().map_or(0, |id| id.index());
        LogIndex::new(at)
    }

    /// Whether nothing has happened here for so long that it costs nothing.
    pub fn is_asleep(&self) -> bool {
        self.pulse.is_asleep()
    }

    /// How far each other replica is behind; empty unless this node leads.
    pub fn lags(&self) -> Vec<Lag> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let last = metrics.last_log_index.map_or(0, |index| index + 1);
        let heard = metrics.heartbeat.unwrap_or_default();
        let asleep = self.pulse.is_asleep();
        let silent = |node: &u64| match heard.get(node).copied().flatten() {
            // It had everything, and would have been heard of since.
            Some(_) if asleep => Some(Duration::ZERO),
            heard => heard.map(|at| at.into_inner().elapsed()),
        };
        let others = metrics.replication.unwrap_or_default().into_iter().filter(|(node, _)| *node != self.node.get());
        others
            .map(|(node, matched)| {
                let next = matched.map_or(0, |id| id.index() + 1);
                Lag { node: NodeId::new(node), entries: last.saturating_sub(next), silent: silent(&node) }
            })
            .collect()
    }

    /// Adds a learner and waits until it has caught up. Only on the leader.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), GroupError> {
        self.pulse.wake_to_write().await;
        self.raft.add_learner(node.get(), EmptyNode {}, true).await.map(drop).map_err(|error| self.failed(&error))
    }

    /// Adds a learner without waiting for it. Only on the leader.
    pub async fn add_learner_nowait(&self, node: NodeId) -> Result<(), GroupError> {
        self.pulse.wake_to_write().await;
        self.raft.add_learner(node.get(), EmptyNode {}, false).await.map(drop).map_err(|error| self.failed(&error))
    }

    /// Makes exactly these the voters (each a member already); others leave. Only on the leader.
    pub async fn set_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), GroupError> {
        self.pulse.wake_to_write().await;
        let voters: BTreeSet<u64> = voters.into_iter().map(NodeId::get).collect();
        self.raft.change_membership(voters, false).await.map(drop).map_err(|error| self.failed(&error))
    }

    /// Removes learners. Only on the leader.
    pub async fn remove_learners(&self, nodes: BTreeSet<NodeId>) -> Result<(), GroupError> {
        self.pulse.wake_to_write().await;
        let nodes = ChangeMembers::RemoveNodes(nodes.into_iter().map(NodeId::get).collect());
        self.raft.change_membership(nodes, false).await.map(drop).map_err(|error| self.failed(&error))
    }

    /// Asks `to` to take over. Only on the leader; returns before it has happened.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), GroupError> {
        self.pulse.wake_and_tell().await;
        self.raft.trigger().transfer_leader(to.get()).await.map_err(|fatal| self.failed(&fatal))
    }

    /// Lets the log go up to `index`: takes the newest stored checkpoint at or below it as the log's new start.
    /// Purging is local; every replica calls this once the replicated log start has been applied.
    pub async fn allow_purge_to(&self, index: LogIndex) -> Result<(), GroupError> {
        if self.checkpoints.allow_purge_to(index.get()) {
            self.raft.trigger().snapshot().await.map_err(|fatal| self.failed(&fatal))?;
        }
        if let Some(purged) = self.log.state().purged {
            self.applier.forget_below(LogIndex::new(purged.index).next());
        }
        self.checkpoints.forget_purged().map_err(|error| self.failed(&error))
    }

    /// Stores the applied state so that a restart replays little. For a clean shutdown, before [`GroupHandle::stop`].
    pub async fn checkpoint(&self) {
        let done = self.raft.with_state_machine(|machine| {
            machine.checkpoint_applied();
            Box::pin(async {})
        });
        if let Err(fatal) = done.await {
            tracing::debug!(group = %self.id, %fatal, "no checkpoint at shutdown");
        }
    }

    /// The oldest stored checkpoint that covers `from`, for a peer that has lost its own.
    pub fn checkpoint_from(&self, from: LogIndex) -> Result<Option<wire::Checkpoint>, GroupError> {
        let found = self.checkpoints.oldest_from(from.get()).map_err(|error| self.failed(&error))?;
        Ok(found.map(|row| row.to_wire()))
    }

    /// Leaves the group's tasks; the log stays.
    pub async fn stop(&self) {
        self.registry.remove(self.id);
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = %self.id, %error, "the group's core did not end cleanly");
        }
    }

    /// Deletes the group's checkpoints. After [`GroupHandle::stop`], when its log is removed too.
    pub fn forget_checkpoints(&self) -> Result<(), GroupError> {
        checkpoint::forget_all(&*self.store, self.id).map_err(|error| self.failed(&error))
    }

    /// Waits until this node has applied everything that was committed when it started, at most `limit`; an error when
    /// the group has stopped.
    pub async fn recovered(&self, limit: Duration) -> Result<bool, GroupError> {
        match self.raft.wait_for_recovery(Some(limit)).await {
            Ok(_) => Ok(true),
            Err(WaitError::Timeout(..)) => Ok(false),
            Err(stopped) => Err(self.failed(&stopped)),
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::errors::ForwardToLeader;

    use super::*;

    /// OPENRAFT.md, chapter 5: a leader that has just been elected or woken refuses writes until a majority has answered.
    /// That is no other leader's fault: the client stays and tries again.
    #[test]
    fn a_leader_without_its_lease_is_still_the_leader() {
        let forward = |reason| {
            ClientWriteError::ForwardToLeader(ForwardToLeader { leader_id: Some(2), leader_node: None, reason })
        };
        assert_eq!(refused(&forward(ForwardReason::LeaseExpired)), ProposeError::NoQuorum);
        assert_eq!(
            refused(&forward(ForwardReason::NotLeader)),
            ProposeError::NotLeader { leader: Some(NodeId::new(2)) }
        );
    }
}
