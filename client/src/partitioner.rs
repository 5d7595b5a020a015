//! Which partition a record goes to. Keyed records: murmur2 of the key, as Kafka's clients compute it, so that
//! both kinds of client send a key to the same place. Keyless ones stick to one partition for a batch's length
//! and then move on, so that batches are large and partitions are evenly used. Pure: randomness is given.
//!
//! Invariant: a chosen partition is below the topic's number of partitions.

use std::sync::atomic::{AtomicU64, Ordering};

use busbar_proto::{NodeId, PartitionId};

/// The partition of a key among `partitions` (at least 1).
pub fn partition_of_key(key: &[u8], partitions: u32) -> PartitionId {
    assert!(partitions > 0, "a topic has at least one partition");
    PartitionId::new((murmur2(key) & 0x7fff_ffff) % partitions)
}

/// MurmurHash2, 32 bits, with the seed that Kafka uses.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    // The length is mixed in as 32 bits: a key is far below 4 GiB.
    let mut hash = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ (k >> R)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    if !tail.is_empty() {
        let rest = tail.iter().rev().fold(0, |rest, &byte| (rest << 8) | u32::from(byte));
        hash = (hash ^ rest).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partition that keyless records stick to, and whether a batch of it was begun for them.
#[derive(Debug)]
pub(crate) struct Sticky(AtomicU64);

impl Sticky {
    const BEGUN: u64 = 1 << 32;

    pub(crate) fn new(first: PartitionId) -> Self {
        Self(AtomicU64::new(u64::from(first.get())))
    }

    pub(crate) fn current(&self) -> PartitionId {
        PartitionId::new(self.0.load(Ordering::Relaxed) as u32)
    }

    /// A record of `partition` is about to begin a batch: `true` for the first such batch since it became the
    /// current one, `false` when it is time to move on.
    pub(crate) fn may_begin(&self, partition: PartitionId) -> bool {
        let fresh = u64::from(partition.get());
        self.0.compare_exchange(fresh, fresh | Self::BEGUN, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Moves on to a random partition, preferring those with a leader.
    pub(crate) fn move_on(
        &self,
        partitions: u32,
        random: u64,
        leader: impl Fn(PartitionId) -> Option<NodeId>,
    ) -> PartitionId {
        let start = (random % u64::from(partitions)) as u32;
        let mut round = (0..partitions).map(|step| PartitionId::new((start + step) % partitions));
        let next = round.find(|&partition| leader(partition).is_some()).unwrap_or(PartitionId::new(start));
        self.0.store(u64::from(next.get()), Ordering::Relaxed);
        next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The vectors that Kafka's own tests check (`UtilsTest`), as signed numbers.
    #[test]
    fn murmur2_as_kafka() {
        for (key, want) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, want, "{key:?}");
        }
    }

    #[test]
    fn the_sign_is_dropped_not_negated() {
        // -973932308 & 0x7fffffff = 1173551340
        assert_eq!(partition_of_key(b"21", 1000), PartitionId::new(340));
    }

    #[test]
    fn sticks_for_one_batch_and_avoids_partitions_without_leader() {
        let sticky = Sticky::new(PartitionId::new(2));
        assert!(sticky.may_begin(PartitionId::new(2)));
        assert!(!sticky.may_begin(PartitionId::new(2)));
        let only_third = |partition: PartitionId| (partition.get() == 3).then(|| NodeId::new(1));
        for random in 0..8 {
            assert_eq!(sticky.move_on(4, random, only_third), PartitionId::new(3));
        }
        assert!(sticky.may_begin(PartitionId::new(3)));
        assert_eq!(sticky.move_on(4, 5, |_| None), PartitionId::new(1));
    }

    proptest! {
        #[test]
        fn always_in_range(key: Vec<u8>, partitions in 1_u32..=10_000) {
            prop_assert!(partition_of_key(&key, partitions).get() < partitions);
        }
    }
}
