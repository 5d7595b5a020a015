//! How far groups are: committed by members, set by hand, forgotten.

use busbar_proto::{ClaimId, GroupName, MemberId, Offset, Reason, Refusal, limits};

use super::{
    Command, CommitEntry, Committed, GroupShard, Outcome, PartitionKey, ResetEntry, SeenTopics, refusal,
    state::POSITION_BYTES,
};

/// No log has an offset beyond it.
const OFFSET_MAX: u64 = i64::MAX as u64;

impl GroupShard {
    pub(super) fn commit(
        &mut self,
        name: &GroupName,
        member: MemberId,
        entries: Vec<CommitEntry>,
    ) -> Result<Outcome, Refusal> {
        self.require_member(name, member)?;
        let results = entries.into_iter().map(|entry| self.commit_one(name, member, entry));
        Ok(Outcome::Committed(results.collect()))
    }

    fn commit_one(&mut self, name: &GroupName, member: MemberId, entry: CommitEntry) -> Result<(), Refusal> {
        let CommitEntry { held, committed } = entry;
        let group = self.require(name)?;
        let position = group.partitions.get(&held.key).filter(|_| group.holds(member, &held));
        let Some(position) = position else {
            let message = format!(
                "claim {} to partition {} of topic {} is not in force: another holds it, drop what you have of it",
                held.claim, held.key.partition, held.key.topic
            );
            return Err(refusal(Reason::StaleClaim, message));
        };
        check_committed(&committed)?;
        let before = position.committed.as_ref();
        if let Some(before) = before.filter(|_| position.committed_claim == held.claim)
            && committed.offset < before.offset
        {
            let message = format!(
                "offset {} is below {}, which was committed before: a group goes back by a reset only",
                committed.offset, before.offset
            );
            return Err(refusal(Reason::OffsetOutOfRange, message));
        }
        let grown = committed.state.len().saturating_sub(before.map_or(0, |before| before.state.len()));
        if grown > 0 {
            self.check_room(grown)?;
        }
        self.change(name, |group, _| group.set_committed(held.key, committed, held.claim));
        Ok(())
    }

    pub(super) fn reset(
        &mut self,
        name: &GroupName,
        entries: &[ResetEntry],
        force: bool,
        seen: &SeenTopics,
    ) -> Result<Outcome, Refusal> {
        self.check_view(seen)?;
        let group = self.require(name)?;
        if !group.members.is_empty() && !force {
            return Err(active(name, group.members.len(), "stop them first, or force it"));
        }
        let new = entries.iter().filter(|entry| !group.partitions.contains_key(&entry.key)).count();
        if group.partitions.len() + new > limits::GROUP_PARTITIONS_MAX {
            let message = format!("group '{name}' may have {} partitions", limits::GROUP_PARTITIONS_MAX);
            return Err(refusal(Reason::LimitReached, message));
        }
        let topics: usize = seen.known.iter().map(|topic| topic.name.as_str().len() + 32).sum();
        self.check_room(new * POSITION_BYTES + topics)?;
        for entry in entries {
            self.check_target(entry, seen)?;
        }
        self.take_view(seen);
        self.change(name, |group, _| {
            for ResetEntry { key, offset } in entries {
                let committed = Committed { offset: *offset, state: bytes::Bytes::new(), record_time_ms: 0 };
                group.set_committed(*key, committed, ClaimId::new(0));
            }
            let is_held = |key: &PartitionKey| group.partitions.get(key).is_some_and(|held| held.holder.is_some());
            let held: Vec<PartitionKey> = entries.iter().map(|entry| entry.key).filter(is_held).collect();
            group.free(&held);
        });
        Ok(Outcome::Reset)
    }

    fn check_target(&self, entry: &ResetEntry, seen: &SeenTopics) -> Result<(), Refusal> {
        let PartitionKey { topic, partition } = entry.key;
        let news = seen.known.iter().find(|known| known.id == topic).map(|known| known.partitions);
        let known = news.or_else(|| self.topics.get(&topic).map(|known| known.partitions));
        match known.filter(|_| !seen.gone.contains(&topic)) {
            None => Err(refusal(Reason::UnknownTopic, format!("no topic has the id {topic}"))),
            Some(partitions) if partition.get() >= partitions => {
                let message = format!("topic {topic} has {partitions} partitions, none is number {partition}");
                Err(refusal(Reason::UnknownPartition, message))
            }
            Some(_) => check_offset(entry.offset),
        }
    }

    pub(super) fn delete(&mut self, name: &GroupName) -> Result<Outcome, Refusal> {
        let members = self.require(name)?.members.len();
        if members > 0 {
            return Err(active(name, members, "stop them first"));
        }
        self.forget_group(name);
        Ok(Outcome::Deleted)
    }

    /// Forgets the groups that have had no member since before `before_ms`.
    pub(super) fn remove_idle(&mut self, before_ms: i64) -> Outcome {
        let is_idle = |group: &super::Group| group.members.is_empty() && group.idle_since_ms < before_ms;
        let idle = self.groups.iter().filter(|(_, group)| is_idle(group));
        let idle: Vec<GroupName> = idle.map(|(name, _)| name.clone()).collect();
        for name in &idle {
            self.forget_group(name);
        }
        Outcome::IdleRemoved(idle.len())
    }

    /// The command that forgets idle groups, if there are any.
    pub fn idle_before(&self, before_ms: i64) -> Option<Command> {
        let is_idle = |group: &super::Group| group.members.is_empty() && group.idle_since_ms < before_ms;
        self.groups.values().any(is_idle).then_some(Command::RemoveIdle { before_ms })
    }

    fn forget_group(&mut self, name: &GroupName) {
        if let Some(gone) = self.groups.remove(name) {
            self.bytes -= gone.bytes();
            self.changes += 1;
        }
    }
}

/// Whether this may be committed at all.
///
/// # Errors
/// [`Reason::OffsetOutOfRange`], [`Reason::InvalidArgument`].
fn check_committed(committed: &Committed) -> Result<(), Refusal> {
    check_offset(committed.offset)?;
    let (found, most) = (committed.state.len(), limits::COMMIT_STATE_BYTES_MAX);
    if found > most {
        let message = format!("the state beside an offset has {found} bytes, at most {most} are allowed");
        return Err(refusal(Reason::InvalidArgument, message));
    }
    Ok(())
}

fn check_offset(offset: Offset) -> Result<(), Refusal> {
    match offset.get() <= OFFSET_MAX {
        true => Ok(()),
        false => Err(refusal(Reason::OffsetOutOfRange, format!("{offset} is no offset: the largest is {OFFSET_MAX}"))),
    }
}

fn active(name: &GroupName, members: usize, advice: &str) -> Refusal {
    refusal(Reason::GroupActive, format!("group '{name}' has members ({members}): {advice}"))
}
