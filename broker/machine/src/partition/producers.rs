//! The producer table: who wrote last, so that nothing is stored twice and nothing is stored after a hole.
//!
//! For each producer the table knows its epoch and its last [`RECENT_BATCHES`] batches (as many as Kafka's clients keep
//! in flight), which a retry is answered from. Rules, the same for the leader's speculation and for `apply`:
//!
//! | the batch | verdict |
//! |---|---|
//! | no producer id | next |
//! | unknown producer, or a newer epoch | next if its sequence is 0, else a gap |
//! | an older epoch, or one below the producer's fence | fenced |
//! | continues the last batch | next |
//! | equals one of the recent batches | duplicate, with its offset |
//! | behind, but not one of them | too old, or cut differently than it was stored |
//! | ahead | gap |
//!
//! Invariants: a producer has at least one recent batch, and they are consecutive; `by_age` holds exactly the last
//! offset of each. The table is bounded: each entry, when it is committed, forgets those that were idle longest, by
//! order of offsets (which needs no clock), and those idle for longer than the limit, by the leaders' stamped clocks.
//! A forgotten producer that comes back must begin anew at sequence 0, best under a new id: that its old batches would
//! not be recognized then is the price of the bound.

use std::collections::BTreeMap;

use busbar_proto::{Offset, ProducerEpoch, ProducerId, Reason, Refusal, Sequence};

use super::{
    entry::BatchSummary,
    fences::{Fence, Fences},
};

/// Batches of a producer that a retry is recognized by.
pub const RECENT_BATCHES: usize = 5;
/// Sequences run from 0 to `i32::MAX` and over again.
const SEQUENCES: u64 = 1 << 31;

/// How much is remembered. Part of the replicated state: fixed when a partition is made, carried by its checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerLimits {
    /// Producers at most.
    pub producers_max: u32,
    /// Idle time after which one is forgotten, in milliseconds of the leaders' clocks.
    pub idle_ms_max: u64,
}

impl Default for ProducerLimits {
    /// 100,000 producers, 7 days.
    fn default() -> Self {
        Self { producers_max: 100_000, idle_ms_max: 7 * 24 * 60 * 60 * 1_000 }
    }
}

/// A batch that is stored (or, in a sequencer, on its way).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredBatch {
    /// The producer's number of its first record.
    pub base_sequence: Sequence,
    /// Its records.
    pub record_count: u32,
    /// The offset of its first record.
    pub base_offset: Offset,
}

impl StoredBatch {
    /// The offset after its last record.
    pub(super) fn next_offset(&self) -> Offset {
        self.base_offset.advance(self.record_count.into())
    }
}

/// One producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    pub(super) epoch: ProducerEpoch,
    /// Records stored under this epoch, to tell a sequence that was used from one that is yet to come.
    pub(super) epoch_records: u64,
    /// The log time when it last wrote.
    pub(super) last_ms: i64,
    /// Oldest first; the first `recent_len` count.
    recent: [StoredBatch; RECENT_BATCHES],
    recent_len: u8,
}

impl Producer {
    /// A producer whose first batch under `epoch` is `first`.
    pub(super) fn new(epoch: ProducerEpoch, first: StoredBatch) -> Self {
        let recent = [StoredBatch::default(); RECENT_BATCHES];
        let mut producer = Self { epoch, epoch_records: 0, last_ms: i64::MIN, recent, recent_len: 0 };
        producer.push(first);
        producer
    }

    /// Its incarnation.
    pub fn epoch(&self) -> ProducerEpoch {
        self.epoch
    }

    /// Its last batches, oldest first; never empty.
    pub fn recent(&self) -> &[StoredBatch] {
        self.recent.get(..self.recent_len.into()).unwrap_or(&self.recent)
    }

    /// Its newest batch.
    pub fn last(&self) -> StoredBatch {
        self.recent().last().copied().unwrap_or_default()
    }

    /// The sequence that its next batch must begin with.
    pub fn next_sequence(&self) -> Sequence {
        let last = self.last();
        last.base_sequence.advance(last.record_count)
    }

    /// Adds the batch that follows.
    pub(super) fn push(&mut self, batch: StoredBatch) {
        self.epoch_records = self.epoch_records.saturating_add(batch.record_count.into());
        let len = usize::from(self.recent_len);
        if len == RECENT_BATCHES {
            self.recent.rotate_left(1);
            self.recent[RECENT_BATCHES - 1] = batch;
        } else {
            self.recent[len] = batch;
            self.recent_len += 1;
        }
    }

