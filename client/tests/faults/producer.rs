//! Publishing without faults: order, batching, backpressure, flush and close.

use std::time::Duration;

use busbar_client::{Compression, DeliveryError, Record, SendError, TrySendError};
use busbar_proto::batch::{BatchHeader, records};
use bytes::Bytes;

use crate::{
    fake::{Cluster, numbers, record},
    soon,
};

#[tokio::test]
async fn records_are_stored_in_order_with_their_offsets() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").build().await.expect("a producer");
    let mut deliveries = Vec::new();
    for number in 0..1000 {
        deliveries.push(producer.send(record(number)).await.expect("taken"));
    }
    for (delivery, offset) in deliveries.into_iter().zip(0..) {
        let delivered = soon("delivery", delivery).await.expect("stored");
        assert_eq!((delivered.partition, delivered.offset, delivered.duplicate), (0, offset, false));
        assert_eq!(delivered.report.attempt_count(), 1);
    }
    assert_eq!(cluster.values(0), numbers(1000));
    let stats = producer.stats();
    assert_eq!((stats.records, stats.acknowledged, stats.failed, stats.retries), (1000, 1000, 0, 0));
    assert_eq!(stats.buffered_bytes, 0);
}

#[tokio::test]
async fn a_busy_producer_batches_by_itself_and_an_idle_one_sends_at_once() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").build().await.expect("a producer");
    soon("first", producer.send(record(0)).await.expect("taken")).await.expect("stored at once");
    cluster.edit_all(|state| state.held = true);
    let mut deliveries = Vec::new();
    for number in 1..=500 {
        deliveries.push(producer.send(record(number)).await.expect("taken"));
    }
    cluster.edit_all(|state| state.held = false);
    for delivery in deliveries {
        soon("delivery", delivery).await.expect("stored");
    }
    // The idle one; the first that found the window empty; everything that gathered behind it.
    assert_eq!(producer.stats().batches, 3);
    assert_eq!(cluster.values(0), numbers(501));
}

#[tokio::test]
async fn full_batches_fill_the_window_and_no_more() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.edit_all(|state| state.held = true);
    let producer = client.producer("t").batch_bytes(4 << 10).in_flight(3).build().await.expect("a producer");
    for _ in 0..100 {
        drop(producer.send(Record::new(vec![0_u8; 1000])).await.expect("taken"));
    }
    soon("three batches", async {
        while producer.stats().batches < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(producer.stats().batches, 3);
    cluster.edit_all(|state| state.held = false);
    soon("flush", producer.flush()).await.expect("all stored");
    assert_eq!(cluster.values(0).len(), 100);
}

#[tokio::test]
async fn linger_waits_for_company() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").linger(Duration::from_secs(1000)).build().await.expect("a producer");
    for number in 0..10 {
        drop(producer.send(record(number)).await.expect("taken"));
    }
    soon("flush", producer.flush()).await.expect("a flush does not linger");
    assert_eq!(producer.stats().batches, 1);

    let producer = client.producer("t").linger(Duration::from_millis(20)).build().await.expect("a producer");
    for number in 10..20 {
        drop(producer.send(record(number)).await.expect("taken"));
    }
    let last = producer.send(record(20)).await.expect("taken");
    soon("the end of the linger time", last).await.expect("stored");
    assert_eq!(producer.stats().batches, 1);
    assert_eq!(cluster.values(0), numbers(21));
}

#[tokio::test]
async fn keys_and_numbers_choose_partitions_and_keyless_records_use_all() {
    let (cluster, client) = Cluster::with_topic(4).await;
    let producer = client.producer("t").build().await.expect("a producer");
    for key in ["21", "foobar", "abc"] {
        let delivery = producer.send(Record::new("x").key(key)).await.expect("taken");
        let want = busbar_client::partition_of_key(key.as_bytes(), 4).get();
        assert_eq!(soon("delivery", delivery).await.expect("stored").partition, want);
    }
    let delivery = producer.send(Record::new("x").key("21").partition(3)).await.expect("taken");
    assert_eq!(soon("delivery", delivery).await.expect("stored").partition, 3);
    let mut used = [false; 4];
    // One that was slow once is tried again after a while.
    soon("all are used", async {
        while used != [true; 4] {
            let delivery = producer.send(record(0)).await.expect("taken");
            used[delivery.await.expect("stored").partition as usize] = true;
        }
    })
    .await;
    let refused = producer.send(record(0).partition(4)).await.expect_err("no such partition");
    assert_eq!(refused.to_string(), "topic \"t\" has partitions 0 to 3, not 4");
    drop(cluster);
}

