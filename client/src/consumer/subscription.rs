//! One partition as a consumer reads it: where it is, which stream feeds it, and how many bytes may come. Pure:
//! time and randomness are given.
//!
//! ```text
//!             subscribe              opened                batches
//!  [ idle ] -----------> [ opening ] -------> [ open ] ---------------> inbox
//!     ^                       |                   |
//!     +----- [ paused ] <-----'-------------------+   ended, stream lost, gap, corrupt
//!     '----- [ halted ] <-------------------------'   ... too often: until next() has told the application
//! ```
//! Invariants:
//! - `next` is the offset after the last record put into the inbox; batches are taken in order, each record
//!   once, none left out unless the log start moved past it (counted in `skipped`);
//! - held + granted <= window: what waits in the inbox and what may still come. Batches are never cut, so a
//!   broker may overdraw by one message; the debt is carried in `granted`, on both sides.

use std::time::Duration;

use busbar_proto::{
    NodeId, Offset, PartitionId, Reason, Refusal,
    batch::{BatchError, BatchHeader, split, verify},
    limits,
};
use bytes::Bytes;
use tokio::time::Instant;

use super::opening::{FeedId, Opening, SubscriptionId, Tenure};
use crate::{
    retry::{Backoff, BackoffPolicy},
    topic::Route,
};

/// Failures in a row at one place before the application is told.
const STRIKES_MAX: u32 = 8;
/// Time for the answer to an open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to begin.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::StartAt;
///
/// let news = client.consumer("orders").from(StartAt::Latest).build().await?;
/// let rest = client.consumer("orders").from(StartAt::Earliest).from_in(3, StartAt::Offset(17)).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartAt {
    /// At the log start: everything that is stored.
    #[default]
    Earliest,
    /// At the end: only what is published from now on.
    Latest,
    /// At this offset.
    Offset(u64),
    /// At the first record, in the order of the log, whose time is this or later, in milliseconds since the Unix epoch; at
    /// the end where there is none. Times are the producers': from there on nothing is left out, whatever its time. A
    /// group begins with the whole batch that this record is in.
    Time(i64),
}

/// What to do when retention has removed the records that would come next.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::OnLoss;
///
/// let consumer = client.consumer("orders").on_loss(OnLoss::Fail).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLoss {
    /// Go on at the log start and count what was left out.
    #[default]
    Earliest,
    /// Go on at the end.
    Latest,
    /// Return an error from `next()`.
    Fail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Opening {
        feed: FeedId,
        since: Instant,
    },
    Open {
        feed: FeedId,
    },
    Paused {
        until: Instant,
    },
    /// The application has been told of a fault and must come back first.
    Halted,
    /// Over: the partition is read no more, or by another subscription.
    Retired,
}

/// Batches of one message, checked but not yet placed.
pub(crate) type Checked = Vec<(BatchHeader, Bytes)>;

/// A batch that the inbox gets, and the first offset of it that counts.
pub(crate) type Accepted = Vec<(Bytes, Offset)>;

/// Why a message was not accepted; the subscription is opened anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("a batch begins at offset {found}, expected was {expected}")]
    Gap { expected: Offset, found: Offset },
    #[error("{0}")]
    Batch(#[from] BatchError),
    #[error("{bytes} bytes came with a credit of {credit}")]
    OverCredit { bytes: u64, credit: i64 },
    #[error("records came before the subscription was opened")]
    NotOpen,
    #[error("records up to {next} were passed over, which are stored up to {end}")]
    BeyondEnd { next: Offset, end: Offset },
}

#[derive(Debug)]
pub(crate) struct Subscription {
    partition: PartitionId,
    tenure: Tenure,
    on_loss: OnLoss,
    window: u64,
    /// Where to go on; an offset once it is known.
    next: StartAt,
    phase: Phase,
    /// Counts openings; a part of the id, so that a stale stream's messages are recognised.
    opening: u32,
    /// Whom it was to read when it was last looked at: who led, if it reads from leaders.
    leader: Option<NodeId>,
    /// Bytes that the broker may still send; negative when its last batch was larger than what was left.
    granted: i64,
    /// Bytes in the inbox.
    held: u64,
    high_watermark: Option<Offset>,
    /// Where the partition ended when it was opened first.
    first_end: Option<Offset>,
    skipped: u64,
    backoff: Backoff,
    strikes: u32,
    /// The replica that was read last lags behind our place: the leader does not.
    lagged: bool,
}

