//! The receipt of a record. All records of a batch share one [`Ticket`]: the batch's outcome is stored once, and
//! each [`Delivery`] adds its own place in the batch.
//!
//! Invariant: an outcome is set once and never changes.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use busbar_proto::{Offset, PartitionId};
use parking_lot::Mutex;

use crate::{
    context::spans::{SendSpan, SendSpans},
    error::DeliveryError,
    producer::report::DeliveryReport,
};

/// A record is stored, as durably as its topic demands.
///
/// ```no_run
/// # async fn example(producer: busbar_client::Producer) -> Result<(), Box<dyn std::error::Error>> {
/// let delivered = producer.send("paid").await?.await?;
/// println!("partition {}, offset {}", delivered.partition, delivered.offset);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The partition it was stored in.
    pub partition: u32,
    /// Its offset there, for ever.
    pub offset: u64,
    /// An earlier attempt had stored it already; it is stored once.
    pub duplicate: bool,
    /// How it got there.
    pub report: DeliveryReport,
}

/// Resolves when the record's fate is known. Dropping it does not take the record back. Cancel safe.
///
/// ```no_run
/// # async fn example(producer: busbar_client::Producer) -> Result<(), Box<dyn std::error::Error>> {
/// let first = producer.send("one").await?; // both are under way together
/// let second = producer.send("two").await?;
/// println!("{} and {}", first.await?.offset, second.await?.offset);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a record is stored only once its delivery says so; await it, or drop it knowingly"]
pub struct Delivery {
    ticket: Arc<Ticket>,
    index: u32,
    /// Our place among the ticket's wakers, once we have waited.
    slot: Option<usize>,
}

impl Delivery {
    pub(crate) fn new(ticket: Arc<Ticket>, index: u32) -> Self {
        Self { ticket, index, slot: None }
    }

    /// The span ends with the record's outcome, which may be known already.
    pub(crate) fn traced(self, span: SendSpan) -> Self {
        self.ticket.spans.add(self.index, span);
        self.ticket.end_spans();
        self
    }

    /// Another receipt of the same record.
    pub(crate) fn another(&self) -> Self {
        Self::new(self.ticket.clone(), self.index)
    }

    /// The outcome, if it is known already.
    pub fn outcome(&self) -> Option<Result<Delivered, DeliveryError>> {
        self.ticket.outcome.get().map(|outcome| self.place(outcome))
    }

    fn place(&self, outcome: &Outcome) -> Result<Delivered, DeliveryError> {
        let stored = outcome.as_ref().map_err(Clone::clone)?;
        Ok(Delivered {
            partition: stored.partition.get(),
            offset: stored.base.advance(self.index.into()).get(),
            duplicate: stored.duplicate,
            report: stored.report.clone(),
        })
    }
}

impl Future for Delivery {
    type Output = Result<Delivered, DeliveryError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(outcome) = this.ticket.wait(&mut this.slot, cx.waker()) {
            return Poll::Ready(this.place(outcome));
        }
        Poll::Pending
    }
}

/// How a batch ended.
pub(crate) type Outcome = Result<Stored, DeliveryError>;

/// Where a batch is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) partition: PartitionId,
    pub(crate) base: Offset,
    pub(crate) duplicate: bool,
    pub(crate) report: DeliveryReport,
}

/// A batch's outcome and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Ticket {
    outcome: OnceLock<Outcome>,
    waiting: Mutex<Vec<Waker>>,
    /// Handed to the transport since the last [`Self::take_back`]: it may have left this machine.
    handed: AtomicBool,
    /// End with the outcome.
    spans: SendSpans,
}

impl Ticket {
    /// Sets the outcome and wakes everybody; a second outcome is ignored.
    pub(crate) fn resolve(&self, outcome: Outcome) {
        if self.outcome.set(outcome).is_ok() {
            let waiting = std::mem::take(&mut *self.waiting.lock());
            waiting.into_iter().for_each(Waker::wake);
            self.end_spans();
        }
    }

    fn end_spans(&self) {
        if let Some(outcome) = self.outcome.get() {
            self.spans.end(outcome.as_ref().map(|stored| (stored.partition.get(), stored.base.get())));
        }
    }

    pub(crate) fn hand_over(&self) {
        self.handed.store(true, Ordering::Release);
    }

    pub(crate) fn take_back(&self) {
        self.handed.store(false, Ordering::Release);
    }

    pub(crate) fn may_have_left(&self) -> bool {
        self.handed.load(Ordering::Acquire)
    }

    fn wait(&self, slot: &mut Option<usize>, waker: &Waker) -> Option<&Outcome> {
        if let Some(outcome) = self.outcome.get() {
            return Some(outcome);
        }
        let mut waiting = self.waiting.lock();
        // Set before the wakers are taken: looking again under their lock leaves no gap.
        if let Some(outcome) = self.outcome.get() {
            return Some(outcome);
        }
        match slot.and_then(|slot| waiting.get_mut(slot)) {
            Some(mine) => mine.clone_from(waker),
            None => {
                *slot = Some(waiting.len());
                waiting.push(waker.clone());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::producer::story::{Diary, Epilogue};

    fn report() -> DeliveryReport {
        let now = Instant::now();
        Diary::new(now).failed(Epilogue { topic: "t".into(), partition: 4, now, now_ms: 0 })
    }

    fn stored(base: u64) -> Stored {
        Stored { partition: PartitionId::new(4), base: Offset::new(base), duplicate: false, report: report() }
    }

    #[tokio::test]
    async fn each_record_has_its_own_offset() {
        let ticket = Arc::new(Ticket::default());
        let deliveries: Vec<_> = (0..3).map(|index| Delivery::new(ticket.clone(), index)).collect();
        assert_eq!(deliveries[0].outcome(), None);
        let all = futures::future::join_all(deliveries);
        let resolve = async { ticket.resolve(Ok(stored(100))) };
        let (all, ()) = tokio::join!(all, resolve);
        let offsets: Vec<_> = all.into_iter().map(|delivered| delivered.expect("delivered").offset).collect();
        assert_eq!(offsets, [100, 101, 102]);
    }

    #[tokio::test]
    async fn the_first_outcome_stays() {
        let ticket = Arc::new(Ticket::default());
        ticket.resolve(Err(DeliveryError::Closed { report: report() }));
        ticket.resolve(Ok(stored(1)));
        assert!(matches!(Delivery::new(ticket, 0).await, Err(DeliveryError::Closed { .. })));
    }

    #[tokio::test]
    async fn a_delivery_polled_by_many_wakers_takes_one_slot() {
        let ticket = Arc::new(Ticket::default());
        let mut delivery = Delivery::new(ticket.clone(), 0);
        for _ in 0..100 {
            let polled = tokio::select! { biased; _ = &mut delivery => true, () = std::future::ready(()) => false };
            assert!(!polled);
        }
        assert_eq!(ticket.waiting.lock().len(), 1);
    }
}
