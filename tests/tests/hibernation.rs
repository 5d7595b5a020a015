//! Partitions in which nothing happens sleep. They wake for a record, and when the node of their leader is lost; nobody
//! else's leadership moves meanwhile.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use busbar_client::{Client, Record, StartAt, TopicOptions};
use busbar_proto::v1::PartitionState;
use busbar_tests::{process::ProcessCluster, wait::eventually};

const TOPIC: &str = "quiet";
const PARTITIONS: u32 = 9;
const LIMIT: Duration = Duration::from_secs(30);

async fn sleepers() -> anyhow::Result<(ProcessCluster, Client)> {
    let cluster = ProcessCluster::start_with(3, &[("raft.hibernate_after_ms", "300ms")]).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions { partitions: PARTITIONS, ..TopicOptions::default() }).await?;
    asleep(&client).await?;
    Ok((cluster, client))
}

async fn partitions(client: &Client) -> anyhow::Result<Vec<PartitionState>> {
    Ok(client.admin().describe_topic(TOPIC).await?.partitions)
}

/// Waits until every partition is led, whole and asleep.
async fn asleep(client: &Client) -> anyhow::Result<Vec<PartitionState>> {
    let all_sleep = || async {
        let states = partitions(client).await?;
        let sleeps = |state: &PartitionState| state.asleep && state.leader > 0 && state.in_sync.len() == 3;
        let awake: Vec<_> = states.iter().filter(|state| !sleeps(state)).collect();
        ensure!(awake.is_empty(), "not asleep, or not whole: {awake:?}");
        Ok(states)
    };
    eventually(LIMIT, "all partitions sleep", all_sleep).await
}

/// Leader and epoch of each partition.
fn reigns(states: &[PartitionState]) -> BTreeMap<u32, (u64, u64)> {
    states.iter().map(|state| (state.partition, (state.leader, state.epoch))).collect()
}

/// One record to each of these partitions; how many were sent again.
async fn publish(client: &Client, to: impl IntoIterator<Item = u32>) -> anyhow::Result<u64> {
    let producer = client.producer(TOPIC).build().await?;
    for partition in to {
        let delivery = producer.send(Record::new("knock").partition(partition)).await?;
        delivery.await.with_context(|| format!("partition {partition}"))?;
    }
    let retries = producer.stats().retries;
    producer.close().await?;
    Ok(retries)
}

/// Every partition holds so many records.
async fn check(cluster: ProcessCluster, client: &Client, each: u64) -> anyhow::Result<()> {
    for state in partitions(client).await? {
        let (partition, stored) = (state.partition, state.high_watermark);
        ensure!(stored == each, "partition {partition} has {stored} records and not {each}");
    }
    let mut consumer = client.consumer(TOPIC).from(StartAt::Earliest).build().await?;
    for _ in 0..each * u64::from(PARTITIONS) {
        let next = tokio::time::timeout(LIMIT, consumer.next()).await.context("a record is missing")??;
        ensure!(next.is_some_and(|record| record.value() == "knock"), "another record");
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_wakes_its_partition_and_no_other_and_is_refused_by_none() -> anyhow::Result<()> {
    let (cluster, client) = sleepers().await?;
    let before = reigns(&partitions(&client).await?);
    ensure!(publish(&client, 0..3).await? == 0, "a record had to be sent again");
    let states = partitions(&client).await?;
    let others_sleep = states.iter().filter(|state| state.partition >= 3).all(|state| state.asleep);
    ensure!(others_sleep, "others woke, too: {states:?}");
    ensure!(publish(&client, 3..PARTITIONS).await? == 0, "a record had to be sent again");
    ensure!(reigns(&asleep(&client).await?) == before, "waking is no reason for an election");
    check(cluster, &client, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sleeping_partitions_of_a_killed_node_get_leaders_and_the_others_keep_theirs() -> anyhow::Result<()> {
    let (mut cluster, client) = sleepers().await?;
    let before = reigns(&partitions(&client).await?);
    let lost = before[&0].0;
    cluster.kill(lost).await?;
    // Publishing finds whoever follows.
    publish(&client, 0..PARTITIONS).await?;
    let meanwhile = reigns(&partitions(&client).await?);
    for (partition, (leader, epoch)) in &before {
        let (now, epoch_now) = meanwhile[partition];
        let kept = *leader != lost && (now, epoch_now) == (*leader, *epoch);
        let followed = *leader == lost && now != lost && epoch_now > *epoch;
        ensure!(kept || followed, "partition {partition}: {leader} led in {epoch}, now {now} in {epoch_now}");
    }
    cluster.restart(lost).await?;
    // The node that came back gets its partitions again, one after the other.
    let after = reigns(&asleep(&client).await?);
    for (partition, (leader, epoch)) in before.iter().filter(|(_, (leader, _))| *leader != lost) {
        ensure!(after[partition] == (*leader, *epoch), "partition {partition} moved: {:?}", after[partition]);
    }
    publish(&client, 0..PARTITIONS).await?;
    check(cluster, &client, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_nobody_has_missed_leaves_no_partition_without_a_leader() -> anyhow::Result<()> {
    let (mut cluster, client) = sleepers().await?;
    for node in cluster.ids() {
        cluster.kill(node).await?;
        // At once: the others may never have found it silent.
        cluster.restart(node).await?;
        publish(&client, 0..PARTITIONS).await?;
        asleep(&client).await?;
    }
    check(cluster, &client, 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_of_sleeping_partitions_is_followed_and_steps_down_when_it_thaws() -> anyhow::Result<()> {
    let (cluster, client) = sleepers().await?;
    let frozen = reigns(&partitions(&client).await?)[&0].0;
    cluster.pause(frozen)?;
    publish(&client, 0..PARTITIONS).await?;
    cluster.resume(frozen)?;
    publish(&client, 0..PARTITIONS).await?;
    asleep(&client).await?;
    check(cluster, &client, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_without_other_replicas_waits_for_nobody_when_it_wakes() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start_with(1, &[("raft.hibernate_after_ms", "300ms")]).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions { replicas: 1, ..TopicOptions::default() }).await?;
    let mut quickest = LIMIT;
    for _ in 0..3 {
        eventually(LIMIT, "it sleeps", || async {
            let states = partitions(&client).await?;
            ensure!(states.iter().all(|state| state.asleep), "{states:?}");
            Ok(())
        })
        .await?;
        let begun = tokio::time::Instant::now();
        publish(&client, [0]).await?;
        quickest = quickest.min(begun.elapsed());
    }
    // Waiting for a majority's word that never comes would take a second each time.
    ensure!(quickest < Duration::from_millis(900), "the quickest of three took {quickest:?}");
    cluster.finish().await
}
