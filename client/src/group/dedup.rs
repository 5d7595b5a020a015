//! What makes two records the same. Pure.
//!
//! Invariant: the identity of a record depends on nothing but the record and the choice, on every machine and for ever:
//! it is kept beside the committed offset, and whoever gets the partition next compares with it.

use std::hash::Hasher;

use busbar_proto::batch::{BatchHeader, RecordView};
use twox_hash::XxHash64;

/// Bounds of the number of identities that are remembered of a partition.
pub(super) const IDS_MAX: usize = 4096;
const IDS_DEFAULT: usize = 1024;

/// Drops records that the application has acknowledged already, under another offset: see
/// [`GroupBuilder::dedup`](super::GroupBuilder::dedup).
///
/// The identity of a record is kept as a 64-bit hash (XXH64 with a fixed seed). A record whose identity is new is
/// dropped by mistake with a probability of `ids / 2^64`: 6 in 10^17 for the default of 1024, which at 20,000 records a
/// second is one mistake in 28,000 years. The hash is not keyed: whoever may publish can make records whose hashes are equal, but
/// could as well publish the same identity twice; of what others publish it can only hit what it can foresee.
///
/// ```
/// use busbar_client::Dedup;
///
/// let events = Dedup::by_event().ids(4096);
/// let orders = Dedup::by_header("order-id");
/// # let _ = (events, orders);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dedup {
    by: By,
    ids: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum By {
    Event,
    Producer,
    Header(String),
}

impl Dedup {
    /// By CloudEvents' `source` and `id`: the headers `ce_source` and `ce_id` of the binary mode. Records that lack one
    /// of them are never dropped.
    pub fn by_event() -> Self {
        Self { by: By::Event, ids: IDS_DEFAULT }
    }

    /// By the producer's id, epoch and sequence, which tell one record of one producer, also where it was stored twice.
    /// Records of producers without an id are never dropped. An application that publishes something again does so under another
    /// sequence: only [`Self::by_event`] or [`Self::by_header`] finds that.
    pub fn by_producer() -> Self {
        Self { by: By::Producer, ids: IDS_DEFAULT }
    }

    /// By the value of this header; the last one counts. Records without it are never dropped.
    pub fn by_header(name: impl Into<String>) -> Self {
        Self { by: By::Header(name.into()), ids: IDS_DEFAULT }
    }

    /// How many acknowledged records are remembered of each partition, 1 to 4096: one that comes again later than that
    /// is delivered. Default 1024. Each takes 8 bytes of every commit of the partition.
    #[must_use]
    pub fn ids(mut self, ids: usize) -> Self {
        self.ids = ids;
        self
    }

    /// As it was set.
    pub(super) fn ids_max(&self) -> usize {
        self.ids
    }

    /// The identity of a record; `None` where it has none.
    pub(super) fn identity(&self, header: &BatchHeader, record: &RecordView) -> Option<u64> {
        let value = |name: &str| record.header(name).map(AsRef::as_ref);
        // The first part keeps the kinds apart.
        match &self.by {
            By::Event => Some(hash(&[b"event", value("ce_source")?, value("ce_id")?])),
            By::Header(name) => Some(hash(&[b"header", name.as_bytes(), value(name)?])),
            By::Producer if header.is_idempotent() => {
                let index = record.offset.distance_from(header.base_offset) as u32;
                let sequence = header.base_sequence.advance(index).get();
                let (id, epoch) = (header.producer_id.get(), header.producer_epoch.get());
                Some(hash(&[b"producer", &id.to_le_bytes(), &epoch.to_le_bytes(), &sequence.to_le_bytes()]))
            }
            By::Producer => None,
        }
    }
}

/// Of parts with their lengths, so that no two lists of parts are the same bytes.
fn hash(parts: &[&[u8]]) -> u64 {
    const SEED: u64 = 0;
    let mut hasher = XxHash64::with_seed(SEED);
    for part in parts {
        hasher.write(&(part.len() as u64).to_le_bytes());
        hasher.write(part);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use busbar_proto::{
        Offset, ProducerEpoch, ProducerId, Sequence,
        batch::{BatchBuilder, BatchOptions, ProducerState, records, stamp},
    };
    use bytes::BytesMut;

    use super::*;

    /// The identities of two records with these headers.
    fn identities(dedup: &Dedup, producer: ProducerState, headers: &[(&str, &str)]) -> Vec<Option<u64>> {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        for _ in 0..2 {
            builder.push(1, None, None, &headers).expect("room");
        }
        let mut batch = BytesMut::from(&builder.build(producer)[..]);
        stamp(&mut batch, Offset::new(70), 1);
        let records = records(batch.freeze()).expect("a built batch");
        let header = *records.header();
        records.map(|record| dedup.identity(&header, &record.expect("sound"))).collect()
    }

    #[test]
    fn the_hashes_are_these_for_ever() {
        let event = [("ce_source", "/shop"), ("ce_id", "1")];
        let (id, epoch, sequence) = (ProducerId::new(7), ProducerEpoch::new(2), Sequence::new(i32::MAX));
        let producer = ProducerState { id, epoch, sequence };
        let [first, second] = identities(&Dedup::by_producer(), producer, &[])[..] else { panic!("two records") };
        let found = [
            identities(&Dedup::by_event(), ProducerState::NONE, &event)[0],
            identities(&Dedup::by_header("ce_id"), ProducerState::NONE, &event)[0],
            first,
            second,
        ];
        // Computed by another implementation of XXH64.
        let want = [
            3_421_602_531_514_611_070,
            9_739_167_718_318_230_728,
            18_399_406_285_326_358_031,
            10_943_918_445_654_741_038,
        ];
        assert_eq!(found, want.map(Some));
    }

    #[test]
    fn what_has_no_identity_is_never_the_same() {
        for (dedup, headers) in [
            (Dedup::by_event(), &[("ce_id", "1")][..]),
            (Dedup::by_event(), &[("ce_source", "/shop")]),
            (Dedup::by_header("order"), &[("orders", "1")]),
            (Dedup::by_producer(), &[]),
        ] {
            assert_eq!(identities(&dedup, ProducerState::NONE, headers), [None, None], "{dedup:?}");
        }
        assert_ne!(hash(&[b"a", b"bc"]), hash(&[b"ab", b"c"]));
    }
}
