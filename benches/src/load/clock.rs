//! The run's one clock, precise waiting, and the CPU time of this process.
//!
//! Every time in a run is [`Nanos`] since the clock was made, from the monotonic clock, and the same clock is
//! read by producers and consumers: both live in this process, so end-to-end latency needs no clock agreement.

use std::time::{Duration, Instant};

use anyhow::Context as _;

/// A point in time: nanoseconds since the run's [`Clock`] was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nanos(u64);

impl Nanos {
    /// The point this many nanoseconds after the clock was made.
    pub(crate) const fn new(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock was made.
    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    /// Nanoseconds from `earlier` to this; 0 when `earlier` is later.
    pub(crate) const fn since(self, earlier: Nanos) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The point `span` later.
    pub(crate) fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The monotonic clock of a run; copies agree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Time since [`Clock::start`].
    pub(crate) fn now(&self) -> Nanos {
        Nanos(0).after(self.origin.elapsed())
    }

    /// The same point for tokio's timers, which are good to a millisecond: enough for phases, not for pacing.
    pub(crate) fn instant(&self, at: Nanos) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.origin + Duration::from_nanos(at.get()))
    }
}

/// CPU time, user and system, that this process has used so far.
pub(crate) fn process_cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(spent).unwrap_or_default()
}

/// Shortest sleep of a [`Pacer`]. Above 20,000 records/s, a timer for each record would cost more CPU than the
/// record; records due during a sleep are sent at once after it, and the wait counts in their latency.
const GRAIN: Duration = Duration::from_micros(50);

/// Waits for points in time to within tens of microseconds.
///
/// Tokio's own timers round up to the next millisecond, which would add more to a latency measured from the
/// scheduled time than a fast broker needs in all. A kernel timer wakes the same event loop without that.
pub(crate) struct Pacer {
    clock: Clock,
    #[cfg(target_os = "linux")]
    timer: tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
}

impl Pacer {
    /// A pacer on `clock`. Call inside the runtime.
    ///
    /// # Errors
    /// When the kernel gives no timer: the process is out of file descriptors.
    #[cfg(target_os = "linux")]
    #[expect(
        deprecated,
        reason = "its successor is unsafe, which the workspace forbids; what that asks of the caller (one open \
                  descriptor for as long as it is registered) an OwnedFd that nobody else holds gives by itself"
    )]
    pub(crate) fn new(clock: Clock) -> anyhow::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
            .map_err(std::io::Error::from)
            .and_then(tokio::io::unix::AsyncFd::new)
            .context("create a timer for a producer; raise the limit on open files (ulimit -n)")?;
        Ok(Self { clock, timer })
    }

    /// A pacer on `clock`, good to a millisecond where the kernel has no timer descriptors.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn new(clock: Clock) -> anyhow::Result<Self> {
        Ok(Self { clock })
    }

    /// Returns once `at` has come, and at once when it has passed. Cancel safe.
    ///
    /// # Errors
    /// When the kernel refuses the timer.
    pub(crate) async fn wait_until(&self, at: Nanos) -> anyhow::Result<()> {
        let now = self.clock.now();
        if now >= at {
            return Ok(());
        }
        self.sleep(Duration::from_nanos(at.since(now)).max(GRAIN)).await.context("wait for the schedule")
    }

    #[cfg(target_os = "linux")]
    async fn sleep(&self, span: Duration) -> std::io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(span).map_err(|_| std::io::ErrorKind::InvalidInput)?,
        };
        // Setting also clears an expiry that a cancelled wait left behind.
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.timer.readable().await?;
            let mut expirations = [0u8; 8];
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut expirations)?));
            // Err: the readiness was stale, the next one is awaited.
            if let Ok(outcome) = read {
                return outcome.map(|_| ());
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    async fn sleep(&self, span: Duration) -> std::io::Result<()> {
        tokio::time::sleep(span).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_never_run_backwards() {
        assert_eq!(Nanos::new(5).since(Nanos::new(9)), 0);
        assert_eq!(Nanos::new(9).since(Nanos::new(5)), 4);
        assert_eq!(Nanos::new(1).after(Duration::from_micros(1)), Nanos::new(1_001));
    }

    #[tokio::test]
    async fn a_pacer_never_returns_early_even_after_a_cancelled_wait() {
        let clock = Clock::start();
        let pacer = Pacer::new(clock).expect("timer");
        let cancelled = pacer.wait_until(clock.now().after(Duration::from_millis(1)));
        drop(tokio::time::timeout(Duration::ZERO, cancelled).await);
        for micros in [0, 1, 80, 300, 2_000, 5_000] {
            let at = clock.now().after(Duration::from_micros(micros));
            pacer.wait_until(at).await.expect("wait");
            assert!(clock.now() >= at, "returned before {micros} us had passed");
        }
    }

    #[test]
    fn work_shows_in_the_cpu_time() {
        let before = process_cpu_time();
        (0u64..1_000_000).for_each(|n| {
            std::hint::black_box(n);
        });
        let spent = process_cpu_time() - before;
        assert!(spent > Duration::ZERO && spent < Duration::from_secs(60), "{spent:?}");
    }
}
