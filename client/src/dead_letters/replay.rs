//! Publishing dead letters again, each once. What is to be published is written down in the journal first, and the courier
//! tells after a crash how much of the last entry had arrived; see `journal` and the crate's `courier`.
//!
//! Invariants: one replay of a topic at a time, a newer one fences the older; a record is published under an entry that
//! names its letter; the next entry is written when all records of the one before are stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use busbar_proto::{Offset, Reason, TopicId, limits};
use tokio::time::Instant;

use super::{
    DeadLetters,
    error::DeadLetterError,
    journal::{self, Batch, Entry, History},
    letter::{self, Letter},
    reading::{self, LetterSelection, Letters, Scan, Span},
};
use crate::{
    admin::{Admin, Durability, TopicOptions},
    cluster::Cluster,
    courier::{Courier, Freight, Left, Undelivered},
    error::ClientError,
    group::Ranges,
    record::Record,
    retry::{Backoff, BackoffPolicy},
};

/// Letters of one entry of the journal.
const LETTERS_MAX: usize = 1000;
/// Topics that are written to without taking their names anew.
const COURIERS_MAX: usize = 64;
/// A letter is tried for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a replay has done.
///
/// ```no_run
/// # fn example(report: busbar_client::ReplayReport) {
/// for (topic, letters) in &report.to {
///     println!("{letters} to {topic}");
/// }
/// println!("{} in all, {} can't be replayed", report.replayed(), report.left_out);
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayReport {
    /// Letters replayed, by where they went.
    pub to: BTreeMap<String, u64>,
    /// Of these, letters that an earlier replay had begun with and not finished.
    pub taken_up: u64,
    /// Letters that can't be replayed, as their value had to be left out when they died.
    pub left_out: u64,
    /// Records that are no dead letters.
    pub others: u64,
}

impl ReplayReport {
    /// Letters replayed.
    pub fn replayed(&self) -> u64 {
        self.to.values().sum()
    }
}

impl DeadLetters {
    /// Publishes letters again: to the topic and partition that they came from, or to the topic `to`, by their keys. Each
    /// is as it was at its origin, with one more header, `busbar-dlq-replayed`, that tells the letter's place; the letters
    /// themselves stay. They are noted as replayed in the topic `<topic>.replays`, made when it is missing.
    ///
    /// A replay that was cut short, at whatever point, is taken up by the next one: what it had begun with is finished
    /// first, whatever the selection, and no letter is published twice by that. (As long as the record it published last is
    /// there and not older than a week; else up to 1000 letters may be.) Only letters are replayed that are there when it
    /// begins, so letters that die again come with the next replay.
    ///
    /// # Errors
    /// [`DeadLetterError`]; replaying again goes on from there.
    pub async fn replay(
        &self,
        selection: LetterSelection,
        to: Option<String>,
    ) -> Result<ReplayReport, DeadLetterError> {
        let mut replay = Replay::open(self).await?;
        replay.take_up().await?;
        // Not as any node tells it: it may not have heard of the journal yet.
        let mut letters = self.read_with(replay.history.clone(), selection).await?;
        replay.run(&mut letters, to.as_deref()).await?;
        replay.report.others = letters.others();
        Ok(replay.report)
    }
}

/// A replay under way.
struct Replay<'a> {
    dead: &'a DeadLetters,
    id: TopicId,
    journal: Courier,
    history: History,
    couriers: BTreeMap<String, Courier>,
    report: ReplayReport,
}

impl<'a> Replay<'a> {
    /// Makes the journal when it is missing, takes it over and reads it.
    async fn open(dead: &'a DeadLetters) -> Result<Self, DeadLetterError> {
        let name = journal::name_of(&dead.topic);
        let cluster = &dead.cluster;
        let writer = format!("dlq-replay.{}", dead.topic);
        let mut hearsay = Hearsay::new(cluster);
        let mut is_there = false;
        let journal = loop {
            match Courier::open(cluster, &name, writer.clone(), PATIENCE).await {
                Ok(journal) => break journal,
                Err(error) if is_there => hearsay.bear(error).await?,
                Err(error) if error.reason() == Some(Reason::UnknownTopic) => {
                    create(cluster, &dead.topic, &name).await?;
                    is_there = true;
                }
                Err(error) => return Err(error.into()),
            }
        };
        // From here on no older replay writes there.
        let last = journal.last(0).await.map_err(|error| fenced_or(error, &dead.topic))?;
        let last = match last {
            Left::Nothing => 0,
            Left::Record(record) => record.offset() + 1,
            Left::Removed { offset } => offset + 1,
        };
        let mut spans = loop {
            match reading::bounds(cluster, &name).await {
                Ok((spans, _)) => break spans,
                Err(error) => hearsay.bear(error).await?,
            }
        };
        spans.iter_mut().for_each(|span| span.to = span.to.max(last));
        let (_, described) = reading::bounds(cluster, &dead.topic).await?;
        let id = reading::id_of(&described)?;
        let history = reading::history(cluster, &name, spans, id).await?;
        Ok(Self { dead, id, journal, history, couriers: BTreeMap::new(), report: ReplayReport::default() })
    }

