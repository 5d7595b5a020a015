//! What the client costs, against the fake cluster. Prints, asserts no time; by hand:
//! `cargo nextest run --release -p busbar-client --run-ignored only --no-capture speed`.

use std::time::{Duration, Instant};

use busbar_client::Record;
use bytes::Bytes;

use crate::{fake::Cluster, soon};

fn print(what: &str, count: usize, took: Duration) {
    let each = took.as_nanos() / count as u128;
    println!("{what}: {each} ns a record, {:.0} records/s", count as f64 / took.as_secs_f64());
}

/// The work on the caller's side alone: nothing is answered, so records only gather.
#[tokio::test]
#[ignore = "prints figures"]
async fn send() {
    for bytes in [100, 1024] {
        let (cluster, client) = Cluster::with_topic(1).await;
        cluster.edit_all(|state| state.held = true);
        let count = (400 << 20) / (bytes + 100);
        let producer = client.producer("t").buffer_bytes(1 << 30).build().await.expect("a producer");
        let value = Bytes::from(vec![1_u8; bytes]);
        let begun = Instant::now();
        for _ in 0..count {
            drop(producer.send(Record::new(value.clone())).await.expect("taken"));
        }
        print(&format!("send of {bytes} B, gathering"), count, begun.elapsed());
    }
}

/// All there is: two clients' worth of work and a broker that copies and checks, on the threads of one process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn through() {
    for bytes in [100, 1024] {
        let (_cluster, client) = Cluster::with_topic(1).await;
        let count = (600 << 20) / (bytes + 200);
        let producer = client.producer("t").build().await.expect("a producer");
        let value = Bytes::from(vec![1_u8; bytes]);
        let begun = Instant::now();
        for _ in 0..count {
            drop(producer.send(Record::new(value.clone())).await.expect("taken"));
        }
        producer.flush().await.expect("stored");
        print(&format!("publish of {bytes} B, acknowledged"), count, begun.elapsed());
        println!("{:?}", producer.stats());
    }
}

#[tokio::test]
#[ignore = "prints figures"]
async fn next() {
    for bytes in [100, 1024] {
        let (_cluster, client) = Cluster::with_topic(1).await;
        let count = (200 << 20) / (bytes + 20);
        let producer = client.producer("t").build().await.expect("a producer");
        let value = Bytes::from(vec![1_u8; bytes]);
        for _ in 0..count {
            drop(producer.send(Record::new(value.clone())).await.expect("taken"));
        }
        producer.close().await.expect("stored");
        let mut consumer = client.consumer("t").credit_bytes(1 << 30).build().await.expect("a consumer");
        soon("all of it is received", async {
            while consumer.positions().is_empty() || consumer.lag().is_empty() {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        })
        .await;
        let begun = Instant::now();
        let mut read = 0;
        while consumer.try_next().expect("no fault").is_some() {
            read += 1;
        }
        print(&format!("next of {bytes} B, from memory ({read} of {count})"), read, begun.elapsed());
    }
}
