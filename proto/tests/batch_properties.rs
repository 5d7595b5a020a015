//! The batch codec's promises, tried on arbitrary records, arbitrary bytes and arbitrary damage.

use busbar_proto::{
    Offset, ProducerEpoch, ProducerId, Sequence,
    batch::{
        BatchBuilder, BatchError, BatchOptions, Compression, HEADER_BYTES, NO_HEADERS, ProducerState, RecordView,
        records, records_within, split, stamp, verify,
    },
    limits,
};
use bytes::Bytes;
use proptest::{collection::vec, option, prelude::*};

const LIMIT: usize = limits::BATCH_BYTES_MAX as usize;
/// The bytes of the two stamped fields.
const STAMPED: [std::ops::Range<usize>; 2] = [0..8, 12..16];

#[derive(Clone, Debug)]
struct Record {
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

impl PartialEq<RecordView> for Record {
    fn eq(&self, read: &RecordView) -> bool {
        let headers = read.headers.iter().map(|header| (header.key(), header.value.as_deref()));
        self.timestamp_ms == read.timestamp_ms
            && self.key.as_deref() == read.key.as_deref()
            && self.value.as_deref() == read.value.as_deref()
            && self.headers.iter().map(|(name, value)| (name.as_str(), Some(&value[..]))).eq(headers)
    }
}

fn arbitrary_bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..most), (any::<u8>(), 0..most).prop_map(|(byte, times)| vec![byte; times])]
}

fn arbitrary_record() -> impl Strategy<Value = Record> {
    let timestamp = prop_oneof![any::<i64>(), 1_700_000_000_000..1_700_000_100_000_i64, Just(-1)];
    let headers = vec((".{0,12}", arbitrary_bytes(40)), 0..4);
    (timestamp, option::of(arbitrary_bytes(30)), option::of(arbitrary_bytes(600)), headers)
        .prop_map(|(timestamp_ms, key, value, headers)| Record { timestamp_ms, key, value, headers })
}

fn arbitrary_codec() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)]
}

fn producer() -> ProducerState {
    ProducerState { id: ProducerId::new(7), epoch: ProducerEpoch::new(3), sequence: Sequence::new(40) }
}

fn build(records: &[Record], compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new(BatchOptions { compression, max_bytes: LIMIT });
    for Record { timestamp_ms, key, value, headers } in records {
        builder.push(*timestamp_ms, key.as_deref(), value.as_deref(), headers).expect("small records fit");
    }
    let estimate = builder.estimated_bytes();
    let batch = builder.build(producer());
    assert!(batch.len() <= estimate, "{} bytes built, {estimate} estimated", batch.len());
    batch
}

/// A batch whose header is changed by `change` and whose checksum is made right again.
fn resealed(batch: &Bytes, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut changed = batch.to_vec();
    change(&mut changed);
    let crc = crc32c::crc32c(&changed[21..]);
    changed[17..21].copy_from_slice(&crc.to_be_bytes());
    changed
}

