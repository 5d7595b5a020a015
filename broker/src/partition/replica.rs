//! One partition's replica on this node: admission of publishes, bounds, readers, and what upkeep needs.
//!
//! Bytes are admitted before they are kept: a publish waits for room in the partition's and the node's budget, so its
//! stream is not read meanwhile; what waits too long is refused with a delay. Nothing here queues without a bound.

use std::{sync::Arc, time::Duration};

use busbar_machine::{
    catalog::{Durability, TopicConfig},
    partition::{EntryHead, PartitionMachine},
};
use busbar_proto::{
    GroupId, LogIndex, Offset, PartitionId, Reason, Refusal, TopicId, batch, compaction::KeyDigest, limits,
};
use busbar_storage::LogEngine;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

use super::{
    Claims,
    cleaner::Cleaning,
    reader::{Reader, out_of_range},
    sequencer::{Publish, PublishResult, SequencerTask, no_leader, not_leader},
};
use crate::{
    channel::{Closed, Sender, channel},
    env::{Clock, Tasks},
    raft::{Group, Proposal, ProposeError},
};

/// Publishes queued before the sequencer; their bytes are bounded by the budgets.
const QUEUE_PUBLISHES: usize = 4096;
/// Read at once when a time is looked for behind an entry without records.
const TIME_SCAN_BYTES: usize = 1 << 20;
/// How long a publish may wait for room before it is refused.
const ADMISSION_WAIT: Duration = Duration::from_secs(5);

/// What a replica is made of.
pub struct ReplicaOptions {
    /// The topic.
    pub topic: TopicId,
    /// Number within the topic.
    pub partition: PartitionId,
    /// Its raft group, started.
    pub group: Group<PartitionMachine>,
    /// The topic's configuration.
    pub config: TopicConfig,
    /// For disk-full checks.
    pub engine: LogEngine,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What the cluster knows of named producers.
    pub claims: Arc<dyn Claims>,
    /// The replica's own tasks.
    pub tasks: Tasks,
    /// The node's budget of publish bytes under way.
    pub node_budget: Arc<Semaphore>,
    /// The partition's budget, in bytes.
    pub partition_bytes: usize,
}

/// What a client wants stored.
pub struct Offered {
    /// The whole batch, not verified.
    pub batch: Bytes,
    /// What its producer told of its records' headers; sound, or empty.
    pub digest: Bytes,
    /// What it told of their keys; sound, or empty.
    pub keys: Bytes,
    /// Refuse instead of store after this time, milliseconds since the Unix epoch.
    pub deadline_unix_ms: Option<i64>,
}

/// See the module.
pub struct Replica {
    topic: TopicId,
    partition: PartitionId,
    group: Arc<Group<PartitionMachine>>,
    config: RwLock<TopicConfig>,
    pub(super) cleaning: Mutex<Cleaning>,
    engine: LogEngine,
    tasks: Tasks,
    node_budget: Arc<Semaphore>,
    budget: Arc<Semaphore>,
    queue: Sender<Publish>,
}

impl Replica {
    /// Starts the sequencer over a started group.
    pub fn start(options: ReplicaOptions) -> Arc<Self> {
        let ReplicaOptions { topic, partition, group, config, engine, clock, claims, tasks, .. } = options;
        let ReplicaOptions { node_budget, partition_bytes, .. } = options;
        let group = Arc::new(group);
        let (queue, publishes) = channel(QUEUE_PUBLISHES);
        let sequencer = SequencerTask { group: group.clone(), clock, claims, publishes };
        tasks.spawn("sequencer", sequencer.run());
        let budget = Arc::new(Semaphore::new(partition_bytes));
        let config = RwLock::new(config);
        let cleaning = Mutex::default();
        Arc::new(Self { topic, partition, group, config, cleaning, engine, tasks, node_budget, budget, queue })
    }

    /// The topic.
    pub fn topic(&self) -> TopicId {
        self.topic
    }

