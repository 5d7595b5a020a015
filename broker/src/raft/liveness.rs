//! Which peers are alive, judged once for the whole node instead of once in each raft group: every node sends every peer a
//! *beat* on the control lane, and one that has been silent for longer than the patience is suspect. Pure: the time is
//! given.
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

#[derive(Clone, Copy, Debug)]
struct Peer {
    heard: Instant,
    boot: Option<Boot>,
}

/// See the module.
#[derive(Debug)]
pub struct Liveness {
    patience: Duration,
    since: Instant,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
}

impl Liveness {
    /// Nobody heard yet. `patience`: the longest silence of a node that lives.
    pub fn new(patience: Duration, now: Instant) -> Self {
        Self { patience, since: now, peers: Mutex::default() }
    }

    /// A word from a peer.
    pub fn heard(&self, node: NodeId, now: Instant) {
        self.peers.lock().entry(node).or_insert(Peer { heard: now, boot: None }).heard = now;
    }

    /// A peer has connected.
    pub fn greeted(&self, node: NodeId, boot: Boot, now: Instant) -> Greeting {
        let mut peers = self.peers.lock();
        let peer = peers.entry(node).or_insert(Peer { heard: now, boot: None });
        peer.heard = now;
        match peer.boot.replace(boot) {
            None => Greeting::First,
            Some(known) if known == boot => Greeting::Again,
            Some(_) => Greeting::Restarted,
        }
    }

    /// Whether a node has been silent for longer than the patience.
    pub fn is_suspect(&self, node: NodeId, now: Instant) -> bool {
        let heard = self.peers.lock().get(&node).map_or(self.since, |peer| peer.heard);
        now.saturating_duration_since(heard) > self.patience
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
