//! One partition as a group member works on it: which records are in the application's hands, which wait for another
//! delivery, which are done, and what of that must be on record before the next one is handed out. Pure: time and
//! randomness are given, records are whatever the caller puts in.
//!
//! ```text
//!  offsets:  ######  .. ## . ### ..      ......      (not read yet)
//!            done  ^ prefix      ^ handed_end  ^ mark
//!
//!  take --> [ queued ] --hand_out--> [ out ] --ack--> done
//!               ^                      | nack, lease over
//!               '---- [ parked ] <-----+---- reject, too often ----> [ doomed ] --buried--> done
//! ```
//! A record below the mark *may* have been handed out: that much is on record before it is. Whoever gets the partition
//! after a crash finds suspects there: those below the mark that are not done. It hands them out one at a time, and
//! each only once that delivery is on record, so that a record that ends its consumer is counted, and nobody else.
//!
//! Invariants:
//! - everything below `prefix` is done; every record from there up to `reach` is either done or an entry;
//! - an entry without a failed delivery is handed out only below the mark that is on record, another only once its
//!   last failure is; a suspect only on trial, of which there is one at a time;
//! - entries, their bytes and the encoded state stay within the policy and [`STATE_BYTES_MAX`].

mod entry;
#[cfg(test)]
mod model_tests;
mod settle;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use busbar_proto::Offset;
use bytes::Bytes;
use tokio::time::Instant;

use self::entry::{Entry, Phase};
pub(crate) use self::settle::{Stale, Verdict};
use super::{
    ranges::Ranges,
    state::{Past, STATE_BYTES_MAX, State, WAIT_MAX},
};
use crate::retry::BackoffPolicy;

/// Records that the mark runs ahead of what was handed out; adapts to the rate between these.
const LEAD_MIN: u64 = 64;
const LEAD_MAX: u64 = 4096;

/// How records are handed out, and again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) lease: Duration,
    pub(crate) backoff: BackoffPolicy,
    pub(crate) deliveries_max: u32,
    /// Records that are neither done nor still with the broker.
    pub(crate) records_max: usize,
    pub(crate) bytes_max: usize,
    /// A record waits until the one of its key before it is done.
    pub(crate) by_key: bool,
}

/// The time, and a random number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) now: Instant,
    pub(crate) unix_ms: i64,
    pub(crate) random: u64,
}

/// Counts changes of what is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u64);

/// A record as it is put in.
#[derive(Debug)]
pub(crate) struct Taken<R> {
    pub(crate) offset: Offset,
    pub(crate) timestamp_ms: i64,
    pub(crate) bytes: usize,
    /// A hash of the record's key.
    pub(crate) key: Option<u64>,
    pub(crate) record: R,
}

/// A record as it is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handout {
    pub(crate) offset: Offset,
    /// Which delivery this is, from 1; tells it from earlier and later ones.
    pub(crate) delivery: u32,
    pub(crate) on_trial: bool,
}

/// What is to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) offset: Offset,
    pub(crate) state: Bytes,
    pub(crate) record_time_ms: i64,
    version: Version,
    mark: Offset,
}

/// A record that is to be dead-lettered.
#[derive(Debug)]
pub(crate) struct Burial<'a, R> {
    pub(crate) record: &'a R,
    pub(crate) deliveries: u32,
    pub(crate) reason: Arc<str>,
    /// Of the first delivery, 0 = unknown; in milliseconds since the Unix epoch.
    pub(crate) first_ms: i64,
    /// When the last delivery failed.
    pub(crate) last_ms: i64,
}

#[derive(Debug)]
pub(crate) struct Window<R> {
    policy: Policy,
    /// Everything below is done.
    prefix: Offset,
    /// Done beyond it.
    done: Ranges,
    /// The next offset to take.
    reach: Offset,
    entries: BTreeMap<Offset, Entry<R>>,
    bytes: usize,
    /// Queued, never handed out here, and nothing but the mark in the way.
    ready: BTreeSet<Offset>,
    /// Queued for another delivery, once their failure is on record.
    again: BTreeSet<(Version, Offset)>,
    /// Queued for their trial.
    suspects: BTreeSet<Offset>,
    trial: Option<Offset>,
    /// Ends of leases and of pauses.
    timers: BTreeSet<(Instant, Offset)>,
    /// With [`Policy::by_key`]: by key, those that are not done; only the first may be handed out.
    keys: HashMap<u64, VecDeque<Offset>>,
    /// Doomed, and nobody has asked for them yet.
    doomed: Vec<Offset>,
    /// What earlier holders left on record about records not taken yet.
    inherited: BTreeMap<Offset, Past>,
    /// Below this, what was inherited is suspect.
    suspect_end: Offset,
    /// After the last record handed out.
    handed_end: Offset,
    handed_lately: u64,
    lead: u64,
    /// Time stamp of the newest record that is done.
    newest_ms: i64,
    version: Version,
    durable: Version,
    /// The mark that is on record.
    mark: Offset,
}

