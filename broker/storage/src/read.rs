//! The read path: memory when the entries are there, else one large read of a journal file or a segment.
//!
//! ```text
//!   read(from) ─▶ plan (group locked, no I/O) ─▶ cached entries ─▶ done, no await
//!                                            └▶ journal run / segment ─▶ blocking pool ─▶ verify ─▶ entries
//! ```
//!
//! A journal file may be recycled between the plan and the read. Its frames then fail their checks, the plan is made
//! again, and only the same failure at the same place is damage. Entries are slices of the buffer they were read into.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::ReadError;
use crate::frame::{HEADER, Kind, decode};
use crate::group::{Inner, Slot};
use crate::journal::ring::JournalFile;
use crate::log::GroupLog;
use crate::options::Drive;
use crate::segment::reader::{Want, find_mark, find_time, read as read_segment};
use crate::segment::{Fault, Segment};
use crate::shared::{Core, Group};
use crate::types::{Entry, ReadMode};
use crate::vfs::read_vec;

/// Most bytes of one read from disk.
const RUN_MAX: u64 = 4 << 20;
/// A run may read over so many bytes of other groups between two of its entries.
const GAP_MAX: u64 = 16 << 10;

/// Consecutive entries in one journal file.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) file: Arc<JournalFile>,
    pub(crate) first: u64,
    pub(crate) slots: Vec<Slot>,
}

/// Where entries are to be taken from.
#[derive(Debug)]
enum Plan {
    Memory(Vec<Entry>),
    Journal(Run),
    /// The journal file is not the entries' place any more: look again.
    Moved,
    Segments,
}

/// A journal run could not be read.
#[derive(Debug)]
pub(crate) enum RunFault {
    /// The frame of this entry is not there, or not intact.
    Bad(u64),
    Io(std::io::Error),
}

impl Run {
    /// The run of journal entries from `from`, as long as they are close together, in one file, below `to` and
    /// `bytes`; `None` when the file is gone from the ring.
    pub(crate) fn plan(core: &Core, inner: &Inner, from: u64, to: u64, bytes: u64) -> Option<Run> {
        let first = *inner.slots.get(from)?;
        let file = core.ring.find(first.tag)?;
        let mut slots = vec![first];
        let mut end = first.pos() + first.size();
        for index in from + 1..to.min(inner.slots.end()) {
            let Some(slot) = inner.slots.get(index) else { break };
            let near = slot.tag == first.tag && slot.pos() >= end && slot.pos() - end <= GAP_MAX;
            if !near || slot.pos() + slot.size() - first.pos() > bytes.min(RUN_MAX) {
                break;
            }
            end = slot.pos() + slot.size();
            slots.push(*slot);
        }
        Some(Run { file, first: from, slots })
    }

    /// Reads and checks the run; what was read before a bad frame is returned.
    pub(crate) fn read(&self, group: &Group) -> Result<Vec<(crate::frame::Head, Bytes)>, RunFault> {
        let Some((first, last)) = self.slots.first().zip(self.slots.last()) else { return Ok(Vec::new()) };
        let (start, end) = (first.pos(), last.pos() + last.size());
        let bytes = read_vec(&*self.file.file, start, (end - start) as usize).map_err(RunFault::Io)?;
        let (bytes, place) = (Bytes::from(bytes), self.file.place());
        let mut frames = Vec::with_capacity(self.slots.len());
        for (index, slot) in (self.first..).zip(&self.slots) {
            let at = (slot.pos() - start) as usize;
            let read = bytes.get(at..).and_then(|b| decode(b, &place, slot.pos())).filter(|read| {
                let (h, kind) = (&read.head, read.head.kind);
                let is_it = matches!(kind, Kind::Entry | Kind::Carried) && h.group == group.id;
                is_it && h.index == index && h.term == slot.term && h.len == slot.len
            });
            let payload = at + HEADER..at + HEADER + slot.len as usize;
            match read {
                Some(read) if bytes.get(payload.clone()).map(crc32fast::hash) == Some(read.head.payload_crc) => {
                    frames.push((read.head, bytes.slice(payload)));
                }
                _ if frames.is_empty() => return Err(RunFault::Bad(index)),
                _ => break,
            }
        }
        Ok(frames)
    }
}

