//! Reading records out of a batch: an iterator of views that share the batch's (or the unfolded section's)
//! memory.
//!
//! Invariant: every length is compared with the bytes left in its record before it is used; a header count only
//! bounds a loop, it never sizes a buffer.

use bytes::Bytes;

use super::{
    compress,
    error::{BatchError, RecordFault},
    header::{BatchHeader, HEADER_BYTES, check_count, check_length},
    varint::{self, VarintError},
};
use crate::{limits, offset::Offset};

/// The smallest record: length, attributes, two deltas, null key, null value and header count, a byte each.
pub(super) const RECORD_BYTES_MIN: usize = 7;

/// One record, sharing memory with its batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordView {
    /// Its offset, as the leader stamped it.
    pub offset: Offset,
    /// Milliseconds since 1970.
    pub timestamp_ms: i64,
    /// The key; records of equal key keep their order.
    pub key: Option<Bytes>,
    /// The payload.
    pub value: Option<Bytes>,
    /// Headers in the order in which they were written; names may repeat.
    pub headers: Vec<RecordHeader>,
}

impl RecordView {
    /// The value of the last header of that name, as the later one counts; `None` without one or when it is null.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().rfind(|header| header.key() == name)?.value.as_ref()
    }

    /// The same record in memory of its own, so that its batch need not be kept for it.
    #[must_use]
    pub fn detached(&self) -> Self {
        let copy = |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| Bytes::copy_from_slice(bytes));
        let header = |header: &RecordHeader| RecordHeader {
            key: Bytes::copy_from_slice(&header.key),
            value: copy(&header.value),
        };
        Self {
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            key: copy(&self.key),
            value: copy(&self.value),
            headers: self.headers.iter().map(header).collect(),
        }
    }
}

/// A record's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Invariant: UTF-8; checked where it is read.
    key: Bytes,
    /// The value.
    pub value: Option<Bytes>,
}

impl RecordHeader {
    /// The name.
    pub fn key(&self) -> &str {
        std::str::from_utf8(&self.key).unwrap_or_default()
    }
}

/// The records of a batch, unfolding at most [`limits::RECORDS_BYTES_MAX`] bytes. The checksum is
/// [`verify`](super::verify)'s to check, before.
///
/// # Errors
/// A header that does not fit the bytes, a codec that is not decoded here, or a section that does not unfold.
pub fn records(batch: Bytes) -> Result<Records, BatchError> {
    records_within(batch, limits::RECORDS_BYTES_MAX)
}

/// As [`records`], with the caller's own limit on the bytes of the unfolded records section.
///
/// # Errors
/// As [`records`].
pub fn records_within(batch: Bytes, limit: usize) -> Result<Records, BatchError> {
    let header = BatchHeader::parse(&batch)?;
    check_length(&header, batch.len())?;
    let section = compress::decompress(header.compression()?, batch.slice(HEADER_BYTES..), limit)?;
    check_count(header.record_count, section.len())?;
    Ok(Records { header, cursor: Cursor { bytes: section, at: 0 }, index: 0, next_delta: 0, ended: false })
}

/// Iterator that [`records`] returns; ends after the first error.
#[derive(Clone, Debug)]
pub struct Records {
    header: BatchHeader,
    cursor: Cursor,
    index: u32,
    /// The smallest offset delta that the next record may have.
    next_delta: u32,
    ended: bool,
}

impl Records {
    /// The batch's header.
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }

    fn read(&mut self) -> Result<RecordView, RecordFault> {
        let length = self.cursor.length("record length", 0)?.unwrap_or(0);
        let mut body = Cursor { bytes: self.cursor.take(length), at: 0 };
        body.byte("record attributes")?;
        let timestamp_delta = body.varlong("timestamp delta")?;
        let offset_delta = self.offset_delta(body.varint("offset delta")?)?;
        let key = body.nullable("key length")?;
        let value = body.nullable("value length")?;
        let headers = read_headers(&mut body)?;
        match body.left() {
            0 => {}
            bytes => return Err(RecordFault::Unread { bytes }),
        }
        Ok(RecordView {
            offset: self.header.base_offset.advance(offset_delta.into()),
            timestamp_ms: match self.header.attributes.is_log_append_time() {
                true => self.header.max_timestamp_ms,
                // Wraps, as the writer's subtraction does: any two timestamps survive the trip.
                false => self.header.base_timestamp_ms.wrapping_add(timestamp_delta),
            },
            key,
            value,
            headers,
        })
    }

    /// Deltas rise: a reader may skip within a batch by offset, and no two records share one.
    fn offset_delta(&mut self, found: i32) -> Result<u32, RecordFault> {
        let (min, max) = (self.next_delta, self.header.last_offset_delta);
        let delta = u32::try_from(found).ok().filter(|delta| (min..=max).contains(delta));
        let delta = delta.ok_or(RecordFault::OffsetDelta { found, min, max })?;
        self.next_delta = delta + 1;
        Ok(delta)
    }
}

