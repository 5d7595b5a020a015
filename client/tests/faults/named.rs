//! Producers with a name: one instance at a time, in both ways in which brokers fence the older one; renewals that do not
//! fence ourselves; what the next instance learns.

use std::time::Duration;

use busbar_client::{Client, ClientError, DeliveryError, Producer, Reason, SendError, TrySendError};

use crate::{
    fake::{Cluster, PublishFault, numbers, record},
    soon,
};

const NAME: &str = "relay-1";

async fn named(client: &Client) -> Producer {
    client.producer("t").name(NAME).build().await.expect("a producer")
}

async fn stored(producer: &Producer, number: usize, partition: u32) {
    let delivery = producer.send(record(number).partition(partition)).await.expect("taken");
    soon("delivery", delivery).await.expect("stored");
}

async fn assert_over(producer: &Producer) {
    let refused = producer.send(record(0)).await.expect_err("it is over");
    assert!(matches!(&refused, SendError::Fenced { refusal } if refusal.reason == Reason::ProducerFenced), "{refused}");
    let refused = producer.try_send(record(0)).expect_err("it is over");
    assert!(matches!(refused, TrySendError::Refused(SendError::Fenced { .. })), "{refused}");
    soon("close", producer.close()).await.expect("nothing is left");
}

#[tokio::test]
async fn the_older_instance_is_fenced_also_where_the_newer_has_not_written() {
    let (cluster, client) = Cluster::with_topic(2).await;
    let older = named(&client).await;
    stored(&older, 0, 0).await;
    stored(&older, 1, 1).await;
    let newer = named(&client).await;
    stored(&newer, 2, 0).await;
    // Partition 1 has nothing of the newer one. Some of these are under way, some wait behind them.
    let mut deliveries = Vec::new();
    for number in 0..50 {
        match older.send(record(100 + number).partition(1)).await {
            Ok(delivery) => deliveries.push(delivery),
            Err(error) => assert!(matches!(error, SendError::Fenced { .. }), "{error}"),
        }
    }
    assert!(!deliveries.is_empty());
    for delivery in deliveries {
        let error = soon("the verdict", delivery).await.expect_err("another instance has the name");
        assert!(matches!(error, DeliveryError::Fenced { .. }), "{error}");
        assert!(error.has_no_side_effects() && !error.is_retryable());
        assert!(error.to_string().contains("this producer is fenced"), "{error}");
    }
    assert_over(&older).await;
    stored(&newer, 3, 1).await;
    assert_eq!((cluster.values(0), cluster.values(1)), (vec!["0".into(), "2".into()], vec!["1".into(), "3".into()]));
    assert_eq!((newer.name(), older.stats().acknowledged), (Some(NAME), 2));
}

#[tokio::test]
async fn a_partition_that_has_not_heard_of_the_claim_is_fenced_by_what_it_was_told() {
    let (cluster, client) = Cluster::with_topic(2).await;
    let older = named(&client).await;
    stored(&older, 0, 0).await;
    stored(&older, 1, 1).await;
    cluster.edit_all(|state| state.claims_unheard = true);
    let newer = named(&client).await;
    stored(&older, 2, 1).await; // The leader does not know better: before the newer one asks, that is no harm.
    let last = newer.last_stored(1).await.expect("an answer").expect("it wrote there");
    assert_eq!((last.offset, last.epoch, last.sequence), (1, 0, 1));
    let late = older.send(record(3).partition(1)).await.expect("it does not know yet");
    let error = soon("the verdict", late).await.expect_err("fenced by the partition");
    assert!(matches!(error, DeliveryError::Fenced { .. }), "{error}");
    assert_over(&older).await;
    stored(&newer, 4, 1).await;
    let last = newer.last_stored(1).await.expect("an answer").expect("it wrote there");
    assert_eq!((last.offset, last.epoch, last.sequence), (2, 1, 0));
    assert_eq!(cluster.values(1), ["1", "2", "4"]);
}

