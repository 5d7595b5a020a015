//! Entry heads and checkpoints as bytes: golden vectors, round trips, and bytes that nobody wrote.

use busbar_machine::{
    codec::DecodeError,
    partition::{BatchSummary, EntryHead, PartitionMachine, Settled},
};
use busbar_proto::{LogPosition, Offset, ProducerEpoch, ProducerId, Sequence, Term};
use proptest::{collection::vec, prelude::*};

use crate::support::Sent;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn head() -> EntryHead {
    let batches = vec![Sent::new(300, 2, 7, 3).at(1_000), Sent::anonymous(1).at(1_003)];
    EntryHead::Batches { epoch: Term::new(5), stamped_ms: 1_000, batches }
}

fn fence(producer: i64, epoch: i16, stamped_ms: i64) -> EntryHead {
    EntryHead::Fence { producer: ProducerId::new(producer), epoch: ProducerEpoch::new(epoch), stamped_ms }
}

fn settled(offset: u64, stamped_ms: i64, blocked: &[u64]) -> EntryHead {
    let blocked = blocked.iter().copied().map(Offset::new).collect();
    EntryHead::Settled(Settled { offset: Offset::new(offset), stamped_ms, blocked })
}

/// Of batches with keys, the first of which is hollow.
fn keyed() -> EntryHead {
    let EntryHead::Batches { epoch, stamped_ms, batches } = head() else { panic!("a head of batches") };
    let batches = vec![batches[0].hollowed(), BatchSummary { digest_bytes: 3, key_bytes: 20, ..batches[1] }];
    EntryHead::Batches { epoch, stamped_ms, batches }
}

/// These bytes are on disks: a change here needs a new version, and a reader of the old one.
#[test]
fn heads_have_these_bytes() {
    for (head, want) in [
        (
            head(),
            // version, kind, epoch, stamped, count | offset, records, producer, epoch, sequence, time, bytes | ...
            concat!("01", "01", "05", "d00f", "02", "d00f03d804040e065b", "00010101010247"),
        ),
        (EntryHead::Trim { log_start: Offset::new(300) }, concat!("01", "02", "ac02")),
        (fence(300, 2, 1_000), concat!("01", "03", "d804", "04", "d00f")),
        (
            keyed(),
            // As above, but the first has no bytes, and behind each: digest bytes, key digest bytes.
            concat!("01", "05", "05", "d00f", "02", "d00f03d804040e0600", "0000", "00010101010247", "0314"),
        ),
        (settled(300, 1_000, &[7, 290]), concat!("01", "06", "ac02", "d00f", "02", "079b02")),
        (
            EntryHead::Batches { epoch: Term::new(0), stamped_ms: -1, batches: vec![] },
            concat!("01", "01", "00", "01", "00"),
        ),
    ] {
        let bytes = head.encode();
        assert_eq!(hex(&bytes), want, "{head:?}");
        assert_eq!(EntryHead::decode(&bytes), Ok(head));
    }
}

#[test]
fn a_checkpoint_has_these_bytes() {
    let mut machine = PartitionMachine::new();
    machine.advance(LogPosition::new(5, 1));
    let _ = machine.apply(LogPosition::new(5, 2), &head());
    let at_zero = vec![Sent::new(300, 2, 0, 3).at(0), Sent::new(300, 2, 3, 1).at(3)];
    let sound = EntryHead::Batches { epoch: Term::new(5), stamped_ms: 1_000, batches: at_zero };
    let _ = machine.apply(LogPosition::new(5, 3), &sound);
    let _ = machine.apply(LogPosition::new(5, 4), &EntryHead::Trim { log_start: Offset::new(1) });
    let bytes = machine.encode();
    let want = concat!(
        "01",
        "010504", // version, applied 4@t5
        "0103",
        "0102", // log start 1, 3 records on, one void: 2
        "a08d06",
        "8088b2a002",
        "d00f",
        "01", // limits, log time, one producer:
        "ac02",
        "02",
        "04",
        "00",
        "02",
        "00",
        "0300",
        "0100", // 300, epoch, records, idle, two batches from 0
    );
    assert_eq!(hex(&bytes[..bytes.len() - 4]), want);
    assert_eq!(PartitionMachine::decode(&bytes), Ok(machine));
}

