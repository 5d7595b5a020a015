//! One timer for many state machines: whoever changes one tells when it next wants to be looked at, and the
//! upkeep task sleeps until the earliest of these. Setting an alarm that is not the earliest costs one load.
//!
//! Invariant: `due` is never later than the earliest wish set since the last [`Alarm::begin_sweep`].

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

const NEVER: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Alarm {
    /// Microseconds are counted from here.
    zero: Instant,
    due_us: AtomicU64,
    rung: AtomicBool,
    /// The sleeper must look at the fields above again.
    look: Notify,
}

impl Alarm {
    pub(crate) fn new(now: Instant) -> Self {
        Self { zero: now, due_us: AtomicU64::new(NEVER), rung: AtomicBool::new(false), look: Notify::new() }
    }

    /// Makes sure that the sleeper wakes at `at`.
    pub(crate) fn set(&self, at: Option<Instant>) {
        let Some(at) = at else { return };
        // Rounded up: a sleeper that wakes too early would find nothing to do and come back at once.
        let wish = at.saturating_duration_since(self.zero).as_nanos().div_ceil(1000);
        let wish = u64::try_from(wish).unwrap_or(NEVER - 1);
        if wish < self.due_us.load(Ordering::Acquire) && wish < self.due_us.fetch_min(wish, Ordering::AcqRel) {
            self.look.notify_one();
        }
    }

    /// Wakes the sleeper now.
    pub(crate) fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.look.notify_one();
    }

    /// Forgets all wishes; the sweep that follows sets them anew.
    pub(crate) fn begin_sweep(&self) {
        self.due_us.store(NEVER, Ordering::Release);
    }

    /// Returns when something is due or the alarm was rung. Cancel safe.
    pub(crate) async fn wait(&self) {
        while !self.rung.swap(false, Ordering::AcqRel) {
            let due = self.due_us.load(Ordering::Acquire);
            if due == NEVER {
                self.look.notified().await;
                continue;
            }
            tokio::select! {
                () = self.look.notified() => {}
                () = tokio::time::sleep_until(self.zero + Duration::from_micros(due)) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn wakes_at_the_earliest_wish() {
        let start = Instant::now();
        let alarm = Alarm::new(start);
        alarm.set(Some(start + Duration::from_millis(50)));
        alarm.set(Some(start + Duration::from_millis(20)));
        alarm.set(Some(start + Duration::from_millis(90)));
        alarm.set(None);
        alarm.wait().await;
        assert_eq!(start.elapsed(), Duration::from_millis(20));
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_wish_moves_a_sleeper_and_a_ring_wakes_it() {
        let start = Instant::now();
        let alarm = Alarm::new(start);
        let set_later = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            alarm.set(Some(start + Duration::from_millis(7)));
        };
        tokio::join!(alarm.wait(), set_later);
        assert_eq!(start.elapsed(), Duration::from_millis(7));

        alarm.begin_sweep();
        let ring_later = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            alarm.ring();
        };
        tokio::join!(alarm.wait(), ring_later);
        assert_eq!(start.elapsed(), Duration::from_millis(12));
    }
}
