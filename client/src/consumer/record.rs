//! A record as a consumer hands it out. It shares memory with the batch it came in: a record that is kept for
//! long keeps its whole batch; copy what you keep.

use std::sync::Arc;

use busbar_proto::{PartitionId, batch::RecordView};
use bytes::Bytes;

use crate::schedule::{self, DELIVER_AT, EXPIRES_AT};

static EMPTY: Bytes = Bytes::new();

/// A record read from a topic.
///
/// ```no_run
/// # fn example(record: busbar_client::ConsumedRecord) {
/// let place = (record.topic(), record.partition(), record.offset());
/// println!("{place:?}: {:?} = {:?}, from {:?}", record.key(), record.value(), record.header("region"));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ConsumedRecord {
    topic: Arc<str>,
    partition: PartitionId,
    view: RecordView,
}

impl ConsumedRecord {
    pub(crate) fn new(topic: Arc<str>, partition: PartitionId, view: RecordView) -> Self {
        Self { topic, partition, view }
    }

    /// The same in memory of its own.
    pub(crate) fn detached(&self) -> Self {
        Self { topic: self.topic.clone(), partition: self.partition, view: self.view.detached() }
    }

    /// Bytes of what it carries.
    pub(crate) fn payload_bytes(&self) -> usize {
        let headers = self.headers().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        self.view.key.as_ref().map_or(0, Bytes::len) + self.value().len() + headers
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The partition.
    pub fn partition(&self) -> u32 {
        self.partition.get()
    }

    /// Its offset in the partition.
    pub fn offset(&self) -> u64 {
        self.view.offset.get()
    }

    /// Milliseconds since the Unix epoch, as the producer said.
    pub fn timestamp_ms(&self) -> i64 {
        self.view.timestamp_ms
    }

    /// The key.
    pub fn key(&self) -> Option<&Bytes> {
        self.view.key.as_ref()
    }

    /// The payload; empty for a null value (see [`Self::is_null`]).
    pub fn value(&self) -> &Bytes {
        self.view.value.as_ref().unwrap_or(&EMPTY)
    }

    /// Whether the value is null, which Kafka's clients can write: "the key is deleted".
    pub fn is_null(&self) -> bool {
        self.view.value.is_none()
    }

    /// Names and values of the headers, in order; names may repeat. A null value reads as empty.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.view.headers.iter().map(|header| (header.key(), header.value.as_ref().unwrap_or(&EMPTY)))
    }

    /// The value of the last header of that name.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.view.header(name)
    }

    /// Not to be delivered by a group before this, in milliseconds since the Unix epoch; `None` without such a header, or
    /// when it can't be read. See [`Record::deliver_after`](crate::Record::deliver_after).
    pub fn deliver_at_ms(&self) -> Option<i64> {
        self.header(DELIVER_AT).and_then(|text| schedule::parse(text))
    }

    /// Not to be delivered by a group from this on, as [`Self::deliver_at_ms`]. See [`Record::ttl`](crate::Record::ttl).
    pub fn expires_at_ms(&self) -> Option<i64> {
        self.header(EXPIRES_AT).and_then(|text| schedule::parse(text))
    }
}