proptest! {
    #[test]
    fn what_is_built_is_read_back(
        written in vec(arbitrary_record(), 1..40), codec in arbitrary_codec(), base in 0..1_u64 << 62, epoch: i32,
    ) {
        let mut stamped = build(&written, codec).to_vec();
        stamp(&mut stamped, Offset::new(base), epoch);
        let header = verify(&stamped, stamped.len()).expect("stamping leaves a batch sound");
        prop_assert_eq!(header.base_offset, Offset::new(base));
        prop_assert_eq!(header.leader_epoch, epoch);
        prop_assert_eq!(header.total_bytes(), stamped.len());
        prop_assert_eq!(header.next_offset(), Offset::new(base + written.len() as u64));
        prop_assert_eq!(header.producer_id, producer().id);
        prop_assert_eq!(header.producer_epoch, producer().epoch);
        prop_assert_eq!(header.base_sequence, producer().sequence);
        prop_assert_eq!(Some(header.max_timestamp_ms), written.iter().map(|record| record.timestamp_ms).max());
        let read: Vec<_> = records(stamped.into()).expect("sound").collect::<Result<_, _>>().expect("sound");
        prop_assert_eq!(&written, &read);
        prop_assert!(read.iter().zip(base..).all(|(record, offset)| record.offset == Offset::new(offset)));
    }

    #[test]
    fn any_flipped_bit_is_noticed(
        written in vec(arbitrary_record(), 1..4), codec in arbitrary_codec(), at: prop::sample::Index, bit in 0..8_u32,
    ) {
        let mut batch = build(&written, codec).to_vec();
        let at = at.index(batch.len());
        batch[at] ^= 1 << bit;
        // A negative base offset is refused too: no leader ever stamps one.
        let stamped = STAMPED.iter().any(|field| field.contains(&at)) && (at, bit) != (0, 7);
        prop_assert_eq!(verify(&batch, LIMIT).is_ok(), stamped, "byte {} bit {}", at, bit);
    }

    #[test]
    fn cut_or_lengthened_batches_are_refused(written in vec(arbitrary_record(), 1..4), at: prop::sample::Index) {
        let batch = build(&written, Compression::None);
        let cut = batch.slice(..at.index(batch.len()));
        let truncated = matches!(verify(&cut, LIMIT), Err(BatchError::Truncated { .. }));
        prop_assert!(truncated);
        let longer = [&batch[..], &[0]].concat();
        let trailing = BatchError::TrailingBytes { declared: batch.len(), found: batch.len() + 1 };
        prop_assert_eq!(verify(&longer, LIMIT), Err(trailing));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = verify(&bytes, LIMIT);
        let _ = split(bytes.clone().into()).count();
        let _ = records(bytes.into()).map(Iterator::count);
    }

    /// Past the checksum: arbitrary records sections and counts under a header that fits them.
    #[test]
    fn arbitrary_records_never_panic(
        section in vec(any::<u8>(), 0..300), keep: prop::sample::Index, codec in 0..8_u8, count in 0..100_i32,
        written in vec(arbitrary_record(), 1..4),
    ) {
        let codec_of_start = Compression::from_codec(codec).unwrap_or_default();
        let start = build(&written, codec_of_start);
        let forged = resealed(&start, |batch| {
            batch.truncate(HEADER_BYTES + keep.index(start.len() - HEADER_BYTES + 1));
            batch.extend_from_slice(&section);
            let length = (batch.len() - 12) as u32;
            batch[8..12].copy_from_slice(&length.to_be_bytes());
            batch[22] = codec;
            batch[23..27].copy_from_slice(&(count - 1).max(0).to_be_bytes());
            batch[57..61].copy_from_slice(&count.to_be_bytes());
        });
        let _ = verify(&forged, LIMIT);
        if let Ok(found) = records_within(forged.into(), 1 << 20) {
            let found: Vec<_> = found.collect();
            prop_assert!(found.len() <= count as usize + 1);
            prop_assert!(found.iter().rev().skip(1).all(Result::is_ok), "ends after the first error");
        }
    }

    /// Past the checksum: sound batches with a few bytes of the records section changed.
    #[test]
    fn damaged_records_never_panic(
        written in vec(arbitrary_record(), 1..10), codec in arbitrary_codec(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let forged = resealed(&build(&written, codec), |batch| {
            for (at, byte) in &damage {
                let at = HEADER_BYTES + at.index(batch.len() - HEADER_BYTES);
                batch[at] = *byte;
            }
        });
        let _ = records_within(forged.into(), 1 << 20).map(Iterator::count);
    }

    #[test]
    fn concatenated_batches_come_apart(
        batches in vec((vec(arbitrary_record(), 1..5), arbitrary_codec()), 0..6), cut: Option<prop::sample::Index>,
    ) {
        let batches: Vec<_> = batches.iter().map(|(written, codec)| build(written, *codec)).collect();
        let mut all = Bytes::from(batches.concat());
        let whole = match cut {
            Some(cut) if !all.is_empty() => {
                all.truncate(cut.index(all.len()));
                let ends = batches.iter().scan(0, |end, batch| { *end += batch.len(); Some(*end) });
                ends.take_while(|&end| end <= all.len()).count()
            }
            _ => batches.len(),
        };
        let remainder = all.len() > batches[..whole].iter().map(Bytes::len).sum();
        let found: Vec<_> = split(all.clone()).collect();
        prop_assert_eq!(found.len(), whole + usize::from(remainder));
        for (found, built) in found.iter().zip(&batches[..whole]) {
            let (header, bytes) = found.as_ref().expect("whole batches");
            prop_assert_eq!(bytes, built);
            prop_assert_eq!(header.total_bytes(), built.len());
            prop_assert!(all.as_ptr_range().contains(&bytes.as_ptr()), "not copied");
        }
        prop_assert!(!remainder || found.last().is_some_and(Result::is_err));
    }
}

#[test]
fn verify_names_the_broken_rule() {
    let one = [Record { timestamp_ms: 5, key: None, value: Some(b"v".to_vec()), headers: vec![] }];
    let sound = build(&one, Compression::None);
    let at =
        |at: usize, bytes: &'static [u8]| resealed(&sound, |batch| batch[at..at + bytes.len()].copy_from_slice(bytes));
    let cases = [
        ("magic", at(16, &[1]), BatchError::Magic { found: 1 }),
        ("short", at(8, &[0, 0, 0, 48]), BatchError::Field { field: "batch length", found: 48, min: 49 }),
        (
            "huge",
            at(8, &[0x7f, 255, 255, 255]),
            BatchError::Truncated { needed: 12 + i32::MAX as usize, found: sound.len() },
        ),
        ("negative", at(8, &[255; 4]), BatchError::Field { field: "batch length", found: -1, min: 49 }),
        ("none", at(57, &[0; 4]), BatchError::RecordCount { count: 0, last_offset_delta: 0 }),
        ("gap", at(23, &[0, 0, 0, 1]), BatchError::RecordCount { count: 1, last_offset_delta: 1 }),
        ("control", at(21, &[0, 0x20]), BatchError::Attributes { found: 0x20 }),
        ("transactional", at(21, &[0, 0x10]), BatchError::Attributes { found: 0x10 }),
        ("broker time", at(21, &[0, 0x08]), BatchError::Attributes { found: 0x08 }),
        ("unused bit", at(21, &[0x80, 0]), BatchError::Attributes { found: 0x8000 }),
        ("codec", at(21, &[0, 5]), BatchError::UnknownCodec { codec: 5 }),
        ("epoch", at(51, &[255, 255]), BatchError::Field { field: "producer epoch", found: -1, min: 0 }),
        ("sequence", at(53, &[255; 4]), BatchError::Field { field: "base sequence", found: -1, min: 0 }),
    ];
    for (name, batch, want) in cases {
        assert_eq!(verify(&batch, LIMIT), Err(want), "{name}");
    }
    let counted = |count: u32| {
        resealed(&sound, |batch| {
            batch[23..27].copy_from_slice(&(count - 1).to_be_bytes());
            batch[57..61].copy_from_slice(&count.to_be_bytes());
        })
    };
    let bytes = sound.len() - HEADER_BYTES;
    assert_eq!(verify(&counted(9), LIMIT), Err(BatchError::ImpossibleCount { count: 9, bytes }));
    let count = limits::BATCH_RECORDS_MAX + 1;
    assert_eq!(verify(&counted(count), LIMIT), Err(BatchError::TooManyRecords { count }));
    let too_large = BatchError::TooLarge { bytes: sound.len(), limit: sound.len() - 1 };
    assert_eq!(verify(&sound, sound.len() - 1), Err(too_large));
}

#[test]
fn unfolding_stops_at_the_limit() {
    let zeros = Record { timestamp_ms: 0, key: None, value: Some(vec![0; 1 << 20]), headers: vec![] };
    for codec in [Compression::Lz4, Compression::Zstd] {
        let batch = build(&[zeros.clone(), zeros.clone()], codec);
        assert!(batch.len() < 20_000, "{codec}: {} bytes", batch.len());
        assert_eq!(records(batch.clone()).expect("sound").count(), 2);
        let refused = records_within(batch, 2 << 20).map(Iterator::count);
        assert_eq!(refused, Err(BatchError::UnfoldsTooLarge { compression: codec, limit: 2 << 20 }));
    }
}

#[test]
fn what_does_not_shrink_stays_plain() {
    let dense = Record { timestamp_ms: 0, key: None, value: Some(vec![1, 2, 3]), headers: vec![] };
    for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let header = verify(&build(std::slice::from_ref(&dense), codec), LIMIT).expect("sound");
        assert_eq!(header.compression(), Ok(Compression::None), "{codec}");
    }
}

