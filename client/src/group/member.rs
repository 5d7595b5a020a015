//! What the parts of a group's member share: the partitions in its hands, its seat with the coordinator, its counters;
//! and who must hear of what.
//!
//! ```text
//!  session: member stream -- assignment --> holdings -- opening --> fetching cores --> inbox
//!  consumer: inbox --> holding --> application -- settle --> holding
//!  upkeep: holdings -- commit --> coordinator; ended holdings -- released --> session
//!  undertaker: doomed records --> dead-letter producers --> holding
//! ```
//! Invariants: a lock of the member is not held while a holding is locked; only the upkeep commits, one request at a
//! time, so that what is on record never goes back.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use busbar_proto::TopicId;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{
    dead_letter::Graves,
    dedup::Dedup,
    error::{GroupError, SettleError},
    holding::{Holding, News, Trials},
    reading::Kept,
    roster::{Assigned, Changes, Claim, compare},
    stats::Counters,
    window::{Clock, Handout, Policy, Stale, Window},
};
use crate::{
    address::Address,
    cluster::Cluster,
    consumer::{Core, Inbox, StartAt, opening::Tenure, selection::Selection},
    task::{Kind, Tasks},
};

/// Releases that are told again after a reconnection: the coordinator may have missed them.
const RELEASED_MAX: usize = 1024;

/// How a member works.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) group: String,
    pub(super) topics: Vec<String>,
    pub(super) member_name: String,
    pub(super) session_timeout: Option<Duration>,
    pub(super) from: StartAt,
    pub(super) policy: Policy,
    pub(super) dedup: Option<Dedup>,
    pub(super) commit_interval: Duration,
    pub(super) revoke_timeout: Duration,
    pub(super) credit_bytes: usize,
    pub(super) selection: Selection,
}

/// The member as the coordinator sees it.
#[derive(Debug, Default)]
pub(super) struct Seat {
    /// 0 = none yet.
    pub(super) member_id: u64,
    pub(super) coordinator: Option<Address>,
    pub(super) session_timeout: Duration,
    /// Without a word from the coordinator it is taken for gone then.
    pub(super) lapses_at: Option<Instant>,
    /// What it last let go of.
    pub(super) released: VecDeque<Claim>,
    /// Told in full on the stream that is open.
    pub(super) told: usize,
}

impl Seat {
    /// To be told to the coordinator, on this stream and on the next.
    fn note_released(&mut self, claim: Claim) {
        if self.released.len() == RELEASED_MAX {
            self.released.pop_front();
            self.told = self.told.saturating_sub(1);
        }
        self.released.push_back(claim);
    }
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(super) cluster: Arc<Cluster>,
    pub(super) tasks: Tasks,
    pub(super) inbox: Arc<Inbox>,
    pub(super) options: Options,
    pub(super) instance: Bytes,
    pub(super) counters: Counters,
    pub(super) trials: Trials,
    pub(super) graves: Graves,
    pub(super) seat: Mutex<Seat>,
    /// Something about the seat, the holdings or the fault is new, for whoever waits.
    pub(super) changed: Notify,
    holdings: Mutex<BTreeMap<Tenure, Arc<Holding>>>,
    /// Counts changes of the holdings.
    pub(super) edition: AtomicU64,
    next_tenure: AtomicU64,
    pub(super) cores: tokio::sync::Mutex<BTreeMap<TopicId, Arc<Core>>>,
    /// The upkeep has something to do, perhaps at once.
    pub(super) dirty: AtomicBool,
    pub(super) urgent: AtomicBool,
    pub(super) upkeep: Notify,
    /// The session has something to tell.
    pub(super) tell: Notify,
    pub(super) undertaker: Notify,
    pub(super) closing: AtomicBool,
    /// The farewell is said.
    pub(super) has_left: AtomicBool,
    /// The coordinator knew no member of this id, when it was told to commit.
    pub(super) expelled: AtomicU64,
    pub(super) by_key: AtomicBool,
    /// Why there is no stream to the coordinator now.
    pub(super) last_word: Mutex<String>,
    fault: Mutex<Option<GroupError>>,
    pub(super) is_faulty: AtomicBool,
}

