//! Load, and its record: publishers that note what they were told of each record, and a reader of everything that is
//! stored. What comes of both is judged by [`crate::verify`].

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use busbar_client::{Client, Compression, Delivery, DeliveryError, OnLoss, Producer, Record, StartAt};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    verify::{Outcome, Place, Published, ReadRecord, RecordId},
    wait::{eventually, within},
};

/// The producer number of the records that mark the end of what was published.
const MARKER: u32 = u32::MAX;
/// How often each publisher sends.
const TICK: Duration = Duration::from_millis(5);
/// Records sent and not yet answered, per publisher.
const UNANSWERED_MAX: usize = 4096;
/// Reading everything back.
const READ_LIMIT: Duration = Duration::from_secs(90);
/// Answers still out when a load is stopped: as long as a delivery may take, and some.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// What to publish.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Publishers, each a producer of its own.
    pub producers: u32,
    /// Records that each sends every 5 ms.
    pub burst: usize,
    /// Bytes of a value, filler included.
    pub value_bytes: usize,
    /// Every second publisher compresses with it.
    pub compression: Compression,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { producers: 2, burst: 5, value_bytes: 100, compression: Compression::Lz4 }
    }
}

/// A value that names its record, filled up to `bytes`.
pub fn value_of(id: RecordId, bytes: usize) -> String {
    let name = id.to_string();
    if name.len() >= bytes { name } else { format!("{name} {}", ".".repeat(bytes - name.len() - 1)) }
}

/// What became of a delivery.
pub fn outcome_of(delivered: Result<busbar_client::Delivered, DeliveryError>) -> Outcome {
    match delivered {
        Ok(stored) => Outcome::Acknowledged(Place { partition: stored.partition, offset: stored.offset }),
        Err(error) if error.has_no_side_effects() => Outcome::Rejected(error.to_string()),
        Err(error) => Outcome::Unknown(error.to_string()),
    }
}

/// Publishers at work until they are stopped.
#[derive(Debug)]
pub struct Load {
    /// Any change means: stop.
    stop: watch::Sender<()>,
    acknowledged: Vec<watch::Receiver<u64>>,
    publishers: Vec<JoinHandle<anyhow::Result<Vec<Published>>>>,
}

impl Load {
    /// Starts publishing to all partitions of a topic, half of the records with keys.
    ///
    /// # Errors
    /// There is no such topic.
    pub async fn start(client: &Client, topic: &str, options: LoadOptions) -> anyhow::Result<Self> {
        let (stop, stopped) = watch::channel(());
        let (mut acknowledged, mut publishers) = (Vec::new(), Vec::new());
        for number in 0..options.producers {
            let compression = if number % 2 == 1 { options.compression } else { Compression::None };
            let producer = client.producer(topic).compression(compression).build().await?;
            let (count, counted) = watch::channel(0);
            let publisher =
                Publisher { number, producer, options, count, unanswered: VecDeque::new(), done: Vec::new() };
            acknowledged.push(counted);
            publishers.push(tokio::spawn(publisher.run(stopped.clone())));
        }
        Ok(Self { stop, acknowledged, publishers })
    }

    /// Waits until every publisher has got `more` acknowledgements from now on; how long that took.
    ///
    /// # Errors
    /// Not in time, or a publisher has failed.
    pub async fn acknowledged(&mut self, more: u64, limit: Duration) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let waiting = self.acknowledged.iter_mut().map(|count| async move {
            let wanted = *count.borrow() + more;
            count.wait_for(|now| *now >= wanted).await.context("a publisher has failed").map(drop)
        });
        let all = async { futures::future::try_join_all(waiting).await.map(drop) };
        within(limit, &format!("{more} more acknowledgements for each publisher"), all).await?;
        Ok(started.elapsed())
    }

    /// Stops, and waits for the last answers.
    ///
    /// # Errors
    /// A publisher has failed: a record was not even taken.
    pub async fn stop(self) -> anyhow::Result<Vec<Published>> {
        self.stop.send_replace(());
        let mut published = Vec::new();
        for publisher in self.publishers {
            let ended = async { publisher.await? };
            published.extend(within(SETTLE_LIMIT, "the last answers to a publisher", ended).await?);
        }
        Ok(published)
    }
}

struct Publisher {
    number: u32,
    producer: Producer,
    options: LoadOptions,
    count: watch::Sender<u64>,
    unanswered: VecDeque<(RecordId, Delivery)>,
    done: Vec<Published>,
}

