//! An open partition: what was received of it, batch by batch, and the window that its records go through.
//!
//! Invariant: the bytes of a batch count against the partition's credit until all its records are done or kept apart.

use std::{collections::VecDeque, sync::Arc};

use busbar_proto::{
    Offset, PartitionId,
    batch::{BatchError, BatchHeader, RecordView, Records, records},
};

use super::{
    dedup::Dedup,
    holding::{Holding, News, Next, Trials},
    window::{Clock, Spared, Taken, Window},
};
use crate::{
    consumer::{ConsumedRecord, Core, Parcel, opening::Tenure},
    error::ConsumeError,
    schedule::Times,
};

/// Bytes that a record takes beside its payload.
const RECORD_OVERHEAD_BYTES: usize = 200;

/// A record of the window, and the batch that it keeps in memory.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) record: Arc<ConsumedRecord>,
    batch: Option<Arc<Held>>,
}

impl Kept {
    /// It stays for longer: its batch need not.
    pub(super) fn set_apart(&mut self) {
        if self.batch.take().is_some() {
            self.record = Arc::new(self.record.detached());
        }
    }
}

/// The bytes of a batch, credited to the broker again once nobody holds this.
#[derive(Debug)]
struct Held {
    core: Arc<Core>,
    partition: PartitionId,
    tenure: Tenure,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.core.consumed(self.partition, self.tenure, self.bytes);
    }
}

/// The batch that records are taken from.
#[derive(Debug)]
struct Reading {
    records: Records,
    from: Offset,
    held: Arc<Held>,
}

/// What there is from the opening on.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) core: Arc<Core>,
    pub(super) window: Window<Kept>,
    parcels: VecDeque<Parcel>,
    reading: Option<Reading>,
    dedup: Option<Dedup>,
    /// Records that the filter does not match, and nobody has heard of.
    filtered: u64,
    /// Times in headers that can't be read, and nobody has heard of.
    malformed: u64,
}

impl Open {
    pub(super) fn new(core: Arc<Core>, window: Window<Kept>, dedup: Option<Dedup>) -> Self {
        Self { core, window, parcels: VecDeque::new(), reading: None, dedup, filtered: 0, malformed: 0 }
    }

    /// Takes what was received.
    pub(super) fn put(&mut self, parcel: Parcel) {
        self.parcels.push_back(parcel);
    }

    /// What others must hear of; `leases` have run out.
    pub(super) fn news(&mut self, leases: u64) -> News {
        let Spared { duplicates, expired } = self.window.take_spared();
        let window = &self.window;
        News {
            dirty: window.is_dirty(),
            urgent: window.is_urgent(),
            doomed: window.has_doomed(),
            leases,
            filtered: std::mem::take(&mut self.filtered),
            malformed: std::mem::take(&mut self.malformed),
            duplicates,
            expired,
        }
    }

    /// Looks at the clock; the number of leases that ran out.
    pub(super) fn tick(&mut self, clock: &Clock) -> u64 {
        let expired = self.window.tick(clock);
        expired.iter().for_each(|&offset| self.window.replace(offset, Kept::set_apart));
        expired.len() as u64
    }

    /// The next record for the application.
    pub(super) fn next(&mut self, holding: &Holding, clock: &Clock, trials: &Trials) -> Next {
        loop {
            let may_try = self.window.wants_trial() && trials.take(holding.tenure);
            let handout = self.window.hand_out(clock, may_try);
            if !self.window.has_trial() {
                trials.give_back(holding.tenure);
            }
            if let Some(handout) = handout
                && let Some(kept) = self.window.record(handout.offset)
            {
                return Next::Record(handout, kept.record.clone());
            }
            if self.window.is_held_up() || !self.window.has_room() {
                return Next::Nothing(self.window.wake_at(clock));
            }
            match self.read(holding) {
                Some(Ok(taken)) => self.take(taken, clock),
                Some(Err(fault)) => return Next::Fault(fault),
                None => return Next::Nothing(self.window.wake_at(clock)),
            }
        }
    }

