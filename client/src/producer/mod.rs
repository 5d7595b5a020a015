//! Publishing: [`Producer`] takes records, batches them per partition and delivers each batch exactly once per
//! partition order, whatever happens to connections and leaders on the way.
//!
//! | file | owns |
//! |---|---|
//! | `builder` | options, and what is made of them |
//! | `batcher` | records that gather (pure) |
//! | `window` | batches under way: sequences, retries, order (pure) |
//! | `shard` | one partition: batcher + window + leader |
//! | `taking`, `room` | who waits for room; the buffer, and the share of it that stuck partitions may have |
//! | `core` | all partitions, the links; who calls whom |
//! | `link`, `answers` | one Publish stream; what comes back on it |
//! | `identity` | the producer id |
//! | `sealed`, `ticket`, `stats` | a batch's bytes, its receipt, the counters |
//! | `story`, `report` | what happened to a batch, while it happens and told in the end |

mod answers;
mod batcher;
mod builder;
mod core;
mod identity;
mod link;
mod report;
mod room;
mod sealed;
mod shard;
mod stats;
pub(crate) mod story;
mod taking;
mod ticket;
mod window;

use std::{future::IntoFuture, sync::Arc};

use busbar_proto::PartitionId;

use self::core::Core;
pub use self::{
    builder::ProducerBuilder,
    identity::LastStored,
    report::{Attempt, DeliveryReport, NextStep, Verdict},
    stats::ProducerStats,
    ticket::{Delivered, Delivery},
};
use crate::{
    context::spans::SendSpan,
    destinations::BrokerStats,
    error::{ClientError, DeliveryError, SendError, TrySendError},
    record::Record,
};

/// Publishes to one topic. Cheap to clone; clones share buffer, order and streams.
///
/// Idempotent: a record is stored once, however often it is sent again. Records of one partition (and so of one
/// key) are stored in the order of their `send` calls; with several tasks sending, in the order in which these
/// calls return. After a [`DeliveryError::Unknown`] that record alone is in doubt: later ones go on, in order.
///
/// Dropping the last clone gives up what is queued; [`Producer::close`] delivers it first.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::Record;
///
/// let producer = client.producer("orders").build().await?;
/// let delivery = producer.send(Record::new("paid").key("order-17")).await?;
/// println!("stored at offset {}", delivery.await?.offset);
/// producer.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Producer {
    handle: Arc<Handle>,
}

/// Ends the producer with its last clone. Apart from [`Core`], which its tasks hold too.
#[derive(Debug)]
struct Handle {
    core: Arc<Core>,
    buffer_bytes: usize,
    batch_bytes_max: usize,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.abandon();
    }
}

impl Producer {
    /// Takes a record; waits while the buffer is full, or while the record's partition gets nothing done and the
    /// records of such partitions have their share of it ([`ProducerBuilder::parked_bytes`]). The receipt resolves when
    /// the record's fate is known.
    ///
    /// Cancel safe: a record whose `send` was dropped while it waited is not sent. A record with a deadline of its own
    /// waits no longer than that: its delivery then says so.
    ///
    /// # Errors
    /// [`SendError`]: closed, too large for the topic, or no such partition. The record will never be stored.
    pub async fn send(&self, record: impl Into<Record>) -> Result<Delivery, SendError> {
        let mut record = record.into();
        record.note_times(|| self.handle.core.cluster.time_ms_unless_wrong());
        let begun = record.send_before_ms.map(|_| self.handle.core.cluster.env.now());
        let span = SendSpan::begin(self.topic(), &mut record);
        let taken = self.take(&record).await;
        // There was no room for it in its own time.
        let taken = taken.and_then(|taken| taken.map_or_else(|| self.handle.core.never_taken(&record, begun), Ok));
        match taken {
            Ok(delivery) => Ok(delivery.traced(span)),
            Err(error) => {
                span.refused(&error);
                Err(error)
            }
        }
    }

    /// As [`Self::send`]; `None` when the record's own deadline passed before there was room for it.
    pub(crate) async fn send_in_time(&self, mut record: Record) -> Result<Option<Delivery>, SendError> {
        let span = SendSpan::begin(self.topic(), &mut record);
        match self.take(&record).await {
            Ok(Some(delivery)) => Ok(Some(delivery.traced(span))),
            Ok(None) => {
                span.take_back(&mut record);
                Ok(None)
            }
            Err(error) => {
                span.refused(&error);
                Err(error)
            }
        }
    }