impl Subscription {
    pub(crate) fn new(partition: PartitionId, from: StartAt, on_loss: OnLoss, window: u64) -> Self {
        Self {
            partition,
            tenure: Tenure::default(),
            on_loss,
            window,
            next: from,
            phase: Phase::Idle,
            opening: 0,
            leader: None,
            granted: 0,
            held: 0,
            high_watermark: None,
            first_end: None,
            skipped: 0,
            backoff: Backoff::new(BackoffPolicy::default()),
            strikes: 0,
            lagged: false,
        }
    }

    /// The same, for this stay, after a former one that came to this opening: its ids must not be used again.
    pub(crate) fn of_tenure(self, tenure: Tenure, opening: u32) -> Self {
        Self { tenure, opening, ..self }
    }

    pub(crate) fn tenure(&self) -> Tenure {
        self.tenure
    }

    pub(crate) fn opening(&self) -> u32 {
        self.opening
    }

    /// Another bound for the bytes that it holds. What is granted already may still come.
    pub(crate) fn resize(&mut self, window: u64) {
        self.window = window;
    }

    pub(crate) fn id(&self) -> SubscriptionId {
        SubscriptionId::new(self.partition, self.opening)
    }

    pub(crate) fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The node that it reads, or would.
    pub(crate) fn source(&self) -> Option<NodeId> {
        self.leader
    }

    /// Whether it must be read from the leader next, whatever it read from before.
    pub(crate) fn needs_leader(&self) -> bool {
        self.lagged
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// The next offset wanted from the broker, once it is known.
    pub(crate) fn next(&self) -> StartAt {
        self.next
    }

    pub(crate) fn high_watermark(&self) -> Option<Offset> {
        self.high_watermark
    }

    /// Records that retention removed before they could be read.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The stream that feeds it, or will.
    pub(crate) fn fed_by(&self) -> Option<FeedId> {
        match self.phase {
            Phase::Opening { feed, .. } | Phase::Open { feed } => Some(feed),
            Phase::Idle | Phase::Paused { .. } | Phase::Halted | Phase::Retired => None,
        }
    }

    /// Whether it was ever opened, so that its place is known.
    pub(crate) fn is_placed(&self) -> bool {
        self.high_watermark.is_some()
    }

    /// Ends a pause that is over.
    pub(crate) fn tick(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Paused { until } if until <= now) {
            self.phase = Phase::Idle;
        }
    }

    /// Whether it may be opened: nothing feeds it, no pause, and half of the window is free.
    pub(crate) fn is_due(&self) -> bool {
        self.phase == Phase::Idle && self.held <= self.window / 2
    }

    /// Opens it on a stream. Only when [`Self::is_due`].
    pub(crate) fn subscribe(&mut self, feed: FeedId, now: Instant) -> Opening {
        assert!(self.is_due(), "a subscription is opened once");
        // Wraps within the bits beside the partition; a stream that old is long gone.
        self.opening = self.opening.wrapping_add(1);
        let credit = self.window.saturating_sub(self.held);
        self.granted = credit as i64;
        self.phase = Phase::Opening { feed, since: now };
        Opening { id: self.id(), from: self.next, credit }
    }

    /// The broker names the first offset that will come.
    pub(crate) fn opened(&mut self, start: Offset, high_watermark: Offset) {
        let Phase::Opening { feed, .. } = self.phase else { return };
        self.phase = Phase::Open { feed };
        self.lagged = false;
        if let StartAt::Offset(wanted) = self.next {
            self.skipped += start.distance_from(Offset::new(wanted));
        }
        // Never back: a stream that begins below sends what is cut off on arrival.
        self.next = match self.next {
            StartAt::Offset(wanted) => StartAt::Offset(wanted.max(start.get())),
            StartAt::Earliest | StartAt::Latest | StartAt::Time(_) => StartAt::Offset(start.get()),
        };
        self.first_end = self.first_end.or(Some(high_watermark));
        self.heard(high_watermark);
    }

