//! One partition in this member's hands: what was received of it, its window, and the stage of its stay.
//!
//! ```text
//!  [ opening ] --open--> [ active ] --give_up--> [ ending ] --seal--> [ sealed ] --end--> [ over ]
//!                            ^----- keep ------------'-------------------'
//! ```
//! Invariants: records are handed out while it is active, and settled until it is sealed, so that the last commit says
//! everything; the bytes of a batch count against the partition's credit until all its records are done or kept apart.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use busbar_proto::{
    Offset, PartitionId,
    batch::{BatchError, BatchHeader, Records, records},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    error::SettleError,
    roster::Claim,
    window::{Clock, Handout, Snapshot, Stale, Taken, Window},
};
use crate::{
    consumer::{ConsumedRecord, Core, Parcel, opening::Tenure},
    error::ConsumeError,
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
    fn set_apart(&mut self) {
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Active,
    Ending { since: Instant, deadline: Instant, sealed: bool },
    Over,
}

/// What there is from the opening on.
#[derive(Debug)]
struct Open {
    core: Arc<Core>,
    window: Window<Kept>,
    parcels: VecDeque<Parcel>,
    reading: Option<Reading>,
    /// Records that the filter does not match, and nobody has heard of.
    filtered: u64,
}

#[derive(Debug)]
struct Work {
    stage: Stage,
    open: Option<Open>,
}

/// A partition, from when it was assigned until it is somebody else's.
#[derive(Debug)]
pub(crate) struct Holding {
    pub(super) tenure: Tenure,
    pub(super) claim: Claim,
    pub(super) topic: Arc<str>,
    work: Mutex<Work>,
}

/// What a holding gives when it is asked for a record.
#[derive(Debug)]
pub(super) enum Next {
    Record(Handout, Arc<ConsumedRecord>),
    Fault(ConsumeError),
    /// Nothing before news, or before this.
    Nothing(Option<Instant>),
}

/// What others must hear of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    /// There is something to commit.
    pub(super) dirty: bool,
    /// And somebody waits for it.
    pub(super) urgent: bool,
    /// There are records for the dead letters.
    pub(super) doomed: bool,
    /// Leases that ran out.
    pub(super) expired: u64,
    /// Records that the filter does not match.
    pub(super) filtered: u64,
}

/// What is to be committed for a holding.
#[derive(Debug)]
pub(super) struct Due {
    /// `None` when nothing was begun.
    pub(super) snapshot: Option<Snapshot>,
    /// The partition is given up with it.
    pub(super) last: bool,
}

/// One trial at a time in all partitions of a member: two would make one record suspect of what the other did.
#[derive(Debug, Default)]
pub(super) struct Trials(AtomicU64);

impl Trials {
    const NONE: u64 = 0;

    fn take(&self, tenure: Tenure) -> bool {
        let taken = self.0.compare_exchange(Self::NONE, tenure.get(), Ordering::AcqRel, Ordering::Acquire);
        taken.is_ok() || taken == Err(tenure.get())
    }

