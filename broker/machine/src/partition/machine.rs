//! The applied state of one partition: where its records end and begin, which entries are void, who wrote last.
//!
//! ```text
//!            log_start                next_offset = high watermark (what is applied is committed)
//!   ─ ─ ─ ─ ─|────────────────────────|
//!   trimmed    readable                 the next record goes here
//! ```
//! Invariants: offsets are dense: each stored batch begins where the one before ended. `log_start <= next_offset`.
//! An entry counts as a whole or is void as a whole; a void entry moves no offset and no producer, and readers skip
//! its body by asking [`PartitionMachine::is_void`]. It never reads a body.

use std::collections::BTreeSet;

use busbar_proto::{LogIndex, LogPosition, Offset, ProducerEpoch, ProducerId, Term};

use super::{
    entry::{BatchSummary, EntryHead},
    producers::{Draft, Producer, ProducerLimits, ProducerTable, SequenceFault, Verdict},
    settled::Settled,
};

/// What applying one entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Applied {
    /// Its records are stored.
    Stored {
        /// Offset of the first.
        base_offset: Offset,
        /// Offset after the last.
        next_offset: Offset,
        /// Batches among them.
        batches: u32,
    },
    /// Nothing of it is stored, nor will be. A leader whose own entry this was must make a new
    /// [`super::Sequencer`]: what it speculated did not come true.
    Voided(VoidReason),
    /// The log start moved.
    Trimmed {
        /// The first offset that stays.
        log_start: Offset,
    },
    /// Older epochs of a producer are refused from now on.
    Fenced {
        /// The producer.
        producer: ProducerId,
        /// The oldest epoch that may write.
        epoch: ProducerEpoch,
    },
    /// More tombstones are settled.
    Settled {
        /// What lies below was examined by every replica.
        offset: Offset,
    },
    /// There was nothing to do: no batch in it, a trim to where the log already begins (or has not come to), a
    /// fence behind another, or an older word on tombstones.
    Nothing,
}

/// Why an entry counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VoidReason {
    /// Its batches carry the epoch of another term than the entry's.
    #[error("its batches are stamped with epoch {stamped}, the entry is of term {term}")]
    Epoch {
        /// In the batches.
        stamped: Term,
        /// Of the entry.
        term: Term,
    },
    /// A batch does not begin where the one before ended.
    #[error("a batch begins at offset {found}, where {expected} is next")]
    Offset {
        /// The next offset.
        expected: Offset,
        /// The one stamped.
        found: Offset,
    },
    /// A batch is stored already.
    #[error("producer {producer} has this batch at offset {base_offset} already")]
    Duplicate {
        /// Whose.
        producer: ProducerId,
        /// Where.
        base_offset: Offset,
    },
    /// A batch does not follow its producer's last one.
    #[error("producer {producer}: {fault}")]
    Sequence {
        /// Whose.
        producer: ProducerId,
        /// What is wrong.
        fault: SequenceFault,
    },
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionMachine {
    pub(super) applied: Option<LogPosition>,
    pub(super) log_start: Offset,
    pub(super) next_offset: Offset,
    pub(super) voids: BTreeSet<LogIndex>,
    pub(super) producers: ProducerTable,
    pub(super) settled: Settled,
}

impl Default for PartitionMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl PartitionMachine {
    /// An empty partition.
    pub fn new() -> Self {
        Self::with_limits(ProducerLimits::default())
    }

    /// An empty partition that remembers as many producers as `limits` say. All replicas must agree on them.
    pub fn with_limits(limits: ProducerLimits) -> Self {
        Self {
            applied: None,
            log_start: Offset::ZERO,
            next_offset: Offset::ZERO,
            voids: BTreeSet::new(),
            producers: ProducerTable::new(limits),
            settled: Settled::default(),
        }
    }

    /// Applies the committed entry at `at`.
    ///
    /// # Panics
    /// When `at` does not lie after what is applied: the caller replays what must be replayed once.
    pub fn apply(&mut self, at: LogPosition, head: &EntryHead) -> Applied {
        self.advance(at);
        match head {
            EntryHead::Batches { epoch, stamped_ms, batches } => self.store(at, *epoch, *stamped_ms, batches),
            EntryHead::Trim { log_start } => self.trim(*log_start),
            EntryHead::Fence { producer, epoch, stamped_ms } => self.fence(*producer, *epoch, *stamped_ms),
            EntryHead::Settled(settled) => self.settle(settled),
        }
    }

    /// Passes an entry that carries nothing for the partition: a blank or a membership.
    ///
    /// # Panics
    /// When `at` does not lie after what is applied.
    pub fn advance(&mut self, at: LogPosition) {
        if let Some(applied) = self.applied {
            assert!(at.index > applied.index && at.term >= applied.term, "entry {at} can't follow {applied}");
        }
        self.applied = Some(at);
    }

