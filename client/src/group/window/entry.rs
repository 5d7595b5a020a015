//! One record of a window that is not done: where it stands, and what is known of its deliveries.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Clock, Past, Times, Version, WAIT_MAX};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits for the end of another record of its identity.
    Copy,
    /// Waits for the time that it names.
    Delayed,
    /// Waits for its turn.
    Queued,
    /// Its delivery is being put on record, from this version on.
    Announced {
        at: Version,
    },
    Out {
        until: Instant,
    },
    Parked {
        until: Instant,
    },
    Doomed,
}

#[derive(Debug)]
pub(super) struct Entry<R> {
    pub(super) record: R,
    pub(super) timestamp_ms: i64,
    pub(super) bytes: usize,
    pub(super) key: Option<u64>,
    pub(super) id: Option<u64>,
    pub(super) times: Times,
    pub(super) deliveries: u32,
    pub(super) first_ms: i64,
    /// Why the last delivery failed, and when.
    pub(super) failure: Option<(Arc<str>, i64)>,
    /// The failure is on record from this version on.
    pub(super) since: Version,
    /// An earlier holder of the partition may have handed it out when it vanished. Until its trial is over.
    pub(super) suspect: bool,
    pub(super) phase: Phase,
}

impl<R> Entry<R> {
    /// One more delivery.
    pub(super) fn count(&mut self, clock: &Clock) {
        self.deliveries += 1;
        if self.first_ms == 0 {
            self.first_ms = clock.unix_ms;
        }
    }

    /// What must be remembered of it. A delivery that is out and not on trial is covered by the mark: it counts once it
    /// has failed, as nobody could tell whether it was this record that ended the consumer.
    pub(super) fn past(&self, now: Instant) -> Option<Past> {
        let Self { deliveries, first_ms, phase, suspect, .. } = *self;
        let (is_out, until) = match phase {
            Phase::Announced { .. } => (true, now),
            Phase::Out { .. } => (suspect, now),
            Phase::Parked { until } => (false, until),
            Phase::Copy | Phase::Delayed | Phase::Queued | Phase::Doomed => (false, now),
        };
        let unproven = matches!(phase, Phase::Out { .. }) && !suspect;
        let deliveries = deliveries - u32::from(unproven);
        let wait = until.saturating_duration_since(now).min(WAIT_MAX);
        (deliveries > 0).then_some(Past { deliveries, out: is_out, first_ms, wait })
    }
}

impl Past {
    /// Nothing.
    pub(super) const NONE: Self = Self { deliveries: 0, out: false, first_ms: 0, wait: Duration::ZERO };

    /// Why there is no other delivery.
    pub(super) fn why_spent(out: bool) -> &'static str {
        match out {
            true => "its last delivery was never settled: the consumer vanished",
            false => "its deliveries were used up",
        }
    }
}
