//! Old records go, as whole segments: the log start moves on every replica, the disk is given back, a restart remembers,
//! and a producer whose records are gone is still recognised.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use busbar_client::{Client, Compression, OnLoss, Record, StartAt, TopicOptions};
use busbar_tests::{
    process::{ProcessCluster, partition_state},
    verify::{Published, RecordId, verify_from},
    wait::{eventually, within},
    wire,
    workload::{mark_ends, outcome_of, read_until, value_of},
};
use rand::Rng as _;

const TOPIC: &str = "events";
const LIMIT: Duration = Duration::from_secs(60);
const RETAINED_BYTES: u64 = 4 << 20;
/// All journal files of the harness, which come on top of what is retained; the ring may borrow two more.
const JOURNAL_BYTES: u64 = 6 * (16 << 20);
/// How far the purge may lag behind the log start: checkpoints are half a segment of growth apart, or as far as one
/// apply goes, which on a busy machine is some megabytes, and one has to lie below it.
const CHECKPOINT_LAG_BYTES: u64 = 16 << 20;
/// RocksDB's files, indexes and a segment that is still being written.
const SLACK_BYTES: u64 = 24 << 20;
const VALUE_BYTES: usize = 16 << 10;

const SETTINGS: &[(&str, &str)] = &[("log.segment_bytes", "1MiB"), ("retention.check_interval_ms", "200")];

/// Publishes values of 16 KiB that don't compress, and notes each.
async fn fill(client: &Client, producer: u32, bytes: usize) -> anyhow::Result<Vec<Published>> {
    let publisher = client.producer(TOPIC).compression(Compression::None).build().await?;
    let mut filler = vec![0; VALUE_BYTES];
    rand::rng().fill_bytes(&mut filler);
    let mut sent = Vec::new();
    for number in 0..(bytes / VALUE_BYTES) as u64 {
        let id = RecordId { producer, number };
        let value = [value_of(id, 0).as_bytes(), b" ", &filler].concat();
        sent.push((id, publisher.send(Record::new(value)).await?));
    }
    let mut published = Vec::new();
    for (id, delivery) in sent {
        published.push(Published { id, outcome: outcome_of(delivery.await) });
    }
    publisher.close().await?;
    Ok(published)
}

async fn log_start_above(client: &Client, offset: u64) -> anyhow::Result<u64> {
    eventually(LIMIT, &format!("the log starts above {offset}"), || async {
        let state = partition_state(client, TOPIC, 0).await?;
        ensure!(state.log_start > offset, "{state:?}");
        Ok(state.log_start)
    })
    .await
}

/// Everything from the log start on is there, and nothing is missing in between. Reading begins again when retention
/// overtakes it.
async fn check(client: &Client, published: &mut Vec<Published>) -> anyhow::Result<u64> {
    let ends = mark_ends(client, TOPIC, published).await?;
    let read = eventually(LIMIT, "reading from the log start to the end", || {
        read_until(client, TOPIC, StartAt::Earliest, &ends)
    })
    .await?;
    let start = read.first().context("nothing is left")?.place.offset;
    let starts = BTreeMap::from([(0, start)]);
    verify_from(&starts, published, &read)
        .map_err(|found| anyhow::anyhow!("{} anomalies: {:#?}", found.len(), found.first()))?;
    let told = partition_state(client, TOPIC, 0).await?.log_start;
    ensure!(start <= told, "record {start} is the first, though the log starts at {told}");
    Ok(start)
}

async fn too_early_is_told(client: &Client) -> anyhow::Result<()> {
    let mut strict = client.consumer(TOPIC).from(StartAt::Offset(0)).on_loss(OnLoss::Fail).build().await?;
    let refused = within(LIMIT, "a refusal", async { Ok(strict.next().await) }).await?;
    let text = refused.map(drop).err().context("offset 0 was read")?.to_string();
    ensure!(text.contains("OFFSET_OUT_OF_RANGE"), "{text}");
    // The default goes on where the log starts, and counts.
    let mut lenient = client.consumer(TOPIC).from(StartAt::Offset(0)).build().await?;
    let record = within(LIMIT, "the first record left", async { Ok(lenient.next().await?) }).await?;
    let offset = record.context("the consumer has ended")?.offset();
    ensure!(offset > 0 && lenient.skipped() == offset, "skipped {}, not {offset}", lenient.skipped());
    Ok(())
}

