//! When members were last heard of, as the leader of their shard knows: in memory only, so a new leader gives everyone a
//! full timeout. Pure: time is an argument.
//!
//! Invariant: a session is due once its member was silent for its timeout, and not before.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use busbar_proto::{GroupName, MemberId};

/// A member's membership, as its leader watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Of the member's memberships, which one.
    pub joins: u64,
    /// How long it may be silent.
    pub timeout: Duration,
    /// When it was last heard of.
    pub heard: Instant,
}

impl Session {
    fn ends(&self) -> Instant {
        self.heard + self.timeout
    }
}

/// All sessions of a shard.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    by_member: BTreeMap<(GroupName, MemberId), Session>,
}

impl Sessions {
    /// Takes over who is a member now: those that are new, or have joined again, are heard of now; the others are as they
    /// were.
    pub fn set_members(
        &mut self,
        now: Instant,
        members: impl IntoIterator<Item = (GroupName, MemberId, u64, Duration)>,
    ) {
        let mut before = std::mem::take(&mut self.by_member);
        for (group, member, joins, timeout) in members {
            let key = (group, member);
            let heard = before.remove(&key).filter(|session| session.joins == joins).map_or(now, |known| known.heard);
            self.by_member.insert(key, Session { joins, timeout, heard });
        }
    }

    /// Forgets all: whoever leads next watches.
    pub fn clear(&mut self) {
        self.by_member.clear();
    }

    /// The member was heard of.
    pub fn touch(&mut self, group: &GroupName, member: MemberId, now: Instant) {
        if let Some(session) = self.by_member.get_mut(&(group.clone(), member)) {
            session.heard = session.heard.max(now);
        }
    }

    /// A member's session.
    pub fn get(&self, group: &GroupName, member: MemberId) -> Option<Session> {
        self.by_member.get(&(group.clone(), member)).copied()
    }

    /// Who was silent for too long.
    pub fn due(&self, now: Instant) -> Vec<(GroupName, MemberId, u64)> {
        let due = self.by_member.iter().filter(|(_, session)| session.ends() <= now);
        due.map(|((group, member), session)| (group.clone(), *member, session.joins)).collect()
    }

    /// When the next session ends, if nothing is heard until then.
    pub fn next_end(&self) -> Option<Instant> {
        self.by_member.values().map(Session::ends).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Clock, SystemClock};

    #[test]
    fn silence_ends_a_session_and_a_word_prolongs_it() {
        let (start, second) = (SystemClock.now(), Duration::from_secs(1));
        let group: GroupName = "g".parse().unwrap();
        let (one, two) = (MemberId::new(1), MemberId::new(2));
        let mut sessions = Sessions::default();
        let both = [(group.clone(), one, 1, second * 10), (group.clone(), two, 1, second * 5)];
        sessions.set_members(start, both.clone());
        assert_eq!(sessions.next_end(), Some(start + second * 5));
        sessions.touch(&group, two, start + second * 4);
        assert!(sessions.due(start + second * 8).is_empty());
        assert_eq!(sessions.due(start + second * 9), [(group.clone(), two, 1)]);
        sessions.set_members(start + second * 9, both);
        assert_eq!(sessions.due(start + second * 9).len(), 1, "being looked at is not being heard of");
        sessions.set_members(start + second * 9, [(group.clone(), two, 2, second * 5)]);
        assert_eq!(sessions.next_end(), Some(start + second * 14), "who has joined again begins anew");
        assert!(sessions.get(&group, one).is_none(), "who is no member has no session");
    }
}
