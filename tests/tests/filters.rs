//! Filters and replicas with real nodes: what is selected arrives whatever fails meanwhile, what is not is not even
//! sent, offsets and lag stay right; reading from any replica reads the same records.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, ensure};
use busbar_client::{Client, ClientError, Consumer, ReadFrom, Reason, Record, StartAt, TopicOptions};
use busbar_proto::v1::{
    subscribe_request::{Open, open::From},
    subscribe_response::Event,
};
use busbar_tests::{process::ProcessCluster, wait::within, wire};
use tokio::task::JoinHandle;

const TOPIC: &str = "orders";
const LIMIT: Duration = Duration::from_secs(60);
const EU: &str = "region = 'eu'";
/// One record in so many is what the filter selects.
const ONE_IN: u64 = 10;

fn partitions(partitions: u32) -> TopicOptions {
    TopicOptions { partitions, ..TopicOptions::default() }
}

fn is_eu(number: u64) -> bool {
    number.is_multiple_of(ONE_IN)
}

fn order(number: u64) -> Record {
    let region = if is_eu(number) { "eu" } else { "us" };
    Record::new(number.to_string()).key(format!("k{}", number % 7)).header("region", region).header("n", "1")
}

/// Publishes the orders one by one, so that each batch has one region; ends when told, with how many there are.
fn publish(client: &Client, stop: tokio::sync::watch::Receiver<bool>) -> JoinHandle<anyhow::Result<u64>> {
    let client = client.clone();
    tokio::spawn(async move {
        let producer = client.producer(TOPIC).digest(["region"]).build().await?;
        let mut number = 0;
        while !*stop.borrow() {
            producer.send(order(number)).await?.await?;
            number += 1;
        }
        Ok(number)
    })
}

async fn read_numbers(consumer: &mut Consumer, count: usize) -> anyhow::Result<BTreeSet<u64>> {
    let mut numbers = BTreeSet::new();
    within(LIMIT, "all that the filter selects", async {
        while numbers.len() < count {
            let record = consumer.next().await?.context("the consumer has ended")?;
            let number = std::str::from_utf8(record.value())?.parse()?;
            ensure!(numbers.insert(number), "{number} came twice");
        }
        Ok(())
    })
    .await?;
    Ok(numbers)
}

