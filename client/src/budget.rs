//! How much may be sent again: a share of what is sent, and a little always, so that retries can't multiply the load
//! of a broker that struggles. After Finagle's retry budget, with one addition: a retry that was acknowledged, or
//! never left this machine, did no harm and costs nothing. Without it a broker that restarts with many partitions
//! would get their batches back at the pace of one that fails. Pure: the time is given.
//!
//! Invariant: a retry is allowed only while, within the span that ends with it, retries that cost <= `min_per_second`
//! x span + `percent` of what was sent.

use std::time::Duration;

use tokio::time::Instant;

use crate::sliding::Sliding;

/// What a retry costs; a first attempt brings `percent` of it.
const RETRY: i64 = 100;

/// How many batches a producer may send again to one broker.
///
/// ```
/// use busbar_client::RetryBudget;
///
/// let budget = RetryBudget::new(5, 10); // 5 a second, and 10 for each hundred batches
/// assert_eq!((budget.min_per_second, budget.percent), (5, 10));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryBudget {
    /// What was sent this long ago does not count any more. Default 10 s.
    pub span: Duration,
    /// Retries a second that are always allowed. Default 10.
    pub min_per_second: u32,
    /// Retries for each hundred batches sent. Default 20.
    pub percent: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { span: Duration::from_secs(10), min_per_second: 10, percent: 20 }
    }
}

impl RetryBudget {
    /// With these; the span stays 10 s.
    pub fn new(min_per_second: u32, percent: u32) -> Self {
        Self { min_per_second, percent, ..Self::default() }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    earned: i64,
    /// Negative where more was given back than spent.
    spent: i64,
}

#[derive(Debug)]
pub(crate) struct Budget {
    policy: RetryBudget,
    reserve: i64,
    moved: Sliding<Moved>,
}

impl Budget {
    pub(crate) fn new(policy: RetryBudget, now: Instant) -> Self {
        let always = i64::from(policy.min_per_second).saturating_mul(RETRY);
        let reserve = always.saturating_mul(i64::try_from(policy.span.as_millis()).unwrap_or(i64::MAX)) / 1000;
        Self { policy, reserve, moved: Sliding::new(policy.span, now) }
    }

    /// A batch is sent for the first time.
    pub(crate) fn deposit(&mut self, now: Instant) {
        self.moved.now(now).earned += i64::from(self.policy.percent);
    }

    /// Retries that are allowed now.
    pub(crate) fn left(&mut self, now: Instant) -> u64 {
        self.moved.now(now);
        let sum = |of: fn(&Moved) -> i64| self.moved.slots().iter().map(of).sum::<i64>();
        // What is given back outlives what was spent: it never makes more than there was.
        let balance = self.reserve.saturating_add(sum(|slot| slot.earned)) - sum(|slot| slot.spent).max(0);
        u64::try_from(balance / RETRY).unwrap_or(0)
    }

    /// Whether a retry is allowed now; if not, when to ask again.
    pub(crate) fn check(&mut self, now: Instant) -> Result<(), Instant> {
        match self.left(now) {
            0 => Err(self.moved.next_slot()),
            _ => Ok(()),
        }
    }

    /// A batch is sent again. Only after [`Self::check`].
    pub(crate) fn withdraw(&mut self, now: Instant) {
        self.moved.now(now).spent += RETRY;
    }

    /// A retry did no harm.
    pub(crate) fn refund(&mut self, now: Instant) {
        self.moved.now(now).spent -= RETRY;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(zero: Instant, ms: u64) -> Instant {
        zero + Duration::from_millis(ms)
    }

    #[test]
    fn a_tenth_of_a_second_is_always_worth_one_and_a_batch_a_fifth() {
        let now = Instant::now();
        let mut budget = Budget::new(RetryBudget::new(1, 20), now);
        assert_eq!(budget.left(now), 10);
        (0..10).for_each(|_| budget.withdraw(now));
        assert!(budget.check(now).is_err());
        (0..5).for_each(|_| budget.deposit(now));
        assert_eq!(budget.check(now), Ok(()));
        budget.withdraw(now);
        let later = budget.check(now).expect_err("spent");
        assert!(later > now && later <= after(now, 500));
        assert_eq!(budget.left(after(now, 10_500)), 10);
    }

    #[test]
    fn a_retry_that_did_no_harm_costs_nothing_and_earns_nothing() {
        let now = Instant::now();
        let mut budget = Budget::new(RetryBudget::new(1, 20), now);
        for _ in 0..100 {
            budget.withdraw(now);
            assert_eq!(budget.left(now), 9);
            budget.refund(now);
        }
        (0..5).for_each(|_| budget.withdraw(now));
        (0..5).for_each(|_| budget.refund(after(now, 5_000)));
        // What was spent is forgotten before what was given back.
        for ms in [5_000, 9_000, 11_000, 20_000] {
            assert_eq!(budget.left(after(now, ms)), 10);
        }
    }

    #[test]
    fn without_a_budget_nothing_is_sent_again() {
        let now = Instant::now();
        assert!(Budget::new(RetryBudget::new(0, 0), now).check(now).is_err());
    }

    proptest! {
        #[test]
        fn retries_never_exceed_the_budget_in_any_span(
            steps in prop::collection::vec((0_u64..400, any::<bool>()), 1..400),
        ) {
            let policy = RetryBudget::new(3, 20);
            let zero = Instant::now();
            let mut budget = Budget::new(policy, zero);
            let (mut now, mut sent, mut again) = (zero, Vec::new(), Vec::new());
            for (ms, first) in steps {
                now += Duration::from_millis(ms);
                if first {
                    budget.deposit(now);
                    sent.push(now);
                    continue;
                }
                if budget.check(now).is_err() {
                    continue;
                }
                budget.withdraw(now);
                again.push(now);
                let within = |times: &[Instant], span| times.iter().filter(|&&at| at + span > now).count();
                // A slot is forgotten as a whole, so the retries of the last 19 slots certainly count.
                let counted = within(&again, policy.span - policy.span / 20);
                let allowed = 30 + within(&sent, policy.span) / 5;
                prop_assert!(counted <= allowed, "{counted} retries, {allowed} allowed");
            }
        }
    }
}
