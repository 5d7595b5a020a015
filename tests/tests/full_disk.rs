//! A disk that fills up: publishes are refused with a reason before it is full, everything acknowledged can still be
//! read, and deleting a topic is enough for writes to go on. The disk is the real one; what counts as full is set so that
//! little of it is needed.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use busbar_client::{Client, Compression, DeliveryError, Producer, Reason, Record, StartAt, TopicOptions};
use busbar_tests::{
    process::ProcessCluster,
    verify::{Outcome, Published, RecordId, verify_from},
    wait::eventually,
    workload::{outcome_of, read_until, value_of},
};
use rand::Rng as _;

const TOPIC: &str = "orders";
const LIMIT: Duration = Duration::from_secs(60);
/// What the nodes may write before the disk counts as full: their journals, and some records.
const ROOM_BYTES: u64 = 640 << 20;
const VALUE_BYTES: usize = 256 << 10;
/// A test that writes more than this has not been stopped.
const WRITTEN_MAX: u64 = 2 * ROOM_BYTES;
/// How long a producer tries: long enough for a busy machine, and it ends the wait for room.
const DELIVERY: Duration = Duration::from_secs(5);

/// The disk counts as full once `ROOM_BYTES` of what is free now are gone.
fn reserve() -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(std::env::temp_dir())?;
    let free = stat.f_bavail * stat.f_frsize;
    free.checked_sub(ROOM_BYTES).context("the disk is too full for this test")
}

async fn producer(client: &Client, topic: &str) -> anyhow::Result<Producer> {
    Ok(client.producer(topic).compression(Compression::None).delivery_timeout(DELIVERY).build().await?)
}

/// Publishes until a record is refused; everything that was sent, and the refusal.
async fn fill(client: &Client) -> anyhow::Result<(Vec<Published>, DeliveryError)> {
    let producer = producer(client, TOPIC).await?;
    let mut filler = vec![0; VALUE_BYTES];
    rand::rng().fill_bytes(&mut filler);
    let mut published = Vec::new();
    for number in 0..WRITTEN_MAX / VALUE_BYTES as u64 {
        let id = RecordId { producer: 0, number };
        let value = [value_of(id, 0).as_bytes(), b" ", &filler].concat();
        let delivered = producer.send(Record::new(value)).await?.await;
        let refused = delivered.as_ref().err().cloned();
        published.push(Published { id, outcome: outcome_of(delivered) });
        if let Some(refused) = refused {
            return Ok((published, refused));
        }
    }
    bail!("nothing was refused in {} MiB", WRITTEN_MAX >> 20)
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_are_refused_before_the_disk_is_full_and_reads_go_on() -> anyhow::Result<()> {
    let reserve = reserve()?.to_string();
    let settings = [("log.reserve_disk_bytes", reserve.as_str()), ("log.segment_bytes", "4MiB")];
    let mut cluster = ProcessCluster::start_with(3, &settings).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions::default()).await?;

    let (published, refused) = fill(&client).await?;
    let DeliveryError::Rejected { refusal, .. } = &refused else { bail!("it must be certain: {refused}") };
    ensure!(
        refusal.reason == Reason::DeadlineExceeded && refusal.message.contains("disk is nearly full"),
        "{refusal:?}"
    );
    ensure!(refused.is_retryable() && refused.has_no_side_effects(), "{refused}");
    let acknowledged = published.iter().filter(|p| matches!(p.outcome, Outcome::Acknowledged(_))).count();
    ensure!(acknowledged > 0, "nothing was taken at all");
    eprintln!("refused after {acknowledged} records of {} KiB: {}", VALUE_BYTES >> 10, refusal.message);

    // Reads go on, also on nodes that have started with the disk full.
    cluster.kill_all().await?;
    cluster.restart_all().await?;
    cluster.leader_of(&client, TOPIC, 0).await?;
    let ends = [(0, acknowledged as u64)].into();
    let read = eventually(LIMIT, "everything is read", || read_until(&client, TOPIC, StartAt::Earliest, &ends)).await?;
    verify_from(&[(0, 0)].into(), &published, &read)
        .map_err(|found| anyhow::anyhow!("{} anomalies: {:#?}", found.len(), found.first()))?;

    // The catalog can still be written, which is what gives the disk back.
    client.admin().delete_topic(TOPIC).await?;
    client.admin().create_topic("afterwards", TopicOptions::default()).await?;
    eventually(LIMIT, "publishes are taken again", || async {
        let delivered = producer(&client, "afterwards").await?.send(Record::new("room again")).await?.await?;
        ensure!(delivered.offset == 0, "{delivered:?}");
        Ok(())
    })
    .await?;
    cluster.finish().await
}
