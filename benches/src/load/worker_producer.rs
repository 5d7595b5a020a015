//! One producer: the hot loop that keeps the schedule.
//!
//! ```text
//!   pace ─▶ issue ─▶ payload ─▶ client.send ─▶ lanes
//! ```
//! Never: skip a scheduled record because an earlier one was late. A late record is sent at once, and its
//! latency counts from when it was due.

use std::{num::NonZeroU32, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{
    clock::{Clock, Nanos, Pacer},
    lanes::{Books, Lanes},
    ledger::Ledger,
    meter::AckMeter,
    payload::{Header, Keys, PayloadBuilder, RunId},
    schedule::{Schedule, Timeline},
    target::{Message, Producer},
};

/// How a producer paces itself.
pub(crate) enum Pace {
    /// A constant rate, whatever the broker does.
    Scheduled(Schedule),
    /// As fast as backpressure allows.
    FullLoad,
}

/// What a producer works with.
pub(crate) struct ProducerJob<P> {
    /// Its place among the producers.
    pub(crate) index: u32,
    /// The client's producer.
    pub(crate) producer: Arc<P>,
    /// When to send.
    pub(crate) pace: Pace,
    /// The phases.
    pub(crate) timeline: Timeline,
    /// The run's clock.
    pub(crate) clock: Clock,
    /// The run's id.
    pub(crate) run: RunId,
    /// Makes the values.
    pub(crate) payload: PayloadBuilder,
    /// With `--keyed`.
    pub(crate) keys: Option<Arc<Keys>>,
    /// With `--even`: of how many partitions each record gets the next.
    pub(crate) partitions: Option<NonZeroU32>,
    /// Issues sequences, takes acknowledgements.
    pub(crate) ledger: Arc<Ledger>,
    /// Takes latencies and failures.
    pub(crate) meter: Arc<AckMeter>,
    /// Cancelled when the measured period is over: a send that still waits for buffer space is given up.
    pub(crate) stop: CancellationToken,
}

/// Sends until the measured period is over, then waits for every acknowledgement.
///
/// # Errors
/// When the client takes no further record, or the schedule cannot be kept for want of a timer.
pub(crate) async fn produce<P: Producer>(mut job: ProducerJob<P>) -> anyhow::Result<()> {
    let pacer = Pacer::new(job.clock)?;
    let mut lanes = Lanes::new(job.books());
    pacer.wait_until(job.timeline.start()).await?;
    while let Some(scheduled) = job.next_due(&pacer).await? {
        let sequence = job.ledger.issue(job.index);
        let header = Header { run: job.run, producer: job.index, sequence, scheduled };
        let message = Message {
            partition: job.partitions.map(|count| in_turn(sequence, job.index, count)),
            key: job.keys.as_deref().map(|keys| keys.of(sequence)),
            value: job.payload.build(&header),
        };
        let sent = tokio::select! {
            biased;
            sent = job.producer.send(message) => sent?,
            () = job.stop.cancelled() => {
                job.meter.record_withdrawn();
                break;
            }
        };
        lanes.push(sent, sequence, scheduled).await;
    }
    if let Pace::Scheduled(schedule) = &job.pace {
        job.meter.record_unsent(schedule.remaining());
    }
    job.producer.flush().await?;
    lanes.finish().await
}

/// The partition whose turn it is. Producers begin at different ones, so that they do not march in step.
fn in_turn(sequence: u64, producer: u32, partitions: NonZeroU32) -> u32 {
    let turn = sequence.wrapping_add(u64::from(producer)) % u64::from(partitions.get());
    // Below a u32.
    turn as u32
}

impl<P> ProducerJob<P> {
    fn books(&self) -> Books {
        let (ledger, meter) = (Arc::clone(&self.ledger), Arc::clone(&self.meter));
        Books { producer: self.index, clock: self.clock, ledger, meter }
    }

    /// Waits for the next record's time and returns it; `None` once the measured period is over.
    async fn next_due(&mut self, pacer: &Pacer) -> anyhow::Result<Option<Nanos>> {
        let now = self.clock.now();
        if now >= self.timeline.measure_until() {
            return Ok(None);
        }
        match &mut self.pace {
            Pace::FullLoad => Ok(Some(now)),
            Pace::Scheduled(schedule) => {
                let Some(due) = schedule.next() else { return Ok(None) };
                if due > now {
                    pacer.wait_until(due).await?;
                }
                Ok(Some(due))
            }
        }
    }
}
