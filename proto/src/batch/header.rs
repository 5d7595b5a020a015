//! The fixed 61-byte header: parsing, checking, stamping, and cutting concatenated batches apart. Nothing here
//! reads a record.
//!
//! Invariant: a [`BatchHeader`] that [`verify`] returned describes exactly the slice that it was given.

use bytes::Bytes;

use super::{compress::Compression, error::BatchError, record::RECORD_BYTES_MIN};
use crate::{
    ids::{ProducerEpoch, ProducerId, Sequence},
    limits,
    offset::Offset,
};

/// Bytes of the header; the records section follows.
pub const HEADER_BYTES: usize = 61;

/// The only format version.
const MAGIC: i8 = 2;

/// Byte positions of the fields.
mod at {
    pub(super) const BASE_OFFSET: usize = 0;
    pub(super) const BATCH_LENGTH: usize = 8;
    pub(super) const LEADER_EPOCH: usize = 12;
    pub(super) const MAGIC: usize = 16;
    pub(super) const CRC: usize = 17;
    pub(super) const ATTRIBUTES: usize = 21;
    pub(super) const LAST_OFFSET_DELTA: usize = 23;
    pub(super) const BASE_TIMESTAMP: usize = 27;
    pub(super) const MAX_TIMESTAMP: usize = 35;
    pub(super) const PRODUCER_ID: usize = 43;
    pub(super) const PRODUCER_EPOCH: usize = 51;
    pub(super) const BASE_SEQUENCE: usize = 53;
    pub(super) const RECORD_COUNT: usize = 57;
}

/// Bytes before those that the batch length counts.
const LENGTH_END: usize = at::LEADER_EPOCH;

const _: () = assert!(at::RECORD_COUNT + size_of::<i32>() == HEADER_BYTES);
const _: () = assert!(limits::BATCH_BYTES_MAX <= i32::MAX as u32);
const _: () = assert!(limits::BATCH_RECORDS_MAX <= i32::MAX as u32);

/// The attribute bits of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes(u16);

impl Attributes {
    const CODEC: u16 = 0b111;
    const LOG_APPEND_TIME: u16 = 1 << 3;
    const TRANSACTIONAL: u16 = 1 << 4;
    const CONTROL: u16 = 1 << 5;

    /// From the header's bits.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The header's bits.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Those of a batch that a client publishes: a codec and nothing else.
    pub const fn published(compression: Compression) -> Self {
        Self(compression.codec() as u16)
    }

    /// The codec.
    ///
    /// # Errors
    /// [`BatchError::UnknownCodec`] for bits without a meaning.
    pub const fn compression(self) -> Result<Compression, BatchError> {
        Compression::from_codec((self.0 & Self::CODEC) as u8)
    }

    /// Whether every record has the header's max timestamp, set by a broker.
    pub const fn is_log_append_time(self) -> bool {
        self.0 & Self::LOG_APPEND_TIME != 0
    }

    /// Whether the batch belongs to a transaction.
    pub const fn is_transactional(self) -> bool {
        self.0 & Self::TRANSACTIONAL != 0
    }

    /// Whether the records are a broker's control records.
    pub const fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }
}

