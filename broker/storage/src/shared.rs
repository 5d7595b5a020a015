//! What all parts of one engine share: the groups, the queue, the ring, the counters, and whether it still works.
//!
//! Invariants: once stopped, it stays stopped, and says the first reason; the fatal hook is called at most once.
//! Never writes or reads a file.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::cache::TailCache;
use crate::group::Inner;
use crate::hard::Snapshot;
use crate::journal::batch::Effect;
use crate::journal::ring::Ring;
use crate::options::{Drive, LogOptions};
use crate::queue::{Queue, copy_of};
use crate::segment::{History, OpenSegments, rewrite::Rewrites};
use crate::types::{EngineStats, GroupId};
use crate::upkeep::Job;
use crate::vfs::Vfs;

/// Longest rest of the background between two steps.
const REST_MAX: Duration = Duration::from_millis(500);
/// What the background writes at least in a second, when there is something to write.
const QUIET_BYTES_PER_SECOND: u64 = 8 << 20;

/// What a fatal error is reported to: called once, from an engine thread.
pub type FatalHook = Box<dyn Fn(&str) + Send + Sync>;

/// One group: its state, its history, and whoever waits for it.
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) inner: Mutex<Inner>,
    pub(crate) history: History,
    /// Signalled when something became durable, was cut, or failed for good.
    pub(crate) changed: Notify,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({})", self.id)
    }
}

impl Group {
    /// An operation on this group reached the disk.
    pub(crate) fn on_durable(self: &Arc<Self>, core: &Core, epoch: u64, effect: &Effect) {
        match effect {
            Effect::Entries(next) => self.inner.lock().durable(epoch, *next),
            Effect::Cut => {
                let mut inner = self.inner.lock();
                inner.cut_written(epoch);
                inner.drops_durable += 1;
            }
            Effect::Purge(first) => {
                let mut inner = self.inner.lock();
                inner.drops_durable += 1;
                inner.first_durable = inner.first_durable.max(*first);
                drop(inner);
                core.add_job(Job::Unlink(Arc::clone(self)));
            }
            Effect::Retired(end) => self.inner.lock().retired(*end),
            Effect::Remove => {
                self.inner.lock().drops_durable += 1;
                core.removing.lock().retain(|group| !Arc::ptr_eq(group, self));
                core.add_job(Job::Remove(Arc::clone(self)));
            }
            Effect::Freed(generation) => {
                core.ring.freed(*generation);
                core.queue.wake();
            }
            Effect::Forgotten => {
                core.removed.lock().remove(&self.id);
            }
            Effect::Nothing => return,
        }
        self.changed.notify_waiters();
    }
}

/// Counters behind [`EngineStats`].
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) syncs: AtomicU64,
    pub(crate) direct_writes: AtomicU64,
    pub(crate) journal_bytes: AtomicU64,
    pub(crate) frames: AtomicU64,
    pub(crate) retired_bytes: AtomicU64,
    pub(crate) rewritten_bytes: AtomicU64,
    pub(crate) carried_bytes: AtomicU64,
    pub(crate) sync_us_max: AtomicU64,
    pub(crate) sync_us_total: AtomicU64,
    pub(crate) stalls: AtomicU64,
}

impl Stats {
    pub(crate) fn note_sync(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.syncs.fetch_add(1, Relaxed);
        self.sync_us_total.fetch_add(us, Relaxed);
        self.sync_us_max.fetch_max(us, Relaxed);
    }
}

/// What all parts of one engine share.
pub(crate) struct Core {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) dir: PathBuf,
    pub(crate) options: LogOptions,
    pub(crate) queue: Queue,
    pub(crate) ring: Ring,
    pub(crate) cache: TailCache,
    pub(crate) open_segments: OpenSegments,
    pub(crate) stats: Stats,
    pub(crate) groups: RwLock<HashMap<GroupId, Arc<Group>>>,
    /// Removed groups of which something may be left. Locked inside `groups`, where both are.
    pub(crate) removed: Mutex<BTreeSet<GroupId>>,
    /// Removed groups whose removal is not yet durable.
    pub(crate) removing: Mutex<Vec<Arc<Group>>>,
    jobs: Mutex<VecDeque<Job>>,
    /// Segments to be rewritten, when there is nothing else to do.
    pub(crate) rewrites: Rewrites,
    pub(crate) stopped: OnceLock<(String, io::Error)>,
    pub(crate) hook: OnceLock<FatalHook>,
    /// Stands in for the node where an operation belongs to no group.
    pub(crate) node: Arc<Group>,
}