    fn judge(&self, batch: &BatchSummary) -> Verdict {
        if batch.producer_epoch < self.epoch {
            return Verdict::Fault(SequenceFault::Fenced { current: self.epoch });
        }
        if batch.producer_epoch > self.epoch {
            return first_of_epoch(batch.base_sequence);
        }
        let expected = self.next_sequence();
        if batch.base_sequence == expected {
            return Verdict::Next;
        }
        let is_same = |stored: &&StoredBatch| {
            stored.base_sequence == batch.base_sequence && stored.record_count == batch.record_count
        };
        // The newest first: after a wrap within few huge batches, two of them may look the same.
        if let Some(stored) = self.recent().iter().rev().find(is_same) {
            return Verdict::Duplicate { base_offset: stored.base_offset };
        }
        let behind = sequences_between(batch.base_sequence, expected);
        if behind > self.epoch_records.min(SEQUENCES / 2) {
            return Verdict::Fault(SequenceFault::Gap { expected });
        }
        let oldest = self.recent().first().copied().unwrap_or_default();
        let oldest_behind = sequences_between(oldest.base_sequence, expected);
        let fault = match behind.saturating_sub(batch.record_count.into()) >= oldest_behind {
            true => SequenceFault::TooOld { oldest: oldest.base_sequence },
            false => SequenceFault::CutDifferently { expected },
        };
        Verdict::Fault(fault)
    }
}

/// How many sequences lead from `from` to `to`, over the wrap.
fn sequences_between(from: Sequence, to: Sequence) -> u64 {
    (i64::from(to.get()) - i64::from(from.get())).rem_euclid(SEQUENCES as i64) as u64
}

fn first_of_epoch(sequence: Sequence) -> Verdict {
    let expected = Sequence::new(0);
    if sequence == expected { Verdict::Next } else { Verdict::Fault(SequenceFault::Gap { expected }) }
}

/// What the rules say of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may be stored.
    Next,
    /// It is stored, there.
    Duplicate { base_offset: Offset },
    /// Neither.
    Fault(SequenceFault),
}

/// Why a batch can't be stored after what its producer stored before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceFault {
    /// A newer incarnation of the producer has written.
    #[error("epoch {current} has written already, so this one is over: close this producer")]
    Fenced {
        /// The newer epoch.
        current: ProducerEpoch,
    },
    /// A newer incarnation of the producer has begun, and put up a fence here or is known to hold the name.
    #[error("epoch {current} of this producer's name is in use elsewhere, so this one is over: close this producer")]
    Replaced {
        /// The newer epoch.
        current: ProducerEpoch,
    },
    /// Batches between are missing.
    #[error("sequence {expected} is due: send the batches from there on first")]
    Gap {
        /// The sequence that must come next.
        expected: Sequence,
    },
    /// It was stored so long ago that its offset is not known any more.
    #[error("it is stored, but offsets are remembered from sequence {oldest} on only: don't send it again")]
    TooOld {
        /// The first sequence that is remembered.
        oldest: Sequence,
    },
    /// Some of its records are stored, in a batch with other bounds.
    #[error(
        "some of its records are stored in a batch with other bounds; {expected} is due: a retry must send a batch as it was"
    )]
    CutDifferently {
        /// The sequence that must come next.
        expected: Sequence,
    },
    /// An idempotent batch with a negative epoch or sequence.
    #[error("an idempotent batch needs an epoch and a sequence of 0 or more")]
    Negative,
}

impl SequenceFault {
    /// The stable reason that a client is told.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Fenced { .. } | Self::Replaced { .. } => Reason::ProducerFenced,
            Self::Gap { .. } => Reason::SequenceGap,
            Self::TooOld { .. } | Self::CutDifferently { .. } => Reason::SequenceTooOld,
            Self::Negative => Reason::InvalidArgument,
        }
    }

    /// What the client that sent `batch` is told.
    pub fn refusal(self, batch: &BatchSummary) -> Refusal {
        let BatchSummary { producer_id, producer_epoch, base_sequence, record_count, .. } = batch;
        let whose = format!("producer {producer_id} epoch {producer_epoch}");
        let which = format!("batch at sequence {base_sequence} (records: {record_count})");
        Refusal::new(self.reason(), format!("{whose}, {which}: {self}"))
    }
}

/// Every producer of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProducerTable {
    limits: ProducerLimits,
    /// The largest stamped time so far: leaders' clocks differ, this one does not run backwards.
    log_time_ms: i64,
    producers: BTreeMap<ProducerId, Producer>,
    by_age: BTreeMap<Offset, ProducerId>,
    fences: Fences,
}

impl ProducerTable {
    pub(super) fn new(limits: ProducerLimits) -> Self {
        let (producers, by_age) = (BTreeMap::new(), BTreeMap::new());
        Self { limits, log_time_ms: i64::MIN, producers, by_age, fences: Fences::default() }
    }

    pub(super) fn limits(&self) -> ProducerLimits {
        self.limits
    }

    pub(super) fn log_time_ms(&self) -> i64 {
        self.log_time_ms
    }

