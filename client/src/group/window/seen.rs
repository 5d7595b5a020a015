//! What was acknowledged last, by identity: so many of them, the oldest forgotten first. Pure.
//!
//! Invariant: an identity is in it once; never more than the bound.

use std::collections::{HashSet, VecDeque};

/// The identities of records that were acknowledged.
#[derive(Debug, Default)]
pub(super) struct Seen {
    ids_max: usize,
    /// Oldest first.
    order: VecDeque<u64>,
    ids: HashSet<u64>,
}

impl Seen {
    /// The newest `ids_max` of what an earlier holder remembered, oldest first.
    pub(super) fn new(ids_max: usize, remembered: &[u64]) -> Self {
        let mut seen = Self { ids_max, ..Self::default() };
        remembered.iter().for_each(|&id| seen.note(id));
        seen
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.ids.contains(&id)
    }

    pub(super) fn note(&mut self, id: u64) {
        if self.ids_max == 0 || !self.ids.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > self.ids_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    /// Oldest first.
    pub(super) fn to_vec(&self) -> Vec<u64> {
        self.order.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut seen = Seen::new(3, &[1, 2, 2, 3, 4]);
        assert_eq!(seen.to_vec(), [2, 3, 4]);
        seen.note(3);
        seen.note(5);
        assert_eq!(seen.to_vec(), [3, 4, 5]);
        assert!(seen.contains(5) && !seen.contains(2));
        let mut off = Seen::new(0, &[1]);
        off.note(2);
        assert!(!off.contains(1) && !off.contains(2) && off.to_vec().is_empty());
    }
}
