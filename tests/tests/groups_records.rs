//! What groups do with single records, with real nodes: duplicates are dropped across crashes of consumers and brokers,
//! records are delivered when they are due, and a commit of what nobody was given is refused.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use busbar_client::{Client, DeadLetter, Dedup, GroupBuilder, GroupConsumer, TopicOptions};
use busbar_proto::v1;
use busbar_tests::{
    cli::run,
    groups::{Member, connect, find, join},
    process::ProcessCluster,
    wait::{eventually, within},
    wire,
};
use bytes::Bytes;

const LIMIT: Duration = Duration::from_secs(60);
const TOPIC: &str = "orders";
const GROUP: &str = "billing";
const PARTITIONS: u32 = 3;
const EVENTS: u64 = 600;
const CHUNK: u64 = 20;

/// A relay without an identity of its own, which is never sure and sends everything again: each event is stored twice in
/// a row.
async fn relay(cluster: &ProcessCluster, client: &Client, topic_id: &Bytes) -> anyhow::Result<()> {
    for partition in 0..PARTITIONS {
        let ids: Vec<u64> = (0..EVENTS).filter(|id| id % u64::from(PARTITIONS) == u64::from(partition)).collect();
        for chunk in ids.chunks(CHUNK as usize) {
            for _ in 0..2 {
                // Leadership may be on its way back to a node that came up again.
                eventually(LIMIT, "events are stored", || async {
                    let leader = cluster.leader_of(client, TOPIC, partition).await?;
                    let address = &cluster.node(leader)?.address;
                    wire::store(address, topic_id, partition, wire::batch_of_events("/shop", chunk)).await
                })
                .await?;
            }
        }
    }
    Ok(())
}

fn member(client: &Client) -> GroupBuilder {
    client.group(GROUP).topics([TOPIC]).dead_letter(DeadLetter::Off).dedup(Dedup::by_event())
}

/// How often each event was acknowledged.
type Acks = BTreeMap<String, u32>;

/// Acknowledges one more record; `false` when none comes for a while.
async fn acknowledge(consumer: &mut GroupConsumer, acks: &mut Acks) -> anyhow::Result<bool> {
    let Ok(record) = tokio::time::timeout(Duration::from_millis(200), consumer.next()).await else { return Ok(false) };
    let record = record?.context("closed")?;
    let id = String::from_utf8_lossy(record.header("ce_id").context("no id")?).into_owned();
    record.ack()?;
    *acks.entry(id).or_default() += 1;
    Ok(true)
}

