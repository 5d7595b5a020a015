//! Taking records: who waits for room, and which partition a record goes to.
//!
//! ```text
//!  send() --> line of its partition? --no--> buffer space --> its partition has room? --yes--> batcher
//!                   | somebody waits there                        | no: it is stuck, and has its share
//!                   '------> wait for one's turn, then for room <-'
//! ```
//! Invariants: nobody waits with buffer space in hand; a record that waits is nowhere but in its caller's hands, so that a
//! call that is dropped leaves nothing behind; a record for a partition that gets things done never waits behind one for
//! a partition that does not.

use std::sync::{Arc, atomic::Ordering};

use busbar_proto::{PartitionId, partition_of_key};
use tokio::{
    sync::{SemaphorePermit, TryAcquireError},
    time::Instant,
};

use crate::{
    error::SendError,
    producer::{batcher::Times, core::Core, shard::Shard, ticket::Delivery},
    record::Record,
};

impl Core {
    /// Takes a record; waits for room, but not beyond the record's own deadline: then `None`. Cancel safe.
    pub(super) async fn take(
        self: &Arc<Self>,
        record: &Record,
        held_bytes: u32,
    ) -> Result<Option<Delivery>, SendError> {
        if let Some(delivery) = self.take_now(record, held_bytes)? {
            return Ok(Some(delivery));
        }
        let begun = self.cluster.env.now();
        let waiting = self.wait_and_take(record, held_bytes);
        let taken = match record.send_before_ms.map(|deadline_ms| self.cluster.env.at_unix_ms(deadline_ms)) {
            None => waiting.await.map(Some),
            Some(deadline) => tokio::time::timeout_at(deadline, waiting).await.ok().transpose(),
        };
        self.counters.waited(self.cluster.env.now() - begun);
        taken
    }

    /// The delivery of a record that there was no room for before its own deadline.
    pub(super) fn never_taken(&self, record: &Record, begun: Option<Instant>) -> Result<Delivery, SendError> {
        let partition = self.wanted(record)?.unwrap_or_else(|| self.sticky.current());
        let now = self.cluster.env.now();
        let finished = self.shard(partition).lock().never_taken(begun.unwrap_or(now), self.clock(now));
        self.counters.taken();
        let delivery = Delivery::new(finished.ticket.clone(), 0);
        self.announce([finished]);
        Ok(delivery)
    }

    /// Takes a record if there is room now.
    pub(super) fn take_now(self: &Arc<Self>, record: &Record, held_bytes: u32) -> Result<Option<Delivery>, SendError> {
        let wanted = self.wanted(record)?;
        if self.room.line(wanted).is_used() || !self.room.seems_open(wanted, held_bytes as usize) {
            return if self.room.space.is_closed() { Err(self.closed()) } else { Ok(None) };
        }
        match self.room.space.try_acquire_many(held_bytes) {
            Ok(space) => self.enqueue(record, wanted, space),
            Err(TryAcquireError::Closed) => Err(self.closed()),
            Err(TryAcquireError::NoPermits) => Ok(None),
        }
    }

    async fn wait_and_take(self: &Arc<Self>, record: &Record, held_bytes: u32) -> Result<Delivery, SendError> {
        let wanted = self.wanted(record)?;
        let line = self.room.line(wanted);
        if !line.is_used() && self.room.seems_open(wanted, held_bytes as usize) {
            // The buffer is full: all wait for it in one line, whatever their partition.
            let space = self.space(held_bytes).await?;
            if !line.is_used()
                && let Some(delivery) = self.enqueue(record, wanted, space)?
            {
                return Ok(delivery);
            }
        }
        self.take_in_turn(wanted, record, held_bytes).await
    }

    /// The partition is stuck: behind whoever waits for it.
    async fn take_in_turn(
        self: &Arc<Self>,
        wanted: Option<PartitionId>,
        record: &Record,
        held_bytes: u32,
    ) -> Result<Delivery, SendError> {
        let place = self.room.line(wanted).join();
        let _turn = place.first().await;
        loop {
            let change = self.room.change();
            tokio::pin!(change);
            // From here on no change is missed.
            change.as_mut().enable();
            self.check_open()?;
            if self.room.seems_open(wanted, held_bytes as usize) {
                let space = self.space(held_bytes).await?;
                if let Some(delivery) = self.enqueue(record, wanted, space)? {
                    return Ok(delivery);
                }
            }
            // There is one to come: something is parked, and will be stored or given up.
            change.await;
        }
    }

