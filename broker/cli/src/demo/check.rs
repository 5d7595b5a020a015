//! The demo's check, pure: what was acknowledged against what was read. A record that was never acknowledged may have
//! been stored or not; an acknowledged one must be there once, where the acknowledgement said, and in order.

use std::collections::HashMap;

use serde::Serialize;

/// An acknowledged record: its number (publishing order) and the offset it was acknowledged at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acknowledged {
    pub(super) number: u64,
    pub(super) offset: u64,
}

/// A record as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadRecord {
    pub(super) number: u64,
    pub(super) offset: u64,
}

/// What the check found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// Acknowledged.
    pub(super) acknowledged: u64,
    /// Not acknowledged in time.
    pub(super) failed: u64,
    /// Acknowledged, and not read.
    pub(super) lost: u64,
    /// Read at another offset than acknowledged.
    pub(super) misplaced: u64,
    /// Read more than once.
    pub(super) repeated: u64,
    /// Read after a record that was published later, or stored behind a gap.
    pub(super) out_of_order: u64,
}

impl Verdict {
    pub(super) fn of(acknowledged: &[Acknowledged], failed: u64, read: &[ReadRecord]) -> Self {
        let mut verdict = Self { acknowledged: acknowledged.len() as u64, failed, ..Self::default() };
        let mut found = HashMap::with_capacity(read.len());
        for record in read {
            if found.insert(record.number, record.offset).is_some() {
                verdict.repeated += 1;
            }
        }
        for record in acknowledged {
            match found.get(&record.number) {
                None => verdict.lost += 1,
                Some(&offset) if offset != record.offset => verdict.misplaced += 1,
                Some(_) => {}
            }
        }
        // `a` was read just before `b`; offsets are dense.
        let in_order = |a: ReadRecord, b: ReadRecord| b.number > a.number && b.offset == a.offset + 1;
        verdict.out_of_order = read.windows(2).filter(|pair| !in_order(pair[0], pair[1])).count() as u64;
        verdict
    }

    /// Whether the promise was kept: all of it, and everything published got through.
    pub(super) fn holds(&self) -> bool {
        let Self { acknowledged, failed, lost, misplaced, repeated, out_of_order } = *self;
        acknowledged > 0 && [failed, lost, misplaced, repeated, out_of_order] == [0; 5]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_anomaly_is_counted_as_itself() {
        let sound = Verdict { acknowledged: 3, ..Verdict::default() };
        let acknowledged = [(0, 0), (1, 1), (2, 2)].map(|(number, offset)| Acknowledged { number, offset });
        for (name, read, want) in [
            ("all well", &[(0, 0), (1, 1), (2, 2)][..], sound),
            ("one more, never acknowledged", &[(0, 0), (1, 1), (2, 2), (3, 3)], sound),
            ("the last is lost", &[(0, 0), (1, 1)], Verdict { lost: 1, ..sound }),
            ("one in the middle is lost", &[(0, 0), (2, 2)], Verdict { lost: 1, out_of_order: 1, ..sound }),
            ("nothing was read", &[], Verdict { lost: 3, ..sound }),
            ("read twice", &[(0, 0), (1, 1), (1, 1), (2, 2)], Verdict { repeated: 1, out_of_order: 1, ..sound }),
            (
                "stored twice",
                &[(0, 0), (1, 1), (2, 2), (2, 3)],
                Verdict { repeated: 1, misplaced: 1, out_of_order: 1, ..sound },
            ),
            ("swapped", &[(1, 0), (0, 1), (2, 2)], Verdict { misplaced: 2, out_of_order: 1, ..sound }),
        ] {
            let read: Vec<_> = read.iter().map(|&(number, offset)| ReadRecord { number, offset }).collect();
            let found = Verdict::of(&acknowledged, 0, &read);
            assert_eq!(found, want, "{name}");
            assert_eq!(found.holds(), want == sound, "{name}");
        }
    }

    #[test]
    fn a_failed_record_or_none_at_all_is_no_success() {
        assert!(!Verdict::of(&[], 0, &[]).holds());
        assert!(!Verdict { acknowledged: 1, failed: 1, ..Verdict::default() }.holds());
    }
}
