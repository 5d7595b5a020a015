//! The ordinary life of topics and records on three nodes: create, describe, publish in every form, read from every
//! place, delete.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use busbar_client::{
    Cleanup, Client, Compression, ConsumedRecord, Consumer, Durability, OnLoss, Reason, Record, StartAt, TopicOptions,
    partition_of_key, v1,
};
use busbar_tests::{
    process::{ProcessCluster, partition_state},
    verify::{Outcome, verify},
    wait::{eventually, within},
    workload::{publish_each, read_everything},
};

const LIMIT: Duration = Duration::from_secs(30);

async fn next(consumer: &mut Consumer) -> anyhow::Result<ConsumedRecord> {
    within(LIMIT, "the next record", async { consumer.next().await?.context("the consumer has ended") }).await
}

async fn take(consumer: &mut Consumer, count: usize) -> anyhow::Result<Vec<ConsumedRecord>> {
    let mut records = Vec::new();
    while records.len() < count {
        records.push(next(consumer).await?);
    }
    Ok(records)
}

fn partitions(count: u32) -> TopicOptions {
    TopicOptions { partitions: count, ..TopicOptions::default() }
}

async fn each_compression_arrives(client: &Client) -> anyhow::Result<()> {
    client.admin().create_topic("compressed", partitions(2)).await?;
    let mut published = Vec::new();
    for (number, compression) in [Compression::None, Compression::Lz4, Compression::Zstd].into_iter().enumerate() {
        let producer = client.producer("compressed").compression(compression).build().await?;
        // The value repeats itself, so that every codec has something to save.
        let records = (0..50).map(|n| match n % 3 {
            0 => Record::default(),
            1 => Record::default().key(format!("k{n}")),
            _ => Record::default().partition(n % 2).header("filler", vec![b'x'; 2_000]),
        });
        published.extend(publish_each(&producer, number as u32, records).await?);
        producer.close().await?;
    }
    let read = read_everything(client, "compressed", &mut published).await?;
    let tally = verify(&published, &read).map_err(|found| anyhow::anyhow!("{found:#?}"))?;
    assert_eq!((tally.acknowledged, tally.rejected, tally.unknown), (152, 0, 0));
    Ok(())
}

async fn a_record_comes_back_as_it_was(client: &Client) -> anyhow::Result<()> {
    client.admin().create_topic("forms", partitions(3)).await?;
    let producer = client.producer("forms").build().await?;
    let full = Record::new(vec![0, 159, 146, 150])
        .key("key")
        .header("name", "first")
        .header("name", vec![255, 0])
        .header("", "")
        .timestamp_ms(1_700_000_000_123);
    for record in [full.clone(), Record::new(""), Record::new("x").key("")] {
        let stored = producer.send(record.clone().partition(1)).await?.await?;
        let mut consumer =
            client.consumer("forms").partitions(vec![1]).from(StartAt::Offset(stored.offset)).build().await?;
        let read = next(&mut consumer).await?;
        assert_eq!((read.topic(), read.partition(), read.offset()), ("forms", 1, stored.offset));
        assert_eq!((read.key(), read.value()), (record.key.as_ref(), &record.value));
        let headers: Vec<_> = read.headers().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        assert_eq!(headers, record.headers);
        match record.timestamp_ms {
            Some(time) => assert_eq!(read.timestamp_ms(), time),
            None => assert!(read.timestamp_ms() > 1_700_000_000_123, "now, by the producer's clock"),
        }
    }
    for key in ["a", "b", "order-17", "größe"] {
        let stored = producer.send(Record::new("v").key(key.to_owned())).await?.await?;
        assert_eq!(stored.partition, partition_of_key(key.as_bytes(), 3).get(), "{key}");
    }
    producer.close().await?;
    Ok(())
}

async fn reading_begins_where_it_is_told(client: &Client) -> anyhow::Result<()> {
    client.admin().create_topic("places", partitions(1)).await?;
    let producer = client.producer("places").build().await?;
    for n in 0..10 {
        producer.send(Record::new(format!("{n}"))).await?.await?;
    }
    for (from, want) in [(StartAt::Earliest, 0), (StartAt::Offset(4), 4), (StartAt::Offset(9), 9)] {
        let mut consumer = client.consumer("places").from(from).build().await?;
        let read = take(&mut consumer, 10 - want).await?;
        let offsets: Vec<_> = read.iter().map(ConsumedRecord::offset).collect();
        assert_eq!(offsets, (want as u64..10).collect::<Vec<_>>(), "{from:?}");
        assert_eq!(consumer.positions(), BTreeMap::from([(0, 10)]));
        assert_eq!(consumer.try_next()?.map(|record| record.offset()), None);
    }
    // What is published after `Latest` is ready is read, and nothing else.
    let mut latest = client.consumer("places").from(StartAt::Latest).build().await?;
    let mut at_end = client.consumer("places").from(StartAt::Offset(10)).build().await?;
    producer.send(Record::new("10")).await?.await?;
    for consumer in [&mut latest, &mut at_end] {
        let read = next(consumer).await?;
        assert_eq!((read.offset(), read.value().as_ref()), (10, b"10".as_ref()));
    }
    let mut beyond = client.consumer("places").from(StartAt::Offset(1_000)).on_loss(OnLoss::Fail).build().await?;
    let refused = within(LIMIT, "a refusal", async { Ok(beyond.next().await) }).await?;
    let text = refused.map(drop).err().context("offset 1000 was read")?.to_string();
    assert!(text.contains("OFFSET_OUT_OF_RANGE") && text.contains("1000"), "{text}");
    producer.close().await?;
    Ok(())
}

