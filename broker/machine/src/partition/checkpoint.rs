//! A partition machine as bytes: what a replica restarts from, and what a new one gets instead of purged entries.
//!
//! ```text
//! version u8 | has_applied u8 [term, index] | log_start | next_offset - log_start
//! void count, count x index (each as the distance from the one before)
//! producers_max, idle_ms_max | log_time_ms | producer count, count x producer
//! version 2, 3: fence count, count x fence | version 3: settled, as an entry's head has it
//! crc32 of all before, u32 big-endian
//! producer = id (distance), epoch, epoch_records, log_time_ms - last_ms, recent count u8, first base_sequence,
//!            count x (record_count, base_offset as the distance from the end of the one before)
//! fence    = id (distance), epoch, since_ms - log_time_ms (signed)
//! ```
//! The lowest version that holds all there is: 1 without fences, 2 with some, 3 once tombstones are settled.
//!
//! `(index, next_offset)` relates the log to the offsets: the entry after `index` begins at `next_offset`.
//!
//! Invariant: what decodes obeys every invariant of the machine and encodes to the same bytes.

use std::collections::BTreeSet;

use busbar_proto::{LogIndex, LogPosition, Offset, ProducerEpoch, ProducerId, Sequence, limits};
use bytes::{BufMut, Bytes, BytesMut};

use super::{
    entry::OFFSET_END_MAX,
    fences::Fence,
    machine::PartitionMachine,
    producers::{Producer, ProducerLimits, ProducerTable, RECENT_BATCHES, StoredBatch},
    settled::Settled,
};
use crate::codec::{DecodeError, Reader, put_signed, put_unsigned};

const WHAT: &str = "a partition checkpoint";
const VERSION: u8 = 1;
const VERSION_WITH_FENCES: u8 = 2;
const VERSION_WITH_SETTLED: u8 = 3;
const CRC_BYTES: usize = 4;
/// Five fields, the count and one batch of three fields.
const PRODUCER_BYTES_MIN: usize = 8;
/// Three fields.
const FENCE_BYTES_MIN: usize = 3;

impl PartitionMachine {
    /// Its whole state.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64 + 32 * self.producers.iter().len());
        let version = match self.producers.fences().len() {
            _ if self.settled != Settled::default() => VERSION_WITH_SETTLED,
            0 => VERSION,
            _ => VERSION_WITH_FENCES,
        };
        out.put_u8(version);
        match self.applied {
            Some(LogPosition { term, index }) => {
                out.put_u8(1);
                put_unsigned(&mut out, term.get());
                put_unsigned(&mut out, index.get());
            }
            None => out.put_u8(0),
        }
        put_unsigned(&mut out, self.log_start.get());
        put_unsigned(&mut out, self.next_offset.distance_from(self.log_start));
        put_unsigned(&mut out, self.voids.len() as u64);
        let mut before = 0;
        for index in &self.voids {
            put_unsigned(&mut out, index.get() - before);
            before = index.get();
        }
        put_producers(&mut out, &self.producers);
        if version >= VERSION_WITH_FENCES {
            put_fences(&mut out, &self.producers);
        }
        if version >= VERSION_WITH_SETTLED {
            self.settled.put(&mut out);
        }
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out.freeze()
    }

    /// The machine that these bytes, all of them, are.
    ///
    /// # Errors
    /// When they are damaged, of another version, or no possible state.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (body, crc) =
            bytes.split_last_chunk::<CRC_BYTES>().ok_or(DecodeError::Truncated { what: WHAT, field: "checksum" })?;
        let (found, computed) = (u32::from_be_bytes(*crc), crc32fast::hash(body));
        if found != computed {
            return Err(DecodeError::Checksum { what: WHAT, found, computed });
        }
        let mut reader = Reader::new(WHAT, body);
        let version = reader.byte("version")?;
        if !(VERSION..=VERSION_WITH_SETTLED).contains(&version) {
            let (found, known) = (version.into(), VERSION_WITH_SETTLED.into());
            return Err(DecodeError::UnknownVersion { what: WHAT, found, known });
        }
        let applied = read_applied(&mut reader)?;
        let log_start = reader.unsigned("log start")?;
        let records = reader.unsigned("next offset")?;
        let next_offset = log_start.checked_add(records).filter(|&end| end <= OFFSET_END_MAX);
        let next_offset = Offset::new(next_offset.ok_or_else(|| reader.invalid("next offset", records))?);
        let voids = read_voids(&mut reader, applied)?;
        let mut producers = read_producers(&mut reader, next_offset)?;
        if version >= VERSION_WITH_FENCES {
            let least = usize::from(version == VERSION_WITH_FENCES);
            read_fences(&mut reader, &mut producers, least)?;
        }
        let settled = match version {
            VERSION_WITH_SETTLED => read_settled(&mut reader, next_offset)?,
            _ => Settled::default(),
        };
        reader.finish()?;
        Ok(Self { applied, log_start: Offset::new(log_start), next_offset, voids, producers, settled })
    }
}

