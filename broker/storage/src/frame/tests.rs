//! Frames: golden bytes, round trips, and every flipped bit refused.

use super::*;
use proptest::prelude::*;

fn sample() -> (Head, Bytes) {
    let payload = Bytes::from_static(b"head|body of it");
    let entry = Entry { term: 3, index: 9, kind: 7, mark: 100, time_ms: -5, head_len: 4, payload: payload.clone() };
    (Head::of_entry(Kind::Entry, GroupId(0x0102), &entry), payload)
}

/// The bytes on disk are a promise: this is what version 1 wrote.
#[test]
fn golden_header() {
    let (head, _) = sample();
    let bytes = head.encode(&Place::journal(2, 5), 8192, 0xAABBCCDD, 4096);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        hex,
        concat!(
            "3bb159ea",
            "ddccbbaa",
            "05000000",
            "00020000",
            "0f000000",
            "803013fc",
            "01",
            "07",
            "0000",
            "04000000",
            "0201000000000000",
            "0300000000000000",
            "0900000000000000",
            "6400000000000000",
            "fbffffffffffffff"
        )
    );
}

#[test]
fn accepted_only_where_it_was_written() {
    let (head, _) = sample();
    let here = Place::journal(2, 5);
    let bytes = head.encode(&here, 8192, 1, 0);
    let read = decode(&bytes, &here, 8192).unwrap();
    assert_eq!((read.head, read.prev, read.crc), (head, 1, crc_of(&bytes)));
    let elsewhere = [(Place::journal(2, 6), 8192), (Place::journal(3, 5), 8192), (here, 8200)];
    for (place, pos) in elsewhere {
        assert_eq!(decode(&bytes, &place, pos), None, "{place:?} at {pos}");
    }
    assert_eq!(decode(&bytes, &Place::segment(GroupId(2), 5), 8192), None);
    assert_eq!(decode(&bytes[..HEADER - 1], &here, 8192), None);
}

#[test]
fn sizes_are_aligned() {
    for (len, want) in [(0, 72), (1, 80), (8, 80), (9, 88)] {
        assert_eq!(size_of(len), want);
        assert_eq!(HEADER + len + padding(len).len(), want as usize);
    }
}

proptest! {
    #[test]
    fn every_flipped_bit_is_refused(bit in 0..HEADER * 8) {
        let (head, _) = sample();
        let here = Place::segment(GroupId(1), 77);
        let mut bytes = head.encode(&here, 64, 9, 0);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(decode(&bytes, &here, 64), None);
    }

    #[test]
    fn round_trip(term: u64, index: u64, mark: u64, time_ms: i64, flavour: u8, group: u64, kind in 1u8..=14, prev: u32, pos: u64) {
        let head = Head {
            kind: Kind::from_byte(kind).unwrap(), flavour, len: 12, payload_crc: 5, head_len: 3,
            group: GroupId(group), term, index, mark, time_ms,
        };
        let here = Place::journal(0, 1);
        let read = decode(&head.encode(&here, pos, prev, 64), &here, pos).unwrap();
        prop_assert_eq!((read.head, read.prev, read.synced), (head, prev, 64));
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = decode(&bytes, &Place::journal(0, 0), 0);
    }
}
