//! Compaction with real nodes: a topic of many updates shrinks to about its keys on every replica, whoever is killed
//! amid it; whoever reads it from the start, anywhere, ends with the newest value of each key; deleted keys vanish from
//! the disk of every replica and never come back; a replica that comes later has the same.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use busbar_client::{Cleanup, Client, ConsumedRecord, ReadFrom, Record, SendError, StartAt, TopicOptions};
use busbar_proto::{
    batch,
    compaction::KeyDigestBuilder,
    v1::{self, publish_response::Outcome},
};
use busbar_tests::{
    process::{ProcessCluster, partition_state},
    wait::{eventually, within},
    wire,
};
use bytes::Bytes;
use rand::Rng as _;

const TOPIC: &str = "states";
const GROUP: &str = "readers";
const LIMIT: Duration = Duration::from_secs(120);
const VALUE_BYTES: usize = 8 << 10;
/// Updated all the time.
const LIVE: u32 = 64;
/// Written, and later deleted.
const GONE: u32 = 40;
/// What is published in one go.
const ROUND_BYTES: usize = 8 << 20;

const SETTINGS: &[(&str, &str)] = &[
    ("log.segment_bytes", "1MiB"),
    ("compaction.check_interval_ms", "200"),
    ("compaction.delete_retention_ms", "1000"),
    ("compaction.dirty_percent", "30"),
    ("compaction.memory_bytes", "1MiB"),
];

type Table = BTreeMap<String, String>;

/// What the topic should say.
struct States {
    client: Client,
    filler: Vec<u8>,
    number: u64,
    table: Table,
    sent_bytes: usize,
}

impl States {
    fn new(client: &Client) -> Self {
        let mut filler = vec![0; VALUE_BYTES];
        rand::rng().fill_bytes(&mut filler);
        Self { client: client.clone(), filler, number: 0, table: Table::new(), sent_bytes: 0 }
    }

    fn update(&mut self, key: String) -> Record {
        self.number += 1;
        let number = self.number.to_string();
        let value = [number.as_bytes(), b" ", &self.filler].concat();
        self.table.insert(key.clone(), number);
        Record::new(value).key(key)
    }

    /// Updates of live keys, drawn at random, with others among them.
    async fn publish(&mut self, others: Vec<Record>) -> anyhow::Result<()> {
        let producer = self.client.producer(TOPIC).build().await?;
        let mut others = others.into_iter();
        let mut sent = Vec::new();
        for _ in 0..ROUND_BYTES / VALUE_BYTES {
            let key = format!("live-{}", rand::random_range(0..LIVE));
            let record = self.update(key);
            sent.push(producer.send(record).await?);
            if let Some(other) = others.next() {
                sent.push(producer.send(other).await?);
            }
        }
        for delivery in sent {
            delivery.await?;
        }
        self.sent_bytes += ROUND_BYTES;
        Ok(producer.close().await?)
    }

    async fn end(&self) -> anyhow::Result<u64> {
        Ok(partition_state(&self.client, TOPIC, 0).await?.high_watermark)
    }
}

fn set(table: &mut Table, key: Option<&[u8]>, value: Option<&[u8]>) -> anyhow::Result<()> {
    let key = String::from_utf8(key.context("a record without a key")?.to_vec())?;
    match value {
        Some(value) => {
            let number = value.split(|&byte| byte == b' ').next().unwrap_or_default();
            table.insert(key, String::from_utf8(number.to_vec())?);
        }
        None => drop(table.remove(&key)),
    }
    Ok(())
}

fn note(table: &mut Table, record: &ConsumedRecord) -> anyhow::Result<()> {
    set(table, record.key().map(AsRef::as_ref), (!record.is_null()).then(|| record.value().as_ref()))
}

/// What a consumer from the start, or from anywhere in what is left, ends with.
async fn read(states: &States, from: ReadFrom, at: StartAt) -> anyhow::Result<(Table, u64)> {
    let end = states.end().await?;
    let mut consumer = states.client.consumer(TOPIC).read_from(from).from(at).build().await?;
    let (mut table, mut records) = (Table::new(), 0);
    within(LIMIT, "everything that is left", async {
        loop {
            let record = consumer.next().await?.context("the consumer has ended")?;
            note(&mut table, &record)?;
            records += 1;
            if record.offset() + 1 >= end {
                return Ok(());
            }
        }
    })
    .await?;
    ensure!(consumer.skipped() == 0, "nothing is lost: what is left out is superseded");
    Ok((table, records))
}

/// The segment files of a node.
fn segments(cluster: &ProcessCluster, node: u64) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let groups = cluster.node(node)?.data().join("log").join("groups");
    let mut found = Vec::new();
    let mut folders = vec![groups];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)?.flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => folders.push(path),
                // Files come and go while we look.
                false => found.push((path, entry.metadata().map_or(0, |meta| meta.len()))),
            }
        }
    }
    Ok(found)
}

fn has_suffix(path: &Path, suffix: &str) -> bool {
    path.to_string_lossy().ends_with(suffix)
}

