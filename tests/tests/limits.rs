//! Whoever asks for as much as may be, or for more: clear errors, nothing lost, the others are served.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use busbar_client::{Client, ClientError, Reason, Record, SendError, StartAt, TopicOptions};
use busbar_proto::v1;
use busbar_proto::v1::{
    publish_response::Outcome, subscribe_request, subscribe_request::open::From, subscribe_response::Event,
};
use busbar_tests::{process::ProcessCluster, wire};
use futures::{StreamExt as _, stream};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

const TOPIC: &str = "orders";
const BATCH_LIMIT: u32 = 64 << 10;

async fn solo(settings: &[(&str, &str)], options: TopicOptions) -> anyhow::Result<(ProcessCluster, Client, String)> {
    let cluster = ProcessCluster::start_with(1, settings).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, options).await?;
    let address = cluster.node(1)?.address.clone();
    Ok((cluster, client, address))
}

fn single() -> TopicOptions {
    TopicOptions { replicas: 1, max_batch_bytes: Some(BATCH_LIMIT), ..TopicOptions::default() }
}

/// The longest value that fits into a batch of that many bytes.
fn longest_value(batch_bytes: usize) -> usize {
    let size = |length: usize| wire::batch(&["x".repeat(length).as_str()]).len();
    let overhead = size(batch_bytes / 2) - batch_bytes / 2;
    // A length's own number may take another byte.
    (batch_bytes - overhead - 4..batch_bytes).rev().find(|&length| size(length) == batch_bytes).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_exactly_the_limit_is_stored_and_one_byte_more_is_not() -> anyhow::Result<()> {
    let (cluster, client, address) = solo(&[], single()).await?;
    let longest = longest_value(BATCH_LIMIT as usize);
    ensure!(longest > 0, "no value makes a batch of exactly {BATCH_LIMIT} bytes");
    let producer = client.producer(TOPIC).build().await?;
    assert_eq!(producer.send(Record::new(vec![b'x'; longest])).await?.await?.offset, 0);
    let refused = producer.send(Record::new(vec![b'x'; longest + 1])).await;
    assert!(matches!(refused, Err(SendError::TooLarge { .. })), "{refused:?}");
    // Past the client's own check.
    let topic_id = wire::topic_id(&client, TOPIC).await?;
    let over = wire::batch(&["x".repeat(longest + 1).as_str()]);
    assert_eq!(over.len(), BATCH_LIMIT as usize + 1);
    let request = v1::PublishRequest { topic_id: topic_id.clone(), batch: over, ..Default::default() };
    match wire::publish(&address, request).await? {
        Outcome::Error(error) => assert_eq!(error.reason, Reason::BatchTooLarge.as_str(), "{}", error.message),
        Outcome::Acknowledged(stored) => anyhow::bail!("a batch over the limit was stored: {stored:?}"),
    }
    let exact = wire::batch(&["y".repeat(longest).as_str()]);
    assert_eq!(wire::store(&address, &topic_id, 0, exact).await?, (1, false));
    let mut consumer = client.consumer(TOPIC).build().await?;
    for filler in [b'x', b'y'] {
        let record = consumer.next().await?.context("the consumer was closed")?;
        assert!(record.value().len() == longest && record.value().iter().all(|&byte| byte == filler));
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_of_credit_is_one_batch_and_then_nothing_until_it_is_paid() -> anyhow::Result<()> {
    let (cluster, client, address) = solo(&[], single()).await?;
    let topic_id = wire::topic_id(&client, TOPIC).await?;
    let mut bytes = 0;
    for number in 0..3u64 {
        let batch = wire::batch(&["x".repeat(1_000).as_str()]);
        bytes = batch.len();
        assert_eq!(wire::store(&address, &topic_id, 0, batch).await?.0, number);
    }
    let from = Some(From::Earliest(true));
    let open = subscribe_request::Open { topic_id, from, credit: 1, ..Default::default() };
    let mut subscription = wire::subscribe(&address, open).await?;
    ensure!(matches!(subscription.next().await?, Event::Opened(_)));
    let first = subscription.next().await?;
    ensure!(matches!(&first, Event::Batches(batches) if batches.batches.len() == bytes), "{first:?}");
    // The debt is the batch less one byte: paid but for one byte it is still a debt.
    subscription.grant(bytes as u64 - 1).await?;
    let early = tokio::time::timeout(Duration::from_millis(200), subscription.next()).await;
    ensure!(early.is_err(), "sent without credit: {early:?}");
    subscription.grant(1).await?;
    let second = subscription.next().await?;
    ensure!(matches!(&second, Event::Batches(batches) if batches.batches.len() == bytes), "{second:?}");
    // A client with as little reads everything, batch by batch.
    let mut consumer = client.consumer(TOPIC).credit_bytes(1).from(StartAt::Earliest).build().await?;
    for offset in 0..3 {
        assert_eq!(consumer.next().await?.context("the consumer was closed")?.offset(), offset);
    }
    cluster.finish().await
}

/// So many connections of which half say nothing and half have greeted as HTTP/2 does; fewer where this process may not
/// have as many.
async fn idle_connections(address: &str, wanted: usize) -> anyhow::Result<Vec<TcpStream>> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let possible = limit.current.map_or(wanted, |limit| usize::try_from(limit).unwrap_or(wanted).saturating_sub(200));
    let count = wanted.min(possible);
    eprintln!("{count} connections");
    let connect = |number: usize| async move {
        let mut stream = TcpStream::connect(address).await?;
        if number.is_multiple_of(2) {
            // Preface and empty settings. The node may close it at once when it has too many.
            let greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
            drop(stream.write_all(greeting).await);
        }
        anyhow::Ok(stream)
    };
    let streams = stream::iter(0..count).map(connect).buffer_unordered(64).collect::<Vec<_>>().await;
    streams.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_idle_connections_cost_little_and_disturb_nobody_who_is_there() -> anyhow::Result<()> {
    let (cluster, client, address) = solo(&[], single()).await?;
    let producer = client.producer(TOPIC).build().await?;
    assert_eq!(producer.send(Record::new("before")).await?.await?.offset, 0);
    let before = cluster.node(1)?.resident_bytes()?;
    let idle = idle_connections(&address, 5_000).await?;
    for offset in 1..=200 {
        assert_eq!(producer.send(Record::new("meanwhile")).await?.await?.offset, offset);
    }
    let grown = cluster.node(1)?.resident_bytes()?.saturating_sub(before);
    eprintln!("{} idle connections: the node grew by {} KiB", idle.len(), grown >> 10);
    ensure!(grown < 256 << 20, "the node grew by {grown} bytes");
    drop(idle);
    // Their places are free again.
    let late = cluster.client().await?;
    let mut consumer = late.consumer(TOPIC).build().await?;
    for offset in 0..=200 {
        assert_eq!(consumer.next().await?.context("the consumer was closed")?.offset(), offset);
    }
    cluster.finish().await
}

/// Each test is a process of its own: the nodes inherit its limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_1024_open_files_keeps_some_for_the_log() -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    (limit.current, limit.maximum) = (Some(1_024), Some(1_024));
    setrlimit(Resource::Nofile, limit)?;
    let options = TopicOptions { partitions: 300, ..single() };
    let (cluster, client, address) = solo(&[("log.segment_bytes", "1MiB")], options).await?;
    ensure!(cluster.node(1)?.log().contains("raise the limit of open files"), "nothing says that there are few");
    // More than the journal holds, so that each partition has segments.
    let producer = client.producer(TOPIC).build().await?;
    let count = 300 * 40;
    let mut deliveries = Vec::new();
    for number in 0..count {
        deliveries.push(producer.send(Record::new(vec![b'x'; 8_000]).partition(number % 300)).await?);
    }
    let mut stored = BTreeSet::new();
    for delivery in deliveries {
        let delivered = delivery.await?;
        ensure!(stored.insert((delivered.partition, delivered.offset)), "an offset was given twice");
    }
    // Fewer than this process may open, more than the node has places for.
    let idle = idle_connections(&address, 700).await?;
    let mut consumer = client.consumer(TOPIC).build().await?;
    for _ in 0..count {
        let record = consumer.next().await?.context("the consumer was closed")?;
        ensure!(stored.remove(&(record.partition(), record.offset())), "read twice or never stored");
    }
    drop(idle);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_topics_at_once_end_at_the_limit() -> anyhow::Result<()> {
    const ASKED: usize = 100_000;
    let room = 200;
    let (cluster, client, _) = solo(&[("limits.replicas_max", "201")], single()).await?;
    let before = cluster.node(1)?.resident_bytes()?;
    let create = |number: usize| {
        let admin = client.admin();
        async move { (number, admin.create_topic(format!("topic-{number}"), single()).await) }
    };
    let mut answers = stream::iter(0..ASKED).map(create).buffer_unordered(2_000);
    let mut created = BTreeSet::new();
    let mut refused = 0;
    while let Some((number, answer)) = answers.next().await {
        match answer {
            Ok(_) => drop(created.insert(format!("topic-{number}"))),
            Err(ClientError::Refused(refusal)) => {
                assert_eq!(refusal.reason, Reason::LimitReached, "{refusal}");
                refused += 1;
            }
            Err(other) => anyhow::bail!("topic {number}: {other}"),
        }
    }
    eprintln!("{} created, {refused} refused", created.len());
    ensure!(created.len() == room && refused == ASKED - room, "{} created, {refused} refused", created.len());
    let listed = client.admin().list_topics().await?.into_iter().map(|topic| topic.name).collect::<BTreeSet<_>>();
    created.insert(TOPIC.to_owned());
    assert_eq!(listed, created, "what was refused does not exist, what was not does");
    let grown = cluster.node(1)?.resident_bytes()?.saturating_sub(before);
    eprintln!("the node grew by {} KiB", grown >> 10);
    ensure!(grown < 256 << 20, "the node grew by {grown} bytes");
    cluster.finish().await
}
