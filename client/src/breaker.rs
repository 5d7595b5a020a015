//! Keeps work away from what does not work: closed while things go well, open after too many failures, half open to
//! try one thing. Pure: time and randomness are given.
//!
//! ```text
//!              too many failures in a row, or too large a share of them
//!   [ closed ] ------------------------------------------------------> [ open ]
//!       ^                                                               |    ^
//!       | the probe succeeded                             time is over  |    | the probe failed:
//!       '---------------------------- [ half open ] <-------------------'    | twice as long
//!                                            '-------------------------------'
//! ```
//! Invariants: nothing is let through while open; half open lets one probe through, and another only when the first
//! has been without a verdict for too long.

use std::time::Duration;

use tokio::time::Instant;

use crate::sliding::Sliding;

/// A probe without a verdict for this long may be followed by another.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// Openings in a row after which the time does not grow any more, whatever its limits are.
const DOUBLINGS_MAX: u32 = 16;

/// When a producer stops sending to a broker or a partition that fails, and for how long.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use busbar_client::CircuitBreaker;
///
/// let mut breaker = CircuitBreaker::after(10);
/// breaker.open_max = Duration::from_secs(10);
/// let producer = client.producer("orders").circuit_breaker(breaker).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CircuitBreaker {
    /// Failures in a row that open it; several batches that fail together count as one. Default 5.
    pub consecutive_failures: u32,
    /// Share of failures, in percent, that opens it. Default 50.
    pub failure_percent: u32,
    /// Answers below which a share says nothing. Default 20.
    pub min_answers: u32,
    /// Answers this old do not count any more. Default 10 s.
    pub span: Duration,
    /// How long it stays open at first; doubled by each probe that fails. Default 250 ms.
    pub open_min: Duration,
    /// The longest that it stays open without a probe. Default 2 s.
    pub open_max: Duration,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            failure_percent: 50,
            min_answers: 20,
            span: Duration::from_secs(10),
            open_min: Duration::from_millis(250),
            open_max: Duration::from_secs(2),
        }
    }
}

impl CircuitBreaker {
    /// Opens after so many failures in a row; the rest as by default.
    pub fn after(consecutive_failures: u32) -> Self {
        Self { consecutive_failures, ..Self::default() }
    }
}

/// Whether a circuit breaker lets work through.
///
/// ```no_run
/// # fn example(producer: busbar_client::Producer) {
/// use busbar_client::BreakerState;
///
/// let open = producer.brokers().into_iter().filter(|broker| broker.breaker != BreakerState::Closed);
/// println!("held back from nodes {:?}", open.map(|broker| broker.node).collect::<Vec<_>>());
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// It does.
    Closed,
    /// It does not.
    Open,
    /// It tries whether things are better.
    HalfOpen,
}

/// What a failure says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It does not work.
    Hard,
    /// It works, but not for everything: counts towards the share only.
    Soft,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { probing_since: Option<Instant> },
}

#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    good: u32,
    bad: u32,
}

#[derive(Debug)]
pub(crate) struct Breaker {
    policy: CircuitBreaker,
    state: State,
    answers: Sliding<Answers>,
    failures_in_a_row: u32,
    openings_in_a_row: u32,
}

impl Breaker {
    pub(crate) fn new(policy: CircuitBreaker, now: Instant) -> Self {
        let answers = Sliding::new(policy.span, now);
        Self { policy, state: State::Closed, answers, failures_in_a_row: 0, openings_in_a_row: 0 }
    }

    pub(crate) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether something may be sent now; if not, when to ask again.
    pub(crate) fn check(&mut self, now: Instant) -> Result<(), Instant> {
        if matches!(self.state, State::Open { until } if until <= now) {
            self.state = State::HalfOpen { probing_since: None };
        }
        match self.state {
            State::Open { until } => Err(until),
            State::HalfOpen { probing_since: Some(since) } if since + PROBE_PATIENCE > now => {
                Err(since + PROBE_PATIENCE)
            }
            State::Closed | State::HalfOpen { .. } => Ok(()),
        }
    }

    /// Something is sent. Only after [`Self::check`].
    pub(crate) fn sent(&mut self, now: Instant) {
        if let State::HalfOpen { probing_since } = &mut self.state {
            *probing_since = Some(now);
        }
    }

    /// Begins anew: what failed has been replaced.
    pub(crate) fn reset(&mut self, now: Instant) {
        *self = Self::new(self.policy, now);
    }

    /// A good answer. Whether it closed the breaker.
    pub(crate) fn succeeded(&mut self, now: Instant) -> bool {
        self.answers.now(now).good += 1;
        self.failures_in_a_row = 0;
        let closes = matches!(self.state, State::HalfOpen { .. });
        if closes {
            self.reset(now);
        }
        closes
    }

    /// A bad answer, or none. Whether it opened the breaker.
    pub(crate) fn failed(&mut self, failure: Failure, now: Instant, random: u64) -> bool {
        self.answers.now(now).bad += 1;
        if failure == Failure::Hard {
            self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        }
        let opens = match self.state {
            State::Closed => self.failures_in_a_row >= self.policy.consecutive_failures || self.share_is_bad(),
            // Only what was sent since it opened says something about now.
            State::HalfOpen { probing_since } => probing_since.is_some(),
            State::Open { .. } => false,
        };
        if opens {
            let until = now + self.time_open(random);
            self.openings_in_a_row = self.openings_in_a_row.saturating_add(1);
            self.state = State::Open { until };
        }
        opens
    }

    fn share_is_bad(&self) -> bool {
        let sum = |of: fn(&Answers) -> u32| self.answers.slots().iter().map(|slot| u64::from(of(slot))).sum::<u64>();
        let (good, bad) = (sum(|slot| slot.good), sum(|slot| slot.bad));
        let all = good + bad;
        all >= u64::from(self.policy.min_answers.max(1)) && bad * 100 >= all * u64::from(self.policy.failure_percent)
    }

    /// Between three quarters and all of the doubled time, so that many clients do not probe as one.
    fn time_open(&self, random: u64) -> Duration {
        let doubled = 1_u32 << self.openings_in_a_row.min(DOUBLINGS_MAX);
        let whole = self.policy.open_min.saturating_mul(doubled).min(self.policy.open_max);
        let quarter = (whole / 4).as_nanos().min(u128::from(u64::MAX));
        whole - Duration::from_nanos(((quarter * u128::from(random)) >> 64) as u64)
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
