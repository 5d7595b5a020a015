//! Where rows are handed to couriers, one for each topic, and where it is known what each partition has stored already.
//!
//! Invariants: before a relay's first row goes to a partition, that partition was asked what is stored there; a row that is
//! stored is never sent, and one that is not is never passed over. Nor are rows of another outbox that has the same name: the
//! record that tells what is stored must be a row of this one.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::Arc,
    time::Duration,
};

use busbar_proto::Reason;
use futures::future::{join_all, try_join_all};

use super::{OUTBOX_SEQUENCE_HEADER, error::RelayError, store::OutboxRow};
use crate::{
    cluster::Cluster,
    consumer::ConsumedRecord,
    courier::{Courier, Freight, Left, Undelivered},
    error::ClientError,
    record::Record,
    retry::{Backoff, BackoffPolicy},
};

/// Topics that one relay writes to.
const TOPICS_MAX: usize = 256;
/// Partitions asked at a time what they have stored.
const ASKED_AT_ONCE: usize = 16;
/// A row is given up after that: brokers that are away are waited for.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// The couriers of one relay.
#[derive(Debug)]
pub(super) struct Desk {
    cluster: Arc<Cluster>,
    relay: String,
    counters: BTreeMap<Arc<str>, Counter>,
}

/// One topic's.
#[derive(Debug)]
struct Counter {
    courier: Courier,
    /// By partition, once asked: the last row that is stored there.
    stored: BTreeMap<u32, u64>,
    /// By partition: the record that said so, until it was compared with its row.
    witnesses: BTreeMap<u32, ConsumedRecord>,
}

/// Rows of one delivery: all of them up to one.
#[derive(Debug)]
pub(super) struct Load {
    parcels: Vec<Parcel>,
    up_to: u64,
}

/// Rows are about to be passed over as stored already, because this record is: the outbox must have that very row.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) sequence: u64,
    /// The first row that would be passed over.
    pub(super) first: u64,
    topic: Arc<str>,
    partition: u32,
    witness: ConsumedRecord,
}

impl Doubt {
    /// Whether this is the row that was stored.
    pub(super) fn is_settled_by(&self, row: Option<&OutboxRow>) -> bool {
        row.is_some_and(|row| {
            row.sequence == self.sequence
                && *row.topic == *self.topic
                && row.record.key.as_ref() == self.witness.key()
                && row.record.value == *self.witness.value()
        })
    }

    pub(super) fn error(self, relay: &str) -> RelayError {
        let Self { sequence, first: _, topic, partition, witness } = self;
        let (relay, topic, offset) = (relay.to_owned(), topic.to_string(), witness.offset());
        RelayError::AnotherOutbox { relay, topic, partition, offset, sequence }
    }
}

/// A row on its way.
#[derive(Debug)]
struct Parcel {
    sequence: u64,
    topic: Arc<str>,
    partition: u32,
    record: Record,
}

/// What became of the rows that were handed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Relayed {
    /// Everything up to this row is stored.
    pub(super) up_to: u64,
    /// Rows sent.
    pub(super) sent: u64,
    /// Rows that an earlier relay had stored.
    pub(super) stored_before: u64,
}

impl Desk {
    pub(super) fn new(cluster: Arc<Cluster>, relay: String) -> Self {
        Self { cluster, relay, counters: BTreeMap::new() }
    }

    /// Takes rows from the front, as many as one delivery holds, and finds out which of them are stored.
    pub(super) async fn load(&mut self, rows: &mut &[OutboxRow]) -> Result<Load, RelayError> {
        let load = self.fill(rows).await?;
        self.ask(&load.parcels).await?;
        Ok(load)
    }

    /// What must be made sure of before rows of this load are passed over.
    pub(super) fn doubts(&mut self, load: &Load) -> Vec<Doubt> {
        let mut doubts = Vec::new();
        for parcel in &load.parcels {
            if self.is_new(parcel) {
                continue;
            }
            let Some(counter) = self.counters.get_mut(&parcel.topic) else { continue };
            let (topic, partition) = (parcel.topic.clone(), parcel.partition);
            let sequence = counter.stored.get(&partition).copied().unwrap_or(0);
            let witness = counter.witnesses.remove(&partition);
            let first = parcel.sequence;
            doubts.extend(witness.map(|witness| Doubt { sequence, first, topic, partition, witness }));
        }
        doubts
    }