    /// Takes a record if there is room for it now, and gives it back if not.
    ///
    /// # Errors
    /// [`TrySendError::Full`] with the record, or the same as [`Self::send`].
    pub fn try_send(&self, record: impl Into<Record>) -> Result<Delivery, TrySendError> {
        let mut record = record.into();
        let as_given = (record.headers.len(), record.deliver_at, record.expires_at);
        record.note_times(|| self.handle.core.cluster.time_ms_unless_wrong());
        let span = SendSpan::begin(self.topic(), &mut record);
        let held_bytes = self.held_bytes(&record);
        match held_bytes.and_then(|held_bytes| self.handle.core.take_now(&record, held_bytes)) {
            Ok(Some(delivery)) => Ok(delivery.traced(span)),
            Ok(None) => {
                span.take_back(&mut record);
                record.headers.truncate(as_given.0);
                (record.deliver_at, record.expires_at) = (as_given.1, as_given.2);
                Err(TrySendError::Full(Box::new(record)))
            }
            Err(error) => {
                span.refused(&error);
                Err(error.into())
            }
        }
    }

    /// Sends what was taken so far without waiting for company, and waits until the fate of all of it is known.
    /// Cancel safe.
    ///
    /// # Errors
    /// The first failure among them; the others are reported by their own receipts.
    pub async fn flush(&self) -> Result<(), DeliveryError> {
        let mut flushed = Ok(());
        for receipt in self.handle.core.expedite() {
            let outcome = receipt.into_future().await;
            flushed = flushed.and(outcome.map(drop));
        }
        flushed
    }

    /// Takes no more records, delivers what is queued, and ends the producer (for all clones). Cancelled, it takes
    /// no more records; calling it again goes on.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub async fn close(&self) -> Result<(), DeliveryError> {
        self.handle.core.refuse_records();
        let flushed = self.flush().await;
        self.handle.core.abandon();
        self.handle.core.tasks.ended().await;
        flushed
    }

    /// What it has done so far.
    pub fn stats(&self) -> ProducerStats {
        let core = &self.handle.core;
        core.counters.read(core.room.used(), core.room.parked())
    }

    /// How the brokers fare that were sent to by this producer, or by another one with the same guards: those with
    /// default settings share them with all others of their client.
    pub fn brokers(&self) -> Vec<BrokerStats> {
        let core = &self.handle.core;
        core.destinations.stats(core.cluster.env.now())
    }

    /// The topic it publishes to.
    pub fn topic(&self) -> &str {
        &self.handle.core.topic.name
    }

    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.handle.core.named.as_ref().map(|named| &*named.name)
    }

    /// The last record that a partition has stored of this producer's name, by this instance or one before; `None`
    /// when there is none, or none that is remembered (for a week). First, older instances are fenced in the
    /// partition for good, so what they have under way can't change the answer any more.
    ///
    /// What a relay asks before its first `send`, so that it goes on where the last one was stopped: an instance
    /// sends each partition's records in order and stops at the first that fails, so all up to this one are stored
    /// and none after. To know which one it is, put a number of your own into a header and read the record.
    ///
    /// ```no_run
    /// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use busbar_client::StartAt;
    ///
    /// let producer = client.producer("orders").name("relay-1").build().await?;
    /// for partition in 0..producer.partitions() {
    ///     let Some(last) = producer.last_stored(partition).await? else { continue };
    ///     let consumer = client.consumer("orders").partitions([partition]).from(StartAt::Offset(last.offset));
    ///     if let Some(record) = consumer.build().await?.next().await? {
    ///         println!("partition {partition}: stored up to {:?}", record.header("outbox-id"));
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// This producer has no name; no such partition; `PRODUCER_FENCED`; nobody answers.
    pub async fn last_stored(&self, partition: u32) -> Result<Option<LastStored>, ClientError> {
        self.handle.core.last_stored(PartitionId::new(partition)).await
    }

    /// Whether the topic keeps the newest record of each key only.
    pub(crate) fn is_compacted(&self) -> bool {
        self.handle.core.is_compacted()
    }

    /// How many partitions the topic has.
    pub fn partitions(&self) -> u32 {
        self.handle.core.partitions()
    }

    /// Bytes that a batch of the topic may have.
    pub(crate) fn batch_bytes_max(&self) -> usize {
        self.handle.batch_bytes_max
    }

    /// As [`Self::send`], without a span: the record stays as it is.
    pub(crate) async fn send_as_it_is(&self, record: &Record) -> Result<Delivery, SendError> {
        let begun = record.send_before_ms.map(|_| self.handle.core.cluster.env.now());
        let taken = self.take(record).await?;
        taken.map_or_else(|| self.handle.core.never_taken(record, begun), Ok)
    }

    async fn take(&self, record: &Record) -> Result<Option<Delivery>, SendError> {
        let held_bytes = self.held_bytes(record)?;
        self.handle.core.take(record, held_bytes).await
    }

    /// Buffer space for a record. One that no batch could hold is refused before it waits for space.
    fn held_bytes(&self, record: &Record) -> Result<u32, SendError> {
        let limit = self.handle.batch_bytes_max;
        let payload = record.value.len() + record.key.as_ref().map_or(0, bytes::Bytes::len);
        if payload > limit {
            let topic = self.topic().to_owned();
            return Err(SendError::TooLarge { topic, bytes: payload, limit });
        }
        Ok(record.bytes_max().min(self.handle.buffer_bytes) as u32)
    }
}
