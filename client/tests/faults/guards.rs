//! Retry budgets, circuit breakers, deadlines of records, balance: a broker that struggles is spared, and what waits for it is delivered in order.

use std::time::{Duration, SystemTime};

use busbar_client::{BreakerState, CircuitBreaker, Delivery, DeliveryError, Producer, Reason, RetryBudget};

use crate::{
    fake::{Cluster, PublishFault, numbers, record},
    soon,
};

async fn send(producer: &Producer, from: usize, to: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for number in from..to {
        deliveries.push(producer.send(record(number)).await.expect("taken"));
    }
    deliveries
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, waiting).await;
}

#[tokio::test]
async fn a_sick_broker_gets_few_attempts_and_what_was_parked_is_delivered_in_order() {
    for reason in [Reason::Internal, Reason::Overloaded, Reason::NoLeader, Reason::DiskFull] {
        let (cluster, client) = Cluster::with_topic(1).await;
        let producer = client.producer("t").batch_bytes(1024).build().await.expect("a producer");
        for delivery in send(&producer, 0, 10).await {
            soon("healthy", delivery).await.expect("stored");
        }
        // Internal is final for the batch that meets it; the others are sent again.
        let retried = reason != Reason::Internal;
        cluster.edit_all(|state| (state.sick, state.publishes) = (Some(reason), 0));
        let deliveries = send(&producer, 10, 1000).await;
        if retried {
            until("something is held back", || producer.stats().parked + producer.stats().retries_held > 0).await;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let publishes = cluster.edit_all(|state| state.publishes);
            assert!(publishes <= 60, "{reason:?}: {publishes} publishes in 1.5 s");
        }
        cluster.edit_all(|state| state.sick = None);
        let mut stored = numbers(10);
        for (number, delivery) in (10..).zip(deliveries) {
            match soon("after healing", delivery).await {
                Ok(_) => stored.push(number.to_string()),
                Err(error) => assert!(!retried, "{reason:?}: {error}"),
            }
        }
        assert_eq!(cluster.values(0), stored, "{reason:?}");
        let [broker] = producer.brokers()[..] else { panic!("{:?}", producer.brokers()) };
        assert_eq!((broker.node, broker.breaker), (1, BreakerState::Closed), "{reason:?}");
    }
}

#[tokio::test]
async fn a_parked_record_burns_no_attempts_and_says_so() {
    let (mut cluster, client) = Cluster::with_topic(1).await;
    // Open until after the deadline.
    let mut breaker = CircuitBreaker::after(1);
    (breaker.open_min, breaker.open_max) = (Duration::from_secs(3), Duration::from_secs(3));
    let builder = client.producer("t").delivery_timeout(Duration::from_millis(700)).circuit_breaker(breaker);
    let producer = builder.build().await.expect("a producer");
    soon("healthy", producer.send(record(0)).await.expect("taken")).await.expect("stored");
    cluster.kill(1).await;
    let error = soon("expiry", producer.send(record(1)).await.expect("taken")).await.expect_err("nobody is there");
    assert!(matches!(&error, DeliveryError::Rejected { refusal, .. } if refusal.reason == Reason::DeadlineExceeded));
    assert!(error.to_string().contains("the circuit breaker of node 1 is open"), "{error}");
    let report = error.report();
    assert!(report.attempt_count() <= 1, "{report}");
    assert!(report.parked() > Duration::from_millis(300) && report.to_string().contains("parked for"), "{report}");
    assert!(producer.stats().breakers_opened >= 1);
    assert_eq!(producer.brokers()[0].breaker, BreakerState::Open);
    cluster.restart(1).await;
    let stored = soon("healed", async {
        loop {
            if let Ok(stored) = producer.send(record(1)).await.expect("taken").await {
                return stored;
            }
        }
    });
    assert_eq!(stored.await.offset, 1);
}

#[tokio::test]
async fn retries_stay_within_the_budget() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let builder = client.producer("t").batch_bytes(1024).delivery_timeout(Duration::from_millis(1500));
    let builder = builder.circuit_breaker(None).retry_budget(RetryBudget::new(0, 20));
    let producer = builder.build().await.expect("a producer");
    // 15 batches sent allow 3 to be sent again.
    for number in 0..15 {
        soon("healthy", producer.send(record(number)).await.expect("taken")).await.expect("stored");
    }
    assert_eq!(producer.brokers()[0].retries_left, Some(3));
    cluster.edit_all(|state| (state.sick, state.publishes) = (Some(Reason::Overloaded), 0));
    let delivery = producer.send(record(15)).await.expect("taken");
    let error = soon("expiry", delivery).await.expect_err("no attempt succeeds");
    assert!(error.to_string().contains("the retry budget of node 1 is spent"), "{error}");
    assert_eq!(cluster.edit_all(|state| state.publishes), 4, "{}", error.report());
    assert!(producer.stats().retries_held > 0);
}

