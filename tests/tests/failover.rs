//! Nodes die, freeze and come back while records are published; afterwards everything acknowledged is read, once, where
//! it was acknowledged, in order, and all replicas hold the same bytes. Pauses are printed, never judged: a deadline
//! only ends what would never end.

use std::time::Duration;

use anyhow::{Context, ensure};
use busbar_client::{Client, TopicOptions};
use busbar_tests::{
    process::ProcessCluster,
    verify::{Published, Tally, verify},
    wire,
    workload::{Load, LoadOptions, read_everything},
};

const TOPIC: &str = "orders";
/// Within this, writes must have resumed; in ordinary runs it takes a second or two.
const RESUME_LIMIT: Duration = Duration::from_secs(30);
/// Acknowledgements for each publisher that show that all is well.
const STEADY: u64 = 200;

async fn three_nodes(partitions: u32) -> anyhow::Result<(ProcessCluster, Client)> {
    let cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions { partitions, ..TopicOptions::default() }).await?;
    Ok((cluster, client))
}

/// The end of each scenario: everything is read and checked, replica by replica.
async fn check(cluster: ProcessCluster, client: &Client, mut published: Vec<Published>) -> anyhow::Result<Tally> {
    let read = read_everything(client, TOPIC, &mut published).await?;
    let tally = verify(&published, &read).map_err(|anomalies| {
        let shown: Vec<String> = anomalies.iter().take(20).map(ToString::to_string).collect();
        anyhow::anyhow!("{} anomalies in {} records:\n{}", anomalies.len(), read.len(), shown.join("\n"))
    })?;
    eprintln!("{tally:?}");
    ensure!(tally.acknowledged > 0 && tally.rejected == 0, "{tally:?}");
    same_bytes_everywhere(&cluster, client).await?;
    cluster.finish().await?;
    Ok(tally)
}

async fn same_bytes_everywhere(cluster: &ProcessCluster, client: &Client) -> anyhow::Result<()> {
    cluster.caught_up(client, TOPIC).await?;
    let described = client.admin().describe_topic(TOPIC).await?;
    for state in described.partitions {
        let (partition, end) = (state.partition, state.high_watermark);
        let mut first = None;
        for node in state.replicas {
            let address = &cluster.node(node)?.address;
            let reading = wire::replica_bytes(address, &described.id, partition, end);
            let bytes = reading.await.with_context(|| format!("partition {partition} on node {node}"))?;
            let first = first.get_or_insert_with(|| bytes.clone());
            ensure!(*first == bytes, "partition {partition} has other bytes on node {node} than on the first replica");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_leaders_lose_nothing() -> anyhow::Result<()> {
    let (mut cluster, client) = three_nodes(2).await?;
    let mut load = Load::start(&client, TOPIC, LoadOptions { producers: 3, ..LoadOptions::default() }).await?;
    for round in 0..4 {
        load.acknowledged(STEADY, RESUME_LIMIT).await?;
        let leader = cluster.leader_of(&client, TOPIC, round % 2).await?;
        cluster.kill(leader).await?;
        // More than can have been under way at the moment of the kill.
        let pause = load.acknowledged(STEADY, RESUME_LIMIT).await?;
        eprintln!("killed node {leader}: {STEADY} more acknowledgements for each publisher after {pause:?}");
        cluster.restart(leader).await?;
        cluster.in_sync(&client, TOPIC).await?;
    }
    let published = load.stop().await?;
    check(cluster, &client, published).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_at_once_keep_what_was_acknowledged() -> anyhow::Result<()> {
    let (mut cluster, client) = three_nodes(3).await?;
    let mut load = Load::start(&client, TOPIC, LoadOptions::default()).await?;
    for _ in 0..2 {
        load.acknowledged(STEADY, RESUME_LIMIT).await?;
        cluster.kill_all().await?;
        cluster.restart_all().await?;
        let pause = load.acknowledged(STEADY, RESUME_LIMIT).await?;
        eprintln!("killed all and started them again: writes resumed {pause:?} after the nodes were ready");
    }
    let published = load.stop().await?;
    check(cluster, &client, published).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_does_no_harm_when_it_thaws() -> anyhow::Result<()> {
    let (cluster, client) = three_nodes(1).await?;
    let mut load = Load::start(&client, TOPIC, LoadOptions::default()).await?;
    load.acknowledged(STEADY, RESUME_LIMIT).await?;
    for _ in 0..2 {
        let frozen = cluster.leader_of(&client, TOPIC, 0).await?;
        cluster.pause(frozen)?;
        // Resumed elsewhere: by then another node leads, and the frozen one does not know.
        let pause = load.acknowledged(STEADY, RESUME_LIMIT).await?;
        eprintln!("froze node {frozen}: {STEADY} more acknowledgements for each publisher after {pause:?}");
        let leader = cluster.leader_of(&client, TOPIC, 0).await?;
        ensure!(leader != frozen, "the frozen node {frozen} still leads");
        cluster.resume(frozen)?;
        load.acknowledged(STEADY, RESUME_LIMIT).await?;
        cluster.in_sync(&client, TOPIC).await?;
    }
    let published = load.stop().await?;
    check(cluster, &client, published).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_goes_unnoticed() -> anyhow::Result<()> {
    let (mut cluster, client) = three_nodes(3).await?;
    let mut load = Load::start(&client, TOPIC, LoadOptions::default()).await?;
    for node in cluster.ids() {
        load.acknowledged(STEADY, RESUME_LIMIT).await?;
        let status = cluster.stop(node).await?;
        ensure!(status.success(), "node {node} ended with {status}");
        let pause = load.acknowledged(STEADY, RESUME_LIMIT).await?;
        eprintln!("stopped node {node}: {STEADY} more acknowledgements for each publisher after {pause:?}");
        cluster.restart(node).await?;
        cluster.in_sync(&client, TOPIC).await?;
    }
    let published = load.stop().await?;
    let tally = check(cluster, &client, published).await?;
    ensure!(tally.unknown == 0, "a restart in order leaves nobody in doubt: {tally:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_accepts_nothing_and_a_majority_goes_on() -> anyhow::Result<()> {
    let (mut cluster, client) = three_nodes(1).await?;
    let mut load = Load::start(&client, TOPIC, LoadOptions::default()).await?;
    load.acknowledged(STEADY, RESUME_LIMIT).await?;
    let leader = cluster.leader_of(&client, TOPIC, 0).await?;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for other in &others {
        cluster.kill(*other).await?;
    }
    // One node of three: answers that were under way may still come, then nothing may be acknowledged.
    let alone = load.acknowledged(10 * STEADY, Duration::from_secs(6)).await;
    ensure!(alone.is_err(), "a single node of three acknowledged {} records", 10 * STEADY);
    cluster.restart(others[0]).await?;
    let pause = load.acknowledged(STEADY, RESUME_LIMIT).await?;
    eprintln!("with a majority again: {STEADY} more acknowledgements for each publisher after {pause:?}");
    cluster.restart(others[1]).await?;
    let published = load.stop().await?;
    check(cluster, &client, published).await.map(drop)
}
