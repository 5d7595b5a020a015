//! Counts of the last so many seconds, in slots that are dropped as a whole once they are too old. Pure: the time is
//! given.
//!
//! Invariant: a slot read is younger than the span; what was counted is forgotten after the span, at most one slot
//! earlier.

use std::time::Duration;

use tokio::time::Instant;

const SLOTS: usize = 20;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sliding<T> {
    zero: Instant,
    slot: Duration,
    /// Slots begun since zero.
    current: u64,
    slots: [T; SLOTS],
}

impl<T: Copy + Default> Sliding<T> {
    /// Counts over `span`, beginning now.
    pub(crate) fn new(span: Duration, now: Instant) -> Self {
        let slot = (span / SLOTS as u32).max(Duration::from_millis(1));
        Self { zero: now, slot, current: 0, slots: [T::default(); SLOTS] }
    }

    /// The slot that counts now. Time that runs backwards counts as standing still.
    pub(crate) fn now(&mut self, now: Instant) -> &mut T {
        let begun = now.saturating_duration_since(self.zero).as_nanos() / self.slot.as_nanos();
        let begun = u64::try_from(begun).unwrap_or(u64::MAX);
        let passed = begun.saturating_sub(self.current).min(SLOTS as u64);
        for step in 1..=passed {
            self.slots[((begun - passed + step) % SLOTS as u64) as usize] = T::default();
        }
        self.current = self.current.max(begun);
        &mut self.slots[(self.current % SLOTS as u64) as usize]
    }

    /// All slots that still count, as of the last [`Self::now`].
    pub(crate) fn slots(&self) -> &[T] {
        &self.slots
    }

    /// When the slot that counts now is over, as of the last [`Self::now`].
    pub(crate) fn next_slot(&self) -> Instant {
        let slots = u32::try_from(self.current.saturating_add(1)).unwrap_or(u32::MAX);
        self.zero + self.slot.saturating_mul(slots)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_what_is_young_and_forgets_what_is_old(steps in prop::collection::vec(0_u64..3000, 1..200)) {
            let span = Duration::from_secs(10);
            let zero = Instant::now();
            let mut sliding = Sliding::<u32>::new(span, zero);
            let mut counted = Vec::new();
            let mut now = zero;
            for step in steps {
                now += Duration::from_millis(step);
                *sliding.now(now) += 1;
                counted.push(now);
                let sum = sliding.slots().iter().sum::<u32>() as usize;
                let younger_than = |age| counted.iter().filter(|&&at| at + age > now).count();
                prop_assert!(sum <= younger_than(span) && sum >= younger_than(span - span / SLOTS as u32));
                prop_assert!(sliding.next_slot() > now && sliding.next_slot() <= now + span / SLOTS as u32);
            }
        }
    }
}