#[tokio::test]
async fn a_brokers_guards_are_the_whole_clients() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let build = || client.producer("t");
    let (first, second) = (build().build().await.expect("a producer"), build().build().await.expect("a producer"));
    // Of another clone, and with settings of its own.
    let third = client.clone().producer("t").build().await.expect("a producer");
    let own = build().circuit_breaker(CircuitBreaker::after(50)).build().await.expect("a producer");
    for (number, producer) in [&first, &third, &own].into_iter().enumerate() {
        soon("healthy", producer.send(record(number)).await.expect("taken")).await.expect("stored");
    }
    cluster.edit_all(|state| (state.sick, state.publishes) = (Some(Reason::DiskFull), 0));
    let opens = first.send(record(3)).await.expect("taken");
    until("it opens", || first.brokers()[0].breaker == BreakerState::Open).await;
    for other in [&second, &third] {
        assert_ne!(other.brokers()[0].breaker, BreakerState::Closed);
        assert_eq!(other.brokers()[0].retries_left, first.brokers()[0].retries_left);
    }
    assert_eq!(own.brokers()[0].breaker, BreakerState::Closed);
    // Who has never sent anything there parks all the same.
    let mut parked = vec![second.send(record(4)).await.expect("taken")];
    until("the second is held back", || second.stats().parked > 0).await;
    parked.push(third.send(record(5)).await.expect("taken"));
    until("the third is held back", || third.stats().parked > 0).await;
    let retries = [&first, &second, &third].map(|producer| producer.stats().retries).iter().sum::<u64>();
    let left = first.brokers()[0].retries_left.expect("a budget");
    assert!(retries + left <= 101 && left < 100, "{retries} retries of all, {left} left to each");
    cluster.edit_all(|state| state.sick = None);
    // Whoever has the probe, its word frees all.
    soon("healed", opens).await.expect("stored");
    let begun = std::time::Instant::now();
    for delivery in parked {
        soon("freed", delivery).await.expect("stored");
    }
    assert!(begun.elapsed() < Duration::from_millis(1500), "another probe was waited for: {:?}", begun.elapsed());
    assert_eq!(second.brokers()[0].breaker, BreakerState::Closed);
    assert_eq!([&second, &third].map(|producer| producer.stats().breakers_opened), [0, 0]);
}

#[tokio::test]
async fn a_restarted_broker_gets_its_batches_back_whatever_the_budget() {
    const PARTITIONS: u32 = 60;
    let mut cluster = Cluster::start(1).await;
    cluster.create("t", PARTITIONS);
    let client = cluster.client().await;
    let builder = client.producer("t").delivery_timeout(Duration::from_secs(10));
    // Enough for 10 retries at once; without what is given back, the others would take a minute.
    let producer = builder.retry_budget(RetryBudget::new(1, 0)).build().await.expect("a producer");
    cluster.edit_all(|state| state.held = true);
    let mut deliveries = Vec::new();
    for partition in 0..PARTITIONS {
        deliveries.push(producer.send(record(0).partition(partition)).await.expect("taken"));
    }
    until("all are under way", || producer.stats().batches == u64::from(PARTITIONS)).await;
    cluster.kill(1).await;
    cluster.edit_all(|state| state.held = false);
    until("they are lost", || producer.stats().retries > 0).await;
    cluster.restart(1).await;
    for delivery in deliveries {
        soon("delivery", delivery).await.expect("stored");
    }
}

#[tokio::test]
async fn an_election_needs_no_budget() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let builder = client.producer("t").batch_bytes(1024).retry_budget(RetryBudget::new(0, 0));
    let producer = builder.build().await.expect("a producer");
    cluster.edit(0, |partition| partition.publish_faults.push_back(PublishFault::NotLeader));
    for delivery in send(&producer, 0, 500).await {
        soon("at the next leader", delivery).await.expect("stored");
    }
    assert_eq!(cluster.values(0), numbers(500));
}

#[tokio::test]
async fn a_record_is_not_sent_after_its_own_deadline() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").build().await.expect("a producer");
    soon("first", producer.send(record(0)).await.expect("taken")).await.expect("stored");
    let within = |number, ms| record(number).send_before(SystemTime::now() + Duration::from_millis(ms));
    let in_time = producer.send(within(1, 10_000)).await.expect("taken");
    soon("in time", in_time).await.expect("stored");
    let deadlines = cluster.edit(0, |partition| partition.deadlines.clone());
    assert!(deadlines[1] < deadlines[0], "{deadlines:?}");

    // Nobody leads: some may wait, some may not.
    cluster.edit_all(|state| state.sick = Some(Reason::NoLeader));
    let urgent = [within(2, 0), within(3, 150), within(4, 300)];
    let mut deliveries = Vec::new();
    for (number, urgent) in (5..8).zip(urgent) {
        deliveries.push((producer.send(urgent).await.expect("taken"), true));
        deliveries.push((producer.send(record(number)).await.expect("taken"), false));
    }
    let mut patient = Vec::new();
    for (delivery, is_urgent) in deliveries {
        if !is_urgent {
            patient.push(delivery);
            continue;
        }
        let error = soon("too late", delivery).await.expect_err("not sent in time");
        assert!(
            matches!(&error, DeliveryError::Rejected { refusal, .. } if refusal.reason == Reason::DeadlineExceeded)
        );
        assert!(error.to_string().contains("before the record's own deadline"), "{error}");
    }
    cluster.edit_all(|state| state.sick = None);
    for delivery in patient {
        soon("patient", delivery).await.expect("stored");
    }
    assert_eq!(cluster.values(0), ["0", "1", "5", "6", "7"]);
}

#[tokio::test]
async fn keyless_records_avoid_a_partition_that_is_slow() {
    let cluster = Cluster::start(3).await;
    cluster.create("t", 3);
    cluster.edit(0, |partition| {
        partition.publish_faults.extend(vec![PublishFault::Slow(Duration::from_millis(40)); 1000]);
    });
    let client = cluster.client().await;
    let producer = client.producer("t").batch_bytes(1024).buffer_bytes(64 << 10).build().await.expect("a producer");
    // The first fill the buffer before any answer tells who is slow.
    for number in 0..20_000 {
        drop(producer.send(record(number)).await.expect("taken"));
    }
    soon("flush", producer.flush()).await.expect("stored");
    let stored: Vec<_> = (0..3).map(|partition| cluster.values(partition).len()).collect();
    assert_eq!(stored.iter().sum::<usize>(), 20_000);
    // A fair share would be a third.
    assert!(stored[0] < 20_000 / 6, "{stored:?}");
    println!("stored: {stored:?}");
}
