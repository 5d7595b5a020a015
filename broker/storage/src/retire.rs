//! Retiring: emptying the oldest journal file so that it can be used again.
//!
//! ```text
//!   oldest file ── committed entries, in long runs ──▶ segments, synced ──▶ Retired frame ─┐
//!               └─ entries not known to be committed ──▶ the journal's head, Carried frame ┤ all durable
//!                                                                                          ▼
//!                                                                        Freed frame ──▶ spare
//! ```
//!
//! Invariants: an entry leaves its file only after its new place is durable and the journal says so; a file becomes a
//! spare only after its Freed frame is durable; damaged bytes are carried as they are, and stay visibly damaged.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::frame::{HEADER, Head, Kind, decode};
use crate::group::{Inner, Slot};
use crate::journal::ring::JournalFile;
use crate::options::Drive;
use crate::queue::{Carried, Op, Pending};
use crate::read::{Run, RunFault};
use crate::segment::writer::append;
use crate::shared::Group;
use crate::types::{Entry, GroupId};
use crate::upkeep::{Pump, Upkeep, ticket};
use crate::vfs::read_vec;

/// With more groups than this in a file, each group's run is made as long as the sealed files allow: one longer run
/// is cheaper than several short ones. With fewer, the next file is free sooner without.
const FEW_GROUPS: usize = 16;
/// What a step is divided by when there is time: the journal's next sync waits for the disk that much less.
const QUIET_STEP_PART: u64 = 4;
/// Entries taken from memory under one hold of the group's lock.
const CACHED_AT_ONCE: usize = 64;
/// Bytes carried in one operation.
const CARRY_STEP: usize = 1 << 20;

impl Upkeep {
    /// Empties the oldest file; false when most of it had to be written again, so that going on with the next one at
    /// once would only turn the ring around.
    pub(crate) fn retire(&mut self, file: &Arc<JournalFile>, mut pump: Pump<'_>) -> io::Result<bool> {
        let began = Instant::now();
        self.rested = Duration::ZERO;
        self.settle()?; // what an earlier attempt left
        let mut ids: Vec<GroupId> = file.groups.lock().iter().copied().collect();
        ids.sort_unstable();
        let groups: Vec<Arc<Group>> = {
            let known = self.core.groups.read();
            ids.iter().filter_map(|id| known.get(id).cloned()).collect()
        };
        self.barrier(Op::Barrier, &mut pump)?; // gives queued purges a chance to be durable
        if !self.core.ring.is_sealed(file.generation as u32) {
            return Ok(true); // an earlier attempt got as far as its Freed frame, and that was waiting for room
        }
        let ahead = groups.len() > FEW_GROUPS;
        for group in &groups {
            self.retire_group(group, file, ahead)?;
        }
        self.settle()?;
        let mut carried = 0;
        for group in &groups {
            carried += self.carry(group, file, &mut pump)?;
        }
        self.barrier(Op::Barrier, &mut pump)?; // by now every move above is durable and in the groups' slots
        self.await_drops(&groups, &mut pump)?;
        for group in &groups {
            let inner = group.inner.lock();
            let left = inner.slots.iter().find(|(_, slot)| slot.tag == file.generation as u32);
            assert!(left.is_none(), "nothing is left in a file that is given free");
        }
        self.barrier(Op::Freed(file.generation), &mut pump)?;
        let gained = file.bytes.saturating_sub(carried);
        self.core.ring.note_emptied(gained, began.elapsed().saturating_sub(self.rested));
        Ok(carried < (file.bytes - file.start) / 2)
    }

    /// Waits until everything dropped so far is dropped durably: recovery would miss it otherwise. Those operations may
    /// themselves wait for room in the ring, behind others: then it gets one more file.
    fn await_drops(&self, groups: &[Arc<Group>], pump: &mut Pump<'_>) -> io::Result<()> {
        let removing = self.core.removing.lock().clone();
        let owed = |group: &Arc<Group>| (Arc::clone(group), group.inner.lock().drops);
        let mut owed: Vec<(Arc<Group>, u64)> = groups.iter().chain(&removing).map(owed).collect();
        loop {
            owed.retain(|(group, drops)| group.inner.lock().drops_durable < *drops);
            if owed.is_empty() {
                return Ok(());
            }
            if self.core.ring.is_waiting() {
                self.add_file()?;
            }
            self.barrier(Op::Barrier, pump)?;
        }
    }

