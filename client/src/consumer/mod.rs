//! Consuming: [`Consumer`] reads partitions in order, by credit, whatever happens to connections and leaders.
//!
//! | file | owns |
//! |---|---|
//! | `subscription` | one partition: place, credit, retries (pure) |
//! | `opening` | names of stays, openings and streams |
//! | `core` | all subscriptions, the feeds; who calls whom |
//! | `feed` | one Subscribe stream |
//! | `inbox` | what is received and not read yet |
//! | `selection` | filter, choice of replica (pure) |
//! | `record` | a record as the application sees it |

mod core;
mod feed;
mod inbox;
pub(crate) mod opening;
mod record;
pub(crate) mod selection;
pub(crate) mod subscription;

use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    sync::Arc,
};

use busbar_proto::{
    Offset, PartitionId,
    batch::{BatchError, Records, records},
};

pub(crate) use self::{
    core::Core,
    inbox::{Inbox, Item, Parcel},
};
use self::{opening::Tenure, selection::Selection, subscription::Subscription};
pub use self::{
    record::ConsumedRecord,
    selection::ReadFrom,
    subscription::{OnLoss, StartAt},
};
use crate::{
    cluster::Cluster,
    context,
    error::{ClientError, ConsumeError},
    task::Kind,
    watch::TopicWatch,
};

/// Reads a topic's partitions: order per partition, every record once, starting where it was told.
///
/// Memory is bounded by the credit: what the application has not read yet. Without groups and acknowledgements,
/// the application keeps its place itself ([`Consumer::positions`]) and starts there again ([`StartAt::Offset`]).
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::StartAt;
///
/// let mut consumer = client.consumer("orders").from(StartAt::Earliest).build().await?;
/// while let Some(record) = consumer.next().await? {
///     println!("{}/{}: {:?}", record.partition(), record.offset(), record.value());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Consumer {
    core: Arc<Core>,
    /// Taken from the inbox in one go.
    items: VecDeque<Item>,
    reading: Option<Reading>,
    /// The next offset that `next()` will return, of partitions that it has returned something of.
    positions: BTreeMap<PartitionId, Offset>,
    /// Records received that the filter does not match.
    filtered: u64,
    /// Partitions that begin at a time, until a record of that time has come: batches begin earlier.
    since_ms: BTreeMap<PartitionId, i64>,
}

/// The batch that records are taken from.
#[derive(Debug)]
struct Reading {
    partition: PartitionId,
    records: Records,
    from: Offset,
    bytes: usize,
    /// The offset after the last record returned, or skipped.
    next: Offset,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.core.tasks.stop();
    }
}

impl Consumer {
    /// The next record; waits for one. `None` after [`Self::close`].
    ///
    /// Cancel safe: a call that was dropped while it waited loses no record.
    ///
    /// # Errors
    /// [`ConsumeError`], when a partition can't be read without somebody doing something; the other partitions are
    /// read on. Calling again tries again.
    pub async fn next(&mut self) -> Result<Option<ConsumedRecord>, ConsumeError> {
        loop {
            if let Some(next) = self.next_of_batch() {
                return next.map(Some);
            }
            match self.items.pop_front() {
                Some(Item::Batch(parcel)) => self.open(parcel)?,
                Some(Item::Fault(partition, _, fault)) => {
                    self.core.resume(partition);
                    return Err(fault);
                }
                None if self.core.tasks.is_stopped() => return Ok(None),
                None => poll_fn(|cx| self.core.inbox.poll_take(&mut self.items, cx)).await,
            }
        }
    }