    /// Number within the topic.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Its raft group.
    pub fn group(&self) -> &Arc<Group<PartitionMachine>> {
        &self.group
    }

    /// Its raft group's id.
    pub fn group_id(&self) -> GroupId {
        self.group.id()
    }

    /// The topic's configuration.
    pub fn config(&self) -> TopicConfig {
        *self.config.read()
    }

    /// Whether publishes are acknowledged after the fsync.
    pub fn is_fsynced(&self) -> bool {
        self.config.read().durability == Durability::Fsync
    }

    /// Log start and high watermark.
    pub fn bounds(&self) -> (Offset, Offset) {
        let machine = self.group.shared().read();
        (machine.log_start(), machine.high_watermark())
    }

    /// Verifies a batch, waits for room and queues it; `answer` is called once with the outcome, also on refusal.
    /// Not cancel safe: a cancelled call may have queued it.
    pub async fn publish(&self, offered: Offered, answer: Box<dyn FnOnce(PublishResult) + Send>) {
        let Offered { batch, digest, keys, deadline_unix_ms } = offered;
        let leadership = self.group.leadership();
        if !leadership.is_self && leadership.leader.is_some() {
            return answer(Err(not_leader(leadership)));
        }
        let checked = self.check(&batch).and_then(|header| Ok((header, self.check_keys(&header, keys)?)));
        let (header, keys) = match checked {
            Ok(checked) => checked,
            Err(refusal) => return answer(Err(refusal)),
        };
        let bytes = u32::try_from(batch.len() + digest.len() + keys.len()).unwrap_or(u32::MAX);
        let admitted = async {
            let partition = self.budget.clone().acquire_many_owned(bytes).await;
            let node = self.node_budget.clone().acquire_many_owned(bytes).await;
            partition.and_then(|partition| node.map(|node| [partition, node]))
        };
        let permits = match tokio::time::timeout(ADMISSION_WAIT, admitted).await {
            Ok(Ok(permits)) => permits,
            Ok(Err(_)) => return answer(Err(stopping())),
            Err(_) => {
                let message = "the publish budget has been spent for seconds: the disk or a majority is too slow";
                return answer(Err(Refusal::new(Reason::Overloaded, message).retry_after(Duration::from_millis(500))));
            }
        };
        let publish = Publish { header, batch, digest, keys, deadline_unix_ms, answer, permits };
        if let Err(Closed(publish)) = self.queue.send(publish).await {
            (publish.answer)(Err(stopping()));
        }
    }

    pub(super) fn check_disk(&self) -> Result<(), Refusal> {
        if self.engine.is_disk_low() {
            let message = "the disk is nearly full: publishes are refused until space is freed; reads go on";
            return Err(Refusal::new(Reason::DiskFull, message).retry_after(Duration::from_secs(1)));
        }
        Ok(())
    }

    fn check(&self, batch: &[u8]) -> Result<batch::BatchHeader, Refusal> {
        self.check_disk()?;
        let limit = self.config.read().max_batch_bytes as usize;
        if batch.len() > limit {
            let message = format!("a batch of {} bytes is over the topic's limit of {limit}", batch.len());
            return Err(Refusal::new(Reason::BatchTooLarge, message));
        }
        batch::verify(batch, limit).map_err(|error| Refusal::new(Reason::CorruptBatch, error.to_string()))
    }

    /// What is stored of the keys: nothing, unless the topic is compacted.
    fn check_keys(&self, header: &batch::BatchHeader, keys: Bytes) -> Result<Bytes, Refusal> {
        if !self.config.read().cleanup.compacts() {
            return Ok(Bytes::new());
        }
        let told = KeyDigest::decode(&keys).map_or(0, |digest| digest.len());
        if keys.is_empty() || told != header.record_count as usize {
            let message = format!(
                "the topic is compacted, and of a batch of {} records the keys of {told} were told: each record needs a key, \
                 and its producer a client that knows of compaction (at most {} records a batch)",
                header.record_count,
                limits::COMPACTED_BATCH_RECORDS_MAX
            );
            return Err(Refusal::new(Reason::InvalidArgument, message));
        }
        Ok(keys)
    }

