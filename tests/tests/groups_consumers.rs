//! Consumer groups with real nodes: brokers are killed and members come and go under load. Every record is processed;
//! one that was acknowledged is not delivered again; partitions that need not move are not taken. Pauses are printed,
//! never judged.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use busbar_client::{Client, DeadLetter, GroupBuilder, GroupConsumer, GroupStats, TopicOptions};
use busbar_tests::{
    process::ProcessCluster,
    wait::{eventually, within},
    workload::{Load, LoadOptions},
};
use tokio::{sync::watch, task::JoinHandle};

const TOPIC: &str = "orders";
const GROUP: &str = "billing";
const PARTITIONS: u32 = 6;
/// Within this, writes must have resumed; in ordinary runs it takes a second or two.
const RESUME_LIMIT: Duration = Duration::from_secs(30);
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
const STEADY: u64 = 200;

/// What the group did with each record, all members together.
#[derive(Default)]
struct Ledger {
    /// By partition and offset: deliveries, and whether it was acknowledged.
    records: BTreeMap<(u32, u64), (u32, bool)>,
    /// By partition: when a record was last delivered.
    last: BTreeMap<u32, Instant>,
    pauses: Vec<Duration>,
    faults: Vec<String>,
}

impl Ledger {
    fn delivered(&mut self, partition: u32, offset: u64) {
        let now = Instant::now();
        if let Some(before) = self.last.insert(partition, now) {
            self.pauses.push(now - before);
        }
        let first = !self.records.contains_key(&(partition, offset));
        let behind = self.records.range((partition, offset)..(partition, u64::MAX)).next().map(|(place, _)| *place);
        if let Some((_, later)) = behind.filter(|_| first) {
            self.faults.push(format!("{partition}/{offset} came after {later}"));
        }
        let record = self.records.entry((partition, offset)).or_default();
        record.0 += 1;
        if record.1 {
            self.faults.push(format!("{partition}/{offset} was acknowledged, and is delivered again"));
        }
    }

    fn report(&mut self, what: &str) {
        self.pauses.sort();
        let at = |share: f64| self.pauses.get((self.pauses.len() as f64 * share) as usize).copied().unwrap_or_default();
        let again = self.records.values().map(|(deliveries, _)| deliveries - 1).sum::<u32>();
        let (p50, p99, max) = (at(0.5), at(0.99), self.pauses.last().copied().unwrap_or_default());
        eprintln!(
            "{what}: {} records, {again} redeliveries; between two records of a partition: p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}",
            self.records.len()
        );
    }
}

type Shared = Arc<Mutex<Ledger>>;

/// A member at work.
struct Worker {
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<GroupStats>>,
}

impl Worker {
    async fn start(client: &Client, ledger: &Shared) -> anyhow::Result<Self> {
        let consumer = member(client).build().await?;
        let (stop, told) = watch::channel(false);
        Ok(Self { stop, task: tokio::spawn(work(consumer, ledger.clone(), told)) })
    }

    async fn end(self) -> anyhow::Result<GroupStats> {
        self.stop.send_replace(true);
        self.task.await?
    }
}

fn member(client: &Client) -> GroupBuilder {
    client.group(GROUP).topics([TOPIC]).dead_letter(DeadLetter::Off).max_deliveries(0)
}

async fn work(
    mut consumer: GroupConsumer,
    ledger: Shared,
    mut told: watch::Receiver<bool>,
) -> anyhow::Result<GroupStats> {
    loop {
        let record = tokio::select! {
            record = consumer.next() => record?.context("closed")?,
            _ = told.wait_for(|stop| *stop) => break,
        };
        let place = (record.partition(), record.offset());
        ledger.lock().expect("no panic").delivered(place.0, place.1);
        if record.ack().is_ok() {
            ledger.lock().expect("no panic").records.entry(place).or_default().1 = true;
        }
    }
    consumer.close().await?;
    Ok(consumer.stats())
}

async fn three_nodes() -> anyhow::Result<(ProcessCluster, Client)> {
    let cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions { partitions: PARTITIONS, ..TopicOptions::default() }).await?;
    Ok((cluster, client))
}

/// Waits until everything that is stored was acknowledged.
async fn drained(client: &Client, ledger: &Shared) -> anyhow::Result<u64> {
    let stored = eventually(RESUME_LIMIT, "every partition has a leader that tells its end", || async {
        let described = client.admin().describe_topic(TOPIC).await?;
        ensure!(described.partitions.iter().all(|partition| partition.leader > 0), "not yet");
        Ok(described.partitions.iter().map(|partition| partition.high_watermark).sum::<u64>())
    })
    .await?;
    eventually(DRAIN_LIMIT, "everything is processed", || async {
        let ledger = ledger.lock().expect("no panic");
        let acked = ledger.records.values().filter(|(_, acked)| *acked).count() as u64;
        ensure!(acked == stored, "{acked} of {stored} are acknowledged");
        Ok(())
    })
    .await?;
    Ok(stored)
}