    /// Every producer, by id.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (ProducerId, &Producer)> {
        self.producers.iter().map(|(&id, producer)| (id, producer))
    }

    pub(super) fn get(&self, id: ProducerId) -> Option<&Producer> {
        self.producers.get(&id)
    }

    /// Puts back what a checkpoint says; `false` when a producer or an age is there twice.
    pub(super) fn restore(&mut self, id: ProducerId, producer: Producer) -> bool {
        let is_new_age = self.by_age.insert(producer.last().base_offset, id).is_none();
        self.producers.insert(id, producer).is_none() && is_new_age
    }

    /// Every fence, by producer.
    pub(super) fn fences(&self) -> impl ExactSizeIterator<Item = (ProducerId, Fence)> {
        self.fences.iter()
    }

    /// The oldest epoch of a producer that may write here, as far as is remembered.
    pub(super) fn oldest_epoch(&self, id: ProducerId) -> Option<ProducerEpoch> {
        let written = self.get(id).map(|producer| producer.epoch);
        written.max(self.fences.epoch(id))
    }

    /// Refuses epochs of a producer below `epoch` from now on; `false` when they are refused already. Moves no producer
    /// and not the log time: a leader's speculation, which does not know of it, stays true.
    pub(super) fn fence(&mut self, id: ProducerId, epoch: ProducerEpoch, stamped_ms: i64) -> bool {
        if id.get() < 0 || epoch.get() < 0 || self.oldest_epoch(id).is_some_and(|oldest| oldest >= epoch) {
            return false;
        }
        self.fences.put_up(id, Fence { epoch, since_ms: self.log_time_ms.max(stamped_ms) });
        self.forget_fences();
        true
    }

    /// Puts back a fence that a checkpoint says; `false` when it could not have been put up.
    pub(super) fn restore_fence(&mut self, id: ProducerId, fence: Fence) -> bool {
        let is_new = self.oldest_epoch(id).is_none_or(|oldest| oldest < fence.epoch);
        let is_first = self.fences.epoch(id).is_none();
        self.fences.put_up(id, fence);
        is_new && is_first
    }

    /// Puts back the log time that a checkpoint says.
    pub(super) fn restore_log_time(&mut self, log_time_ms: i64) {
        self.log_time_ms = log_time_ms;
    }

    /// Makes the batches of one entry, stamped at `stamped_ms`, part of the table, then forgets down to the limits.
    pub(super) fn commit(&mut self, draft: Draft, stamped_ms: i64) {
        self.log_time_ms = self.log_time_ms.max(stamped_ms);
        for (id, mut producer) in draft.touched {
            producer.last_ms = self.log_time_ms;
            self.by_age.insert(producer.last().base_offset, id);
            if let Some(before) = self.producers.insert(id, producer) {
                self.by_age.remove(&before.last().base_offset);
            }
            self.fences.take_down(id);
        }
        while self.oldest_must_go() {
            if let Some((_, id)) = self.by_age.pop_first() {
                self.producers.remove(&id);
            }
        }
        assert_eq!(self.by_age.len(), self.producers.len(), "each producer has one age");
        self.forget_fences();
    }

    fn forget_fences(&mut self) {
        let idle_ms_max = i64::try_from(self.limits.idle_ms_max).unwrap_or(i64::MAX);
        self.fences.forget(self.log_time_ms.saturating_sub(idle_ms_max));
    }

    fn oldest_must_go(&self) -> bool {
        let Some(oldest) = self.by_age.first_key_value().and_then(|(_, id)| self.producers.get(id)) else {
            return false;
        };
        let idle_ms = i128::from(self.log_time_ms) - i128::from(oldest.last_ms);
        self.producers.len() > self.limits.producers_max as usize || idle_ms > i128::from(self.limits.idle_ms_max)
    }
}

/// The producers as the batches of one unfinished entry leave them, over a table that has not changed yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    touched: BTreeMap<ProducerId, Producer>,
}

impl Draft {
    /// What the rules say of `batch` after the table and the draft's batches.
    pub(super) fn judge(&self, table: &ProducerTable, batch: &BatchSummary) -> Verdict {
        if batch.producer_id.get() < 0 {
            return Verdict::Next;
        }
        if batch.producer_epoch.get() < 0 || batch.base_sequence.get() < 0 {
            return Verdict::Fault(SequenceFault::Negative);
        }
        if let Some(current) = table.fences.epoch(batch.producer_id).filter(|&fence| batch.producer_epoch < fence) {
            return Verdict::Fault(SequenceFault::Replaced { current });
        }
        match self.touched.get(&batch.producer_id).or_else(|| table.get(batch.producer_id)) {
            Some(producer) => producer.judge(batch),
            None => first_of_epoch(batch.base_sequence),
        }
    }

    /// Adds a batch that was judged [`Verdict::Next`].
    pub(super) fn push(&mut self, table: &ProducerTable, batch: &BatchSummary) {
        let &BatchSummary { producer_id, producer_epoch, base_sequence, record_count, base_offset, .. } = batch;
        if producer_id.get() < 0 {
            return;
        }
        let stored = StoredBatch { base_sequence, record_count, base_offset };
        let known = self.touched.get(&producer_id).or_else(|| table.get(producer_id));
        let producer = match known.filter(|known| known.epoch == producer_epoch) {
            Some(known) => {
                let mut producer = *known;
                producer.push(stored);
                producer
            }
            None => Producer::new(producer_epoch, stored),
        };
        self.touched.insert(producer_id, producer);
    }
}
