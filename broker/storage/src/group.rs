//! One group's log in memory: what it holds, where each entry is, and how far it is durable.
//!
//! ```text
//!   first          slots.base            cache begins    durable   located      next
//!     |  segments      |      journal files     |            |        |           |
//!     [--------------- )[-----------------------:------------:--------)           )
//!                                               [ --------- tail cache --------- )
//! ```
//!
//! Invariants:
//! - `first <= slots.base <= slots.end() <= next`, `durable_next <= next`, `cache` ends at `next`;
//! - entries at or above `slots.end()` exist only in the cache and are never evicted from it;
//! - entries below `slots.base` are in segments, hence committed; nothing ever truncates below that;
//! - `committed` and `first` never go back.
//!
//! Never does I/O and never calls out: it is locked by the caller for short, and a lock on it may be held when the
//! journal's queue is locked, not the other way round.

use std::collections::{BTreeSet, VecDeque};

use crate::error::AppendError;
use crate::frame::size_of;
use crate::hard::{HardState, SegmentEnd};
use crate::types::{Entry, GroupId, LogState, Position};

/// Where in the journal an entry is. 40 bytes, one for each entry the journal holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) term: u64,
    pub(crate) mark: u64,
    pub(crate) time_ms: i64,
    /// Low half of the file's generation.
    pub(crate) tag: u32,
    /// Position of the frame, in units of 8 bytes.
    pos8: u32,
    pub(crate) len: u32,
}

impl Slot {
    pub(crate) fn new(generation: u64, pos: u64, entry: (u64, u64, i64), len: u32) -> Slot {
        let (term, mark, time_ms) = entry;
        Slot { term, mark, time_ms, tag: generation as u32, pos8: (pos / 8) as u32, len }
    }

    /// Position of the frame in its file.
    pub(crate) fn pos(&self) -> u64 {
        u64::from(self.pos8) * 8
    }

    /// Bytes of the frame.
    pub(crate) fn size(&self) -> u64 {
        size_of(self.len as usize)
    }
}

/// The run of entries that live in the journal.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub(crate) base: u64,
    run: VecDeque<Slot>,
    bytes: u64,
}

impl Slots {
    pub(crate) fn from_run(base: u64, run: VecDeque<Slot>) -> Slots {
        let bytes = run.iter().map(Slot::size).sum();
        Slots { base, run, bytes }
    }

