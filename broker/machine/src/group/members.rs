//! Members come, go, and give partitions out of their hands.
//!
//! ```text
//!   id 0, no name            a new member, unless this instance is in already
//!   id 0, a name             the member of that name: the same instance again, or another one that takes its place
//!   an id                    the same member on a new stream; gone: UNKNOWN_MEMBER, replaced: FENCED_MEMBER
//! ```

use busbar_proto::{GroupName, MemberId, Reason, Refusal, limits};

use super::{
    Group, GroupShard, Held, Join, Member, Outcome, PartitionKey, refusal,
    state::{GROUP_BYTES, POSITION_BYTES},
};

impl GroupShard {
    pub(super) fn join(&mut self, join: Join) -> Result<Outcome, Refusal> {
        self.check_view(&join.seen)?;
        check_join(&join)?;
        let known = self.find_member(&join)?;
        self.check_join_fits(&join, known)?;
        let id = known.unwrap_or(self.next_member);
        let Join { group: name, member: _, name: member_name, instance, topics, session_timeout_ms, seen } = join;
        self.take_view(&seen);
        if !self.groups.contains_key(&name) {
            let group = Group::new(name.as_str().len());
            self.bytes += group.bytes();
            self.groups.insert(name.clone(), group);
        }
        if known.is_none() {
            self.next_member = MemberId::new(id.get() + 1);
        }
        let joins = self.change(&name, |group, _| {
            let before = group.members.get(&id);
            let joins = before.map_or(0, |before| before.joins) + 1;
            let replaced = before.is_some_and(|before| before.instance != instance);
            group.insert_member(id, Member { name: member_name, instance, topics, session_timeout_ms, joins });
            if replaced {
                let held: Vec<PartitionKey> = group.held_by(id).collect();
                group.free(&held);
            }
            joins
        });
        self.rebalance(&name);
        Ok(Outcome::Joined { member: id, joins: joins.unwrap_or(0) })
    }

    /// Repeating it is harmless, and so is one that comes late: `joins` names the membership that ended.
    pub(super) fn remove(
        &mut self,
        name: &GroupName,
        member: MemberId,
        joins: u64,
        now_ms: i64,
    ) -> Result<Outcome, Refusal> {
        let is_meant = |group: &Group| group.members.get(&member).is_some_and(|known| known.joins == joins);
        if !self.groups.get(name).is_some_and(is_meant) {
            return Ok(Outcome::Removed);
        }
        self.change(name, |group, _| {
            group.remove_member(member);
            if group.members.is_empty() {
                group.idle_since_ms = now_ms;
            }
        });
        self.rebalance(name);
        Ok(Outcome::Removed)
    }

    pub(super) fn release(&mut self, name: &GroupName, member: MemberId, held: &[Held]) -> Result<Outcome, Refusal> {
        self.require_member(name, member)?;
        self.change(name, |group, _| {
            let is_held = |held: &&Held| group.holds(member, held);
            let keys: Vec<PartitionKey> = held.iter().filter(is_held).map(|held| held.key).collect();
            group.free(&keys);
        });
        Ok(Outcome::Released)
    }

    pub(super) fn require_member(&self, name: &GroupName, member: MemberId) -> Result<&Group, Refusal> {
        let group = self.groups.get(name).filter(|group| group.members.contains_key(&member));
        group.ok_or_else(|| {
            let message = format!("group '{name}' has no member {member}: its session has ended, join again");
            refusal(Reason::UnknownMember, message)
        })
    }

    fn find_member(&self, join: &Join) -> Result<Option<MemberId>, Refusal> {
        let group = self.groups.get(&join.group);
        if let Some(id) = join.member {
            let known = group.and_then(|group| group.members.get(&id)).ok_or_else(|| {
                let message = format!("group '{}' has no member {id}: its session has ended, join again", join.group);
                refusal(Reason::UnknownMember, message)
            })?;
            if known.instance != join.instance {
                let message = format!(
                    "another instance has joined group '{}' as '{}' and took the place of this one: stop it",
                    join.group, known.name
                );
                return Err(refusal(Reason::FencedMember, message));
            }
            if known.name != join.name {
                return Err(refusal(Reason::InvalidArgument, "a member keeps the name that it first joined with"));
            }
            return Ok(Some(id));
        }
        let is_it = |member: &Member| match join.name.is_empty() {
            true => member.name.is_empty() && member.instance == join.instance,
            false => member.name == join.name,
        };
        Ok(group.and_then(|group| group.members.iter().find(|(_, member)| is_it(member)).map(|(id, _)| *id)))
    }