    /// Whether this replica leads and knows everything that was committed before it did.
    ///
    /// # Errors
    /// [`Reason::NotLeader`]; [`Reason::NoLeader`] while the first entry of its term is not applied: until then its
    /// high watermark may be below what its predecessor has shown to readers.
    pub fn require_leading(&self) -> Result<(), Refusal> {
        let leadership = self.group.leadership();
        if !leadership.is_self {
            return Err(not_leader(leadership));
        }
        if self.group.shared().applied().at.term != leadership.term {
            return Err(no_leader());
        }
        Ok(())
    }

    /// Waits until the high watermark is at `offset`, or so long at most: a replica that does not lead is a little
    /// behind those that a reader may come from. Cancel safe.
    pub async fn reaches(&self, offset: Offset, patience: Duration) {
        let mut applied = self.group.shared().watch();
        // Too late, or stopped: what is asked for next says so.
        let _ = tokio::time::timeout(patience, applied.wait_for(|state| state.mark >= offset.get())).await;
    }

    /// A reader from `offset`.
    ///
    /// # Errors
    /// [`Reason::OffsetOutOfRange`].
    pub fn reader(self: &Arc<Self>, offset: Offset) -> Result<Reader, Refusal> {
        let (log_start, high_watermark) = self.bounds();
        if offset < log_start || offset > high_watermark {
            return Err(out_of_range(offset, log_start, high_watermark));
        }
        Ok(Reader::new(self.clone(), offset))
    }

    /// The offset of the first record at or after a time, as far as batches tell; the high watermark if there is none.
    pub async fn offset_at(&self, time_ms: i64) -> Result<Offset, Refusal> {
        let (log_start, high_watermark) = self.bounds();
        let unreadable = |error: busbar_storage::ReadError| {
            Refusal::new(Reason::Internal, format!("the time index can't be read: {error}"))
        };
        let Some(index) = self.group.log().find_time(time_ms).await.map_err(unreadable)? else {
            return Ok(high_watermark);
        };
        // What was found may be an entry without records, such as a new leader's first: those have times, too.
        let mut from = LogIndex::new(index);
        loop {
            let (entries, next) = self.group.read_records(from, TIME_SCAN_BYTES).await.map_err(unreadable)?;
            for entry in entries.iter().filter(|entry| !self.group.shared().read().is_void(entry.index)) {
                let Ok(EntryHead::Batches { batches, .. }) = EntryHead::decode(&entry.head) else { continue };
                if let Some(batch) = batches.iter().find(|batch| batch.max_timestamp_ms >= time_ms) {
                    return Ok(batch.base_offset.max(log_start));
                }
            }
            if next <= from {
                return Ok(high_watermark);
            }
            from = next;
        }
    }

    /// Moves the log start, on every replica. Only on the leader.
    pub async fn trim(&self, log_start: Offset, now_ms: i64) -> Result<(), ProposeError> {
        let head = EntryHead::Trim { log_start }.encode();
        let head_len = u32::try_from(head.len()).unwrap_or(u32::MAX);
        let mark = self.group.mark();
        let proposal = Proposal { mark, time_ms: now_ms, head_len, payload: head };
        self.group.propose(proposal).await.map(drop)
    }

    /// Takes the topic's new configuration.
    pub fn reconfigure(&self, config: TopicConfig) {
        *self.config.write() = config;
    }

    /// Stops the sequencer and the group. The log stays.
    pub async fn stop(&self, checkpoint: bool) {
        self.budget.close();
        if checkpoint {
            self.group.checkpoint().await;
        }
        self.group.stop().await;
        self.tasks.shutdown(Duration::from_secs(5)).await;
    }
}

fn stopping() -> Refusal {
    Refusal::new(Reason::ShuttingDown, "this node is stopping or gave the partition away: retry elsewhere")
}