    /// Delivers what is not stored yet.
    pub(super) async fn deliver(&mut self, load: Load) -> Result<Relayed, RelayError> {
        let Load { parcels, up_to } = load;
        let count = parcels.len() as u64;
        let fresh: Vec<Parcel> = parcels.into_iter().filter(|parcel| self.is_new(parcel)).collect();
        let sent = fresh.len() as u64;
        self.send(fresh).await?;
        Ok(Relayed { up_to, sent, stored_before: count - sent })
    }

    fn is_new(&self, parcel: &Parcel) -> bool {
        let stored = self.counters.get(&parcel.topic).and_then(|counter| counter.stored.get(&parcel.partition));
        stored.is_none_or(|&stored| stored < parcel.sequence)
    }

    /// The rows of one delivery, and the sequence of the last one.
    async fn fill(&mut self, rows: &mut &[OutboxRow]) -> Result<Load, RelayError> {
        let (mut freight, mut parcels, mut up_to) = (Freight::default(), Vec::new(), 0);
        let now_ms = self.cluster.time_ms_unless_wrong();
        while let Some((row, rest)) = rows.split_first() {
            let (topic, courier) = self.courier(row).await?;
            let mut record = row.record.clone();
            record.send_before_ms = None;
            record.note_times(|| now_ms);
            let partition = record.partition.unwrap_or_else(|| courier.partition_of(record.key.as_ref(), row.sequence));
            record.partition = Some(partition);
            record.headers.push((OUTBOX_SEQUENCE_HEADER.to_owned(), row.sequence.to_string().into()));
            if !freight.takes(&topic, partition, &record, courier.batch_bytes()) {
                break;
            }
            parcels.push(Parcel { sequence: row.sequence, topic, partition, record });
            (up_to, *rows) = (row.sequence, rest);
        }
        Ok(Load { parcels, up_to })
    }

    /// The courier of a row's topic, who takes the name when there is none yet.
    async fn courier(&mut self, row: &OutboxRow) -> Result<(Arc<str>, &Courier), RelayError> {
        let topic: Arc<str> = row.topic.as_str().into();
        if !self.counters.contains_key(&topic) {
            let (sequence, limit) = (row.sequence, TOPICS_MAX);
            if self.counters.len() >= limit {
                return Err(RelayError::TooManyTopics { sequence, topic: row.topic.clone(), limit });
            }
            let opened = self.open(&topic).await;
            let courier = opened.map_err(|source| RelayError::Topic { sequence, topic: row.topic.clone(), source })?;
            self.counters
                .insert(topic.clone(), Counter { courier, stored: BTreeMap::new(), witnesses: BTreeMap::new() });
        }
        let counter = &self.counters[&topic];
        Ok((topic, &counter.courier))
    }

    /// Asks the partitions that parcels go to, and that were not asked yet, what is stored there.
    async fn ask(&mut self, parcels: &[Parcel]) -> Result<(), RelayError> {
        let mut unknown = BTreeMap::new();
        for parcel in parcels {
            let counter = &self.counters[&parcel.topic];
            // A partition that does not exist is told of when the record is refused.
            if parcel.partition < counter.courier.partitions() && !counter.stored.contains_key(&parcel.partition) {
                unknown.entry((parcel.topic.clone(), parcel.partition)).or_insert(parcel.sequence);
            }
        }
        let unknown: Vec<_> = unknown.into_iter().map(|((topic, partition), row)| (topic, partition, row)).collect();
        for some in unknown.chunks(ASKED_AT_ONCE) {
            let asked: Vec<_> =
                some.iter().map(|(topic, partition, row)| self.ask_one(topic, *partition, *row)).collect();
            for (topic, partition, stored, witness) in try_join_all(asked).await? {
                if let Some(counter) = self.counters.get_mut(&topic) {
                    counter.stored.insert(partition, stored);
                    counter.witnesses.extend(witness.map(|witness| (partition, witness)));
                }
            }
        }
        Ok(())
    }

    async fn open(&self, topic: &str) -> Result<Courier, ClientError> {
        let mut persistence = Persistence::new(&self.cluster);
        loop {
            match Courier::open(&self.cluster, topic, format!("{}.{topic}", self.relay), PATIENCE).await {
                // The row that was stored last may have been compacted away, and stored again it would come behind newer
                // ones of its key.
                Ok(courier) if courier.is_compacted() => {
                    let rule = "a topic without compaction";
                    return Err(ClientError::InvalidOption { option: "topic", found: topic.to_owned(), rule });
                }
                Ok(courier) => return Ok(courier),
                Err(error) => persistence.bear(error).await?,
            }
        }
    }

