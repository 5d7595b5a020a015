//! Short ways to say what the tests are about.

use busbar_machine::partition::BatchSummary;
use busbar_proto::{
    LogPosition, Offset, ProducerEpoch, ProducerId, Sequence,
    batch::{Attributes, BatchHeader, HEADER_BYTES},
};

/// A batch as a producer sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) producer: i64,
    pub(crate) epoch: i16,
    pub(crate) sequence: i32,
    pub(crate) count: u32,
}

impl Sent {
    pub(crate) fn new(producer: i64, epoch: i16, sequence: i32, count: u32) -> Self {
        Self { producer, epoch, sequence, count }
    }

    pub(crate) fn anonymous(count: u32) -> Self {
        Self::new(-1, -1, -1, count)
    }

    pub(crate) fn header(self) -> BatchHeader {
        BatchHeader {
            base_offset: Offset::ZERO,
            batch_length: HEADER_BYTES as u32 - 12 + 10 * self.count.min(100),
            leader_epoch: -1,
            crc: 0,
            attributes: Attributes::default(),
            last_offset_delta: self.count.saturating_sub(1),
            base_timestamp_ms: 1_000,
            max_timestamp_ms: 1_000 + i64::from(self.count),
            producer_id: ProducerId::new(self.producer),
            producer_epoch: ProducerEpoch::new(self.epoch),
            base_sequence: Sequence::new(self.sequence),
            record_count: self.count,
        }
    }

    pub(crate) fn at(self, base_offset: u64) -> BatchSummary {
        BatchSummary::of(&self.header(), Offset::new(base_offset))
    }
}

/// Positions of a log that grows by one entry at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Log {
    last_index: u64,
}

impl Log {
    pub(crate) fn next(&mut self, term: u64) -> LogPosition {
        self.last_index += 1;
        LogPosition::new(term, self.last_index)
    }
}