#[test]
fn a_checkpoint_with_fences_has_these_bytes() {
    let mut machine = PartitionMachine::new();
    let anonymous = vec![Sent::anonymous(1).at(0)];
    let sound = EntryHead::Batches { epoch: Term::new(5), stamped_ms: 1_000, batches: anonymous };
    let _ = machine.apply(LogPosition::new(5, 1), &sound);
    let _ = machine.apply(LogPosition::new(5, 2), &fence(300, 2, 900));
    let _ = machine.apply(LogPosition::new(5, 3), &fence(301, 1, 1_010));
    let bytes = machine.encode();
    let want = concat!(
        "02",
        "010503", // version, applied 3@t5
        "000100", // log start 0, a record, no voids
        "a08d06",
        "8088b2a002",
        "d00f",
        "00", // limits, log time, no producers
        "02",
        "ac020200",
        "010114", // two fences: 300, epoch 2, at the log time; 301, epoch 1, 10 ms later
    );
    assert_eq!(hex(&bytes[..bytes.len() - 4]), want);
    assert_eq!(PartitionMachine::decode(&bytes), Ok(machine));
}

#[test]
fn a_checkpoint_with_settled_tombstones_has_these_bytes() {
    let mut machine = PartitionMachine::new();
    let sound = EntryHead::Batches { epoch: Term::new(5), stamped_ms: 1_000, batches: vec![Sent::anonymous(9).at(0)] };
    let _ = machine.apply(LogPosition::new(5, 1), &sound);
    let _ = machine.apply(LogPosition::new(5, 2), &settled(8, 1_000, &[3]));
    let bytes = machine.encode();
    let want = concat!(
        "03",
        "010502", // version, applied 2@t5
        "000900", // log start 0, nine records, no voids
        "a08d06",
        "8088b2a002",
        "d00f",
        "00",         // limits, log time, no producers
        "00",         // no fences
        "08d00f0103"  // settled below 8 at that time, but for 3
    );
    assert_eq!(hex(&bytes[..bytes.len() - 4]), want);
    assert_eq!(PartitionMachine::decode(&bytes), Ok(machine));
}

#[test]
fn digests_are_counted_behind_the_batches() {
    let EntryHead::Batches { epoch, stamped_ms, mut batches } = head() else { panic!("a head of batches") };
    let plain = EntryHead::Batches { epoch, stamped_ms, batches: batches.clone() };
    batches[1].digest_bytes = 300;
    let told = EntryHead::Batches { epoch, stamped_ms, batches };
    assert_eq!(told.body_bytes(), plain.body_bytes() + 300);
    assert_eq!((plain.encode()[1], told.encode()[1]), (1, 4));
    assert_eq!(hex(&told.encode()[told.encode().len() - 2..]), "ac02");
    assert_eq!(EntryHead::decode(&told.encode()), Ok(told));
}

#[test]
fn what_heads_say() {
    let head = head();
    assert_eq!((head.end_offset(), head.max_timestamp_ms()), (Some(Offset::new(1_004)), Some(1_003)));
    assert_eq!(head.body_bytes(), 91 + 71 - 12 + 12);
    let trim = EntryHead::Trim { log_start: Offset::new(9) };
    for head in [trim, fence(7, 1, 5)] {
        assert_eq!((head.end_offset(), head.max_timestamp_ms(), head.body_bytes()), (None, None, 0));
    }
}

#[test]
fn faults_are_named() {
    let with = |patch: fn(&mut Vec<u8>)| {
        let mut bytes = head().encode().to_vec();
        patch(&mut bytes);
        EntryHead::decode(&bytes).unwrap_err().to_string()
    };
    for (got, want) in [
        (with(|b| b.truncate(8)), "a partition entry's head has a batch count that can't be: 2, where 0 fit"),
        (with(|b| b.truncate(b.len() - 1)), "a partition entry's head ends within its batch bytes"),
        (with(|b| b.push(0)), "a partition entry's head is followed by 1 bytes that don't belong to it"),
        (
            with(|b| b[0] = 2),
            "a partition entry's head has format version 2, this build reads version 1: upgrade this node",
        ),
        (with(|b| b[1] = 7), "a partition entry's head has a kind that can't be: 7"),
        (with(|b| b[8] = 0), "a partition entry's head has a record count that can't be: 0"),
    ] {
        assert_eq!(got, want);
    }
    let mut checkpoint = PartitionMachine::new().encode().to_vec();
    checkpoint[3] ^= 1;
    assert!(matches!(PartitionMachine::decode(&checkpoint), Err(DecodeError::Checksum { .. })));
    assert!(matches!(PartitionMachine::decode(&[]), Err(DecodeError::Truncated { .. })));
}

