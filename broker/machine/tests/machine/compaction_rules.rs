//! What goes and what stays, case by case; what is told of tombstones; what is left of a body.

use busbar_machine::partition::{
    BatchSummary, EntryHead, Settled,
    compaction::{Findings, Judge, KeyedEntry, NewestKeys},
};
use busbar_proto::{Offset, Term, compaction::KeyDigestBuilder, limits};

use crate::support::Sent;

/// An entry of batches like `"a b- c"`: records of these keys, those with a minus delete them. Each batch has four bytes
/// and two of a digest.
fn entry(base: &mut u64, batches: &[&str]) -> (EntryHead, Vec<u8>) {
    let (mut summaries, mut parts) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    for batch in batches {
        let mut keys = KeyDigestBuilder::new();
        batch.split(' ').for_each(|key| keys.push(key.trim_end_matches('-').as_bytes(), key.ends_with('-')));
        let summary = Sent::anonymous(keys.len() as u32).at(*base);
        let (id, keys) = (*base as u8, keys.build());
        summaries.push(BatchSummary { bytes: 4, digest_bytes: 2, key_bytes: keys.len() as u32, ..summary });
        parts[0].extend([id; 4]);
        parts[1].extend([id.wrapping_add(100); 2]);
        parts[2].extend_from_slice(&keys);
        *base += u64::from(summary.record_count);
    }
    (EntryHead::Batches { epoch: Term::new(1), stamped_ms: 0, batches: summaries }, parts.concat())
}

fn batches(head: &EntryHead) -> &[BatchSummary] {
    let EntryHead::Batches { batches, .. } = head else { panic!("a head of batches") };
    batches
}

fn log(entries: &[&[&str]]) -> Vec<(EntryHead, Vec<u8>)> {
    let mut base = 0;
    entries.iter().map(|batches| entry(&mut base, batches)).collect()
}

fn judge(log: &[(EntryHead, Vec<u8>)], settled: Settled, mature: bool) -> Judge {
    let mut keys = NewestKeys::within(1 << 20);
    log.iter().for_each(|(head, body)| keys.note(&KeyedEntry::new(batches(head), body).unwrap()));
    Judge::new(keys, settled, mature, Findings::default())
}

fn settled(offset: u64, blocked: &[u64]) -> Settled {
    let blocked = blocked.iter().copied().map(Offset::new).collect();
    Settled { offset: Offset::new(offset), stamped_ms: 0, blocked }
}

/// The base offsets of the batches that are left.
fn left(log: &[(EntryHead, Vec<u8>)], judge: &mut Judge) -> Vec<u64> {
    let mut left = Vec::new();
    for (head, body) in log {
        let new = judge.hollow(head, body);
        let head = new.as_ref().map_or(head, |(head, _)| head);
        left.extend(batches(head).iter().filter(|batch| !batch.is_hollow()).map(|batch| batch.base_offset.get()));
    }
    left
}

#[test]
fn what_goes_and_what_stays() {
    // (log, settled below, blocked, mature, left, told to be blocked, first to be settled, something is pending)
    type Case<'a> = (&'a [&'a [&'a str]], u64, &'a [u64], bool, &'a [u64], &'a [u64], Option<u64>, bool);
    let cases: &[Case<'_>] = &[
        (&[&["a"], &["b"], &["a"]], 0, &[], true, &[1, 2], &[], None, false),
        (&[&["a", "b", "a"]], 0, &[], true, &[1, 2], &[], None, false),
        // A batch goes as a whole, or stays.
        (&[&["a b"], &["a"], &["c"]], 0, &[], true, &[0, 2, 3], &[], None, false),
        (&[&["a b"], &["a"], &["b"]], 0, &[], true, &[2, 3], &[], None, false),
        (&[&["a a"]], 0, &[], true, &[0], &[], None, false),
        // A tombstone stays until it is settled and mature.
        (&[&["a"], &["a-"]], 0, &[], true, &[1], &[], Some(1), false),
        (&[&["a"], &["a-"]], 2, &[], false, &[1], &[], None, true),
        (&[&["a"], &["a-"]], 2, &[], true, &[], &[], None, false),
        (&[&["a"], &["a-"]], 1, &[], true, &[1], &[], Some(1), false),
        (&[&["a"], &["a-"]], 2, &[1], true, &[1], &[], Some(1), false),
        // One that is followed by a value is superseded as any record.
        (&[&["a"], &["a-"], &["a"]], 0, &[], true, &[2], &[], None, false),
        // One that has an old value in a batch that stays is blocked; in its own batch it takes that along.
        (&[&["a b"], &["a-"]], 0, &[], true, &[0, 2], &[2], None, false),
        (&[&["a a-"]], 0, &[], true, &[0], &[], Some(1), false),
        (&[&["a a-"]], 2, &[], true, &[], &[], None, false),
        (&[&["a a- b"]], 2, &[], true, &[0], &[], None, false),
    ];
    for (nr, (entries, below, blocked, mature, want, want_blocked, unsettled, pending)) in cases.iter().enumerate() {
        let log = log(entries);
        let mut judge = judge(&log, settled(*below, blocked), *mature);
        assert_eq!(left(&log, &mut judge), *want, "case {nr}");
        let findings = judge.into_findings();
        assert_eq!(findings.report(Offset::new(100)), Some(settled(100, want_blocked)), "case {nr}");
        assert_eq!((findings.unsettled(), findings.is_pending()), (unsettled.map(Offset::new), *pending), "case {nr}");
    }
}

