//! The journal's writer: everything queued by all groups, one write, one sync, then the callbacks in order.
//!
//! There is no timer on the hot path: while one sync runs, the next batch gathers in the queue.
//!
//! Invariants:
//! - a frame of one file is written only after everything in the file before it is durable (the seal is synced with
//!   it), so only the newest file can have a torn end;
//! - `written` is exactly the state that replaying the journal up to the last encoded frame gives;
//! - after a failed write or sync nothing is written any more: the pages may be lost and marked clean.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::active::Active;
use super::batch::{Batch, Effect, Finished, Moved, Placed};
use super::direct::Direct;
use super::header::FileHeader;
use super::recovery::file_name;
use super::ring::JournalFile;
use crate::frame::{Head, Kind, crc_of, size_of};
use crate::group::Slot;
use crate::hard::Snapshot;
use crate::queue::{Op, Pending, copy_of};
use crate::shared::{Core, Group};
use crate::types::{GroupId, Position};

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something was written.
    Busy,
    /// Nothing is queued.
    Idle,
    /// Something is queued but the ring has no file for it.
    NoRoom,
    /// The queue is closed and empty; everything is durable.
    Closed,
}

/// See the module.
pub(crate) struct Writer {
    pub(super) core: Arc<Core>,
    pub(super) active: Option<Active>,
    generation: u64,
    opened: u64,
    written: Snapshot,
    urgent: VecDeque<Pending>,
    normal: VecDeque<Pending>,
    dirty: Vec<Arc<Group>>,
    pub(super) batch: Batch,
    /// Written but not synced.
    pub(super) unsynced: Vec<Finished>,
    pub(super) deadline: Option<Instant>,
    stalled: bool,
    /// The closing frame is written.
    closed: bool,
    /// Direct writes can be opened here, but not made.
    pub(super) refuses_direct: bool,
}

impl Writer {
    /// Continues at `active`, or in a new file behind `generation`.
    pub(crate) fn new(
        core: Arc<Core>,
        active: Option<Active>,
        generation: u64,
        opened: u64,
        written: Snapshot,
    ) -> Writer {
        let mut batch = Batch::default();
        batch.restart(active.as_ref().map_or(0, |active| active.pos));
        Writer {
            core,
            active,
            generation,
            opened,
            written,
            urgent: VecDeque::new(),
            normal: VecDeque::new(),
            dirty: Vec::new(),
            batch,
            unsynced: Vec::new(),
            deadline: None,
            stalled: false,
            closed: false,
            refuses_direct: false,
        }
    }

