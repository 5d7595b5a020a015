//! How long to wait before another attempt: exponential backoff with full jitter. Pure: the random number and
//! the time are given.
//!
//! Invariant: a delay is never longer than the policy's cap, unless the other side asked for more.

use std::time::Duration;

/// Doublings after which the ceiling cannot grow any more, whatever base and cap are.
const DOUBLINGS_MAX: u32 = 32;

/// Base and cap of a backoff.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackoffPolicy {
    /// Ceiling of the first delay.
    pub(crate) base: Duration,
    /// Ceiling of every delay.
    pub(crate) cap: Duration,
}

impl Default for BackoffPolicy {
    fn default() -> Self {
        Self { base: Duration::from_millis(10), cap: Duration::from_secs(1) }
    }
}

/// Failures in a row at one destination.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    policy: BackoffPolicy,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(policy: BackoffPolicy) -> Self {
        Self { policy, failures: 0 }
    }

    /// Failures since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// It worked.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// It failed: the time to wait, spread evenly from 0 to the ceiling by `random`, but at least what the other
    /// side advised (that advice is spread too, by up to a half, so that refused clients do not return as one).
    pub(crate) fn failed(&mut self, random: u64, advice: Option<Duration>) -> Duration {
        let doubled = 1_u32.checked_shl(self.failures.min(DOUBLINGS_MAX)).unwrap_or(u32::MAX);
        let ceiling = self.policy.base.saturating_mul(doubled).min(self.policy.cap);
        self.failures = self.failures.saturating_add(1);
        let jittered = fraction(ceiling, random);
        match advice {
            Some(advice) => jittered.max(advice.saturating_add(fraction(advice / 2, random))),
            None => jittered,
        }
    }
}

/// `random / 2^64` of a duration.
fn fraction(of: Duration, random: u64) -> Duration {
    let nanos = of.as_nanos().min(u128::from(u64::MAX));
    // The product of two 64-bit numbers fits, and its upper half is below 2^64.
    Duration::from_nanos(((nanos * u128::from(random)) >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: BackoffPolicy = BackoffPolicy { base: Duration::from_millis(10), cap: Duration::from_secs(1) };

    #[test]
    fn ceilings_double_up_to_the_cap() {
        let mut backoff = Backoff::new(POLICY);
        let ceilings: Vec<_> = (0..9).map(|_| backoff.failed(u64::MAX, None).as_millis() + 1).collect();
        assert_eq!(ceilings, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        backoff.succeeded();
        assert_eq!(backoff.failed(u64::MAX, None).as_millis() + 1, 10);
    }

    #[test]
    fn advice_is_a_floor() {
        let advice = Some(Duration::from_secs(3));
        assert_eq!(Backoff::new(POLICY).failed(0, advice), Duration::from_secs(3));
        assert!(Backoff::new(POLICY).failed(u64::MAX, advice) <= Duration::from_millis(4500));
    }

    proptest! {
        #[test]
        fn no_delay_exceeds_the_cap(failures in 0_u32..u32::MAX, random: u64) {
            let mut backoff = Backoff { policy: POLICY, failures };
            prop_assert!(backoff.failed(random, None) <= POLICY.cap);
        }

        #[test]
        fn jitter_is_full(random: u64) {
            let delay = Backoff { policy: POLICY, failures: 20 }.failed(random, None);
            let share = random as f64 / u64::MAX as f64;
            prop_assert!((delay.as_secs_f64() - share).abs() < 1e-6);
        }
    }
}
