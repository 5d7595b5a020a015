//! What waits for the journal's writer: two lanes of operations, bounded in bytes.
//!
//! The normal lane carries what callers ask for, in the order in which it took effect in memory. The urgent lane
//! carries what makes room in the ring (carried entries, segment ends, freed files): it is served first, because the
//! normal lane may be waiting for that very room.
//!
//! Invariant: for one group, the order in the normal lane is the order of the changes in [`crate::group::Inner`]
//! (operations are pushed while the group is locked).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use crate::frame::Head;
use crate::hard::SegmentEnd;
use crate::shared::Group;
use crate::types::{Entry, FlushCallback, Position, Vote};

/// An entry to be written again at the journal's head.
#[derive(Debug)]
pub(crate) struct Carried {
    /// As it stands in the old file, kind [`crate::frame::Kind::Carried`]; the payload crc is kept as it was, so that
    /// damage stays visible.
    pub(crate) head: Head,
    pub(crate) payload: Bytes,
    /// Tag of the file it is leaving.
    pub(crate) from: u32,
}

/// One change to be written.
#[derive(Debug)]
pub(crate) enum Op {
    Entries(Vec<Entry>),
    /// Last index kept, term and mark of it.
    Truncate(Option<u64>, (u64, u64)),
    Vote(Vote),
    Purge(Position),
    Remove,
    Forget,
    Carry(Vec<Carried>),
    Retired(SegmentEnd),
    Freed(u64),
    /// Nothing: it is complete when all before it is durable.
    Barrier,
}

/// A queued operation.
pub(crate) struct Pending {
    pub(crate) group: Arc<Group>,
    pub(crate) op: Op,
    pub(crate) done: Option<FlushCallback>,
    /// Somebody waits for it to be durable.
    pub(crate) sync: bool,
    /// The group's cut epoch when it was queued.
    pub(crate) epoch: u64,
    /// How many of its entries are written.
    pub(crate) written: usize,
    pub(crate) bytes: usize,
}

impl Pending {
    pub(crate) fn new(group: &Arc<Group>, op: Op, epoch: u64) -> Pending {
        let bytes = match &op {
            Op::Entries(entries) => entries.iter().map(Entry::cost).sum(),
            Op::Carry(entries) => entries.iter().map(|c| c.payload.len() + 160).sum(),
            _ => 160,
        };
        Pending { group: Arc::clone(group), op, done: None, sync: false, epoch, written: 0, bytes }
    }

    pub(crate) fn durable(self, done: Option<FlushCallback>) -> Pending {
        Pending { done, sync: true, ..self }
    }

    pub(crate) fn fail(self, error: &io::Error) {
        if let Some(done) = self.done {
            done(Err(copy_of(error)));
        }
    }
}

/// The same error for one more receiver.
pub(crate) fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[derive(Default)]
struct Lanes {
    urgent: VecDeque<Pending>,
    normal: VecDeque<Pending>,
    /// Groups whose committed position is newer than the journal's.
    dirty: Vec<Arc<Group>>,
    /// Bytes queued or being written.
    bytes: usize,
    /// Once set, callers' operations are refused.
    closed: bool,
    /// Once set, everything is refused: the writer is gone.
    ended: bool,
    writer: Option<ThreadId>,
}

/// What one look at the queue brought.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) urgent: VecDeque<Pending>,
    pub(crate) normal: VecDeque<Pending>,
    pub(crate) dirty: Vec<Arc<Group>>,
    pub(crate) closed: bool,
}

/// See the module.
pub(crate) struct Queue {
    lanes: Mutex<Lanes>,
    work: Condvar,
    space: Condvar,
    /// The same for those who wait without a thread: one is told at a time, and tells the next.
    room: Notify,
    limit: usize,
}

impl Queue {
    pub(crate) fn new(limit: usize) -> Queue {
        Queue { lanes: Mutex::default(), work: Condvar::new(), space: Condvar::new(), room: Notify::new(), limit }
    }

    /// Waits until the queue is below its cap; `Err` with the bytes queued when it stayed there. The writer's own
    /// thread never waits: a callback that appends must not wait for itself.
    pub(crate) fn admit(&self, wait: Duration) -> Result<(), usize> {
        let mut lanes = self.lanes.lock();
        if lanes.bytes < self.limit || lanes.writer == Some(std::thread::current().id()) {
            return Ok(());
        }
        let deadline = Instant::now() + wait;
        while lanes.bytes >= self.limit && !lanes.closed {
            if self.space.wait_until(&mut lanes, deadline).timed_out() {
                return Err(lanes.bytes);
            }
        }
        Ok(())
    }