    /// The next record if one has been received already.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn try_next(&mut self) -> Result<Option<ConsumedRecord>, ConsumeError> {
        loop {
            if let Some(next) = self.next_of_batch() {
                return next.map(Some);
            }
            if self.items.is_empty() && !self.core.inbox.take(&mut self.items) {
                return Ok(None);
            }
            match self.items.pop_front() {
                Some(Item::Batch(parcel)) => self.open(parcel)?,
                Some(Item::Fault(partition, _, fault)) => {
                    self.core.resume(partition);
                    return Err(fault);
                }
                None => {}
            }
        }
    }

    /// Per partition: the next offset that [`Self::next`] will return. Partitions whose start is not known yet
    /// are left out.
    pub fn positions(&self) -> BTreeMap<u32, u64> {
        let placed = |subscription: &Subscription| match (subscription.is_placed(), subscription.next()) {
            (true, StartAt::Offset(next)) => Some(next),
            _ => None,
        };
        let fetched = self.core.read(placed).into_iter().filter_map(|(partition, next)| Some((partition, next?)));
        let mut positions: BTreeMap<_, _> = fetched.map(|(partition, next)| (partition.get(), next)).collect();
        // What is fetched but not returned yet counts as not read.
        let waiting = self.items.iter().rev().filter_map(|item| match item {
            Item::Batch(parcel) => Some((parcel.partition, parcel.from)),
            Item::Fault(..) => None,
        });
        let returned = self.positions.iter().map(|(&partition, &next)| (partition, next));
        let reading = self.reading.iter().map(|reading| (reading.partition, reading.next));
        for (partition, next) in waiting.chain(returned).chain(reading) {
            positions.insert(partition.get(), next.get());
        }
        positions
    }

    /// Per partition: records that are stored and not returned yet, as far as the broker has told.
    pub fn lag(&self) -> BTreeMap<u32, u64> {
        let positions = self.positions();
        let ends = self.core.read(Subscription::high_watermark).into_iter();
        let ends = ends.filter_map(|(partition, end)| Some((partition.get(), end?.get())));
        ends.filter_map(|(partition, end)| Some((partition, end.saturating_sub(*positions.get(&partition)?)))).collect()
    }

    /// Records that retention removed before they could be read, over all partitions.
    pub fn skipped(&self) -> u64 {
        self.core.read(Subscription::skipped).into_iter().map(|(_, skipped)| skipped).sum()
    }

    /// Records received and left out because the filter does not match them. Those of batches in which none could match
    /// are not counted: the broker did not send them.
    pub fn filtered(&self) -> u64 {
        self.filtered
    }

    /// The topic it reads.
    pub fn topic(&self) -> &str {
        &self.core.topic.name
    }

    /// Ends all streams. What was received already is still returned by [`Self::next`], then `None`.
    pub async fn close(&mut self) {
        self.core.tasks.stop();
        self.core.tasks.ended().await;
        let mut rest = VecDeque::new();
        if self.core.inbox.take(&mut rest) {
            self.items.append(&mut rest);
        }
    }

    /// The next record of the batch that is open; closes the batch at its end.
    fn next_of_batch(&mut self) -> Option<Result<ConsumedRecord, ConsumeError>> {
        let reading = self.reading.as_mut()?;
        loop {
            match reading.records.next() {
                Some(Ok(view)) => {
                    if view.offset < reading.from {
                        continue;
                    }
                    reading.next = view.offset.advance(1);
                    if let Some(&since_ms) = self.since_ms.get(&reading.partition) {
                        // What comes after the end that there was counts, whatever its time.
                        let subscription = self.core.one(reading.partition);
                        let was_there = subscription.is_some_and(|known| known.lock().was_there(view.offset));
                        if was_there && view.timestamp_ms < since_ms {
                            continue;
                        }
                        self.since_ms.remove(&reading.partition);
                    }
                    if !self.core.selection.wants(&view) {
                        self.filtered += 1;
                        continue;
                    }
                    return Some(Ok(ConsumedRecord::new(self.core.topic.name.clone(), reading.partition, view)));
                }
                Some(Err(fault)) => {
                    let (partition, offset) = (reading.partition, reading.next);
                    self.close_batch();
                    return Some(Err(self.undecodable(partition, offset, &fault)));
                }
                None => {
                    self.close_batch();
                    return None;
                }
            }
        }
    }

    fn open(&mut self, parcel: Parcel) -> Result<(), ConsumeError> {
        let bytes = parcel.bytes();
        context::received(&self.core.topic.name, None, &parcel);
        let Parcel { partition, tenure: _, batch, from } = parcel;
        let Some(batch) = batch else {
            self.positions.insert(partition, from);
            self.core.consumed(partition, Tenure::default(), bytes);
            return Ok(());
        };
        match records(batch) {
            Ok(records) => {
                self.reading = Some(Reading { partition, records, from, bytes, next: from });
                Ok(())
            }
            Err(fault) => {
                self.core.consumed(partition, Tenure::default(), bytes);
                Err(self.undecodable(partition, from, &fault))
            }
        }
    }

    fn close_batch(&mut self) {
        if let Some(Reading { partition, records, bytes, .. }) = self.reading.take() {
            self.positions.insert(partition, records.header().next_offset());
            self.core.consumed(partition, Tenure::default(), bytes);
        }
    }

    /// A batch whose checksum is right but whose content can't be read: its producer wrote it so. It is passed
    /// over, as it will never become readable.
    fn undecodable(&self, partition: PartitionId, offset: Offset, fault: &BatchError) -> ConsumeError {
        let fault = format!("{fault}; the rest of its batch is passed over");
        ConsumeError::Corrupt {
            topic: self.topic().to_owned(),
            partition: partition.get(),
            offset: offset.get(),
            fault,
        }
    }
}

/// Options of a [`Consumer`]; `build` makes it.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::StartAt;
///
/// let builder = client.consumer("orders").from(StartAt::Latest).partitions([0, 1]);
/// let consumer = builder.filter("region = 'eu'").credit_bytes(1 << 20).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until build() is called"]
pub struct ConsumerBuilder {
    cluster: Arc<Cluster>,
    topic: String,
    from: StartAt,
    on_loss: OnLoss,
    partitions: Option<Vec<u32>>,
    starts: BTreeMap<u32, StartAt>,
    credit_bytes: usize,
    filter: Option<String>,
    read_from: ReadFrom,
}

