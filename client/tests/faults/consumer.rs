//! Consuming: order, starts, credit, and every fault at every place of a run.

use std::{collections::BTreeMap, time::Duration};

use busbar_client::{ConsumeError, Consumer, OnLoss, Reason, StartAt};

use crate::{
    fake::{Cluster, SubscribeFault, numbers, record},
    soon,
};

async fn read(consumer: &mut Consumer, count: usize) -> Vec<String> {
    let mut values = Vec::new();
    while values.len() < count {
        let record = soon("next", consumer.next()).await.expect("readable").expect("not closed");
        values.push(String::from_utf8(record.value().to_vec()).expect("text"));
    }
    values
}

fn map(of: &[(u32, u64)]) -> BTreeMap<u32, u64> {
    of.iter().copied().collect()
}

#[tokio::test]
async fn all_partitions_are_read_each_in_order() {
    let (cluster, client) = Cluster::with_topic(3).await;
    (0..3).for_each(|partition| cluster.fill(partition, 20, 5));
    let mut consumer = client.consumer("t").build().await.expect("a consumer");
    let mut next = [0; 3];
    for _ in 0..300 {
        let record = soon("next", consumer.next()).await.expect("readable").expect("not closed");
        let expected = &mut next[record.partition() as usize];
        assert_eq!((record.topic(), record.offset(), record.timestamp_ms()), ("t", *expected, *expected as i64));
        assert_eq!(record.value(), &expected.to_string());
        assert_eq!((record.key(), record.headers().count(), record.is_null()), (None, 0, false));
        *expected += 1;
    }
    assert_eq!(consumer.positions(), map(&[(0, 100), (1, 100), (2, 100)]));
    assert_eq!(consumer.lag(), map(&[(0, 0), (1, 0), (2, 0)]));
    assert!(consumer.try_next().expect("no fault").is_none());
}

#[tokio::test]
async fn starts_where_it_is_told() {
    let (cluster, client) = Cluster::with_topic(2).await;
    cluster.fill(0, 10, 10);
    cluster.fill(1, 1, 10);
    let from = |from| client.consumer("t").partitions([0]).from(from).build();
    let mut earliest = from(StartAt::Earliest).await.expect("a consumer");
    assert_eq!(read(&mut earliest, 3).await, ["0", "1", "2"]);
    // In the middle of a batch: what comes before it is cut off.
    let mut middle = from(StartAt::Offset(57)).await.expect("a consumer");
    assert_eq!(read(&mut middle, 4).await, ["57", "58", "59", "60"]);
    assert_eq!((middle.positions(), middle.lag()), (map(&[(0, 61)]), map(&[(0, 39)])));
    // Records' times are their offsets here.
    let mut since = from(StartAt::Time(57)).await.expect("a consumer");
    assert_eq!(read(&mut since, 4).await, ["57", "58", "59", "60"]);
    let mut future = from(StartAt::Time(1_000)).await.expect("a consumer");
    let mut latest = from(StartAt::Latest).await.expect("a consumer");
    assert_eq!(latest.positions(), map(&[(0, 100)]));
    cluster.fill(0, 1, 1);
    assert_eq!(read(&mut latest, 1).await, ["100"]);
    let resumed = client.consumer("t").from_in(0, StartAt::Offset(99)).from_in(1, StartAt::Offset(8));
    let mut resumed = resumed.build().await.expect("a consumer");
    let mut both = read(&mut resumed, 4).await;
    both.sort();
    assert_eq!(both, ["100", "8", "9", "99"]);
    let records = [(999, "early"), (1_000, "due"), (5, "later")].map(|(time_ms, value)| (time_ms, value.to_owned()));
    cluster.edit(0, |partition| partition.log.append_records(records));
    let rest = read(&mut future, 4).await;
    assert_eq!(rest, ["100", "early", "due", "later"], "it began at the end: nothing from there on is left out");
}

