//! One shard of consumer groups as its replicas agree on it: members, who holds which partition, and how far each group
//! is. A raft group replicates it; its leader tells members what to do, and proposes what it sees (silent members, changed
//! topics).
//!
//! ```text
//!   Command ──▶ GroupShard::apply ──▶ Outcome          refused: nothing changed
//!
//!   a partition:   free ──grant(claim n)──▶ held by A ──A releases, or is gone──▶ free ──grant(claim n+1)──▶ held by B
//!                                             └ target B: A is told to finish; B waits
//! ```
//! Invariants:
//! - a partition has one holder at most, and a claim that is larger each time it changes hands;
//! - a commit counts only under the current claim of its holder; offsets of one claim never go backwards;
//! - a partition that need not move is not touched by a rebalance;
//! - member ids are never given twice in a shard;
//! - what a shard knows is bounded by [`limits::SHARD_BYTES_MAX`], because it travels in one message;
//! - time, topics and who is silent are arguments: whoever proposes a command looked.

mod assignment;
mod command;
mod members;
mod offsets;
mod snapshot;
mod state;
mod topics;

use std::collections::BTreeMap;

use busbar_proto::{GroupName, MemberId, Reason, Refusal, TopicId, limits};

pub use command::{Command, CommitEntry, Held, Join, ResetEntry, SeenTopic, SeenTopics};
pub use state::{Committed, Group, Member, PartitionKey, Position};
pub use topics::Topic;

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The member is in.
    Joined {
        /// Its id.
        member: MemberId,
        /// How often it has joined: tells this stream's membership from an older one's.
        joins: u64,
    },
    /// The member is out, or was not in any more.
    Removed,
    /// What was released is free, or was in other hands already.
    Released,
    /// What became of each entry, in their order.
    Committed(Vec<Result<(), Refusal>>),
    /// The offsets are set.
    Reset,
    /// The group is forgotten.
    Deleted,
    /// The topics are noted.
    TopicsSeen,
    /// That many groups without members are forgotten.
    IdleRemoved(usize),
    /// Nothing changed.
    Refused(Refusal),
}

impl Outcome {
    /// The outcome, unless it is a refusal.
    ///
    /// # Errors
    /// The refusal.
    pub fn into_result(self) -> Result<Self, Refusal> {
        match self {
            Self::Refused(refusal) => Err(refusal),
            done => Ok(done),
        }
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupShard {
    /// The newest catalog that its topics were taken from: an older view is refused.
    catalog_version: u64,
    /// Changes of any group's assignment so far.
    changes: u64,
    next_member: MemberId,
    /// What all of it takes, encoded, at most.
    bytes: usize,
    topics: BTreeMap<TopicId, Topic>,
    groups: BTreeMap<GroupName, Group>,
}

impl Default for GroupShard {
    fn default() -> Self {
        Self::new()
    }
}

impl GroupShard {
    /// A shard without groups.
    pub fn new() -> Self {
        Self {
            catalog_version: 0,
            changes: 0,
            next_member: MemberId::new(1),
            bytes: 0,
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
        }
    }

    /// Applies one committed command.
    pub fn apply(&mut self, command: Command) -> Outcome {
        let result = match command {
            Command::Join(join) => self.join(join),
            Command::Remove { group, member, joins, now_ms } => self.remove(&group, member, joins, now_ms),
            Command::Release { group, member, held } => self.release(&group, member, &held),
            Command::Commit { group, member, entries } => self.commit(&group, member, entries),
            Command::Reset { group, entries, force, topics } => self.reset(&group, &entries, force, &topics),
            Command::Delete { group } => self.delete(&group),
            Command::SeeTopics(topics) => self.see_topics(&topics),
            Command::RemoveIdle { before_ms } => Ok(self.remove_idle(before_ms)),
        };
        result.unwrap_or_else(Outcome::Refused)
    }

    /// Every group, by name.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = (&GroupName, &Group)> {
        self.groups.iter()
    }

    /// The group of that name.
    pub fn group(&self, name: &GroupName) -> Option<&Group> {
        self.groups.get(name)
    }

    /// The topics that groups read or have committed to, as last seen.
    pub fn topics(&self) -> &BTreeMap<TopicId, Topic> {
        &self.topics
    }

    /// Changes of any group's membership or assignment so far.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The newest catalog that topics were taken from.
    pub fn catalog_version(&self) -> u64 {
        self.catalog_version
    }

    /// What the shard takes, encoded, at most.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes a group, and keeps count of bytes and changes. The group's topics may be looked at meanwhile.
    fn change<T>(
        &mut self,
        name: &GroupName,
        change: impl FnOnce(&mut Group, &BTreeMap<TopicId, Topic>) -> T,
    ) -> Option<T> {
        let group = self.groups.get_mut(name)?;
        let (bytes, generation) = (group.bytes(), group.generation());
        let done = change(group, &self.topics);
        self.bytes = self.bytes - bytes + group.bytes();
        self.changes += u64::from(group.generation() != generation);
        Some(done)
    }

    /// Balances a group anew, within what the shard may still hold.
    fn rebalance(&mut self, name: &GroupName) {
        let room = limits::SHARD_BYTES_MAX.saturating_sub(self.bytes);
        self.change(name, |group, topics| group.rebalance(topics, room));
    }

    fn require(&self, name: &GroupName) -> Result<&Group, Refusal> {
        let unknown = || refusal(Reason::UnknownGroup, format!("there is no consumer group '{name}'"));
        self.groups.get(name).ok_or_else(unknown)
    }

    fn check_room(&self, needed: usize) -> Result<(), Refusal> {
        if self.bytes + needed <= limits::SHARD_BYTES_MAX {
            return Ok(());
        }
        let message = format!(
            "the consumer groups of this shard hold {} bytes of at most {}: delete unused groups, or keep less state \
             beside the offsets",
            self.bytes,
            limits::SHARD_BYTES_MAX
        );
        Err(refusal(Reason::LimitReached, message))
    }
}

fn refusal(reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal::new(reason, message)
}