fn judge(ledger: &Shared, what: &str) -> anyhow::Result<()> {
    let mut ledger = ledger.lock().expect("no panic");
    ledger.report(what);
    match ledger.faults.is_empty() {
        true => Ok(()),
        false => bail!("{} faults: {:?}", ledger.faults.len(), &ledger.faults[..ledger.faults.len().min(10)]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_costs_the_group_no_record_and_none_twice() -> anyhow::Result<()> {
    let (mut cluster, client) = three_nodes().await?;
    let mut load = Load::start(&client, TOPIC, LoadOptions { producers: 4, ..LoadOptions::default() }).await?;
    let ledger = Shared::default();
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(Worker::start(&cluster.client().await?, &ledger).await?);
    }
    for node in cluster.ids() {
        load.acknowledged(STEADY, RESUME_LIMIT).await?;
        cluster.kill(node).await?;
        load.acknowledged(STEADY, RESUME_LIMIT).await?;
        cluster.restart(node).await?;
        cluster.in_sync(&client, TOPIC).await?;
    }
    load.stop().await?;
    drained(&client, &ledger).await?;
    for worker in workers {
        let stats = within(RESUME_LIMIT, "a member ends", worker.end()).await?;
        eprintln!("{stats:?}");
        ensure!(stats.lost == 0, "a member lost what it held");
    }
    judge(&ledger, "killed nodes")?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_come_and_go_take_no_more_than_they_must() -> anyhow::Result<()> {
    const ROUNDS: u64 = 5;
    let (cluster, client) = three_nodes().await?;
    let mut load = Load::start(&client, TOPIC, LoadOptions::default()).await?;
    let ledger = Shared::default();
    let stay = [Worker::start(&client, &ledger).await?, Worker::start(&client, &ledger).await?];
    for _ in 0..ROUNDS {
        let guest = member(&client).build().await?;
        eventually(RESUME_LIMIT, "the guest has its share", || async {
            let share = guest.assignment().len();
            ensure!(share == PARTITIONS as usize / 3, "{share} partitions");
            Ok(())
        })
        .await?;
        let (stop, told) = watch::channel(false);
        let guest = Worker { stop, task: tokio::spawn(work(guest, ledger.clone(), told)) };
        load.acknowledged(STEADY, RESUME_LIMIT).await?;
        within(RESUME_LIMIT, "the guest leaves", guest.end()).await?;
    }
    load.stop().await?;
    drained(&client, &ledger).await?;
    let (mut revoked, mut paused_max) = (0, Duration::ZERO);
    for worker in stay {
        let stats = within(RESUME_LIMIT, "a member ends", worker.end()).await?;
        ensure!(stats.lost == 0, "{stats:?}");
        revoked += stats.revoked;
        paused_max = paused_max.max(stats.paused_max);
    }
    eprintln!("{ROUNDS} guests: {revoked} partitions given up by those who stayed; the longest pause {paused_max:.1?}");
    // A guest needs two of the six. The second member took three of the first at the start, and got those of the first
    // at the end, before it gave up all.
    let needed = 2 * ROUNDS + 3 + 3 + u64::from(PARTITIONS);
    ensure!(revoked <= needed, "{revoked} partitions were given up, {needed} had to be");
    judge(&ledger, "guests")?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_crashed_is_missed_and_only_what_it_had_not_committed_comes_again() -> anyhow::Result<()> {
    let (cluster, client) = three_nodes().await?;
    let mut load = Load::start(&client, TOPIC, LoadOptions::default()).await?;
    let ledger = Shared::default();
    let builder = || member(&client).session_timeout(Duration::from_secs(1));
    let mut crashing = builder().build().await?;
    for _ in 0..500 {
        crashing.next().await?.context("closed")?.ack()?;
    }
    crashing.commit().await?;
    let mut in_hand = BTreeMap::new();
    for _ in 0..10 {
        let record = crashing.next().await?.context("closed")?;
        in_hand.insert((record.partition(), record.offset()), record);
    }
    drop(crashing);
    ensure!(in_hand.into_values().all(|record| record.ack().is_err()), "an acknowledgement counts after the end");
    let survivor = Worker::start(&client, &ledger).await?;
    load.acknowledged(STEADY, RESUME_LIMIT).await?;
    load.stop().await?;
    let stored = eventually(RESUME_LIMIT, "the ends", || async {
        let described = client.admin().describe_topic(TOPIC).await?;
        Ok(described.partitions.iter().map(|partition| partition.high_watermark).sum::<u64>())
    })
    .await?;
    eventually(DRAIN_LIMIT, "everything is processed", || async {
        let acked = ledger.lock().expect("no panic").records.len() as u64;
        ensure!(acked + 500 == stored, "{acked} of {stored} - 500");
        Ok(())
    })
    .await?;
    let stats = survivor.end().await?;
    eprintln!("{stats:?}");
    ensure!(stats.tried >= 10, "what was in hand was not tried one by one: {stats:?}");
    judge(&ledger, "after a crash")?;
    cluster.finish().await
}