fn plan(core: &Core, group: &Group, want: Want) -> Result<Plan, ReadError> {
    let inner = group.inner.lock();
    if inner.removed {
        return Err(ReadError::Gone { group: group.id, why: "it was removed".to_owned() });
    }
    if want.from < inner.now.first {
        return Err(ReadError::Purged { first: inner.now.first });
    }
    if want.from >= inner.now.next {
        return Err(ReadError::BeyondEnd { next: inner.now.next });
    }
    if want.from >= inner.cache_base() {
        return Ok(Plan::Memory(cached(&inner, want)));
    }
    if want.from >= inner.slots.base {
        let to = want.to.min(inner.cache_base());
        return Ok(Run::plan(core, &inner, want.from, to, disk_bytes(want)).map_or(Plan::Moved, Plan::Journal));
    }
    Ok(Plan::Segments)
}

/// Heads are small: reading bodies over is cheaper than many reads.
fn disk_bytes(want: Want) -> u64 {
    if want.mode == ReadMode::HeadOnly { RUN_MAX } else { want.bytes as u64 }
}

fn cached(inner: &Inner, want: Want) -> Vec<Entry> {
    let skip = (want.from - inner.cache_base()) as usize;
    let count = usize::try_from(want.to - want.from).unwrap_or(usize::MAX);
    let mut bytes = 0;
    let mut entries = Vec::new();
    for entry in inner.cache.iter().skip(skip).take(count) {
        let size = if want.mode == ReadMode::HeadOnly { entry.head_len as usize } else { entry.payload.len() };
        if !entries.is_empty() && bytes + size > want.bytes {
            break;
        }
        bytes += size;
        entries.push(if want.mode == ReadMode::HeadOnly { entry.head_only() } else { entry.clone() });
    }
    entries
}

impl GroupLog {
    /// Entries `from..to_exclusive`, contiguous from `from`: as many as exist and as their payloads (heads, for
    /// [`ReadMode::HeadOnly`]) fit into `max_bytes`, but at least one. Uncommitted and not yet durable entries are
    /// read like any other. Cached entries are returned without awaiting. Cancel safe.
    ///
    /// # Errors
    /// [`ReadError::Purged`], [`ReadError::BeyondEnd`]; [`ReadError::Corrupt`] when the entry at `from` is damaged.
    /// Damage behind it ends the result, and is the error of the read that begins there.
    pub async fn read(
        &self,
        from: u64,
        to_exclusive: u64,
        max_bytes: usize,
        mode: ReadMode,
    ) -> Result<Vec<Entry>, ReadError> {
        let mut want = Want { from, to: to_exclusive, bytes: max_bytes, mode };
        let mut entries: Vec<Entry> = Vec::new();
        while want.from < want.to {
            let part = match plan(&self.core, &self.group, want) {
                Ok(Plan::Memory(part)) => Ok(part),
                Ok(_) => {
                    let (core, group) = (Arc::clone(&self.core), Arc::clone(&self.group));
                    self.off_thread(move || read_disk(&core, &group, want)).await
                }
                Err(error) => Err(error),
            };
            let part = match part {
                Ok(part) => part,
                Err(_) if !entries.is_empty() => break,
                Err(error) => return Err(error),
            };
            let size: usize = part.iter().map(|entry| entry.payload.len()).sum();
            want.from += part.len() as u64;
            if !entries.is_empty() && size > want.bytes {
                break; // its first entry alone is more than what is left of the budget
            }
            want.bytes = want.bytes.saturating_sub(size);
            entries.extend(part);
            if want.bytes == 0 {
                break;
            }
        }
        Ok(entries)
    }