fn any_batch() -> impl Strategy<Value = BatchSummary> {
    let whose = (any::<i64>(), any::<i16>(), any::<i32>());
    let bytes =
        (any::<u32>(), prop_oneof![3 => Just(0), 1 => any::<u32>()], prop_oneof![3 => Just(0), 1 => any::<u32>()]);
    (0..=i64::MAX as u64 - (1 << 33), 1..=u32::MAX, whose, any::<i64>(), bytes).prop_map(
        |(base_offset, record_count, (id, epoch, sequence), max_timestamp_ms, (bytes, digest_bytes, key_bytes))| {
            BatchSummary {
                base_offset: Offset::new(base_offset),
                record_count,
                producer_id: ProducerId::new(id),
                producer_epoch: ProducerEpoch::new(epoch),
                base_sequence: Sequence::new(sequence),
                max_timestamp_ms,
                bytes,
                digest_bytes,
                key_bytes,
            }
        },
    )
}

fn any_head() -> impl Strategy<Value = EntryHead> {
    prop_oneof![
        (any::<u64>(), any::<i64>(), vec(any_batch(), 0..5)).prop_map(|(epoch, stamped_ms, batches)| {
            EntryHead::Batches { epoch: Term::new(epoch), stamped_ms, batches }
        }),
        any::<u64>().prop_map(|log_start| EntryHead::Trim { log_start: Offset::new(log_start) }),
        (any::<i64>(), any::<i16>(), any::<i64>())
            .prop_map(|(producer, epoch, stamped_ms)| fence(producer, epoch, stamped_ms)),
        (any::<i64>(), prop::collection::btree_set(any::<u32>().prop_map(u64::from), 0..5), any::<u32>()).prop_map(
            |(stamped_ms, blocked, beyond)| {
                let blocked: Vec<u64> = blocked.into_iter().collect();
                settled(blocked.last().map_or(0, |last| last + 1) + u64::from(beyond), stamped_ms, &blocked)
            }
        ),
    ]
}

proptest! {
    #[test]
    fn any_head_round_trips(head in any_head()) {
        prop_assert_eq!(EntryHead::decode(&head.encode()), Ok(head));
    }

    #[test]
    fn any_bytes_are_a_head_or_an_error(bytes in vec(any::<u8>(), 0..80)) {
        check_head(&bytes)?;
    }

    #[test]
    fn damaged_heads_are_a_head_or_an_error(head in any_head(), at: prop::sample::Index, to: u8, cut: prop::sample::Index) {
        let mut bytes = head.encode().to_vec();
        *at.get_mut(&mut bytes) = to;
        check_head(&bytes)?;
        bytes.truncate(cut.index(bytes.len()));
        check_head(&bytes)?;
    }

    /// With a checksum that fits, so that the fields themselves are tried.
    #[test]
    fn any_bytes_are_a_checkpoint_or_an_error(mut bytes in vec(prop_oneof![0..4_u8, any::<u8>()], 0..80), known: bool) {
        if known && let Some(version) = bytes.first_mut() {
            *version = 1 + *version % 3;
        }
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        if let Ok(machine) = PartitionMachine::decode(&bytes) {
            prop_assert_eq!(&machine.encode()[..], &bytes[..]);
            prop_assert!(machine.log_start() <= machine.next_offset());
        }
    }
}

/// What decodes is sound, encodes to the same bytes, and can be applied.
fn check_head(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(head) = EntryHead::decode(bytes) {
        prop_assert_eq!(&head.encode()[..], bytes);
        let (_, _) = (head.end_offset(), head.max_timestamp_ms());
        let _ = PartitionMachine::new().apply(LogPosition::new(1, 1), &head);
    }
    Ok(())
}
