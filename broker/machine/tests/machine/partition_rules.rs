//! The producer rules as a table, and what each half of the partition does beyond them.

use busbar_machine::partition::{
    Admission, Applied, Beside, EntryHead, PartitionMachine, ProducerLimits, Sequencer, VoidReason,
};
use busbar_proto::{LogIndex, LogPosition, Offset, ProducerEpoch, ProducerId, Reason, Term};

use crate::support::{Log, Sent};

const TERM: u64 = 3;

fn led() -> (PartitionMachine, Sequencer, Log) {
    led_with(ProducerLimits::default())
}

fn led_with(limits: ProducerLimits) -> (PartitionMachine, Sequencer, Log) {
    let mut machine = PartitionMachine::with_limits(limits);
    let mut log = Log::default();
    machine.advance(log.next(TERM));
    let sequencer = Sequencer::new(&machine, Term::new(TERM));
    (machine, sequencer, log)
}

/// Admits, seals and applies each batch as an entry of its own.
fn store(machine: &mut PartitionMachine, sequencer: &mut Sequencer, log: &mut Log, sent: &[Sent]) {
    for batch in sent {
        assert!(matches!(sequencer.admit(&batch.header()), Admission::Accept { .. }), "{batch:?}");
        let at = log.next(TERM);
        let applied = machine.apply(at, &sequencer.seal(0).unwrap());
        assert!(matches!(applied, Applied::Stored { .. }), "{batch:?}: {applied:?}");
        sequencer.committed(at, machine.next_offset());
    }
}

fn batches(stamped_ms: i64, batches: &[(Sent, u64)]) -> EntryHead {
    let batches = batches.iter().map(|(sent, base_offset)| sent.at(*base_offset)).collect();
    EntryHead::Batches { epoch: Term::new(TERM), stamped_ms, batches }
}

#[derive(Debug, PartialEq, Eq)]
enum Want {
    Accept(u64),
    Duplicate(u64),
    Reject(Reason),
}
use Want::{Accept, Duplicate, Reject};

