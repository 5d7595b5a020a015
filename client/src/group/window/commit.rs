//! What of a window goes on record, and what of it is there.
//!
//! Invariant: what is on record never goes back, apart from the mark of a partition that is given up.

use std::collections::BTreeMap;

use busbar_proto::Offset;
use bytes::Bytes;
use tokio::time::Instant;

use super::{LEAD_MAX, LEAD_MIN, Past, Phase, State, Window, entry::Entry};

/// Counts changes of what is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u64);

/// What is to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) offset: Offset,
    pub(crate) state: Bytes,
    pub(crate) record_time_ms: i64,
    version: Version,
    mark: Offset,
}

impl<R> Window<R> {
    pub(super) fn change(&mut self) -> Version {
        self.version = Version(self.version.0 + 1);
        self.version
    }

    /// What has changed so far; on record once [`Self::is_durable`] says so.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn is_durable(&self, version: Version) -> bool {
        version <= self.durable
    }

    /// Whether there is something to commit.
    pub(crate) fn is_dirty(&self) -> bool {
        self.version > self.durable || self.mark_is_low()
    }

    /// Whether the next record waits for that, or soon will.
    pub(crate) fn is_urgent(&self) -> bool {
        let announced = self.trial.and_then(|offset| self.entries.get(&offset)).map(|entry| entry.phase);
        self.mark_is_low() || matches!(announced, Some(Phase::Announced { at }) if at > self.durable)
    }

    fn mark_is_low(&self) -> bool {
        self.handed_end.advance(self.lead / 2) > self.mark || self.next_up() >= Some(self.mark)
    }

    /// The furthest record whose turn it is, but for what must be on record first.
    fn next_up(&self) -> Option<Offset> {
        self.ready.first().max(self.again.first().map(|(_, offset)| offset)).copied()
    }

    /// What is to be committed now.
    pub(crate) fn snapshot(&mut self, now: Instant) -> Snapshot {
        self.lead = (self.handed_lately * 4).clamp(LEAD_MIN, LEAD_MAX);
        self.handed_lately = 0;
        let next = self.next_up().map_or(self.handed_end, |offset| self.handed_end.max(offset));
        let mark = next.advance(self.lead).max(self.suspect_end).max(self.mark);
        self.snapshot_with(mark, now)
    }

    /// What is to be committed when the partition is given up: nothing more is handed out after this.
    pub(crate) fn last_snapshot(&mut self, now: Instant) -> Snapshot {
        if let Some(offset) = self.trial.take() {
            // Announced, and never handed out.
            if let Some(entry) = self.entries.get_mut(&offset).filter(|e| matches!(e.phase, Phase::Announced { .. })) {
                entry.deliveries -= 1;
                entry.phase = Phase::Queued;
                self.queue(offset);
            }
        }
        let in_doubt = |entry: &Entry<R>| entry.suspect || matches!(entry.phase, Phase::Out { .. });
        let last = self.entries.iter().rev().find(|(_, entry)| in_doubt(entry)).map(|(offset, _)| offset.advance(1));
        let not_taken = (self.suspect_end > self.reach).then_some(self.suspect_end);
        // Should it be kept after all, the mark is low, and goes on record anew first.
        self.mark = last.max(not_taken).unwrap_or(self.prefix).max(self.prefix);
        self.change();
        self.snapshot_with(self.mark, now)
    }

    fn snapshot_with(&self, mark: Offset, now: Instant) -> Snapshot {
        // What ended an earlier holder does not end this one as long as it is not taken.
        let settled = |(&offset, past): (&Offset, &Past)| (offset, Past { out: false, ..*past });
        let mut past: BTreeMap<_, _> = self.inherited.iter().map(settled).collect();
        past.extend(self.entries.iter().filter_map(|(&offset, entry)| Some((offset, entry.past(now)?))));
        let mark = mark.max(self.prefix);
        let state = State { done: self.done.clone(), mark, past, seen: self.seen.to_vec() }.encode(self.prefix);
        let (offset, record_time_ms) = (self.prefix, self.newest_ms);
        Snapshot { offset, state, record_time_ms, version: self.version, mark }
    }

    /// A snapshot is on record.
    pub(crate) fn committed(&mut self, snapshot: &Snapshot) {
        self.durable = self.durable.max(snapshot.version);
        self.mark = self.mark.max(snapshot.mark);
    }
}