#[test]
fn a_body_loses_what_belongs_to_a_dead_batch_and_nothing_else() {
    let log = log(&[&["a", "b", "c"], &["b", "d"]]);
    let mut judge = judge(&log, Settled::default(), false);
    let (head, body) = judge.hollow(&log[0].0, &log[0].1).unwrap();
    let hollow: Vec<bool> = batches(&head).iter().map(BatchSummary::is_hollow).collect();
    assert_eq!(hollow, [false, true, false]);
    let whole = &log[0].1;
    let keys = whole.len() - 3 * 20;
    let want = [&[0; 4][..], &[2; 4], &[100; 2], &[102; 2], &whole[keys..keys + 20], &whole[keys + 40..]].concat();
    assert_eq!((&body[..], head.body_bytes()), (&want[..], want.len() as u64));
    assert_eq!(EntryHead::decode(&head.encode()), Ok(head.clone()));
    // Once more: what is hollow stays so, and is of no account.
    assert_eq!(judge.hollow(&head, &body), None);
    assert!(judge.hollow(&log[1].0, &log[1].1).is_none());
}

#[test]
fn unknown_keys_keep_their_batch_and_every_tombstone() {
    let mut told = log(&[&["a"], &["a-"], &["a"]]);
    let EntryHead::Batches { batches, .. } = &mut told[0].0 else { panic!("a head of batches") };
    // Keys of another number of records, as of a producer that nobody understands any more.
    batches[0].record_count = 2;
    let mut judge = judge(&told, Settled::default(), true);
    assert_eq!(left(&told, &mut judge), [0, 2]);
    assert_eq!(judge.into_findings().report(Offset::new(3)), None);
    let mut judge = Judge::idle();
    judge.meet_unknown();
    assert_eq!(judge.into_findings().report(Offset::new(3)), None);
    assert!(KeyedEntry::new(&[], b"more than there should be").is_none());
}

#[test]
fn more_blocked_tombstones_than_can_be_told_end_what_is_told() {
    let most = limits::BLOCKED_TOMBSTONES_MAX as u64;
    let mut base = 0;
    let names: Vec<String> = (0..most + 9).map(|key| key.to_string()).collect();
    let mut log = Vec::new();
    for name in &names {
        // Nothing follows on the second one, so the first stays.
        log.push(entry(&mut base, &[&format!("{name} live-{name}")]));
    }
    for name in &names {
        log.push(entry(&mut base, &[&format!("{name}-")]));
    }
    let mut judge = judge(&log, Settled::default(), true);
    let _ = left(&log, &mut judge);
    let told = judge.into_findings().report(Offset::new(base)).unwrap();
    let first = 2 * names.len() as u64;
    assert_eq!((told.offset.get(), told.blocked.len() as u64), (first + most, most));
    assert_eq!(told.blocked.first(), Some(&Offset::new(first)));
    assert!(!told.covers(Offset::new(first)) && !told.covers(told.offset) && told.covers(Offset::new(1)));
}

#[test]
fn what_is_agreed_on_holds_for_each() {
    assert_eq!(Settled::agreed([], 5), None);
    let agreed = Settled::agreed([&settled(10, &[3, 7]), &settled(8, &[2, 3]), &settled(20, &[15])], 5);
    assert_eq!(agreed, Some(Settled { stamped_ms: 5, ..settled(8, &[2, 3, 7]) }));
    let mature = |now_ms, keep_ms| agreed.as_ref().unwrap().is_mature(now_ms, keep_ms);
    assert!(mature(15, 10) && !mature(14, 10) && mature(5, 0) && !mature(i64::MAX, u64::MAX));
}
