//! Publishing with faults: each one alone, at every place of a run.

use std::time::Duration;

use busbar_client::{DeliveryError, NextStep, Producer, Reason, SendError, Verdict};

use crate::{
    fake::{Cluster, PublishFault, numbers, record},
    soon,
};

/// Sends `count` records to partition 0, all at once, and awaits them all.
async fn publish(producer: &Producer, count: usize) -> Vec<Result<u64, DeliveryError>> {
    let mut deliveries = Vec::new();
    for number in 0..count {
        deliveries.push(producer.send(record(number).partition(0)).await.expect("taken"));
    }
    let mut outcomes = Vec::new();
    for delivery in deliveries {
        outcomes.push(soon("delivery", delivery).await.map(|delivered| delivered.offset));
    }
    outcomes
}

#[tokio::test]
async fn no_fault_loses_doubles_or_reorders() {
    use PublishFault::*;
    let faults = [
        Refuse(Reason::Overloaded),
        Refuse(Reason::NoLeader),
        Refuse(Reason::DiskFull),
        Refuse(Reason::ShuttingDown),
        Refuse(Reason::UnknownTopic),
        Refuse(Reason::SequenceGap),
        NotLeader,
        NotLeaderNoHint,
        Unknown { stored: true },
        Unknown { stored: false },
        Drop { stored: true },
        Drop { stored: false },
        Disconnect { stored: true },
        Disconnect { stored: false },
        Hang { stored: true },
        Hang { stored: false },
        Slow(Duration::from_millis(20)),
    ];
    for fault in faults {
        for before in [0, 1, 3] {
            let (cluster, client) = Cluster::with_topic(1).await;
            cluster.edit(0, |partition| {
                partition.publish_faults.extend(vec![None; before]);
                partition.publish_faults.push_back(fault);
            });
            let answer_timeout = Duration::from_millis(100);
            let builder = client.producer("t").batch_bytes(1024).answer_timeout(answer_timeout);
            let producer = builder.build().await.expect("a producer");
            let outcomes = publish(&producer, 1000).await;
            assert_eq!(outcomes, (0..1000).map(Ok).collect::<Vec<_>>(), "{fault:?} after {before}");
            assert_eq!(cluster.values(0), numbers(1000), "{fault:?} after {before}");
            let left = cluster.edit(0, |partition| partition.publish_faults.len());
            assert_eq!(left, 0, "{fault:?} after {before} did not happen");
        }
    }
}

#[tokio::test]
async fn a_delivery_tells_every_attempt_and_what_was_done_next() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let faults = [PublishFault::Refuse(Reason::Overloaded), PublishFault::Drop { stored: true }];
    cluster.edit(0, |partition| partition.publish_faults.extend(faults));
    let producer = client.producer("t").build().await.expect("a producer");
    let deliveries = [producer.send(record(0)).await.expect("taken"), producer.send(record(1)).await.expect("taken")];
    let [first, _] = deliveries.map(|delivery| tokio::spawn(soon("delivery", delivery)));
    let delivered = first.await.expect("joined").expect("stored");
    let report = &delivered.report;
    assert_eq!((report.topic(), report.partition(), report.base_offset()), ("t", 0, Some(0)));
    let [refused, unanswered, stored] = report.attempts() else { panic!("{report}") };
    assert!(
        matches!(&refused.verdict, Verdict::Refused { reason: Reason::Overloaded, message } if message == "scripted")
    );
    assert!(matches!(&unanswered.verdict, Verdict::Unanswered { why } if why.contains("broke")), "{report}");
    assert!(matches!((&stored.verdict, stored.next), (Verdict::Duplicate, NextStep::Delivered)), "{report}");
    for again in [refused, unanswered] {
        assert!(matches!(again.next, NextStep::SentAgain { .. }) && again.node == 1, "{report}");
    }
    assert!(delivered.duplicate && refused.at <= unanswered.at && unanswered.at <= stored.at);

    cluster.edit(0, |partition| partition.publish_faults.push_back(PublishFault::Refuse(Reason::CorruptBatch)));
    let failed = soon("refusal", producer.send(record(2)).await.expect("taken")).await.expect_err("refused for good");
    let [only] = failed.report().attempts() else { panic!("{}", failed.report()) };
    assert!(matches!(&only.verdict, Verdict::Refused { reason: Reason::CorruptBatch, .. }));
    assert_eq!(only.next, NextStep::GaveUp);
}

