//! The leader's half: decides, before anything is replicated, what becomes of a batch.
//!
//! ```text
//!        stored          in flight               open entry
//!   |──────────────|────────────────────|───────────────────────|
//!               committed             sealed                next_offset
//! ```
//! It holds the producer table as it will be when everything it sealed is applied. Invariant: when all of that is
//! applied and nothing was void, the table and the next offset equal the machine's; so what is sealed here passes there.
//!
//! It lives for one term. When an entry it sealed is void or can't be proposed, everything after is speculation on
//! something that did not happen: drop it, and make a new one from the machine once what was proposed is settled.

use busbar_proto::{LogPosition, Offset, ProducerEpoch, ProducerId, Reason, Refusal, Term, batch::BatchHeader};

use super::{
    entry::{BatchSummary, EntryHead, OFFSET_END_MAX},
    machine::PartitionMachine,
    producers::{Draft, Producer, ProducerTable, SequenceFault, Verdict},
};

/// What becomes of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// It is part of the open entry: stamp it and put it into the body.
    Accept {
        /// The offset of its first record.
        base_offset: Offset,
    },
    /// It is stored and applied: answer at once.
    DuplicateStored {
        /// Where.
        base_offset: Offset,
    },
    /// It is on its way: answer when the entry that holds this offset is applied, and as that one is answered.
    DuplicateInFlight {
        /// Where it will be.
        base_offset: Offset,
    },
    /// It can't be stored.
    Reject(Refusal),
}

/// Lengths of what a producer told beside a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Of its records' headers.
    pub digest_bytes: u32,
    /// Of their keys.
    pub key_bytes: u32,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Sequencer {
    term: Term,
    /// Applied: everything below is stored.
    committed: Offset,
    next_offset: Offset,
    producers: ProducerTable,
    open: Vec<BatchSummary>,
    draft: Draft,
}

impl Sequencer {
    /// A sequencer for the leader of `term`, whose first (blank) entry `machine` has applied: only then is everything
    /// of earlier terms in it.
    pub fn new(machine: &PartitionMachine, term: Term) -> Self {
        Self {
            term,
            committed: machine.next_offset,
            next_offset: machine.next_offset,
            producers: machine.producers.clone(),
            open: Vec::new(),
            draft: Draft::default(),
        }
    }

    /// Decides on a batch whose bytes were verified. On [`Admission::Accept`] it is part of the open entry.
    pub fn admit(&mut self, header: &BatchHeader) -> Admission {
        self.admit_unless(header, Beside::default(), None)
    }

    /// The same, with what was told beside the batch, for a caller that knows of a newer epoch of the batch's producer, claimed
    /// for an incarnation that may not have written here: a batch that is stored is still told so, any other is refused.
    pub fn admit_unless(
        &mut self,
        header: &BatchHeader,
        beside: Beside,
        replaced_by: Option<ProducerEpoch>,
    ) -> Admission {
        let Beside { digest_bytes, key_bytes } = beside;
        let batch = BatchSummary { digest_bytes, key_bytes, ..BatchSummary::of(header, self.next_offset) };
        if batch.record_count == 0 {
            return Admission::Reject(Refusal::new(Reason::CorruptBatch, "the batch has no record: send at least one"));
        }
        if OFFSET_END_MAX - self.next_offset.get() < batch.record_count.into() {
            let message = format!("the partition is at offset {}, its last: use another partition", self.next_offset);
            return Admission::Reject(Refusal::new(Reason::LimitReached, message));
        }
        let verdict = match (self.draft.judge(&self.producers, &batch), replaced_by) {
            (Verdict::Next | Verdict::Fault(_), Some(current)) => Verdict::Fault(SequenceFault::Replaced { current }),
            (verdict, _) => verdict,
        };
        match verdict {
            Verdict::Next => {
                self.draft.push(&self.producers, &batch);
                self.next_offset = batch.next_offset();
                self.open.push(batch);
                Admission::Accept { base_offset: batch.base_offset }
            }
            Verdict::Duplicate { base_offset } if base_offset < self.committed => {
                Admission::DuplicateStored { base_offset }
            }
            Verdict::Duplicate { base_offset } => Admission::DuplicateInFlight { base_offset },
            Verdict::Fault(fault) => Admission::Reject(fault.refusal(&batch)),
        }
    }

    /// Closes the open entry: the head of everything accepted since the last one, in that order; `None` when there is
    /// nothing. `now_ms` is the leader's clock, in milliseconds since the Unix epoch. What is returned must be proposed
    /// as it is, once, in the order of the calls.
    pub fn seal(&mut self, now_ms: i64) -> Option<EntryHead> {
        if self.open.is_empty() {
            return None;
        }
        self.producers.commit(std::mem::take(&mut self.draft), now_ms);
        let batches = std::mem::take(&mut self.open);
        Some(EntryHead::Batches { epoch: self.term, stamped_ms: now_ms, batches })
    }

    /// Takes note that the entry at `at` is applied, and everything below `next_offset` with it. Entries of other terms
    /// are passed over: what another leader stored at these offsets says nothing about what this one stamped.
    pub fn committed(&mut self, at: LogPosition, next_offset: Offset) {
        if at.term == self.term {
            self.committed = self.committed.max(next_offset.min(self.next_offset));
        }
    }

    /// The term it stamps.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The term as batches carry it; terms beyond 31 bits, which no cluster reaches, stay at the largest.
    pub fn leader_epoch(&self) -> i32 {
        self.term.get().try_into().unwrap_or(i32::MAX)
    }

    /// The offset that the next accepted record takes.
    pub fn next_offset(&self) -> Offset {
        self.next_offset
    }

    /// Records accepted but not applied yet.
    pub fn in_flight_records(&self) -> u64 {
        self.next_offset.distance_from(self.committed)
    }

    /// The batches accepted since the last [`Sequencer::seal`].
    pub fn open_batches(&self) -> &[BatchSummary] {
        &self.open
    }

    /// Every producer as it will be when what is sealed is applied, by id.
    pub fn producers(&self) -> impl ExactSizeIterator<Item = (ProducerId, &Producer)> {
        self.producers.iter()
    }
}