impl<R> Window<R> {
    /// Goes on from what was committed.
    pub(crate) fn new(policy: Policy, offset: Offset, state: State, record_time_ms: i64) -> Self {
        let State { mut done, mark, past } = state;
        let prefix = done.absorb(offset);
        Self {
            policy,
            prefix,
            done,
            reach: prefix,
            entries: BTreeMap::new(),
            bytes: 0,
            ready: BTreeSet::new(),
            again: BTreeSet::new(),
            suspects: BTreeSet::new(),
            trial: None,
            timers: BTreeSet::new(),
            keys: HashMap::new(),
            doomed: Vec::new(),
            inherited: past,
            suspect_end: mark,
            handed_end: prefix,
            handed_lately: 0,
            lead: LEAD_MIN,
            newest_ms: record_time_ms,
            version: Version::default(),
            durable: Version::default(),
            mark,
        }
    }

    /// Where to read on.
    pub(crate) fn reach(&self) -> Offset {
        self.reach
    }

    /// Everything below is done.
    #[cfg(test)]
    pub(crate) fn prefix(&self) -> Offset {
        self.prefix
    }

    /// Whether one more record may be taken. Without entries always: nothing else could make room.
    pub(crate) fn has_room(&self) -> bool {
        if self.entries.is_empty() {
            return true;
        }
        let pasts = self.entries.len() + self.inherited.len() + 1;
        let state_bytes = State::bytes_max(self.done.count() + 1, pasts, self.span() + LEAD_MAX + 1);
        self.entries.len() < self.policy.records_max
            && self.bytes < self.policy.bytes_max
            && state_bytes <= STATE_BYTES_MAX
    }

    /// Offsets that the state reaches over.
    fn span(&self) -> u64 {
        self.reach.max(self.suspect_end).max(self.mark).distance_from(self.prefix)
    }

    /// Takes the next record; `false` when it is done already, or was taken before. Offsets left out are counted as
    /// done: there is nothing there any more.
    pub(crate) fn take(&mut self, taken: Taken<R>, now: Instant) -> bool {
        let Taken { offset, timestamp_ms, bytes, key, record } = taken;
        if offset < self.reach {
            return false;
        }
        self.skip_to(offset);
        self.reach = offset.advance(1);
        let past = self.inherited.remove(&offset);
        if offset < self.prefix || self.done.contains(offset) {
            return false;
        }
        let Past { deliveries, out, first_ms, wait } = past.unwrap_or(Past::NONE);
        let suspect = offset < self.suspect_end;
        let mut entry = Entry {
            record,
            timestamp_ms,
            bytes,
            key: key.filter(|_| self.policy.by_key),
            deliveries,
            first_ms,
            failure: None,
            since: Version::default(),
            suspect,
            phase: Phase::Queued,
        };
        let spent = deliveries >= self.policy.deliveries_max;
        if spent {
            let reason = match out {
                true => "its last delivery was never settled: the consumer vanished",
                false => "its deliveries were used up",
            };
            (entry.failure, entry.phase) = (Some((reason.into(), 0)), Phase::Doomed);
            self.doomed.push(offset);
        } else if wait > Duration::ZERO {
            entry.phase = Phase::Parked { until: now + wait };
            self.timers.insert((now + wait, offset));
        }
        if let Some(key) = entry.key {
            self.keys.entry(key).or_default().push_back(offset);
        }
        self.bytes += bytes;
        self.entries.insert(offset, entry);
        self.queue(offset);
        true
    }

    /// There is nothing below `offset` any more that was not taken.
    pub(crate) fn skip_to(&mut self, offset: Offset) {
        if offset <= self.reach {
            return;
        }
        self.inherited = self.inherited.split_off(&offset);
        self.finish_range(self.reach, offset);
        self.reach = offset;
    }

    fn finish_range(&mut self, start: Offset, end: Offset) {
        if start <= self.prefix {
            self.prefix = self.prefix.max(end);
        } else {
            self.done.insert(start, end);
        }
        self.prefix = self.done.absorb(self.prefix);
        self.change();
    }

    /// Puts a queued entry where its turn will be found.
    fn queue(&mut self, offset: Offset) {
        let Some(entry) = self.entries.get(&offset).filter(|entry| entry.phase == Phase::Queued) else { return };
        let first_of_key = |key| self.keys.get(&key).and_then(VecDeque::front) == Some(&offset);
        if !entry.key.is_none_or(first_of_key) {
            return;
        }
        if entry.suspect {
            self.suspects.insert(offset);
        } else if entry.deliveries > 0 {
            self.again.insert((entry.since, offset));
        } else {
            self.ready.insert(offset);
        }
    }

