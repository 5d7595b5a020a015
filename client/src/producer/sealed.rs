//! A sealed batch: the bytes that are sent, byte for byte the same at every attempt, until it must take another
//! identity.

use std::sync::Arc;

use busbar_proto::batch::{BatchHeader, HEADER_BYTES, ProducerState};
use bytes::{Bytes, BytesMut};

use crate::producer::{batcher::Gathered, story::Diary, ticket::Ticket, window::Sealed};

/// The checksum covers everything from the attributes on.
const CHECKED_FROM: usize = 21;

#[derive(Debug)]
pub(crate) struct SealedBatch {
    pub(crate) bytes: Bytes,
    /// What is told of its records' headers.
    pub(crate) digest: Bytes,
    /// What is told of their keys; empty unless the topic is compacted.
    pub(crate) keys: Bytes,
    pub(crate) ticket: Arc<Ticket>,
    /// Buffer space its records hold.
    pub(crate) held_bytes: usize,
    pub(crate) records: u32,
    pub(crate) diary: Diary,
}

impl SealedBatch {
    pub(crate) fn seal(gathered: Gathered, producer: ProducerState) -> Self {
        let Gathered { builder, digest, keys, ticket, held_bytes, begun, .. } = gathered;
        let (records, diary) = (builder.record_count(), Diary::new(begun));
        let keys = keys.map_or_else(Bytes::new, |keys| keys.build());
        Self { bytes: builder.build(producer), digest: digest.build(), keys, ticket, held_bytes, records, diary }
    }
}

impl Sealed for SealedBatch {
    fn reseal(&mut self, producer: ProducerState) {
        self.bytes = with_producer(&self.bytes, producer);
    }

    fn may_have_left(&self) -> bool {
        self.ticket.may_have_left()
    }

    fn take_back(&self) {
        self.ticket.take_back();
    }
}

/// The same records under another producer and sequence. The earlier bytes may still sit in a dead stream's
/// queue, so they are left as they are.
fn with_producer(batch: &[u8], producer: ProducerState) -> Bytes {
    let Ok(mut header) = BatchHeader::parse(batch) else { unreachable!("a batch that we built") };
    header.producer_id = producer.id;
    header.producer_epoch = producer.epoch;
    header.base_sequence = producer.sequence;
    let mut bytes = BytesMut::from(batch);
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    header.crc = crc32c::crc32c(&bytes[CHECKED_FROM..]);
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use busbar_proto::{
        ProducerEpoch, ProducerId, Sequence,
        batch::{BatchBuilder, BatchOptions, records, verify},
    };

    use super::*;

    #[test]
    fn another_identity_keeps_the_records_and_verifies() {
        let producer = |id, sequence| ProducerState {
            id: ProducerId::new(id),
            epoch: ProducerEpoch::new(0),
            sequence: Sequence::new(sequence),
        };
        let mut builder = BatchBuilder::new(BatchOptions::default());
        builder.push::<&str, &[u8]>(5, Some(b"k"), Some(b"v"), &[]).expect("room");
        let first = builder.build(producer(1, 70));
        let second = with_producer(&first, producer(2, 0));
        let header = verify(&second, 1 << 20).expect("a sound batch");
        assert_eq!((header.producer_id.get(), header.base_sequence.get()), (2, 0));
        let read = |batch| records(batch).expect("records").collect::<Result<Vec<_>, _>>().expect("sound");
        assert_eq!(read(first), read(second));
    }
}