impl Iterator for Records {
    type Item = Result<RecordView, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if self.index == self.header.record_count {
            self.ended = true;
            let (bytes, count) = (self.cursor.left(), self.header.record_count);
            return (bytes > 0).then_some(Err(BatchError::UnreadRecords { bytes, count }));
        }
        let index = self.index;
        let record = self.read().map_err(|fault| BatchError::Record { index, fault });
        self.index += 1;
        self.ended = record.is_err();
        Some(record)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // Never a lower bound: what a header declares must not make `collect` allocate. One more for an error.
        let left = if self.ended { 0 } else { (self.header.record_count - self.index) as usize + 1 };
        (0, Some(left))
    }
}

impl std::iter::FusedIterator for Records {}

fn read_headers(body: &mut Cursor) -> Result<Vec<RecordHeader>, RecordFault> {
    let count = body.varint("header count")?;
    let max = body.left() / 2;
    let count = usize::try_from(count).ok().filter(|&count| count <= max).ok_or(RecordFault::Length {
        field: "header count",
        found: count.into(),
        min: 0,
        max,
    })?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let length = body.length("header key length", 0)?.unwrap_or(0);
        let key = body.take(length);
        if std::str::from_utf8(&key).is_err() {
            return Err(RecordFault::HeaderKey);
        }
        headers.push(RecordHeader { key, value: body.nullable("header value length")? });
    }
    Ok(headers)
}

/// A position in shared bytes.
#[derive(Clone, Debug)]
struct Cursor {
    bytes: Bytes,
    at: usize,
}

impl Cursor {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn byte(&mut self, field: &'static str) -> Result<u8, RecordFault> {
        let byte = self.bytes.get(self.at).copied();
        self.at += usize::from(byte.is_some());
        byte.ok_or(RecordFault::Varint { field, fault: VarintError::Truncated })
    }

    fn varint(&mut self, field: &'static str) -> Result<i32, RecordFault> {
        let read = varint::get_i32(&self.bytes[self.at..]);
        let (value, taken) = read.map_err(|fault| RecordFault::Varint { field, fault })?;
        self.at += taken;
        Ok(value)
    }

    fn varlong(&mut self, field: &'static str) -> Result<i64, RecordFault> {
        let read = varint::get_i64(&self.bytes[self.at..]);
        let (value, taken) = read.map_err(|fault| RecordFault::Varint { field, fault })?;
        self.at += taken;
        Ok(value)
    }

    /// A length that the bytes left can hold; `None` for -1 where `min` allows it.
    fn length(&mut self, field: &'static str, min: i64) -> Result<Option<usize>, RecordFault> {
        let found = i64::from(self.varint(field)?);
        let max = self.left();
        match usize::try_from(found) {
            Ok(length) if length <= max => Ok(Some(length)),
            Err(_) if found >= min => Ok(None),
            _ => Err(RecordFault::Length { field, found, min, max }),
        }
    }

    fn nullable(&mut self, field: &'static str) -> Result<Option<Bytes>, RecordFault> {
        let length = self.length(field, -1)?;
        Ok(length.map(|length| self.take(length)))
    }

    /// The next `length` bytes; the caller has compared it with [`Self::left`].
    fn take(&mut self, length: usize) -> Bytes {
        let taken = self.bytes.slice(self.at..self.at + length);
        self.at += length;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        batch::{Attributes, Compression},
        ids::{ProducerEpoch, ProducerId, Sequence},
    };

    /// Header count 0, null value, null key, offset delta 0, timestamp delta 0, attributes 0; behind its length.
    const SMALLEST: [u8; RECORD_BYTES_MIN] = [12, 0, 0, 0, 1, 1, 0];
    /// The same with offset delta 1.
    const SECOND: [u8; RECORD_BYTES_MIN] = [12, 0, 0, 2, 1, 1, 0];

    fn batch(record_count: u32, codec: Compression, section: &[u8]) -> Bytes {
        let header = BatchHeader {
            base_offset: Offset::new(100),
            batch_length: BatchHeader::length_of(HEADER_BYTES + section.len()),
            leader_epoch: 0,
            crc: 0,
            attributes: Attributes::published(codec),
            last_offset_delta: record_count.saturating_sub(1),
            base_timestamp_ms: 5,
            max_timestamp_ms: 9,
            producer_id: ProducerId::NONE,
            producer_epoch: ProducerEpoch::new(-1),
            base_sequence: Sequence::new(-1),
            record_count,
        };
        [&header.encode()[..], section].concat().into()
    }