#[tokio::test]
async fn what_was_left_unanswered_is_unknown_when_the_fence_comes() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let older = named(&client).await;
    stored(&older, 0, 0).await;
    cluster.edit(0, |partition| partition.publish_faults.push_back(PublishFault::Hang { stored: true }));
    let hanging = older.send(record(1)).await.expect("taken");
    let behind = older.send(record(2)).await.expect("taken");
    soon("it is stored", cluster.shared.until(|state| (state.publishes > 1).then_some(()))).await;
    let newer = named(&client).await;
    stored(&newer, 3, 0).await;
    cluster.lead(0, 2);
    let error = soon("the verdict", hanging).await.expect_err("fenced");
    assert!(matches!(&error, DeliveryError::Unknown { last, .. } if last.reason == Reason::ProducerFenced), "{error}");
    let error = soon("the verdict", behind).await.expect_err("fenced");
    assert!(matches!(&error, DeliveryError::Fenced { .. } | DeliveryError::Unknown { .. }), "{error}");
    assert_over(&older).await;
    assert_eq!(cluster.values(0), ["0", "1", "3"]);
}

#[tokio::test]
async fn another_epoch_after_a_hole_does_not_fence_ourselves() {
    let (cluster, client) = Cluster::with_topic(2).await;
    let builder = client.producer("t").name(NAME).batch_bytes(1024).delivery_timeout(Duration::from_secs(5));
    let producer = builder.build().await.expect("a producer");
    stored(&producer, 0, 0).await;
    stored(&producer, 0, 1).await;
    for partition in [0, 1] {
        // A batch in the middle is refused for good: those behind it can't keep their sequences.
        let faults = [PublishFault::None, PublishFault::Refuse(Reason::CorruptBatch)];
        cluster.edit(partition, |partition| partition.publish_faults.extend(faults));
        let mut deliveries = Vec::new();
        for number in 1..300 {
            deliveries.push(producer.send(record(number).partition(partition)).await.expect("taken"));
        }
        let mut kept = vec!["0".to_owned()];
        for (number, delivery) in (1..).zip(deliveries) {
            match soon("delivery", delivery).await {
                Ok(_) => kept.push(number.to_string()),
                Err(error) => assert_eq!(error.report().attempt_count(), 1, "{error}"),
            }
        }
        assert!(kept.len() < 300, "one was refused");
        assert_eq!(cluster.values(partition), kept);
    }
    // The second took what the first was given: it had not used it.
    for partition in [0, 1] {
        stored(&producer, 300, partition).await;
        let last = producer.last_stored(partition).await.expect("an answer").expect("it wrote there");
        assert_eq!(last.epoch, 1);
    }
    // And the next instance fences all of them.
    let newer = named(&client).await;
    for partition in [0, 1] {
        stored(&newer, 301, partition).await;
    }
    let late = producer.send(record(302).partition(0)).await.expect("it does not know yet");
    assert!(matches!(soon("the verdict", late).await, Err(DeliveryError::Fenced { .. })));
}

#[tokio::test]
async fn names_are_checked_and_a_producer_without_one_has_no_past() {
    let (cluster, client) = Cluster::with_topic(1).await;
    for name in ["", "a b", "."] {
        let error = client.producer("t").name(name).build().await.expect_err("no name");
        assert!(matches!(&error, ClientError::InvalidOption { option: "name", .. }), "{error}");
    }
    let plain = client.producer("t").build().await.expect("a producer");
    assert_eq!(plain.name(), None);
    let error = plain.last_stored(0).await.expect_err("it has no name");
    assert!(matches!(error, ClientError::InvalidOption { .. }), "{error}");
    let named = named(&client).await;
    assert_eq!(named.last_stored(0).await.expect("an answer"), None);
    assert!(named.last_stored(1).await.is_err(), "there is no such partition");
    for number in 0..20 {
        stored(&named, number, 0).await;
    }
    assert_eq!(cluster.values(0), numbers(20));
}