#[tokio::test]
async fn a_killed_leaders_batches_are_stored_by_the_next_one() {
    let (mut cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").batch_bytes(1024).build().await.expect("a producer");
    let mut deliveries = Vec::new();
    for number in 0..2000 {
        deliveries.push(producer.send(record(number)).await.expect("taken"));
        if number == 700 {
            cluster.kill(1).await;
        }
        if number == 1400 {
            cluster.lead(0, 2);
        }
    }
    for delivery in deliveries {
        soon("delivery", delivery).await.expect("stored");
    }
    assert_eq!(cluster.values(0), numbers(2000));
}

#[tokio::test]
async fn a_restarted_node_is_found_again() {
    let (mut cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").build().await.expect("a producer");
    soon("first", producer.send(record(0)).await.expect("taken")).await.expect("stored");
    cluster.kill(1).await;
    let delivery = producer.send(record(1)).await.expect("taken");
    cluster.restart(1).await;
    soon("second", delivery).await.expect("stored");
    assert_eq!(cluster.values(0), numbers(2));
}

#[tokio::test]
async fn a_record_that_was_never_sent_is_certainly_not_stored() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.lead(0, 0);
    cluster.create("leaderless", 1);
    cluster.edit_all(|state| {
        let topic = state.topics.get_mut("leaderless").expect("the topic");
        topic.partitions[0].leader = 0;
    });
    let timeout = Duration::from_millis(100);
    let producer = client.producer("leaderless").delivery_timeout(timeout).build().await.expect("a producer");
    let delivery = producer.send(record(0)).await.expect("taken");
    let error = soon("expiry", delivery).await.expect_err("nobody leads");
    assert!(error.has_no_side_effects() && error.is_retryable());
    match error {
        DeliveryError::Rejected { refusal, .. } => {
            assert_eq!(refusal.reason, Reason::DeadlineExceeded);
            assert!(refusal.message.contains("no leader is known"), "{refusal}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn without_a_producer_id_nothing_is_sent_and_the_report_says_so() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.edit_all(|state| state.no_producer_ids = true);
    // Long enough for an answer on a machine that is busy: what the broker said must be the last that is told.
    let client_timeout = Duration::from_millis(500);
    let builder = busbar_client::Client::builder().servers(cluster.servers()).request_timeout(client_timeout);
    let patient = builder.build().await.expect("a client");
    let producer = patient.producer("t").delivery_timeout(Duration::from_secs(2)).build().await.expect("a producer");
    let error = soon("expiry", producer.send(record(0)).await.expect("taken")).await.expect_err("no id");
    assert!(error.to_string().contains("the catalog has no leader"), "{error}");
    cluster.edit_all(|state| state.no_producer_ids = false);
    drop(client);
    let stored = soon("after healing", async {
        loop {
            if let Ok(stored) = producer.send(record(1)).await.expect("taken").await {
                return stored;
            }
        }
    });
    assert_eq!(stored.await.offset, 0);
}

#[tokio::test]
async fn an_unanswered_record_is_unknown_and_those_after_it_go_on_in_order() {
    for stored in [true, false] {
        let (cluster, client) = Cluster::with_topic(1).await;
        cluster.edit(0, |partition| partition.publish_faults.push_back(PublishFault::Hang { stored }));
        let timeout = Duration::from_millis(300);
        let builder = client.producer("t").batch_bytes(1024).delivery_timeout(timeout);
        let producer = builder.build().await.expect("a producer");
        let lost = producer.send(record(0)).await.expect("taken");
        let error = soon("expiry", lost).await.expect_err("it was not answered");
        match &error {
            DeliveryError::Unknown { report, .. } => {
                assert!(!error.has_no_side_effects() && report.attempt_count() == 1);
            }
            other => panic!("{other:?}"),
        }
        // The stream still hangs; it is given up and what comes after is stored through another.
        let producer_2 = client.producer("t").build().await.expect("a producer");
        soon("another producer", producer_2.send(record(1)).await.expect("taken")).await.expect("stored");
        drop(producer);
        let want: Vec<_> = if stored { numbers(2) } else { vec!["1".to_owned()] };
        assert_eq!(cluster.values(0), want, "stored: {stored}");
    }
}

#[tokio::test]
async fn after_an_unknown_record_the_same_producer_goes_on_as_another() {
    for stored in [true, false] {
        let (cluster, client) = Cluster::with_topic(1).await;
        let builder = client.producer("t").delivery_timeout(Duration::from_millis(400));
        let producer = builder.answer_timeout(Duration::from_millis(150)).build().await.expect("a producer");
        soon("first", producer.send(record(0)).await.expect("taken")).await.expect("stored");
        // Every attempt of the next one hangs until it has expired.
        cluster.edit(0, |partition| partition.publish_faults.extend([PublishFault::Hang { stored }; 3]));
        let error = soon("expiry", producer.send(record(1)).await.expect("taken")).await.expect_err("no answer");
        assert!(matches!(error, DeliveryError::Unknown { .. }), "{error:?}");
        cluster.edit(0, |partition| partition.publish_faults.clear());
        for number in 2..50 {
            soon("after", producer.send(record(number)).await.expect("taken")).await.expect("stored");
        }
        let want = numbers(50).into_iter().filter(|number| stored || number != "1").collect::<Vec<_>>();
        assert_eq!(cluster.values(0), want, "stored: {stored}");
        assert_eq!(cluster.edit(0, |partition| partition.log.producers()), 2, "a new identity was taken");
    }
}

#[tokio::test]
async fn a_refusal_for_good_hits_one_batch_only() {
    for reason in [Reason::CorruptBatch, Reason::BatchTooLarge, Reason::InvalidArgument, Reason::ProducerFenced] {
        let (cluster, client) = Cluster::with_topic(1).await;
        cluster.edit(0, |partition| {
            partition.publish_faults.extend([PublishFault::None, PublishFault::Refuse(reason)]);
        });
        let producer = client.producer("t").batch_bytes(1024).build().await.expect("a producer");
        let outcomes = publish(&producer, 1000).await;
        let failed: Vec<_> = (0..1000).filter(|&number| outcomes[number].is_err()).collect();
        assert!(!failed.is_empty() && failed.is_sorted() && failed[failed.len() - 1] - failed[0] == failed.len() - 1);
        for &number in &failed {
            assert!(
                matches!(&outcomes[number], Err(DeliveryError::Rejected { refusal, .. }) if refusal.reason == reason)
            );
        }
        let want = numbers(1000).into_iter().filter(|number| !failed.contains(&number.parse().expect("a number")));
        assert_eq!(cluster.values(0), want.collect::<Vec<_>>(), "{reason:?}");
        assert_eq!(producer.stats().failed as usize, failed.len());
    }
}

#[tokio::test]
async fn a_producer_that_the_broker_forgot_starts_over() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").build().await.expect("a producer");
    for number in 0..5 {
        soon("before", producer.send(record(number)).await.expect("taken")).await.expect("stored");
    }
    cluster.edit(0, |partition| partition.log.forget_producers());
    for number in 5..10 {
        soon("after", producer.send(record(number)).await.expect("taken")).await.expect("stored");
    }
    assert_eq!(cluster.values(0), numbers(10));
}

#[tokio::test]
async fn a_deleted_topics_producer_is_told_at_once() {
    for recreated in [true, false] {
        // Waiting for the delivery timeout would take longer than the test may.
        let (cluster, client) = Cluster::with_topic(1).await;
        let producer =
            client.producer("t").delivery_timeout(Duration::from_secs(3600)).build().await.expect("a producer");
        soon("before", producer.send(record(0)).await.expect("taken")).await.expect("stored");
        cluster.edit_all(|state| state.held = true);
        let under_way = producer.send(record(1)).await.expect("taken");
        let queued = producer.send(record(2)).await.expect("taken");
        cluster.delete();
        if recreated {
            cluster.create("t", 1);
        }
        for delivery in [under_way, queued] {
            let error = soon("pending", delivery).await.expect_err("the topic is gone");
            assert!(matches!(&error, DeliveryError::TopicGone { report } if report.topic() == "t"), "{error:?}");
            assert!(error.has_no_side_effects() && !error.is_retryable());
        }
        let refused = producer.send(record(3)).await.expect_err("the topic is gone");
        assert_eq!(refused, SendError::TopicGone { topic: "t".to_owned() });
        soon("close", producer.close()).await.expect("nothing is left");
        if recreated {
            cluster.edit_all(|state| state.held = false);
            let another = client.producer("t").build().await.expect("a producer of the new topic");
            soon("anew", another.send(record(4)).await.expect("taken")).await.expect("stored");
            assert_eq!(cluster.values(0), ["4"]);
        }
    }
}

#[tokio::test]
async fn a_node_that_has_not_heard_of_the_topic_yet_does_not_make_it_gone() {
    let cluster = Cluster::start(3).await;
    cluster.create("t", 3);
    let client = cluster.client().await;
    let producer = client.producer("t").build().await.expect("a producer");
    for lagging in [1, 2, 3, 1, 2, 3] {
        cluster.edit_all(|state| state.lagging = Some(lagging));
        for partition in 0..3 {
            let record = record(lagging as usize).partition(partition);
            soon("send", producer.send(record).await.expect("taken")).await.expect("stored");
        }
        // The next node to lag is not the one that is asked now.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(cluster.values(0).len(), 6);
}

#[tokio::test]
async fn a_frozen_leaders_batches_are_stored_by_the_next_one_at_once() {
    for watched in [1, 2] {
        let mut cluster = Cluster::start(3).await;
        cluster.create("t", 1);
        // The watch is served by the node that freezes, or by another.
        let client = busbar_client::Client::connect(cluster.address(watched)).await.expect("it answers");
        // Shorter than the answer timeout: what is not sent again before that fails.
        let builder = client.producer("t").batch_bytes(1024).delivery_timeout(Duration::from_secs(8));
        let producer = builder.build().await.expect("a producer");
        soon("first", producer.send(record(0)).await.expect("taken")).await.expect("stored");
        cluster.freeze(1, true);
        let mut deliveries = Vec::new();
        for number in 1..500 {
            deliveries.push(producer.send(record(number)).await.expect("taken"));
        }
        cluster.lead(0, 3);
        let begun = std::time::Instant::now();
        for delivery in deliveries {
            soon("delivery", delivery).await.expect("stored");
        }
        println!("watching through node {watched}: written again {:?} after the election", begun.elapsed());
        assert_eq!(cluster.values(0), numbers(500));
        cluster.freeze(1, false);
        cluster.kill(2).await;
        soon("after", producer.send(record(500)).await.expect("taken")).await.expect("stored");
    }
}
