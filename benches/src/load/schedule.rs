//! When each record is due and which phase a time belongs to. Pure: the clock is the caller's.
//!
//! ```text
//!   start            measure_from                     measure_until
//!     |--- warm-up ------|------------ measured -----------|--- drain
//! ```
//! A record belongs to the phase of its *scheduled* time, whenever it is sent. The schedule is open-loop: record
//! k of a run is due at `start + k / rate`, computed from k and not from the record before it, so neither a
//! stalled broker nor rounding ever moves it. That is what keeps coordinated omission out of the latencies.

use std::{num::NonZeroU32, time::Duration};

use super::clock::Nanos;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The part of a run that a time belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Before measuring: sent and checked like the rest, in no figure.
    WarmUp,
    /// What the figures are made of.
    Measured,
    /// After measuring: nothing is sent, what is under way arrives.
    Drain,
}

/// The phases of one run, shared by all workers. Invariant: `start <= measure_from <= measure_until`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeline {
    start: Nanos,
    measure_from: Nanos,
    measure_until: Nanos,
}

impl Timeline {
    /// Phases that begin at `start`.
    pub(crate) fn new(start: Nanos, warmup: Duration, measured: Duration) -> Self {
        let measure_from = start.after(warmup);
        Self { start, measure_from, measure_until: measure_from.after(measured) }
    }

    /// When the first record is due.
    pub(crate) const fn start(&self) -> Nanos {
        self.start
    }

    /// First moment that is measured.
    pub(crate) const fn measure_from(&self) -> Nanos {
        self.measure_from
    }

    /// First moment that is no longer measured.
    pub(crate) const fn measure_until(&self) -> Nanos {
        self.measure_until
    }

    /// The phase that `at` belongs to.
    pub(crate) fn phase(&self, at: Nanos) -> Phase {
        if at < self.measure_from {
            Phase::WarmUp
        } else if at < self.measure_until {
            Phase::Measured
        } else {
            Phase::Drain
        }
    }
}

/// One producer's share of a constant rate: records `index, index + producers, ...` of the whole run, so that
/// all producers together are evenly spaced.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    start: Nanos,
    until: Nanos,
    rate: NonZeroU32,
    next: u64,
    step: u64,
}

impl Schedule {
    /// The share of producer `index` of `producers` in `rate` records a second, over `timeline`.
    pub(crate) fn new(timeline: &Timeline, rate: NonZeroU32, index: u32, producers: NonZeroU32) -> Self {
        Self {
            start: timeline.start(),
            until: timeline.measure_until(),
            rate,
            next: u64::from(index),
            step: u64::from(producers.get()),
        }
    }

    /// When record `k` of the run is due.
    fn due(&self, k: u64) -> Nanos {
        let offset = u128::from(k) * NANOS_PER_SECOND / u128::from(self.rate.get());
        Nanos::new(self.start.get().saturating_add(u64::try_from(offset).unwrap_or(u64::MAX)))
    }

    /// The next record's time, or `None` once the measured period holds no more.
    pub(crate) fn next(&mut self) -> Option<Nanos> {
        let due = self.due(self.next);
        (due < self.until).then(|| {
            self.next += self.step;
            due
        })
    }

    /// Records still due: what a producer that stops now leaves unsent.
    pub(crate) fn remaining(&self) -> u64 {
        // The first k that is due at or after `until`: ceil(span * rate / 1 s).
        let span = u128::from(self.until.since(self.start));
        let end = (span * u128::from(self.rate.get())).div_ceil(NANOS_PER_SECOND);
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        end.saturating_sub(self.next).div_ceil(self.step)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timeline(start: u64, warmup_ms: u64, measured_ms: u64) -> Timeline {
        Timeline::new(Nanos::new(start), Duration::from_millis(warmup_ms), Duration::from_millis(measured_ms))
    }

    fn non_zero(value: u32) -> NonZeroU32 {
        NonZeroU32::new(value).expect("a non-zero test value")
    }

    #[test]
    fn phases_are_half_open() {
        let line = timeline(10, 1, 2);
        for (at, phase) in [
            (0, Phase::WarmUp),
            (10, Phase::WarmUp),
            (1_000_009, Phase::WarmUp),
            (1_000_010, Phase::Measured),
            (3_000_009, Phase::Measured),
            (3_000_010, Phase::Drain),
        ] {
            assert_eq!(line.phase(Nanos::new(at)), phase, "at {at}");
        }
    }

    #[test]
    fn a_rate_that_does_not_divide_a_second_does_not_drift() {
        let mut schedule = Schedule::new(&timeline(0, 0, 3_600_000), non_zero(3), 0, non_zero(1));
        let times: Vec<u64> = std::iter::from_fn(|| schedule.next()).map(Nanos::get).collect();
        assert_eq!(times.len(), 3 * 3_600);
        assert_eq!(&times[..4], &[0, 333_333_333, 666_666_666, 1_000_000_000]);
        assert_eq!(times[3 * 3_599], 3_599_000_000_000);
    }

    proptest! {
        #[test]
        fn producers_share_one_even_schedule(
            rate in 1u32..5_000, producers in 1u32..9, warmup in 0u64..300, measured in 1u64..700, start in 0u64..1_000_000
        ) {
            let line = timeline(start, warmup, measured);
            let mut all = Vec::new();
            for index in 0..producers {
                let mut share = Schedule::new(&line, non_zero(rate), index, non_zero(producers));
                let mut left = share.remaining();
                while let Some(due) = share.next() {
                    prop_assert!(line.phase(due) != Phase::Drain);
                    all.push(due);
                    left -= 1;
                    prop_assert_eq!(share.remaining(), left);
                }
                prop_assert_eq!(left, 0);
            }
            all.sort_unstable();
            let mut alone = Schedule::new(&line, non_zero(rate), 0, non_zero(1));
            prop_assert_eq!(all.len() as u64, alone.remaining());
            for due in all {
                prop_assert_eq!(Some(due), alone.next());
            }
        }
    }
}
