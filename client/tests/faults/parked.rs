//! The records of a partition that gets nothing done leave room for the others, wait in order, and are delivered in order
//! once it is well again.

use std::time::{Duration, SystemTime};

use busbar_client::{Client, Delivery, DeliveryError, Producer, Reason, Record, SendError, TrySendError};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};

use crate::{fake::Cluster, soon};

const BUFFER: usize = 64 << 10;
/// What the stuck partition may have of it.
const SHARE: u64 = 32 << 10;

/// Record number `number`, of a kilobyte.
fn large(number: usize, partition: u32) -> Record {
    Record::new(format!("{number:01000}")).partition(partition)
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("{number:01000}")).collect()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon(what, waiting).await;
}

/// Partition 0 has lost its leader, and has record 0 waiting for one.
async fn stuck() -> (Cluster, Client, Producer, Delivery) {
    let (mut cluster, client) = Cluster::with_topic(2).await;
    let producer = client.producer("t").buffer_bytes(BUFFER).build().await.expect("a producer");
    for partition in 0..2 {
        let delivery = producer.send(Record::new("first").partition(partition)).await.expect("taken");
        soon("healthy", delivery).await.expect("stored");
    }
    cluster.kill(1).await;
    let first = producer.send(large(0, 0)).await.expect("taken");
    until("it is stuck", || producer.stats().parked_bytes > 0).await;
    (cluster, client, producer, first)
}

/// Fills the share of the stuck partition with records 1, 2, ..
fn fill(producer: &Producer) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while let Ok(delivery) = producer.try_send(large(deliveries.len() + 1, 0)) {
        deliveries.push(delivery);
    }
    deliveries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sick_partition_leaves_room_for_the_others_and_keeps_its_order() {
    let (mut cluster, _client, producer, first) = stuck().await;
    let sick = {
        let producer = producer.clone();
        tokio::spawn(async move {
            let mut deliveries = vec![first];
            for number in 1..200 {
                deliveries.push(producer.send(large(number, 0)).await.expect("taken"));
            }
            deliveries
        })
    };
    until("its share is taken", || producer.try_send(Record::new(vec![b'?'; 900]).partition(0)).is_err()).await;
    // Far more than the buffer holds goes to the healthy one meanwhile, and some may go to any.
    for number in 0..500 {
        let record = if number % 5 == 4 { Record::new("any") } else { large(number, 1) };
        soon("healthy", producer.send(record).await.expect("taken")).await.expect("stored");
        let stats = producer.stats();
        assert!(stats.parked_bytes <= SHARE && stats.buffered_bytes <= BUFFER as u64, "{stats:?}");
    }
    let stats = producer.stats();
    assert!(stats.parked_bytes > SHARE * 3 / 4 && !sick.is_finished(), "{stats:?}");
    assert_eq!(cluster.values(0), ["first"]);
    cluster.restart(1).await;
    for delivery in soon("all are taken", sick).await.expect("joined") {
        soon("healed", delivery).await.expect("stored");
    }
    // Those that only asked for room may have found some.
    let stored: Vec<_> = cluster.values(0).into_iter().filter(|value| value.len() == 1000).collect();
    assert_eq!(stored, numbers(0..200));
    until("nothing is parked", || producer.stats().parked_bytes == 0).await;
    assert!(producer.stats().waited > Duration::ZERO);
}

#[tokio::test]
async fn those_who_wait_for_a_sick_partition_go_in_the_order_in_which_they_came() {
    let (mut cluster, _client, producer, first) = stuck().await;
    let mut deliveries = fill(&producer);
    let taken = deliveries.len() + 1;
    let mut waiting: Vec<_> = (taken..taken + 20).map(|number| Box::pin(producer.send(large(number, 0)))).collect();
    for send in &mut waiting {
        assert!(futures::poll!(send).is_pending());
    }
    // One that is dropped is not sent, and holds up nobody behind it.
    drop(waiting.remove(7));
    drop(waiting.remove(0));
    assert!(matches!(producer.try_send(large(0, 0)), Err(TrySendError::Full(_))));
    cluster.restart(1).await;
    for sent in soon("all are taken", join_all(waiting)).await {
        deliveries.push(sent.expect("taken"));
    }
    for delivery in std::iter::once(first).chain(deliveries) {
        soon("healed", delivery).await.expect("stored");
    }
    let mut want = numbers(0..taken + 20);
    want.remove(taken + 8 - 1);
    want.remove(taken);
    assert_eq!(cluster.values(0)[1..], want);
}

#[tokio::test]
async fn a_record_that_waits_for_room_waits_no_longer_than_its_own_deadline() {
    let (_cluster, _client, producer, _first) = stuck().await;
    let _deliveries = fill(&producer);
    let record = large(99, 0).send_before(SystemTime::now() + Duration::from_millis(200));
    let delivery = soon("taken or not", producer.send(record)).await.expect("told by its delivery");
    let error = soon("told", delivery).await.expect_err("no room");
    assert!(
        matches!(&error, DeliveryError::Rejected { refusal, .. } if refusal.reason == Reason::DeadlineExceeded),
        "{error}"
    );
    assert!(error.to_string().contains("no room for the record before its own deadline"), "{error}");
    assert_eq!(error.report().attempt_count(), 0);
}

#[tokio::test]
async fn closing_ends_those_who_wait_for_a_sick_partition() {
    let (_cluster, _client, producer, first) = stuck().await;
    let deliveries = fill(&producer);
    let mut waiting: FuturesUnordered<_> = (0..10).map(|number| producer.send(large(number, 0))).collect();
    assert!(futures::poll!(waiting.next()).is_pending());
    let closing = producer.clone();
    let close = tokio::spawn(async move { closing.close().await });
    while let Some(sent) = soon("told", waiting.next()).await {
        assert!(matches!(sent, Err(SendError::Closed)), "{sent:?}");
    }
    close.abort();
    drop((first, deliveries));
}

#[tokio::test]
async fn a_share_of_all_is_no_bound_and_others_have_rules() {
    let (_cluster, client) = Cluster::with_topic(2).await;
    for (bytes, ok) in [(BUFFER, true), (1 << 10, true), (BUFFER + 1, false), (0, false)] {
        let built = client.producer("t").buffer_bytes(BUFFER).parked_bytes(bytes).build().await;
        assert_eq!(built.is_ok(), ok, "{bytes}: {built:?}");
    }
}
