//! One consumer group: its members, its partitions, and what both take.
//!
//! Invariants: who holds or is to hold a partition is a member; `bytes` is what [`super::snapshot`] writes, at most; a
//! partition that nobody holds, is to hold or has committed to is not kept.

use std::collections::{BTreeMap, BTreeSet};

use busbar_proto::{ClaimId, Generation, MemberId, Offset, PartitionId, TopicId, TopicName};
use bytes::Bytes;

use super::{
    assignment::{self, Wish},
    topics::Topic,
};

/// What a group takes besides its name, members and partitions.
pub(super) const GROUP_BYTES: usize = 64;
const MEMBER_BYTES: usize = 64;
/// Of a partition without the state beside its offset.
pub(super) const POSITION_BYTES: usize = 112;

/// A partition of any topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartitionKey {
    /// The topic.
    pub topic: TopicId,
    /// Number within it.
    pub partition: PartitionId,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Empty, or a name that outlives a restart.
    pub name: String,
    /// Drawn by each instance.
    pub instance: Bytes,
    /// What it asks for.
    pub topics: BTreeSet<TopicName>,
    /// How long it may be silent, in milliseconds.
    pub session_timeout_ms: u64,
    /// How often it has joined.
    pub joins: u64,
}

impl Member {
    pub(super) fn bytes(&self) -> usize {
        let topics: usize = self.topics.iter().map(|topic| topic.as_str().len() + 2).sum();
        MEMBER_BYTES + self.name.len() + self.instance.len() + topics
    }
}

/// How far a group is in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The next offset to read.
    pub offset: Offset,
    /// The client's.
    pub state: Bytes,
    /// Time stamp of the newest record that is done; 0 = unknown.
    pub record_time_ms: i64,
}

/// A partition in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Who holds it.
    pub holder: Option<MemberId>,
    /// Of the holder, or the last one; 0 = nobody has held it.
    pub claim: ClaimId,
    /// Who should hold it.
    pub target: Option<MemberId>,
    /// How far the group is; `None` = nothing committed yet.
    pub committed: Option<Committed>,
    /// The claim under which that was committed; 0 after a reset.
    pub committed_claim: ClaimId,
}

impl Position {
    pub(super) fn bytes(&self) -> usize {
        POSITION_BYTES + self.committed.as_ref().map_or(0, |committed| committed.state.len())
    }

    fn is_needed(&self) -> bool {
        self.holder.is_some() || self.target.is_some() || self.committed.is_some()
    }
}

/// A consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub(super) generation: Generation,
    pub(super) last_claim: ClaimId,
    /// Since when it has had no member, in milliseconds since the Unix epoch.
    pub(super) idle_since_ms: i64,
    pub(super) members: BTreeMap<MemberId, Member>,
    pub(super) partitions: BTreeMap<PartitionKey, Position>,
    pub(super) bytes: usize,
}

impl Group {
    pub(super) fn new(name_bytes: usize) -> Self {
        Self {
            generation: Generation::new(0),
            last_claim: ClaimId::new(0),
            idle_since_ms: 0,
            members: BTreeMap::new(),
            partitions: BTreeMap::new(),
            bytes: GROUP_BYTES + name_bytes,
        }
    }

    /// Grows with each change of members, targets or holders.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Its members, by id.
    pub fn members(&self) -> &BTreeMap<MemberId, Member> {
        &self.members
    }

    /// Its partitions: those that are read, and those that something is committed to.
    pub fn partitions(&self) -> &BTreeMap<PartitionKey, Position> {
        &self.partitions
    }

    /// Since when it has had no member; meaningless while it has some.
    pub fn idle_since_ms(&self) -> i64 {
        self.idle_since_ms
    }

    /// What it takes, encoded, at most.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a member should hold now: what it holds and is to keep.
    pub fn assignment(&self, member: MemberId) -> impl Iterator<Item = (PartitionKey, &Position)> {
        let is_its = move |position: &Position| position.holder == Some(member) && position.target == Some(member);
        self.partitions.iter().filter(move |(_, position)| is_its(position)).map(|(key, position)| (*key, position))
    }

    /// What a member still holds and should not. It may have been told of it, or not.
    pub fn to_release(&self, member: MemberId) -> impl Iterator<Item = (PartitionKey, ClaimId)> {
        let is_owed = move |position: &Position| position.holder == Some(member) && position.target != Some(member);
        let owed = self.partitions.iter().filter(move |(_, position)| is_owed(position));
        owed.map(|(key, position)| (*key, position.claim))
    }

    pub(super) fn insert_member(&mut self, id: MemberId, member: Member) {
        self.bytes += member.bytes();
        if let Some(before) = self.members.insert(id, member) {
            self.bytes -= before.bytes();
        }
        self.bump();
    }