    /// Queues an operation of the node, and waits until it and all before it are durable.
    fn barrier(&self, op: Op, pump: &mut Pump<'_>) -> io::Result<()> {
        let (done, durable) = ticket();
        let pending = Pending::new(&self.core.node, op, 0).durable(Some(done));
        self.core.queue.push_urgent(pending).map_err(|_| closed())?;
        self.wait(&durable, pump)
    }

    /// Moves a group's committed entries into its segments: those in `file` and all before them, or, `ahead`, all that
    /// are in sealed files.
    fn retire_group(&mut self, group: &Arc<Group>, file: &Arc<JournalFile>, ahead: bool) -> io::Result<()> {
        let core = Arc::clone(&self.core);
        let tag = file.generation as u32;
        let (mut from, end) = {
            let moved = group.history.next(&core, group)?;
            let inner = group.inner.lock();
            let from = inner.slots.base.max(moved);
            (from, retirable(&inner, from, tag, |other| other == tag || (ahead && core.ring.is_sealed(other))))
        };
        while from < end {
            if core.ring.is_stopping() {
                return Err(closed());
            }
            let step = self.step_bytes(ahead);
            let room = step.saturating_sub(self.touched.bytes).max(1);
            let Some(run) = self.read_run(group, from, end, room)? else { return Ok(()) };
            from += run.len() as u64;
            append(&core, group, &run, &mut self.touched, &mut self.bulk)?;
            if self.touched.bytes >= step {
                self.settle()?;
            }
        }
        Ok(())
    }

    /// Fewer, larger syncs when speed counts more than smoothness, or when each covers many files anyway.
    fn step_bytes(&self, many_files: bool) -> u64 {
        let step = self.core.options.retire_step_bytes as u64;
        match self.core.ring.is_hurried() {
            true => 2 * step,
            false if many_files => step,
            false => (step / QUIET_STEP_PART).max(1),
        }
    }

    /// Makes what was written to segments durable, and has the journal say so.
    fn settle(&mut self) -> io::Result<()> {
        if self.touched.ends.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        if let Err(error) = self.touched.sync(&self.core) {
            self.core.poison("sync segments", &error);
            return Err(error);
        }
        let touched = std::mem::take(&mut self.touched);
        self.core.stats.retired_bytes.fetch_add(touched.bytes, Relaxed);
        let bytes = touched.bytes;
        for (group, end) in touched.ends {
            let inner = group.inner.lock();
            if inner.removed {
                continue;
            }
            let pending = Pending::new(&group, Op::Retired(end), inner.epoch);
            self.core.queue.push_urgent(pending).map_err(|_| closed())?;
        }
        self.pace(began.elapsed(), bytes)
    }

    /// A run for the segment, from memory as far as it is there, else gathered from as many places as it takes; `None`
    /// when its first entry is gone or damaged.
    fn read_run(&self, group: &Group, from: u64, end: u64, step: u64) -> io::Result<Option<Vec<(Head, Bytes)>>> {
        let (mut frames, mut bytes): (Vec<(Head, Bytes)>, u64) = (Vec::new(), 0);
        let mut next = from;
        // Gaps between entries count for the length of a read, not for the step: its rest is not worth reading for.
        while next < end && bytes < step / 4 * 3 + 1 {
            let cached = group.inner.lock().cached_run(next, end, CACHED_AT_ONCE, step - bytes);
            if !cached.is_empty() {
                next += cached.len() as u64;
                bytes += cached.iter().map(Entry::cost).sum::<usize>() as u64;
                let with_head = |entry: Entry| (Head::of_entry(Kind::Entry, group.id, &entry), entry.payload);
                frames.extend(cached.into_iter().map(with_head));
                continue;
            }
            let run = Run::plan(&self.core, &group.inner.lock(), next, end, step - bytes);
            let Some(run) = run else { break };
            match run.read(group) {
                Ok(part) if part.is_empty() => break,
                Ok(part) => {
                    next += part.len() as u64;
                    bytes += part.iter().map(|(head, _)| head.size()).sum::<u64>();
                    frames.extend(part);
                }
                Err(RunFault::Io(error)) => return Err(error),
                Err(RunFault::Bad(index)) => {
                    tracing::error!(group = %group.id, index, "entry is damaged in the journal; it is kept as it is");
                    group.inner.lock().damaged.insert(index);
                    break;
                }
            }
        }
        Ok(Some(frames).filter(|frames| !frames.is_empty()))
    }

