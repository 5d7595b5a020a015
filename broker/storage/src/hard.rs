//! The hard state: what must survive of a group besides its entries, as of one place in the journal.
//!
//! It is a pure function of the frames written so far: [`HardState::apply`] is run by the writer for each frame it
//! encodes and by recovery for each frame it reads, so both arrive at the same state, and recovery checks that they
//! did. Every journal file begins with the hard state of all groups, which is why older files can be recycled.
//!
//! Invariants: `first <= next`; `purged < next`; a segment end at or below `purged` is forgotten.

use std::collections::{BTreeMap, BTreeSet};

use crate::frame::{Head, Kind, u32_at, u64_at};
use crate::types::{GroupId, Position, Vote};

/// Bytes of one group in a snapshot.
const RECORD: usize = 160;
/// Bytes of an encoded [`SegmentEnd`].
pub(crate) const SEGMENT_END: usize = 64;

/// How far a group's history reaches in its segments. Everything up to `last` is durable there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentEnd {
    /// First index of the newest segment: its name.
    pub(crate) first: u64,
    /// Bytes of it that count.
    pub(crate) bytes: u64,
    /// Last entry in it.
    pub(crate) last: Position,
    /// Mark of the last entry.
    pub(crate) mark: u64,
    /// Mark of its first entry.
    pub(crate) first_mark: u64,
    /// Largest time in it.
    pub(crate) max_time_ms: i64,
    /// Header crc of its last frame.
    pub(crate) chain: u32,
}