    fn give_back(&self, tenure: Tenure) {
        let _ = self.0.compare_exchange(tenure.get(), Self::NONE, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Holding {
    pub(super) fn new(tenure: Tenure, claim: Claim, topic: Arc<str>) -> Self {
        assert_ne!(tenure.get(), Trials::NONE, "tenures count from 1");
        Self { tenure, claim, topic, work: Mutex::new(Work { stage: Stage::Active, open: None }) }
    }

    /// Its place is known; whether it still matters. `begin` starts reading there.
    pub(super) fn open(&self, core: Arc<Core>, window: Window<Kept>, begin: impl FnOnce(&Core, Offset)) -> bool {
        let mut work = self.work.lock();
        if work.stage == Stage::Over {
            return false;
        }
        // Under the lock: whoever ends it meanwhile must find what is to be ended.
        begin(&core, window.reach());
        work.open = Some(Open { core, window, parcels: VecDeque::new(), reading: None, filtered: 0 });
        true
    }

    /// Takes what was received.
    pub(super) fn put(&self, parcel: Parcel) {
        if let Some(open) = &mut self.work.lock().open {
            open.parcels.push_back(parcel);
        }
    }

    /// The application is told of a fault, and will ask for more. Whether there can be more: of a topic that was deleted
    /// the coordinator takes away what is held.
    pub(super) fn resume(&self) -> bool {
        let work = self.work.lock();
        let Some(open) = work.open.as_ref().filter(|open| !open.core.topic.view().gone) else { return false };
        open.core.resume(self.claim.partition);
        true
    }

    /// The next record for the application.
    pub(super) fn next(&self, clock: &Clock, trials: &Trials) -> (Next, News) {
        let mut work = self.work.lock();
        let active = work.stage == Stage::Active;
        let Some(open) = &mut work.open else { return (Next::Nothing(None), News::default()) };
        let expired = open.tick(clock);
        if !active {
            return (Next::Nothing(open.window.wake_at()), open.news(expired));
        }
        let next = open.next(self, clock, trials);
        (next, open.news(expired))
    }

    /// Says something about a delivery of a record.
    pub(super) fn settle<T>(
        &self,
        handout: Handout,
        clock: &Clock,
        trials: &Trials,
        say: impl FnOnce(&mut Window<Kept>) -> Result<T, Stale>,
    ) -> (Result<T, SettleError>, News) {
        let mut work = self.work.lock();
        let sealed = matches!(work.stage, Stage::Over | Stage::Ending { sealed: true, .. });
        let Some(open) = work.open.as_mut().filter(|_| !sealed) else {
            return (Err(self.revoked(handout)), News::default());
        };
        let expired = open.tick(clock);
        let said = say(&mut open.window).map_err(|Stale| self.expired(handout));
        open.window.replace(handout.offset, Kept::set_apart);
        if !open.window.has_trial() {
            trials.give_back(self.tenure);
        }
        (said, open.news(expired))
    }

    /// Renews a lease.
    pub(super) fn extend(
        &self,
        handout: Handout,
        by: std::time::Duration,
        clock: &Clock,
    ) -> (Result<(), SettleError>, News) {
        let mut work = self.work.lock();
        let Some(open) = work.open.as_mut() else { return (Err(self.revoked(handout)), News::default()) };
        let expired = open.tick(clock);
        let said = open.window.extend(handout.offset, handout.delivery, by, clock.now);
        (said.map_err(|Stale| self.expired(handout)), open.news(expired))
    }

    fn revoked(&self, handout: Handout) -> SettleError {
        let (topic, partition) = (self.topic.to_string(), self.claim.partition.get());
        SettleError::Revoked { topic, partition, offset: handout.offset.get() }
    }

    fn expired(&self, handout: Handout) -> SettleError {
        let (topic, partition) = (self.topic.to_string(), self.claim.partition.get());
        SettleError::Expired { topic, partition, offset: handout.offset.get(), delivery: handout.delivery }
    }

    /// Looks at the window, if there is one.
    pub(super) fn with_window<T>(&self, look: impl FnOnce(&mut Window<Kept>) -> T) -> Option<T> {
        self.work.lock().open.as_mut().map(|open| look(&mut open.window))
    }

    /// A dead letter is stored, or not wanted.
    pub(super) fn buried(&self, offset: Offset) -> News {
        let mut work = self.work.lock();
        let Some(open) = &mut work.open else { return News::default() };
        open.window.buried(offset);
        open.news(0)
    }

    pub(super) fn is_over(&self) -> bool {
        self.work.lock().stage == Stage::Over
    }

    /// Hands out nothing more; what is in the application's hands may be settled until `deadline`.
    pub(super) fn give_up(&self, now: Instant, deadline: Instant) -> bool {
        let mut work = self.work.lock();
        let was_active = work.stage == Stage::Active;
        if was_active {
            work.stage = Stage::Ending { since: now, deadline, sealed: false };
        }
        was_active
    }

    /// It was being given up, and is ours again.
    pub(super) fn keep(&self) {
        let mut work = self.work.lock();
        if matches!(work.stage, Stage::Ending { .. }) {
            work.stage = Stage::Active;
        }
    }

    /// What is to be committed now, if anything.
    pub(super) fn due(&self, now: Instant) -> Option<Due> {
        let mut work = self.work.lock();
        let Work { stage, open } = &mut *work;
        match stage {
            Stage::Over => return None,
            Stage::Active => {}
            Stage::Ending { deadline, sealed, .. } => {
                let Some(open) = open else { return Some(Due { snapshot: None, last: true }) };
                if *sealed || *deadline <= now || open.window.unsettled() == 0 {
                    *sealed = true;
                    return Some(Due { snapshot: Some(open.window.last_snapshot(now)), last: true });
                }
            }
        }
        let window = &mut open.as_mut()?.window;
        window.is_dirty().then(|| Due { snapshot: Some(window.snapshot(now)), last: false })
    }

    /// Whether it is being given up, and nothing is waited for any more.
    pub(super) fn is_finished(&self, now: Instant) -> bool {
        let work = self.work.lock();
        let Stage::Ending { deadline, sealed, .. } = work.stage else { return false };
        sealed || deadline <= now || work.open.as_ref().is_none_or(|open| open.window.unsettled() == 0)
    }

    /// By when it will have ended, while it ends; `None` while it does not.
    pub(super) fn ends_by(&self) -> Option<Instant> {
        match self.work.lock().stage {
            Stage::Ending { deadline, .. } => Some(deadline),
            Stage::Active | Stage::Over => None,
        }
    }

    /// A snapshot is on record.
    pub(super) fn committed(&self, snapshot: &Snapshot) -> News {
        let mut work = self.work.lock();
        let Some(open) = &mut work.open else { return News::default() };
        open.window.committed(snapshot);
        open.news(0)
    }

    /// Ends it if it is still being given up, after all that there was to say is on record. Returns since when it was.
    pub(super) fn end_sealed(&self, trials: &Trials) -> Option<Instant> {
        let mut work = self.work.lock();
        let Stage::Ending { since, sealed, .. } = work.stage else { return None };
        (sealed || work.open.is_none()).then(|| {
            self.clear(&mut work, trials);
            since
        })
    }

    /// Drops everything; whether there was something.
    pub(super) fn end(&self, trials: &Trials) -> bool {
        let mut work = self.work.lock();
        let was_over = work.stage == Stage::Over;
        self.clear(&mut work, trials);
        !was_over
    }

    fn clear(&self, work: &mut Work, trials: &Trials) {
        work.stage = Stage::Over;
        trials.give_back(self.tenure);
        if let Some(open) = work.open.take() {
            open.core.remove(self.claim.partition, self.tenure);
        }
    }
}

impl Open {
    fn news(&mut self, expired: u64) -> News {
        let filtered = std::mem::take(&mut self.filtered);
        let window = &self.window;
        News { dirty: window.is_dirty(), urgent: window.is_urgent(), doomed: window.has_doomed(), expired, filtered }
    }

    fn tick(&mut self, clock: &Clock) -> u64 {
        let expired = self.window.tick(clock);
        expired.iter().for_each(|&offset| self.window.replace(offset, Kept::set_apart));
        expired.len() as u64
    }

    fn next(&mut self, holding: &Holding, clock: &Clock, trials: &Trials) -> Next {
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
                return Next::Nothing(self.window.wake_at());
            }
            match self.read(holding) {
                Some(Ok(taken)) => drop(self.window.take(taken, clock.now)),
                Some(Err(fault)) => return Next::Fault(fault),
                None => return Next::Nothing(self.window.wake_at()),
            }
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
                    let (offset, timestamp_ms) = (view.offset, view.timestamp_ms);
                    let key = view.key.as_deref().map(hash);
                    let record = ConsumedRecord::new(holding.topic.clone(), holding.claim.partition, view);
                    let bytes = record.payload_bytes() + RECORD_OVERHEAD_BYTES;
                    let record = Kept { record: Arc::new(record), batch: Some(reading.held.clone()) };
                    return Some(Ok(Taken { offset, timestamp_ms, bytes, key, record }));
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