    /// Finishes what an earlier replay has begun.
    async fn take_up(&mut self) -> Result<(), DeadLetterError> {
        let Some((entry, batch)) = self.history.unfinished().cloned() else { return Ok(()) };
        if let Some(courier) = self.courier_if_there(&batch.to).await? {
            self.couriers.insert(batch.to.clone(), courier);
            let letters = self.letters_of(&batch).await?;
            let missing = self.missing(entry, &batch.to, letters).await?;
            self.report.taken_up += missing.len() as u64;
            self.deliver(entry, &batch.to, &missing).await?;
        }
        self.end().await
    }

    async fn letters_of(&self, batch: &Batch) -> Result<Vec<Letter>, DeadLetterError> {
        let span =
            |(start, end): (Offset, Offset)| Span { partition: batch.partition, from: start.get(), to: end.get() };
        let scan = Scan::new(&self.dead.cluster, &self.dead.topic, batch.letters.iter().map(span));
        let mut letters = Letters::new(scan, History::default(), LetterSelection::all());
        let mut found = Vec::new();
        while let Some(letter) = letters.next().await? {
            found.push(letter);
        }
        Ok(found)
    }

    /// Those of an entry's letters that are not stored. Those before the last one stored, in the same partition, are.
    async fn missing(&self, entry: u64, to: &str, letters: Vec<Letter>) -> Result<Vec<Letter>, DeadLetterError> {
        let courier = &self.couriers[to];
        let partitions: BTreeSet<u32> = letters.iter().map(|letter| partition_of(courier, letter)).collect();
        let mut stored = BTreeMap::new();
        for partition in partitions {
            let left = courier.last(partition).await.map_err(|error| fenced_or(error, &self.dead.topic))?;
            let Left::Record(record) = left else { continue };
            let own = record.header(letter::ENTRY).is_some_and(|text| **text == *entry.to_string().as_bytes());
            let place = record.header(letter::REPLAYED).filter(|_| own);
            if let Some((_, offset)) = place.and_then(|place| letter::place_of(&self.dead.topic, place)) {
                stored.insert(partition, offset);
            }
        }
        let is_missing =
            |letter: &Letter| stored.get(&partition_of(courier, letter)).is_none_or(|&stored| stored < letter.offset());
        Ok(letters.into_iter().filter(is_missing).collect())
    }

    /// Replays letters, as many together as one entry holds.
    async fn run(&mut self, letters: &mut Letters, to: Option<&str>) -> Result<(), DeadLetterError> {
        let mut waiting: Vec<Letter> = Vec::new();
        let (mut freight, mut target) = (Freight::default(), String::new());
        let mut wrote = false;
        while let Some(letter) = letters.next().await? {
            if letter.story().left_out_bytes.is_some() {
                self.report.left_out += 1;
                continue;
            }
            let goes_to = to.unwrap_or(&letter.story().topic).to_owned();
            let courier = self.courier(&goes_to).await?;
            let record = stamped(&letter, courier, u64::MAX);
            let (topic, partition): (Arc<str>, u32) = (goes_to.as_str().into(), partition_of(courier, &letter));
            let batch_bytes = courier.batch_bytes();
            let together = waiting.first().is_none_or(|first| first.partition() == letter.partition())
                && (waiting.is_empty() || target == goes_to)
                && waiting.len() < LETTERS_MAX;
            if !together || !freight.takes(&topic, partition, &record, batch_bytes) {
                self.publish(&target, &waiting).await?;
                wrote = true;
                waiting.clear();
                freight = Freight::default();
                freight.takes(&topic, partition, &record, batch_bytes);
            }
            target = goes_to;
            waiting.push(letter);
        }
        if !waiting.is_empty() {
            self.publish(&target, &waiting).await?;
            wrote = true;
        }
        if wrote { self.end().await } else { Ok(()) }
    }

    /// One entry: written down, then published.
    async fn publish(&mut self, to: &str, letters: &[Letter]) -> Result<(), DeadLetterError> {
        let Some(first) = letters.first() else { return Ok(()) };
        let mut ranges = Ranges::default();
        for letter in letters {
            ranges.insert(Offset::new(letter.offset()), Offset::new(letter.offset() + 1));
        }
        let batch = Batch { of: self.id, partition: first.partition(), letters: ranges, to: to.to_owned() };
        let entry = self.write(&Entry::Replay(batch)).await?;
        self.deliver(entry, to, letters).await
    }

    async fn deliver(&mut self, entry: u64, to: &str, letters: &[Letter]) -> Result<(), DeadLetterError> {
        if letters.is_empty() {
            return Ok(());
        }
        let courier = self.courier(to).await?;
        let records: Vec<Record> = letters.iter().map(|letter| stamped(letter, courier, entry)).collect();
        if let Err((place, error)) = courier.deliver(&records).await {
            if error.is_fenced() {
                return Err(DeadLetterError::Fenced { topic: self.dead.topic.clone() });
            }
            let (letter, to) = (letters[place].place(), to.to_owned());
            return Err(match error {
                Undelivered::Refused(source) => DeadLetterError::Refused { letter, to, source },
                Undelivered::Failed(source) => DeadLetterError::Undelivered { letter, to, source },
            });
        }
        *self.report.to.entry(to.to_owned()).or_default() += letters.len() as u64;
        Ok(())
    }

