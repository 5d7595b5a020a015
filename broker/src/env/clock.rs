//! Time. Owns the only calls to the system's clocks in the broker. Deadlines use the monotonic clock, retention and
//! time stamps the wall clock; the two are never mixed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of time.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic time.
    fn now(&self) -> Instant;
    /// Wall clock, milliseconds since the Unix epoch.
    fn unix_ms(&self) -> i64;
}

/// The operating system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn unix_ms(&self) -> i64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
    }
}

/// The instant `wait` from now on the runtime's timer (which a simulation may pause).
pub fn deadline_after(wait: Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + wait
}
