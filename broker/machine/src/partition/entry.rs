//! The head of a partition's raft entry: what `apply` needs to know of the batches in its body.
//!
//! ```text
//! version u8 | kind u8 | 1, 4: epoch, stamped_ms, count, count x batch | 2: log_start | 3: producer, epoch, stamped_ms
//! batch = base_offset - expected, record_count, producer_id, producer_epoch, base_sequence,
//!         max_timestamp_ms - stamped_ms, bytes, (4 only) digest_bytes
//! ```
//! The body of kind 4 is the batches and, after all of them, their digests in the same order: what a reader wants of
//! several batches stays one run of bytes. Kind 1 is one without digests.
//!
//! Every number is of variable length (signed ones zigzag); `expected` is the offset after the batch before, so that
//! a sound entry's second offset is one zero byte. A one-record batch takes about 12 bytes.
//!
//! Invariant: a decoded head's batches have records, and their offsets fit the batch format's signed 64 bits, so that
//! arithmetic on them can't overflow. Nothing else of it is taken on trust: see [`super::PartitionMachine::apply`].

use busbar_proto::{Offset, ProducerEpoch, ProducerId, Sequence, Term, batch::BatchHeader};
use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{DecodeError, Reader, put_signed, put_unsigned};

const WHAT: &str = "a partition entry's head";
const VERSION: u8 = 1;
const KIND_BATCHES: u8 = 1;
const KIND_TRIM: u8 = 2;
const KIND_FENCE: u8 = 3;
const KIND_BATCHES_WITH_DIGESTS: u8 = 4;
/// Seven fields of at least one byte.
const BATCH_BYTES_MIN: usize = 7;

/// The largest offset that may follow a record: the batch format's base offset is a signed 64-bit number.
pub(super) const OFFSET_END_MAX: u64 = i64::MAX as u64;

/// One batch of an entry's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSummary {
    /// Offset of its first record, as stamped.
    pub base_offset: Offset,
    /// Its records.
    pub record_count: u32,
    /// Who made it; negative = no idempotence.
    pub producer_id: ProducerId,
    /// The producer's incarnation.
    pub producer_epoch: ProducerEpoch,
    /// The producer's number of the first record.
    pub base_sequence: Sequence,
    /// Time of its newest record, in milliseconds since the Unix epoch.
    pub max_timestamp_ms: i64,
    /// Its length in the entry's body.
    pub bytes: u32,
    /// Length of what its producer told of its records' headers, behind all batches of the body; 0 = nothing.
    pub digest_bytes: u32,
}

impl BatchSummary {
    /// What a verified batch's header says of it, stamped with `base_offset`; without a digest.
    pub fn of(header: &BatchHeader, base_offset: Offset) -> Self {
        Self {
            base_offset,
            record_count: header.record_count,
            producer_id: header.producer_id,
            producer_epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
            max_timestamp_ms: header.max_timestamp_ms,
            bytes: header.total_bytes().try_into().unwrap_or(u32::MAX),
            digest_bytes: 0,
        }
    }

    /// The offset after its last record.
    ///
    /// # Panics
    /// When the offsets are over 64 bits, which neither decoding nor a sequencer lets through.
    pub fn next_offset(&self) -> Offset {
        self.base_offset.advance(self.record_count.into())
    }
}

/// The meaning of one raft entry of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryHead {
    /// Records.
    Batches {
        /// The term whose leader stamped them.
        epoch: Term,
        /// That leader's clock when it sealed the entry, in milliseconds since the Unix epoch. It is the only time that
        /// decides when a producer is forgotten: record times are the clients' and may be anything.
        stamped_ms: i64,
        /// The batches, in the order of the body.
        batches: Vec<BatchSummary>,
    },
    /// Retention: nothing below is kept.
    Trim {
        /// The first offset that stays.
        log_start: Offset,
    },
    /// A producer begins again: older epochs of it are refused, although the new one has not written yet.
    Fence {
        /// The producer.
        producer: ProducerId,
        /// The oldest epoch that may still write.
        epoch: ProducerEpoch,
        /// The leader's clock, as in [`EntryHead::Batches`].
        stamped_ms: i64,
    },
}

impl EntryHead {
    /// The offset after its last record; `None` when it has no record.
    pub fn end_offset(&self) -> Option<Offset> {
        match self {
            Self::Batches { batches, .. } => batches.last().map(BatchSummary::next_offset),
            Self::Trim { .. } | Self::Fence { .. } => None,
        }
    }

    /// Time of its newest record; `None` when it has no record.
    pub fn max_timestamp_ms(&self) -> Option<i64> {
        match self {
            Self::Batches { batches, .. } => batches.iter().map(|batch| batch.max_timestamp_ms).max(),
            Self::Trim { .. } | Self::Fence { .. } => None,
        }
    }

