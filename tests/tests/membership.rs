//! Nodes come and go while records are published: a fourth joins, takes over a partition, another is drained and removed
//! for good. Nothing is lost, and no id is used again.

use std::time::Duration;

use anyhow::{Context, ensure};
use busbar_client::{Client, Reason, TopicOptions};
use busbar_tests::{
    process::{ProcessCluster, partition_state},
    verify::verify,
    wait::eventually,
    workload::{Load, LoadOptions, read_everything},
};

const TOPIC: &str = "orders";
const LIMIT: Duration = Duration::from_secs(60);
const STEADY: u64 = 200;

async fn placed(client: &Client, partition: u32, want: &[u64]) -> anyhow::Result<()> {
    eventually(LIMIT, &format!("{TOPIC}/{partition} is on {want:?}"), || async {
        let state = partition_state(client, TOPIC, partition).await?;
        let mut replicas = state.replicas.clone();
        replicas.sort_unstable();
        ensure!(replicas == want && state.moving_to.is_empty() && want.contains(&state.leader), "{state:?}");
        Ok(())
    })
    .await
}

async fn drained(client: &Client, node: u64) -> anyhow::Result<()> {
    eventually(LIMIT, &format!("node {node} holds nothing"), || async {
        for state in client.admin().describe_topic(TOPIC).await?.partitions {
            let settled = state.moving_to.is_empty() && state.leader != 0;
            ensure!(settled && !state.replicas.contains(&node), "{state:?}");
        }
        Ok(())
    })
    .await
}

fn reason(outcome: Result<(), busbar_client::ClientError>) -> Option<Reason> {
    outcome.err().and_then(|error| error.reason())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_join_take_over_and_leave_under_load() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    let admin = client.admin();
    admin.create_topic(TOPIC, TopicOptions { partitions: 3, ..TopicOptions::default() }).await?;
    let mut load = Load::start(&client, TOPIC, LoadOptions::default()).await?;
    load.acknowledged(STEADY, LIMIT).await?;

    let fourth = cluster.add_node().await?;
    ensure!(fourth == 4, "the first node that joins is number 4, not {fourth}");
    let leader = cluster.leader_of(&client, TOPIC, 0).await?;
    // Away from its leader, which is the hard case.
    let mut target: Vec<u64> = (1..=4).filter(|node| *node != leader).collect();
    admin.move_partition(TOPIC, 0, target.clone()).await?;
    placed(&client, 0, &target).await?;
    load.acknowledged(STEADY, LIMIT).await?;
    // And back again, with the leader named first.
    target = vec![leader, 4, (1..4).find(|node| *node != leader).unwrap_or(1)];
    admin.move_partition(TOPIC, 0, target.clone()).await?;
    target.sort_unstable();
    placed(&client, 0, &target).await?;
    load.acknowledged(STEADY, LIMIT).await?;

    assert_eq!(reason(admin.remove_node(2).await), Some(Reason::FailedPrecondition), "it is not drained");
    admin.drain_node(2).await?;
    drained(&client, 2).await?;
    load.acknowledged(STEADY, LIMIT).await?;
    admin.remove_node(2).await?;
    // Its process is told, and ends by itself.
    let (status, log) = cluster.ends(2).await?;
    ensure!(!status.success() && log.contains("node 2 was removed from the cluster"), "{status}: {log}");
    load.acknowledged(STEADY, LIMIT).await?;

    // With its old folder it may not come back: what it holds and has voted for is of a past that nobody knows.
    let (status, log) = cluster.restart_in_vain(2).await?;
    ensure!(!status.success() && log.contains("node 2 was removed from the cluster"), "{status}: {log}");

    let fifth = cluster.add_node().await?;
    ensure!(fifth == 5, "node id 2 is gone for good, the next is 5, not {fifth}");
    assert_eq!(reason(admin.drain_node(2).await.map(drop)), Some(Reason::UnknownNode));

    let mut published = load.stop().await?;
    let read = read_everything(&client, TOPIC, &mut published).await?;
    let tally = verify(&published, &read)
        .map_err(|found| anyhow::anyhow!("{} anomalies: {:#?}", found.len(), found.first()))?;
    eprintln!("{tally:?}");
    ensure!(tally.rejected == 0, "{tally:?}");
    cluster.finish().await
}