impl SegmentEnd {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_END] {
        let numbers = [
            self.first,
            self.bytes,
            self.last.term,
            self.last.index,
            self.mark,
            self.first_mark,
            self.max_time_ms as u64,
            self.chain.into(),
        ];
        let mut bytes = [0; SEGMENT_END];
        for (slot, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(b: &[u8]) -> Option<SegmentEnd> {
        let b = b.get(..SEGMENT_END)?;
        Some(SegmentEnd {
            first: u64_at(b, 0),
            bytes: u64_at(b, 8),
            last: Position { term: u64_at(b, 16), index: u64_at(b, 24) },
            mark: u64_at(b, 32),
            first_mark: u64_at(b, 40),
            max_time_ms: u64_at(b, 48) as i64,
            chain: u32_at(b, 56),
        })
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HardState {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<Position>,
    pub(crate) purged: Option<Position>,
    /// False until the first entry or purge fixed where the log begins.
    pub(crate) started: bool,
    /// First index that is not purged.
    pub(crate) first: u64,
    /// Index after the last entry; equal to `first` when the log is empty.
    pub(crate) next: u64,
    /// Term of entry `next - 1`; meaningless when empty.
    pub(crate) last_term: u64,
    /// Mark of entry `next - 1`; meaningless when empty.
    pub(crate) last_mark: u64,
    pub(crate) segment: Option<SegmentEnd>,
}

impl HardState {
    /// Takes one frame of this group into account; `None` when the frame contradicts the state.
    #[must_use]
    pub(crate) fn apply(&mut self, head: &Head, payload: &[u8]) -> Option<()> {
        let at = Position { term: head.term, index: head.index };
        match head.kind {
            Kind::Entry => {
                if !self.started {
                    (self.started, self.first, self.next) = (true, head.index, head.index);
                }
                if head.index != self.next {
                    return None;
                }
                self.next = head.index.checked_add(1)?;
                (self.last_term, self.last_mark) = (head.term, head.mark);
            }
            Kind::Truncate => {
                let keep = if head.flavour == 0 { self.first } else { head.index.checked_add(1)?.max(self.first) };
                if keep < self.next {
                    self.next = keep;
                    (self.last_term, self.last_mark) = (head.term, head.mark);
                }
            }
            Kind::Vote => self.vote = Some(Vote { term: head.term, node: head.index, committed: head.flavour == 1 }),
            Kind::Committed => self.committed = Some(at),
            Kind::Purge => self.purge(at)?,
            Kind::Retired => {
                let end = SegmentEnd::decode(payload)?;
                self.segment = Some(end).filter(|end| end.last.index >= self.first);
            }
            Kind::Remove => *self = HardState::default(),
            Kind::Carried | Kind::Forget | Kind::Freed | Kind::Opened | Kind::Seal | Kind::Footer | Kind::Pad => {}
        }
        Some(())
    }

    fn purge(&mut self, upto: Position) -> Option<()> {
        let first = upto.index.checked_add(1)?;
        if self.started && (first < self.first || (first == self.first && self.purged.is_some())) {
            return Some(());
        }
        self.purged = Some(upto);
        self.first = first;
        self.next = if self.started { self.next.max(first) } else { first };
        self.started = true;
        self.segment = self.segment.filter(|end| end.last.index >= first);
        Some(())
    }

    fn encode(&self, group: GroupId, out: &mut Vec<u8>) {
        let vote = self.vote.unwrap_or_default();
        let flags = [
            self.vote.is_some(),
            vote.committed,
            self.committed.is_some(),
            self.purged.is_some(),
            self.started,
            self.segment.is_some(),
        ];
        let flags = flags.iter().enumerate().fold(0, |sum, (bit, on)| sum | u64::from(*on) << bit);
        let committed = self.committed.unwrap_or_default();
        let purged = self.purged.unwrap_or_default();
        let numbers = [
            group.0,
            flags,
            vote.term,
            vote.node,
            committed.term,
            committed.index,
            purged.term,
            purged.index,
            self.first,
            self.next,
            self.last_term,
            self.last_mark,
        ];
        numbers.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        out.extend_from_slice(&self.segment.map_or([0; SEGMENT_END], |end| end.encode()));
    }

    fn decode(b: &[u8]) -> Option<(GroupId, HardState)> {
        let on = |bit: u64| u64_at(b, 8) & (1 << bit) != 0;
        let position = |at: usize| Position { term: u64_at(b, at), index: u64_at(b, at + 8) };
        let state = HardState {
            vote: on(0).then(|| Vote { term: u64_at(b, 16), node: u64_at(b, 24), committed: on(1) }),
            committed: on(2).then(|| position(32)),
            purged: on(3).then(|| position(48)),
            started: on(4),
            first: u64_at(b, 64),
            next: u64_at(b, 72),
            last_term: u64_at(b, 80),
            last_mark: u64_at(b, 88),
            segment: if on(5) { Some(SegmentEnd::decode(&b[96..])?) } else { None },
        };
        Some((GroupId(u64_at(b, 0)), state))
    }
}

/// The hard state of a whole node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) groups: BTreeMap<GroupId, HardState>,
    /// Groups removed whose files may still be there.
    pub(crate) removed: BTreeSet<GroupId>,
}

impl Snapshot {
    /// Takes one journal frame into account; `None` when the frame contradicts the state.
    #[must_use]
    pub(crate) fn apply(&mut self, head: &Head, payload: &[u8]) -> Option<()> {
        match head.kind {
            Kind::Freed | Kind::Opened | Kind::Seal | Kind::Footer | Kind::Pad => {}
            Kind::Remove => {
                self.groups.remove(&head.group);
                self.removed.insert(head.group);
            }
            Kind::Forget => {
                self.removed.remove(&head.group);
            }
            _ => self.groups.entry(head.group).or_default().apply(head, payload)?,
        }
        Some(())
    }

    /// Bytes [`Snapshot::encode`] makes for so many groups.
    pub(crate) fn size_of(groups: usize, removed: usize) -> u64 {
        (16 + groups * RECORD + removed * 8) as u64
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::size_of(self.groups.len(), self.removed.len()) as usize);
        out.extend_from_slice(&(self.groups.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.removed.len() as u64).to_le_bytes());
        self.groups.iter().for_each(|(group, state)| state.encode(*group, &mut out));
        self.removed.iter().for_each(|group| out.extend_from_slice(&group.0.to_le_bytes()));
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Snapshot> {
        let (groups, removed) = (bytes.get(..16).map(|b| (u64_at(b, 0), u64_at(b, 8))))?;
        let (groups, removed) = (usize::try_from(groups).ok()?, usize::try_from(removed).ok()?);
        let body = bytes.get(16..)?;
        let (records, ids) = body.split_at_checked(groups.checked_mul(RECORD)?)?;
        if ids.len() != removed.checked_mul(8)? {
            return None;
        }
        let groups = records.chunks_exact(RECORD).map(HardState::decode).collect::<Option<_>>()?;
        let removed = ids.chunks_exact(8).map(|b| GroupId(u64_at(b, 0))).collect();
        Some(Snapshot { groups, removed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_round_trip_and_truncation() {
        let end = SegmentEnd {
            first: 1,
            bytes: 2,
            last: Position { term: 3, index: 4 },
            mark: 5,
            first_mark: 6,
            max_time_ms: -7,
            chain: 8,
        };
        let full = HardState {
            vote: Some(Vote { term: 9, node: 10, committed: true }),
            committed: Some(Position { term: 11, index: 12 }),
            purged: Some(Position { term: 13, index: 14 }),
            started: true,
            first: 15,
            next: 16,
            last_term: 17,
            last_mark: 18,
            segment: Some(end),
        };
        let snapshot = Snapshot {
            groups: [(GroupId(7), full), (GroupId(9), HardState::default())].into(),
            removed: [GroupId(1), GroupId(u64::MAX)].into(),
        };
        let bytes = snapshot.encode();
        assert_eq!(bytes.len() as u64, Snapshot::size_of(2, 2));
        assert_eq!(Snapshot::decode(&bytes), Some(snapshot));
        for cut in 0..bytes.len() {
            assert_eq!(Snapshot::decode(&bytes[..cut]), None, "cut at {cut}");
        }
    }
}
