//! What the application says of a record in its hands, and what comes of it.
//!
//! Invariant: a delivery is settled once. Only the latest delivery of a record counts: a word on an earlier one is
//! stale, and changes nothing.

use std::{sync::Arc, time::Duration};

use busbar_proto::Offset;
use tokio::time::Instant;

use super::{Clock, Entry, Expired, Phase, WAIT_MAX, Window};

/// Doublings after which the pause before a redelivery can't grow any more.
const DOUBLINGS_MAX: u32 = 32;

/// The delivery is over: its lease ran out, and the record was handed out again or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stale;

/// What comes of a delivery that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There will be another.
    Again { until: Instant },
    /// It was the last: the record goes to the dead letters.
    Doomed,
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

/// How a record ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Acked,
    GivenUp,
}

impl<R> Window<R> {
    /// The record is done. Also when the lease has run out, as long as the record was not handed out again.
    pub(crate) fn ack(&mut self, offset: Offset, delivery: u32) -> Result<(), Stale> {
        self.latest(offset, delivery)?;
        self.finish(offset, End::Acked);
        Ok(())
    }

    /// The delivery failed; another comes after `after`, or after a backoff.
    pub(crate) fn nack(
        &mut self,
        offset: Offset,
        delivery: u32,
        after: Option<Duration>,
        reason: Arc<str>,
        clock: &Clock,
    ) -> Result<Verdict, Stale> {
        let Phase::Out { .. } = self.latest(offset, delivery)? else { return Err(Stale) };
        Ok(self.fail(offset, after, reason, clock))
    }

    /// The record will never be done: no other delivery.
    pub(crate) fn reject(
        &mut self,
        offset: Offset,
        delivery: u32,
        reason: Arc<str>,
        clock: &Clock,
    ) -> Result<(), Stale> {
        self.latest(offset, delivery)?;
        self.unschedule(offset);
        self.doom(offset, reason, clock);
        Ok(())
    }

    /// The lease lasts until `by` from now, if it does not last longer.
    pub(crate) fn extend(&mut self, offset: Offset, delivery: u32, by: Duration, now: Instant) -> Result<(), Stale> {
        let Phase::Out { until } = self.latest(offset, delivery)? else { return Err(Stale) };
        let longer = until.max(now + by.min(WAIT_MAX));
        self.timers.remove(&(until, offset));
        self.timers.insert((longer, offset));
        if let Some(entry) = self.entries.get_mut(&offset) {
            entry.phase = Phase::Out { until: longer };
        }
        Ok(())
    }

    /// The phase of a record whose latest delivery is this one.
    fn latest(&self, offset: Offset, delivery: u32) -> Result<Phase, Stale> {
        let entry = self.entries.get(&offset).filter(|entry| entry.deliveries == delivery).ok_or(Stale)?;
        match entry.phase {
            Phase::Doomed | Phase::Announced { .. } => Err(Stale),
            phase => Ok(phase),
        }
    }

    pub(super) fn fail(&mut self, offset: Offset, after: Option<Duration>, reason: Arc<str>, clock: &Clock) -> Verdict {
        self.unschedule(offset);
        let spent = self.entries.get(&offset).is_some_and(|entry| entry.deliveries >= self.policy.deliveries_max);
        if spent {
            self.doom(offset, reason, clock);
            return Verdict::Doomed;
        }
        let since = self.change();
        let deliveries = self.entries.get(&offset).map_or(1, |entry| entry.deliveries);
        let wait = after.unwrap_or_else(|| self.pause(deliveries, clock.random)).min(WAIT_MAX);
        let until = clock.now + wait;
        if let Some(entry) = self.entries.get_mut(&offset) {
            entry.suspect = false;
            entry.since = since;
            entry.failure = Some((reason, clock.unix_ms));
            entry.phase = Phase::Parked { until };
            self.timers.insert((until, offset));
        }
        Verdict::Again { until }
    }

    /// Half of a ceiling that doubles with each delivery, and up to as much again by chance.
    fn pause(&self, deliveries: u32, random: u64) -> Duration {
        let doubled = 1_u32.checked_shl(deliveries.saturating_sub(1).min(DOUBLINGS_MAX)).unwrap_or(u32::MAX);
        let backoff = self.policy.backoff;
        let half = backoff.base.saturating_mul(doubled).min(backoff.cap) / 2;
        half + half.mul_f64(random as f64 / u64::MAX as f64)
    }

