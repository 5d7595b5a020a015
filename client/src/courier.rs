//! A courier carries records to one topic for a process that may crash and must know, when it comes back, exactly what
//! had arrived. It is a producer with a name that has **one batch of a partition under way at a time**, and begins the next
//! only when everything before it is acknowledged: so the records of a partition are stored in order and without holes, and
//! the last one stored tells which all the others are.
//!
//! ```text
//!  Freight: what fits into one batch of each partition  --deliver-->  at most one batch a partition  --> all stored
//!  after a crash:  last(partition): older couriers fenced, then the last record stored there, and its headers
//! ```
//! Never here: what the records are, and what is remembered of them elsewhere.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use busbar_proto::{Reason, batch::HEADER_BYTES, partition_of_key};
use bytes::Bytes;

use crate::{
    cluster::Cluster,
    consumer::{ConsumedRecord, ConsumerBuilder, OnLoss, StartAt},
    error::{ClientError, ConsumeError, DeliveryError, SendError},
    producer::{Producer, ProducerBuilder},
    record::Record,
};

/// Bytes of one batch, unless the topic allows less.
const BATCH_BYTES: usize = 256 << 10;
/// Bytes of one delivery, all partitions together. Well below a producer's buffer, as nothing of it leaves before all of
/// it is there.
const DELIVERY_BYTES_MAX: usize = 8 << 20;
/// A batch is sent when its delivery is complete and not before. Longer than any delivery takes to be put together.
const LINGER: Duration = Duration::from_secs(3600);

/// Carries records to one topic under a name.
#[derive(Debug)]
pub(crate) struct Courier {
    cluster: Arc<Cluster>,
    producer: Producer,
}

/// What a courier of this name has left in a partition.
#[derive(Debug)]
pub(crate) enum Left {
    /// Nothing, or nothing that the partition remembers.
    Nothing,
    /// This, last.
    Record(ConsumedRecord),
    /// A record at this offset, last, that retention has removed since.
    Removed { offset: u64 },
}

/// Why a record was not delivered.
#[derive(Clone, Debug)]
pub(crate) enum Undelivered {
    /// It was not taken.
    Refused(SendError),
    /// It was taken, and not acknowledged.
    Failed(Box<DeliveryError>),
}

impl Undelivered {
    /// Whether another courier of the name took over.
    pub(crate) fn is_fenced(&self) -> bool {
        match self {
            Self::Refused(error) => matches!(error, SendError::Fenced { .. }),
            Self::Failed(error) => matches!(**error, DeliveryError::Fenced { .. }),
        }
    }
}

impl Courier {
    /// Takes the name, away from whoever has it. A record that can't be delivered is tried for `patience`.
    ///
    /// # Errors
    /// As [`ProducerBuilder::build`].
    pub(crate) async fn open(
        cluster: &Arc<Cluster>,
        topic: &str,
        name: String,
        patience: Duration,
    ) -> Result<Self, ClientError> {
        let builder = ProducerBuilder::new(cluster.clone(), topic.to_owned()).name(name);
        let builder = builder.batch_bytes(BATCH_BYTES).linger(LINGER).delivery_timeout(patience);
        Ok(Self { cluster: cluster.clone(), producer: builder.build().await? })
    }

    pub(crate) fn topic(&self) -> &str {
        self.producer.topic()
    }

    /// Whether the topic keeps the newest record of each key only: what was stored last may be gone at any time.
    pub(crate) fn is_compacted(&self) -> bool {
        self.producer.is_compacted()
    }

    /// How many partitions the topic has.
    pub(crate) fn partitions(&self) -> u32 {
        self.producer.partitions()
    }

    /// Where a record goes that names no partition: by its key, or the same one for each number. The same after a crash.
    pub(crate) fn partition_of(&self, key: Option<&Bytes>, number: u64) -> u32 {
        match key {
            Some(key) => partition_of_key(key, self.partitions()).get(),
            None => (number % u64::from(self.partitions())) as u32,
        }
    }

    /// Bytes of one batch.
    pub(crate) fn batch_bytes(&self) -> usize {
        self.producer.batch_bytes_max().min(BATCH_BYTES)
    }

    /// What was stored last in a partition under this name. Older couriers are fenced there first.
    ///
    /// # Errors
    /// Another courier has the name; nobody answers.
    pub(crate) async fn last(&self, partition: u32) -> Result<Left, ClientError> {
        let Some(last) = self.producer.last_stored(partition).await? else { return Ok(Left::Nothing) };
        let consumer = ConsumerBuilder::new(self.cluster.clone(), self.topic().to_owned());
        let consumer = consumer.partitions([partition]).from(StartAt::Offset(last.offset)).on_loss(OnLoss::Fail);
        let mut consumer = consumer.build().await?;
        let waited = self.cluster.request_timeout;
        let read = tokio::time::timeout(waited, consumer.next()).await;
        let Ok(read) = read else {
            // Compaction removed it, and nothing comes after it.
            if consumer.positions().get(&partition).is_some_and(|&next| next > last.offset) {
                return Ok(Left::Removed { offset: last.offset });
            }
            let what = format!("read the last record of {:?} in partition {partition}", self.topic());
            return Err(ClientError::Timeout { what, waited, last: "its leader sent nothing".to_owned() });
        };
        match read {
            Ok(Some(record)) if record.offset() == last.offset => Ok(Left::Record(record)),
            Ok(Some(_)) => Ok(Left::Removed { offset: last.offset }),
            Ok(None) => Err(ClientError::Closed),
            Err(ConsumeError::Refused { refusal, .. }) if refusal.reason == Reason::OffsetOutOfRange => {
                Ok(Left::Removed { offset: last.offset })
            }
            Err(ConsumeError::Refused { refusal, .. }) => Err(ClientError::Refused(refusal)),
            Err(error) => Err(ClientError::Protocol(error.to_string())),
        }
    }

