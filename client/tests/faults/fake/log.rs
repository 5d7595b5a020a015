//! One partition's log, and the broker's rules for producers' sequences.

use std::collections::BTreeMap;

use busbar_client::{Reason, Refusal};
use busbar_proto::{
    Offset, Sequence,
    batch::{BatchBuilder, BatchHeader, BatchOptions, ProducerState, records, stamp},
};
use bytes::{Bytes, BytesMut};

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) start: u64,
    batches: Vec<(BatchHeader, Bytes)>,
    /// By producer id: the next sequence, and the offsets of (sequence, count).
    producers: BTreeMap<i64, Producer>,
}

#[derive(Default)]
struct Producer {
    epoch: i16,
    fence: i16,
    next: Sequence,
    stored: BTreeMap<(i32, u32), u64>,
    last: Option<(i16, i32, u64)>,
}

impl Log {
    pub(crate) fn end(&self) -> u64 {
        self.batches.last().map_or(0, |(header, _)| header.next_offset().get())
    }

    /// The first batch with a record of that time or later.
    pub(crate) fn at_time(&self, time_ms: i64) -> Option<u64> {
        let found = self.batches.iter().find(|(header, _)| header.max_timestamp_ms >= time_ms);
        found.map(|(header, _)| header.base_offset.get().max(self.start))
    }

    pub(crate) fn producers(&self) -> usize {
        self.producers.len()
    }

    pub(crate) fn forget_producers(&mut self) {
        self.producers.clear();
    }

    /// Refuses older epochs of a producer; its last record: epoch, sequence, offset.
    pub(crate) fn fence(&mut self, id: i64, epoch: i16) -> Result<Option<(i16, i32, u64)>, Refusal> {
        let producer = self.producers.entry(id).or_default();
        if producer.fence.max(producer.epoch) > epoch {
            return Err(Refusal::new(Reason::ProducerFenced, "a newer epoch was here first"));
        }
        producer.fence = epoch;
        Ok(producer.last)
    }

    /// Whether the batch is stored.
    pub(crate) fn holds(&self, header: &BatchHeader) -> bool {
        let key = (header.base_sequence.get(), header.record_count);
        let producer = self.producers.get(&header.producer_id.get());
        producer.is_some_and(|known| known.epoch == header.producer_epoch.get() && known.stored.contains_key(&key))
    }

    /// Stores a verified batch; `Ok((base offset, duplicate))`.
    pub(crate) fn append(&mut self, header: &BatchHeader, batch: &[u8]) -> Result<(u64, bool), Refusal> {
        let base = self.end();
        if header.is_idempotent() {
            let producer = self.producers.entry(header.producer_id.get()).or_default();
            let epoch = header.producer_epoch.get();
            if epoch < producer.epoch.max(producer.fence) {
                return Err(Refusal::new(Reason::ProducerFenced, format!("epoch {} has begun", producer.epoch)));
            }
            if epoch > producer.epoch {
                let Producer { fence, last, .. } = std::mem::take(producer);
                *producer = Producer { epoch, fence, last, ..Producer::default() };
            }
            let key = (header.base_sequence.get(), header.record_count);
            if let Some(&offset) = producer.stored.get(&key) {
                return Ok((offset, true));
            }
            if header.base_sequence != producer.next {
                let text = format!("sequence {} does not follow {}", header.base_sequence, producer.next);
                return Err(Refusal::new(Reason::SequenceGap, text));
            }
            producer.next = producer.next.advance(header.record_count);
            producer.stored.insert(key, base);
            let behind = header.record_count - 1;
            producer.last = Some((epoch, header.base_sequence.advance(behind).get(), base + u64::from(behind)));
        }
        let mut stored = BytesMut::from(batch);
        stamp(&mut stored, Offset::new(base), 1);
        let stored = stored.freeze();
        let header = BatchHeader::parse(&stored).expect("a verified batch");
        self.batches.push((header, stored));
        Ok((base, false))
    }

    /// Stores the last batch once more, as a broker does that has forgotten its producer.
    pub(crate) fn repeat_last(&mut self) {
        let (header, batch) = self.batches.last().cloned().expect("a batch");
        self.producers.clear();
        let base = self.end();
        let mut stored = BytesMut::from(&batch[..]);
        stamp(&mut stored, Offset::new(base), 1);
        let header = BatchHeader { base_offset: Offset::new(base), ..header };
        self.batches.push((header, stored.freeze()));
    }

    /// Stores a batch of records whose values and times are their offsets.
    pub(crate) fn append_plain(&mut self, count: usize) {
        let base = self.end();
        self.append_records((base..base + count as u64).map(|offset| (offset as i64, offset.to_string())));
    }

    /// Stores a batch of records with these times and values.
    pub(crate) fn append_records(&mut self, records: impl IntoIterator<Item = (i64, String)>) {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for (time_ms, value) in records {
            builder.push::<&str, &[u8]>(time_ms, None, Some(value.as_bytes()), &[]).expect("room");
        }
        let batch = builder.build(ProducerState::NONE);
        let header = BatchHeader::parse(&batch).expect("a built batch");
        self.append(&header, &batch).expect("no sequence to break");
    }

    /// The first batch that reaches `offset` or beyond.
    pub(crate) fn batch_at(&self, offset: u64) -> Option<(u64, Bytes)> {
        let found = self.batches.iter().find(|(header, _)| header.next_offset().get() > offset);
        found.map(|(header, batch)| (header.next_offset().get(), batch.clone()))
    }

    pub(crate) fn values(&self) -> Vec<String> {
        let read = |(_, batch): &(BatchHeader, Bytes)| records(batch.clone()).expect("sound").collect::<Vec<_>>();
        let value = |record: busbar_proto::batch::RecordView| record.value.map(|value| value.to_vec());
        let all = self.batches.iter().flat_map(read).map(|record| value(record.expect("sound")).unwrap_or_default());
        all.map(|value| String::from_utf8(value).expect("text")).collect()
    }
}