    /// Keeps the disk free for the journal while there is time, and makes room when there is none.
    fn pace(&mut self, took: Duration, bytes: u64) -> io::Result<()> {
        let core = Arc::clone(&self.core);
        let (options, ring) = (&core.options, &core.ring);
        if options.drive == Drive::Manual || ring.is_stopping() {
            return Ok(());
        }
        let began = Instant::now();
        while ring.is_short(options) {
            self.add_file()?;
        }
        self.core.rest_after(took, bytes);
        self.rested += began.elapsed();
        Ok(())
    }

    /// Writes again, at the journal's head, what is left of a group in `file`; returns bytes.
    fn carry(&self, group: &Arc<Group>, file: &Arc<JournalFile>, pump: &mut Pump<'_>) -> io::Result<u64> {
        let tag = file.generation as u32;
        let moved = group.history.next(&self.core, group)?;
        let left: Vec<(u64, Slot)> = {
            let inner = group.inner.lock();
            inner.slots.iter().filter(|(index, s)| s.tag == tag && *index >= moved).map(|(i, s)| (i, *s)).collect()
        };
        let mut total = 0;
        let mut rest = left.as_slice();
        while !rest.is_empty() {
            let mut step = Vec::new();
            let mut bytes = 0;
            while let Some(((index, slot), others)) = rest.split_first() {
                if bytes > 0 && bytes + slot.len as usize > CARRY_STEP {
                    break;
                }
                bytes += slot.len as usize;
                total += slot.size();
                step.push(read_raw(group, file, *index, slot)?);
                rest = others;
            }
            self.write_again(group, step, tag, pump)?;
        }
        Ok(total)
    }

    fn write_again(&self, group: &Arc<Group>, mut step: Vec<Carried>, tag: u32, pump: &mut Pump<'_>) -> io::Result<()> {
        let (done, written) = ticket();
        {
            // Under the group's lock: what is truncated later is queued later, and wins.
            let inner = group.inner.lock();
            step.retain(|c| inner.slots.get(c.head.index).is_some_and(|s| s.tag == tag && s.term == c.head.term));
            if step.is_empty() {
                return Ok(());
            }
            let pending = Pending::new(group, Op::Carry(step), inner.epoch).durable(Some(done));
            self.core.queue.push_urgent(pending).map_err(|_| closed())?;
        }
        self.wait(&written, pump)
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the log engine is closing")
}

/// Where the run of entries that can leave the journal ends, if it begins at `from`: everything up to the last
/// committed, durable entry in a file that `may_leave`, provided that something of it lies in the file with this tag.
///
/// Nothing leaves while a purge is not yet durable: a segment that begins behind it would leave a hole if it got lost.
fn retirable(inner: &Inner, from: u64, tag: u32, may_leave: impl Fn(u32) -> bool) -> u64 {
    let Some(committed) = inner.now.committed.filter(|_| inner.drops == inner.drops_durable) else { return from };
    let limit = (committed.index + 1).min(inner.durable_next);
    let mut known: (HashSet<u32>, HashSet<u32>) = Default::default();
    let (mut end, mut needed) = (from, false);
    for (index, slot) in inner.slots.iter() {
        if index < from {
            continue;
        }
        if index >= limit || inner.damaged.contains(&index) {
            break;
        }
        needed |= slot.tag == tag;
        if !known.0.contains(&slot.tag) && !known.1.contains(&slot.tag) {
            let side = if may_leave(slot.tag) { &mut known.0 } else { &mut known.1 };
            side.insert(slot.tag);
        }
        if known.0.contains(&slot.tag) {
            end = index + 1;
        }
    }
    if needed { end } else { from }
}

/// An entry as it stands in its file. When it is damaged it stays damaged: the checksum is kept, or made to fail.
fn read_raw(group: &Group, file: &JournalFile, index: u64, slot: &Slot) -> io::Result<Carried> {
    let bytes = Bytes::from(read_vec(&*file.file, slot.pos(), slot.size() as usize)?);
    let payload = bytes.slice(HEADER.min(bytes.len())..(HEADER + slot.len as usize).min(bytes.len()));
    let known = Head {
        len: payload.len() as u32,
        payload_crc: !crc32fast::hash(&payload),
        term: slot.term,
        index,
        mark: slot.mark,
        time_ms: slot.time_ms,
        ..Head::bare(Kind::Carried, group.id)
    };
    let read = decode(&bytes, &file.place(), slot.pos());
    let head = read.map(|read| read.head).filter(|h| h.group == group.id && h.index == index && h.term == slot.term);
    let head = head.filter(|head| head.len as usize == payload.len()).unwrap_or(known);
    Ok(Carried { head: Head { kind: Kind::Carried, ..head }, payload, from: file.generation as u32 })
}