    /// Whether a record was stored already when the partition was opened first.
    pub(crate) fn was_there(&self, offset: Offset) -> bool {
        self.first_end.is_some_and(|end| offset < end)
    }

    /// Takes a message's batches, as far as they are new. Either all of them are accepted or none.
    pub(crate) fn batches(
        &mut self,
        bytes: u64,
        checked: Result<Checked, Fault>,
        high_watermark: Offset,
    ) -> Result<Accepted, Fault> {
        let (Phase::Open { .. }, StartAt::Offset(next)) = (self.phase, self.next) else { return Err(Fault::NotOpen) };
        let left = self.granted.saturating_sub_unsigned(bytes);
        if left < -(limits::MESSAGE_BYTES_MAX as i64) {
            return Err(Fault::OverCredit { bytes, credit: self.granted });
        }
        let mut next = Offset::new(next);
        let mut accepted = Vec::new();
        let mut stale_bytes = 0;
        for (header, batch) in checked? {
            if header.base_offset > next {
                return Err(Fault::Gap { expected: next, found: header.base_offset });
            }
            if header.next_offset() <= next {
                stale_bytes += batch.len() as u64;
                continue;
            }
            accepted.push((batch, next));
            next = header.next_offset();
        }
        self.granted = left;
        self.held += bytes - stale_bytes;
        self.next = StartAt::Offset(next.get());
        self.heard(high_watermark);
        if !accepted.is_empty() {
            self.backoff.succeeded();
            self.strikes = 0;
        }
        Ok(accepted)
    }

    /// The broker says that there is nothing below `next` that is wanted and left. Returns the place, if that is news.
    pub(crate) fn passed(&mut self, next: Offset, high_watermark: Offset) -> Result<Option<Offset>, Fault> {
        let (Phase::Open { .. }, StartAt::Offset(at)) = (self.phase, self.next) else { return Err(Fault::NotOpen) };
        if next > high_watermark {
            return Err(Fault::BeyondEnd { next, end: high_watermark });
        }
        self.granted = self.granted.saturating_sub_unsigned(limits::PASSED_CREDIT_BYTES as u64);
        self.heard(high_watermark);
        if next.get() <= at {
            return Ok(None);
        }
        self.held += limits::PASSED_CREDIT_BYTES as u64;
        self.next = StartAt::Offset(next.get());
        self.backoff.succeeded();
        self.strikes = 0;
        Ok(Some(next))
    }

    /// The broker told how far the partition reaches.
    pub(crate) fn heard(&mut self, high_watermark: Offset) {
        self.high_watermark = self.high_watermark.max(Some(high_watermark));
    }

    /// The application is done with `bytes`; returns credit that is worth sending.
    pub(crate) fn consumed(&mut self, bytes: u64) -> Option<u64> {
        self.held = self.held.saturating_sub(bytes);
        self.refill()
    }

    /// Credit that is worth sending: at least half a window.
    pub(crate) fn refill(&mut self) -> Option<u64> {
        let free = (self.window as i64).saturating_sub_unsigned(self.held).saturating_sub(self.granted);
        let free = u64::try_from(free).ok().filter(|&free| free >= self.window.div_ceil(2))?;
        if !matches!(self.phase, Phase::Open { .. }) {
            return None;
        }
        self.granted = self.granted.saturating_add_unsigned(free);
        Some(free)
    }

    /// Credit that could not be sent after all.
    pub(crate) fn keep(&mut self, credit: u64) {
        self.granted = self.granted.saturating_sub_unsigned(credit);
    }

    /// A stream is gone. Whether it was the one that fed this.
    pub(crate) fn lost(&mut self, feed: FeedId, now: Instant, random: u64) -> bool {
        let mine = self.fed_by() == Some(feed);
        if mine {
            self.pause(None, now, random);
        }
        mine
    }