    /// As [`GroupLog::read`], but only from memory; `None` when the entry at `from` is not there.
    pub fn try_read_cached(
        &self,
        from: u64,
        to_exclusive: u64,
        max_bytes: usize,
        mode: ReadMode,
    ) -> Option<Vec<Entry>> {
        let inner = self.group.inner.lock();
        let held = from >= inner.cache_base() && from < inner.now.next && from < to_exclusive;
        held.then(|| cached(&inner, Want { from, to: to_exclusive, bytes: max_bytes, mode }))
    }

    /// Index of the first entry whose mark is above `mark`; `None` when there is none. Cancel safe.
    pub async fn find_mark(&self, mark: u64) -> Result<Option<u64>, ReadError> {
        self.find(move |inner| find_mark_in_memory(inner, mark), move |core, group| segment_mark(core, group, mark))
            .await
    }

    /// Index of the first entry whose time is at least `time_ms`; `None` when there is none. Cancel safe.
    pub async fn find_time(&self, time_ms: i64) -> Result<Option<u64>, ReadError> {
        let recent = move |inner: &Inner| Recent {
            found: find_time_in_memory(inner, time_ms),
            history: inner.now.first < inner.slots.base,
        };
        self.find(recent, move |core, group| segment_time(core, group, time_ms)).await
    }

    async fn find(
        &self,
        recent: impl Fn(&Inner) -> Recent,
        history: impl FnOnce(&Core, &Arc<Group>) -> Result<Option<u64>, ReadError> + Send + 'static,
    ) -> Result<Option<u64>, ReadError> {
        let recently = recent(&self.group.inner.lock());
        if !recently.history {
            return Ok(recently.found);
        }
        let (core, group) = (Arc::clone(&self.core), Arc::clone(&self.group));
        Ok(self.off_thread(move || history(&core, &group)).await?.or(recently.found))
    }

    /// Runs a disk read where it may block.
    async fn off_thread<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        if self.core.options.drive == Drive::Manual {
            return read();
        }
        match tokio::runtime::Handle::try_current() {
            Err(_) => read(),
            Ok(runtime) => {
                let gone = |error: tokio::task::JoinError| ReadError::Gone { group: self.id(), why: error.to_string() };
                runtime.spawn_blocking(read).await.map_err(gone)?
            }
        }
    }
}

/// What memory knows about a search.
struct Recent {
    found: Option<u64>,
    /// Segments may hold an earlier answer.
    history: bool,
}

fn find_mark_in_memory(inner: &Inner, mark: u64) -> Recent {
    let located = inner.slots.end();
    let pinned = || {
        let fresh = inner.cache.iter().skip_while(|entry| entry.index < located);
        fresh.filter(|entry| entry.mark > mark).map(|entry| entry.index).next()
    };
    let before = inner.now.segment.filter(|end| end.last.index >= inner.now.first);
    Recent { found: inner.slots.find_mark(mark).or_else(pinned), history: before.is_some_and(|end| end.mark > mark) }
}

fn find_time_in_memory(inner: &Inner, time_ms: i64) -> Option<u64> {
    let located = inner.slots.end();
    let fresh = inner.cache.iter().skip_while(|entry| entry.index < located);
    let pinned = fresh.filter(|entry| entry.time_ms >= time_ms).map(|entry| entry.index).next();
    inner.slots.find_time(inner.now.first, time_ms).or(pinned)
}

/// The segments that hold something, and the log's first index.
fn history(core: &Core, group: &Arc<Group>) -> Result<(Vec<Arc<Segment>>, u64), ReadError> {
    let segments = group.history.segments(core, group).map_err(|source| ReadError::Io { group: group.id, source })?;
    let inner = group.inner.lock();
    let newest = inner.now.segment.map(|end| end.first);
    let first = inner.now.first;
    let purged = segments.iter().skip(1).take_while(|next| next.first <= first).count();
    let known = segments.into_iter().skip(purged);
    let known = known.filter(|segment| newest.is_some_and(|newest| segment.first <= newest));
    Ok((known.collect(), first))
}

