//! Whether a group's raft core ticks. A group in which nothing happens sleeps: no ticks, no heartbeats, no elections; its
//! members' nodes are watched instead ([`super::liveness`]). Owns falling asleep and waking of one replica.
//!
//! ```text
//!  awake --- leader: quiet, all members have everything --> asks the followers to sleep --> all do --> asleep
//!    ^                                                                                             |
//!    '-- a proposal, an entry, a vote, a change of members, a member's new process, a lost leader --'
//! ```
//! Invariants: a leader sleeps only when every member has its whole log, has it applied, and sleeps. A replica that was
//! woken for nothing does no harm: it asks for votes in vain, and that wakes its leader. One that sleeps while its leader
//! is awake does none either: it takes entries and heartbeats as always, and its leader's node is watched.

use std::{
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
    time::Duration,
};

use busbar_proto::NodeId;
use openraft::{
    Instant as _, async_runtime::watch::WatchReceiver as _, raft::TransferLeaderRequest, vote::RaftLeaderId as _,
};
use parking_lot::Mutex;

use super::{
    group::RaftHandle,
    types::{LogId, RaftVote},
};
use crate::env::clock::deadline_after;

const AWAKE: u8 = 0;
/// Awake, and if it leads: no majority has said so since it slept.
const UNCONFIRMED: u8 = 1;
const ASLEEP: u8 = 2;

/// Longest wait of a named heir for what it lacks: its leader sends on, and takes nothing new.
const CATCHING_UP_MAX: Duration = Duration::from_millis(300);
/// Longest wait of a proposal for a majority's word after its group has slept.
const WAKING_MAX: Duration = Duration::from_millis(1000);

/// A replica's pulse. See the module.
pub(crate) struct Pulse {
    raft: RaftHandle,
    state: AtomicU8,
    /// When it last woke.
    woken: Mutex<Option<tokio::time::Instant>>,
    /// End of the log when it fell asleep.
    slept_at: AtomicU64,
}

/// A leader's state when it may sleep: what its followers must have, too.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Quiet {
    pub(crate) vote: RaftVote,
    pub(crate) last: LogId,
    pub(crate) followers: Vec<NodeId>,
}

impl Pulse {
    pub(crate) fn new(raft: RaftHandle) -> Self {
        Self { raft, state: AtomicU8::new(AWAKE), woken: Mutex::new(None), slept_at: AtomicU64::new(0) }
    }

    pub(crate) fn raft(&self) -> &RaftHandle {
        &self.raft
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.state.load(Ordering::Acquire) == ASLEEP
    }

    /// It ticks again, if it did not. Whether it had slept.
    pub(crate) fn wake(&self) -> bool {
        if !self.is_asleep() {
            return false;
        }
        // The time first: whoever finds it unconfirmed waits for words that came after it.
        *self.woken.lock() = Some(deadline_after(Duration::ZERO));
        let changed = self.state.compare_exchange(ASLEEP, UNCONFIRMED, Ordering::AcqRel, Ordering::Acquire);
        if changed.is_ok() {
            self.raft.runtime_config().tick(true);
        }
        changed.is_ok()
    }

    /// The same; a leader tells its followers at once that it lives.
    pub(crate) async fn wake_and_tell(&self) -> bool {
        let slept = self.wake();
        if slept && self.leads() {
            // An error means that the group has stopped.
            let _ = self.raft.trigger().heartbeat().await;
        }
        slept
    }

    /// The same for one that leads; others sleep on.
    pub(crate) async fn wake_if_leading(&self) {
        if self.is_asleep() && self.leads() {
            self.wake_and_tell().await;
        }
    }