    /// Looks at the clock; returns the records whose lease ran out.
    pub(crate) fn tick(&mut self, clock: &Clock) -> Vec<Offset> {
        let mut expired = Vec::new();
        while let Some(&(at, offset)) = self.timers.first().filter(|(at, _)| *at <= clock.now) {
            self.timers.remove(&(at, offset));
            let Some(entry) = self.entries.get_mut(&offset) else { continue };
            match entry.phase {
                Phase::Out { .. } => {
                    expired.push(offset);
                    self.fail(offset, None, "its lease ran out".into(), clock);
                }
                Phase::Parked { .. } => {
                    entry.phase = Phase::Queued;
                    self.queue(offset);
                }
                Phase::Queued | Phase::Announced { .. } | Phase::Doomed => {}
            }
        }
        expired
    }

    /// The next record that may be handed out. `may_try`: no other partition of this member has one on trial.
    pub(crate) fn hand_out(&mut self, clock: &Clock, may_try: bool) -> Option<Handout> {
        let on_trial = self.next_on_trial(clock, may_try);
        let offset = on_trial.or_else(|| self.next_in_turn())?;
        let until = clock.now + self.policy.lease;
        let entry = self.entries.get_mut(&offset)?;
        if on_trial.is_none() {
            entry.count(clock);
        }
        entry.phase = Phase::Out { until };
        let delivery = entry.deliveries;
        self.timers.insert((until, offset));
        self.handed_end = self.handed_end.max(offset.advance(1));
        self.handed_lately += 1;
        Some(Handout { offset, delivery, on_trial: on_trial.is_some() })
    }

    fn next_on_trial(&mut self, clock: &Clock, may_try: bool) -> Option<Offset> {
        if let Some(offset) = self.trial {
            let phase = self.entries.get(&offset)?.phase;
            return matches!(phase, Phase::Announced { at } if at <= self.durable).then_some(offset);
        }
        let offset = if may_try { self.suspects.pop_first()? } else { return None };
        let at = self.change();
        let entry = self.entries.get_mut(&offset)?;
        entry.count(clock);
        entry.phase = Phase::Announced { at };
        self.trial = Some(offset);
        None
    }

    fn next_in_turn(&mut self) -> Option<Offset> {
        // An heir has nothing on record but the mark it found, which may lie below what failed before.
        if self.again.first().is_some_and(|(since, offset)| *since <= self.durable && *offset < self.mark) {
            return self.again.pop_first().map(|(_, offset)| offset);
        }
        let one_by_one = self.trial.is_some() || !self.suspects.is_empty();
        let may_go = self.ready.first().is_some_and(|offset| *offset < self.mark);
        if may_go && !one_by_one { self.ready.pop_first() } else { None }
    }

    /// Whether a record waits for its trial and only the member's other trial is in the way.
    pub(crate) fn wants_trial(&self) -> bool {
        self.trial.is_none() && !self.suspects.is_empty()
    }

    /// Whether records that were taken wait for a commit, a trial or a word on one that is on trial: taking more
    /// would not help.
    pub(crate) fn is_held_up(&self) -> bool {
        self.trial.is_some() || !self.suspects.is_empty() || !self.ready.is_empty()
    }

    /// Whether [`Self::take_doomed`] has any.
    pub(crate) fn has_doomed(&self) -> bool {
        !self.doomed.is_empty()
    }

    /// Whether a record of it is on trial.
    pub(crate) fn has_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// When to look again, apart from news.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// Records in the application's hands, or on their way to the dead letters.
    pub(crate) fn unsettled(&self) -> usize {
        let unsettled = |entry: &&Entry<R>| matches!(entry.phase, Phase::Out { .. } | Phase::Doomed);
        self.entries.values().filter(unsettled).count()
    }

    fn change(&mut self) -> Version {
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

    /// From now on: [`Policy::by_key`].
    pub(crate) fn keep_keys_in_order(&mut self) {
        self.policy.by_key = true;
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
        let state = State { done: self.done.clone(), mark, past }.encode(self.prefix);
        let (offset, record_time_ms) = (self.prefix, self.newest_ms);
        Snapshot { offset, state, record_time_ms, version: self.version, mark }
    }

    /// A snapshot is on record.
    pub(crate) fn committed(&mut self, snapshot: &Snapshot) {
        self.durable = self.durable.max(snapshot.version);
        self.mark = self.mark.max(snapshot.mark);
    }
}