async fn gives_disk_back(cluster: &ProcessCluster, id: u64) -> anyhow::Result<()> {
    let node = cluster.node(id)?;
    eventually(LIMIT, &format!("node {id} gives disk space back"), || async {
        let bytes = node.disk_bytes();
        let bound = RETAINED_BYTES + JOURNAL_BYTES + CHECKPOINT_LAG_BYTES + SLACK_BYTES;
        ensure!(bytes < bound, "{} MiB are taken", bytes >> 20);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn old_records_go_on_every_replica_and_a_restart_remembers() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start_with(3, SETTINGS).await?;
    let client = cluster.client().await?;
    let options = TopicOptions { retention_bytes: Some(RETAINED_BYTES), ..TopicOptions::default() };
    client.admin().create_topic(TOPIC, options).await?;
    let mut published = fill(&client, 0, 96 << 20).await?;
    let start = log_start_above(&client, 0).await?;
    eprintln!("96 MiB published: the log starts at {start} of {}", published.len());
    too_early_is_told(&client).await?;
    check(&client, &mut published).await?;
    // Together far more than the bound below.
    published.extend(fill(&client, 1, 96 << 20).await?);
    log_start_above(&client, start).await?;
    for id in cluster.ids() {
        gives_disk_back(&cluster, id).await?;
        let resident = cluster.node(id)?.resident_bytes()?;
        eprintln!("node {id}: {} MiB of disk, {} MiB of memory", cluster.node(id)?.disk_bytes() >> 20, resident >> 20);
    }
    let before = partition_state(&client, TOPIC, 0).await?.log_start;
    cluster.kill_all().await?;
    cluster.restart_all().await?;
    cluster.leader_of(&client, TOPIC, 0).await?;
    let after = check(&client, &mut published).await?;
    ensure!(after >= before, "the log start went back from {before} to {after}");
    too_early_is_told(&client).await?;
    cluster.finish().await
}

/// A follower that is there but never answers: openraft alone would keep everything for it, for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_follower_does_not_hold_retention_up() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start_with(3, SETTINGS).await?;
    let client = cluster.client().await?;
    let options = TopicOptions { retention_bytes: Some(RETAINED_BYTES), ..TopicOptions::default() };
    client.admin().create_topic(TOPIC, options).await?;
    let mut published = fill(&client, 0, 1 << 20).await?;
    cluster.in_sync(&client, TOPIC).await?;
    let leader = cluster.leader_of(&client, TOPIC, 0).await?;
    let frozen = cluster.ids().into_iter().find(|id| *id != leader).context("there is a follower")?;
    cluster.pause(frozen)?;
    published.extend(fill(&client, 1, 160 << 20).await?);
    gives_disk_back(&cluster, leader).await?;
    cluster.resume(frozen)?;
    // What it missed is gone: it gets the checkpoint at the log's start, and the log from there.
    cluster.in_sync(&client, TOPIC).await?;
    gives_disk_back(&cluster, frozen).await?;
    check(&client, &mut published).await?;
    cluster.finish().await
}

/// The log's start has moved, and the state that belongs to it is deleted with the state folder: another replica's
/// takes its place, and the replica counts again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_state_folder_costs_a_rebuild() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start_with(3, SETTINGS).await?;
    let client = cluster.client().await?;
    let options = TopicOptions { retention_bytes: Some(RETAINED_BYTES), ..TopicOptions::default() };
    client.admin().create_topic(TOPIC, options).await?;
    let mut published = fill(&client, 0, 160 << 20).await?;
    for id in cluster.ids() {
        gives_disk_back(&cluster, id).await?;
    }
    let leader = cluster.leader_of(&client, TOPIC, 0).await?;
    let broken = cluster.ids().into_iter().find(|id| *id != leader).context("there is a follower")?;
    cluster.kill(broken).await?;
    std::fs::remove_dir_all(cluster.node(broken)?.data().join("state"))?;
    cluster.restart(broken).await?;
    cluster.in_sync(&client, TOPIC).await?;
    // Without it there is no majority now.
    cluster.kill(leader).await?;
    cluster.leader_of(&client, TOPIC, 0).await?;
    published.extend(fill(&client, 1, 1 << 20).await?);
    check(&client, &mut published).await?;
    cluster.restart(leader).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_is_known_after_its_records_are_gone() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start_with(1, SETTINGS).await?;
    let client = cluster.client().await?;
    let options = TopicOptions { replicas: 1, retention_bytes: Some(RETAINED_BYTES), ..TopicOptions::default() };
    client.admin().create_topic(TOPIC, options).await?;
    let (address, topic_id) = (cluster.node(1)?.address.clone(), wire::topic_id(&client, TOPIC).await?);
    let allocated =
        wire::connect(&address).await?.allocate_producer(busbar_proto::v1::AllocateProducerRequest::default()).await?;
    let producer = allocated.into_inner().producer_id;
    let store = |sequence| {
        let batch = wire::batch_from(producer, sequence, &["a", "b"]);
        let (address, topic_id) = (address.clone(), topic_id.clone());
        async move { wire::store(&address, &topic_id, 0, batch).await }
    };
    ensure!(store(0).await? == (0, false), "the first batch");
    ensure!(store(2).await? == (2, false), "the second batch");
    fill(&client, 1, 96 << 20).await?;
    log_start_above(&client, 4).await?;
    ensure!(store(2).await? == (2, true), "a batch that is gone is still a duplicate, with its offset");
    cluster.kill(1).await?;
    cluster.restart(1).await?;
    cluster.leader_of(&client, TOPIC, 0).await?;
    ensure!(store(2).await? == (2, true), "the same after a crash");
    ensure!(store(0).await? == (0, true), "and the one before");
    let gap = store(6).await.map(drop).err().context("a gap was accepted")?.to_string();
    ensure!(gap.contains("SEQUENCE_GAP"), "{gap}");
    let end = partition_state(&client, TOPIC, 0).await?.high_watermark;
    ensure!(store(4).await? == (end, false), "the next batch goes to the end");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_too_old_go_and_young_ones_stay() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start_with(1, SETTINGS).await?;
    let client = cluster.client().await?;
    let hour = TopicOptions { replicas: 1, retention_ms: Some(3_600_000), ..TopicOptions::default() };
    let moment = TopicOptions { retention_ms: Some(100), ..hour };
    for (topic, options) in [("young", hour), (TOPIC, moment)] {
        client.admin().create_topic(topic, options).await?;
    }
    let publisher = client.producer("young").build().await?;
    let mut deliveries = Vec::new();
    for _ in 0..1_000 {
        deliveries.push(publisher.send(Record::new(vec![b'x'; VALUE_BYTES])).await?);
    }
    for delivery in deliveries {
        delivery.await?;
    }
    // Both topics' records are pushed out of the journal by what follows.
    let mut published = fill(&client, 0, 96 << 20).await?;
    log_start_above(&client, 0).await?;
    check(&client, &mut published).await?;
    ensure!(partition_state(&client, "young", 0).await?.log_start == 0, "records of an hour's retention went");
    publisher.close().await?;
    cluster.finish().await
}
