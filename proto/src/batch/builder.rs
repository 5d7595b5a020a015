//! Building a batch: each record is encoded once, straight into the batch's own buffer; header and checksum
//! follow when it is built.
//!
//! Invariants: [`BatchBuilder::estimated_bytes`] never exceeds the limit given, and the built batch never
//! exceeds the estimate (a section that compression would enlarge is stored as it is).

use bytes::Bytes;

use super::{
    compress::{self, Compression},
    header::{self, Attributes, BatchHeader, HEADER_BYTES},
    varint::{self, I32_BYTES_MAX, I64_BYTES_MAX},
};
use crate::{
    ids::{ProducerEpoch, ProducerId, Sequence},
    limits,
    offset::Offset,
};

/// Bytes taken at first, so that small batches need no second allocation and idle producers little memory.
const FIRST_BYTES: usize = 4 << 10;
/// Leader epoch of a batch that no leader has stamped yet.
const NO_EPOCH: i32 = -1;
/// The longest run of numbers before a record's key: length, attributes, two deltas, key length.
const PREFIX_BYTES_MAX: usize = I32_BYTES_MAX + 1 + I64_BYTES_MAX + I32_BYTES_MAX + I32_BYTES_MAX;

/// For [`BatchBuilder::push`] of a record without headers.
pub const NO_HEADERS: &[(&str, &[u8])] = &[];

/// What a batch is built like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// How the records are compressed, unless that saves nothing. Gzip and Snappy are never written.
    pub compression: Compression,
    /// Most bytes of the batch before compression, header included; at most [`limits::BATCH_BYTES_MAX`] counts.
    pub max_bytes: usize,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { compression: Compression::None, max_bytes: limits::BATCH_BYTES_DEFAULT as usize }
    }
}

/// Who publishes, and the sequence of the batch's first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerState {
    /// The producer.
    pub id: ProducerId,
    /// Its incarnation.
    pub epoch: ProducerEpoch,
    /// Sequence of the first record.
    pub sequence: Sequence,
}

impl ProducerState {
    /// A producer without idempotence.
    pub const NONE: Self = Self { id: ProducerId::NONE, epoch: ProducerEpoch::new(-1), sequence: Sequence::new(-1) };
}

/// A record does not fit: build what is there and begin another batch, unless it [is too large](Self::is_record_too_large).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the batch is full: {record_bytes} bytes more on {batch_bytes}; the limits are {limit_bytes} bytes and {} records",
    limits::BATCH_RECORDS_MAX
)]
pub struct Full {
    /// Bytes of the record, encoded.
    pub record_bytes: usize,
    /// Bytes of the batch so far.
    pub batch_bytes: usize,
    /// The limit.
    pub limit_bytes: usize,
}

impl Full {
    /// Whether the record fits no batch of this limit, not even as its only one.
    pub const fn is_record_too_large(&self) -> bool {
        HEADER_BYTES.saturating_add(self.record_bytes) > self.limit_bytes
    }
}