    fn read(record_count: u32, section: &[&[u8]]) -> Result<Vec<RecordView>, BatchError> {
        records(batch(record_count, Compression::None, &section.concat()))?.collect()
    }

    fn length(field: &'static str, found: i64, min: i64, max: usize) -> RecordFault {
        RecordFault::Length { field, found, min, max }
    }

    #[test]
    fn the_smallest_records_are_read() {
        let read = read(2, &[&SMALLEST, &SECOND]).expect("sound");
        let found: Vec<_> = read.iter().map(|record| (record.offset.get(), record.timestamp_ms)).collect();
        assert_eq!(found, [(100, 5), (101, 5)]);
        assert!(read.iter().all(|record| record.key.is_none() && record.value.is_none() && record.headers.is_empty()));
    }

    #[test]
    fn each_fault_of_a_record_has_its_name() {
        let truncated = |field| RecordFault::Varint { field, fault: VarintError::Truncated };
        for (record, fault) in [
            (&[14, 0, 0, 0, 1, 1, 0][..], length("record length", 7, 0, 6)),
            (&[1, 0, 0, 0, 1, 1, 0], length("record length", -1, 0, 6)),
            (&[0, 0, 0, 0, 1, 1, 0], truncated("record attributes")),
            (&[2, 0, 0, 0, 1, 1, 0], truncated("timestamp delta")),
            (&[4, 0, 0, 0, 1, 1, 0], truncated("offset delta")),
            (&[12, 0, 0, 0, 3, 1, 0], length("key length", -2, -1, 2)),
            (&[12, 0, 0, 0, 6, 1, 0], length("key length", 3, -1, 2)),
            (&[12, 0, 0, 0, 1, 4, 0], length("value length", 2, -1, 1)),
            (&[12, 0, 0, 0, 1, 1, 2], length("header count", 1, 0, 0)),
            (&[12, 0, 0, 0, 1, 1, 1], length("header count", -1, 0, 0)),
            (&[16, 0, 0, 0, 1, 1, 2, 1, 1], length("header key length", -1, 0, 1)),
            (&[18, 0, 0, 0, 1, 1, 2, 2, 0xff, 1], RecordFault::HeaderKey),
            (&[12, 0, 0, 2, 1, 1, 0], RecordFault::OffsetDelta { found: 1, min: 0, max: 0 }),
            (&[12, 0, 0, 1, 1, 1, 0], RecordFault::OffsetDelta { found: -1, min: 0, max: 0 }),
            (&[14, 0, 0, 0, 1, 1, 0, 0], RecordFault::Unread { bytes: 1 }),
        ] {
            assert_eq!(read(1, &[record]), Err(BatchError::Record { index: 0, fault }), "{record:?}");
        }
        let repeated = RecordFault::OffsetDelta { found: 0, min: 1, max: 1 };
        assert_eq!(read(2, &[&SMALLEST, &SMALLEST]), Err(BatchError::Record { index: 1, fault: repeated }));
    }

    #[test]
    fn count_and_bytes_must_agree() {
        assert_eq!(read(1, &[&SMALLEST, &SECOND]), Err(BatchError::UnreadRecords { bytes: 7, count: 1 }));
        assert_eq!(read(3, &[&SMALLEST, &SECOND]), Err(BatchError::ImpossibleCount { count: 3, bytes: 14 }));
        let plain = batch(1, Compression::None, &SMALLEST);
        let over = BatchError::UnfoldsTooLarge { compression: Compression::None, limit: 6 };
        assert_eq!(records_within(plain, 6).map(Iterator::count), Err(over));
    }

    #[test]
    fn iteration_ends_after_an_error() {
        let mut found = records(batch(2, Compression::None, &[SMALLEST, SMALLEST].concat())).expect("sound header");
        assert_eq!(found.size_hint(), (0, Some(3)));
        assert!(found.next().is_some_and(|record| record.is_ok()));
        assert!(found.next().is_some_and(|record| record.is_err()));
        assert_eq!((found.next(), found.size_hint()), (None, (0, Some(0))));
    }

    #[test]
    fn a_zstd_window_above_8_mib_is_refused() {
        // Magic; descriptor without content size; window descriptor for 16 MiB; one last, raw block of a byte.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 14 << 3, 0x09, 0x00, 0x00, 0x00];
        let refused = records(batch(1, Compression::Zstd, &frame)).map(Iterator::count);
        assert!(matches!(refused, Err(BatchError::Decompress { .. })), "{refused:?}");
        let mut smaller = frame;
        smaller[5] = 13 << 3;
        let read = records(batch(1, Compression::Zstd, &smaller)).map(Iterator::count);
        assert_eq!(read, Err(BatchError::ImpossibleCount { count: 1, bytes: 1 }), "8 MiB are allowed");
    }
}
