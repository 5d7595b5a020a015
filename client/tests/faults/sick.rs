//! A broker that answers everything with errors for ten seconds, under load from several producers of one client: attempts
//! stay within the budget, the breaker opens, and what was parked is delivered in order after healing.
//!
//! `cargo nextest run --release -p busbar-client --test faults sick --no-capture` prints the figures.

use std::time::{Duration, Instant};

use busbar_client::{BreakerState, Delivery, Producer, ProducerStats, Reason, Record};

use crate::{fake::Cluster, soon};

const PRODUCERS: usize = 3;
/// Batches that may have been sent before the broker fell sick, and are counted after it.
const UNDER_WAY: u64 = PRODUCERS as u64 * 5;
const PARTITIONS: u32 = 4;
const SICK: Duration = Duration::from_secs(10);
/// Records of each producer, at one a tick: before, while and after it is sick.
const TICK: Duration = Duration::from_millis(5);
const HEALTHY_TICKS: usize = 200;

/// Sends a record a tick until the time is over, and returns what became of none of them yet.
async fn publish(number: usize, producer: Producer, until: Instant) -> Vec<Delivery> {
    let mut ticks = tokio::time::interval(TICK);
    let mut deliveries = Vec::new();
    while Instant::now() < until {
        ticks.tick().await;
        let record = Record::new(format!("{number}:{}", deliveries.len()));
        let partition = deliveries.len() as u32 % PARTITIONS;
        deliveries.push(producer.send(record.partition(partition)).await.expect("taken"));
    }
    deliveries
}

fn sum(producers: &[Producer], of: impl Fn(&ProducerStats) -> u64) -> u64 {
    producers.iter().map(|producer| of(&producer.stats())).sum()
}

/// What was seen of the ten seconds.
#[derive(Debug, Default)]
struct Seen {
    attempts_each_second: Vec<usize>,
    opened_after: Option<Duration>,
    time_open: Duration,
}

/// Looks at the broker and at the breaker every few milliseconds.
async fn watch(cluster: &Cluster, producer: &Producer) -> Seen {
    let (begun, mut seen, mut counted) = (Instant::now(), Seen::default(), 0);
    let mut looked = begun;
    while begun.elapsed() < SICK {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if producer.brokers()[0].breaker != BreakerState::Closed {
            seen.opened_after.get_or_insert_with(|| begun.elapsed());
            seen.time_open += looked.elapsed();
        }
        looked = Instant::now();
        if begun.elapsed().as_secs() as usize > seen.attempts_each_second.len() {
            let attempts = cluster.edit_all(|state| state.publishes);
            seen.attempts_each_second.push(attempts - counted);
            counted = attempts;
        }
    }
    seen
}

/// `opens` = such errors open the breaker, also after many good answers.
async fn ten_seconds_of(reason: Reason, opens: bool) {
    let cluster = Cluster::start(1).await;
    cluster.create("t", PARTITIONS);
    let client = cluster.client().await;
    let mut producers = Vec::new();
    for _ in 0..PRODUCERS {
        producers.push(client.producer("t").build().await.expect("a producer"));
    }
    let before = TICK * HEALTHY_TICKS as u32;
    let until = Instant::now() + before + SICK + before;
    let publishing: Vec<_> = (producers.iter().cloned().enumerate())
        .map(|(number, producer)| tokio::spawn(publish(number, producer, until)))
        .collect();
    tokio::time::sleep(before).await;
    let (first_before, again_before) = (sum(&producers, |stats| stats.batches), sum(&producers, |stats| stats.retries));
    cluster.edit_all(|state| (state.sick, state.publishes) = (Some(reason), 0));
    let seen = watch(&cluster, &producers[0]).await;
    let attempts = cluster.edit_all(|state| state.publishes);
    let (first, again) = (sum(&producers, |stats| stats.batches), sum(&producers, |stats| stats.retries));
    let parked = sum(&producers, |stats| stats.records - stats.acknowledged);
    let opened = sum(&producers, |stats| stats.breakers_opened);
    let healed = Instant::now();
    cluster.edit_all(|state| state.sick = None);
    while sum(&producers, |stats| stats.records - stats.acknowledged) > parked / 10 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let caught_up = healed.elapsed();
    let mut delivered = 0;
    for deliveries in publishing {
        for delivery in deliveries.await.expect("joined") {
            soon("after healing", delivery).await.expect("stored");
            delivered += 1;
        }
    }
    // 10 a second over 10 s, and a fifth of what was sent: in the ten seconds and in those before.
    let allowed = 100 + first / 5;
    println!(
        "{reason:?} for {SICK:?}, {PRODUCERS} producers, {} records/s: {attempts} attempts, each second {:?}; {} of them \
         retries, {allowed} allowed by the budget of all; breaker opened {opened} times, first after {:?}, for {:?} in all; {parked} \
         records parked, caught up {caught_up:?} after healing, {delivered} delivered",
        PRODUCERS as u128 * 1000 / TICK.as_millis(),
        seen.attempts_each_second,
        again - again_before,
        seen.opened_after,
        seen.time_open
    );
    // Less than the span of the budget, at whose end what was spent first is forgotten.
    let attempts_in_nine: usize = seen.attempts_each_second.iter().take(9).sum();
    assert!(
        attempts_in_nine as u64 <= allowed + first - first_before + UNDER_WAY,
        "{attempts_in_nine} attempts, {allowed} allowed"
    );
    if opens {
        assert!(seen.opened_after.is_some_and(|after| after < Duration::from_secs(5)) && opened > 0, "{seen:?}");
        assert!(attempts < 60, "{attempts} attempts in {SICK:?}");
    }
    assert!(parked > 3000, "{parked}");
    check_order(&cluster, delivered);
}

/// Each producer's records of a partition are stored in the order of their sending.
fn check_order(cluster: &Cluster, delivered: usize) {
    for partition in 0..PARTITIONS {
        let values = cluster.values(partition);
        for number in 0..PRODUCERS {
            let of_producer = values.iter().filter_map(|value| value.strip_prefix(&format!("{number}:")));
            let read: Vec<usize> = of_producer.map(|value| value.parse().expect("a number")).collect();
            let want: Vec<_> = (0..read.len()).map(|at| at * PARTITIONS as usize + partition as usize).collect();
            assert_eq!(read, want, "partition {partition}, producer {number}: each once, in order");
        }
    }
    let stored: usize = (0..PARTITIONS).map(|partition| cluster.values(partition).len()).sum();
    assert_eq!(stored, delivered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_seconds_of_a_full_disk() {
    ten_seconds_of(Reason::DiskFull, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_seconds_of_overload() {
    // Towards the share only, and the good answers of the second before count still: the budget alone protects it.
    ten_seconds_of(Reason::Overloaded, false).await;
}
