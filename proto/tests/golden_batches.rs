//! The batch codec against implementations that share nothing with it: committed bytes made by kafka-python
//! (`tests/golden/make_batches.py`) and the `kafka-protocol` crate, read and written in both directions.

use std::{fs, path::Path};

use busbar_proto::{
    Offset, ProducerEpoch, ProducerId, Sequence,
    batch::{
        BatchBuilder, BatchError, BatchHeader, BatchOptions, Compression, ProducerState, RecordView, records, stamp,
        verify,
    },
    limits,
};
use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    indexmap::IndexMap,
    protocol::StrBytes,
    records::{
        Compression as TheirCompression, Record as TheirRecord, RecordBatchDecoder, RecordBatchEncoder,
        RecordEncodeOptions, TimestampType,
    },
};

const LIMIT: usize = limits::BATCH_BYTES_MAX as usize;
const START_MS: i64 = 1_700_000_000_000;
const CODECS: [(Compression, TheirCompression); 3] = [
    (Compression::None, TheirCompression::None),
    (Compression::Lz4, TheirCompression::Lz4),
    (Compression::Zstd, TheirCompression::Zstd),
];

/// A record, written down independently of any codec: timestamp, key, value, headers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

fn row(timestamp_ms: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&str, Option<&[u8]>)]) -> Row {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.map(<[u8]>::to_vec)));
    Row { timestamp_ms, key: key.map(<[u8]>::to_vec), value: value.map(<[u8]>::to_vec), headers: headers.collect() }
}

/// `PLAIN` of `make_batches.py`.
fn plain_rows() -> Vec<Row> {
    let late = b"late: the timestamp is before the first";
    vec![
        row(START_MS, Some(b"order-1"), Some(b"created"), &[("traceparent", Some(b"00-ab-01")), ("retry", Some(b""))]),
        row(START_MS - 1_000, None, Some(late), &[]),
        row(START_MS + 250, Some(b"order-1"), None, &[("null", None), ("größe", Some(b"\x00\xff"))]),
        row(START_MS + 86_400, Some(b""), Some(b""), &[]),
    ]
}

/// `MANY` of `make_batches.py`.
fn many_rows() -> Vec<Row> {
    let each = |at: i64| {
        let value = format!("event number {at} of a longer run ").repeat(3);
        row(START_MS + at, Some(format!("{:05}", at % 7).as_bytes()), Some(value.as_bytes()), &[])
    };
    (0..300).map(each).collect()
}

fn golden(name: &str) -> Bytes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/batches").join(name).with_extension("hex");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()));
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ascii"), 16).expect("digits");
    digits.chunks(2).map(byte).collect()
}

fn rows_of(batch: Bytes) -> Vec<Row> {
    let row = |record: RecordView| Row {
        timestamp_ms: record.timestamp_ms,
        key: record.key.map(Vec::from),
        value: record.value.map(Vec::from),
        headers: record.headers.into_iter().map(|h| (h.key().to_owned(), h.value.map(Vec::from))).collect(),
    };
    records(batch).expect("sound batch").map(|record| row(record.expect("sound record"))).collect()
}

fn producer(id: i64, epoch: i16, sequence: i32) -> ProducerState {
    ProducerState { id: ProducerId::new(id), epoch: ProducerEpoch::new(epoch), sequence: Sequence::new(sequence) }
}

fn state_of(header: &BatchHeader) -> ProducerState {
    producer(header.producer_id.get(), header.producer_epoch.get(), header.base_sequence.get())
}

/// Our batch of these rows; null header values, which only other writers make, are left out.
fn build(rows: &[Row], compression: Compression, producer: ProducerState) -> Bytes {
    let mut builder = BatchBuilder::new(BatchOptions { compression, max_bytes: LIMIT });
    for Row { timestamp_ms, key, value, headers } in rows {
        let headers: Vec<_> = headers.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))).collect();
        builder.push(*timestamp_ms, key.as_deref(), value.as_deref(), &headers).expect("fits");
    }
    builder.build(producer)
}

fn without_null_headers(mut rows: Vec<Row>) -> Vec<Row> {
    rows.iter_mut().for_each(|row| row.headers.retain(|(_, value)| value.is_some()));
    rows
}

