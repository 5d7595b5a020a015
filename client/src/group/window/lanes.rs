//! Records that wait for one another: those of one key, and the copies of one event. Pure.
//!
//! Invariants: a record is in a lane at most once; lanes without records are not kept.

use std::collections::{HashMap, VecDeque};

use busbar_proto::Offset;

/// Lanes by a hash of what their records have in common.
#[derive(Debug, Default)]
pub(super) struct Lanes(HashMap<u64, VecDeque<Offset>>);

impl Lanes {
    /// Puts a record at the end of its lane; whether it is the first.
    pub(super) fn enter(&mut self, lane: u64, offset: Offset) -> bool {
        let lane = self.0.entry(lane).or_default();
        lane.push_back(offset);
        lane.len() == 1
    }

    pub(super) fn is_first(&self, lane: u64, offset: Offset) -> bool {
        self.0.get(&lane).and_then(VecDeque::front) == Some(&offset)
    }

    /// Takes a record out, wherever it stands; the first of those that are left.
    pub(super) fn leave(&mut self, lane: u64, offset: Offset) -> Option<Offset> {
        let records = self.0.get_mut(&lane)?;
        match records.front() == Some(&offset) {
            true => drop(records.pop_front()),
            false => records.retain(|other| *other != offset),
        }
        let first = records.front().copied();
        if first.is_none() {
            self.0.remove(&lane);
        }
        first
    }

    /// Everyone in a lane, in order.
    pub(super) fn of(&self, lane: u64) -> Vec<Offset> {
        self.0.get(&lane).map(|records| records.iter().copied().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_goes_and_the_next_is_first() {
        let [a, b, c] = [1, 2, 3].map(Offset::new);
        let mut lanes = Lanes::default();
        assert_eq!([a, b, c].map(|offset| lanes.enter(7, offset)), [true, false, false]);
        assert!(lanes.enter(8, Offset::new(9)) && lanes.is_first(7, a) && !lanes.is_first(7, b));
        assert_eq!((lanes.leave(7, b), lanes.of(7)), (Some(a), vec![a, c]));
        assert_eq!((lanes.leave(7, a), lanes.leave(7, a), lanes.leave(7, c)), (Some(c), Some(c), None));
        assert_eq!((lanes.leave(7, c), lanes.of(7), lanes.0.len()), (None, vec![], 1));
    }
}