#[tokio::test]
async fn no_fault_loses_doubles_or_reorders() {
    use SubscribeFault::*;
    let faults = [
        End(Reason::NoLeader),
        End(Reason::Overloaded),
        End(Reason::ShuttingDown),
        End(Reason::UnknownTopic),
        End(Reason::StorageCorrupt),
        End(Reason::OffsetOutOfRange),
        NotLeader,
        Drop,
        Disconnect,
        Corrupt,
        Gap,
        Twice,
    ];
    for fault in faults {
        for before in [0, 1, 7] {
            let (cluster, client) = Cluster::with_topic(1).await;
            cluster.fill(0, 30, 4);
            cluster.edit(0, |partition| {
                partition.subscribe_faults.extend(vec![None; before]);
                partition.subscribe_faults.push_back(fault);
            });
            let mut consumer = client.consumer("t").build().await.expect("a consumer");
            assert_eq!(read(&mut consumer, 120).await, numbers(120), "{fault:?} after {before}");
            cluster.fill(0, 2, 1);
            assert_eq!(read(&mut consumer, 2).await, ["120", "121"], "{fault:?} after {before}");
            assert_eq!(consumer.skipped(), 0);
        }
    }
}

#[tokio::test]
async fn a_killed_leader_is_read_on_from_the_next_one() {
    let (mut cluster, client) = Cluster::with_topic(1).await;
    cluster.fill(0, 50, 10);
    let mut consumer = client.consumer("t").build().await.expect("a consumer");
    let mut values = read(&mut consumer, 15).await;
    cluster.kill(1).await;
    cluster.lead(0, 2);
    cluster.fill(0, 10, 10);
    values.extend(read(&mut consumer, 585).await);
    assert_eq!(values, numbers(600));
}

#[tokio::test]
async fn a_frozen_leader_is_read_on_from_the_next_one_at_once() {
    for watched in [1, 2] {
        let cluster = Cluster::start(3).await;
        cluster.create("t", 1);
        cluster.fill(0, 5, 10);
        let client = busbar_client::Client::connect(cluster.address(watched)).await.expect("it answers");
        let mut consumer = client.consumer("t").build().await.expect("a consumer");
        let mut values = read(&mut consumer, 50).await;
        cluster.freeze(1, true);
        cluster.lead(0, 3);
        cluster.fill(0, 5, 10);
        // A connection without an answer is given up after 10 s: that would be too late.
        let rest = tokio::time::timeout(Duration::from_secs(6), read(&mut consumer, 50)).await;
        values.extend(rest.expect("the next leader is followed at once"));
        assert_eq!(values, numbers(100));
    }
}