#[test]
fn rules() {
    let p = |epoch, sequence, count| Sent::new(7, epoch, sequence, count);
    let seven: Vec<Sent> = (0..7).map(|n| p(0, n * 10, 10)).collect();
    let top = i32::MAX;
    // (name, what is stored, what comes, what it gets)
    let table: &[(&str, &[Sent], Sent, Want)] = &[
        ("no producer id", &[], Sent::anonymous(4), Accept(0)),
        ("no producer id, again", &[Sent::anonymous(4)], Sent::anonymous(4), Accept(4)),
        ("first batch", &[], p(0, 0, 3), Accept(0)),
        ("first batch under a later epoch", &[], p(9, 0, 3), Accept(0)),
        ("first batch, not from 0", &[], p(0, 5, 3), Reject(Reason::SequenceGap)),
        ("the next", &[p(0, 0, 3)], p(0, 3, 2), Accept(3)),
        ("the next after others", &[p(0, 0, 3), Sent::new(8, 0, 0, 5)], p(0, 3, 2), Accept(8)),
        ("one missing", &[p(0, 0, 3)], p(0, 4, 2), Reject(Reason::SequenceGap)),
        ("far ahead", &[p(0, 0, 3)], p(0, top, 1), Reject(Reason::SequenceGap)),
        ("half way round ahead", &[p(0, 0, 3)], p(0, 1 << 30, 1), Reject(Reason::SequenceGap)),
        ("the last again", &[p(0, 0, 3), p(0, 3, 2)], p(0, 3, 2), Duplicate(3)),
        ("the first again", &[p(0, 0, 3), p(0, 3, 2)], p(0, 0, 3), Duplicate(0)),
        ("the fifth last", &seven, p(0, 20, 10), Duplicate(20)),
        ("the sixth last", &seven, p(0, 10, 10), Reject(Reason::SequenceTooOld)),
        ("the very first", &seven, p(0, 0, 10), Reject(Reason::SequenceTooOld)),
        ("stored ones, cut shorter", &seven, p(0, 60, 5), Reject(Reason::SequenceTooOld)),
        ("stored ones, cut longer", &seven, p(0, 60, 11), Reject(Reason::SequenceTooOld)),
        ("stored ones, cut in the middle", &seven, p(0, 65, 10), Reject(Reason::SequenceTooOld)),
        ("an older epoch", &[p(2, 0, 3)], p(1, 3, 1), Reject(Reason::ProducerFenced)),
        ("an older epoch, a batch it stored", &[p(1, 0, 3), p(2, 0, 3)], p(1, 0, 3), Reject(Reason::ProducerFenced)),
        ("a newer epoch from 0", &[p(1, 0, 3)], p(2, 0, 3), Accept(3)),
        ("a newer epoch, not from 0", &[p(1, 0, 3)], p(2, 3, 3), Reject(Reason::SequenceGap)),
        ("a new epoch's batch again", &[p(1, 0, 3), p(2, 0, 3)], p(2, 0, 3), Duplicate(3)),
        (
            "what only the old epoch stored",
            &[p(1, 0, 3), p(1, 3, 3), p(2, 0, 3)],
            p(2, 9, 3),
            Reject(Reason::SequenceGap),
        ),
        ("a negative sequence", &[], p(0, -1, 3), Reject(Reason::InvalidArgument)),
        ("a negative epoch", &[], p(-1, 0, 3), Reject(Reason::InvalidArgument)),
        ("no record", &[], p(0, 0, 0), Reject(Reason::CorruptBatch)),
        ("the wrap", &[p(0, 0, 1 << 30), p(0, 1 << 30, 1 << 30)], p(0, 0, 4), Accept(1 << 31)),
        ("across the wrap", &[p(0, 0, top as u32)], p(0, top, 4), Accept(top as u64)),
        ("after the wrap", &[p(0, 0, top as u32), p(0, top, 4)], p(0, 3, 4), Accept(top as u64 + 4)),
        ("again, across the wrap", &[p(0, 0, top as u32), p(0, top, 4)], p(0, top, 4), Duplicate(top as u64)),
    ];
    for (name, given, when, want) in table {
        let (mut machine, mut sequencer, mut log) = led();
        store(&mut machine, &mut sequencer, &mut log, given);
        let got = match sequencer.admit(&when.header()) {
            Admission::Accept { base_offset } => Accept(base_offset.get()),
            Admission::DuplicateStored { base_offset } => Duplicate(base_offset.get()),
            Admission::DuplicateInFlight { .. } => panic!("{name}: nothing is in flight"),
            Admission::Reject(refusal) => Reject(refusal.reason),
        };
        assert_eq!(got, *want, "{name}");
        // A leader elected now decides the same, and so does apply.
        let after = Sequencer::new(&machine, Term::new(TERM)).admit(&when.header());
        assert_eq!(matches!(after, Admission::Accept { .. }), matches!(want, Accept(_)), "{name}, after an election");
        if when.count > 0 {
            let entry = batches(0, &[(*when, machine.next_offset().get())]);
            let applied = machine.apply(log.next(TERM), &entry);
            assert_eq!(matches!(applied, Applied::Stored { .. }), matches!(want, Accept(_)), "{name}, applied");
        }
    }
}