fn wanted(of: u64) -> BTreeSet<u64> {
    (0..of).filter(|&number| is_eu(number)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_selects_across_a_killed_leader() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, partitions(2)).await?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let publishing = publish(&client, stopped);
    let mut told = client.consumer(TOPIC).filter(EU).build().await?;
    let mut anywhere = client.consumer(TOPIC).filter(EU).read_from(ReadFrom::Any).build().await?;
    // Of this header nothing is told beside the batches.
    let mut untold = client.consumer(TOPIC).filter("`n` != '1' or region ^= 'e'").build().await?;
    let mut seen = read_numbers(&mut told, 20).await?;
    cluster.kill(cluster.leader_of(&client, TOPIC, 0).await?).await?;
    seen.append(&mut read_numbers(&mut told, 20).await?);
    stop.send(true)?;
    let published = publishing.await??;
    let want = wanted(published);
    seen.append(&mut read_numbers(&mut told, want.len() - seen.len()).await?);
    assert_eq!(seen, want);
    assert_eq!(read_numbers(&mut anywhere, want.len()).await?, want);
    assert_eq!(read_numbers(&mut untold, want.len()).await?, want);
    assert_eq!(told.filtered(), 0, "the broker sends no batch in which nothing can match");
    ensure!(untold.filtered() > 0, "what is not told is decided here");
    // Everything published is behind the consumers, also what they were never sent.
    for consumer in [&mut told, &mut anywhere] {
        within(LIMIT, "the end of the partitions", async {
            while consumer.positions().values().sum::<u64>() < published {
                ensure!(consumer.try_next()?.is_none(), "more than was wanted");
                tokio::task::yield_now().await;
            }
            Ok(())
        })
        .await?;
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_selected_is_not_sent() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(1).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions { replicas: 1, ..partitions(1) }).await?;
    let producer = client.producer(TOPIC).digest(["region"]).build().await?;
    for number in 0..ONE_IN * 3 {
        producer.send(order(number)).await?.await?;
    }
    let topic_id = wire::topic_id(&client, TOPIC).await?;
    let address = cluster.node(1)?.address.clone();
    let open = |filter: &str, credit| Open {
        topic_id: topic_id.clone(),
        partition: 0,
        from: Some(From::Earliest(true)),
        credit,
        any_replica: false,
        filter: filter.to_owned(),
    };
    let mut subscription = wire::subscribe(&address, open(EU, 1 << 20)).await?;
    let (mut offsets, mut passed) = (Vec::new(), 0);
    loop {
        match subscription.next().await? {
            Event::Batches(batches) => {
                for batch in busbar_proto::batch::split(batches.batches) {
                    offsets.push(batch.map_err(|fault| anyhow::anyhow!("{fault}"))?.0.base_offset.get());
                }
            }
            Event::Passed(over) => passed = over.next_offset,
            Event::CaughtUp(_) => break,
            Event::Opened(_) => {}
            Event::Ended(error) => anyhow::bail!("{}: {}", error.reason, error.message),
        }
    }
    assert_eq!(offsets, [0, ONE_IN, 2 * ONE_IN]);
    assert_eq!(passed, 3 * ONE_IN, "and the place is known");
    // A word costs credit, too: who has none is told nothing.
    let mut poor = wire::subscribe(&address, open("region = 'none'", 1)).await?;
    ensure!(matches!(poor.next().await?, Event::Opened(_)));
    ensure!(matches!(poor.next().await?, Event::Passed(_)), "positive credit is enough for one");
    producer.send(order(1)).await?.await?;
    let silent = tokio::time::timeout(Duration::from_millis(500), poor.next()).await;
    ensure!(silent.is_err(), "told without credit: {silent:?}");
    let mut broken = wire::subscribe(&address, open("region = eu", 1 << 20)).await?;
    let Event::Ended(error) = broken.next().await? else { anyhow::bail!("a filter without quotes was accepted") };
    assert_eq!(error.reason, "INVALID_ARGUMENT");
    ensure!(error.message.contains("character 10"), "{}", error.message);
    let refused = client.consumer(TOPIC).filter("region = eu").build().await.map(drop);
    let Err(ClientError::Filter(fault)) = refused else { anyhow::bail!("{refused:?}") };
    assert_eq!(fault.at(), 9);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filtered_group_is_done_with_everything() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, partitions(2)).await?;
    let producer = client.producer(TOPIC).digest(["region"]).build().await?;
    let published = ONE_IN * 8;
    for number in 0..published {
        producer.send(order(number)).await?.await?;
    }
    let group = || client.group("eu").topics([TOPIC]).filter(EU);
    let mut consumer = group().build().await?;
    let mut seen = BTreeSet::new();
    while seen.len() < wanted(published).len() {
        let record = within(LIMIT, "a record", async { consumer.next().await?.context("the end") }).await?;
        seen.insert(std::str::from_utf8(record.value())?.parse::<u64>()?);
        record.ack()?;
    }
    assert_eq!(seen, wanted(published));
    // Lag is nothing: what the filter left out is done. The consumer must be asked for more to know.
    within(LIMIT, "the group at the end", async {
        let mut done = 0;
        while done < published {
            ensure!(consumer.try_next()?.is_none(), "more than was wanted");
            let group = client.admin().describe_group("eu").await?;
            let committed = group.partitions.iter().filter_map(|partition| partition.committed.as_ref());
            done = committed.map(|committed| committed.offset).sum();
        }
        ensure!(done == published, "committed {done} of {published}");
        Ok(())
    })
    .await?;
    consumer.close().await?;
    let mut heir = group().build().await?;
    producer.send(order(published)).await?.await?;
    let record = within(LIMIT, "the next record", async { heir.next().await?.context("the end") }).await?;
    assert_eq!(record.value().as_ref(), published.to_string().as_bytes());
    record.ack()?;
    heir.close().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_serves_what_the_leader_would() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, partitions(1)).await?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let publishing = publish(&client, stopped);
    let mut consumers = Vec::new();
    for _ in 0..6 {
        consumers.push(client.consumer(TOPIC).read_from(ReadFrom::Any).build().await?);
    }
    for consumer in &mut consumers {
        read_numbers(consumer, 50).await?;
    }
    // Some of them read from this one, and from the next: each goes on elsewhere.
    for victim in [1, 2] {
        cluster.kill(victim).await?;
        for consumer in &mut consumers {
            read_numbers(consumer, 50).await?;
        }
        cluster.restart(victim).await?;
        cluster.in_sync(&client, TOPIC).await?;
    }
    stop.send(true)?;
    let published = publishing.await??;
    for consumer in &mut consumers {
        let rest = published - 150;
        let last = read_numbers(consumer, rest as usize).await?.pop_last();
        assert_eq!(last, Some(published - 1));
        ensure!(consumer.try_next()?.is_none(), "more than was published");
    }
    let mut beyond = client.consumer(TOPIC).read_from(ReadFrom::Any).from(StartAt::Offset(published + 1_000));
    beyond = beyond.on_loss(busbar_client::OnLoss::Fail);
    let mut beyond = beyond.build().await?;
    let refused = within(LIMIT, "a refusal", async { Ok(beyond.next().await) }).await?;
    let error = refused.map(drop).err().context("an offset that does not exist was read")?;
    let busbar_client::ConsumeError::Refused { refusal, .. } = &error else { anyhow::bail!("{error}") };
    assert_eq!(refusal.reason, Reason::OffsetOutOfRange);
    cluster.finish().await
}
