//! The head of a partition's raft entry: what `apply` needs to know of the batches in its body.
//!
//! ```text
//! version u8 | kind u8 | 1, 4, 5: epoch, stamped_ms, count, count x batch | 2: log_start | 3: producer, epoch, stamped_ms
//!                      | 6: offset, stamped_ms, count, count x blocked offset (each as the distance from the one before)
//! batch = base_offset - expected, record_count, producer_id, producer_epoch, base_sequence,
//!         max_timestamp_ms - stamped_ms, bytes, (4, 5 only) digest_bytes, (5 only) key_bytes
//! ```
//! The body is the batches; after all of them, in the same order, what was told of their headers (kinds 4 and 5); after
//! all of that what was told of their keys (kind 5). So what a reader wants of several batches stays one run of bytes.
//!
//! A batch of 0 bytes is *hollow*: compaction took it out of the body, and its summary stays, so that offsets and
//! producers come out the same wherever the entry is applied.
//!
//! Every number is of variable length (signed ones zigzag); `expected` is the offset after the batch before, so that
//! a sound entry's second offset is one zero byte. A one-record batch takes about 12 bytes.
//!
//! Invariant: a decoded head's batches have records, and their offsets fit the batch format's signed 64 bits, so that
//! arithmetic on them can't overflow. Nothing else of it is taken on trust: see [`super::PartitionMachine::apply`].

use busbar_proto::{Offset, ProducerEpoch, ProducerId, Sequence, Term, batch::BatchHeader};
use bytes::{BufMut, Bytes, BytesMut};

use super::settled::Settled;
use crate::codec::{DecodeError, Reader, put_signed, put_unsigned};

const WHAT: &str = "a partition entry's head";
const VERSION: u8 = 1;
const KIND_BATCHES: u8 = 1;
const KIND_TRIM: u8 = 2;
const KIND_FENCE: u8 = 3;
const KIND_BATCHES_WITH_DIGESTS: u8 = 4;
const KIND_BATCHES_WITH_KEYS: u8 = 5;
const KIND_SETTLED: u8 = 6;
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
    /// Its length in the entry's body; 0 = it was superseded and is hollow.
    pub bytes: u32,
    /// Length of what its producer told of its records' headers, behind all batches of the body; 0 = nothing.
    pub digest_bytes: u32,
    /// Length of what its producer told of its records' keys, behind all that; 0 = nothing.
    pub key_bytes: u32,
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
            key_bytes: 0,
        }
    }

    /// Whether compaction took its bytes.
    pub fn is_hollow(&self) -> bool {
        self.bytes == 0
    }

    /// The same without its bytes and what was told beside them.
    #[must_use]
    pub fn hollowed(self) -> Self {
        Self { bytes: 0, digest_bytes: 0, key_bytes: 0, ..self }
    }

    /// All that the body holds of it.
    fn body_bytes(&self) -> u64 {
        u64::from(self.bytes) + u64::from(self.digest_bytes) + u64::from(self.key_bytes)
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
    /// Compaction: of the keys that these tombstones delete no replica holds an older record.
    Settled(Settled),
}

impl EntryHead {
    /// The offset after its last record; `None` when it has no record.
    pub fn end_offset(&self) -> Option<Offset> {
        match self {
            Self::Batches { batches, .. } => batches.last().map(BatchSummary::next_offset),
            Self::Trim { .. } | Self::Fence { .. } | Self::Settled(_) => None,
        }
    }

    /// Time of its newest record; `None` when it has no record.
    pub fn max_timestamp_ms(&self) -> Option<i64> {
        match self {
            Self::Batches { batches, .. } => batches.iter().map(|batch| batch.max_timestamp_ms).max(),
            Self::Trim { .. } | Self::Fence { .. } | Self::Settled(_) => None,
        }
    }

    /// Length of the body that belongs to it.
    pub fn body_bytes(&self) -> u64 {
        match self {
            Self::Batches { batches, .. } => batches.iter().map(BatchSummary::body_bytes).sum(),
            Self::Trim { .. } | Self::Fence { .. } | Self::Settled(_) => 0,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(32);
        out.put_u8(VERSION);
        match self {
            Self::Batches { epoch, stamped_ms, batches } => {
                let kind = kind_of(batches);
                out.put_u8(kind);
                put_unsigned(&mut out, epoch.get());
                put_signed(&mut out, *stamped_ms);
                put_unsigned(&mut out, batches.len() as u64);
                let mut expected = 0;
                for batch in batches {
                    put_batch(&mut out, batch, expected, *stamped_ms);
                    if kind != KIND_BATCHES {
                        put_unsigned(&mut out, batch.digest_bytes.into());
                    }
                    if kind == KIND_BATCHES_WITH_KEYS {
                        put_unsigned(&mut out, batch.key_bytes.into());
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
            Self::Settled(settled) => {
                out.put_u8(KIND_SETTLED);
                settled.put(&mut out);
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
            kind @ (KIND_BATCHES | KIND_BATCHES_WITH_DIGESTS | KIND_BATCHES_WITH_KEYS) => {
                read_batches(&mut reader, kind)?
            }
            KIND_TRIM => Self::Trim { log_start: Offset::new(reader.unsigned("log start")?) },
            KIND_FENCE => Self::Fence {
                producer: ProducerId::new(reader.signed("producer id")?),
                epoch: ProducerEpoch::new(reader.narrow_signed("producer epoch")?),
                stamped_ms: reader.signed("stamped time")?,
            },
            KIND_SETTLED => Self::Settled(Settled::read(&mut reader)?),
            other => return Err(reader.invalid("kind", other)),
        };
        reader.finish()?;
        Ok(head)
    }
}

/// The plainest kind that says all there is to say of them.
fn kind_of(batches: &[BatchSummary]) -> u8 {
    if batches.iter().any(|batch| batch.key_bytes > 0) {
        KIND_BATCHES_WITH_KEYS
    } else if batches.iter().any(|batch| batch.digest_bytes > 0) {
        KIND_BATCHES_WITH_DIGESTS
    } else {
        KIND_BATCHES
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

fn read_batches(reader: &mut Reader<'_>, kind: u8) -> Result<EntryHead, DecodeError> {
    let epoch = Term::new(reader.unsigned("epoch")?);
    let stamped_ms = reader.signed("stamped time")?;
    let count = reader.count("batch count", BATCH_BYTES_MIN)?;
    let mut batches = Vec::with_capacity(count);
    let mut expected = 0;
    for _ in 0..count {
        let mut batch = read_batch(reader, expected, stamped_ms)?;
        if kind != KIND_BATCHES {
            batch.digest_bytes = reader.narrow("digest bytes")?;
        }
        if kind == KIND_BATCHES_WITH_KEYS {
            batch.key_bytes = reader.narrow("key digest bytes")?;
        }
        expected = batch.next_offset().get();
        batches.push(batch);
    }
    // One way to write each head.
    if kind_of(&batches) != kind {
        return Err(reader.invalid("kind", kind));
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
        key_bytes: 0,
    })
}