impl ConsumerBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>, topic: String) -> Self {
        Self {
            cluster,
            topic,
            from: StartAt::default(),
            on_loss: OnLoss::default(),
            partitions: None,
            starts: BTreeMap::new(),
            credit_bytes: 8 << 20,
            filter: None,
            read_from: ReadFrom::default(),
        }
    }

    /// Where to begin in every partition. Default: earliest.
    pub fn from(mut self, from: StartAt) -> Self {
        self.from = from;
        self
    }

    /// Where to begin in one partition: to go on where [`Consumer::positions`] said.
    pub fn from_in(mut self, partition: u32, from: StartAt) -> Self {
        self.starts.insert(partition, from);
        self
    }

    /// The partitions to read. Default: all.
    pub fn partitions(mut self, partitions: impl Into<Vec<u32>>) -> Self {
        self.partitions = Some(partitions.into());
        self
    }

    /// Bytes received and not read yet, all partitions together; each gets an equal part, but at least one batch
    /// of the topic's largest size. Default 8 MiB.
    pub fn credit_bytes(mut self, credit_bytes: usize) -> Self {
        self.credit_bytes = credit_bytes;
        self
    }

    /// Only records whose headers match, such as `ce_type = 'order.created' and region in ('eu', 'us')`: the language
    /// is described at [`Filter`](crate::Filter). Batches in which none can match are not sent (as far as their producer
    /// told, see [`ProducerBuilder::digest`](crate::ProducerBuilder::digest)), other records are left out here.
    /// Default: all records.
    pub fn filter(mut self, filter: impl Into<String>) -> Self {
        self.filter = Some(filter.into());
        self
    }

    /// Which replica of a partition is read. Default: its leader.
    pub fn read_from(mut self, read_from: ReadFrom) -> Self {
        self.read_from = read_from;
        self
    }

    /// What to do when retention has removed the records that would come next. Default: go on at the log start
    /// and count ([`Consumer::skipped`]).
    pub fn on_loss(mut self, on_loss: OnLoss) -> Self {
        self.on_loss = on_loss;
        self
    }

    /// Looks the topic up and starts reading. With [`StartAt::Latest`] and [`StartAt::Time`] it returns once every
    /// partition's beginning is known: whatever is published after that will be read.
    ///
    /// # Errors
    /// No such topic (the broker names the closest) or partition; a filter that does not parse; nobody answers; with
    /// `Latest` or `Time`, a partition without a leader.
    pub async fn build(self) -> Result<Consumer, ClientError> {
        let Self { cluster, topic, from, on_loss, partitions, starts, credit_bytes, filter, read_from } = self;
        let selection = Selection::new(filter.as_deref(), read_from)?;
        let topic = TopicWatch::open(&cluster, &topic).await?;
        let (count, batch_bytes_max) = {
            let view = topic.view();
            (view.partitions(), view.batch_bytes_max)
        };
        let chosen = partitions.unwrap_or_else(|| (0..count).collect());
        if let Some(unknown) = chosen.iter().chain(starts.keys()).find(|&&partition| partition >= count) {
            let found = unknown.to_string();
            return Err(ClientError::InvalidOption {
                option: "partitions",
                found,
                rule: "below the topic's number of partitions",
            });
        }
        if chosen.is_empty() {
            let (option, rule) = ("partitions", "at least one");
            return Err(ClientError::InvalidOption { option, found: "empty".to_owned(), rule });
        }
        let since_ms = chosen.iter().filter_map(|partition| match starts.get(partition).unwrap_or(&from) {
            StartAt::Time(time_ms) => Some((PartitionId::new(*partition), *time_ms)),
            StartAt::Earliest | StartAt::Latest | StartAt::Offset(_) => None,
        });
        let since_ms = since_ms.collect();
        let window = (credit_bytes / chosen.len()).max(batch_bytes_max) as u64;
        let subscriptions = chosen.iter().map(|partition| {
            let start = starts.get(partition).copied().unwrap_or(from);
            Subscription::new(PartitionId::new(*partition), start, on_loss, window)
        });
        let tasks = cluster.tasks.child();
        let core = Core::new(cluster, topic, tasks, Arc::default(), selection, subscriptions);
        core.tasks.spawn(Kind::ConsumerUpkeep, core.clone().upkeep());
        let (items, positions) = (VecDeque::new(), BTreeMap::new());
        let consumer = Consumer { core, items, reading: None, positions, filtered: 0, since_ms };
        consumer.wait_for_ends().await?;
        Ok(consumer)
    }
}

impl Consumer {
    async fn wait_for_ends(&self) -> Result<(), ClientError> {
        let timeout = self.core.cluster.request_timeout;
        let deadline = self.core.cluster.env.now() + timeout;
        loop {
            let changed = self.core.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let open = self.core.read(|subscription| matches!(subscription.next(), StartAt::Latest | StartAt::Time(_)));
            let Some((partition, _)) = open.into_iter().find(|&(_, open)| open) else { return Ok(()) };
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                let topic = self.topic();
                let what = format!("find the end of partition {partition} of {topic:?}");
                let last = "its leader did not open the subscription; `busbar cluster status` shows leaders".to_owned();
                return Err(ClientError::Timeout { what, waited: timeout, last });
            }
        }
    }
}
