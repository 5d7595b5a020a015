//! What the client costs an application, in CPU time of the thread that it runs on: `cargo bench -p busbar-client`.
//! Everything of the client runs on that thread (batching, checksum, streams, sockets); the fake cluster on others.
//! Prints, asserts nothing.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use busbar_client::{Client, Consumer, Producer, Record, StartAt};
use bytes::Bytes;
use criterion::{Criterion, Throughput};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};

// The cluster of the fault tests; not all of it is used here.
#[allow(dead_code, unreachable_pub)]
#[path = "../tests/faults/fake/mod.rs"]
mod fake;

const RECORD_BYTES: usize = 100;
/// Records that a consumer has in memory before they are handed out.
const HELD: u64 = 400_000;

/// A client on this thread and a cluster on others.
struct Stage {
    cluster: fake::Cluster,
    client: Client,
    here: Runtime,
    _there: Runtime,
}

impl Stage {
    fn new() -> Self {
        let there = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let here = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let cluster = there.block_on(async {
            let cluster = fake::Cluster::start(1).await;
            cluster.create("t", 1);
            cluster
        });
        let client = here.block_on(Client::connect(cluster.servers())).expect("it answers");
        Self { cluster, client, here, _there: there }
    }

    fn producer(&self) -> Producer {
        self.here.block_on(self.client.producer("t").build()).expect("a producer")
    }

    fn publish(&self, producer: &Producer, records: u64) {
        let value = Bytes::from(vec![1_u8; RECORD_BYTES]);
        self.here.block_on(async {
            for _ in 0..records {
                drop(producer.send(Record::new(value.clone())).await.expect("taken"));
            }
            producer.flush().await.expect("stored");
        });
    }

    /// A consumer that has received everything and handed out nothing.
    fn consumer(&self) -> Consumer {
        let builder = self.client.consumer("t").from(StartAt::Earliest).credit_bytes(1 << 30);
        let consumer = self.here.block_on(builder.build()).expect("a consumer");
        // What has been sent when nothing comes any more has been received, too.
        let mut sent = 0;
        self.here.block_on(async {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let now = self.cluster.edit(0, |partition| partition.sent_bytes);
                if now == sent && now > 0 {
                    return;
                }
                sent = now;
            }
        });
        consumer
    }
}

/// CPU time of this thread while it does something.
fn cpu(work: impl FnOnce()) -> Duration {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
    };
    let begun = now();
    work();
    now() - begun
}

fn send(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("send");
    group.throughput(Throughput::Elements(1));
    group.bench_function("100 B, keyless, acknowledged", |bencher| {
        let stage = Stage::new();
        bencher.iter_custom(|records| {
            // The cluster keeps everything; what is measured does not depend on it.
            stage.cluster.edit(0, |partition| partition.log = fake::Log::default());
            let fresh = stage.producer();
            stage.publish(&fresh, 1);
            cpu(|| stage.publish(black_box(&fresh), records))
        });
    });
    group.finish();
}

fn hand_out(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("next");
    group.throughput(Throughput::Elements(1));
    group.bench_function("100 B, from memory", |bencher| {
        let stage = Stage::new();
        stage.publish(&stage.producer(), HELD);
        bencher.iter_custom(|records| {
            let (mut left, mut took) = (records, Duration::ZERO);
            while left > 0 {
                let mut consumer = stage.consumer();
                let part = left.min(HELD);
                let begun = Instant::now();
                for _ in 0..part {
                    let record = consumer.try_next().expect("no fault");
                    black_box(record.expect("it was received"));
                }
                took += begun.elapsed();
                left -= part;
            }
            took
        });
    });
    group.finish();
}

fn main() {
    let criterion = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(10));
    let mut criterion = criterion.configure_from_args();
    send(&mut criterion);
    hand_out(&mut criterion);
    criterion.final_summary();
}
