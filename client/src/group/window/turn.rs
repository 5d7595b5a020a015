//! Whose turn it is: what waits for what, and the next record to hand out.
//!
//! ```text
//!  take --> [ waits for an earlier copy ] --> [ delayed ] --> [ parked ] --> lane of its key --> ready | again | suspects
//! ```
//! Invariant: a record passes these in order and holds no place in a lane while it waits in one before, so that no two
//! wait for one another.

use std::time::Duration;

use busbar_proto::Offset;
use tokio::time::Instant;

use super::{Clock, Handout, Phase, Window};

impl<R> Window<R> {
    /// No copy of it is before it any more: it waits for its time, for so long after a failure, or for its turn.
    pub(super) fn admit(&mut self, offset: Offset, wait: Duration, clock: &Clock) {
        let mut next = Some((offset, wait));
        while let Some((offset, wait)) = next.take() {
            let Some(entry) = self.entries.get_mut(&offset) else { return };
            if entry.times.is_over(clock.shared_ms) {
                next = self.expire(offset, clock).map(|copy| (copy, Duration::ZERO));
                continue;
            }
            if let Some(due_ms) = entry.times.due_ms.filter(|due_ms| *due_ms > clock.shared_ms) {
                entry.phase = Phase::Delayed;
                self.delayed.insert((due_ms, offset));
                return;
            }
            entry.phase = Phase::Queued;
            if wait > Duration::ZERO {
                let until = clock.now + wait;
                entry.phase = Phase::Parked { until };
                self.timers.insert((until, offset));
            }
            if let Some(key) = entry.key {
                self.keys.enter(key, offset);
            }
            self.queue(offset);
        }
    }

    /// Puts a queued entry where its turn will be found.
    pub(super) fn queue(&mut self, offset: Offset) {
        let Some(entry) = self.entries.get(&offset).filter(|entry| entry.phase == Phase::Queued) else { return };
        if !entry.key.is_none_or(|key| self.keys.is_first(key, offset)) {
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
                Phase::Copy | Phase::Delayed | Phase::Queued | Phase::Announced { .. } | Phase::Doomed => {}
            }
        }
        while let Some(&(due_ms, offset)) = self.delayed.first().filter(|(due_ms, _)| *due_ms <= clock.shared_ms) {
            self.delayed.remove(&(due_ms, offset));
            self.admit(offset, Duration::ZERO, clock);
        }
        expired
    }

    /// The next record that may be handed out. `may_try`: no other partition of this member has one on trial.
    pub(crate) fn hand_out(&mut self, clock: &Clock, may_try: bool) -> Option<Handout> {
        loop {
            let on_trial = self.next_on_trial(clock, may_try);
            let offset = on_trial.or_else(|| self.next_in_turn())?;
            if self.is_over(offset, clock) {
                self.give_up_expired(offset, clock);
                continue;
            }
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
            return Some(Handout { offset, delivery, on_trial: on_trial.is_some() });
        }
    }

    fn is_over(&self, offset: Offset, clock: &Clock) -> bool {
        self.entries.get(&offset).is_some_and(|entry| entry.times.is_over(clock.shared_ms))
    }

    /// It is not delivered any more; a copy of it has its turn.
    fn give_up_expired(&mut self, offset: Offset, clock: &Clock) {
        if let Some(copy) = self.expire(offset, clock) {
            self.admit(copy, Duration::ZERO, clock);
        }
    }

    fn next_on_trial(&mut self, clock: &Clock, may_try: bool) -> Option<Offset> {
        if let Some(offset) = self.trial {
            let phase = self.entries.get(&offset)?.phase;
            return matches!(phase, Phase::Announced { at } if at <= self.durable).then_some(offset);
        }
        let offset = loop {
            let offset = if may_try { self.suspects.pop_first()? } else { return None };
            match self.is_over(offset, clock) {
                true => self.give_up_expired(offset, clock),
                false => break offset,
            }
        };
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

    /// From now on: [`super::Policy::by_key`].
    pub(crate) fn keep_keys_in_order(&mut self) {
        self.policy.by_key = true;
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

    /// Whether it was taken and will not be handed out soon: it waits for its time, for a copy, for the end of a pause
    /// or for the dead letters.
    pub(crate) fn is_set_aside(&self, offset: Offset) -> bool {
        let aside = |phase| matches!(phase, Phase::Copy | Phase::Delayed | Phase::Parked { .. } | Phase::Doomed);
        self.entries.get(&offset).is_some_and(|entry| aside(entry.phase))
    }

    /// When to look again, apart from news.
    pub(crate) fn wake_at(&self, clock: &Clock) -> Option<Instant> {
        let due = self.delayed.first().map(|&(due_ms, _)| clock.at_shared_ms(due_ms));
        self.timers.first().map(|&(at, _)| at).into_iter().chain(due).min()
    }

    /// Records in the application's hands, or on their way to the dead letters.
    pub(crate) fn unsettled(&self) -> usize {
        let unsettled = |phase| matches!(phase, Phase::Out { .. } | Phase::Doomed);
        self.entries.values().filter(|entry| unsettled(entry.phase)).count()
    }
}
