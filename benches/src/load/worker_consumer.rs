//! One consumer: reads its share of the partitions and judges every record of this run.
//!
//! Records are booked in groups, and always before the consumer waits, so the books are never behind while
//! nothing comes. Records of other runs and of other programs are passed over.

use std::{pin::pin, sync::Arc, task::Poll};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::{
    clock::Clock,
    ledger::{Ledger, Observed},
    meter::Latencies,
    payload::{Header, RunId},
    schedule::{Phase, Timeline},
    target::{Consumer, Received},
};

const BOOKED_AT_ONCE: usize = 256;

/// What a consumer works with.
pub(crate) struct ConsumerJob<C> {
    /// Its place among the consumers.
    pub(crate) index: u32,
    /// The client's consumer.
    pub(crate) consumer: C,
    /// The phases.
    pub(crate) timeline: Timeline,
    /// The run's clock.
    pub(crate) clock: Clock,
    /// The run's id.
    pub(crate) run: RunId,
    /// Bytes of each value of this run.
    pub(crate) size: usize,
    /// Takes what was received.
    pub(crate) ledger: Arc<Ledger>,
    /// Cancelled when the drain is over.
    pub(crate) stop: CancellationToken,
}

/// Reads until stopped; returns the time from each measured record's schedule to its consumption.
///
/// # Errors
/// When the subscription fails or ends by itself.
pub(crate) async fn consume<C: Consumer>(job: ConsumerJob<C>) -> anyhow::Result<Latencies> {
    let ConsumerJob { index, mut consumer, timeline, clock, run, size, ledger, stop } = job;
    let mut judge = Judge { timeline, run, size, latencies: Latencies::new(), observed: Vec::new() };
    loop {
        let mut next = pin!(consumer.next());
        let received = match futures::poll!(&mut next) {
            Poll::Ready(received) => received,
            Poll::Pending => {
                judge.book(&ledger);
                tokio::select! {
                    biased;
                    received = next => received,
                    () = stop.cancelled() => break,
                }
            }
        };
        let record = received
            .with_context(|| format!("consumer {index} failed"))?
            .with_context(|| format!("consumer {index}: its subscription ended; was the topic deleted?"))?;
        if !judge.hear(&record, &clock) {
            ledger.found_corrupt();
        }
        if judge.observed.len() >= BOOKED_AT_ONCE {
            judge.book(&ledger);
            if stop.is_cancelled() {
                break;
            }
        }
    }
    judge.book(&ledger);
    Ok(judge.latencies)
}

/// What one consumer knows of its records.
struct Judge {
    timeline: Timeline,
    run: RunId,
    size: usize,
    latencies: Latencies,
    observed: Vec<Observed>,
}

impl Judge {
    /// Notes a record; `false` when it is of this run and yet not what was sent.
    fn hear(&mut self, record: &Received, clock: &Clock) -> bool {
        let Some(header) = Header::read(&record.value).filter(|header| header.run == self.run) else { return true };
        if record.value.len() != self.size {
            return false;
        }
        if self.timeline.phase(header.scheduled) == Phase::Measured {
            self.latencies.record(header.scheduled, clock.now());
        }
        let Header { producer, sequence, .. } = header;
        self.observed.push(Observed { producer, sequence, partition: record.partition });
        true
    }

    fn book(&mut self, ledger: &Ledger) {
        if !self.observed.is_empty() {
            ledger.observe(&self.observed);
            self.observed.clear();
        }
    }
}
