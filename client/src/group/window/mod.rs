//! One partition as a group member works on it: which records are in the application's hands, which wait for another
//! delivery, which are done, and what of that must be on record before the next one is handed out. Pure: time and
//! randomness are given, records are whatever the caller puts in.
//!
//! ```text
//!  offsets:  ######  .. ## . ### ..      ......      (not read yet)
//!            done  ^ prefix      ^ handed_end  ^ mark
//!
//!  take --> [ queued ] --hand_out--> [ out ] --ack--> done
//!     |         ^                      | nack, lease over
//!     |         '---- [ parked ] <-----+---- reject, too often ----> [ doomed ] --buried--> done
//!     '-> [ copy of one not done ] -> [ delayed ] -> queued
//! ```
//! A record below the mark *may* have been handed out: that much is on record before it is. Whoever gets the partition
//! after a crash finds suspects there: those below the mark that are not done. It hands them out one at a time, and
//! each only once that delivery is on record, so that a record that ends its consumer is counted, and nobody else.
//! A record that is due far in the future was not handed out, and is no suspect.
//!
//! Records may have an identity. Of those with the same one, the first is handed out and the others wait: they are
//! dropped once it is acknowledged, and have their turn once it is given up. What was acknowledged last is remembered,
//! also on record, and dropped when it comes again.
//!
//! Invariants:
//! - everything below `prefix` is done; every record from there up to `reach` is either done or an entry;
//! - an entry without a failed delivery is handed out only below the mark that is on record, another only once its
//!   last failure is; a suspect only on trial, of which there is one at a time;
//! - of the records of one identity one at a time is out, and none once it is among the last acknowledged;
//! - a record is handed out neither before it is due nor once it has expired, by the brokers' clock;
//! - entries, their bytes and the encoded state stay within the policy and [`STATE_BYTES_MAX`].

mod commit;
#[cfg(test)]
mod dedup_model_tests;
mod entry;
mod lanes;
#[cfg(test)]
mod model_tests;
mod seen;
mod settle;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod time_tests;
mod turn;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use busbar_proto::Offset;
use tokio::time::Instant;

pub(crate) use self::{
    commit::{Snapshot, Version},
    settle::{Burial, Stale, Verdict},
};
use self::{
    entry::{Entry, Phase},
    lanes::Lanes,
    seen::Seen,
};
use super::{
    ranges::Ranges,
    state::{Past, STATE_BYTES_MAX, State, WAIT_MAX},
};
use crate::{retry::BackoffPolicy, schedule::Times};

/// Records that the mark runs ahead of what was handed out; adapts to the rate between these.
const LEAD_MIN: u64 = 64;
const LEAD_MAX: u64 = 4096;
/// Further than this no two clocks of a cluster that is looked after are apart, in milliseconds: what is due later than
/// that was handed out by nobody.
const CLOCKS_APART_MS: i64 = 60_000;
/// Later than any timeout.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What becomes of records that have expired before they were acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expired {
    /// They are done, and counted.
    #[default]
    Drop,
    /// They go to the dead letters.
    DeadLetter,
}

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
    /// Identities of acknowledged records that are remembered.
    pub(crate) ids_max: usize,
    pub(crate) expired: Expired,
}

/// The time, and a random number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) now: Instant,
    /// By this machine's clock.
    pub(crate) unix_ms: i64,
    /// By the brokers' clock: what records are due and expire by.
    pub(crate) shared_ms: i64,
    pub(crate) random: u64,
}

impl Clock {
    /// When the brokers' clock will show this.
    fn at_shared_ms(&self, shared_ms: i64) -> Instant {
        let left = u64::try_from(shared_ms.saturating_sub(self.shared_ms)).unwrap_or(0);
        self.now.checked_add(Duration::from_millis(left)).unwrap_or(self.now + FAR)
    }
}

/// A record as it is put in.
#[derive(Debug)]
pub(crate) struct Taken<R> {
    pub(crate) offset: Offset,
    pub(crate) timestamp_ms: i64,
    pub(crate) bytes: usize,
    /// A hash of the record's key.
    pub(crate) key: Option<u64>,
    /// The record's identity: two with the same one are the same.
    pub(crate) id: Option<u64>,
    pub(crate) times: Times,
    pub(crate) record: R,
}

/// Records that were not handed out, since the last time that somebody asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spared {
    /// They had been acknowledged under another offset.
    pub(crate) duplicates: u64,
    pub(crate) expired: u64,
}

/// A record as it is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handout {
    pub(crate) offset: Offset,
    /// Which delivery this is, from 1; tells it from earlier and later ones.
    pub(crate) delivery: u32,
    pub(crate) on_trial: bool,
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
    /// Records that are not due yet, by their time in milliseconds since the Unix epoch.
    delayed: BTreeSet<(i64, Offset)>,
    /// With [`Policy::by_key`]: by key, those that are due and not done; only the first may be handed out.
    keys: Lanes,
    /// By identity, those that are not done; only the first goes on.
    copies: Lanes,
    seen: Seen,
    spared: Spared,
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
        let State { mut done, mark, past, seen } = state;
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
            delayed: BTreeSet::new(),
            keys: Lanes::default(),
            copies: Lanes::default(),
            seen: Seen::new(policy.ids_max, &seen),
            spared: Spared::default(),
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
        let span = self.span() + LEAD_MAX + 1;
        let state_bytes = State::bytes_max(self.done.count() + 1, pasts, span, self.policy.ids_max);
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
    pub(crate) fn take(&mut self, taken: Taken<R>, clock: &Clock) -> bool {
        let Taken { offset, timestamp_ms, bytes, key, id, times, record } = taken;
        if offset < self.reach {
            return false;
        }
        self.skip_to(offset);
        self.reach = offset.advance(1);
        let past = self.inherited.remove(&offset);
        if offset < self.prefix || self.done.contains(offset) {
            return false;
        }
        let id = id.filter(|_| self.policy.ids_max > 0);
        if id.is_some_and(|id| self.seen.contains(id)) {
            self.spared.duplicates += 1;
            self.newest_ms = self.newest_ms.max(timestamp_ms);
            self.finish_range(offset, offset.advance(1));
            return false;
        }
        let Past { deliveries, out, first_ms, wait } = past.unwrap_or(Past::NONE);
        let in_time = !times.is_early(clock.shared_ms.saturating_add(CLOCKS_APART_MS));
        let key = key.filter(|_| self.policy.by_key);
        let spent = deliveries >= self.policy.deliveries_max;
        let entry = Entry {
            record,
            timestamp_ms,
            bytes,
            key,
            id,
            times,
            deliveries,
            first_ms,
            failure: spent.then(|| (Past::why_spent(out).into(), 0)),
            since: Version::default(),
            suspect: offset < self.suspect_end && in_time,
            phase: if spent { Phase::Doomed } else { Phase::Copy },
        };
        self.bytes += bytes;
        self.entries.insert(offset, entry);
        let first_copy = id.is_none_or(|id| self.copies.enter(id, offset));
        if spent {
            self.doomed.push(offset);
            // Those of its key wait until it is buried.
            if let Some(key) = key {
                self.keys.enter(key, offset);
            }
        } else if first_copy {
            self.admit(offset, wait, clock);
        }
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

    /// What was not handed out since the last time.
    pub(crate) fn take_spared(&mut self) -> Spared {
        std::mem::take(&mut self.spared)
    }
}
