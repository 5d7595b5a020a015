//! Which partition a record goes to. Keyed records: by their key (`busbar_proto::keys`). Keyless ones stick to one partition for a batch's length, so
//! that batches are large, and then move on to the better of two that chance picks: the one with less work ahead.
//! Two choices spread load nearly as well as looking at all partitions, and unlike it never make all producers run
//! to the same one. Pure: randomness and costs are given.
//!
//! Invariant: a chosen partition is below the topic's number of partitions.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use busbar_proto::PartitionId;

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

    /// Moves on to the cheaper of two random partitions; `None` = nothing can be sent there now.
    pub(crate) fn move_on(
        &self,
        partitions: u32,
        random: u64,
        cost: impl Fn(PartitionId) -> Option<u64>,
    ) -> PartitionId {
        let next = choose(partitions, random, cost);
        self.0.store(u64::from(next.get()), Ordering::Relaxed);
        next
    }
}

fn choose(partitions: u32, random: u64, cost: impl Fn(PartitionId) -> Option<u64>) -> PartitionId {
    // Two halves of one random number: the second choice is any partition but the first.
    let first = (random as u32) % partitions;
    let step = if partitions > 1 { 1 + ((random >> 32) as u32) % (partitions - 1) } else { 0 };
    let (first, second) = (PartitionId::new(first), PartitionId::new((first + step) % partitions));
    match (cost(first), cost(second)) {
        (Some(of_first), Some(of_second)) if of_second < of_first => second,
        (Some(_), _) => first,
        (None, Some(_)) => second,
        // Rare, so all are looked at.
        (None, None) => {
            let round = (0..partitions).map(|step| PartitionId::new((first.get() + step) % partitions));
            round.into_iter().find(|&partition| cost(partition).is_some()).unwrap_or(first)
        }
    }
}

/// The work ahead of a partition and how fast it gets done, for [`Sticky::move_on`]. Updated without a lock: a cost
/// that is a little off only makes a choice a little worse.
#[derive(Debug, Default)]
pub(crate) struct Load {
    outstanding_bytes: AtomicU64,
    /// A slow answer counts at once, fast ones make up for it by and by.
    ack_us: AtomicU64,
    /// When that was learned, in milliseconds of the caller's time.
    acked_ms: AtomicU64,
    held_back: AtomicBool,
}

impl Load {
    /// What an answer takes as long as none is known, and at least: differences below are noise.
    const ACK_US_MIN: u64 = 2_000;
    /// A new sample's share when it is faster: one eighth.
    const SMOOTHING_SHIFT: u32 = 3;
    /// Time in which half of a slow answer is forgotten: a partition that nobody sends to is tried again.
    const HALF_LIFE_MS: u64 = 2_000;

    pub(crate) fn taken(&self, bytes: usize) {
        self.outstanding_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn finished(&self, bytes: usize) {
        self.outstanding_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn acknowledged(&self, took: Duration, now_ms: u64) {
        let sample = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = self.ack_us(now_ms);
        let smoothed = match sample >= before {
            true => sample,
            false => before - ((before - sample) >> Self::SMOOTHING_SHIFT),
        };
        self.ack_us.store(smoothed, Ordering::Relaxed);
        self.acked_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Nothing can be sent there for now, or it can again.
    pub(crate) fn hold_back(&self, held_back: bool) {
        self.held_back.store(held_back, Ordering::Relaxed);
    }

    /// Work ahead of another batch of `bytes`, in byte-microseconds; `None` = it would not even be sent.
    pub(crate) fn cost(&self, bytes: usize, now_ms: u64) -> Option<u64> {
        let ahead = self.outstanding_bytes.load(Ordering::Relaxed).saturating_add(bytes as u64);
        let cost = ahead.saturating_mul(self.ack_us(now_ms).max(Self::ACK_US_MIN));
        (!self.held_back.load(Ordering::Relaxed)).then_some(cost)
    }

    fn ack_us(&self, now_ms: u64) -> u64 {
        let age_ms = now_ms.saturating_sub(self.acked_ms.load(Ordering::Relaxed));
        let halved = u32::try_from(age_ms / Self::HALF_LIFE_MS).unwrap_or(u32::MAX);
        self.ack_us.load(Ordering::Relaxed).checked_shr(halved).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::env::{Entropy, SeededEntropy};

    #[test]
    fn sticks_for_one_batch_and_avoids_partitions_without_leader() {
        let sticky = Sticky::new(PartitionId::new(2));
        assert!(sticky.may_begin(PartitionId::new(2)));
        assert!(!sticky.may_begin(PartitionId::new(2)));
        let only_third = |partition: PartitionId| (partition.get() == 3).then_some(1);
        for random in 0..8 {
            assert_eq!(sticky.move_on(4, random, only_third), PartitionId::new(3));
        }
        assert!(sticky.may_begin(PartitionId::new(3)));
        assert_eq!(sticky.move_on(4, 5, |_| None), PartitionId::new(1));
    }

    #[test]
    fn the_cheaper_of_two_is_chosen_and_equals_are_used_evenly() {
        let random = SeededEntropy::new(7);
        let shares = |cost: fn(PartitionId) -> Option<u64>| {
            let mut shares = [0; 8];
            for _ in 0..8000 {
                shares[choose(8, random.next_u64(), cost).get() as usize] += 1;
            }
            shares
        };
        let even = shares(|_| Some(1));
        assert!(even.iter().all(|&share| (850..1150).contains(&share)), "{even:?}");
        // The dearest of all never wins, the cheapest wins whenever it is picked: twice as often as chance.
        let steps = shares(|partition| Some(u64::from(partition.get())));
        assert!(steps.is_sorted_by(|a, b| a > b) && steps[7] == 0 && (1800..2200).contains(&steps[0]), "{steps:?}");
        let one_out = shares(|partition| (partition.get() != 2).then_some(1));
        assert_eq!(one_out[2], 0);
    }

    #[test]
    fn a_load_costs_what_is_ahead_times_how_long_it_takes() {
        let load = Load::default();
        assert_eq!(load.cost(10, 0), Some(20_000));
        load.taken(90);
        load.acknowledged(Duration::from_millis(10), 0);
        assert_eq!(load.cost(10, 0), Some(1_000_000));
        load.acknowledged(Duration::from_millis(2), 0);
        assert_eq!(load.cost(10, 0), Some(900_000), "faster answers count by and by");
        load.finished(90);
        assert_eq!(load.cost(10, Load::HALF_LIFE_MS), Some(45_000), "slow ones are forgotten");
        load.hold_back(true);
        assert_eq!(load.cost(10, 0), None);
    }

    proptest! {
        #[test]
        fn a_choice_is_in_range_and_usable_if_any_is(random: u64, usable in prop::collection::vec(any::<bool>(), 1..20)) {
            let cost = |partition: PartitionId| usable[partition.get() as usize].then_some(1);
            let chosen = choose(usable.len() as u32, random, cost);
            prop_assert!(cost(chosen).is_some() || !usable.contains(&true));
        }
    }
}
