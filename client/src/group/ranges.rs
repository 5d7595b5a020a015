//! A set of offsets as ranges: what is done beyond the first record that is not. Pure.
//!
//! Invariant: ranges are not empty, do not touch one another and are kept in order, so equal sets are equal values.

use std::collections::BTreeMap;

use busbar_proto::Offset;

/// Offsets, as half-open ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(BTreeMap<Offset, Offset>);

impl Ranges {
    /// Adds everything from `start` up to, but not including, `end`.
    pub(crate) fn insert(&mut self, start: Offset, end: Offset) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        if let Some((&before, &reach)) = self.0.range(..=start).next_back().filter(|(_, reach)| **reach >= start) {
            (start, end) = (before, end.max(reach));
        }
        while let Some((&next, &reach)) = self.0.range(start..=end).next() {
            self.0.remove(&next);
            end = end.max(reach);
        }
        self.0.insert(start, end);
    }

    pub(crate) fn contains(&self, offset: Offset) -> bool {
        self.0.range(..=offset).next_back().is_some_and(|(_, &end)| offset < end)
    }

    /// Takes out what lies below `from` or begins there, and returns the first offset from `from` on that is not in
    /// the set.
    pub(crate) fn absorb(&mut self, from: Offset) -> Offset {
        let mut from = from;
        while let Some(first) = self.0.first_entry().filter(|first| *first.key() <= from) {
            from = from.max(first.remove());
        }
        from
    }

    /// How many ranges.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Offset, Offset)> {
        self.0.iter().map(|(&start, &end)| (start, end))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_set(inserts in prop::collection::vec((0_u64..60, 0_u64..8), 0..40), from in 0_u64..60) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (start, length) in inserts {
                ranges.insert(Offset::new(start), Offset::new(start + length));
                set.extend(start..start + length);
                for offset in 0..70 {
                    prop_assert_eq!(ranges.contains(Offset::new(offset)), set.contains(&offset));
                }
                let runs = set.iter().filter(|&&offset| offset == 0 || !set.contains(&(offset - 1))).count();
                prop_assert_eq!(ranges.count(), runs);
            }
            let next = (from..).find(|offset| !set.contains(offset)).expect("an end");
            prop_assert_eq!(ranges.absorb(Offset::new(from)), Offset::new(next));
            set.retain(|&offset| offset >= next);
            let left: Vec<_> = ranges.iter().flat_map(|(start, end)| start.get()..end.get()).collect();
            prop_assert_eq!(left, set.into_iter().collect::<Vec<_>>());
        }
    }
}