    /// Before a proposal: once this returns a leader has its majority's word again, or has waited for long enough.
    pub(crate) async fn wake_to_write(&self) {
        if self.state.load(Ordering::Acquire) == AWAKE {
            return;
        }
        self.wake_and_tell().await;
        let Some(woken) = *self.woken.lock() else { return };
        if self.is_alone() {
            let _ = self.state.compare_exchange(UNCONFIRMED, AWAKE, Ordering::AcqRel, Ordering::Acquire);
            return;
        }
        let mut metrics = self.raft.data_metrics();
        let confirmed = async {
            loop {
                let acked = metrics.borrow_watched().last_quorum_acked.map(|at| at.into_inner());
                // It is the time at which the answered heartbeat was sent.
                if acked.is_some_and(|at| at.elapsed() <= woken.elapsed()) || metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(WAKING_MAX, confirmed).await;
        // Also without their word: then the proposal is refused, and says why.
        let _ = self.state.compare_exchange(UNCONFIRMED, AWAKE, Ordering::AcqRel, Ordering::Acquire);
    }

    fn leads(&self) -> bool {
        self.raft.server_metrics().borrow_watched().state.is_leader()
    }

    /// The leader's state, if this is an awake leader whose members all have everything that it has.
    pub(crate) fn quiet(&self) -> Option<Quiet> {
        if self.is_asleep() || !self.leads() {
            return None;
        }
        let metrics = self.raft.metrics().borrow_watched().clone();
        let last = metrics.last_applied?;
        let is_whole = metrics.last_log_index == Some(last.index()) && metrics.cluster_committed == Some(last);
        let progress = metrics.replication.unwrap_or_default();
        let have_all = progress.values().all(|matched| *matched == Some(last));
        let membership = metrics.membership_config.membership();
        let members = membership.voter_ids().chain(membership.learner_ids());
        let settled = membership.get_joint_config().len() == 1;
        let followers = members.filter(|node| *node != metrics.id).map(NodeId::new).collect();
        (is_whole && have_all && settled).then_some(Quiet { vote: metrics.vote, last, followers })
    }

    /// A follower is asked to sleep. Whether it does: only when it has all that the leader has.
    pub(crate) fn sleep_beside(&self, vote: &RaftVote, last: &LogId) -> bool {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let has_all = metrics.last_log_index == Some(last.index()) && metrics.last_applied == Some(*last);
        let follows = metrics.vote == *vote && !metrics.state.is_leader() && metrics.current_leader.is_some();
        if has_all && follows {
            self.sleep(last);
        }
        has_all && follows
    }

    /// Stops ticking, unless the log has grown meanwhile.
    pub(crate) fn sleep(&self, last: &LogId) {
        self.slept_at.store(last.index(), Ordering::Release);
        self.state.store(ASLEEP, Ordering::Release);
        self.raft.runtime_config().tick(false);
        self.wake_if_grown();
    }

    /// What was under way when it fell asleep has come: it is not quiet.
    pub(crate) fn wake_if_grown(&self) -> bool {
        let end = self.raft.data_metrics().borrow_watched().last_log.map(|last| last.index());
        let grown = self.is_asleep() && end != Some(self.slept_at.load(Ordering::Acquire));
        grown && self.wake()
    }

    /// Whether this node is that one.
    pub(crate) fn is_node(&self, node: NodeId) -> bool {
        self.id() == node.get()
    }

    fn id(&self) -> u64 {
        self.raft.server_metrics().borrow_watched().id
    }

    /// Whether it is the only voter: then nobody's word is missing.
    fn is_alone(&self) -> bool {
        self.raft.server_metrics().borrow_watched().membership_config.voter_ids().count() == 1
    }

    /// The vote that this replica has given last.
    pub(crate) fn vote(&self) -> RaftVote {
        self.raft.server_metrics().borrow_watched().vote
    }

    /// Who leads as far as this replica knows, or led when it last heard.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let metrics = self.raft.server_metrics();
        let vote = metrics.borrow_watched().vote;
        vote.is_committed().then(|| NodeId::new(*vote.leader_id().node_id()))
    }

    /// Whether somebody leads now as far as this replica knows.
    pub(crate) fn is_led(&self) -> bool {
        self.raft.server_metrics().borrow_watched().current_leader.is_some()
    }

    /// This node's place among the voters that may follow `lost`; `None` when it is none of them.
    pub(crate) fn rank(&self, lost: Option<NodeId>) -> Option<u32> {
        let metrics = self.raft.server_metrics();
        let (id, membership) = {
            let metrics = metrics.borrow_watched();
            (metrics.id, metrics.membership_config.clone())
        };
        let heirs: Vec<u64> = membership.voter_ids().filter(|voter| lost != Some(NodeId::new(*voter))).collect();
        heirs.iter().position(|heir| *heir == id).and_then(|place| u32::try_from(place).ok())
    }

    /// The leader of this vote is lost: its lease does not hold votes up any more. Nothing happens when another leads.
    pub(crate) async fn drop_lease(&self, vote: RaftVote) {
        let id = self.id();
        // As if its leader had named an heir other than this node: all that does here is to end the lease.
        let heir = if *vote.leader_id().node_id() == id { id.wrapping_add(1) } else { *vote.leader_id().node_id() };
        let _ = self.raft.handle_transfer_leader(TransferLeaderRequest::new(vote, heir, None)).await;
    }

    /// Waits until this replica's log reaches as far as that, for a moment at most.
    pub(crate) async fn catch_up(&self, last: Option<&LogId>) {
        let mut metrics = self.raft.data_metrics();
        let reached = async {
            while metrics.borrow_watched().last_log.as_ref() < last {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(CATCHING_UP_MAX, reached).await;
    }

    /// Takes over from a leader that has given up in favour of another: with its word, its lease is no obstacle. Voters
    /// still refuse whoever has less than they do. Nothing happens when another leads by now.
    pub(crate) async fn inherit(&self, vote: RaftVote) {
        let _ = self.raft.handle_transfer_leader(TransferLeaderRequest::new(vote, self.id(), None)).await;
    }

    /// Stands for election, unless a majority knows a leader that lives.
    pub(crate) async fn stand(&self) {
        let _ = self.raft.trigger().elect(true).await;
    }
}
