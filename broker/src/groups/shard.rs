//! One replica of a shard of consumer groups: its raft group, commands to it, and news for the members' streams.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use busbar_machine::group::{Command, GroupShard, Outcome};
use busbar_proto::{GroupId, GroupName, LogIndex, MemberId, PartitionId, Reason, Refusal, Term, TopicId, limits};
use parking_lot::{Mutex, RwLockReadGuard};
use tokio::sync::watch;

use super::Sessions;
use crate::{
    env::{Clock, Tasks},
    raft::{
        Applied, Group, Proposal, ProposeError,
        group::{GroupError, Leadership},
    },
};

/// Entries kept for lagging replicas before a checkpoint takes their place.
const ENTRIES_KEPT: u64 = 10_000;
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// What a shard's replica is made of.
pub struct ShardOptions {
    /// The reserved topic.
    pub topic: TopicId,
    /// The shard's number.
    pub partition: PartitionId,
    /// Its raft group, started.
    pub group: Group<GroupShard>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The replica's own tasks.
    pub tasks: Tasks,
}

/// See the module.
pub struct Shard {
    topic: TopicId,
    partition: PartitionId,
    group: Group<GroupShard>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    sessions: Mutex<Sessions>,
    /// Changes of assignments, as far as the coordinator has seen.
    changes: watch::Sender<u64>,
}

impl Shard {
    /// Over a started group.
    pub fn new(options: ShardOptions) -> Arc<Self> {
        let ShardOptions { topic, partition, group, clock, tasks } = options;
        let changes = watch::Sender::new(0);
        Arc::new(Self { topic, partition, group, clock, tasks, sessions: Mutex::default(), changes })
    }

    /// The reserved topic.
    pub fn topic(&self) -> TopicId {
        self.topic
    }

    /// The shard's number.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Its raft group.
    pub fn group(&self) -> &Group<GroupShard> {
        &self.group
    }

    /// Its raft group's id.
    pub fn group_id(&self) -> GroupId {
        self.group.id()
    }

    /// What is applied. Hold the guard shortly and never across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, GroupShard> {
        self.group.shared().read()
    }

    /// Carries out a command; refused unless this node leads the shard. What can't be read back is never proposed: as an
    /// entry it would stop the shard on every replica.
    pub async fn propose(&self, command: &Command) -> Result<Outcome, Refusal> {
        let payload = command.encode();
        if payload.len() > limits::ENTRY_BYTES_MAX {
            let message = format!("{} bytes at once are too many for a shard of consumer groups", payload.len());
            return Err(Refusal::new(Reason::InvalidArgument, message));
        }
        Command::decode(&payload).map_err(|error| Refusal::new(Reason::InvalidArgument, error.to_string()))?;
        let head_len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let proposal = Proposal { mark: 0, time_ms: self.clock.unix_ms(), head_len, payload };
        match self.group.propose(proposal).await {
            Ok(Applied::Groups(outcome)) => outcome.into_result(),
            Ok(other) => Err(Refusal::new(Reason::Internal, format!("a shard of consumer groups answered {other:?}"))),
            Err(ProposeError::NotLeader { leader }) => {
                let now = self.group.leadership();
                Err(not_leader(Leadership { leader: leader.or(now.leader), ..now }))
            }
            Err(error @ ProposeError::NoQuorum) => {
                Err(Refusal::new(Reason::NoLeader, error.to_string()).retry_after(RETRY_AFTER))
            }
            Err(error @ ProposeError::Unknown) => {
                Err(Refusal::new(Reason::OutcomeUnknown, error.to_string()).retry_after(RETRY_AFTER))
            }
            Err(error @ ProposeError::Stopped(_)) => Err(Refusal::new(Reason::ShuttingDown, error.to_string())),
        }
    }

    /// The term in which this node leads and knows everything that was committed before.
    ///
    /// # Errors
    /// [`Reason::NotLeader`]; [`Reason::NoLeader`] while the first entry of its term is not applied.
    pub fn require_leading(&self) -> Result<Term, Refusal> {
        let leadership = self.group.leadership();
        if !leadership.is_self {
            return Err(not_leader(leadership));
        }
        if self.group.shared().applied().at.term != leadership.term {
            return Err(no_leader());
        }
        Ok(leadership.term)
    }

    /// The sessions of its members; meaningful on the leader.
    pub fn sessions(&self) -> &Mutex<Sessions> {
        &self.sessions
    }

    /// The member was heard of.
    pub fn touch(&self, group: &GroupName, member: MemberId) {
        self.sessions.lock().touch(group, member, self.clock.now());
    }

    /// Watches over those who are members now.
    pub fn watch_members(&self, now: Instant) {
        let shard = self.read();
        let members = shard.groups().flat_map(|(name, group)| {
            let members = group.members().iter();
            members
                .map(|(id, member)| (name.clone(), *id, member.joins, Duration::from_millis(member.session_timeout_ms)))
        });
        self.sessions.lock().set_members(now, members);
    }

    /// Follows changes of assignments on the leader.
    pub fn watch_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tells the members' streams of what has changed; whether anything had.
    pub fn publish_changes(&self) -> bool {
        let now = self.read().changes();
        self.changes.send_if_modified(|seen| std::mem::replace(seen, now) != now)
    }

    /// Lets old entries go.
    pub async fn trim(&self) -> Result<(), GroupError> {
        let covered = self.group.shared().applied().at.index.get().saturating_sub(ENTRIES_KEPT);
        self.group.allow_purge_to(LogIndex::new(covered)).await
    }

    /// Stops the group. The log stays.
    pub async fn stop(&self, checkpoint: bool) {
        if checkpoint {
            self.group.checkpoint().await;
        }
        self.group.stop().await;
        self.tasks.shutdown(Duration::from_secs(5)).await;
    }
}

/// What a caller is told where a shard is led elsewhere.
pub fn not_leader(now: Leadership) -> Refusal {
    match now.leader.filter(|_| !now.is_self) {
        Some(leader) => {
            let message = format!("node {leader} leads this shard of consumer groups");
            Refusal::new(Reason::NotLeader, message).led_by(Some(leader))
        }
        None => no_leader(),
    }
}

/// What a caller is told while nobody leads.
pub fn no_leader() -> Refusal {
    let message = "this shard of consumer groups has no leader now; an election takes about a second: retry";
    Refusal::new(Reason::NoLeader, message).retry_after(RETRY_AFTER)
}
