//! Where things are: record offsets, raft indexes and terms. An offset counts records and is what users see; an
//! index counts raft entries and stays inside the broker. They are different numbers and different types.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::number;

number!(
    /// Position of a record in its partition, from 0, dense.
    Offset(u64)
);
number!(
    /// Position of an entry in a raft group's log. Blank and membership entries take one too.
    LogIndex(u64)
);
number!(
    /// A raft term; as "leader epoch" it is stamped into batches.
    Term(u64)
);

impl Offset {
    /// The first offset of any partition.
    pub const ZERO: Self = Self(0);

    /// The offset `records` later.
    ///
    /// # Panics
    /// On overflow of 2^64 records, which no partition reaches.
    #[must_use]
    pub const fn advance(self, records: u64) -> Self {
        match self.0.checked_add(records) {
            Some(raw) => Self(raw),
            None => panic!("offset overflow"),
        }
    }

    /// Records from `earlier` to `self`; 0 when `earlier` is later.
    pub const fn distance_from(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl LogIndex {
    /// The next index.
    #[must_use]
    pub const fn next(self) -> Self {
        match self.0.checked_add(1) {
            Some(raw) => Self(raw),
            None => panic!("log index overflow"),
        }
    }

    /// The index before, if there is one.
    pub const fn prev(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }
}

/// Names one raft entry for good: two entries with equal term and index are the same entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// Term of the leader that created the entry.
    pub term: Term,
    /// Its index.
    pub index: LogIndex,
}

impl LogPosition {
    /// Position from raw numbers.
    pub const fn new(term: u64, index: u64) -> Self {
        Self { term: Term::new(term), index: LogIndex::new(index) }
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@t{}", self.index, self.term)
    }
}
