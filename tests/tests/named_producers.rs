//! Producers with a name on a cluster of real processes: two instances of one name, a restart after a kill, leaders that
//! are killed in between. Nothing is stored twice by an application that asks where it was, and the older instance ends.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use busbar_client::{Client, DeliveryError, Producer, Record, SendError, StartAt, TopicOptions};
use busbar_proto::{Reason, Refusal, v1};
use busbar_tests::{
    cli::{command, end_of, run},
    process::ProcessCluster,
    wait::eventually,
    wire,
};
use tokio::io::AsyncWriteExt as _;

const TOPIC: &str = "orders";
const NAME: &str = "relay-1";
const LIMIT: Duration = Duration::from_secs(30);

async fn three_nodes(partitions: u32) -> anyhow::Result<(ProcessCluster, Client)> {
    let cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions { partitions, ..TopicOptions::default() }).await?;
    Ok((cluster, client))
}

async fn relay(client: &Client) -> anyhow::Result<Producer> {
    Ok(client.producer(TOPIC).name(NAME).batch_bytes(1024).build().await?)
}

/// Row `number` of an outbox, which lives in one partition.
fn row(number: u64, partition: u32) -> Record {
    Record::new(format!("row {number}")).partition(partition).header("row", number.to_string())
}

/// The rows that a partition holds.
async fn rows(client: &Client, partition: u32, from: u64, count: usize) -> anyhow::Result<Vec<u64>> {
    let mut consumer = client.consumer(TOPIC).partitions([partition]).from(StartAt::Offset(from)).build().await?;
    let mut rows = Vec::new();
    while rows.len() < count {
        let record = tokio::time::timeout(LIMIT, consumer.next()).await.context("no record in time")??;
        let record = record.context("the consumer ended")?;
        let row = record.header("row").context("a record without a row")?;
        rows.push(std::str::from_utf8(row)?.parse()?);
    }
    Ok(rows)
}

/// Where a relay that begins goes on: the row after the last one stored.
async fn next_row(client: &Client, relay: &Producer, partition: u32) -> anyhow::Result<u64> {
    let Some(last) = relay.last_stored(partition).await? else { return Ok(0) };
    Ok(rows(client, partition, last.offset, 1).await?[0] + 1)
}