/// The fixed part of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record; stamped by the leader.
    pub base_offset: Offset,
    /// Bytes after the length field.
    pub batch_length: u32,
    /// Term of the leader that stored the batch; stamped. -1 before.
    pub leader_epoch: i32,
    /// CRC-32C over everything from the attributes to the end.
    pub crc: u32,
    /// Codec and flags.
    pub attributes: Attributes,
    /// Offset of the last record less the base offset.
    pub last_offset_delta: u32,
    /// Timestamp of the first record, in milliseconds since 1970.
    pub base_timestamp_ms: i64,
    /// The largest timestamp, in milliseconds since 1970.
    pub max_timestamp_ms: i64,
    /// Who published it; negative without idempotence.
    pub producer_id: ProducerId,
    /// Incarnation of the producer.
    pub producer_epoch: ProducerEpoch,
    /// The producer's sequence of the first record.
    pub base_sequence: Sequence,
    /// Number of records.
    pub record_count: u32,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`; bytes after it are not looked at.
    ///
    /// # Errors
    /// Fewer than 61 bytes, another magic than 2, or a field that must not be negative.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let raw = bytes.first_chunk::<HEADER_BYTES>().ok_or(BatchError::short_header(bytes.len()))?;
        let magic = i8::from_be_bytes(take(raw, at::MAGIC));
        if magic != MAGIC {
            return Err(BatchError::Magic { found: magic });
        }
        let base_offset = i64::from_be_bytes(take(raw, at::BASE_OFFSET));
        let base_offset = u64::try_from(base_offset).map_err(|_| field("base offset", base_offset, 0))?;
        Ok(Self {
            base_offset: Offset::new(base_offset),
            batch_length: at_least(raw, at::BATCH_LENGTH, "batch length", (HEADER_BYTES - LENGTH_END) as i32)?,
            leader_epoch: i32::from_be_bytes(take(raw, at::LEADER_EPOCH)),
            crc: u32::from_be_bytes(take(raw, at::CRC)),
            attributes: Attributes(u16::from_be_bytes(take(raw, at::ATTRIBUTES))),
            last_offset_delta: at_least(raw, at::LAST_OFFSET_DELTA, "last offset delta", 0)?,
            base_timestamp_ms: i64::from_be_bytes(take(raw, at::BASE_TIMESTAMP)),
            max_timestamp_ms: i64::from_be_bytes(take(raw, at::MAX_TIMESTAMP)),
            producer_id: ProducerId::new(i64::from_be_bytes(take(raw, at::PRODUCER_ID))),
            producer_epoch: ProducerEpoch::new(i16::from_be_bytes(take(raw, at::PRODUCER_EPOCH))),
            base_sequence: Sequence::new(i32::from_be_bytes(take(raw, at::BASE_SEQUENCE))),
            record_count: at_least(raw, at::RECORD_COUNT, "record count", 0)?,
        })
    }

    /// The 61 bytes that [`Self::parse`] reads back, with the checksum as it stands in `crc`.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut raw = [0; HEADER_BYTES];
        put(&mut raw, at::BASE_OFFSET, self.base_offset.get().to_be_bytes());
        put(&mut raw, at::BATCH_LENGTH, self.batch_length.to_be_bytes());
        put(&mut raw, at::LEADER_EPOCH, self.leader_epoch.to_be_bytes());
        put(&mut raw, at::MAGIC, MAGIC.to_be_bytes());
        put(&mut raw, at::CRC, self.crc.to_be_bytes());
        put(&mut raw, at::ATTRIBUTES, self.attributes.0.to_be_bytes());
        put(&mut raw, at::LAST_OFFSET_DELTA, self.last_offset_delta.to_be_bytes());
        put(&mut raw, at::BASE_TIMESTAMP, self.base_timestamp_ms.to_be_bytes());
        put(&mut raw, at::MAX_TIMESTAMP, self.max_timestamp_ms.to_be_bytes());
        put(&mut raw, at::PRODUCER_ID, self.producer_id.get().to_be_bytes());
        put(&mut raw, at::PRODUCER_EPOCH, self.producer_epoch.get().to_be_bytes());
        put(&mut raw, at::BASE_SEQUENCE, self.base_sequence.get().to_be_bytes());
        put(&mut raw, at::RECORD_COUNT, self.record_count.to_be_bytes());
        raw
    }

    /// The length field of a batch of that many bytes, which a limit has bounded long before.
    pub(super) const fn length_of(total_bytes: usize) -> u32 {
        assert!(total_bytes >= HEADER_BYTES && total_bytes <= limits::BATCH_BYTES_MAX as usize);
        (total_bytes - LENGTH_END) as u32
    }

    /// Bytes of the whole batch, header and records.
    pub const fn total_bytes(&self) -> usize {
        LENGTH_END + self.batch_length as usize
    }

    /// The offset after the last record.
    pub const fn next_offset(&self) -> Offset {
        self.base_offset.advance(self.last_offset_delta as u64 + 1)
    }

    /// Whether a producer's sequence protects it from being stored twice.
    pub const fn is_idempotent(&self) -> bool {
        self.producer_id.get() >= 0
    }

    /// How the records are compressed.
    ///
    /// # Errors
    /// [`BatchError::UnknownCodec`] for bits without a meaning.
    pub const fn compression(&self) -> Result<Compression, BatchError> {
        self.attributes.compression()
    }

    /// The rules on single fields that hold for every batch a client may publish.
    fn check_publishable(&self) -> Result<(), BatchError> {
        let Self { record_count: count, last_offset_delta, .. } = *self;
        if count == 0 || count - 1 != last_offset_delta {
            return Err(BatchError::RecordCount { count, last_offset_delta });
        }
        if count > limits::BATCH_RECORDS_MAX {
            return Err(BatchError::TooManyRecords { count });
        }
        // Also refuses bits that have no meaning yet: what they will mean could not be honoured.
        if self.attributes.0 & !Attributes::CODEC != 0 {
            return Err(BatchError::Attributes { found: self.attributes.0 });
        }
        if self.is_idempotent() && self.producer_epoch.get() < 0 {
            return Err(field("producer epoch", self.producer_epoch.get().into(), 0));
        }
        if self.is_idempotent() && self.base_sequence.get() < 0 {
            return Err(field("base sequence", self.base_sequence.get().into(), 0));
        }
        if self.compression()? == Compression::None {
            check_count(count, self.total_bytes() - HEADER_BYTES)?;
        }
        Ok(())
    }
}

/// Checks that `batch` is exactly one batch that a client may publish: size, magic, length, record count,
/// attributes, producer fields, codec bits and CRC-32C. Records are not looked into.
///
/// # Errors
/// The first rule that is broken; the checksum is computed last.
pub fn verify(batch: &[u8], max_bytes: usize) -> Result<BatchHeader, BatchError> {
    let found = batch.len();
    if found > max_bytes {
        return Err(BatchError::TooLarge { bytes: found, limit: max_bytes });
    }
    let header = BatchHeader::parse(batch)?;
    check_length(&header, found)?;
    header.check_publishable()?;
    let computed = checksum(batch);
    if computed != header.crc {
        return Err(BatchError::Checksum { stored: header.crc, computed });
    }
    Ok(header)
}

/// Writes the two fields that the leader owns, both outside the checksum.
///
/// # Panics
/// When `batch` is shorter than a header.
pub fn stamp(batch: &mut [u8], base_offset: Offset, leader_epoch: i32) {
    assert!(batch.len() >= HEADER_BYTES, "stamping {} bytes, a batch has at least {HEADER_BYTES}", batch.len());
    put(batch, at::BASE_OFFSET, base_offset.get().to_be_bytes());
    put(batch, at::LEADER_EPOCH, leader_epoch.to_be_bytes());
}

/// Cuts concatenated batches apart without copying. Lengths are checked, checksums are [`verify`]'s to check.
/// Ends after the first error.
pub fn split(bytes: Bytes) -> Split {
    Split { rest: bytes }
}

/// Iterator that [`split`] returns.
#[derive(Clone, Debug)]
pub struct Split {
    rest: Bytes,
}

impl Iterator for Split {
    type Item = Result<(BatchHeader, Bytes), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let found = self.rest.len();
        let header = BatchHeader::parse(&self.rest).and_then(|header| match header.total_bytes() {
            needed if needed > found => Err(BatchError::Truncated { needed, found }),
            _ => Ok(header),
        });
        if header.is_err() {
            self.rest = Bytes::new();
        }
        Some(header.map(|header| (header, self.rest.split_to(header.total_bytes()))))
    }
}

impl std::iter::FusedIterator for Split {}

/// The header's length against the bytes there are.
pub(super) fn check_length(header: &BatchHeader, found: usize) -> Result<(), BatchError> {
    match header.total_bytes() {
        needed if needed > found => Err(BatchError::Truncated { needed, found }),
        declared if declared < found => Err(BatchError::TrailingBytes { declared, found }),
        _ => Ok(()),
    }
}

/// A record count against the bytes of an unfolded records section.
pub(super) fn check_count(count: u32, bytes: usize) -> Result<(), BatchError> {
    if count as usize > bytes / RECORD_BYTES_MIN {
        return Err(BatchError::ImpossibleCount { count, bytes });
    }
    Ok(())
}

/// Writes the checksum of a batch that is complete otherwise.
pub(super) fn seal(batch: &mut [u8]) {
    let crc = checksum(batch);
    put(batch, at::CRC, crc.to_be_bytes());
}

fn checksum(batch: &[u8]) -> u32 {
    crc32c::crc32c(&batch[at::ATTRIBUTES..])
}

fn field(field: &'static str, found: i64, min: i64) -> BatchError {
    BatchError::Field { field, found, min }
}

fn at_least(raw: &[u8; HEADER_BYTES], at: usize, name: &'static str, min: i32) -> Result<u32, BatchError> {
    let found = i32::from_be_bytes(take(raw, at));
    let fault = || field(name, found.into(), min.into());
    if found < min { Err(fault()) } else { u32::try_from(found).map_err(|_| fault()) }
}

fn take<const N: usize>(raw: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}

fn put<const N: usize>(raw: &mut [u8], at: usize, bytes: [u8; N]) {
    raw[at..at + N].copy_from_slice(&bytes);
}