#[tokio::test]
async fn headers_keys_times_and_compression_survive() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let (cluster, client) = Cluster::with_topic(1).await;
        let producer = client.producer("t").compression(compression).build().await.expect("a producer");
        let value = Bytes::from(vec![b'v'; 5000]);
        let sent = Record::new(value.clone()).key("k").header("a", "1").header("b", "").timestamp_ms(-5);
        soon("delivery", producer.send(sent).await.expect("taken")).await.expect("stored");
        let (_, batch) = cluster.edit(0, |partition| partition.log.batch_at(0)).expect("a batch");
        assert_eq!(BatchHeader::parse(&batch).expect("a header").compression(), Ok(compression));
        let stored = records(batch).expect("sound").next().expect("one").expect("sound");
        assert_eq!((stored.timestamp_ms, stored.key, stored.value), (-5, Some("k".into()), Some(value)));
        let headers: Vec<_> = stored.headers.iter().map(|header| (header.key(), header.value.clone())).collect();
        assert_eq!(headers, [("a", Some("1".into())), ("b", Some("".into()))]);
    }
}

#[tokio::test]
async fn a_full_buffer_gives_the_record_back_or_waits() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.edit_all(|state| state.held = true);
    let producer = client.producer("t").buffer_bytes(64 << 10).build().await.expect("a producer");
    let big = || Record::new(vec![1_u8; 10_000]);
    let mut taken = Vec::new();
    let given_back = loop {
        match producer.try_send(big()) {
            Ok(delivery) => taken.push(delivery),
            Err(TrySendError::Full(record)) => break *record,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(given_back, big());
    assert_eq!(taken.len(), 6);
    let mut waiting = Box::pin(producer.send(given_back));
    let waits = tokio::select! { biased; _ = &mut waiting => false, () = tokio::task::yield_now() => true };
    assert!(waits, "send waits while the buffer is full");
    cluster.edit_all(|state| state.held = false);
    taken.push(soon("space", waiting).await.expect("taken"));
    for delivery in taken {
        soon("delivery", delivery).await.expect("stored");
    }
    let stats = producer.stats();
    assert_eq!((stats.buffered_bytes, stats.acknowledged), (0, 7));
    assert!(stats.waited > Duration::ZERO);
}

#[tokio::test]
async fn a_record_larger_than_the_buffer_takes_all_of_it() {
    let (_cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").buffer_bytes(64 << 10).build().await.expect("a producer");
    for _ in 0..3 {
        drop(soon("space", producer.send(Record::new(vec![1_u8; 500_000]))).await.expect("taken"));
    }
    soon("flush", producer.flush()).await.expect("stored");
}

#[tokio::test]
async fn a_record_over_the_topics_limit_is_refused_naming_it() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").build().await.expect("a producer");
    for bytes in [1 << 20, 5 << 20] {
        let refused = producer.send(Record::new(vec![0_u8; bytes])).await.expect_err("too large");
        assert!(matches!(refused, SendError::TooLarge { limit: 1_048_576, .. }), "{refused:?}");
        assert!(refused.to_string().contains("max_batch_bytes"), "{refused}");
    }
    let largest = Record::new(vec![0_u8; (1 << 20) - 200]);
    soon("delivery", producer.send(largest).await.expect("taken")).await.expect("stored");
    assert_eq!(producer.stats().buffered_bytes, 0);
    drop(cluster);
}

#[tokio::test]
async fn close_delivers_what_is_queued_and_takes_no_more() {
    let (cluster, client) = Cluster::with_topic(2).await;
    let producer = client.producer("t").linger(Duration::from_secs(1000)).build().await.expect("a producer");
    for number in 0..100 {
        drop(producer.send(record(number).partition(0)).await.expect("taken"));
    }
    let clone = producer.clone();
    soon("close", producer.close()).await.expect("all delivered");
    assert_eq!(cluster.values(0), numbers(100));
    assert_eq!(clone.send(record(0)).await.err(), Some(SendError::Closed));
    assert!(matches!(clone.try_send(record(0)), Err(TrySendError::Refused(SendError::Closed))));
    soon("close again", clone.close()).await.expect("nothing is left");
}

#[tokio::test]
async fn dropping_a_producer_tells_what_became_of_its_records() {
    let (cluster, client) = Cluster::with_topic(2).await;
    let producer = client.producer("t").build().await.expect("a producer");
    soon("warm up", producer.send(record(0).partition(0)).await.expect("taken")).await.expect("stored");
    cluster.edit_all(|state| state.held = true);
    let sent = producer.send(record(1).partition(0)).await.expect("taken");
    let queued = producer.send(record(2).partition(0)).await.expect("taken");
    soon("the second batch", async {
        while producer.stats().batches < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(producer);
    assert!(matches!(soon("queued", queued).await, Err(DeliveryError::Closed { .. })));
    // Whether the second batch has left this machine by now is a matter of luck; it is never called delivered.
    assert!(soon("sent", sent).await.is_err());
}
