//! The breaker's rules one by one, and under random use.

use proptest::prelude::*;

use super::*;

const POLICY: CircuitBreaker = CircuitBreaker {
    consecutive_failures: 3,
    failure_percent: 50,
    min_answers: 10,
    span: Duration::from_secs(10),
    open_min: Duration::from_millis(100),
    open_max: Duration::from_millis(500),
};

/// Nothing is taken off the time that it stays open.
const WHOLE: u64 = 0;

fn open(now: Instant) -> Breaker {
    let mut breaker = Breaker::new(POLICY, now);
    assert!(!breaker.failed(Failure::Hard, now, WHOLE) && !breaker.failed(Failure::Hard, now, WHOLE));
    assert!(breaker.failed(Failure::Hard, now, WHOLE));
    breaker
}

#[test]
fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
    let now = Instant::now();
    let mut breaker = Breaker::new(POLICY, now);
    for _ in 0..4 {
        breaker.failed(Failure::Hard, now, WHOLE);
        breaker.failed(Failure::Hard, now, WHOLE);
        assert!((0..4).all(|_| !breaker.succeeded(now)));
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    assert_eq!(open(now).check(now), Err(now + POLICY.open_min));
}

#[test]
fn a_large_share_of_failures_opens_it_once_there_are_enough_answers() {
    let now = Instant::now();
    let mut breaker = Breaker::new(POLICY, now);
    for round in 0..5 {
        assert_eq!(breaker.state(), BreakerState::Closed, "round {round}");
        breaker.succeeded(now);
        breaker.failed(Failure::Soft, now, WHOLE);
    }
    assert_eq!(breaker.state(), BreakerState::Open);
    // What is old does not count.
    let mut breaker = Breaker::new(POLICY, now);
    assert!((0..9).all(|_| !breaker.failed(Failure::Soft, now, WHOLE)));
    assert!(!breaker.failed(Failure::Soft, now + POLICY.span * 2, WHOLE));
}

#[test]
fn one_probe_decides() {
    let now = Instant::now();
    let mut breaker = open(now);
    let mut later = now;
    for want_ms in [200, 400, 500, 500] {
        later = breaker.check(later).expect_err("open");
        assert_eq!(breaker.check(later), Ok(()));
        breaker.sent(later);
        assert_eq!(breaker.check(later), Err(later + PROBE_PATIENCE), "one probe at a time");
        assert!(breaker.failed(Failure::Hard, later, WHOLE));
        assert_eq!(breaker.check(later), Err(later + Duration::from_millis(want_ms)));
    }
    later = breaker.check(later).expect_err("open");
    assert_eq!(breaker.check(later), Ok(()));
    breaker.sent(later);
    assert!(breaker.succeeded(later) && breaker.check(later).is_ok());
    assert!(!breaker.failed(Failure::Hard, later, WHOLE), "it begins anew");
}

#[test]
fn a_probe_whose_fate_is_never_known_does_not_close_it_for_ever() {
    let now = Instant::now();
    let mut breaker = open(now);
    let later = now + POLICY.open_min;
    assert_eq!(breaker.check(later), Ok(()));
    breaker.sent(later);
    assert_eq!(breaker.check(later + PROBE_PATIENCE), Ok(()));
}

proptest! {
    #[test]
    fn it_always_says_when_to_ask_again_and_lets_something_through_then(
        steps in prop::collection::vec((0_u8..4, 0_u64..400, any::<u64>()), 1..300),
    ) {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(POLICY, now);
        let mut sent_while_half_open: Option<Instant> = None;
        for (what, ms, random) in steps {
            now += Duration::from_millis(ms);
            let before = breaker.state();
            match what {
                0 => prop_assert_eq!(breaker.succeeded(now), before == BreakerState::HalfOpen),
                1 | 2 => {
                    let failure = if what == 1 { Failure::Hard } else { Failure::Soft };
                    prop_assert_eq!(breaker.failed(failure, now, random), breaker.state() != before);
                }
                _ => match breaker.check(now) {
                    Ok(()) => {
                        if breaker.state() == BreakerState::HalfOpen {
                            // Never two probes within the patience, unless a verdict came between.
                            let too_early = sent_while_half_open.is_some_and(|last| last + PROBE_PATIENCE > now);
                            prop_assert!(!too_early);
                            sent_while_half_open = Some(now);
                        }
                        breaker.sent(now);
                    }
                    Err(again) => {
                        prop_assert!(again > now && again <= now + PROBE_PATIENCE.max(POLICY.open_max));
                        prop_assert_ne!(breaker.state(), BreakerState::Closed);
                    }
                },
            }
            if breaker.state() != before && breaker.state() != BreakerState::HalfOpen {
                sent_while_half_open = None;
            }
        }
        // However it was treated: who waits as told gets through, and a success closes it.
        if let Err(again) = breaker.check(now) {
            prop_assert_eq!(breaker.check(again), Ok(()));
            breaker.sent(again);
            prop_assert!(breaker.succeeded(again));
        }
    }
}