    /// Takes over who leads now. If that is news, it is opened there at once; returns the stream that fed it.
    pub(crate) fn follow(&mut self, route: Route) -> Option<FeedId> {
        if self.leader.replace(route.leader) == Some(route.leader) {
            return None;
        }
        let old = self.fed_by();
        let paused = matches!(self.phase, Phase::Paused { .. });
        if old.is_some() || (paused && route.is_worth_hurrying(self.backoff.failures())) {
            self.phase = Phase::Idle;
        }
        old
    }

    /// A message could not be accepted. Returns the fault when it has come too often.
    pub(crate) fn faulty(&mut self, fault: Fault, now: Instant, random: u64) -> Option<Fault> {
        self.pause(None, now, random);
        self.halt_if(self.strikes + 1 >= STRIKES_MAX).then_some(fault)
    }

    /// The broker ended it. Returns the refusal when the application must know.
    pub(crate) fn ended(&mut self, refusal: Refusal, now: Instant, random: u64) -> Option<Refusal> {
        self.pause(refusal.retry_after, now, random);
        self.lagged |= refusal.reason == Reason::NotLeader;
        let out = self.strikes + 1 >= STRIKES_MAX;
        let halt = match refusal.reason {
            // A leader that is new may not know yet how far the log reaches, a node that is new no topics, and
            // another replica may serve what this one can't read.
            Reason::OffsetOutOfRange | Reason::UnknownTopic | Reason::UnknownPartition | Reason::StorageCorrupt => out,
            reason if reason.is_retryable() => return None,
            _ => true,
        };
        self.halt_if(halt).then_some(refusal)
    }

    /// Nothing will come any more. Whether that is news to the application.
    pub(crate) fn halt(&mut self) -> bool {
        !matches!(self.phase, Phase::Halted | Phase::Retired) && self.halt_if(true)
    }

    /// It ends for good.
    pub(crate) fn retire(&mut self) {
        self.phase = Phase::Retired;
    }

    /// The application has been told of the fault and asks for more.
    pub(crate) fn resume(&mut self) {
        if self.phase == Phase::Halted {
            self.phase = Phase::Idle;
        }
    }

    /// The offset asked for lies below the log start: goes on where [`OnLoss`] says. Whether it does go on.
    pub(crate) fn below_log_start(&mut self, log_start: Offset, end: Offset) -> bool {
        let StartAt::Offset(wanted) = self.next else { return true };
        if self.phase == Phase::Retired {
            return true;
        }
        let target = match self.on_loss {
            OnLoss::Fail => {
                self.halt_if(true);
                return false;
            }
            OnLoss::Earliest => log_start,
            OnLoss::Latest => end,
        };
        self.skipped += target.distance_from(Offset::new(wanted));
        self.next = StartAt::Offset(wanted.max(target.get()));
        self.phase = Phase::Idle;
        self.strikes = 0;
        true
    }

    /// The open was not answered in time.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Opening { since, .. } if since + OPEN_TIMEOUT <= now)
    }

    /// When to look again, apart from news.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Paused { until } => Some(until),
            Phase::Opening { since, .. } => Some(since + OPEN_TIMEOUT),
            Phase::Idle | Phase::Open { .. } | Phase::Halted | Phase::Retired => None,
        }
    }

    fn pause(&mut self, advice: Option<Duration>, now: Instant, random: u64) {
        self.phase = Phase::Paused { until: now + self.backoff.failed(random, advice) };
    }

    /// Counts a failure at this place, and stops there if `halt`.
    fn halt_if(&mut self, halt: bool) -> bool {
        self.strikes = if halt { 0 } else { self.strikes + 1 };
        if halt {
            self.phase = Phase::Halted;
        }
        halt
    }
}

/// Cuts a message into batches and checks each one's checksum.
pub(crate) fn check(message: Bytes) -> Result<Checked, Fault> {
    let check = |cut: Result<(BatchHeader, Bytes), BatchError>| {
        let (_, batch) = cut?;
        Ok((verify(&batch, limits::BATCH_BYTES_MAX as usize)?, batch))
    };
    split(message).map(check).collect()
}

#[cfg(test)]
#[path = "subscription_tests.rs"]
mod tests;