fn segment_bytes(cluster: &ProcessCluster, node: u64) -> anyhow::Result<u64> {
    let logs = segments(cluster, node)?.into_iter().filter(|(path, _)| has_suffix(path, ".log"));
    Ok(logs.map(|(_, bytes)| bytes).sum())
}

/// Kills a follower while it writes a new segment, and starts it again.
async fn kill_amid_cleaning(cluster: &mut ProcessCluster, client: &Client) -> anyhow::Result<u64> {
    let leader = cluster.leader_of(client, TOPIC, 0).await?;
    let victim = (1..=3).find(|node| *node != leader).context("no follower")?;
    let at_work = within(LIMIT, "a cleaning to begin", async {
        while !segments(cluster, victim)?.iter().any(|(path, _)| has_suffix(path, ".log.new")) {
            tokio::task::yield_now().await;
        }
        Ok(())
    });
    at_work.await?;
    cluster.kill(victim).await?;
    cluster.restart(victim).await?;
    cluster.in_sync(client, TOPIC).await?;
    Ok(victim)
}

/// Until so much is left on each node at most, and no record of a deleted key.
async fn shrunk(cluster: &ProcessCluster, states: &States, nodes: &[u64], most: u64) -> anyhow::Result<()> {
    eventually(LIMIT, "every replica has shrunk", || async {
        for &node in nodes {
            let bytes = segment_bytes(cluster, node)?;
            ensure!(bytes < most, "node {node} holds {} KiB of {} KiB", bytes >> 10, states.sent_bytes >> 10);
        }
        Ok(())
    })
    .await
}

/// The records that a node holds, and what they say.
async fn held(cluster: &ProcessCluster, states: &States, node: u64) -> anyhow::Result<(Table, Vec<String>)> {
    let id = wire::topic_id(&states.client, TOPIC).await?;
    let stored = wire::replica_bytes(&cluster.node(node)?.address, &id, 0, states.end().await?).await?;
    let (mut table, mut keys) = (Table::new(), Vec::new());
    for one in batch::split(stored) {
        let (_, bytes) = one.map_err(|fault| anyhow::anyhow!("{fault}"))?;
        for record in batch::records(bytes)? {
            let record = record?;
            set(&mut table, record.key.as_deref(), record.value.as_deref())?;
            keys.push(String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned());
        }
    }
    Ok((table, keys))
}

async fn deleted_keys_vanish(cluster: &ProcessCluster, states: &mut States, nodes: &[u64]) -> anyhow::Result<()> {
    for round in 0..60 {
        let mut left = 0;
        for &node in nodes {
            let (table, keys) = held(cluster, states, node).await?;
            ensure!(table == states.table, "node {node} says something else");
            left += keys.iter().filter(|key| key.starts_with("gone-")).count();
        }
        eprintln!("round {round}: {left} records of deleted keys are left");
        if left == 0 {
            return Ok(());
        }
        // A tombstone goes once its segment is closed, all replicas have told, and the time is over: there is nothing to wait
        // for but that, and more must be published for the segment to close. Not so often that retiring falls behind.
        states.publish(Vec::new()).await?;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
    }
    anyhow::bail!("records of deleted keys are left")
}

/// A group reads it all; what was left out is done, too.
async fn a_group_is_at_the_end(states: &States) -> anyhow::Result<()> {
    let end = states.end().await?;
    let mut consumer = states.client.group(GROUP).topics([TOPIC]).build().await?;
    let mut table = Table::new();
    within(LIMIT, "the group at the end", async {
        loop {
            let Some(record) = consumer.next().await? else { anyhow::bail!("the group has ended") };
            note(&mut table, &record)?;
            let offset = record.offset();
            record.ack()?;
            if offset + 1 >= end {
                return Ok(());
            }
        }
    })
    .await?;
    ensure!(table == states.table, "the group says something else");
    consumer.close().await?;
    let group = states.client.admin().describe_group(GROUP).await?;
    let committed = group.partitions.iter().find_map(|partition| partition.committed.as_ref());
    assert_eq!(committed.map(|committed| committed.offset), Some(end), "there is no lag");
    Ok(())
}