impl Member {
    pub(super) fn new(cluster: Arc<Cluster>, options: Options, graves: Graves) -> Arc<Self> {
        let instance = [cluster.env.random(), cluster.env.random()].map(u64::to_be_bytes).concat();
        Arc::new(Self {
            tasks: cluster.tasks.child(),
            cluster,
            inbox: Arc::default(),
            options,
            instance: instance.into(),
            counters: Counters::default(),
            trials: Trials::default(),
            graves,
            seat: Mutex::default(),
            changed: Notify::new(),
            holdings: Mutex::default(),
            edition: AtomicU64::new(0),
            next_tenure: AtomicU64::new(1),
            cores: tokio::sync::Mutex::default(),
            dirty: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            upkeep: Notify::new(),
            tell: Notify::new(),
            undertaker: Notify::new(),
            closing: AtomicBool::new(false),
            has_left: AtomicBool::new(false),
            expelled: AtomicU64::new(0),
            by_key: AtomicBool::new(false),
            last_word: Mutex::default(),
            fault: Mutex::default(),
            is_faulty: AtomicBool::new(false),
        })
    }

    pub(super) fn clock(&self) -> Clock {
        let env = &self.cluster.env;
        let (now, unix_ms) = (env.now(), env.unix_ms());
        let shared_ms = self.cluster.time_ms(now, unix_ms);
        Clock { now, unix_ms, shared_ms, random: env.random() }
    }

    /// The partitions in its hands.
    pub(super) fn holdings(&self) -> Vec<Arc<Holding>> {
        self.holdings.lock().values().cloned().collect()
    }

    pub(super) fn holding(&self, tenure: Tenure) -> Option<Arc<Holding>> {
        self.holdings.lock().get(&tenure).cloned()
    }

    pub(super) fn is_empty_handed(&self) -> bool {
        self.holdings.lock().is_empty()
    }

    fn holdings_changed(&self) {
        self.edition.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_waiters();
        self.inbox.wake();
    }

    /// The coordinator says what it should hold.
    pub(super) fn assigned(self: &Arc<Self>, assigned: Vec<Assigned>) {
        if self.closing.load(Ordering::Acquire) {
            return;
        }
        let share = (self.options.credit_bytes / assigned.len().max(1)) as u64;
        let held: Vec<_> = self.holdings().iter().map(|holding| (holding.tenure, holding.claim)).collect();
        let Changes { begin, keep, give_up, drop } = compare(&held, assigned);
        drop.into_iter().for_each(|tenure| self.lose(tenure));
        keep.into_iter().filter_map(|tenure| self.holding(tenure)).for_each(|holding| holding.keep());
        let now = self.cluster.env.now();
        for holding in give_up.into_iter().filter_map(|tenure| self.holding(tenure)) {
            holding.give_up(now, now + self.options.revoke_timeout);
        }
        let begun: Vec<_> = begin.into_iter().map(|assigned| self.begin(assigned)).collect();
        self.counters.assigned.add(begun.len() as u64);
        let member = self.clone();
        self.tasks.spawn(Kind::GroupOpening, async move { member.open(begun, share).await });
        self.holdings_changed();
        self.upkeep.notify_one();
    }

    /// The coordinator waits for these. What is held of them is being given up; what is not, because it was given and
    /// taken back before the member heard of it, is free at once.
    pub(super) fn disown(&self, claims: Vec<Claim>) {
        if self.closing.load(Ordering::Acquire) {
            return;
        }
        let held: Vec<Claim> = self.holdings().iter().map(|holding| holding.claim).collect();
        let mut seat = self.seat.lock();
        let unknown = claims.into_iter().filter(|claim| !held.contains(claim));
        let unknown: Vec<Claim> = unknown.filter(|claim| !seat.released.contains(claim)).collect();
        if unknown.is_empty() {
            return;
        }
        unknown.into_iter().for_each(|claim| seat.note_released(claim));
        drop(seat);
        self.tell.notify_one();
    }