    pub(super) fn remove_member(&mut self, id: MemberId) -> bool {
        let Some(gone) = self.members.remove(&id) else { return false };
        self.bytes -= gone.bytes();
        self.bump();
        true
    }

    /// The position of a partition, made if it is not there.
    pub(super) fn position(&mut self, key: PartitionKey) -> &mut Position {
        let bytes = &mut self.bytes;
        self.partitions.entry(key).or_insert_with(|| {
            *bytes += POSITION_BYTES;
            Position::default()
        })
    }

    pub(super) fn set_committed(&mut self, key: PartitionKey, committed: Committed, claim: ClaimId) {
        let position = self.position(key);
        let before = position.bytes();
        position.committed = Some(committed);
        position.committed_claim = claim;
        let after = position.bytes();
        self.bytes = self.bytes - before + after;
    }

    pub(super) fn bump(&mut self) {
        self.generation = Generation::new(self.generation.get() + 1);
    }

    fn next_claim(&mut self) -> ClaimId {
        self.last_claim = ClaimId::new(self.last_claim.get() + 1);
        self.last_claim
    }

    /// Takes partitions out of their holder's hands and gives them to whoever should have them.
    pub(super) fn free(&mut self, keys: &[PartitionKey]) {
        for key in keys {
            if let Some(position) = self.partitions.get_mut(key) {
                position.holder = None;
            }
            self.grant(*key);
        }
        if !keys.is_empty() {
            self.bump();
        }
    }

    fn grant(&mut self, key: PartitionKey) {
        let claim = self.next_claim();
        let Some(position) = self.partitions.get_mut(&key) else { return };
        match position.target {
            Some(target) => (position.holder, position.claim) = (Some(target), claim),
            None if !position.is_needed() => self.forget(key),
            None => {}
        }
    }

    fn forget(&mut self, key: PartitionKey) {
        if let Some(gone) = self.partitions.remove(&key) {
            self.bytes -= gone.bytes();
        }
    }

    /// Forgets a deleted topic's partitions.
    pub(super) fn forget_topic(&mut self, topic: TopicId) {
        let keys: Vec<_> = self.partitions.keys().filter(|key| key.topic == topic).copied().collect();
        for key in &keys {
            self.forget(*key);
        }
        if !keys.is_empty() {
            self.bump();
        }
    }

    /// Whether the group reads this topic, or has committed to it.
    pub(super) fn refers_to(&self, id: TopicId, name: &TopicName) -> bool {
        let first = PartitionKey { topic: id, partition: PartitionId::new(0) };
        let last = PartitionKey { topic: id, partition: PartitionId::new(u32::MAX) };
        self.members.values().any(|member| member.topics.contains(name))
            || self.partitions.range(first..=last).next().is_some()
    }

    /// Plans anew who should hold what, frees what members that are gone have held, and grants what is free.
    /// Partitions that would take more than `room` bytes wait.
    pub(super) fn rebalance(&mut self, topics: &BTreeMap<TopicId, Topic>, room: usize) {
        let wishes = self.wishes(topics);
        let mut plan = assignment::plan(&wishes, |key| {
            let position = self.partitions.get(&key);
            position.map_or((None, None), |position| (position.target, position.holder))
        });
        let mut left = room / POSITION_BYTES;
        plan.retain(|key, _| {
            let fits = self.partitions.contains_key(key) || left > 0;
            left -= usize::from(fits && !self.partitions.contains_key(key));
            fits
        });
        let mut changed = false;
        for key in plan.keys() {
            self.position(*key);
        }
        let mut free = Vec::new();
        for (key, position) in &mut self.partitions {
            let target = plan.get(key).copied();
            changed |= position.target != target;
            position.target = target;
            let holder = position.holder.filter(|holder| self.members.contains_key(holder));
            changed |= position.holder != holder;
            position.holder = holder;
            if holder.is_none() && (target.is_some() || !position.is_needed()) {
                free.push(*key);
            }
        }
        for key in &free {
            self.grant(*key);
        }
        if changed || !free.is_empty() {
            self.bump();
        }
    }

    /// Who asks for which partitions.
    fn wishes(&self, topics: &BTreeMap<TopicId, Topic>) -> Vec<Wish> {
        let wish = |(id, topic): (&TopicId, &Topic)| {
            let asks = self.members.iter().filter(|(_, member)| member.topics.contains(&topic.name));
            let members: Vec<MemberId> = asks.map(|(id, _)| *id).collect();
            (!members.is_empty()).then_some(Wish { topic: *id, partitions: topic.partitions, members })
        };
        topics.iter().filter_map(wish).collect()
    }
}
