//! What time it is for all clients alike, whatever their own clocks show: the brokers tell theirs when a client connects, and
//! the members of a group with every heartbeat. Pure: clocks are given.
//!
//! ```text
//!  ours:    asked ............. answered      the broker's clock shows, at `answered`, something between its
//!  broker:           stamped                  stamp and the stamp + (answered - asked)
//! ```
//! Invariant: between two answers the time goes on with the monotonic clock, so that a wall clock that is set meanwhile
//! moves nothing.

use std::time::Duration;

use tokio::time::Instant;

/// Clocks that differ by less, in milliseconds, are taken for equal: ours then, which is steadier.
const TOLERANCE_MS: i64 = 500;

/// A point in time on the monotonic clock and in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    at: Instant,
    unix_ms: i64,
}

/// The time as the brokers see it.
#[derive(Debug, Default)]
pub(crate) struct Timekeeper {
    anchor: Option<Anchor>,
    ahead_ms: i64,
}

impl Timekeeper {
    /// Milliseconds since the Unix epoch by the brokers' clock, as far as it is known.
    pub(crate) fn unix_ms(&self, now: Instant, own_ms: i64) -> i64 {
        let Some(Anchor { at, unix_ms }) = self.anchor else { return own_ms };
        unix_ms.saturating_add(millis(now.saturating_duration_since(at)))
    }

    /// As [`Self::unix_ms`], for who hears of the brokers' clock rarely: by our wall clock unless that was found wrong.
    pub(crate) fn unix_ms_unless_wrong(&self, now: Instant, own_ms: i64) -> i64 {
        if self.ahead_ms == 0 { own_ms } else { self.unix_ms(now, own_ms) }
    }

    /// How far our wall clock is ahead of the brokers', in milliseconds; 0 while they differ by little.
    pub(crate) fn ahead_ms(&self) -> i64 {
        self.ahead_ms
    }

    /// A broker has told its time, in answer to what it was asked so long ago. Whether our clock is found to be
    /// wrong, and was not before.
    pub(crate) fn told(&mut self, broker_ms: i64, now: Instant, own_ms: i64, round_trip: Duration) -> bool {
        let was_wrong = self.ahead_ms != 0;
        let latest_ms = broker_ms.saturating_add(millis(round_trip));
        let ours_is_good =
            own_ms >= broker_ms.saturating_sub(TOLERANCE_MS) && own_ms <= latest_ms.saturating_add(TOLERANCE_MS);
        let unix_ms = match ours_is_good {
            true => own_ms,
            // Of what it may be, the nearest to ours.
            false => own_ms.clamp(broker_ms, latest_ms),
        };
        self.ahead_ms = own_ms.saturating_sub(unix_ms);
        self.anchor = Some(Anchor { at: now, unix_ms });
        self.ahead_ms != 0 && !was_wrong
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn an_hour_off_is_noticed_once_and_corrected() {
        let (mut timekeeper, now) = (Timekeeper::default(), Instant::now());
        assert_eq!(timekeeper.unix_ms(now, 77), 77, "nothing is known yet");
        let trip = Duration::from_millis(20);
        assert!(!timekeeper.told(1_000_000, now, 1_000_300, trip));
        assert_eq!((timekeeper.unix_ms(now, 0), timekeeper.ahead_ms()), (1_000_300, 0), "ours is as good");
        for off in [HOUR_MS, -HOUR_MS] {
            let own_ms = 1_000_000 + off;
            assert!(timekeeper.told(1_000_000, now, own_ms, trip));
            assert!(!timekeeper.told(1_000_000, now, own_ms, trip), "told already");
            let found = timekeeper.unix_ms(now, own_ms);
            assert!((1_000_000..=1_000_020).contains(&found), "{found}");
            assert!((timekeeper.ahead_ms() - off).abs() <= 20);
            assert!(!timekeeper.told(1_000_000, now, 1_000_000, trip));
        }
    }

    #[test]
    fn a_wall_clock_that_is_set_between_two_answers_moves_nothing() {
        let (mut timekeeper, now) = (Timekeeper::default(), Instant::now());
        timekeeper.told(5000, now, 5000, Duration::ZERO);
        let later = now + Duration::from_secs(2);
        assert_eq!(timekeeper.unix_ms(later, 5000 + HOUR_MS), 7000);
        assert_eq!(timekeeper.unix_ms_unless_wrong(later, 6900), 6900);
        timekeeper.told(5000, now, HOUR_MS, Duration::ZERO);
        assert_eq!(timekeeper.unix_ms_unless_wrong(later, 6900), 7000, "ours was put right meanwhile");
    }

    proptest! {
        #[test]
        fn whatever_is_told_gives_a_time(told: i64, own: i64, trip_ms: u64, later_ms in 0..u64::from(u32::MAX)) {
            let (mut timekeeper, now) = (Timekeeper::default(), Instant::now());
            timekeeper.told(told, now, own, Duration::from_millis(trip_ms));
            timekeeper.unix_ms(now + Duration::from_millis(later_ms), own);
        }
    }
}