#[test]
fn a_full_batch_says_so_and_stays_sound() {
    let mut builder = BatchBuilder::new(BatchOptions { compression: Compression::None, max_bytes: 200 });
    let mut push = |bytes: usize| {
        let pushed = builder.push(0, None, Some(&vec![b'x'; bytes]), NO_HEADERS);
        (pushed.map_err(|full| full.is_record_too_large()), builder.record_count())
    };
    assert_eq!(push(140), (Err(true), 0));
    assert_eq!(push(100), (Ok(()), 1));
    assert_eq!(push(100), (Err(false), 1));
    assert_eq!(push(20), (Ok(()), 2));
    assert_eq!(builder.estimated_bytes(), 61 + 109 + 27);
    let batch = builder.build(ProducerState::NONE);
    let header = verify(&batch, 200).expect("sound");
    assert!(!header.is_idempotent());
    assert_eq!(records(batch).expect("sound").filter(Result::is_ok).count(), 2);
}

#[test]
fn a_batch_has_a_limit_on_records() {
    let mut builder = BatchBuilder::new(BatchOptions { compression: Compression::Zstd, max_bytes: usize::MAX });
    let mut pushed = 0;
    while builder.push(0, None, None, NO_HEADERS).is_ok() {
        pushed += 1;
    }
    // Seven to nine bytes a record: whichever of the two limits comes first.
    assert!(pushed <= limits::BATCH_RECORDS_MAX && builder.estimated_bytes() <= LIMIT);
    assert!(pushed == limits::BATCH_RECORDS_MAX || builder.estimated_bytes() + 9 > LIMIT, "{pushed} records");
    assert_eq!(verify(&builder.build(ProducerState::NONE), LIMIT).map(|header| header.record_count), Ok(pushed));
}

#[test]
fn words_for_compression() {
    for (word, want) in [("none", Compression::None), ("lz4", Compression::Lz4), ("zstd", Compression::Zstd)] {
        assert_eq!(word.parse(), Ok(want));
        assert_eq!(want.to_string(), word);
    }
    for word in ["gzip", "snappy", "LZ4", ""] {
        assert!(word.parse::<Compression>().is_err(), "{word:?}");
    }
}
