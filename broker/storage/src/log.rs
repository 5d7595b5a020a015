//! One group's log: the calls its owner makes.
//!
//! Every change takes effect in memory at once, in the order of the calls, and is queued for the journal in that same
//! order. What is durable is told by callbacks, [`GroupLog::durable_index`] and [`GroupLog::wait_durable`].
//!
//! Never blocks on the disk. The one place where a call may wait is the queue's hard cap.

use std::io;
use std::sync::Arc;

use crate::error::AppendError;
use crate::queue::{Op, Pending};
use crate::shared::{Core, Group};
use crate::types::{Entry, FlushCallback, GroupId, LogState, Position, SegmentInfo, Vote};

/// The log of one group. Clones are the same log.
#[derive(Clone)]
pub struct GroupLog {
    pub(crate) core: Arc<Core>,
    pub(crate) group: Arc<Group>,
}

impl std::fmt::Debug for GroupLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GroupLog({})", self.group.id)
    }
}

impl GroupLog {
    pub(crate) fn new(core: Arc<Core>, group: Arc<Group>) -> GroupLog {
        GroupLog { core, group }
    }

    /// Its group.
    pub fn id(&self) -> GroupId {
        self.group.id
    }

    /// Appends entries that follow on the log's end (the first ones ever may begin anywhere). They can be read when
    /// this returns; `done` is called from the journal's thread once they are durable.
    ///
    /// While more than `queue_bytes` wait for the disk this blocks the calling thread, at most `append_wait`. Bound
    /// what is proposed upstream so that it never comes to that.
    ///
    /// # Errors
    /// Nothing was appended and `done` will not be called.
    pub fn append(&self, entries: Vec<Entry>, done: FlushCallback) -> Result<(), AppendError> {
        if entries.is_empty() {
            done(Ok(()));
            return Ok(());
        }
        self.admit()?;
        self.enqueue_entries(entries, Some(done), true)
    }

    /// Waits, without a thread, until less than `queue_bytes` wait for the disk, or the engine closes. Cancel safe.
    pub async fn room(&self) {
        self.core.queue.room().await;
    }

    /// As [`GroupLog::append`] or, `lazy`, [`GroupLog::append_lazy`], right after [`GroupLog::room`] has returned: does not
    /// wait. Of many that wait one is let in at a time, so the cap is passed by about one append.
    ///
    /// # Errors
    /// As [`GroupLog::append`], but never [`AppendError::Overloaded`].
    pub fn append_in_room(&self, entries: Vec<Entry>, lazy: bool, done: FlushCallback) -> Result<(), AppendError> {
        if entries.is_empty() || lazy {
            let queued = if entries.is_empty() { Ok(()) } else { self.enqueue_entries(entries, None, false) };
            self.core.queue.pass_on();
            return queued.map(|()| done(Ok(())));
        }
        let queued = self.enqueue_entries(entries, Some(done), true);
        self.core.queue.pass_on();
        queued
    }

    fn admit(&self) -> Result<(), AppendError> {
        let core = &self.core;
        core.queue.admit(core.options.append_wait).map_err(|queued| AppendError::Overloaded { queued })
    }

    /// As [`GroupLog::append`], but `done` is called at once, on this thread: the entries are in memory, and durable
    /// within about `flush_interval`. For logs whose durability is that a majority has them.
    pub fn append_lazy(&self, entries: Vec<Entry>, done: FlushCallback) -> Result<(), AppendError> {
        if !entries.is_empty() {
            self.admit()?;
            self.enqueue_entries(entries, None, false)?;
        }
        done(Ok(()));
        Ok(())
    }

    fn enqueue_entries(&self, entries: Vec<Entry>, done: Option<FlushCallback>, sync: bool) -> Result<(), AppendError> {
        let core = &self.core;
        let mut inner = self.group.inner.lock();
        self.check_alive(inner.removed)?;
        inner.check_append(self.group.id, &entries, core.options.max_payload_bytes())?;
        core.cache.added(inner.push(&entries));
        let pending = Pending::new(&self.group, Op::Entries(entries), inner.epoch);
        self.enqueue(Pending { done, sync, ..pending })
    }

    fn enqueue(&self, pending: Pending) -> Result<(), AppendError> {
        self.core.queue.push(pending).map_err(|_| self.stopped())
    }

    fn stopped(&self) -> AppendError {
        AppendError::Stopped(self.core.stopped().unwrap_or("it is closing").to_owned())
    }

    fn check_alive(&self, removed: bool) -> Result<(), AppendError> {
        if removed {
            return Err(AppendError::Removed(self.group.id));
        }
        if self.core.stopped().is_some() {
            return Err(self.stopped());
        }
        Ok(())
    }

