//! What the batch codec costs per record of 100 bytes: `cargo bench -p busbar-proto`. Prints, asserts nothing.

use std::{hint::black_box, time::Instant};

use busbar_proto::batch::{BatchBuilder, BatchOptions, Compression, NO_HEADERS, ProducerState, records, split, verify};
use bytes::Bytes;

const VALUE: [u8; 100] = [0x5a; 100];
const RECORDS: u32 = 5_000;
const ROUNDS: u32 = 200;

fn build(compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new(BatchOptions { compression, ..Default::default() });
    for at in 0..RECORDS {
        let key = at.to_be_bytes();
        let pushed = builder.push(1_700_000_000_000 + i64::from(at), Some(&key), Some(&VALUE), NO_HEADERS);
        assert!(pushed.is_ok(), "5,000 small records fit a batch");
    }
    builder.build(ProducerState::NONE)
}

fn time(what: &str, mut work: impl FnMut()) {
    work();
    let start = Instant::now();
    for _ in 0..ROUNDS {
        work();
    }
    let per_record = start.elapsed().as_nanos() as f64 / f64::from(ROUNDS * RECORDS);
    println!("{what:<16} {per_record:>8.1} ns/record");
}

fn main() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let batch = build(compression);
        println!("{compression}: {} bytes", batch.len());
        time("build", || {
            black_box(build(compression));
        });
        time("verify", || {
            black_box(verify(&batch, batch.len()).is_ok());
        });
        time("split", || {
            black_box(split(batch.clone()).count());
        });
        time("read", || {
            black_box(records(batch.clone()).map(Iterator::count).is_ok());
        });
    }
}
