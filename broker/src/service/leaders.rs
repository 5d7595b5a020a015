//! Who leads which group, as far as this node has heard: from its own replicas and from the other nodes' reports. A
//! report of a higher term wins; a leader that stays silent is forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use busbar_proto::{GroupId, NodeId, Term};
use parking_lot::Mutex;
use tokio::sync::watch;

/// A node is taken for dead when it has not reported for this long.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);

/// See the module.
pub struct Leaders {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    led: BTreeMap<GroupId, (Term, NodeId)>,
    heard: BTreeMap<NodeId, Instant>,
    /// Since when reports of a node are waited for.
    expected: BTreeMap<NodeId, Instant>,
}

impl Default for Leaders {
    fn default() -> Self {
        Self { state: Mutex::default(), version: watch::Sender::new(1) }
    }
}

impl Leaders {
    /// Takes a node's full report of the groups it leads.
    pub fn report(&self, node: NodeId, now: Instant, groups: impl IntoIterator<Item = (GroupId, Term)>) {
        let mut state = self.state.lock();
        let mut changed = state.heard.insert(node, now).is_none_or(|last| now.duration_since(last) > SILENCE_MAX);
        let mut still = BTreeSet::new();
        for (group, term) in groups {
            still.insert(group);
            let known = state.led.get(&group).copied();
            if known.is_none_or(|(known_term, leader)| term > known_term || (term == known_term && leader != node)) {
                state.led.insert(group, (term, node));
                changed = true;
            }
        }
        let before = state.led.len();
        state.led.retain(|group, (_, leader)| *leader != node || still.contains(group));
        changed |= state.led.len() != before;
        drop(state);
        if changed {
            self.bump();
        }
    }

    /// Forgets what nodes led that have been silent too long; the client then asks again.
    pub fn expire(&self, now: Instant) {
        let mut state = self.state.lock();
        let State { led, heard, .. } = &mut *state;
        let before = led.len();
        led.retain(|_, (_, leader)| heard.get(leader).is_some_and(|last| now.duration_since(*last) <= SILENCE_MAX));
        let changed = led.len() != before;
        drop(state);
        if changed {
            self.bump();
        }
    }

    /// The leader of a group and its term.
    pub fn leader(&self, group: GroupId) -> Option<(NodeId, Term)> {
        self.state.lock().led.get(&group).map(|&(term, node)| (node, term))
    }

    /// Whether a node has reported lately.
    pub fn is_alive(&self, node: NodeId, now: Instant) -> bool {
        self.state.lock().heard.get(&node).is_some_and(|last| now.duration_since(*last) <= SILENCE_MAX)
    }

    /// From now on reports of these nodes are waited for.
    pub fn expect(&self, now: Instant, nodes: impl IntoIterator<Item = NodeId>) {
        let mut state = self.state.lock();
        for node in nodes {
            state.expected.entry(node).or_insert(now);
        }
    }

    /// Whether a node has had the time to report and has not: a node that came, or that we learned of, a moment ago is
    /// neither alive nor silent.
    pub fn is_silent(&self, node: NodeId, now: Instant) -> bool {
        let state = self.state.lock();
        let since = state.heard.get(&node).or_else(|| state.expected.get(&node));
        since.is_some_and(|since| now.duration_since(*since) > SILENCE_MAX)
    }

    /// Tells watchers that something that clients are told has changed.
    pub fn bump(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Follows changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Clock, SystemClock};

    #[test]
    fn a_higher_term_wins_and_silence_is_forgotten() {
        let (leaders, now) = (Leaders::default(), SystemClock.now());
        let (one, two, group) = (NodeId::new(1), NodeId::new(2), GroupId::new(7));
        leaders.report(one, now, [(group, Term::new(3))]);
        leaders.report(two, now, [(group, Term::new(2))]);
        assert_eq!(leaders.leader(group), Some((one, Term::new(3))));
        leaders.report(two, now, [(group, Term::new(4))]);
        assert_eq!(leaders.leader(group), Some((two, Term::new(4))));
        leaders.report(one, now, []);
        assert_eq!(leaders.leader(group), Some((two, Term::new(4))), "a follower's report changes nothing");
        let later = now + SILENCE_MAX * 2;
        leaders.report(one, later, []);
        leaders.expire(later);
        assert_eq!(leaders.leader(group), None);
        assert!(leaders.is_alive(one, later) && !leaders.is_alive(two, later));
    }

    #[test]
    fn a_node_is_silent_only_after_it_had_time_to_report() {
        let (leaders, now, one) = (Leaders::default(), SystemClock.now(), NodeId::new(1));
        assert!(!leaders.is_silent(one, now), "nobody waits for it");
        leaders.expect(now, [one]);
        let later = now + SILENCE_MAX * 2;
        leaders.expect(later, [one]);
        assert!(!leaders.is_silent(one, now) && !leaders.is_alive(one, now));
        assert!(leaders.is_silent(one, later), "waiting again does not begin anew");
        leaders.report(one, later, []);
        assert!(!leaders.is_silent(one, later));
    }
}