    fn begin(&self, assigned: Assigned) -> (Arc<Holding>, Assigned) {
        let tenure = Tenure::new(self.next_tenure.fetch_add(1, Ordering::Relaxed));
        let holding = Arc::new(Holding::new(tenure, assigned.claim, assigned.topic.as_str().into()));
        self.holdings.lock().insert(tenure, holding.clone());
        (holding, assigned)
    }

    /// A partition is somebody else's by now.
    pub(super) fn lose(&self, tenure: Tenure) {
        let Some(holding) = self.holdings.lock().remove(&tenure) else { return };
        if holding.end(&self.trials) {
            self.counters.revoked.add(1);
            self.counters.lost.add(1);
            tracing::debug!(topic = %holding.topic, partition = %holding.claim.partition, "partition lost");
        }
        self.holdings_changed();
    }

    pub(super) fn lose_all(&self) {
        self.holdings().iter().for_each(|holding| self.lose(holding.tenure));
    }

    /// A partition is finished with, if it is still being given up: others may have it.
    pub(super) fn release(&self, holding: &Holding) {
        let Some(since) = holding.end_sealed(&self.trials) else { return };
        self.holdings.lock().remove(&holding.tenure);
        self.counters.revoked.add(1);
        self.counters.paused(self.cluster.env.now().saturating_duration_since(since));
        if !self.closing.load(Ordering::Acquire) {
            self.seat.lock().note_released(holding.claim);
        }
        self.tell.notify_one();
        self.holdings_changed();
    }

    /// Makes those hear of it who must.
    pub(super) fn heed(&self, news: News) {
        let News { dirty, urgent, doomed, leases, filtered, malformed, duplicates, expired } = news;
        let counters = &self.counters;
        for (counter, count) in [
            (&counters.expired, leases),
            (&counters.filtered, filtered),
            (&counters.malformed, malformed),
            (&counters.duplicates, duplicates),
            (&counters.expired_records, expired),
        ] {
            if count > 0 {
                counter.add(count);
            }
        }
        let news_for_upkeep =
            (dirty && !self.dirty.swap(true, Ordering::AcqRel)) | (urgent && !self.urgent.swap(true, Ordering::AcqRel));
        if news_for_upkeep {
            self.upkeep.notify_one();
        }
        if doomed {
            self.undertaker.notify_one();
        }
    }

    /// Says something about a delivery, and makes everybody look at what comes of it.
    pub(super) fn settle<T>(
        &self,
        holding: &Holding,
        handout: Handout,
        say: impl FnOnce(&mut Window<Kept>, &Clock) -> Result<T, Stale>,
    ) -> Result<T, SettleError> {
        let clock = self.clock();
        let (said, news) = holding.settle(handout, &clock, &self.trials, |window| say(window, &clock));
        if said.is_err() {
            self.counters.stale.add(1);
        }
        self.heed(news);
        if holding.is_ending() {
            self.upkeep.notify_one();
        }
        self.inbox.wake();
        said
    }

    /// Whether the coordinator may have given its partitions to others by now.
    pub(super) fn has_lapsed(&self, now: Instant) -> bool {
        self.seat.lock().lapses_at.is_some_and(|at| at <= now)
    }

    /// It can't go on, ever.
    pub(super) fn fail(&self, error: GroupError) {
        tracing::warn!(%error, "the group consumer ends");
        self.fault.lock().get_or_insert(error);
        self.is_faulty.store(true, Ordering::Release);
        self.lose_all();
        self.holdings_changed();
    }

    pub(super) fn fault(&self) -> Option<GroupError> {
        if self.is_faulty.load(Ordering::Acquire) { self.fault.lock().clone() } else { None }
    }
}