    fn doom(&mut self, offset: Offset, reason: Arc<str>, clock: &Clock) {
        self.change();
        if let Some(entry) = self.entries.get_mut(&offset) {
            entry.suspect = false;
            entry.failure = Some((reason, clock.unix_ms));
            entry.phase = Phase::Doomed;
            self.doomed.push(offset);
        }
    }

    /// Takes it out of whatever it waits in.
    fn unschedule(&mut self, offset: Offset) {
        self.trial.take_if(|on_trial| *on_trial == offset);
        let Some(entry) = self.entries.get(&offset) else { return };
        match entry.phase {
            Phase::Out { until } | Phase::Parked { until } => {
                self.timers.remove(&(until, offset));
            }
            Phase::Delayed => {
                self.delayed.remove(&(entry.times.due_ms.unwrap_or_default(), offset));
            }
            Phase::Queued => {
                self.ready.remove(&offset);
                self.again.remove(&(entry.since, offset));
                self.suspects.remove(&offset);
            }
            Phase::Copy | Phase::Announced { .. } | Phase::Doomed => {}
        }
    }

    /// Its time is over: it is not delivered any more. Returns the copy of it whose turn it is then.
    pub(super) fn expire(&mut self, offset: Offset, clock: &Clock) -> Option<Offset> {
        self.spared.expired += 1;
        self.unschedule(offset);
        if self.policy.expired == Expired::Drop {
            return self.finish(offset, End::GivenUp);
        }
        let entry = self.entries.get_mut(&offset)?;
        // Announced, and not handed out.
        entry.deliveries -= u32::from(matches!(entry.phase, Phase::Announced { .. }));
        let reason = match &entry.failure {
            Some((last, _)) => format!("it has expired; its last delivery failed: {last}").into(),
            None => "it has expired".into(),
        };
        self.doom(offset, reason, clock);
        None
    }

    /// It ends. Returns the copy of it whose turn it is then.
    fn finish(&mut self, offset: Offset, end: End) -> Option<Offset> {
        let id = self.remove(offset)?.id?;
        let next = self.copies.leave(id, offset);
        let is_copy = |window: &Self, offset| window.entries.get(&offset).is_some_and(|e| e.phase == Phase::Copy);
        if end == End::GivenUp {
            return next.filter(|&next| is_copy(self, next));
        }
        self.seen.note(id);
        for copy in self.copies.of(id).into_iter().filter(|&copy| is_copy(self, copy)).collect::<Vec<_>>() {
            self.spared.duplicates += 1;
            self.remove(copy);
            self.copies.leave(id, copy);
        }
        None
    }

    /// Takes an entry out, as done.
    fn remove(&mut self, offset: Offset) -> Option<Entry<R>> {
        self.unschedule(offset);
        let entry = self.entries.remove(&offset)?;
        self.bytes -= entry.bytes;
        self.newest_ms = self.newest_ms.max(entry.timestamp_ms);
        self.finish_range(offset, offset.advance(1));
        if let Some(next) = entry.key.and_then(|key| self.keys.leave(key, offset)) {
            self.queue(next);
        }
        Some(entry)
    }

    /// Those to be dead-lettered that nobody was told of yet, so many of them at most.
    pub(crate) fn take_doomed(&mut self, limit: usize) -> Vec<Offset> {
        self.doomed.drain(..limit.min(self.doomed.len())).collect()
    }

    /// What there is to say of one of them.
    pub(crate) fn burial(&self, offset: Offset) -> Option<Burial<'_, R>> {
        let entry = self.entries.get(&offset).filter(|entry| entry.phase == Phase::Doomed)?;
        let (reason, last_ms) = entry.failure.clone()?;
        Some(Burial { record: &entry.record, deliveries: entry.deliveries, reason, first_ms: entry.first_ms, last_ms })
    }

    /// Its dead letter is stored, or not wanted.
    pub(crate) fn buried(&mut self, offset: Offset, clock: &Clock) {
        if self.entries.get(&offset).is_some_and(|entry| entry.phase == Phase::Doomed)
            && let Some(copy) = self.finish(offset, End::GivenUp)
        {
            self.admit(copy, Duration::ZERO, clock);
        }
    }

    /// Changes how a record is kept.
    pub(crate) fn replace(&mut self, offset: Offset, change: impl FnOnce(&mut R)) {
        if let Some(entry) = self.entries.get_mut(&offset) {
            change(&mut entry.record);
        }
    }

    /// The record itself.
    pub(crate) fn record(&self, offset: Offset) -> Option<&R> {
        self.entries.get(&offset).map(|entry| &entry.record)
    }
}