    async fn ask_one(
        &self,
        topic: &Arc<str>,
        partition: u32,
        sequence: u64,
    ) -> Result<(Arc<str>, u32, u64, Option<ConsumedRecord>), RelayError> {
        let courier = &self.counters[topic].courier;
        let mut persistence = Persistence::new(&self.cluster);
        let left = loop {
            match courier.last(partition).await {
                Ok(left) => break left,
                Err(error) => persistence.bear(error).await.map_err(|error| self.refused(topic, sequence, error))?,
            }
        };
        let stored = stored_up_to(&left, topic, partition);
        let witness = match left {
            Left::Record(record) if stored > 0 => Some(record.detached()),
            _ => None,
        };
        Ok((topic.clone(), partition, stored, witness))
    }

    async fn send(&mut self, parcels: Vec<Parcel>) -> Result<(), RelayError> {
        let topics: BTreeSet<&Arc<str>> = parcels.iter().map(|parcel| &parcel.topic).collect();
        let deliveries: Vec<_> = topics.into_iter().map(|topic| self.deliver_to(topic, &parcels)).collect();
        // All are waited for, so that what is stored is known of each when one fails.
        let outcomes = join_all(deliveries).await;
        outcomes.into_iter().collect::<Result<Vec<()>, _>>()?;
        for parcel in parcels {
            if let Some(counter) = self.counters.get_mut(&parcel.topic) {
                counter.stored.insert(parcel.partition, parcel.sequence);
            }
        }
        Ok(())
    }

    /// Those of one topic.
    async fn deliver_to(&self, topic: &Arc<str>, parcels: &[Parcel]) -> Result<(), RelayError> {
        let of_topic = parcels.iter().filter(|parcel| parcel.topic == *topic);
        let (rows, records): (Vec<_>, Vec<_>) = of_topic.map(|row| (row.sequence, row.record.clone())).unzip();
        let delivered = self.counters[topic].courier.deliver(&records).await;
        delivered.map_err(|(place, error)| undelivered(&self.relay, topic, rows[place], error))
    }

    fn refused(&self, topic: &str, sequence: u64, source: ClientError) -> RelayError {
        let topic = topic.to_owned();
        match source.reason() {
            Some(Reason::ProducerFenced) => RelayError::Fenced { relay: self.relay.clone(), topic },
            _ => RelayError::Topic { sequence, topic, source },
        }
    }
}

/// Brokers that are away are waited for, with a growing pause.
struct Persistence<'a> {
    cluster: &'a Cluster,
    backoff: Backoff,
}

impl<'a> Persistence<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let policy = BackoffPolicy { base: Duration::from_millis(100), cap: Duration::from_secs(5) };
        Self { cluster, backoff: Backoff::new(policy) }
    }

    /// Waits after a failure; one that will not go away is given back.
    async fn bear(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !error.is_retryable() {
            return Err(error);
        }
        tracing::warn!(%error, "the relay waits");
        tokio::time::sleep(self.backoff.failed(self.cluster.env.random(), None)).await;
        Ok(())
    }
}

/// The last row that a partition has; 0 for none.
fn stored_up_to(left: &Left, topic: &str, partition: u32) -> u64 {
    match left {
        Left::Nothing => 0,
        Left::Record(record) => {
            let sequence =
                record.header(OUTBOX_SEQUENCE_HEADER).and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
            sequence.unwrap_or_else(|| {
                tracing::warn!(
                    topic,
                    partition,
                    offset = record.offset(),
                    "the relay's last record has no row's number"
                );
                0
            })
        }
        Left::Removed { offset } => {
            tracing::warn!(
                topic,
                partition,
                offset,
                "retention has removed the relay's last record: a row that was stored and not marked done is stored again"
            );
            0
        }
    }
}

fn undelivered(relay: &str, topic: &str, sequence: u64, error: Undelivered) -> RelayError {
    let topic = topic.to_owned();
    if error.is_fenced() {
        return RelayError::Fenced { relay: relay.to_owned(), topic };
    }
    let source: Arc<dyn Error + Send + Sync> = match error {
        Undelivered::Refused(error) => Arc::new(error),
        Undelivered::Failed(error) => Arc::new(*error),
    };
    RelayError::Row { sequence, topic, source }
}