    fn take(&mut self, taken: Taken<Kept>, clock: &Clock) {
        let offset = taken.offset;
        if self.window.take(taken, clock) && self.window.is_set_aside(offset) {
            self.window.replace(offset, Kept::set_apart);
        }
    }

    /// The next record that was received.
    fn read(&mut self, holding: &Holding) -> Option<Result<Taken<Kept>, ConsumeError>> {
        loop {
            let Some(reading) = &mut self.reading else {
                let parcel = self.parcels.pop_front()?;
                match self.begin(holding, parcel) {
                    Ok(reading) => self.reading = reading,
                    Err(fault) => return Some(Err(fault)),
                }
                continue;
            };
            match reading.records.next() {
                Some(Ok(view)) if view.offset < reading.from => {}
                Some(Ok(view)) if !self.core.selection.wants(&view) => {
                    self.filtered += 1;
                    self.window.skip_to(view.offset.advance(1));
                }
                Some(Ok(view)) => {
                    let id = self.dedup.as_ref().and_then(|dedup| dedup.identity(reading.records.header(), &view));
                    let (times, malformed) = Times::read(|name| view.header(name));
                    self.malformed += u64::from(malformed);
                    return Some(Ok(taken(holding, view, id, times, reading.held.clone())));
                }
                Some(Err(fault)) => {
                    let (at, next) = (self.window.reach(), reading.records.header().next_offset());
                    self.reading = None;
                    self.window.skip_to(next);
                    return Some(Err(undecodable(holding, at, &fault)));
                }
                None => {
                    let next = reading.records.header().next_offset();
                    self.reading = None;
                    self.window.skip_to(next);
                }
            }
        }
    }

    /// Opens the next batch, if it is one.
    fn begin(&mut self, holding: &Holding, parcel: Parcel) -> Result<Option<Reading>, ConsumeError> {
        let (core, partition, tenure) = (self.core.clone(), holding.claim.partition, holding.tenure);
        let held = Arc::new(Held { core, partition, tenure, bytes: parcel.bytes() });
        let Parcel { batch, from, .. } = parcel;
        self.window.skip_to(from);
        let Some(batch) = batch else { return Ok(None) };
        let next = BatchHeader::parse(&batch).map(|header| header.next_offset());
        match (records(batch), next) {
            (Ok(records), _) => Ok(Some(Reading { records, from, held })),
            (Err(fault), next) => {
                self.window.skip_to(next.unwrap_or(from));
                Err(undecodable(holding, from, &fault))
            }
        }
    }
}

fn taken(holding: &Holding, view: RecordView, id: Option<u64>, times: Times, held: Arc<Held>) -> Taken<Kept> {
    let (offset, timestamp_ms) = (view.offset, view.timestamp_ms);
    let key = view.key.as_deref().map(hash);
    let record = ConsumedRecord::new(holding.topic.clone(), holding.claim.partition, view);
    let bytes = record.payload_bytes() + RECORD_OVERHEAD_BYTES;
    let record = Kept { record: Arc::new(record), batch: Some(held) };
    Taken { offset, timestamp_ms, bytes, key, id, times, record }
}

/// A batch whose checksum is right but whose content can't be read: it is passed over, as it will never become readable.
fn undecodable(holding: &Holding, offset: Offset, fault: &BatchError) -> ConsumeError {
    ConsumeError::Corrupt {
        topic: holding.topic.to_string(),
        partition: holding.claim.partition.get(),
        offset: offset.get(),
        fault: format!("{fault}; the rest of its batch is passed over"),
    }
}

/// Equal for equal keys; two keys that share one are merely kept in order as if they were one.
fn hash(key: &[u8]) -> u64 {
    (key.len() as u64) << 32 | u64::from(crc32c::crc32c(key))
}