#[test]
fn a_fence_holds_on_every_replica_until_the_new_epoch_writes() {
    let (mut machine, mut sequencer, mut log) = led();
    store(&mut machine, &mut sequencer, &mut log, &[Sent::new(7, 3, 0, 2)]);
    let fence =
        |epoch| EntryHead::Fence { producer: ProducerId::new(7), epoch: ProducerEpoch::new(epoch), stamped_ms: 9 };
    for (epoch, want) in [(2, false), (3, false), (5, true), (5, false), (4, false)] {
        let fenced = Applied::Fenced { producer: ProducerId::new(7), epoch: ProducerEpoch::new(epoch) };
        let want = if want { fenced } else { Applied::Nothing };
        assert_eq!(machine.apply(log.next(TERM), &fence(epoch)), want, "{epoch}");
    }
    assert_eq!(machine.oldest_epoch(ProducerId::new(7)), Some(ProducerEpoch::new(5)));
    // A leader that had accepted a batch before it knew: the entry is void, the next sequencer knows.
    let late = machine.apply(log.next(TERM), &batches(0, &[(Sent::new(7, 3, 2, 1), 2)]));
    assert!(matches!(late, Applied::Voided(_)), "{late:?}");
    let mut next = Sequencer::new(&machine, Term::new(TERM));
    for (sent, want) in [
        (Sent::new(7, 3, 2, 1), Some(Reason::ProducerFenced)),
        (Sent::new(7, 4, 0, 1), Some(Reason::ProducerFenced)),
        (Sent::new(7, 5, 1, 1), Some(Reason::SequenceGap)),
        (Sent::new(7, 5, 0, 1), None),
        (Sent::new(8, 0, 0, 1), None),
    ] {
        match next.admit(&sent.header()) {
            Admission::Reject(refusal) => assert_eq!(Some(refusal.reason), want, "{sent:?}"),
            accepted => assert_eq!((want, matches!(accepted, Admission::Accept { .. })), (None, true), "{sent:?}"),
        }
    }
    let stored = machine.apply(log.next(TERM), &next.seal(10).unwrap());
    assert!(matches!(stored, Applied::Stored { .. }));
    assert_eq!(machine.fences().len(), 0, "the producer's own epoch fences from now on");
    assert_eq!(machine.oldest_epoch(ProducerId::new(7)), Some(ProducerEpoch::new(5)));
}

#[test]
fn a_claim_that_the_partition_has_not_seen_refuses_all_but_what_is_stored() {
    let (mut machine, mut sequencer, mut log) = led();
    store(&mut machine, &mut sequencer, &mut log, &[Sent::new(7, 3, 0, 2)]);
    let newer = Some(ProducerEpoch::new(4));
    let duplicate = Admission::DuplicateStored { base_offset: Offset::ZERO };
    assert_eq!(sequencer.admit_unless(&Sent::new(7, 3, 0, 2).header(), Beside::default(), newer), duplicate);
    for sequence in [2, 9] {
        let sent = Sent::new(7, 3, sequence, 1);
        let Admission::Reject(refusal) = sequencer.admit_unless(&sent.header(), Beside::default(), newer) else {
            panic!("{sent:?}")
        };
        assert_eq!(refusal.reason, Reason::ProducerFenced);
    }
    assert!(sequencer.open_batches().is_empty());
}

#[test]
fn a_duplicate_of_what_is_in_flight_waits_for_it() {
    let (mut machine, mut sequencer, mut log) = led();
    let (first, second) = (Sent::new(7, 0, 0, 3), Sent::new(7, 0, 3, 1));
    let in_flight = |offset| Admission::DuplicateInFlight { base_offset: Offset::new(offset) };
    let stored = |offset| Admission::DuplicateStored { base_offset: Offset::new(offset) };
    assert_eq!(sequencer.admit(&first.header()), Admission::Accept { base_offset: Offset::ZERO });
    assert_eq!(sequencer.admit(&first.header()), in_flight(0), "in the open entry");
    let one = sequencer.seal(0).unwrap();
    assert_eq!(sequencer.admit(&first.header()), in_flight(0), "sealed");
    assert_eq!(sequencer.admit(&second.header()), Admission::Accept { base_offset: Offset::new(3) });
    let at = log.next(TERM);
    let _ = machine.apply(at, &one);
    sequencer.committed(LogPosition::new(TERM + 1, 99), Offset::new(99));
    assert_eq!(sequencer.admit(&first.header()), in_flight(0), "another leader's entries say nothing about this one's");
    sequencer.committed(at, machine.next_offset());
    assert_eq!(sequencer.admit(&first.header()), stored(0));
    assert_eq!(sequencer.admit(&second.header()), in_flight(3));
    assert_eq!(sequencer.in_flight_records(), 1);
}