#[tokio::test]
async fn a_deleted_topics_consumer_is_told() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.fill(0, 1, 5);
    let mut consumer = client.consumer("t").build().await.expect("a consumer");
    assert_eq!(read(&mut consumer, 5).await, numbers(5));
    cluster.delete();
    cluster.create("t", 1);
    for _ in 0..2 {
        match soon("next", consumer.next()).await {
            Err(ConsumeError::Refused { refusal, .. }) => assert_eq!(refusal.reason, Reason::UnknownTopic),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_unread_consumer_costs_its_credit_and_no_more() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").build().await.expect("a producer");
    for _ in 0..200 {
        drop(producer.send(vec![1_u8; 100_000]).await.expect("taken"));
    }
    soon("flush", producer.flush()).await.expect("stored");
    let mut consumer = client.consumer("t").credit_bytes(2 << 20).build().await.expect("a consumer");
    let window = 2 << 20;
    let sent = || cluster.edit(0, |partition| partition.sent_bytes);
    soon("the credit is used up", async {
        while sent() < window {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let largest = 300_000;
    assert!(sent() <= window + largest, "{} bytes were sent", sent());
    for read in 1..=200 {
        soon("next", consumer.next()).await.expect("readable").expect("not closed");
        let bound = read * 100_100 + window + largest;
        assert!(sent() <= bound, "{} bytes were sent after {read} records", sent());
    }
}

#[tokio::test]
async fn records_that_retention_removed_are_skipped_and_counted() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.fill(0, 10, 10);
    cluster.edit(0, |partition| partition.log.start = 40);
    let from = |on_loss| client.consumer("t").from(StartAt::Offset(15)).on_loss(on_loss).build();

    let mut consumer = from(OnLoss::Earliest).await.expect("a consumer");
    assert_eq!(read(&mut consumer, 60).await, numbers(100)[40..]);
    assert_eq!(consumer.skipped(), 25);

    let mut consumer = from(OnLoss::Latest).await.expect("a consumer");
    soon("the end", async {
        while consumer.positions() != map(&[(0, 100)]) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    cluster.fill(0, 1, 1);
    assert_eq!(read(&mut consumer, 1).await, ["100"]);
    assert_eq!(consumer.skipped(), 85);

    let mut consumer = from(OnLoss::Fail).await.expect("a consumer");
    for _ in 0..2 {
        let error = soon("next", consumer.next()).await.expect_err("gone");
        assert!(error.to_string().contains("offset 15 is gone, the log starts at 40"), "{error}");
    }
}

#[tokio::test]
async fn an_offset_that_is_not_there_yet_is_an_error_after_some_attempts() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.fill(0, 1, 1);
    let mut consumer = client.consumer("t").from(StartAt::Offset(5)).build().await.expect("a consumer");
    let error = soon("next", consumer.next()).await.expect_err("beyond the end");
    assert!(matches!(&error, ConsumeError::Refused { refusal, .. } if refusal.reason == Reason::OffsetOutOfRange));
    cluster.fill(0, 6, 1);
    assert_eq!(read(&mut consumer, 2).await, ["5", "6"]);
}

#[tokio::test]
async fn bytes_that_stay_corrupt_are_an_error_that_names_the_place() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.fill(0, 3, 10);
    cluster.edit(0, |partition| {
        partition.subscribe_faults.push_back(SubscribeFault::None);
        partition.subscribe_faults.extend([SubscribeFault::Corrupt; 200]);
    });
    let mut consumer = client.consumer("t").build().await.expect("a consumer");
    assert_eq!(read(&mut consumer, 10).await, numbers(10));
    match soon("next", consumer.next()).await {
        Err(ConsumeError::Corrupt { partition: 0, offset: 10, fault, .. }) => {
            assert!(fault.contains("CRC") || fault.contains("checksum"), "{fault}")
        }
        other => panic!("{other:?}"),
    }
    cluster.edit(0, |partition| partition.subscribe_faults.clear());
    assert_eq!(read(&mut consumer, 20).await, numbers(30)[10..], "asked again, it tries again");
}

#[tokio::test]
async fn next_is_cancel_safe_and_ends_after_close() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let mut consumer = client.consumer("t").build().await.expect("a consumer");
    let producer = client.producer("t").build().await.expect("a producer");
    let mut values = Vec::new();
    for number in 0..200 {
        drop(producer.send(record(number)).await.expect("taken"));
        tokio::select! {
            biased;
            record = consumer.next() => values.extend(record.expect("readable").map(|record| record.offset())),
            () = tokio::task::yield_now() => {}
        }
    }
    let rest = 200 - values.len();
    for _ in 0..rest {
        values.push(soon("next", consumer.next()).await.expect("readable").expect("not closed").offset());
    }
    assert_eq!(values, (0..200).collect::<Vec<_>>());
    soon("close", consumer.close()).await;
    assert!(soon("after close", consumer.next()).await.expect("no fault").is_none());
    drop(cluster);
}

#[tokio::test]
async fn the_end_of_a_leaderless_partition_is_not_waited_for_forever() {
    let cluster = Cluster::start(2).await;
    cluster.create("t", 2);
    cluster.edit(1, |partition| partition.leader = 0);
    let builder = busbar_client::Client::builder().servers(cluster.servers());
    let client = builder.request_timeout(Duration::from_millis(200)).build().await.expect("a client");
    let error = soon("build", client.consumer("t").from(StartAt::Latest).build()).await.expect_err("no leader");
    assert!(error.to_string().contains("partition 1 of \"t\""), "{error}");
}
