//! Which peers are alive, judged once for the whole node instead of once in each raft group: every node sends every peer a
//! *beat* on the control lane, and one that has been silent for longer than the patience is suspect. Pure: the time is
//! given.
//!
//! A cluster that has more to do than it can is slow, not dead, and electing leaders for thousands of groups makes it slower.
//! So the patience learns: whoever is heard again after it was suspected, as the same process, was suspected too early, and
//! has twice the patience from then on, up to [`PATIENCE_MAX_TIMES`] times; that is forgotten as slowly as it was learned
//! fast. And time in which this node itself did not get to run is nobody's silence ([`Liveness::looked`]).
//!
//! Invariants: a node is suspected only for silence, never for what it says; one that was never heard has the patience from
//! this table's beginning on; a suspicion ends with the next word.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use busbar_proto::NodeId;
use parking_lot::Mutex;

/// Tells two runs of one node apart; made anew by each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot(u64);

impl Boot {
    /// Of this value.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The value.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// What a hello says of the node that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// Its first one here.
    First,
    /// The same run of the process connects again.
    Again,
    /// The process was started anew: whatever it led it leads no more.
    Restarted,
}

/// The largest patience, in units of the smallest.
pub const PATIENCE_MAX_TIMES: u32 = 8;
/// A lesson is half forgotten after so long without another.
const FORGET_AFTER: Duration = Duration::from_secs(30);
/// Looks that are late by more than this much were held up.
const LATE: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug)]
struct Peer {
    heard: Instant,
    boot: Option<Boot>,
    /// How many times the patience it has, and since when.
    times: u32,
    learned: Instant,
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self { heard: now, boot: None, times: 1, learned: now }
    }

    /// A word from it: was it suspected although it lived?
    fn hear(&mut self, patience: Duration, now: Instant) {
        if now.saturating_duration_since(self.heard) > patience * self.times {
            (self.times, self.learned) = ((self.times * 2).min(PATIENCE_MAX_TIMES), now);
        } else if self.times > 1 && now.saturating_duration_since(self.learned) > FORGET_AFTER {
            (self.times, self.learned) = (self.times / 2, now);
        }
        self.heard = self.heard.max(now);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Liveness {
    patience: Duration,
    since: Instant,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    looked: Mutex<Instant>,
}

impl Liveness {
    /// Nobody heard yet. `patience`: the longest silence of a node that lives.
    pub fn new(patience: Duration, now: Instant) -> Self {
        Self { patience, since: now, peers: Mutex::default(), looked: Mutex::new(now) }
    }

    /// A word from a peer.
    pub fn heard(&self, node: NodeId, now: Instant) {
        self.peers.lock().entry(node).or_insert_with(|| Peer::new(now)).hear(self.patience, now);
    }

    /// This node looks for silent ones, as it does every `beat`. When it comes late it was held up, and so was what it
    /// would have heard: that time does not count.
    pub fn looked(&self, beat: Duration, now: Instant) {
        let before = std::mem::replace(&mut *self.looked.lock(), now);
        let late = now.saturating_duration_since(before).saturating_sub(beat);
        if late > LATE {
            self.peers.lock().values_mut().for_each(|peer| peer.heard = (peer.heard + late).min(now));
        }
    }

    /// A peer has connected.
    pub fn greeted(&self, node: NodeId, boot: Boot, now: Instant) -> Greeting {
        let mut peers = self.peers.lock();
        let peer = peers.entry(node).or_insert_with(|| Peer::new(now));
        match peer.boot.replace(boot) {
            None => {
                peer.heard = now;
                Greeting::First
            }
            Some(known) if known == boot => {
                peer.hear(self.patience, now);
                Greeting::Again
            }
            Some(_) => {
                *peer = Peer { boot: Some(boot), ..Peer::new(now) };
                Greeting::Restarted
            }
        }
    }

    /// Whether a node has been silent for longer than the patience.
    pub fn is_suspect(&self, node: NodeId, now: Instant) -> bool {
        let (heard, times) = self.peers.lock().get(&node).map_or((self.since, 1), |peer| (peer.heard, peer.times));
        now.saturating_duration_since(heard) > self.patience * times
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Clock as _, SystemClock};

    const PATIENCE: Duration = Duration::from_millis(400);
    const NODE: NodeId = NodeId::new(2);

    #[test]
    fn silence_is_suspect_and_a_word_ends_it() {
        let begun = SystemClock.now();
        let liveness = Liveness::new(PATIENCE, begun);
        assert!(!liveness.is_suspect(NODE, begun + PATIENCE), "it may not have had the time yet");
        assert!(liveness.is_suspect(NODE, begun + PATIENCE * 2));
        let later = begun + PATIENCE * 3;
        liveness.heard(NODE, later);
        assert!(!liveness.is_suspect(NODE, later + PATIENCE));
        assert!(liveness.is_suspect(NODE, later + PATIENCE + Duration::from_millis(1)));
        assert!(!liveness.is_suspect(NODE, begun), "a clock that was read earlier");
    }

    #[test]
    fn patience_is_learned_fast_and_forgotten_slowly() {
        let begun = SystemClock.now();
        let liveness = Liveness::new(PATIENCE, begun);
        let greeted = liveness.greeted(NODE, Boot::new(7), begun);
        assert_eq!(greeted, Greeting::First);
        let (mut now, mut silence) = (begun, PATIENCE);
        for _ in 0..3 {
            now += silence + Duration::from_millis(1);
            assert!(liveness.is_suspect(NODE, now));
            liveness.heard(NODE, now);
            silence *= 2;
            assert!(!liveness.is_suspect(NODE, now + silence), "it has twice the patience now");
        }
        now += silence * 2;
        liveness.heard(NODE, now);
        assert!(liveness.is_suspect(NODE, now + PATIENCE * PATIENCE_MAX_TIMES + LATE), "there is a most");
        for _ in 0..3 {
            for _ in 0..400 {
                now += Duration::from_millis(100);
                liveness.heard(NODE, now);
            }
        }
        assert!(liveness.is_suspect(NODE, now + PATIENCE + LATE), "all is forgotten");
        // One that was dead and comes back as a new process was no lesson.
        now += PATIENCE * 3;
        assert_eq!(liveness.greeted(NODE, Boot::new(8), now), Greeting::Restarted);
        assert!(liveness.is_suspect(NODE, now + PATIENCE + LATE));
    }

    #[test]
    fn time_in_which_this_node_did_not_run_is_nobodys_silence() {
        let begun = SystemClock.now();
        let beat = Duration::from_millis(100);
        let liveness = Liveness::new(PATIENCE, begun);
        liveness.heard(NODE, begun);
        let mut now = begun;
        for _ in 0..3 {
            now += beat;
            liveness.looked(beat, now);
        }
        now += PATIENCE * 5;
        liveness.looked(beat, now);
        assert!(!liveness.is_suspect(NODE, now), "it was held up itself");
        for _ in 0..4 {
            now += beat;
            liveness.looked(beat, now);
        }
        assert!(liveness.is_suspect(NODE, now), "what came before that counts on");
    }

    #[test]
    fn a_new_process_is_told_from_a_new_connection() {
        let now = SystemClock.now();
        let liveness = Liveness::new(PATIENCE, now);
        liveness.heard(NODE, now);
        assert_eq!(liveness.greeted(NODE, Boot::new(7), now), Greeting::First);
        assert_eq!(liveness.greeted(NODE, Boot::new(7), now), Greeting::Again);
        assert_eq!(liveness.greeted(NODE, Boot::new(8), now), Greeting::Restarted);
        assert!(!liveness.is_suspect(NODE, now + PATIENCE));
    }
}