#[test]
fn sealing_nothing_gives_nothing() {
    let (_, mut sequencer, _) = led();
    assert_eq!(sequencer.seal(0), None);
    let _ = sequencer.admit(&Sent::new(7, 0, 5, 1).header());
    assert_eq!(sequencer.seal(0), None, "a rejected batch leaves no trace");
}

#[test]
fn an_entry_counts_as_a_whole_or_is_void_as_a_whole() {
    let p = |sequence, count| Sent::new(7, 0, sequence, count);
    let offset = |expected, found| VoidReason::Offset { expected: Offset::new(expected), found: Offset::new(found) };
    for (name, entry, want) in [
        ("not from the next offset", batches(0, &[(p(0, 2), 1)]), Some(offset(0, 1))),
        ("a hole inside", batches(0, &[(p(0, 2), 0), (p(2, 2), 3)]), Some(offset(2, 3))),
        ("an overlap inside", batches(0, &[(p(0, 2), 0), (p(2, 2), 1)]), Some(offset(2, 1))),
        ("a sequence gap inside", batches(0, &[(p(0, 2), 0), (p(3, 2), 2)]), None),
        ("the same twice", batches(0, &[(p(0, 2), 0), (p(0, 2), 2)]), None),
        (
            "another term's stamp",
            EntryHead::Batches { epoch: Term::new(2), stamped_ms: 0, batches: vec![p(0, 2).at(0)] },
            Some(VoidReason::Epoch { stamped: Term::new(2), term: Term::new(TERM) }),
        ),
    ] {
        let (mut machine, _, mut log) = led();
        let before = machine.clone();
        let at = log.next(TERM);
        match machine.apply(at, &entry) {
            Applied::Voided(reason) => assert_eq!(want.unwrap_or(reason), reason, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        assert!(machine.is_void(at.index) && !machine.is_void(LogIndex::new(1)), "{name}");
        assert_eq!(machine.next_offset(), before.next_offset(), "{name}");
        assert_eq!(machine.producers().len(), 0, "{name}");
        let sound = batches(0, &[(p(0, 2), 0), (p(2, 2), 2)]);
        let after = Applied::Stored { base_offset: Offset::ZERO, next_offset: Offset::new(4), batches: 2 };
        assert_eq!(machine.apply(log.next(TERM), &sound), after, "{name}: what follows is not harmed");
    }
}

#[test]
fn trims_move_forward_within_the_log() {
    let (mut machine, _, mut log) = led();
    let _ = machine.apply(log.next(TERM), &batches(0, &[(Sent::anonymous(10), 0)]));
    for (log_start, want) in [(0, None), (4, Some(4)), (4, None), (3, None), (11, None), (10, Some(10))] {
        let applied = machine.apply(log.next(TERM), &EntryHead::Trim { log_start: Offset::new(log_start) });
        let want = want.map(|at| Applied::Trimmed { log_start: Offset::new(at) }).unwrap_or(Applied::Nothing);
        assert_eq!(applied, want, "{log_start}");
    }
    assert_eq!((machine.log_start(), machine.high_watermark()), (Offset::new(10), Offset::new(10)));
}

#[test]
fn voids_are_forgotten_with_the_log() {
    let (mut machine, _, mut log) = led();
    for _ in 0..3 {
        let _ = machine.apply(log.next(TERM), &batches(0, &[(Sent::anonymous(1), 5)]));
    }
    machine.forget_below(LogIndex::new(3));
    assert_eq!(machine.voids().map(LogIndex::get).collect::<Vec<_>>(), [3, 4]);
    let _ = machine.apply(log.next(TERM), &batches(0, &[(Sent::anonymous(4), 0)]));
    machine.begin_after_checkpoint();
    assert_eq!((machine.log_start(), machine.voids().len()), (Offset::new(4), 0));
}

#[test]
fn the_table_forgets_who_was_idle_longest() {
    let limits = ProducerLimits { producers_max: 2, idle_ms_max: 100 };
    let (mut machine, mut sequencer, mut log) = led_with(limits);
    // (producer, sequence, the leader's clock, who is remembered then)
    for (producer, sequence, now_ms, want) in [
        (5, 0, 0, &[5][..]),
        (6, 0, 10, &[5, 6]),
        (5, 1, 20, &[5, 6]),
        (7, 0, 30, &[5, 7]),
        (5, 2, 120, &[5, 7]),
        (5, 3, 130, &[5, 7]),
        (5, 4, 131, &[5]),
        (5, 5, 50, &[5]),
        (8, 0, 230, &[5, 8]),
        (8, 1, 232, &[8]),
        (5, 0, 232, &[5, 8]),
    ] {
        let sent = Sent::new(producer, 0, sequence, 1);
        assert!(matches!(sequencer.admit(&sent.header()), Admission::Accept { .. }), "{sent:?} at {now_ms}");
        let applied = machine.apply(log.next(TERM), &sequencer.seal(now_ms).unwrap());
        assert!(matches!(applied, Applied::Stored { .. }));
        let remembered: Vec<i64> = machine.producers().map(|(id, _)| id.get()).collect();
        assert_eq!(remembered, want, "after {sent:?} at {now_ms}");
        assert!(machine.producers().eq(sequencer.producers()));
    }
    assert!(machine.producer(ProducerId::new(7)).is_none());
}

#[test]
fn record_times_do_not_age_producers() {
    let (mut machine, _, mut log) = led();
    let _ = machine.apply(log.next(TERM), &batches(0, &[(Sent::new(7, 0, 0, 1), 0)]));
    let mut future = Sent::new(8, 0, 0, 1).at(1);
    future.max_timestamp_ms = i64::MAX;
    let entry = EntryHead::Batches { epoch: Term::new(TERM), stamped_ms: 1, batches: vec![future] };
    let _ = machine.apply(log.next(TERM), &entry);
    assert_eq!(machine.producers().len(), 2);
}

#[test]
#[should_panic(expected = "can't follow")]
fn an_entry_is_applied_once() {
    let (mut machine, _, _) = led();
    machine.advance(LogPosition::new(TERM, 1));
}

#[test]
fn offsets_end_where_the_batch_format_ends() {
    let mut bytes = vec![1, 0];
    bytes.extend([0xfa, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]); // log start i64::MAX - 5
    bytes.extend([0, 0, 10, 10, 0, 0]); // no records, no voids, limits, log time, no producers
    bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    let mut machine = PartitionMachine::decode(&bytes).unwrap();
    assert_eq!(machine.next_offset().get(), i64::MAX as u64 - 5);
    let mut sequencer = Sequencer::new(&machine, Term::new(TERM));
    let Admission::Reject(refusal) = sequencer.admit(&Sent::anonymous(6).header()) else { panic!("6 don't fit") };
    assert_eq!(refusal.reason, Reason::LimitReached);
    assert!(matches!(sequencer.admit(&Sent::anonymous(5).header()), Admission::Accept { .. }));
    assert!(matches!(sequencer.admit(&Sent::anonymous(1).header()), Admission::Reject(_)));
    let applied = machine.apply(LogPosition::new(TERM, 1), &sequencer.seal(0).unwrap());
    assert!(matches!(applied, Applied::Stored { .. }));
    assert_eq!(PartitionMachine::decode(&machine.encode()), Ok(machine));
}
