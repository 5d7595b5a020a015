//! Records that are due later, and records that expire, for members whose clocks are right or an hour off.

use std::{
    sync::Arc,
    time::{Duration, Instant as StdInstant, SystemTime},
};

use busbar_client::{
    Client, DeadLetter, Expired, Record, TrySendError,
    env::{Clock, Env, SystemClock, SystemEntropy},
};
use tokio::time::Instant;

use crate::{
    fake::Cluster,
    groups::{committed, joined, member, next, until, work},
    soon,
};

const HOUR_MS: i64 = 3_600_000;
const SHORT: Duration = Duration::from_millis(400);

/// A wall clock that runs ahead.
struct Ahead(i64);

impl Clock for Ahead {
    fn now(&self) -> Instant {
        SystemClock.now()
    }

    fn unix_ms(&self) -> i64 {
        SystemClock.unix_ms() + self.0
    }
}

async fn client_ahead(cluster: &Cluster, ms: i64) -> Client {
    let env = Env::new(Arc::new(Ahead(ms)), Arc::new(SystemEntropy));
    Client::builder().servers(cluster.servers()).env(env).build().await.expect("a client")
}

async fn publish(client: &Client, records: impl IntoIterator<Item = Record>) {
    let producer = client.producer("t").build().await.expect("a producer");
    for record in records {
        drop(producer.send(record).await.expect("taken"));
    }
    soon("close", producer.close()).await.expect("stored");
}

fn plain(value: &'static str) -> Record {
    Record::new(value)
}

async fn value(consumer: &mut busbar_client::GroupConsumer) -> String {
    let record = next(consumer).await;
    let value = String::from_utf8_lossy(record.value()).into_owned();
    record.ack().expect("it is ours");
    value
}

#[tokio::test]
async fn a_delayed_record_waits_without_holding_up_others_also_across_a_restart() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let sent = StdInstant::now();
    let late = SHORT * 2;
    let malformed = plain("c").header("busbar-deliver-at", "soon").header("busbar-expires-at", "-1");
    publish(&client, [plain("a").deliver_after(late), plain("b"), malformed, plain("d").deliver_at(SystemTime::now())])
        .await;
    let mut first = joined(member(&client)).await;
    assert_eq!([value(&mut first).await, value(&mut first).await, value(&mut first).await], ["b", "c", "d"]);
    assert!(sent.elapsed() < late, "too slow to tell");
    assert_eq!(first.stats().malformed, 2);
    soon("close", first.close()).await.expect("committed");
    assert_eq!(committed(&cluster, 0), Some(0));
    let mut second = joined(member(&client)).await;
    assert_eq!(value(&mut second).await, "a");
    assert!(sent.elapsed() >= late, "{:?}", sent.elapsed());
    let stats = second.stats();
    assert_eq!((stats.delivered, stats.redelivered, stats.tried), (1, 0, 0), "{stats:?}");
    soon("commit", second.commit()).await.expect("committed");
    assert_eq!(committed(&cluster, 0), Some(4));
}

#[tokio::test]
async fn more_delayed_records_than_the_window_hold_up_the_rest_until_the_first_is_due() {
    let (_cluster, client) = Cluster::with_topic(1).await;
    let sent = StdInstant::now();
    publish(&client, (0..5).map(|_| plain("late").deliver_after(SHORT)).chain([plain("plain")])).await;
    let mut consumer = joined(member(&client).window_records(5)).await;
    let mut values = Vec::new();
    for _ in 0..6 {
        values.push(value(&mut consumer).await);
    }
    assert!(sent.elapsed() >= SHORT && values[0] == "late", "{values:?}");
}

#[tokio::test]
async fn an_expired_record_is_not_delivered_neither_first_nor_again() {
    let (cluster, client) = Cluster::with_topic(1).await;
    publish(&client, [plain("a").ttl(Duration::ZERO), plain("b").ttl(SHORT), plain("c")]).await;
    let mut consumer = joined(member(&client)).await;
    let record = next(&mut consumer).await;
    assert_eq!(record.value().as_ref(), b"b");
    record.nack(SHORT).expect("it is ours");
    assert_eq!(value(&mut consumer).await, "c");
    let all_done = async {
        while committed(&cluster, 0) != Some(3) {
            let _ = tokio::time::timeout(Duration::from_millis(20), consumer.next()).await;
        }
    };
    soon("expiry", all_done).await;
    let stats = consumer.stats();
    assert_eq!((stats.delivered, stats.expired_records, stats.expired), (2, 2, 0), "{stats:?}");
    // Without a group everything comes as it is stored.
    let mut plain = client.consumer("t").build().await.expect("a consumer");
    let first = soon("next", plain.next()).await.expect("no fault").expect("not closed");
    assert_eq!((first.value().as_ref(), first.deliver_at_ms()), (&b"a"[..], None));
    assert!(first.expires_at_ms().is_some_and(|at| at <= first.timestamp_ms() + 1), "{first:?}");
}

