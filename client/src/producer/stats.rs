//! A producer's counters. They only grow, except for what is buffered now.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::{
    destinations::Obstacle,
    producer::{shard::Finished, ticket::Stored},
};

/// What a producer has done so far.
///
/// ```no_run
/// # fn example(producer: busbar_client::Producer) {
/// let stats = producer.stats();
/// println!("{} of {} acknowledged, {} retries", stats.acknowledged, stats.records, stats.retries);
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerStats {
    /// Records taken.
    pub records: u64,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Of those: records that an earlier attempt had stored already.
    pub duplicates: u64,
    /// Records rejected or of unknown fate.
    pub failed: u64,
    /// Batches sent, each counted once.
    pub batches: u64,
    /// Times a batch was sent again.
    pub retries: u64,
    /// Times that a partition's batches were held back by an open circuit breaker.
    pub parked: u64,
    /// Times that a partition's retries were held back by a spent retry budget.
    pub retries_held: u64,
    /// Times that a failure of this producer's opened a broker's circuit breaker.
    pub breakers_opened: u64,
    /// Bytes of buffer that unfinished records hold now.
    pub buffered_bytes: u64,
    /// Of these: bytes of records whose partition gets nothing done now (see [`ProducerBuilder::parked_bytes`]).
    ///
    /// [`ProducerBuilder::parked_bytes`]: crate::ProducerBuilder::parked_bytes
    pub parked_bytes: u64,
    /// Time that calls of `send()` have spent waiting for room, together.
    pub waited: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    records: AtomicU64,
    acknowledged: AtomicU64,
    duplicates: AtomicU64,
    failed: AtomicU64,
    batches: AtomicU64,
    retries: AtomicU64,
    parked: AtomicU64,
    retries_held: AtomicU64,
    breakers_opened: AtomicU64,
    waited_us: AtomicU64,
}

impl Counters {
    pub(crate) fn taken(&self) {
        self.records.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, attempts: u32) {
        let counter = if attempts > 1 { &self.retries } else { &self.batches };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn held(&self, by: Obstacle) {
        let counter = match by {
            Obstacle::PartitionBreaker | Obstacle::BrokerBreaker(_) => &self.parked,
            Obstacle::RetryBudget(_) => &self.retries_held,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn breaker_opened(&self) {
        self.breakers_opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn finished(&self, finished: &Finished) {
        let records = u64::from(finished.records);
        match finished.outcome {
            Ok(Stored { duplicate, .. }) => {
                self.acknowledged.fetch_add(records, Ordering::Relaxed);
                self.duplicates.fetch_add(if duplicate { records } else { 0 }, Ordering::Relaxed);
            }
            Err(_) => {
                self.failed.fetch_add(records, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn waited(&self, time: Duration) {
        self.waited_us.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn read(&self, buffered_bytes: u64, parked_bytes: u64) -> ProducerStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ProducerStats {
            records: read(&self.records),
            acknowledged: read(&self.acknowledged),
            duplicates: read(&self.duplicates),
            failed: read(&self.failed),
            batches: read(&self.batches),
            retries: read(&self.retries),
            parked: read(&self.parked),
            retries_held: read(&self.retries_held),
            breakers_opened: read(&self.breakers_opened),
            buffered_bytes,
            parked_bytes,
            waited: Duration::from_micros(read(&self.waited_us)),
        }
    }
}