    fn check_join_fits(&self, join: &Join, known: Option<MemberId>) -> Result<(), Refusal> {
        let group = self.groups.get(&join.group);
        if group.is_none() && self.groups.len() >= limits::GROUPS_PER_SHARD_MAX {
            let message = format!("this shard has {} consumer groups, as many as may be", self.groups.len());
            return Err(refusal(Reason::LimitReached, message));
        }
        if known.is_none() && group.is_some_and(|group| group.members.len() >= limits::GROUP_MEMBERS_MAX) {
            let message =
                format!("group '{}' has {} members, as many as may be", join.group, limits::GROUP_MEMBERS_MAX);
            return Err(refusal(Reason::LimitReached, message));
        }
        let partitions = self.partitions_after(join, group);
        if partitions > limits::GROUP_PARTITIONS_MAX {
            let message = format!(
                "group '{}' would read {partitions} partitions, at most {} are allowed: read fewer topics in one group",
                join.group,
                limits::GROUP_PARTITIONS_MAX
            );
            return Err(refusal(Reason::LimitReached, message));
        }
        let new = partitions.saturating_sub(group.map_or(0, |group| group.partitions.len()));
        let topics: usize = join.topics.iter().map(|topic| topic.as_str().len() + 2).sum();
        let needed = GROUP_BYTES * 2 + join.group.as_str().len() + join.name.len() + join.instance.len() + topics;
        let seen: usize = join.seen.known.iter().map(|topic| topic.name.as_str().len() + 32).sum();
        self.check_room(needed + seen + new * POSITION_BYTES)
    }

    /// How many partitions the group reads once the member is in.
    fn partitions_after(&self, join: &Join, group: Option<&Group>) -> usize {
        let asked = |name: &busbar_proto::TopicName| {
            join.topics.contains(name)
                || group.is_some_and(|group| group.members.values().any(|member| member.topics.contains(name)))
        };
        let is_news = |id| join.seen.known.iter().any(|topic| topic.id == id) || join.seen.gone.contains(&id);
        let known = self.topics.iter().filter(|(id, topic)| !is_news(**id) && asked(&topic.name));
        let known: usize = known.map(|(_, topic)| topic.partitions as usize).sum();
        let news = join.seen.known.iter().filter(|topic| asked(&topic.name));
        known + news.map(|topic| topic.partitions as usize).sum::<usize>()
    }
}

impl Group {
    /// What a member holds, wanted or not.
    fn held_by(&self, member: MemberId) -> impl Iterator<Item = PartitionKey> {
        self.partitions.iter().filter(move |(_, position)| position.holder == Some(member)).map(|(key, _)| *key)
    }

    /// Whether this is the member's, under this claim.
    pub(super) fn holds(&self, member: MemberId, held: &Held) -> bool {
        let position = self.partitions.get(&held.key);
        position.is_some_and(|position| position.holder == Some(member) && position.claim == held.claim)
    }
}

fn check_join(join: &Join) -> Result<(), Refusal> {
    let invalid = |message: String| Err(refusal(Reason::InvalidArgument, message));
    if !join.name.is_empty()
        && let Err(error) = join.name.parse::<GroupName>()
    {
        return Err(refusal(Reason::InvalidName, error.to_string()));
    }
    let most = limits::MEMBER_TOPICS_MAX;
    if !(1..=most).contains(&join.topics.len()) {
        return invalid(format!("a member asks for 1 to {most} topics, this one for {}", join.topics.len()));
    }
    let most = limits::MEMBER_INSTANCE_BYTES_MAX;
    if !(1..=most).contains(&join.instance.len()) {
        return invalid(format!("an instance is told by 1 to {most} bytes, this one by {}", join.instance.len()));
    }
    let allowed = limits::SESSION_TIMEOUT_MS_MIN..=limits::SESSION_TIMEOUT_MS_MAX;
    if !allowed.contains(&join.session_timeout_ms) {
        let (least, most) = allowed.into_inner();
        return invalid(format!("a session timeout is {least} to {most} ms, not {}", join.session_timeout_ms));
    }
    Ok(())
}