impl Core {
    /// A running engine without groups.
    pub(crate) fn new(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        options: LogOptions,
        ring: Ring,
        removed: BTreeSet<GroupId>,
    ) -> Core {
        Core {
            queue: Queue::new(options.queue_bytes),
            ring,
            cache: TailCache::new(options.tail_cache_bytes),
            open_segments: OpenSegments::default(),
            stats: Stats::default(),
            groups: RwLock::default(),
            removed: Mutex::new(removed),
            removing: Mutex::default(),
            jobs: Mutex::default(),
            rewrites: Rewrites::default(),
            stopped: OnceLock::new(),
            hook: OnceLock::new(),
            node: new_group(dir, GroupId(u64::MAX), Inner::default()),
            dir: dir.to_owned(),
            options,
            vfs,
        }
    }

    /// Takes over what recovery found, and queues what was left undone.
    pub(crate) fn restore(&self, found: BTreeMap<GroupId, Inner>, written: &Snapshot) {
        let mut groups = self.groups.write();
        for (id, inner) in found {
            groups.insert(id, self.make_group(id, inner));
        }
        for id in &written.removed {
            let mut gone = Inner::default();
            gone.removed = true;
            self.add_job(Job::Remove(self.make_group(*id, gone)));
        }
    }

    /// Background work has just written `bytes` and kept the disk busy for `took`: leaves it to the journal for a
    /// while, so that it goes about twice as fast as the journal fills; unless the ring is short of files, or other
    /// work waits behind this.
    pub(crate) fn rest_after(&self, took: Duration, bytes: u64) {
        let urgent = self.ring.is_stopping() || self.ring.is_hurried() || !self.jobs.lock().is_empty();
        if urgent || self.options.drive == Drive::Manual {
            return;
        }
        let duty = self.options.retire_duty_percent;
        let pace = QUIET_BYTES_PER_SECOND.max(2 * self.ring.fill_rate());
        let spread = Duration::from_secs_f64(bytes as f64 / pace as f64).saturating_sub(took);
        self.ring.rest((took * (100 - duty) / duty).max(spread).min(REST_MAX));
    }

    /// Counters since it was opened.
    pub(crate) fn stats(&self) -> EngineStats {
        let stats = &self.stats;
        EngineStats {
            syncs: stats.syncs.load(Relaxed),
            direct_writes: stats.direct_writes.load(Relaxed),
            journal_bytes: stats.journal_bytes.load(Relaxed),
            frames: stats.frames.load(Relaxed),
            files: self.ring.len() as u64,
            retired_bytes: stats.retired_bytes.load(Relaxed),
            rewritten_bytes: stats.rewritten_bytes.load(Relaxed),
            carried_bytes: stats.carried_bytes.load(Relaxed),
            cache_bytes: self.cache.bytes() as u64,
            queue_bytes: self.queue.bytes() as u64,
            sync_us_max: stats.sync_us_max.load(Relaxed),
            sync_us_total: stats.sync_us_total.load(Relaxed),
            stalls: stats.stalls.load(Relaxed),
        }
    }

    pub(crate) fn journal_dir(&self) -> PathBuf {
        self.dir.join("journal")
    }

    pub(crate) fn groups_dir(&self) -> PathBuf {
        self.dir.join("groups")
    }

    pub(crate) fn make_group(&self, id: GroupId, inner: Inner) -> Arc<Group> {
        new_group(&self.dir, id, inner)
    }

    /// Why nothing works any more, if so.
    pub(crate) fn stopped(&self) -> Option<&str> {
        self.stopped.get().map(|(text, _)| text.as_str())
    }

    /// The error of whoever asks a stopped engine.
    pub(crate) fn stopped_error(&self) -> Option<io::Error> {
        self.stopped.get().map(|(text, error)| io::Error::new(error.kind(), text.clone()))
    }

    /// A write or sync failed: nothing is certain about the pages behind it, so nothing is tried again.
    pub(crate) fn poison(&self, action: &str, error: &io::Error) {
        let text = format!("cannot {action} in {}: {error}", self.dir.display());
        if self.stopped.set((text, copy_of(error))).is_err() {
            return;
        }
        let text = self.stopped().unwrap_or_default();
        tracing::error!(error = text, "log engine stopped for good; restart the process");
        self.queue.close();
        self.rewrites.close();
        self.ring.wake();
        self.groups.read().values().for_each(|group| group.changed.notify_waiters());
        if let Some(hook) = self.hook.get() {
            hook(text);
        }
    }

    pub(crate) fn add_job(&self, job: Job) {
        self.jobs.lock().push_back(job);
        self.ring.wake();
    }

    pub(crate) fn next_job(&self) -> Option<Job> {
        self.jobs.lock().pop_front()
    }
}

fn new_group(dir: &Path, id: GroupId, inner: Inner) -> Arc<Group> {
    let history = History::new(id, dir.join("groups").join(id.to_string()));
    Arc::new(Group { id, inner: Mutex::new(inner), history, changed: Notify::new() })
}