impl Publisher {
    async fn run(mut self, mut stopped: watch::Receiver<()>) -> anyhow::Result<Vec<Published>> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut number = 0;
        loop {
            tokio::select! {
                biased;
                _ = stopped.changed() => break,
                // Answers are taken as they come, so that the count is true while nothing can be sent.
                answered = next_answer(&mut self.unanswered) => self.note(answered),
                _ = ticks.tick(), if self.unanswered.len() < UNANSWERED_MAX => {
                    for _ in 0..self.options.burst {
                        self.send(number).await?;
                        number += 1;
                    }
                }
            }
        }
        while !self.unanswered.is_empty() {
            let answered = next_answer(&mut self.unanswered).await;
            self.note(answered);
        }
        Ok(self.done)
    }

    async fn send(&mut self, number: u64) -> anyhow::Result<()> {
        let id = RecordId { producer: self.number, number };
        let mut record = Record::new(value_of(id, self.options.value_bytes));
        if number.is_multiple_of(2) {
            record = record.key(format!("key-{}", number % 16));
        }
        let delivery = self.producer.send(record).await?;
        self.unanswered.push_back((id, delivery));
        Ok(())
    }

    fn note(&mut self, (id, outcome): (RecordId, Outcome)) {
        if matches!(outcome, Outcome::Acknowledged(_)) {
            self.count.send_modify(|count| *count += 1);
        }
        self.done.push(Published { id, outcome });
    }
}

/// The fate of the record that has waited longest; never, when none waits. Cancel safe.
async fn next_answer(unanswered: &mut VecDeque<(RecordId, Delivery)>) -> (RecordId, Outcome) {
    let Some((id, delivery)) = unanswered.front_mut() else { return std::future::pending().await };
    let answered = (*id, outcome_of(delivery.await));
    unanswered.pop_front();
    answered
}

/// Publishes records one after another and waits for each.
///
/// # Errors
/// A record is not taken. What is taken but not acknowledged is in the result.
pub async fn publish_each(
    producer: &Producer,
    number: u32,
    records: impl IntoIterator<Item = Record>,
) -> anyhow::Result<Vec<Published>> {
    let mut done = Vec::new();
    for (index, record) in records.into_iter().enumerate() {
        let id = RecordId { producer: number, number: index as u64 };
        let delivery = producer.send(Record { value: id.to_string().into(), ..record }).await?;
        done.push(Published { id, outcome: outcome_of(delivery.await) });
    }
    Ok(done)
}

/// Reads everything that a topic holds, with a client of its own. Appends a marker to each partition first (and to
/// `published`), so that the end is known whatever the leaders have told before.
///
/// # Errors
/// A marker can't be published, or reading does not get to the end.
pub async fn read_everything(
    client: &Client,
    topic: &str,
    published: &mut Vec<Published>,
) -> anyhow::Result<Vec<ReadRecord>> {
    let ends = mark_ends(client, topic, published).await?;
    read_until(client, topic, StartAt::Earliest, &ends).await
}

/// Appends a marker to each partition (and to `published`); the end of each partition, by number.
///
/// # Errors
/// A marker can't be published.
pub async fn mark_ends(
    client: &Client,
    topic: &str,
    published: &mut Vec<Published>,
) -> anyhow::Result<BTreeMap<u32, u64>> {
    let producer = client.producer(topic).build().await?;
    let mut ends = BTreeMap::new();
    for partition in 0..producer.partitions() {
        let number = published.iter().filter(|published| published.id.producer == MARKER).count() as u64;
        let id = RecordId { producer: MARKER, number };
        let delivered = producer.send(Record::new(id.to_string()).partition(partition)).await?.await?;
        let place = Place { partition: delivered.partition, offset: delivered.offset };
        published.push(Published { id, outcome: Outcome::Acknowledged(place) });
        ends.insert(partition, delivered.offset + 1);
    }
    producer.close().await?;
    // Something behind the markers would be a record stored late or twice: it has to be read as well.
    let described = eventually(READ_LIMIT, "every partition tells its end", || async {
        let described = client.admin().describe_topic(topic).await?;
        let behind = described.partitions.iter().find(|state| state.high_watermark < ends[&state.partition]);
        ensure!(behind.is_none(), "{behind:?}");
        Ok(described)
    })
    .await?;
    Ok(described.partitions.into_iter().map(|state| (state.partition, state.high_watermark)).collect())
}

/// Reads from `from` until the offset before each partition's end was read. Never skips: records that retention takes
/// away on the way are an error.
///
/// # Errors
/// A partition can't be read, or its end does not come.
pub async fn read_until(
    client: &Client,
    topic: &str,
    from: StartAt,
    ends: &BTreeMap<u32, u64>,
) -> anyhow::Result<Vec<ReadRecord>> {
    let partitions: Vec<u32> = ends.keys().copied().collect();
    let mut open: BTreeMap<u32, u64> = ends.iter().filter(|(_, end)| **end > 0).map(|(&p, &end)| (p, end)).collect();
    let mut read = Vec::new();
    let reading = async {
        let builder = client.consumer(topic).partitions(partitions).from(from).on_loss(OnLoss::Fail);
        let mut consumer = builder.build().await?;
        while !open.is_empty() {
            let record = consumer.next().await?.context("the consumer has ended")?;
            let place = Place { partition: record.partition(), offset: record.offset() };
            read.push(ReadRecord { place, id: RecordId::parse(record.value()) });
            if open.get(&place.partition).is_some_and(|end| place.offset + 1 >= *end) {
                open.remove(&place.partition);
            }
        }
        Ok(())
    };
    let outcome = within(READ_LIMIT, &format!("reading {topic}"), reading).await;
    outcome.with_context(|| format!("{} records were read; still open: {open:?}", read.len()))?;
    Ok(read)
}