/// Gathers records into one batch.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    compression: Compression,
    max_bytes: usize,
    /// Room for the header, then the records.
    buffer: Vec<u8>,
    record_count: u32,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new(options: BatchOptions) -> Self {
        let BatchOptions { compression, max_bytes } = options;
        let max_bytes = max_bytes.min(limits::BATCH_BYTES_MAX as usize);
        let mut buffer = Vec::with_capacity(FIRST_BYTES);
        buffer.resize(HEADER_BYTES, 0);
        Self { compression, max_bytes, buffer, record_count: 0, base_timestamp_ms: 0, max_timestamp_ms: i64::MIN }
    }

    /// Appends a record, or leaves the batch as it was.
    ///
    /// # Errors
    /// [`Full`] when the record would exceed the limit on bytes or [`limits::BATCH_RECORDS_MAX`].
    pub fn push<N: AsRef<str>, V: AsRef<[u8]>>(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(N, V)],
    ) -> Result<(), Full> {
        let base = if self.record_count == 0 { timestamp_ms } else { self.base_timestamp_ms };
        let timestamp_delta = timestamp_ms.wrapping_sub(base);
        let offset_delta = i64::from(self.record_count);
        let body_bytes = 1
            + varint::encoded_bytes(timestamp_delta)
            + varint::encoded_bytes(offset_delta)
            + nullable_bytes(key)
            + nullable_bytes(value)
            + headers_bytes(headers);
        self.make_room(varint::encoded_bytes(body_bytes as i64) + body_bytes)?;

        let mut prefix = [0; PREFIX_BYTES_MAX];
        let mut end = varint::put(&mut prefix, 0, body_bytes as i64);
        end += 1; // the record's attributes: always 0
        end = varint::put(&mut prefix, end, timestamp_delta);
        end = varint::put(&mut prefix, end, offset_delta);
        end = varint::put(&mut prefix, end, nullable_length(key));
        self.buffer.extend_from_slice(&prefix[..end]);
        self.buffer.extend_from_slice(key.unwrap_or_default());
        self.put_number(nullable_length(value));
        self.buffer.extend_from_slice(value.unwrap_or_default());
        self.put_number(headers.len() as i64);
        for (name, value) in headers {
            self.put_bytes(name.as_ref().as_bytes());
            self.put_bytes(value.as_ref());
        }

        self.record_count += 1;
        self.base_timestamp_ms = base;
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        Ok(())
    }

    /// Bytes of the batch if it were built now, before compression.
    pub fn estimated_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Records so far.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Whether there is no record yet.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// The batch's bytes, as a leader accepts them: offset 0, no epoch.
    ///
    /// # Panics
    /// When the batch is empty: there is no such batch.
    pub fn build(self, producer: ProducerState) -> Bytes {
        assert!(self.record_count > 0, "a batch has at least one record");
        let Self { compression, mut buffer, record_count, base_timestamp_ms, max_timestamp_ms, .. } = self;
        let compression = match compress_section(compression, &buffer) {
            Some(compressed) => {
                buffer = compressed;
                compression
            }
            None => Compression::None,
        };
        let header = BatchHeader {
            base_offset: Offset::ZERO,
            batch_length: BatchHeader::length_of(buffer.len()),
            leader_epoch: NO_EPOCH,
            crc: 0,
            attributes: Attributes::published(compression),
            last_offset_delta: record_count - 1,
            base_timestamp_ms,
            max_timestamp_ms,
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            base_sequence: producer.sequence,
            record_count,
        };
        buffer[..HEADER_BYTES].copy_from_slice(&header.encode());
        header::seal(&mut buffer);
        Bytes::from(buffer)
    }

    fn make_room(&mut self, record_bytes: usize) -> Result<(), Full> {
        let batch_bytes = self.buffer.len();
        let fits = batch_bytes.saturating_add(record_bytes) <= self.max_bytes;
        if !fits || self.record_count == limits::BATCH_RECORDS_MAX {
            return Err(Full { record_bytes, batch_bytes, limit_bytes: self.max_bytes });
        }
        self.buffer.reserve(record_bytes);
        Ok(())
    }

    fn put_number(&mut self, value: i64) {
        let mut bytes = [0; I64_BYTES_MAX];
        let end = varint::put(&mut bytes, 0, value);
        self.buffer.extend_from_slice(&bytes[..end]);
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_number(bytes.len() as i64);
        self.buffer.extend_from_slice(bytes);
    }
}

/// The batch with its records compressed, its header still blank; `None` where nothing is saved.
fn compress_section(compression: Compression, plain: &[u8]) -> Option<Vec<u8>> {
    if compression == Compression::None {
        return None;
    }
    let mut compressed = Vec::with_capacity(plain.len());
    compressed.resize(HEADER_BYTES, 0);
    compress::compress(compression, &plain[HEADER_BYTES..], &mut compressed).then_some(compressed)
}

fn nullable_length(bytes: Option<&[u8]>) -> i64 {
    bytes.map_or(-1, |bytes| bytes.len() as i64)
}

fn nullable_bytes(bytes: Option<&[u8]>) -> usize {
    varint::encoded_bytes(nullable_length(bytes)) + bytes.map_or(0, <[u8]>::len)
}

fn headers_bytes<N: AsRef<str>, V: AsRef<[u8]>>(headers: &[(N, V)]) -> usize {
    let each = |bytes: &[u8]| varint::encoded_bytes(bytes.len() as i64) + bytes.len();
    let all = headers.iter().map(|(name, value)| each(name.as_ref().as_bytes()) + each(value.as_ref()));
    varint::encoded_bytes(headers.len() as i64) + all.sum::<usize>()
}