/// What a producer that knows nothing of compaction would send, and one that says something wrong.
async fn batches_without_keys_are_refused(cluster: &ProcessCluster, client: &Client) -> anyhow::Result<()> {
    let topic_id = wire::topic_id(client, TOPIC).await?;
    let mut one = KeyDigestBuilder::new();
    one.push(b"k", false);
    let mut two = one.clone();
    two.push(b"l", false);
    let (one, two) = (one.build(), two.build());
    for (keys, values, says) in [
        (Bytes::new(), &["v"][..], "each record needs a key"),
        (two.clone(), &["v"], "the keys of 2 were told"),
        (one.slice(..5), &["v"], "key digest"),
        (one, &["v"], ""),
        (two, &["v", "w"], ""),
    ] {
        let envelope = Some(v1::Envelope { keys, ..Default::default() });
        let (topic_id, batch) = (topic_id.clone(), wire::batch(values));
        let request = v1::PublishRequest { topic_id, batch, envelope, ..Default::default() };
        match wire::publish(&cluster.node(1)?.address, request).await? {
            Outcome::Acknowledged(_) => ensure!(says.is_empty(), "stored, though it should say {says:?}"),
            Outcome::Error(error) => {
                ensure!(error.reason == "INVALID_ARGUMENT" && !says.is_empty(), "{error:?}");
                ensure!(error.message.contains(says), "{error:?}");
            }
        }
    }
    let keyless = client.producer(TOPIC).build().await?.send("v").await.map(drop);
    ensure!(matches!(keyless, Err(SendError::KeyRequired { .. })), "{keyless:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_compacts_and_gives_up_what_is_old() -> anyhow::Result<()> {
    let settings = [SETTINGS, &[("retention.check_interval_ms", "200")]].concat();
    let cluster = ProcessCluster::start_with(1, &settings).await?;
    let client = cluster.client().await?;
    let options = TopicOptions {
        cleanup: Cleanup::Both,
        replicas: 1,
        retention_bytes: Some(70 << 20),
        ..TopicOptions::default()
    };
    client.admin().create_topic(TOPIC, options).await?;
    cluster.leader_of(&client, TOPIC, 0).await?;
    batches_without_keys_are_refused(&cluster, &client).await?;
    let mut states = States::new(&client);
    for _ in 0..20 {
        states.publish(Vec::new()).await?;
    }
    eventually(LIMIT, "old records go, and superseded ones", || async {
        let state = partition_state(&client, TOPIC, 0).await?;
        ensure!(state.log_start > 0, "{state:?}");
        ensure!(cluster.node(1)?.log().contains("compacted"), "nothing was compacted");
        Ok(())
    })
    .await?;
    // Retention goes on while it is read: then it is begun again.
    let table = eventually(LIMIT, "reading what is left", || async {
        let start = partition_state(&client, TOPIC, 0).await?.log_start;
        Ok(read(&states, ReadFrom::Leader, StartAt::Offset(start)).await?.0)
    });
    ensure!(table.await? == states.table, "all of the keys were updated lately");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_shrinks_to_its_keys_and_forgets_none() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start_with(3, SETTINGS).await?;
    let client = cluster.client().await?;
    let options = TopicOptions { cleanup: Cleanup::Compact, ..TopicOptions::default() };
    client.admin().create_topic(TOPIC, options).await?;
    let mut states = States::new(&client);
    let gone: Vec<Record> = (0..GONE).map(|key| states.update(format!("gone-{key}"))).collect();
    states.publish(gone).await?;
    states.publish(Vec::new()).await?;
    let tombstones = (0..GONE).map(|key| Record::tombstone(format!("gone-{key}"))).collect();
    (0..GONE).for_each(|key| drop(states.table.remove(&format!("gone-{key}"))));
    states.publish(tombstones).await?;
    // The journals are full, and what leaves them is cleaned.
    while states.sent_bytes < 9 * ROUND_BYTES {
        states.publish(Vec::new()).await?;
    }
    let publishing = tokio::spawn(async move {
        for _ in 0..3 {
            states.publish(Vec::new()).await?;
        }
        anyhow::Ok(states)
    });
    let victim = kill_amid_cleaning(&mut cluster, &client).await?;
    let mut states = publishing.await??;
    shrunk(&cluster, &states, &[1, 2, 3], 16 << 20).await?;
    for from in [ReadFrom::Leader, ReadFrom::Any] {
        let (table, records) = read(&states, from, StartAt::Earliest).await?;
        ensure!(table == states.table, "read from {from:?}");
        eprintln!("{records} of {} records are left, node {victim} was killed", states.end().await?);
        // In the midst of what is gone it goes on with what is left.
        let (table, _) = read(&states, from, StartAt::Offset(3)).await?;
        ensure!(table == states.table, "read from {from:?}, offset 3");
    }
    deleted_keys_vanish(&cluster, &mut states, &[1, 2, 3]).await?;
    a_group_is_at_the_end(&states).await?;

    let fourth = cluster.add_node().await?;
    let leader = cluster.leader_of(&client, TOPIC, 0).await?;
    let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    client.admin().move_partition(TOPIC, 0, vec![fourth, others[0], others[1]]).await?;
    eventually(LIMIT, "the partition has moved", || async {
        let state = partition_state(&client, TOPIC, 0).await?;
        ensure!(state.replicas.contains(&fourth) && state.moving_to.is_empty() && state.leader != 0, "{state:?}");
        Ok(())
    })
    .await?;
    cluster.in_sync(&client, TOPIC).await?;
    let nodes = [fourth, others[0], others[1]];
    for node in nodes {
        let (table, _) = held(&cluster, &states, node).await?;
        ensure!(table == states.table, "node {node} says something else");
    }
    deleted_keys_vanish(&cluster, &mut states, &nodes).await?;
    cluster.finish().await
}