#[test]
fn committed_vectors_are_read() {
    let idempotent = producer(4_000_000_001, 12, i32::MAX);
    for (name, codec, producer, rows) in [
        ("plain", Compression::None, ProducerState::NONE, plain_rows()),
        ("idempotent", Compression::None, idempotent, without_null_headers(plain_rows())),
        ("lz4", Compression::Lz4, ProducerState::NONE, many_rows()),
        ("zstd", Compression::Zstd, ProducerState::NONE, many_rows()),
    ] {
        let batch = golden(name);
        let header = verify(&batch, LIMIT).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(header.compression(), Ok(codec), "{name}");
        assert_eq!(state_of(&header), producer, "{name}");
        assert_eq!(header.base_timestamp_ms, START_MS, "{name}");
        assert_eq!(Some(header.max_timestamp_ms), rows.iter().map(|row| row.timestamp_ms).max(), "{name}");
        assert_eq!(rows_of(batch), rows, "{name}");
    }
}

#[test]
fn we_write_what_kafka_python_writes() {
    let rows = without_null_headers(plain_rows());
    let mut ours = build(&rows, Compression::None, producer(4_000_000_001, 12, i32::MAX)).to_vec();
    // Their writer leaves 0 as the leader epoch, ours says "none yet"; it is the leader's to stamp anyway.
    stamp(&mut ours, Offset::ZERO, 0);
    assert_eq!(ours, golden("idempotent"));
}

#[test]
fn gzip_is_recognised_and_not_decoded() {
    let batch = golden("gzip");
    assert_eq!(verify(&batch, LIMIT).and_then(|header| header.compression()), Ok(Compression::Gzip));
    let refused = records(batch).map(Iterator::count);
    assert_eq!(refused, Err(BatchError::Unsupported { compression: Compression::Gzip }));
}

#[test]
fn transactional_batches_are_refused() {
    assert_eq!(verify(&golden("transactional"), LIMIT), Err(BatchError::Attributes { found: 0x10 }));
}

fn their_records(rows: &[Row], state: ProducerState) -> Vec<TheirRecord> {
    let text = |name: &str| StrBytes::from_string(name.to_owned());
    let bytes = |bytes: &Option<Vec<u8>>| bytes.clone().map(Bytes::from);
    let record = |(at, row): (usize, &Row)| TheirRecord {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: state.id.get(),
        producer_epoch: state.epoch.get(),
        timestamp_type: TimestampType::Creation,
        offset: at as i64,
        sequence: if state.id.get() < 0 { at as i32 - 1 } else { state.sequence.get() + at as i32 },
        timestamp: row.timestamp_ms,
        key: bytes(&row.key),
        value: bytes(&row.value),
        headers: row.headers.iter().map(|(name, value)| (text(name), bytes(value))).collect::<IndexMap<_, _>>(),
    };
    rows.iter().enumerate().map(record).collect()
}

#[test]
fn we_read_what_kafka_protocol_writes() {
    for (codec, theirs) in CODECS {
        for (rows, state) in [(plain_rows(), producer(17, 2, 500)), (many_rows(), ProducerState::NONE)] {
            let mut written = BytesMut::new();
            let options = RecordEncodeOptions { version: 2, compression: theirs };
            RecordBatchEncoder::encode(&mut written, &their_records(&rows, state), &options).expect("encodes");
            let batch = written.freeze();
            let header = verify(&batch, LIMIT).unwrap_or_else(|error| panic!("{codec}: {error}"));
            assert_eq!(header.compression(), Ok(codec));
            assert_eq!(state_of(&header), state, "{codec}");
            assert_eq!(rows_of(batch), rows, "{codec}");
        }
    }
}

#[test]
fn kafka_protocol_reads_what_we_write() {
    for (codec, _) in CODECS {
        for (rows, state) in
            [(without_null_headers(plain_rows()), producer(17, 2, 500)), (many_rows(), ProducerState::NONE)]
        {
            let mut batch = build(&rows, codec, state);
            let read = RecordBatchDecoder::decode(&mut batch).expect("decodes").records;
            let read_rows: Vec<_> = read.iter().map(their_row).collect();
            assert_eq!(read_rows, rows, "{codec}");
            let first = &read[0];
            assert_eq!((first.producer_id, first.producer_epoch, first.offset), (state.id.get(), state.epoch.get(), 0));
            assert!(state.id.get() < 0 || first.sequence == state.sequence.get(), "{codec}");
        }
    }
}

fn their_row(record: &TheirRecord) -> Row {
    let headers = record.headers.iter().map(|(name, value)| (name.to_string(), value.clone().map(Vec::from)));
    Row {
        timestamp_ms: record.timestamp,
        key: record.key.clone().map(Vec::from),
        value: record.value.clone().map(Vec::from),
        headers: headers.collect(),
    }
}
