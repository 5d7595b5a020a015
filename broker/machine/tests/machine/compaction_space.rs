//! How large a compacted log stays, as whole batches go only: measured over the distribution of updates and the records of
//! a batch. `docs/decisions/0008` has the table; `--nocapture` prints it.

use std::collections::BTreeSet;

use busbar_machine::partition::{
    BatchSummary, EntryHead, Settled,
    compaction::{Findings, Judge, KeyedEntry, NewestKeys},
};
use busbar_proto::{Term, compaction::KeyDigestBuilder, limits};

use crate::support::Sent;

const KEYS: usize = 2_000;
const UPDATES: usize = 100_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below_one(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Keys drawn with a chance of 1 / rank^skew.
fn updates(skew: f64) -> Vec<u32> {
    let mut sums = Vec::with_capacity(KEYS);
    let mut sum = 0.0;
    for rank in 1..=KEYS {
        sum += (rank as f64).powf(-skew);
        sums.push(sum);
    }
    let mut random = Random(7);
    let mut draw = || {
        let at = random.below_one() * sum;
        sums.partition_point(|&below| below <= at).min(KEYS - 1) as u32
    };
    (0..UPDATES).map(|_| draw()).collect()
}

/// Records left after compaction, as a multiple of the keys.
fn left(updates: &[u32], batch_records: usize) -> f64 {
    let mut entries = Vec::new();
    for (nr, keys) in updates.chunks(batch_records).enumerate() {
        let mut digest = KeyDigestBuilder::new();
        keys.iter().for_each(|key| digest.push(&key.to_be_bytes(), false));
        let summary = Sent::new(-1, -1, -1, keys.len() as u32).at((nr * batch_records) as u64);
        let digest = digest.build();
        let batches = vec![BatchSummary { bytes: 1, key_bytes: digest.len() as u32, ..summary }];
        let body = [&[0], &digest[..]].concat();
        entries.push((EntryHead::Batches { epoch: Term::new(1), stamped_ms: 0, batches }, body));
    }
    let mut newest = NewestKeys::within(64 << 20);
    for (head, body) in &entries {
        let EntryHead::Batches { batches, .. } = head else { unreachable!() };
        newest.note(&KeyedEntry::new(batches, body).unwrap());
    }
    let mut judge = Judge::new(newest, Settled::default(), false, Findings::default());
    let kept = entries.iter().filter(|(head, body)| judge.hollow(head, body).is_none()).count();
    let keys: BTreeSet<u32> = updates.iter().copied().collect();
    (kept * batch_records) as f64 / keys.len() as f64
}

#[test]
fn a_compacted_log_stays_within_a_small_multiple_of_its_keys() {
    let sizes = [1, 4, 8, 16];
    println!("records left for each key after {} updates of each, by records a batch {sizes:?}", UPDATES / KEYS);
    for (name, skew, most) in [("uniform", 0.0, 4.0), ("zipf 0.8", 0.8, 7.0), ("zipf 1.0", 1.0, 10.0)] {
        let updates = updates(skew);
        let ratios: Vec<f64> = sizes.iter().map(|&size| left(&updates, size)).collect();
        println!("{name:>9} {ratios:6.2?}");
        assert_eq!(ratios[0], 1.0, "single records leave nothing behind");
        assert!(ratios.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(ratios[3] < most, "{name}: {ratios:?}");
    }
    assert_eq!(limits::COMPACTED_BATCH_RECORDS_MAX, 16, "what was measured");
}