    /// Drops the entries above `last` (all of them for `None`), for readers at once, on disk in order with appends.
    /// Nothing committed can be dropped.
    pub fn truncate_after(&self, last: Option<u64>) -> Result<(), AppendError> {
        let mut inner = self.group.inner.lock();
        self.check_alive(inner.removed)?;
        let next = last.map_or(0, |last| last.saturating_add(1));
        if next >= inner.now.next {
            return Ok(());
        }
        if let Some(committed) = inner.now.committed.filter(|at| at.index >= next && at.index >= inner.now.first) {
            let (group, committed) = (self.group.id, committed.index);
            return Err(AppendError::BelowCommitted { group, after: last, committed });
        }
        let (freed, tail) = inner.cut(next);
        self.core.cache.dropped(freed);
        inner.drops += 1;
        let pending = Pending::new(&self.group, Op::Truncate(last, tail), inner.epoch);
        let queued = self.enqueue(Pending { sync: true, ..pending });
        drop(inner);
        self.group.changed.notify_waiters();
        queued
    }

    /// Stores a vote; `done` is called once it is durable. In order with appends.
    pub fn save_vote(&self, vote: Vote, done: FlushCallback) -> Result<(), AppendError> {
        let mut inner = self.group.inner.lock();
        self.check_alive(inner.removed)?;
        inner.now.vote = Some(vote);
        self.enqueue(Pending::new(&self.group, Op::Vote(vote), inner.epoch).durable(Some(done)))
    }

    /// The vote saved last.
    pub fn read_vote(&self) -> Option<Vote> {
        self.group.inner.lock().now.vote
    }

    /// Notes how far the log is committed: in memory now, on disk with the next write of any group. Going back is
    /// ignored.
    pub fn save_committed(&self, at: Option<Position>) {
        let mut inner = self.group.inner.lock();
        let Some(at) = at.filter(|at| inner.now.committed.is_none_or(|old| old.index < at.index)) else { return };
        if inner.removed {
            return;
        }
        inner.now.committed = Some(at);
        if !std::mem::replace(&mut inner.committed_dirty, true) {
            self.core.queue.push_dirty(Arc::clone(&self.group));
        }
    }

    /// How far the log is committed, but never above its durable end.
    pub fn read_committed(&self) -> Option<Position> {
        self.group.inner.lock().committed()
    }

    /// Moves the log's start behind `upto`. Beyond the log's end the log becomes empty and goes on at `upto.index + 1`.
    /// What is purged counts as committed. Durable within about `flush_interval`; segments that lie wholly below are
    /// unlinked after that. Going back is ignored.
    pub fn purge(&self, upto: Position) {
        let mut inner = self.group.inner.lock();
        if self.check_alive(inner.removed).is_err() {
            return;
        }
        let Some(freed) = inner.purge(upto) else { return };
        self.core.cache.dropped(freed);
        inner.drops += 1;
        let _ = self.enqueue(Pending::new(&self.group, Op::Purge(upto), inner.epoch)); // a closed engine forgets it
    }

    /// First and last entry, purge position, last mark.
    pub fn state(&self) -> LogState {
        self.group.inner.lock().state()
    }

    /// The last durable entry, or `None` when no entry of the log is durable.
    pub fn durable_index(&self) -> Option<u64> {
        let inner = self.group.inner.lock();
        inner.durable_next.checked_sub(1).filter(|index| *index >= inner.now.first)
    }

    /// Waits until entry `index` is durable. Cancel safe.
    ///
    /// # Errors
    /// The entry is not in the log (any more), or the engine stopped.
    pub async fn wait_durable(&self, index: u64) -> io::Result<()> {
        loop {
            let changed = self.group.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let inner = self.group.inner.lock();
                if index < inner.durable_next {
                    return Ok(());
                }
                if index >= inner.now.next || inner.removed {
                    return Err(io::Error::new(io::ErrorKind::NotFound, format!("entry {index} is not in the log")));
                }
            }
            if let Some(error) = self.core.stopped_error() {
                return Err(error);
            }
            changed.await;
        }
    }

    /// Bytes of the log on disk, journal and segments together.
    pub fn size_bytes(&self) -> u64 {
        let journal = self.group.inner.lock().slots.bytes();
        journal + self.group.history.size_bytes(&self.core, &self.group).unwrap_or(0)
    }

    /// Size at which a segment of this log is closed.
    pub fn segment_bytes(&self) -> u64 {
        self.core.options.segment_bytes
    }

    /// The segments, oldest first. What is still in the journal is not part of it. Reads a little from disk the first
    /// time; an unreadable segment ends the list.
    pub fn oldest_segments(&self) -> Vec<SegmentInfo> {
        self.group.history.infos(&self.core, &self.group)
    }
}