/// Records that are stored, and how many of them are committed.
async fn progress(cluster: &ProcessCluster) -> anyhow::Result<(u64, u64)> {
    let node = cluster.ids().into_iter().find(|id| cluster.node(*id).is_ok_and(|node| node.is_running()));
    let address = &cluster.node(node.context("no node runs")?)?.address;
    let request = v1::DescribeGroupRequest { group: GROUP.to_owned(), direct: false };
    let described = connect(address).await?.describe_group(request).await?.into_inner();
    ensure!(described.partitions.len() == PARTITIONS as usize, "{described:?}");
    let (mut stored, mut committed) = (0, 0);
    for partition in described.partitions {
        stored += partition.high_watermark.context("no leader")?;
        committed += partition.committed.map_or(0, |committed| committed.offset);
    }
    Ok((stored, committed))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_acknowledged_once_whatever_the_relay_repeats_and_whoever_crashes() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions { partitions: PARTITIONS, ..TopicOptions::default() }).await?;
    let topic_id = wire::topic_id(&client, TOPIC).await?;
    relay(&cluster, &client, &topic_id).await?;
    let mut acks = Acks::new();
    let mut first = member(&client).session_timeout(Duration::from_secs(2)).build().await?;
    while acks.len() < 250 {
        acknowledge(&mut first, &mut acks).await?;
    }
    first.commit().await?;
    let mut in_hand = Vec::new();
    for _ in 0..10 {
        in_hand.push(within(LIMIT, "a record in hand", async { first.next().await?.context("closed") }).await?);
    }
    let dropped_before = first.stats().duplicates;
    drop(first);
    ensure!(in_hand.into_iter().all(|record| record.ack().is_err()), "an acknowledgement counts after the end");

    let mut second = member(&client).build().await?;
    while acks.len() < 400 {
        acknowledge(&mut second, &mut acks).await?;
    }
    let coordinator = find(&cluster, GROUP).await?.leader;
    cluster.kill(coordinator).await?;
    while acks.len() < EVENTS as usize {
        acknowledge(&mut second, &mut acks).await?;
    }
    cluster.restart(coordinator).await?;
    cluster.in_sync(&client, TOPIC).await?;
    relay(&cluster, &client, &topic_id).await?;
    within(LIMIT, "everything is committed", async {
        loop {
            while acknowledge(&mut second, &mut acks).await? {}
            if matches!(progress(&cluster).await, Ok((stored, committed)) if stored == committed && stored == 4 * EVENTS) {
                return Ok(());
            }
        }
    })
    .await?;
    let stats = second.stats();
    eprintln!(
        "{} events, each stored 4 times: {dropped_before} dropped before the crash; after it {stats:?}",
        acks.len()
    );
    ensure!(stats.lost == 0, "a partition was lost: {stats:?}");
    let twice: Vec<_> = acks.iter().filter(|(_, times)| **times != 1).collect();
    ensure!(acks.len() == EVENTS as usize && twice.is_empty(), "acknowledged again: {twice:?}");
    within(LIMIT, "the end", async { Ok(second.close().await?) }).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_the_command_line_are_due_later_and_expire() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(1).await?;
    let servers = cluster.servers();
    let busbar = async |arguments: &[&str]| run(&[arguments, &["--server", &servers]].concat()).await;
    busbar(&["topic", "create", TOPIC, "--replicas", "1"]).await?.success()?;
    busbar(&["pub", TOPIC, "late", "--deliver-after", "2s", "--ttl", "1h"]).await?.success()?;
    busbar(&["pub", TOPIC, "over", "--ttl", "1ms"]).await?.success()?;
    busbar(&["pub", TOPIC, "plain"]).await?.success()?;
    let read = busbar(&["sub", TOPIC, "--group", GROUP, "-n", "2"]).await?.success()?;
    ensure!(read.stdout == "plain\nlate\n", "{read:?}");
    let read = busbar(&["sub", TOPIC, "--from", "earliest", "-n", "3", "-o", "json"]).await?.success()?.json_lines()?;
    let names = |record: &serde_json::Value| -> Vec<String> {
        let headers = record["headers"].as_array().cloned().unwrap_or_default();
        headers.iter().filter_map(|header| header["name"].as_str().map(str::to_owned)).collect()
    };
    let read: Vec<_> = read.iter().map(|record| (record["value"].clone(), names(record))).collect();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let want = [
        ("late".into(), names(&["busbar-deliver-at", "busbar-expires-at"])),
        ("over".into(), names(&["busbar-expires-at"])),
        ("plain".into(), names(&[])),
    ];
    ensure!(read == want, "a consumer without a group gets everything as it is stored: {read:?}");
    let wrong = busbar(&["pub", TOPIC, "x", "--deliver-after", "soon"]).await?;
    ensure!(wrong.code == Some(2) && wrong.stderr.contains("--deliver-after"), "{wrong:?}");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_what_nobody_was_given_is_refused() -> anyhow::Result<()> {
    // The coordinator leads the partition: it can know.
    let cluster = ProcessCluster::start(1).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions { replicas: 1, ..TopicOptions::default() }).await?;
    let topic_id = wire::topic_id(&client, TOPIC).await?;
    wire::store(&cluster.node(1)?.address, &topic_id, 0, wire::batch(&["value"; 20])).await?;
    let mut one = Member::join(&cluster, join(GROUP, &[TOPIC], "one")).await?;
    one.holds(1).await?;
    let claim = one.claims().pop().context("a claim")?;
    ensure!(one.commit(&claim, 12).await?.is_none());
    let refused = one.commit(&claim, 21).await?;
    ensure!(refused.as_deref() == Some("OFFSET_OUT_OF_RANGE"), "{refused:?}");
    let refused = one.commit(&claim, 11).await?;
    ensure!(refused.as_deref() == Some("OFFSET_OUT_OF_RANGE"), "a commit goes back: {refused:?}");
    ensure!(one.commit(&claim, 20).await?.is_none(), "up to the high watermark");
    eventually(LIMIT, "nothing but what was taken is on record", || async {
        let request = v1::DescribeGroupRequest { group: GROUP.to_owned(), direct: false };
        let described = connect(&cluster.node(1)?.address).await?.describe_group(request).await?.into_inner();
        let committed = described.partitions.iter().filter_map(|partition| partition.committed.as_ref()?.offset.into());
        ensure!(committed.collect::<Vec<u64>>() == [20], "{described:?}");
        Ok(())
    })
    .await?;
    cluster.finish().await
}