#[tokio::test]
async fn an_expired_record_becomes_a_dead_letter_if_asked_and_that_does_not_expire() {
    let (cluster, client) = Cluster::with_topic(1).await;
    publish(&client, [plain("a").ttl(Duration::ZERO), plain("b")]).await;
    let builder = member(&client).expired(Expired::DeadLetter).dead_letter(DeadLetter::Default);
    let mut consumer = joined(builder).await;
    assert_eq!(value(&mut consumer).await, "b");
    until("commit", &cluster, |cluster| committed(cluster, 0) == Some(2)).await;
    let stats = consumer.stats();
    assert_eq!((stats.expired_records, stats.dead_lettered), (1, 1), "{stats:?}");
    let builder = client.group("graves").topics(["t.dlq"]).dead_letter(DeadLetter::Off);
    let letter = next(&mut joined(builder).await).await;
    assert_eq!((letter.value().as_ref(), letter.expires_at_ms()), (&b"a"[..], None));
    let told = |name: &str| letter.header(name).map(|value| String::from_utf8_lossy(value).into_owned());
    assert_eq!(told("busbar-dlq-reason").as_deref(), Some("it has expired"));
    assert!(told("busbar-dlq-expires-at").is_some());
}

#[tokio::test]
async fn a_member_whose_clock_is_an_hour_off_delivers_nothing_early_or_late_and_expires_nothing() {
    for ahead_ms in [HOUR_MS, -HOUR_MS] {
        let (cluster, right) = Cluster::with_topic(1).await;
        let wrong = client_ahead(&cluster, ahead_ms).await;
        let sent = StdInstant::now();
        let minute = Duration::from_secs(60);
        publish(
            &right,
            [
                plain("late").deliver_after(SHORT),
                plain("lasts").ttl(minute),
                plain("is over").ttl(Duration::from_millis(1)),
                plain("plain"),
            ],
        )
        .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut consumer = joined(member(&wrong)).await;
        assert_eq!([value(&mut consumer).await, value(&mut consumer).await], ["lasts", "plain"], "{ahead_ms}");
        assert_eq!(value(&mut consumer).await, "late");
        let took = sent.elapsed();
        assert!((SHORT - Duration::from_millis(20)..Duration::from_secs(10)).contains(&took), "{ahead_ms}: {took:?}");
        assert_eq!(consumer.stats().expired_records, 1, "{ahead_ms}");
        assert!((consumer.clock_ahead_ms() - ahead_ms).abs() < 5000, "{}", consumer.clock_ahead_ms());
    }
}

#[tokio::test]
async fn a_broker_that_tells_another_time_is_followed() {
    let (cluster, client) = Cluster::with_topic(1).await;
    publish(&client, [plain("late").deliver_after(Duration::from_secs(1800)), plain("plain")]).await;
    let mut consumer = joined(member(&client)).await;
    assert_eq!(work(&mut consumer, 1).await, [(0, 1)]);
    assert_eq!(consumer.clock_ahead_ms(), 0);
    cluster.edit_all(|state| state.clock_ahead_ms = HOUR_MS);
    assert_eq!(value(&mut consumer).await, "late", "with the next heartbeat");
}

#[tokio::test]
async fn a_producer_whose_clock_is_an_hour_off_means_the_same_times() {
    for ahead_ms in [HOUR_MS, -HOUR_MS] {
        let (cluster, right) = Cluster::with_topic(1).await;
        let wrong = client_ahead(&cluster, ahead_ms).await;
        let sent = StdInstant::now();
        publish(&wrong, [plain("late").deliver_after(SHORT), plain("lasts").ttl(Duration::from_secs(60))]).await;
        let mut consumer = joined(member(&right)).await;
        assert_eq!([value(&mut consumer).await, value(&mut consumer).await], ["lasts", "late"], "{ahead_ms}");
        let took = sent.elapsed();
        assert!((SHORT - Duration::from_millis(20)..Duration::from_secs(10)).contains(&took), "{ahead_ms}: {took:?}");
    }
}

#[tokio::test]
async fn a_record_that_is_given_back_has_the_times_it_was_given() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.edit_all(|state| state.held = true);
    let producer = client.producer("t").buffer_bytes(64 << 10).build().await.expect("a producer");
    let record = Record::new(vec![0; 8 << 10]).header("a", "b").deliver_after(SHORT).ttl(SHORT);
    let given_back = loop {
        match producer.try_send(record.clone()) {
            Ok(delivery) => drop(delivery),
            Err(TrySendError::Full(given_back)) => break *given_back,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(given_back, record);
}