    async fn end(&self) -> Result<(), DeadLetterError> {
        self.write(&Entry::End).await.map(drop)
    }

    /// Writes an entry; its offset.
    async fn write(&self, entry: &Entry) -> Result<u64, DeadLetterError> {
        let record = Record::new(entry.to_string()).partition(0);
        let (journal, to) = (&self.journal, self.journal.topic().to_owned());
        let fenced = || DeadLetterError::Fenced { topic: self.dead.topic.clone() };
        match journal.deliver_one(&record).await {
            Ok(offset) => Ok(offset),
            Err(error) if error.is_fenced() => Err(fenced()),
            Err(Undelivered::Refused(source)) => {
                Err(DeadLetterError::Refused { letter: entry.to_string(), to, source })
            }
            Err(Undelivered::Failed(source)) => {
                Err(DeadLetterError::Undelivered { letter: entry.to_string(), to, source })
            }
        }
    }

    /// `None` when the topic is gone, and all that was published there.
    async fn courier_if_there(&self, to: &str) -> Result<Option<Courier>, ClientError> {
        let mut hearsay = Hearsay::new(&self.dead.cluster);
        loop {
            let error = match self.open_courier(to).await {
                Ok(courier) => return Ok(Some(courier)),
                Err(error) => error,
            };
            match hearsay.bear(error).await {
                Err(error) if error.reason() == Some(Reason::UnknownTopic) => return Ok(None),
                waited => waited?,
            }
        }
    }

    async fn open_courier(&self, to: &str) -> Result<Courier, ClientError> {
        Courier::open(&self.dead.cluster, to, format!("dlq-replay.{}.{to}", self.dead.topic), PATIENCE).await
    }

    /// Who publishes to a topic.
    async fn courier(&mut self, to: &str) -> Result<&Courier, DeadLetterError> {
        if !self.couriers.contains_key(to) {
            // Nothing is under way between two entries: whoever is needed again takes the name anew.
            if self.couriers.len() >= COURIERS_MAX {
                self.couriers.clear();
            }
            let courier = self.open_courier(to).await?;
            self.couriers.insert(to.to_owned(), courier);
        }
        Ok(&self.couriers[to])
    }
}

fn fenced_or(error: ClientError, topic: &str) -> DeadLetterError {
    match error.reason() {
        Some(Reason::ProducerFenced) => DeadLetterError::Fenced { topic: topic.to_owned() },
        _ => error.into(),
    }
}

/// Where a letter goes: home, or, in another topic, by its key. The same whenever it is asked.
fn partition_of(courier: &Courier, letter: &Letter) -> u32 {
    let story = letter.story();
    let is_home = story.topic == courier.topic() && story.partition < courier.partitions();
    match is_home {
        true => story.partition,
        false => courier.partition_of(letter.key(), story.partition.into()),
    }
}

/// The record that a letter becomes in an entry.
fn stamped(letter: &Letter, courier: &Courier, entry: u64) -> Record {
    letter.replay().header(letter::ENTRY, entry.to_string()).partition(partition_of(courier, letter))
}

/// Makes the journal: as safe as the dead letters are, and kept for ever.
async fn create(cluster: &Arc<Cluster>, topic: &str, journal: &str) -> Result<(), ClientError> {
    let (_, described) = reading::bounds(cluster, topic).await?;
    let config = described.config.unwrap_or_default();
    let options = TopicOptions {
        partitions: 1,
        replicas: config.replicas.clamp(1, limits::REPLICAS_MAX),
        durability: Durability::of(&config),
        ..TopicOptions::default()
    };
    match Admin::new(cluster.clone()).create_topic(journal, options).await {
        // Somebody else was faster.
        Err(error) if error.reason() != Some(Reason::TopicExists) => Err(error),
        _ => Ok(()),
    }
}

/// Nodes hear of a new topic one after the other: one that does not know it is not believed at once.
struct Hearsay<'a> {
    cluster: &'a Cluster,
    deadline: Instant,
    backoff: Backoff,
}

impl<'a> Hearsay<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let deadline = cluster.env.now() + cluster.request_timeout;
        Self { cluster, deadline, backoff: Backoff::new(BackoffPolicy::default()) }
    }

    /// Waits after such an answer; any other failure, and one too many, is given back.
    async fn bear(&mut self, error: ClientError) -> Result<(), ClientError> {
        if error.reason() != Some(Reason::UnknownTopic) || self.cluster.env.now() >= self.deadline {
            return Err(error);
        }
        tokio::time::sleep(self.backoff.failed(self.cluster.env.random(), None)).await;
        Ok(())
    }
}
