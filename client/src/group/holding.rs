//! One partition in this member's hands: what was received of it, its window, and the stage of its stay.
//!
//! ```text
//!  [ opening ] --open--> [ active ] --give_up--> [ ending ] --seal--> [ sealed ] --end--> [ over ]
//!                            ^----- keep ------------'-------------------'
//! ```
//! Invariants: records are handed out while it is active, and settled until it is sealed, so that the last commit says
//! everything; while its commits are refused, they are tried later and later.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use busbar_proto::Offset;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    dedup::Dedup,
    error::SettleError,
    reading::{Kept, Open},
    roster::Claim,
    window::{Clock, Handout, Snapshot, Stale, Window},
};
use crate::{
    consumer::{ConsumedRecord, Core, Parcel, opening::Tenure},
    error::ConsumeError,
    retry::{Backoff, BackoffPolicy},
};

/// Pauses between commits that are refused for no reason that passes by itself: ceilings of the first and the longest.
const REFUSED: BackoffPolicy = BackoffPolicy { base: Duration::from_secs(2), cap: Duration::from_secs(30) };
/// The least of them.
const REFUSED_WAIT_MIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Active,
    Ending { since: Instant, deadline: Instant, sealed: bool },
    Over,
}

#[derive(Debug)]
struct Work {
    stage: Stage,
    open: Option<Open>,
    /// Commits that were refused in a row, and when the next one may be tried.
    refused: Backoff,
    try_at: Option<Instant>,
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
    pub(super) leases: u64,
    /// Records that the filter does not match.
    pub(super) filtered: u64,
    /// Times in headers that can't be read.
    pub(super) malformed: u64,
    /// Records left out because they were acknowledged before.
    pub(super) duplicates: u64,
    /// Records left out because they have expired.
    pub(super) expired: u64,
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

    pub(super) fn take(&self, tenure: Tenure) -> bool {
        let taken = self.0.compare_exchange(Self::NONE, tenure.get(), Ordering::AcqRel, Ordering::Acquire);
        taken.is_ok() || taken == Err(tenure.get())
    }

    pub(super) fn give_back(&self, tenure: Tenure) {
        let _ = self.0.compare_exchange(tenure.get(), Self::NONE, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Holding {
    pub(super) fn new(tenure: Tenure, claim: Claim, topic: Arc<str>) -> Self {
        assert_ne!(tenure.get(), Trials::NONE, "tenures count from 1");
        let work = Work { stage: Stage::Active, open: None, refused: Backoff::new(REFUSED), try_at: None };
        Self { tenure, claim, topic, work: Mutex::new(work) }
    }

    /// Its place is known; whether it still matters. `begin` starts reading there.
    pub(super) fn open(
        &self,
        core: Arc<Core>,
        window: Window<Kept>,
        dedup: Option<Dedup>,
        begin: impl FnOnce(&Core, Offset),
    ) -> bool {
        let mut work = self.work.lock();
        if work.stage == Stage::Over {
            return false;
        }
        // Under the lock: whoever ends it meanwhile must find what is to be ended.
        begin(&core, window.reach());
        work.open = Some(Open::new(core, window, dedup));
        true
    }

    /// Takes what was received.
    pub(super) fn put(&self, parcel: Parcel) {
        if let Some(open) = &mut self.work.lock().open {
            open.put(parcel);
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
            return (Next::Nothing(open.window.wake_at(clock)), open.news(expired));
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
    pub(super) fn extend(&self, handout: Handout, by: Duration, clock: &Clock) -> (Result<(), SettleError>, News) {
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
    pub(super) fn buried(&self, offset: Offset, clock: &Clock) -> News {
        let mut work = self.work.lock();
        let Some(open) = &mut work.open else { return News::default() };
        open.window.buried(offset, clock);
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
            // Others wait: the last commit is tried at once, whatever became of those before.
            work.try_at = None;
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
        let Work { stage, open, try_at, .. } = &mut *work;
        if try_at.is_some_and(|at| at > now) {
            return None;
        }
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

    /// When the upkeep must look at it, apart from news: it is being given up, or its commits are refused.
    pub(super) fn attend_at(&self, now: Instant) -> Option<Instant> {
        let work = self.work.lock();
        let idle = || work.open.as_ref().is_none_or(|open| open.window.unsettled() == 0);
        let ends_at = match work.stage {
            Stage::Ending { deadline, sealed, .. } => Some(if sealed || idle() { now } else { deadline }),
            Stage::Active => None,
            Stage::Over => return None,
        };
        ends_at.max(work.try_at)
    }

    /// Whether it is being given up.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.work.lock().stage, Stage::Ending { .. })
    }

    /// A commit was refused, and not because the partition is somebody else's: the next one waits. How often that
    /// happened in a row.
    pub(super) fn commit_refused(&self, now: Instant, random: u64, advice: Option<Duration>) -> u32 {
        let mut work = self.work.lock();
        let pause = work.refused.failed(random, Some(advice.unwrap_or_default().max(REFUSED_WAIT_MIN)));
        work.try_at = Some(now + pause);
        work.refused.failures()
    }

    /// A snapshot is on record; whether commits were refused before.
    pub(super) fn committed(&self, snapshot: &Snapshot) -> (News, bool) {
        let mut work = self.work.lock();
        let was_refused = work.refused.failures() > 0;
        work.refused.succeeded();
        work.try_at = None;
        let Some(open) = &mut work.open else { return (News::default(), was_refused) };
        open.window.committed(snapshot);
        (open.news(0), was_refused)
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