fn read_applied(reader: &mut Reader<'_>) -> Result<Option<LogPosition>, DecodeError> {
    match reader.byte("applied position")? {
        0 => Ok(None),
        1 => Ok(Some(LogPosition::new(reader.unsigned("applied term")?, reader.unsigned("applied index")?))),
        other => Err(reader.invalid("applied position", other)),
    }
}

fn read_voids(reader: &mut Reader<'_>, applied: Option<LogPosition>) -> Result<BTreeSet<LogIndex>, DecodeError> {
    let count = reader.count("void count", 1)?;
    let mut voids = BTreeSet::new();
    let mut before = 0_u64;
    for _ in 0..count {
        let distance = reader.unsigned("void index")?;
        let index = before.checked_add(distance).map(LogIndex::new);
        let index = index.filter(|&index| applied.is_some_and(|applied| index <= applied.index));
        let index = index.ok_or_else(|| reader.invalid("void index", "beyond what is applied"))?;
        if !voids.insert(index) {
            return Err(reader.invalid("void index", "twice the same"));
        }
        before = index.get();
    }
    Ok(voids)
}

fn put_producers(out: &mut BytesMut, table: &ProducerTable) {
    let ProducerLimits { producers_max, idle_ms_max } = table.limits();
    put_unsigned(out, producers_max.into());
    put_unsigned(out, idle_ms_max);
    put_signed(out, table.log_time_ms());
    put_unsigned(out, table.iter().len() as u64);
    let mut before = 0;
    for (id, producer) in table.iter() {
        put_unsigned(out, (id.get() - before) as u64);
        before = id.get();
        put_unsigned(out, producer.epoch.get() as u64);
        put_unsigned(out, producer.epoch_records);
        put_unsigned(out, table.log_time_ms().abs_diff(producer.last_ms));
        let recent = producer.recent();
        out.put_u8(recent.len() as u8);
        put_unsigned(out, recent.first().map_or(0, |first| first.base_sequence.get() as u64));
        let mut end = 0;
        for batch in recent {
            put_unsigned(out, batch.record_count.into());
            put_unsigned(out, batch.base_offset.get() - end);
            end = batch.next_offset().get();
        }
    }
}

fn put_fences(out: &mut BytesMut, table: &ProducerTable) {
    put_unsigned(out, table.fences().len() as u64);
    let mut before = 0;
    for (id, fence) in table.fences() {
        put_unsigned(out, (id.get() - before) as u64);
        before = id.get();
        put_unsigned(out, fence.epoch.get() as u64);
        put_signed(out, fence.since_ms.wrapping_sub(table.log_time_ms()));
    }
}

fn read_settled(reader: &mut Reader<'_>, next_offset: Offset) -> Result<Settled, DecodeError> {
    let settled = Settled::read(reader)?;
    if settled == Settled::default() || settled.offset > next_offset {
        return Err(reader.invalid("settled offset", settled.offset));
    }
    Ok(settled)
}

