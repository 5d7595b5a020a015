//! The seam to the broker under test. A run knows only these traits, so that another broker's client can carry
//! the same workload with the same schedule, histograms and checks.
//!
//! The hot loop calls through generics, never through a box: the seam costs nothing a record.

use std::future::Future;

use bytes::Bytes;
use serde::Serialize;

use super::options::Durability;

pub(crate) mod busbar;
#[cfg(feature = "kafka")]
pub(crate) mod kafka;
#[cfg(test)]
pub(crate) mod loopback;
#[cfg(feature = "nats")]
pub(crate) mod nats;

/// What the run asks of the topic when it has to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopicRequest {
    /// `None` = the tool's default, 1.
    pub(crate) partitions: Option<u32>,
    /// `None` = as many as the cluster has nodes, at most 3.
    pub(crate) replicas: Option<u32>,
    /// `None` = fsync.
    pub(crate) durability: Option<Durability>,
}

/// What the topic really is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TopicFacts {
    /// When a record counts as acknowledged.
    pub(crate) durability: Durability,
    /// Copies of each partition.
    pub(crate) replicas: u32,
    /// Partitions, numbered from 0.
    pub(crate) partitions: u32,
}

/// A record to publish.
pub(crate) struct Message {
    /// Where it goes; `None` = by its key, or as the client picks.
    pub(crate) partition: Option<u32>,
    /// `None` = the client picks the partition.
    pub(crate) key: Option<Bytes>,
    /// The payload.
    pub(crate) value: Bytes,
}

/// A record that was read.
pub(crate) struct Received {
    /// Where it was read.
    pub(crate) partition: u32,
    /// The payload.
    pub(crate) value: Bytes,
}

/// A sent record whose fate is open.
pub(crate) struct Sent<A> {
    /// Where it goes, if the client tells so early: acknowledgements of one partition come in the order of sending.
    pub(crate) partition: Option<u32>,
    /// Resolves to the fate.
    pub(crate) ack: A,
}

/// A broker under test, reached through its own client.
pub(crate) trait Target: Send + Sync + 'static {
    /// Publishes.
    type Producer: Producer;
    /// Reads.
    type Consumer: Consumer;

    /// Finds the topic or makes it.
    fn prepare(&self, topic: TopicRequest) -> impl Future<Output = anyhow::Result<TopicFacts>> + Send;

    /// A new producer, connected as far as its client does that ahead.
    fn producer(&self) -> impl Future<Output = anyhow::Result<Self::Producer>> + Send;

    /// A new consumer of these partitions. Its start is fixed when this returns: whatever is published later
    /// is delivered.
    fn consumer(&self, partitions: &[u32]) -> impl Future<Output = anyhow::Result<Self::Consumer>> + Send;

    /// Deletes the topic, if it is there.
    fn discard(&self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Publishes records, keeping their order within a partition.
pub(crate) trait Producer: Send + Sync + 'static {
    /// Resolves once the record's fate is known; the error says why it was not acknowledged.
    type Ack: Future<Output = Result<(), String>> + Send + Unpin + 'static;

    /// Hands a record to the client; waits as long as the client's buffer is full. Fails only when no further
    /// record can be sent.
    fn send(&self, message: Message) -> impl Future<Output = anyhow::Result<Sent<Self::Ack>>> + Send;

    /// Waits until nothing is buffered or under way.
    fn flush(&self) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Batches that were sent again, so far.
    fn retries(&self) -> u64;
}

/// Reads the records of its partitions, in order within each.
pub(crate) trait Consumer: Send + 'static {
    /// The next record, or `None` when the broker ended the subscription. Cancel safe.
    fn next(&mut self) -> impl Future<Output = anyhow::Result<Option<Received>>> + Send;
}