    /// The last entry applied; `None` before the first.
    pub fn applied(&self) -> Option<LogPosition> {
        self.applied
    }

    /// The offset that the next record takes.
    pub fn next_offset(&self) -> Offset {
        self.next_offset
    }

    /// The offset up to which records may be read: everything applied is committed.
    pub fn high_watermark(&self) -> Offset {
        self.next_offset
    }

    /// The first offset that may be read.
    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    /// Whether readers must skip the applied entry at `index`.
    pub fn is_void(&self, index: LogIndex) -> bool {
        self.voids.contains(&index)
    }

    /// The indexes of void entries, ascending.
    pub fn voids(&self) -> impl ExactSizeIterator<Item = LogIndex> {
        self.voids.iter().copied()
    }

    /// Forgets which entries below `index` are void. For when the log's entries below it are gone.
    pub fn forget_below(&mut self, index: LogIndex) {
        self.voids = self.voids.split_off(&index);
    }

    /// Moves the log start up to the next offset. For a replica that begins with a peer's checkpoint and holds no
    /// entry that it covers; the trim that let the peer purge them follows in the log, if it has not been applied.
    pub fn begin_after_checkpoint(&mut self) {
        self.log_start = self.next_offset;
        self.voids.clear();
    }

    /// Every producer that is remembered, by id.
    pub fn producers(&self) -> impl ExactSizeIterator<Item = (ProducerId, &Producer)> {
        self.producers.iter()
    }

    /// The producer of that id, if it is remembered.
    pub fn producer(&self, id: ProducerId) -> Option<&Producer> {
        self.producers.get(id)
    }

    /// The oldest epoch of a producer that may write, as far as is remembered: of what it wrote last, or of its fence.
    pub fn oldest_epoch(&self, id: ProducerId) -> Option<ProducerEpoch> {
        self.producers.oldest_epoch(id)
    }

    /// The fences of producers that have not written under their new epoch: producer and oldest epoch, by producer.
    pub fn fences(&self) -> impl ExactSizeIterator<Item = (ProducerId, ProducerEpoch)> {
        self.producers.fences().map(|(id, fence)| (id, fence.epoch))
    }

    /// Which tombstones every replica is done with.
    pub fn settled(&self) -> &Settled {
        &self.settled
    }

    fn settle(&mut self, settled: &Settled) -> Applied {
        if settled.offset < self.settled.offset || settled.offset > self.next_offset {
            return Applied::Nothing;
        }
        self.settled = settled.clone();
        Applied::Settled { offset: settled.offset }
    }

    fn fence(&mut self, producer: ProducerId, epoch: ProducerEpoch, stamped_ms: i64) -> Applied {
        match self.producers.fence(producer, epoch, stamped_ms) {
            true => Applied::Fenced { producer, epoch },
            false => Applied::Nothing,
        }
    }

    fn store(&mut self, at: LogPosition, epoch: Term, stamped_ms: i64, batches: &[BatchSummary]) -> Applied {
        if batches.is_empty() {
            return Applied::Nothing;
        }
        match self.check(at, epoch, batches) {
            Ok((draft, next_offset)) => {
                assert!(next_offset > self.next_offset, "a sound entry has records");
                let base_offset = std::mem::replace(&mut self.next_offset, next_offset);
                self.producers.commit(draft, stamped_ms);
                Applied::Stored { base_offset, next_offset, batches: batches.len().try_into().unwrap_or(u32::MAX) }
            }
            Err(reason) => {
                self.voids.insert(at.index);
                Applied::Voided(reason)
            }
        }
    }

    /// What the entry would change, if all of it is sound.
    fn check(&self, at: LogPosition, epoch: Term, batches: &[BatchSummary]) -> Result<(Draft, Offset), VoidReason> {
        if epoch != at.term {
            return Err(VoidReason::Epoch { stamped: epoch, term: at.term });
        }
        let mut draft = Draft::default();
        let mut expected = self.next_offset;
        for batch in batches {
            if batch.base_offset != expected {
                return Err(VoidReason::Offset { expected, found: batch.base_offset });
            }
            let producer = batch.producer_id;
            match draft.judge(&self.producers, batch) {
                Verdict::Next => draft.push(&self.producers, batch),
                Verdict::Duplicate { base_offset } => return Err(VoidReason::Duplicate { producer, base_offset }),
                Verdict::Fault(fault) => return Err(VoidReason::Sequence { producer, fault }),
            }
            expected = batch.next_offset();
        }
        Ok((draft, expected))
    }

    fn trim(&mut self, log_start: Offset) -> Applied {
        if log_start <= self.log_start || log_start > self.next_offset {
            return Applied::Nothing;
        }
        self.log_start = log_start;
        Applied::Trimmed { log_start }
    }
}