fn read_fences(reader: &mut Reader<'_>, table: &mut ProducerTable, least: usize) -> Result<(), DecodeError> {
    let count = reader.count("fence count", FENCE_BYTES_MIN)?;
    if !(least..=limits::FENCES_PER_PARTITION_MAX).contains(&count) {
        return Err(reader.invalid("fence count", count));
    }
    let mut before = 0_i64;
    for _ in 0..count {
        let id = read_id(reader, before)?;
        before = id;
        let epoch = read_epoch(reader)?;
        let since_ms = table.log_time_ms().wrapping_add(reader.signed("fence's time")?);
        if !table.restore_fence(ProducerId::new(id), Fence { epoch, since_ms }) {
            return Err(reader.invalid("fence", format_args!("of producer {id}, twice or behind what it wrote")));
        }
    }
    Ok(())
}

/// Ids are written as the distance from the one before.
fn read_id(reader: &mut Reader<'_>, before: i64) -> Result<i64, DecodeError> {
    let distance = reader.unsigned("producer id")?;
    let id = i64::try_from(distance).ok().and_then(|distance| before.checked_add(distance));
    id.ok_or_else(|| reader.invalid("producer id", distance))
}

fn read_epoch(reader: &mut Reader<'_>) -> Result<ProducerEpoch, DecodeError> {
    let epoch = ProducerEpoch::new(reader.narrow("producer epoch")?);
    match epoch.get() >= 0 {
        true => Ok(epoch),
        false => Err(reader.invalid("producer epoch", epoch)),
    }
}

fn read_producers(reader: &mut Reader<'_>, next_offset: Offset) -> Result<ProducerTable, DecodeError> {
    let producers_max = reader.narrow("most producers")?;
    let idle_ms_max = reader.unsigned("longest idle time")?;
    let mut table = ProducerTable::new(ProducerLimits { producers_max, idle_ms_max });
    let log_time_ms = reader.signed("log time")?;
    table.restore_log_time(log_time_ms);
    let count = reader.count("producer count", PRODUCER_BYTES_MIN)?;
    let mut before = 0_i64;
    for _ in 0..count {
        let id = read_id(reader, before)?;
        before = id;
        let producer = read_producer(reader, log_time_ms, next_offset)?;
        if !table.restore(ProducerId::new(id), producer) {
            return Err(reader.invalid("producer", format_args!("{id}, twice or at another's offset")));
        }
    }
    Ok(table)
}

fn read_producer(reader: &mut Reader<'_>, log_time_ms: i64, next_offset: Offset) -> Result<Producer, DecodeError> {
    let epoch = read_epoch(reader)?;
    let epoch_records = reader.unsigned("producer's records")?;
    let idle_ms = reader.unsigned("producer's idle time")?;
    let last_ms = log_time_ms.checked_sub_unsigned(idle_ms).ok_or_else(|| reader.invalid("idle time", idle_ms))?;
    let count = usize::from(reader.byte("recent batch count")?);
    if !(1..=RECENT_BATCHES).contains(&count) {
        return Err(reader.invalid("recent batch count", count));
    }
    let sequence = Sequence::new(reader.narrow("base sequence")?);
    if sequence.get() < 0 {
        return Err(reader.invalid("base sequence", sequence));
    }
    let mut producer = Producer::new(epoch, read_recent(reader, sequence, 0)?);
    for _ in 1..count {
        let end = producer.last().next_offset().get();
        producer.push(read_recent(reader, producer.next_sequence(), end)?);
    }
    if producer.last().next_offset() > next_offset || epoch_records < producer.epoch_records {
        return Err(reader.invalid("producer", "with more records than there are"));
    }
    producer.epoch_records = epoch_records;
    producer.last_ms = last_ms;
    Ok(producer)
}

fn read_recent(reader: &mut Reader<'_>, base_sequence: Sequence, end_before: u64) -> Result<StoredBatch, DecodeError> {
    let record_count: u32 = reader.narrow("record count")?;
    let distance = reader.unsigned("base offset")?;
    let base_offset = end_before.checked_add(distance);
    let end = base_offset.and_then(|base| base.checked_add(record_count.into()));
    match base_offset.filter(|_| record_count > 0 && end.is_some_and(|end| end <= OFFSET_END_MAX)) {
        Some(base_offset) => Ok(StoredBatch { base_sequence, record_count, base_offset: Offset::new(base_offset) }),
        None => Err(reader.invalid("recent batch", format_args!("{record_count} records {distance} later"))),
    }
}