    /// Notes in the journal that the engine was opened once more, which also sets this run's frames apart from
    /// whatever an earlier run may have left behind them.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        self.open_direct();
        self.note_opened(0)
    }

    fn note_opened(&mut self, flavour: u8) -> io::Result<()> {
        let head = Head { flavour, index: self.opened, ..Head::bare(Kind::Opened, GroupId::default()) };
        if self.frame(&head, &Bytes::new(), true)?.is_none() {
            return Err(io::Error::other("the journal has no file to begin with"));
        }
        self.flush(true)
    }

    /// Runs until the queue is closed or the disk fails.
    pub(crate) fn run(mut self) {
        self.core.queue.set_writer(std::thread::current().id());
        let mut stuck: Option<Instant> = None;
        loop {
            let step = self.step(true);
            let since = *stuck.get_or_insert_with(Instant::now);
            match step {
                Ok(Step::Closed) => {
                    return self.end(&io::Error::new(io::ErrorKind::BrokenPipe, "the log engine is closed"));
                }
                Ok(Step::NoRoom) if self.core.queue.is_closed() && since.elapsed() > self.core.options.append_wait => {
                    return self
                        .end(&io::Error::new(io::ErrorKind::StorageFull, "closed while the journal had no room"));
                }
                Ok(Step::NoRoom) => self.core.queue.pause(Duration::from_millis(10)),
                Ok(Step::Busy | Step::Idle) => stuck = None,
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// Fails everything that waits, and stops for good.
    pub(crate) fn fail(&mut self, error: &io::Error) {
        self.core.poison("write the journal", error);
        self.end(error);
    }

    /// Nothing will be written any more.
    pub(crate) fn end(&mut self, error: &io::Error) {
        let left = self.core.queue.end();
        let finished = self.unsynced.drain(..).chain(self.batch.finished.drain(..));
        for done in finished.filter_map(|f| f.done) {
            done(Err(copy_of(error)));
        }
        let mut released = std::mem::take(&mut self.batch.released);
        for pending in self.urgent.drain(..).chain(self.normal.drain(..)).chain(left) {
            released += pending.bytes;
            pending.fail(error);
        }
        self.core.queue.release(released);
    }

    /// Writes what is queued, as far as one batch goes.
    pub(crate) fn step(&mut self, wait: bool) -> io::Result<Step> {
        let empty = self.urgent.is_empty() && self.normal.is_empty();
        let taken = self.core.queue.take(wait && empty, self.deadline);
        self.urgent.extend(taken.urgent);
        self.normal.extend(taken.normal);
        self.dirty.extend(taken.dirty);
        if self.urgent.is_empty() && self.normal.is_empty() {
            return self.idle(taken.closed, wait && empty);
        }
        let before = self.batch.frames;
        let mut room = self.fill(true)?;
        // A carried entry must never come behind a truncation that was asked for later: urgent first, completely.
        if self.urgent.is_empty() && !self.normal.is_empty() {
            room &= self.core.ring.is_open() && self.fill_committed()? && self.fill(false)?;
        }
        let progressed = self.batch.frames != before || !self.batch.finished.is_empty();
        let (began, bytes) = (Instant::now(), self.batch.bytes as u64);
        let due = self.deadline.is_some_and(|at| began >= at);
        self.flush(self.batch.sync || due)?;
        self.note_stall(!room);
        if wait && room {
            let hold = self.core.ring.fair_time(bytes).saturating_sub(began.elapsed());
            if !hold.is_zero() {
                self.core.ring.note_held_back();
                std::thread::park_timeout(hold);
            }
        }
        Ok(if room || progressed { Step::Busy } else { Step::NoRoom })
    }

    fn idle(&mut self, closed: bool, waited: bool) -> io::Result<Step> {
        if closed {
            if !std::mem::replace(&mut self.closed, true) {
                self.fill_committed()?;
                self.flush(true)?;
                // Its `synced` proves at the next start that all before it was durable; without room it goes without.
                if self.active.as_ref().is_some_and(|active| !active.is_full()) {
                    self.note_opened(1)?;
                }
            }
            return Ok(Step::Closed);
        }
        let due = self.deadline.is_some_and(|at| !waited || Instant::now() >= at);
        if due {
            self.flush(true)?;
            return Ok(Step::Busy);
        }
        Ok(Step::Idle)
    }

    fn note_stall(&mut self, stalled: bool) {
        if stalled && !self.stalled {
            self.core.stats.stalls.fetch_add(1, Relaxed);
            tracing::warn!(
                files = self.core.ring.len(),
                queued_bytes = self.core.queue.bytes(),
                "journal waits for a free file: retiring does not keep up, or the disk is full"
            );
        }
        self.stalled = stalled;
    }

    /// Turns one lane's operations into frames; false when the ring has no room for the rest.
    fn fill(&mut self, urgent: bool) -> io::Result<bool> {
        loop {
            if self.batch.bytes >= self.core.options.batch_bytes {
                return Ok(true);
            }
            let lane = if urgent { &mut self.urgent } else { &mut self.normal };
            let Some(mut pending) = lane.pop_front() else { return Ok(true) };
            let placed = match self.place(&mut pending, urgent) {
                Ok(placed) => placed,
                Err(error) => {
                    pending.fail(&error);
                    return Err(error);
                }
            };
            if !placed {
                let lane = if urgent { &mut self.urgent } else { &mut self.normal };
                lane.push_front(pending);
                return Ok(false);
            }
            self.batch.sync |= pending.sync;
            self.batch.released += pending.bytes;
            let effect = match pending.op {
                Op::Entries(entries) => entries.last().map_or(Effect::Nothing, |last| Effect::Entries(last.index + 1)),
                Op::Truncate(..) => Effect::Cut,
                Op::Purge(upto) => Effect::Purge(upto.index + 1),
                Op::Retired(end) => Effect::Retired(end),
                Op::Remove => Effect::Remove,
                Op::Freed(generation) => Effect::Freed(generation),
                Op::Forget => Effect::Forgotten,
                Op::Vote(_) | Op::Carry(_) | Op::Barrier => Effect::Nothing,
            };
            let Pending { group, epoch, done, .. } = pending;
            self.batch.finished.push(Finished { group, epoch, effect, done });
        }
    }

    /// Committed positions ride along.
    fn fill_committed(&mut self) -> io::Result<bool> {
        while let Some(group) = self.dirty.pop() {
            let committed = {
                let mut inner = group.inner.lock();
                inner.committed_dirty = false;
                inner.now.committed.filter(|_| !inner.removed)
            };
            let Some(at) = committed else { continue };
            let head = positioned(Kind::Committed, group.id, at);
            if self.frame(&head, &Bytes::new(), false)?.is_none() {
                self.dirty.push(group);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes one operation's frames; false when the ring has no room for the rest of them.
    fn place(&mut self, pending: &mut Pending, urgent: bool) -> io::Result<bool> {
        let id = pending.group.id;
        let none = Bytes::new();
        let (head, payload) = match &pending.op {
            Op::Entries(_) => return self.place_entries(pending),
            Op::Carry(_) => return self.place_carried(pending),
            Op::Barrier => return Ok(true),
            Op::Truncate(after, (term, mark)) => {
                let (flavour, index) = (u8::from(after.is_some()), after.unwrap_or(0));
                (Head { flavour, index, term: *term, mark: *mark, ..Head::bare(Kind::Truncate, id) }, none)
            }
            Op::Vote(vote) => {
                let at = Position { term: vote.term, index: vote.node };
                (Head { flavour: u8::from(vote.committed), ..positioned(Kind::Vote, id, at) }, none)
            }
            Op::Purge(at) => (positioned(Kind::Purge, id, *at), none),
            Op::Remove => (Head::bare(Kind::Remove, id), none),
            Op::Forget => (Head::bare(Kind::Forget, id), none),
            Op::Freed(generation) => (Head { index: *generation, ..Head::bare(Kind::Freed, id) }, none),
            Op::Retired(end) => {
                let payload = Bytes::copy_from_slice(&end.encode());
                let (len, payload_crc) = (payload.len() as u32, crc32fast::hash(&payload));
                (Head { len, payload_crc, ..Head::bare(Kind::Retired, id) }, payload)
            }
        };
        Ok(self.frame(&head, &payload, urgent)?.is_some())
    }

    fn place_entries(&mut self, pending: &mut Pending) -> io::Result<bool> {
        let Op::Entries(entries) = &pending.op else { return Ok(true) };
        let rest = &entries[pending.written..];
        let mut slots = Vec::with_capacity(rest.len());
        for entry in rest {
            let head = Head::of_entry(Kind::Entry, pending.group.id, entry);
            let Some((generation, pos)) = self.frame(&head, &entry.payload, false)? else { break };
            slots.push(Slot::new(generation, pos, (entry.term, entry.mark, entry.time_ms), head.len));
        }
        let Some(first) = rest.first().filter(|_| !slots.is_empty()) else { return Ok(rest.is_empty()) };
        let cost = rest.iter().take(slots.len()).map(|entry| entry.cost()).sum();
        pending.written += slots.len();
        let complete = pending.written == entries.len();
        let (group, epoch, from) = (Arc::clone(&pending.group), pending.epoch, first.index);
        self.batch.placed.push(Placed { group, epoch, from, slots, cost });
        Ok(complete)
    }

    fn place_carried(&mut self, pending: &mut Pending) -> io::Result<bool> {
        let Op::Carry(entries) = &pending.op else { return Ok(true) };
        for carried in &entries[pending.written..] {
            let head = carried.head;
            let Some((generation, pos)) = self.frame(&head, &carried.payload, true)? else { return Ok(false) };
            let slot = Slot::new(generation, pos, (head.term, head.mark, head.time_ms), head.len);
            let (group, index, from) = (Arc::clone(&pending.group), head.index, carried.from);
            self.batch.moved.push(Moved { group, index, from, slot });
            self.core.stats.carried_bytes.fetch_add(head.size(), Relaxed);
            pending.written += 1;
        }
        Ok(true)
    }

    /// Encodes one frame into the batch; returns generation and position, or `None` when the ring has no room.
    fn frame(&mut self, head: &Head, payload: &Bytes, urgent: bool) -> io::Result<Option<(u64, u64)>> {
        let size = head.size();
        let fits = self.active.as_ref().is_some_and(|a| a.pos + size + size_of(0) <= a.file.bytes);
        if !fits {
            self.check_fits_empty(size)?;
            if !self.roll(urgent)? {
                return Ok(None);
            }
        }
        self.written.apply(head, payload).expect("the writer's own frames agree with its state");
        Ok(Some(self.encode(head, payload)))
    }

    /// An error when not even a new file has room for a frame: nothing may ever be written over a file's end.
    fn check_fits_empty(&self, size: u64) -> io::Result<()> {
        let (written, bytes) = (&self.written, self.core.options.file_bytes);
        let head = Snapshot::size_of(written.groups.len(), written.removed.len());
        if FileHeader::data_start(head) + size + size_of(0) <= bytes {
            return Ok(());
        }
        let groups = written.groups.len();
        let text = format!(
            "a journal file of {bytes} bytes has no room for {size} behind the states of {groups} groups: raise its size"
        );
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }

    pub(super) fn encode(&mut self, head: &Head, payload: &Bytes) -> (u64, u64) {
        let active = self.active.as_mut().expect("a file is active once the first roll is done");
        let pos = active.pos;
        let header = head.encode(&active.place, pos, active.prev, active.synced);
        (active.prev, active.pos) = (crc_of(&header), pos + head.size());
        if matches!(head.kind, Kind::Entry | Kind::Carried) {
            active.file.groups.lock().insert(head.group);
        }
        self.batch.push(&header, payload);
        (active.file.generation, pos)
    }

    /// Seals the active file and begins the next; false when there is none to take.
    fn roll(&mut self, urgent: bool) -> io::Result<bool> {
        let Some(spare) = self.core.ring.take_spare(urgent) else { return Ok(false) };
        if self.active.is_some() {
            self.encode(&Head::bare(Kind::Seal, GroupId::default()), &Bytes::new());
            self.write_out(true)?;
        }
        self.generation += 1;
        let snapshot = self.written.encode();
        let header = FileHeader {
            slot: spare.slot,
            generation: self.generation,
            file_bytes: spare.bytes,
            oldest: self.core.ring.oldest().unwrap_or(self.generation),
            opened: self.opened,
            snapshot_bytes: snapshot.len() as u32,
            snapshot_crc: crc32fast::hash(&snapshot),
        };
        let pos = FileHeader::data_start(snapshot.len() as u64);
        let file = Arc::new(JournalFile {
            slot: spare.slot,
            generation: self.generation,
            bytes: spare.bytes,
            start: pos,
            file: spare.file,
            groups: Mutex::new(HashSet::new()),
        });
        self.batch.restart(0);
        self.batch.gather(&header.encode(&snapshot));
        let (place, prev) = (file.place(), header.chain());
        self.core.ring.rolled(Arc::clone(&file));
        self.active = Some(Active { file, place, pos, prev, synced: 0, direct: None });
        self.open_direct();
        Ok(true)
    }

    fn open_direct(&mut self) {
        let wanted = self.core.options.direct_io && !self.refuses_direct;
        let Some(active) = self.active.as_mut().filter(|_| wanted) else { return };
        let path = self.core.journal_dir().join(file_name(active.file.slot));
        active.direct = self.core.vfs.open_direct(&path, true).map(Direct::new);
    }
}

fn positioned(kind: Kind, group: GroupId, at: Position) -> Head {
    Head { term: at.term, index: at.index, ..Head::bare(kind, group) }
}