fn segment_mark(core: &Core, group: &Arc<Group>, mark: u64) -> Result<Option<u64>, ReadError> {
    let (segments, first) = history(core, group)?;
    let (mut low, mut high) = (0, segments.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let end = segments[middle].end(core).map_err(|fault| corrupt(group, segments[middle].first, fault))?;
        if end.mark <= mark || end.last.index < first { low = middle + 1 } else { high = middle }
    }
    match segments.get(low) {
        Some(segment) => find_mark(core, segment, first, mark).map_err(|f| corrupt(group, segment.first, f)),
        None => Ok(None),
    }
}

fn segment_time(core: &Core, group: &Arc<Group>, time_ms: i64) -> Result<Option<u64>, ReadError> {
    let (segments, first) = history(core, group)?;
    for segment in segments {
        let end = segment.end(core).map_err(|fault| corrupt(group, segment.first, fault))?;
        if end.max_time_ms < time_ms || end.last.index < first {
            continue;
        }
        let found = find_time(core, &segment, first, time_ms).map_err(|f| corrupt(group, segment.first, f))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn read_disk(core: &Arc<Core>, group: &Arc<Group>, want: Want) -> Result<Vec<Entry>, ReadError> {
    let mut failed: Option<(u64, u64)> = None;
    loop {
        let run = match plan(core, group, want)? {
            Plan::Memory(entries) => return Ok(entries),
            Plan::Segments => match read_history(core, group, want)? {
                Some(entries) => return Ok(entries),
                None => continue,
            },
            Plan::Moved => {
                std::thread::yield_now();
                continue;
            }
            Plan::Journal(run) => run,
        };
        match run.read(group) {
            Ok(frames) => return Ok(take(frames, want)),
            Err(RunFault::Io(source)) => return Err(ReadError::Io { group: group.id, source }),
            Err(RunFault::Bad(index)) => {
                let here = (run.file.generation, run.slots[0].pos());
                if failed == Some(here) {
                    let place = format!("journal generation {} at byte {}", here.0, here.1);
                    group.inner.lock().damaged.insert(index);
                    return Err(ReadError::Corrupt { group: group.id, index, place });
                }
                failed = Some(here);
            }
        }
    }
}

fn take(frames: Vec<(crate::frame::Head, Bytes)>, want: Want) -> Vec<Entry> {
    let mut bytes = 0;
    let mut entries = Vec::with_capacity(frames.len());
    for (head, payload) in frames {
        let entry = head.entry(payload);
        let entry = if want.mode == ReadMode::HeadOnly { entry.head_only() } else { entry };
        if !entries.is_empty() && bytes + entry.payload.len() > want.bytes {
            break;
        }
        bytes += entry.payload.len();
        entries.push(entry);
    }
    entries
}

/// `None` when the entries are not in segments any more (purged meanwhile).
fn read_history(core: &Core, group: &Arc<Group>, want: Want) -> Result<Option<Vec<Entry>>, ReadError> {
    let (segments, first) = history(core, group)?;
    if want.from < first {
        return Ok(None);
    }
    let at = segments.partition_point(|segment| segment.first <= want.from);
    let Some(segment) = at.checked_sub(1).and_then(|at| segments.get(at)) else {
        return Err(corrupt(
            group,
            want.from,
            Fault::Damaged(format!("{}: segment missing", group.history.dir.display())),
        ));
    };
    let next = segments.get(at).map_or(u64::MAX, |next| next.first);
    match read_segment(core, segment, Want { to: want.to.min(next), ..want }) {
        Ok(entries) => Ok(Some(entries)),
        Err(_) if group.inner.lock().now.first > want.from => Ok(None),
        Err(fault) => Err(corrupt(group, want.from, fault)),
    }
}

fn corrupt(group: &Group, index: u64, fault: Fault) -> ReadError {
    match fault {
        Fault::Damaged(place) => ReadError::Corrupt { group: group.id, index, place },
        Fault::Io(e) if e.kind() == std::io::ErrorKind::NotFound => {
            ReadError::Corrupt { group: group.id, index, place: format!("{}: {e}", group.history.dir.display()) }
        }
        Fault::Io(source) => ReadError::Io { group: group.id, source },
    }
}