/// Its old votes and acknowledgements are forgotten: as the same voter it could help to elect a leader that lacks what it
/// had acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_lost_its_data_is_refused_under_its_old_id() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions::default()).await?;
    let mut load = Load::start(&client, TOPIC, LoadOptions::default()).await?;
    load.acknowledged(STEADY, LIMIT).await?;
    for node in [2, 1] {
        cluster.kill(node).await?;
        let data = cluster.node(node)?.data();
        let aside = data.with_extension("aside");
        std::fs::rename(&data, &aside)?;
        let (status, log) = cluster.restart_in_vain(node).await?;
        ensure!(!status.success() && log.contains("its data folder is a new one"), "{status}: {log}");
        load.acknowledged(STEADY, LIMIT).await?;
        // With its own folder it is welcome.
        std::fs::remove_dir_all(&data)?;
        std::fs::rename(&aside, &data)?;
        cluster.restart(node).await?;
        cluster.in_sync(&client, TOPIC).await?;
    }
    let mut published = load.stop().await?;
    let read = read_everything(&client, TOPIC, &mut published).await?;
    verify(&published, &read).map_err(|found| anyhow::anyhow!("{} anomalies: {:#?}", found.len(), found.first()))?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_one_grows_and_the_founder_leaves() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start(1).await?;
    let client = cluster.client().await?;
    let admin = client.admin();
    admin.create_topic(TOPIC, TopicOptions { replicas: 1, partitions: 2, ..TopicOptions::default() }).await?;
    let mut load = Load::start(&client, TOPIC, LoadOptions::default()).await?;
    load.acknowledged(STEADY, LIMIT).await?;
    for want in 2..=4 {
        ensure!(cluster.add_node().await? == want, "nodes are numbered as they come");
    }
    for partition in 0..2 {
        admin.move_partition(TOPIC, partition, vec![2, 3, 4]).await?;
    }
    for partition in 0..2 {
        placed(&client, partition, &[2, 3, 4]).await.context("growing from one replica to three others")?;
    }
    load.acknowledged(STEADY, LIMIT).await?;
    admin.drain_node(1).await?;
    drained(&client, 1).await?;
    admin.remove_node(1).await?;
    // It voted on the catalog alone once: the cluster must be able to do without it.
    eventually(LIMIT, "another node leads the catalog", || async {
        let leader = Client::connect(cluster.node(2)?.address.clone()).await?.admin().describe_cluster().await?;
        ensure!(leader.catalog_leader > 1, "it is led by {}", leader.catalog_leader);
        Ok(())
    })
    .await?;
    cluster.kill(1).await?;
    load.acknowledged(STEADY, LIMIT).await?;
    admin
        .create_topic("afterwards", TopicOptions::default())
        .await
        .context("the catalog goes on without its founder")?;
    // None of those left is in anybody's configuration: they must find each other by what they have stored.
    cluster.kill_all().await?;
    cluster.restart_together(&[2, 3, 4]).await?;
    load.acknowledged(STEADY, LIMIT).await.context("after all were killed and started again")?;
    // Nor is the founder's new start without an end, which knows them only that way, too.
    let (status, log) = cluster.restart_in_vain(1).await?;
    ensure!(!status.success() && log.contains("node 1 was removed from the cluster"), "{status}: {log}");
    let mut published = load.stop().await?;
    let read = read_everything(&client, TOPIC, &mut published).await?;
    let tally = verify(&published, &read)
        .map_err(|found| anyhow::anyhow!("{} anomalies: {:#?}", found.len(), found.first()))?;
    ensure!(tally.rejected == 0, "{tally:?}");
    cluster.finish().await
}