    /// Length of the body that belongs to it.
    pub fn body_bytes(&self) -> u64 {
        match self {
            Self::Batches { batches, .. } => {
                batches.iter().map(|batch| u64::from(batch.bytes) + u64::from(batch.digest_bytes)).sum()
            }
            Self::Trim { .. } | Self::Fence { .. } => 0,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(32);
        out.put_u8(VERSION);
        match self {
            Self::Batches { epoch, stamped_ms, batches } => {
                let digests = batches.iter().any(|batch| batch.digest_bytes > 0);
                out.put_u8(if digests { KIND_BATCHES_WITH_DIGESTS } else { KIND_BATCHES });
                put_unsigned(&mut out, epoch.get());
                put_signed(&mut out, *stamped_ms);
                put_unsigned(&mut out, batches.len() as u64);
                let mut expected = 0;
                for batch in batches {
                    put_batch(&mut out, batch, expected, *stamped_ms);
                    if digests {
                        put_unsigned(&mut out, batch.digest_bytes.into());
                    }
                    expected = batch.next_offset().get();
                }
            }
            Self::Trim { log_start } => {
                out.put_u8(KIND_TRIM);
                put_unsigned(&mut out, log_start.get());
            }
            Self::Fence { producer, epoch, stamped_ms } => {
                out.put_u8(KIND_FENCE);
                put_signed(&mut out, producer.get());
                put_signed(&mut out, epoch.get().into());
                put_signed(&mut out, *stamped_ms);
            }
        }
        out.freeze()
    }

    /// The head that these bytes, all of them, are.
    ///
    /// # Errors
    /// When they are no head of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes);
        reader.version(VERSION)?;
        let head = match reader.byte("kind")? {
            KIND_BATCHES => read_batches(&mut reader, false)?,
            KIND_BATCHES_WITH_DIGESTS => read_batches(&mut reader, true)?,
            KIND_TRIM => Self::Trim { log_start: Offset::new(reader.unsigned("log start")?) },
            KIND_FENCE => Self::Fence {
                producer: ProducerId::new(reader.signed("producer id")?),
                epoch: ProducerEpoch::new(reader.narrow_signed("producer epoch")?),
                stamped_ms: reader.signed("stamped time")?,
            },
            other => return Err(reader.invalid("kind", other)),
        };
        reader.finish()?;
        Ok(head)
    }
}

fn put_batch(out: &mut BytesMut, batch: &BatchSummary, expected: u64, stamped_ms: i64) {
    put_signed(out, batch.base_offset.get().wrapping_sub(expected) as i64);
    put_unsigned(out, batch.record_count.into());
    put_signed(out, batch.producer_id.get());
    put_signed(out, batch.producer_epoch.get().into());
    put_signed(out, batch.base_sequence.get().into());
    put_signed(out, batch.max_timestamp_ms.wrapping_sub(stamped_ms));
    put_unsigned(out, batch.bytes.into());
}

fn read_batches(reader: &mut Reader<'_>, digests: bool) -> Result<EntryHead, DecodeError> {
    let epoch = Term::new(reader.unsigned("epoch")?);
    let stamped_ms = reader.signed("stamped time")?;
    let count = reader.count("batch count", BATCH_BYTES_MIN)?;
    let mut batches = Vec::with_capacity(count);
    let mut expected = 0;
    for _ in 0..count {
        let mut batch = read_batch(reader, expected, stamped_ms)?;
        if digests {
            batch.digest_bytes = reader.narrow("digest bytes")?;
        }
        expected = batch.next_offset().get();
        batches.push(batch);
    }
    // One way to write each head.
    if digests && batches.iter().all(|batch| batch.digest_bytes == 0) {
        return Err(reader.invalid("kind", KIND_BATCHES_WITH_DIGESTS));
    }
    Ok(EntryHead::Batches { epoch, stamped_ms, batches })
}

fn read_batch(reader: &mut Reader<'_>, expected: u64, stamped_ms: i64) -> Result<BatchSummary, DecodeError> {
    let base_offset = expected.wrapping_add(reader.signed("base offset")? as u64);
    let record_count: u32 = reader.narrow("record count")?;
    if record_count == 0 {
        return Err(reader.invalid("record count", 0));
    }
    if base_offset.checked_add(record_count.into()).is_none_or(|end| end > OFFSET_END_MAX) {
        return Err(reader.invalid("base offset", base_offset));
    }
    Ok(BatchSummary {
        base_offset: Offset::new(base_offset),
        record_count,
        producer_id: ProducerId::new(reader.signed("producer id")?),
        producer_epoch: ProducerEpoch::new(reader.narrow_signed("producer epoch")?),
        base_sequence: Sequence::new(reader.narrow_signed("base sequence")?),
        max_timestamp_ms: reader.signed("max timestamp")?.wrapping_add(stamped_ms),
        bytes: reader.narrow("batch bytes")?,
        digest_bytes: 0,
    })
}