async fn description_tells_all(cluster: &ProcessCluster, client: &Client) -> anyhow::Result<()> {
    let options = TopicOptions {
        partitions: 4,
        replicas: 2,
        durability: Durability::Replicated,
        retention_bytes: Some(1 << 30),
        retention_ms: Some(3_600_000),
        max_batch_bytes: Some(2 << 20),
        cleanup: Cleanup::Both,
    };
    let created = client.admin().create_topic("described", options).await?;
    let described = client.admin().describe_topic("described").await?;
    assert_eq!((described.name.as_str(), &described.id), ("described", &created.id));
    let config = described.config.context("no configuration")?;
    assert_eq!(Durability::of(&config), Durability::Replicated);
    assert_eq!((config.replicas, config.max_batch_bytes), (2, 2 << 20));
    assert_eq!((config.retention_bytes, config.retention_ms), (1 << 30, 3_600_000));
    assert_eq!(config.cleanup(), v1::Cleanup::Both);
    assert_eq!(described.partitions.iter().map(|state| state.partition).collect::<Vec<_>>(), [0, 1, 2, 3]);
    cluster.in_sync(client, "described").await?;
    let producer = client.producer("described").build().await?;
    let keyless = producer.send(Record::new("v").partition(2)).await.map(drop).err().context("no key was asked for")?;
    assert!(keyless.to_string().contains("needs a key"), "{keyless}");
    let stored = producer.send(Record::new("v").key("k").partition(2)).await?.await?;
    assert_eq!(stored.offset, 0);
    for state in client.admin().describe_topic("described").await?.partitions {
        assert_eq!(state.replicas.len(), 2, "{state:?}");
        assert!(state.replicas.contains(&state.leader) && state.epoch > 0, "{state:?}");
        assert_eq!((state.log_start, state.high_watermark), (0, u64::from(state.partition == 2)), "{state:?}");
    }
    let status = client.admin().describe_cluster().await?;
    assert_eq!((status.cluster.as_str(), status.nodes.len()), ("test", 3));
    assert!(status.nodes.iter().all(|node| node.answered));
    producer.close().await?;
    Ok(())
}

async fn topics_come_and_go(client: &Client) -> anyhow::Result<()> {
    let admin = client.admin();
    let first = admin.create_topic("passing", partitions(1)).await?;
    // Closed, but kept: whoever still holds on to the old topic must not be in the way of its namesake.
    let old = client.producer("passing").build().await?;
    old.send(Record::new("old")).await?.await?;
    old.close().await?;
    assert!(admin.list_topics().await?.iter().any(|topic| topic.name == "passing"));
    admin.delete_topic("passing").await?;
    eventually(LIMIT, "the topic is gone on every node", || async {
        let gone = admin.describe_topic("passing").await.err().and_then(|error| error.reason());
        anyhow::ensure!(gone == Some(Reason::UnknownTopic), "{gone:?}");
        Ok(())
    })
    .await?;
    // A namesake is another topic: nothing of the old one is in it.
    let second = admin.create_topic("passing", partitions(1)).await?;
    assert_ne!(first.id, second.id);
    let producer = client.producer("passing").build().await?;
    assert_eq!(producer.send(Record::new("new")).await?.await?.offset, 0);
    producer.close().await?;
    let mut consumer = client.consumer("passing").build().await?;
    assert_eq!(next(&mut consumer).await?.value().as_ref(), b"new");
    drop(old);
    Ok(())
}

async fn two_topics_stay_apart(client: &Client) -> anyhow::Result<()> {
    for topic in ["left", "right"] {
        client.admin().create_topic(topic, partitions(2)).await?;
    }
    let left = client.producer("left").build().await?;
    let right = client.producer("right").build().await?;
    let records = || (0..40).map(|_| Record::default());
    let (of_left, of_right) = tokio::try_join!(publish_each(&left, 1, records()), publish_each(&right, 2, records()))?;
    for (topic, mut published) in [("left", of_left), ("right", of_right)] {
        let read = read_everything(client, topic, &mut published).await?;
        verify(&published, &read).map_err(|found| anyhow::anyhow!("{topic}: {found:#?}"))?;
        assert!(published.iter().all(|published| matches!(published.outcome, Outcome::Acknowledged(_))), "{topic}");
    }
    Ok(())
}

/// One cluster for all of it: each part has topics of its own.
#[tokio::test(flavor = "multi_thread")]
async fn the_ordinary_life_of_topics_and_records() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    each_compression_arrives(&client).await.context("compression")?;
    a_record_comes_back_as_it_was(&client).await.context("forms")?;
    reading_begins_where_it_is_told(&client).await.context("places")?;
    description_tells_all(&cluster, &client).await.context("description")?;
    topics_come_and_go(&client).await.context("topics")?;
    two_topics_stay_apart(&client).await.context("two topics")?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_one_serves_and_remembers() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start(1).await?;
    let client = cluster.client().await?;
    let alone = TopicOptions { replicas: 1, partitions: 3, ..TopicOptions::default() };
    client.admin().create_topic("solo", alone).await?;
    let producer = client.producer("solo").build().await?;
    let mut published = publish_each(&producer, 0, (0..100).map(|_| Record::default())).await?;
    producer.close().await?;
    assert!(cluster.stop(1).await?.success());
    cluster.restart(1).await?;
    let read = read_everything(&client, "solo", &mut published).await?;
    let tally = verify(&published, &read).map_err(|found| anyhow::anyhow!("{found:#?}"))?;
    assert_eq!(tally.acknowledged, 103);
    assert_eq!(partition_state(&client, "solo", 0).await?.leader, 1);
    cluster.finish().await
}