    /// Delivers records that each name their partition, and that one [`Freight`] has taken; returns once the fate of each
    /// is known. Cancelled, the courier must not be used any further.
    ///
    /// # Errors
    /// The first one (its place among them) that was not delivered. Those before it in its partition are stored.
    pub(crate) async fn deliver(&self, records: &[Record]) -> Result<(), (usize, Undelivered)> {
        let mut taken = Vec::with_capacity(records.len());
        let mut refused = None;
        for (place, record) in records.iter().enumerate() {
            match self.producer.send_as_it_is(record).await {
                Ok(delivery) => taken.push(delivery),
                Err(error) => {
                    refused = Some((place, Undelivered::Refused(error)));
                    break;
                }
            }
        }
        // Each is asked for its own fate below.
        let _ = self.producer.flush().await;
        for (place, delivery) in taken.into_iter().enumerate() {
            delivery.await.map_err(|error| (place, Undelivered::Failed(Box::new(error))))?;
        }
        refused.map_or(Ok(()), Err)
    }
}

impl Courier {
    /// Delivers one record; its offset. Cancelled, the courier must not be used any further.
    ///
    /// # Errors
    /// As [`Self::deliver`].
    pub(crate) async fn deliver_one(&self, record: &Record) -> Result<u64, Undelivered> {
        let delivery = self.producer.send_as_it_is(record).await.map_err(Undelivered::Refused)?;
        let _ = self.producer.flush().await;
        let delivered = delivery.await.map_err(|error| Undelivered::Failed(Box::new(error)))?;
        Ok(delivered.offset)
    }
}

/// What goes into one delivery: as much as fits into one batch of each partition. Pure.
#[derive(Debug, Default)]
pub(crate) struct Freight {
    /// Bytes by topic and partition.
    batches: BTreeMap<(Arc<str>, u32), usize>,
    bytes: usize,
}

impl Freight {
    /// Adds a record, unless it has to wait for the next delivery. The first one of a partition fits however large it is:
    /// it makes a batch of its own.
    pub(crate) fn takes(&mut self, topic: &Arc<str>, partition: u32, record: &Record, batch_bytes: usize) -> bool {
        let bytes = record.bytes_max();
        let known = self.batches.get(&(topic.clone(), partition)).copied();
        let is_over = known.is_some_and(|known| known + bytes > batch_bytes);
        if is_over || (self.bytes > 0 && self.bytes + bytes > DELIVERY_BYTES_MAX) {
            return false;
        }
        self.batches.insert((topic.clone(), partition), known.unwrap_or(HEADER_BYTES) + bytes);
        self.bytes += bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use busbar_proto::batch::{BatchBuilder, BatchOptions, Compression};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_taken_makes_one_batch_of_each_partition(
            sizes in prop::collection::vec((0_u32..3, 0_usize..600), 1..200),
        ) {
            const BATCH_BYTES: usize = 1000;
            let topic: Arc<str> = "t".into();
            let mut freight = Freight::default();
            let mut batches: BTreeMap<u32, BatchBuilder> = BTreeMap::new();
            for (partition, size) in sizes {
                let record = Record::new(vec![7; size]).key("k").header("busbar-outbox-seq", "18446744073709551615");
                let begins = !batches.contains_key(&partition);
                if !freight.takes(&topic, partition, &record, BATCH_BYTES) {
                    prop_assert!(!begins, "the first of a partition is always taken");
                    continue;
                }
                let options = BatchOptions { compression: Compression::None, max_bytes: BATCH_BYTES };
                let batch = batches.entry(partition).or_insert_with(|| BatchBuilder::new(options));
                // The producer's own rule for beginning another batch.
                prop_assert!(begins || batch.estimated_bytes() + record.bytes_max() <= BATCH_BYTES);
                batch.push(7, record.key.as_deref(), Some(&record.value), &record.headers).expect("room");
            }
        }
    }

    #[test]
    fn a_delivery_is_bounded_and_a_large_record_goes_alone() {
        let topic: Arc<str> = "t".into();
        let mut freight = Freight::default();
        assert!(freight.takes(&topic, 0, &Record::new(vec![0; DELIVERY_BYTES_MAX]), 1000), "larger than a batch");
        assert!(!freight.takes(&topic, 0, &Record::new(""), 1000));
        assert!(!freight.takes(&topic, 1, &Record::new(""), 1000), "the delivery is full");
        assert!(Freight::default().takes(&topic, 1, &Record::new(""), 1000));
    }
}
