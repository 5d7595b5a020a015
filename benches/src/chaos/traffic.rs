//! The run's two ends: producers that send keyed records at a rate, and members of a group that acknowledge each record
//! as they get it.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use busbar_client::{Client, Delivery, GroupConsumer, GroupStats, Record};
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    GROUP, TOPIC,
    ledger::{Fate, KEYS, Ledger, Name, Place},
    options::Options,
};

const TICK: Duration = Duration::from_millis(2);
/// Answers that may be outstanding; the client's buffer is the bound that counts.
const UNANSWERED: usize = 1 << 18;

/// Producers at work.
pub(super) struct Producers {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Producers {
    pub(super) async fn start(client: &Client, ledger: &Arc<Mutex<Ledger>>, options: &Options) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        for number in 0..u32::from(options.producers) {
            let producer = client.producer(TOPIC).build().await?;
            let (answers, unanswered) = mpsc::channel(UNANSWERED);
            tasks.push(tokio::spawn(note(unanswered, ledger.clone())));
            let sender = Sender {
                number,
                producer,
                ledger: ledger.clone(),
                answers,
                per_second: f64::from(options.rate) / f64::from(options.producers),
                bytes: options.size as usize,
            };
            tasks.push(tokio::spawn(sender.run(stop.clone())));
        }
        Ok(Self { stop, tasks })
    }

    /// Sends nothing more and waits for the fate of everything.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        for task in self.tasks {
            task.await.context("a producer's task panicked")??;
        }
        Ok(())
    }
}

struct Sender {
    number: u32,
    producer: busbar_client::Producer,
    ledger: Arc<Mutex<Ledger>>,
    answers: mpsc::Sender<(Name, Delivery)>,
    per_second: f64,
    bytes: usize,
}

impl Sender {
    async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (mut due, mut sent) = (0.0, 0_u32);
        while !stop.is_cancelled() {
            tick.tick().await;
            due += self.per_second * TICK.as_secs_f64();
            while f64::from(sent) < due && !stop.is_cancelled() {
                let key = sent % KEYS;
                let name = self.ledger.lock().begin(self.number, key);
                let mut value = vec![0; self.bytes];
                name.encode(&mut value);
                let record = Record::new(value).key(format!("{}-{key}", self.number));
                let delivery = self.producer.send(record).await.context("send")?;
                self.answers.send((name, delivery)).await.context("nobody notes the answers")?;
                sent += 1;
            }
        }
        self.producer.close().await?;
        Ok(())
    }
}

/// Notes what became of each record.
async fn note(mut unanswered: mpsc::Receiver<(Name, Delivery)>, ledger: Arc<Mutex<Ledger>>) -> anyhow::Result<()> {
    while let Some((name, delivery)) = unanswered.recv().await {
        let fate = match delivery.await {
            Ok(_) => Fate::Acknowledged,
            Err(error) if error.has_no_side_effects() => Fate::Rejected,
            Err(_) => Fate::Unknown,
        };
        ledger.lock().told(name, fate);
    }
    Ok(())
}

/// The group's members.
pub(super) struct Members {
    client: Client,
    ledger: Arc<Mutex<Ledger>>,
    next: u32,
    running: Vec<(CancellationToken, JoinHandle<anyhow::Result<GroupStats>>)>,
    /// Of members that have left.
    ended: Vec<GroupStats>,
}

impl Members {
    pub(super) fn new(client: Client, ledger: Arc<Mutex<Ledger>>) -> Self {
        Self { client, ledger, next: 0, running: Vec::new(), ended: Vec::new() }
    }

    /// One more.
    pub(super) async fn add(&mut self) -> anyhow::Result<()> {
        let consumer = self.client.group(GROUP).topics([TOPIC]).build().await?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(consume(consumer, self.next, self.ledger.clone(), stop.clone()));
        self.next += 1;
        self.running.push((stop, task));
        Ok(())
    }

    /// The youngest leaves in order.
    pub(super) async fn remove_last(&mut self) -> anyhow::Result<()> {
        let Some((stop, task)) = self.running.pop() else { return Ok(()) };
        stop.cancel();
        self.ended.push(task.await.context("a member's task panicked")??);
        Ok(())
    }

    /// All leave; what they did.
    pub(super) async fn close(mut self) -> anyhow::Result<Vec<GroupStats>> {
        while !self.running.is_empty() {
            self.remove_last().await?;
        }
        Ok(self.ended)
    }
}

async fn consume(
    mut consumer: GroupConsumer,
    member: u32,
    ledger: Arc<Mutex<Ledger>>,
    stop: CancellationToken,
) -> anyhow::Result<GroupStats> {
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = consumer.next() => next?,
        };
        let Some(record) = next else { break };
        let place = Place { partition: record.partition(), offset: record.offset() };
        ledger.lock().done(member, place, record.value());
        // Too late (the partition has changed hands): it is delivered again, and counted as that.
        let _ = record.ack();
    }
    consumer.close().await?;
    Ok(consumer.stats())
}