async fn end(client: &Client, partition: u32) -> anyhow::Result<usize> {
    let described = client.admin().describe_topic(TOPIC).await?;
    let state = described.partitions.iter().find(|state| state.partition == partition).context("no such partition")?;
    Ok(state.high_watermark as usize)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_instance_ends_wherever_it_writes() -> anyhow::Result<()> {
    let (cluster, client) = three_nodes(3).await?;
    let older = relay(&client).await?;
    for partition in 0..3 {
        older.send(row(0, partition)).await?.await?;
    }
    let newer = relay(&client).await?;
    // It has written nowhere, nor asked anything: each leader refuses the older one once it has heard of the claim.
    for partition in 0..3 {
        let heard = eventually(LIMIT, "the older instance is fenced", || async {
            match older.send(row(1, partition)).await {
                Err(SendError::Fenced { refusal }) => Ok(refusal),
                Err(other) => Err(other.into()),
                Ok(delivery) => match delivery.await {
                    Err(DeliveryError::Fenced { refusal, .. }) => Ok(refusal),
                    other => anyhow::bail!("{other:?}"),
                },
            }
        });
        let refusal = heard.await?;
        ensure!(refusal.reason == Reason::ProducerFenced, "{refusal:?}");
    }
    for partition in 0..3 {
        newer.send(row(2, partition)).await?.await?;
    }
    older.close().await?;
    newer.close().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_killed_again_and_again_stores_each_row_once() -> anyhow::Result<()> {
    const ROWS: u64 = 3_000;
    let (mut cluster, client) = three_nodes(2).await?;
    let mut instances = Vec::new();
    for round in 0..6_u64 {
        // As after a crash: nothing is known but the outbox. The one before still lives, and still sends.
        let relay = relay(&client).await?;
        for partition in 0..2 {
            let next = next_row(&client, &relay, partition).await?;
            for number in next..(next + 600).min(ROWS) {
                drop(relay.send(row(number, partition)).await?);
            }
        }
        if round % 2 == 0 {
            let leader = cluster.leader_of(&client, TOPIC, (round / 2 % 2) as u32).await?;
            cluster.kill(leader).await?;
            relay.flush().await?;
            cluster.restart(leader).await?;
        }
        instances.push(relay);
    }
    let relay = relay(&client).await?;
    for partition in 0..2 {
        for number in next_row(&client, &relay, partition).await?..ROWS {
            drop(relay.send(row(number, partition)).await?);
        }
    }
    relay.flush().await?;
    for partition in 0..2 {
        let stored = end(&client, partition).await?;
        let rows = rows(&client, partition, 0, stored).await?;
        let wrong = rows.iter().zip(0..ROWS).find(|&(&row, number)| row != number);
        ensure!(rows.len() as u64 == ROWS && wrong.is_none(), "partition {partition}: {} rows, {wrong:?}", rows.len());
    }
    for former in instances {
        drop(former);
    }
    relay.close().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_outlives_its_leader() -> anyhow::Result<()> {
    let (mut cluster, client) = three_nodes(1).await?;
    let older = relay(&client).await?;
    older.send(row(0, 0)).await?.await?;
    let newer = relay(&client).await?;
    let last = newer.last_stored(0).await?.context("it wrote")?;
    ensure!((last.offset, last.epoch, last.sequence) == (0, 0, 0), "{last:?}");
    let leader = cluster.leader_of(&client, TOPIC, 0).await?;
    cluster.kill(leader).await?;
    let late = older.send(row(1, 0)).await?.await;
    ensure!(matches!(late, Err(DeliveryError::Fenced { .. })), "{late:?}");
    cluster.restart(leader).await?;
    newer.send(row(1, 0)).await?.await?;
    ensure!(rows(&client, 0, 0, 2).await? == [0, 1] && end(&client, 0).await? == 2);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(1).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions { partitions: 1, replicas: 1, ..TopicOptions::default() }).await?;
    let topic_id = client.admin().describe_topic(TOPIC).await?.id;
    let mut broker = wire::connect(&cluster.node(1)?.address).await?;
    let claim = |name: &str, instance, renews_epoch| v1::AllocateProducerRequest {
        producer_name: name.to_owned(),
        instance,
        renews_epoch,
    };
    for (request, want) in [
        (claim("no/name", 1, None), Reason::InvalidName),
        (claim(&"x".repeat(250), 1, None), Reason::InvalidName),
        (claim(NAME, 1, Some(-1)), Reason::InvalidArgument),
        (claim(NAME, 1, Some(40_000)), Reason::InvalidArgument),
        (claim(NAME, 1, Some(0)), Reason::ProducerFenced),
    ] {
        let status = broker.allocate_producer(request.clone()).await.err().context("it was accepted")?;
        let refusal = Refusal::from_status(&status).context("no reason")?;
        ensure!(refusal.reason == want, "{request:?}: {refusal:?}");
    }
    let first = broker.allocate_producer(claim(NAME, 7, None)).await?.into_inner();
    let again = broker.allocate_producer(claim(NAME, 7, None)).await?.into_inner();
    ensure!(first == again && first.producer_epoch == 0, "{first:?}, then {again:?}");
    let other = broker.allocate_producer(claim(NAME, 8, None)).await?.into_inner();
    ensure!((other.producer_id, other.producer_epoch) == (first.producer_id, 1), "{other:?}");
    let state = |partition, producer_id, producer_epoch| v1::ProducerStateRequest {
        topic_id: topic_id.clone(),
        partition,
        producer_id,
        producer_epoch,
    };
    for (request, want) in [
        (state(0, first.producer_id, 0), Reason::ProducerFenced),
        (state(0, first.producer_id, -1), Reason::InvalidArgument),
        (state(1, first.producer_id, 1), Reason::UnknownPartition),
        (state(0, first.producer_id + 1, 0), Reason::FailedPrecondition),
        (state(0, -1, 0), Reason::FailedPrecondition),
    ] {
        let status = broker.producer_state(request.clone()).await.err().context("it was accepted")?;
        let refusal = Refusal::from_status(&status).context("no reason")?;
        ensure!(refusal.reason == want, "{request:?}: {refusal:?}");
    }
    ensure!(broker.producer_state(state(0, first.producer_id, 1)).await?.into_inner().last.is_none());
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_command_line_the_older_instance_fails() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(1).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions { replicas: 1, ..TopicOptions::default() }).await?;
    let servers = cluster.servers();
    let arguments = ["pub", TOPIC, "--server", &servers, "--producer-name", NAME];
    let mut older = command(&arguments).stdin(Stdio::piped()).spawn()?;
    let mut lines = older.stdin.take().context("no stdin")?;
    lines.write_all(b"first\n").await?;
    let first_is_stored = async || {
        ensure!(end(&client, 0).await? == 1, "not yet");
        Ok(())
    };
    eventually(LIMIT, "the first record is stored", first_is_stored).await?;
    run(&[&arguments[..], &["second"]].concat()).await?.success()?;
    lines.write_all(b"third\n").await?;
    drop(lines);
    let ended = end_of(older, "pub of the older instance").await?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("1 failed"), "{ended:?}");
    ensure!(end(&client, 0).await? == 2, "the third record is not stored");
    let wrong = run(&["pub", TOPIC, "x", "--server", &servers, "--producer-name", "no name"]).await?;
    ensure!(wrong.code == Some(2) && wrong.stderr.contains("a producer's name"), "{wrong:?}");
    cluster.finish().await
}