    pub(crate) fn end(&self) -> u64 {
        self.base + self.run.len() as u64
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn get(&self, index: u64) -> Option<&Slot> {
        self.run.get(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    pub(crate) fn get_mut(&mut self, index: u64) -> Option<&mut Slot> {
        self.run.get_mut(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, &Slot)> + ExactSizeIterator {
        let base = self.base;
        self.run.iter().enumerate().map(move |(i, slot)| (base + i as u64, slot))
    }

    fn push(&mut self, slot: Slot) {
        self.bytes += slot.size();
        self.run.push_back(slot);
    }

    /// Keeps indexes below `end`.
    fn cut_to(&mut self, end: u64) {
        while self.end() > end.max(self.base) {
            self.bytes -= self.run.pop_back().map_or(0, |slot| slot.size());
        }
    }

    /// Keeps indexes from `base` on; an emptied run starts there.
    fn drop_below(&mut self, base: u64) {
        while self.base < base {
            match self.run.pop_front() {
                Some(slot) => {
                    self.bytes -= slot.size();
                    self.base += 1;
                }
                None => self.base = base,
            }
        }
        if self.run.capacity() > 1024 && self.run.capacity() / 4 > self.run.len() {
            self.run.shrink_to(self.run.len() * 2);
        }
    }

    /// First index whose mark is above `mark`.
    pub(crate) fn find_mark(&self, mark: u64) -> Option<u64> {
        let at = self.run.partition_point(|slot| slot.mark <= mark);
        (at < self.run.len()).then(|| self.base + at as u64)
    }

    /// First index from `from` on whose time is at least `time_ms`.
    pub(crate) fn find_time(&self, from: u64, time_ms: i64) -> Option<u64> {
        let skip = usize::try_from(from.saturating_sub(self.base)).ok()?;
        self.iter().skip(skip).find(|(_, slot)| slot.time_ms >= time_ms).map(|(index, _)| index)
    }
}

/// A cut that was made in memory and has not yet reached the journal.
#[derive(Clone, Copy, Debug)]
struct Cut {
    epoch: u64,
    next: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Inner {
    /// The state callers see.
    pub(crate) now: HardState,
    pub(crate) slots: Slots,
    pub(crate) cache: VecDeque<Entry>,
    pub(crate) durable_next: u64,
    /// The log's start as far as it is durable: files below it can go.
    pub(crate) first_durable: u64,
    /// Counts cuts (truncations, purges past the end); a queued write knows by it which cuts came after it.
    pub(crate) epoch: u64,
    cuts: VecDeque<Cut>,
    /// `now.committed` differs from what the journal says, and the writer knows.
    pub(crate) committed_dirty: bool,
    pub(crate) removed: bool,
    /// Truncations, purges and removals queued so far, and those of them that are durable. What they dropped is gone
    /// from memory at once, but its file must not be recycled before the journal says so, too.
    pub(crate) drops: u64,
    pub(crate) drops_durable: u64,
    /// Entries whose stored bytes are known to be damaged.
    pub(crate) damaged: BTreeSet<u64>,
}

impl Inner {
    /// The state recovery found.
    pub(crate) fn recovered(hard: HardState, slots: Slots, damaged: BTreeSet<u64>) -> Inner {
        let (durable_next, first_durable) = (hard.next, hard.first);
        Inner { now: hard, slots, durable_next, first_durable, damaged, ..Inner::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.now.first == self.now.next
    }

    /// Last entry, or the purge position of an empty log.
    pub(crate) fn last(&self) -> Option<Position> {
        if self.is_empty() {
            return self.now.purged;
        }
        Some(Position { term: self.now.last_term, index: self.now.next - 1 })
    }

    pub(crate) fn state(&self) -> LogState {
        let held = !self.is_empty();
        LogState {
            first: held.then_some(self.now.first),
            last: self.last(),
            purged: self.now.purged,
            last_mark: held.then_some(self.now.last_mark),
        }
    }

    /// Committed, but never above what is durable here.
    pub(crate) fn committed(&self) -> Option<Position> {
        let saved = self.now.committed?;
        if saved.index < self.durable_next {
            return Some(saved);
        }
        let index = self.durable_next.checked_sub(1).filter(|index| *index >= self.now.first);
        index.map_or(self.now.purged, |index| self.term_at(index).map(|term| Position { term, index }))
    }

    /// First index held by the cache.
    pub(crate) fn cache_base(&self) -> u64 {
        self.now.next - self.cache.len() as u64
    }

    pub(crate) fn cached(&self, index: u64) -> Option<&Entry> {
        self.cache.get(usize::try_from(index.checked_sub(self.cache_base())?).ok()?)
    }

    /// Entries `from..to` that are in memory, at most `count`, and no more than `bytes` but for the first.
    pub(crate) fn cached_run(&self, from: u64, to: u64, count: usize, bytes: u64) -> Vec<Entry> {
        let Some(skip) = from.checked_sub(self.cache_base()).and_then(|skip| usize::try_from(skip).ok()) else {
            return Vec::new();
        };
        let count = count.min(usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX));
        let mut sum = 0;
        let within = |entry: &&Entry| {
            let first = sum == 0;
            sum += entry.cost() as u64;
            first || sum <= bytes
        };
        self.cache.iter().skip(skip).take(count).take_while(within).cloned().collect()
    }

    /// Term of an entry in memory or journal, or of the last one in segments.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        self.term_and_mark(index).map(|(term, _)| term)
    }

    fn term_and_mark(&self, index: u64) -> Option<(u64, u64)> {
        if let Some(entry) = self.cached(index) {
            return Some((entry.term, entry.mark));
        }
        if let Some(slot) = self.slots.get(index) {
            return Some((slot.term, slot.mark));
        }
        self.now.segment.filter(|end| end.last.index == index).map(|end| (end.last.term, end.mark))
    }

    /// Refuses entries that do not belong behind the log's end.
    pub(crate) fn check_append(&self, group: GroupId, entries: &[Entry], limit: usize) -> Result<(), AppendError> {
        let mut expected = if self.now.started { self.now.next } else { entries.first().map_or(0, |e| e.index) };
        let mut before = if self.is_empty() { 0 } else { self.now.last_mark };
        for entry in entries {
            let (index, bytes) = (entry.index, entry.payload.len());
            if index != expected || index == u64::MAX {
                return Err(AppendError::NotContiguous { group, expected, found: index });
            }
            if entry.mark < before {
                return Err(AppendError::MarkWentBack { group, index, before, found: entry.mark });
            }
            if bytes > limit || entry.head_len as usize > bytes {
                return Err(AppendError::TooLarge { group, index, bytes, limit });
            }
            (expected, before) = (index + 1, entry.mark);
        }
        Ok(())
    }

    /// Takes checked entries; returns the memory they are charged with.
    pub(crate) fn push(&mut self, entries: &[Entry]) -> usize {
        let mut cost = 0;
        for entry in entries {
            if !self.now.started {
                self.begin(entry.index);
            }
            assert_eq!(entry.index, self.now.next, "entries are contiguous");
            self.now.next = entry.index + 1;
            (self.now.last_term, self.now.last_mark) = (entry.term, entry.mark);
            cost += entry.cost();
            self.cache.push_back(entry.clone());
        }
        cost
    }

    fn begin(&mut self, index: u64) {
        (self.now.started, self.now.first, self.now.next) = (true, index, index);
        (self.slots.base, self.durable_next) = (index, index);
    }

    /// Drops entries from `next` on; returns freed cache bytes and term and mark of the new last entry.
    pub(crate) fn cut(&mut self, next: u64) -> (usize, (u64, u64)) {
        let next = next.clamp(self.now.first, self.now.next);
        assert!(next >= self.slots.base, "a cut never reaches into segments");
        assert!(self.now.committed.is_none_or(|at| at.index < next), "a cut never removes what is committed");
        let mut freed = 0;
        while self.now.next > next {
            freed += self.cache.pop_back().map_or(0, |entry| entry.cost());
            self.now.next -= 1;
        }
        self.slots.cut_to(next);
        self.note_cut(next);
        let last = next.checked_sub(1).filter(|_| !self.is_empty()).and_then(|last| self.term_and_mark(last));
        (self.now.last_term, self.now.last_mark) = last.unwrap_or_default();
        self.damaged.split_off(&next);
        (freed, (self.now.last_term, self.now.last_mark))
    }

    fn note_cut(&mut self, next: u64) {
        self.epoch += 1;
        self.cuts.push_back(Cut { epoch: self.epoch, next });
        self.durable_next = self.durable_next.min(next);
    }

    /// Moves the start; returns freed cache bytes, or `None` when it already was there.
    pub(crate) fn purge(&mut self, upto: Position) -> Option<usize> {
        let first = upto.index.checked_add(1)?;
        if self.now.started && (first < self.now.first || (first == self.now.first && self.now.purged.is_some())) {
            return None;
        }
        if !self.now.started {
            self.begin(first);
        }
        (self.now.purged, self.now.first) = (Some(upto), first);
        if self.now.committed.is_none_or(|at| at.index < upto.index) {
            self.now.committed = Some(upto);
        }
        let mut freed = 0;
        while self.cache_base() < first {
            match self.cache.pop_front() {
                Some(entry) => freed += entry.cost(),
                None => break,
            }
        }
        // Writes still queued for what was dropped find no room below the new base and are skipped.
        self.now.next = self.now.next.max(first);
        self.slots.drop_below(first);
        self.durable_next = self.durable_next.max(first);
        self.damaged = self.damaged.split_off(&first);
        Some(freed)
    }

    /// Where entries written before later cuts end: everything a write of `epoch` holds from there on is gone.
    pub(crate) fn limit(&self, epoch: u64) -> u64 {
        self.cuts.iter().filter(|cut| cut.epoch > epoch).map(|cut| cut.next).min().unwrap_or(u64::MAX)
    }

    /// The cut of `epoch` and all before it reached the journal.
    pub(crate) fn cut_written(&mut self, epoch: u64) {
        self.cuts.retain(|cut| cut.epoch > epoch);
    }

    /// Entries `from..` were written; those that still exist have a place now.
    pub(crate) fn located(&mut self, epoch: u64, from: u64, slots: &[Slot]) {
        let limit = self.limit(epoch).min(self.now.next);
        for (index, slot) in (from..).zip(slots) {
            if index >= limit || index < self.slots.base {
                continue;
            }
            assert_eq!(index, self.slots.end(), "entries get their place in order");
            self.slots.push(*slot);
        }
    }

    /// Entries below `next` of a write of `epoch` are durable.
    pub(crate) fn durable(&mut self, epoch: u64, next: u64) {
        let next = next.min(self.limit(epoch)).min(self.now.next);
        self.durable_next = self.durable_next.max(next);
    }

    /// Everything up to the segment end is durable in segments. Of no account when the group was removed meanwhile.
    pub(crate) fn retired(&mut self, end: SegmentEnd) {
        if self.removed || end.last.index < self.now.first {
            return;
        }
        assert!(
            self.now.committed.is_some_and(|at| at.index >= end.last.index),
            "segments hold committed entries only"
        );
        self.now.segment = Some(end);
        self.slots.drop_below(end.last.index + 1);
    }

    /// Evicts entries up to `index` from the cache, unless they are nowhere else; returns freed bytes.
    pub(crate) fn evict(&mut self, index: u64) -> usize {
        let end = self.slots.end().min(index.saturating_add(1));
        let mut freed = 0;
        while self.cache_base() < end {
            match self.cache.pop_front() {
                Some(entry) => freed += entry.cost(),
                None => break,
            }
        }
        freed
    }

    /// Forgets everything; returns freed cache bytes.
    pub(crate) fn clear(&mut self) -> usize {
        let freed = self.cache.iter().map(Entry::cost).sum();
        let (drops, drops_durable) = (self.drops, self.drops_durable);
        *self = Inner { removed: true, drops, drops_durable, ..Inner::default() };
        freed
    }
}

#[cfg(test)]
mod tests;