    async fn space(&self, held_bytes: u32) -> Result<SemaphorePermit<'_>, SendError> {
        self.room.space.acquire_many(held_bytes).await.map_err(|_| self.closed())
    }

    /// The partition that the record must go to, if it may not go to any.
    fn wanted(&self, record: &Record) -> Result<Option<PartitionId>, SendError> {
        if record.key.is_none() && self.is_compacted() {
            return Err(SendError::KeyRequired { topic: self.topic.name.to_string() });
        }
        let partitions = self.partitions();
        match (record.partition, &record.key) {
            (Some(partition), _) if partition >= partitions => {
                let topic = self.topic.name.to_string();
                Err(SendError::UnknownPartition { topic, partition, partitions })
            }
            (Some(partition), _) => Ok(Some(PartitionId::new(partition))),
            (None, Some(key)) => Ok(Some(partition_of_key(key, partitions))),
            (None, None) => Ok(None),
        }
    }

    fn check_open(&self) -> Result<(), SendError> {
        if self.is_closed() || self.is_fenced() {
            return Err(self.closed());
        }
        match self.is_gone() {
            true => Err(SendError::TopicGone { topic: self.topic.name.to_string() }),
            false => Ok(()),
        }
    }

    /// Puts a record into a batch, with its buffer space; `None`, and the space is free again, when its partition is
    /// stuck and has its share.
    fn enqueue(
        self: &Arc<Self>,
        record: &Record,
        wanted: Option<PartitionId>,
        space: SemaphorePermit<'_>,
    ) -> Result<Option<Delivery>, SendError> {
        let delivery = self.place(record, wanted, space.num_permits())?;
        if delivery.is_some() {
            // Given back with the record's outcome.
            space.forget();
            self.counters.taken();
        }
        Ok(delivery)
    }

    fn place(
        self: &Arc<Self>,
        record: &Record,
        wanted: Option<PartitionId>,
        held_bytes: usize,
    ) -> Result<Option<Delivery>, SendError> {
        let times = Times {
            timestamp_ms: record.timestamp_ms.unwrap_or_else(|| self.cluster.env.unix_ms()),
            send_before: record.send_before_ms.map(|deadline_ms| self.cluster.env.at_unix_ms(deadline_ms)),
        };
        let mut partition = wanted.unwrap_or_else(|| self.sticky.current());
        let mut shard = self.shard(partition).lock();
        // Any other partition is better than one that is stuck.
        let leave = |shard: &Shard| {
            let begins = shard.batcher.begins_batch(record, times.send_before);
            shard.stuck || (begins && !self.sticky.may_begin(shard.partition))
        };
        if wanted.is_none() && leave(&shard) {
            drop(shard);
            partition = self.move_on();
            shard = self.shard(partition).lock();
            self.sticky.may_begin(partition);
        }
        self.check_open()?;
        if shard.stuck {
            if !self.room.reserve(held_bytes) {
                return Ok(None);
            }
            shard.counted_bytes += held_bytes as u64;
        }
        let begins = shard.batcher.begins_batch(record, times.send_before);
        let placed = match shard.batcher.push(record, times, held_bytes, || self.cluster.env.now()) {
            Ok(placed) => placed,
            Err(too_large) => {
                self.weigh(&mut shard, self.cluster.env.now());
                let (bytes, limit) = (too_large.bytes, too_large.limit);
                return Err(SendError::TooLarge { topic: self.topic.name.to_string(), bytes, limit });
            }
        };
        self.load(partition).taken(held_bytes);
        // Most records join a batch that waits for the window: nothing is to be done for them.
        let now = self.cluster.env.now();
        if begins || shard.batcher.is_ready(shard.window.len(), now) {
            self.pump(&mut shard, now);
        }
        Ok(Some(Delivery::new(placed.ticket, placed.index)))
    }

    fn move_on(&self) -> PartitionId {
        let view = self.topic.view();
        let now_ms = self.load_ms(self.cluster.env.now());
        let cost = |partition: PartitionId| {
            view.leader(partition)?;
            self.load(partition).cost(self.options.batch_bytes, now_ms)
        };
        self.sticky.move_on(self.partitions(), self.cluster.env.random(), cost)
    }

    /// Whether the topic keeps the newest record of each key only.
    pub(crate) fn is_compacted(&self) -> bool {
        self.options.compacted
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}