    /// Waits until the queue is below its cap, or closed. Cancel safe.
    pub(crate) async fn room(&self) {
        loop {
            let told = self.room.notified();
            if self.has_room() {
                return;
            }
            told.await;
        }
    }

    /// Whoever was let in has queued what it had: the next one may look.
    pub(crate) fn pass_on(&self) {
        if self.has_room() {
            self.room.notify_one();
        }
    }

    fn has_room(&self) -> bool {
        let lanes = self.lanes.lock();
        lanes.bytes < self.limit || lanes.closed
    }

    /// Queues a caller's operation; hands it back when the queue is closed. Call with the group locked.
    #[expect(clippy::result_large_err, reason = "refusing is rare, and the operation must come back whole")]
    pub(crate) fn push(&self, pending: Pending) -> Result<(), Pending> {
        self.put(pending, false)
    }

    /// Queues an operation that makes room; hands it back when the queue is closed.
    #[expect(clippy::result_large_err, reason = "refusing is rare, and the operation must come back whole")]
    pub(crate) fn push_urgent(&self, pending: Pending) -> Result<(), Pending> {
        self.put(pending, true)
    }

    #[expect(clippy::result_large_err, reason = "refusing is rare, and the operation must come back whole")]
    fn put(&self, pending: Pending, urgent: bool) -> Result<(), Pending> {
        let mut lanes = self.lanes.lock();
        if lanes.ended || (lanes.closed && !urgent) {
            return Err(pending);
        }
        lanes.bytes += pending.bytes;
        let lane = if urgent { &mut lanes.urgent } else { &mut lanes.normal };
        lane.push_back(pending);
        drop(lanes);
        self.work.notify_one();
        Ok(())
    }

    /// The group's committed position is to ride along with the next write.
    pub(crate) fn push_dirty(&self, group: Arc<Group>) {
        self.lanes.lock().dirty.push(group);
    }

    /// Everything queued; waits for something until `until` (for good when `None`) unless `wait` is false.
    pub(crate) fn take(&self, wait: bool, until: Option<Instant>) -> Taken {
        let mut lanes = self.lanes.lock();
        while wait && lanes.urgent.is_empty() && lanes.normal.is_empty() && !lanes.closed {
            match until {
                None => self.work.wait(&mut lanes),
                Some(until) if self.work.wait_until(&mut lanes, until).timed_out() => break,
                Some(_) => {}
            }
        }
        let idle = lanes.urgent.is_empty() && lanes.normal.is_empty() && !lanes.closed;
        Taken {
            urgent: std::mem::take(&mut lanes.urgent),
            normal: std::mem::take(&mut lanes.normal),
            dirty: if idle { Vec::new() } else { std::mem::take(&mut lanes.dirty) },
            closed: lanes.closed,
        }
    }

    /// Sleeps until something happens to the queue, at most `wait`.
    pub(crate) fn pause(&self, wait: Duration) {
        let mut lanes = self.lanes.lock();
        if lanes.urgent.is_empty() {
            self.work.wait_for(&mut lanes, wait);
        }
    }

    /// `bytes` of what was taken are written, or failed.
    pub(crate) fn release(&self, bytes: usize) {
        let mut lanes = self.lanes.lock();
        lanes.bytes -= bytes;
        if lanes.bytes < self.limit {
            self.space.notify_all();
            self.room.notify_one();
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lanes.lock().bytes
    }

    /// The writer is gone: refuses everything from now on, and hands out what is left.
    pub(crate) fn end(&self) -> Vec<Pending> {
        let mut lanes = self.lanes.lock();
        (lanes.closed, lanes.ended) = (true, true);
        self.space.notify_all();
        self.room.notify_waiters();
        let lanes = &mut *lanes;
        lanes.urgent.drain(..).chain(lanes.normal.drain(..)).collect()
    }

    /// Takes nothing more from callers; what is queued stays for the writer.
    pub(crate) fn close(&self) {
        self.lanes.lock().closed = true;
        self.work.notify_all();
        self.space.notify_all();
        self.room.notify_waiters();
    }

    /// Wakes the writer although nothing was queued: a file became free.
    pub(crate) fn wake(&self) {
        let _held = self.lanes.lock();
        self.work.notify_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lanes.lock().closed
    }

    pub(crate) fn set_writer(&self, thread: ThreadId) {
        self.lanes.lock().writer = Some(thread);
    }
}
