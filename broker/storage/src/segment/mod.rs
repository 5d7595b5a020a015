//! A group's history: its segments, oldest first, opened when they are first needed.
//!
//! Opening the engine touches no segment, so it takes the same time for a gigabyte as for a terabyte. The journal says
//! where the newest segment ends; all others are sealed and say it themselves.
//!
//! Invariants: segments are contiguous and hold committed entries only; only the upkeep thread changes the list; a file
//! newer than what the journal knows was never completed and is removed.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::shared::{Core, Group};
use crate::types::{GroupId, SegmentInfo};

mod bulk;
pub(crate) mod file;
pub(crate) mod index;
pub(crate) mod reader;
pub(crate) mod rewrite;
pub(crate) mod writer;

pub(crate) use bulk::Bulk;
pub(crate) use file::{Fault, OpenSegments, Segment};

/// See the module.
#[derive(Debug)]
pub(crate) struct History {
    group: GroupId,
    pub(crate) dir: PathBuf,
    list: Mutex<Option<VecDeque<Arc<Segment>>>>,
}

impl History {
    pub(crate) fn new(group: GroupId, dir: PathBuf) -> History {
        History { group, dir, list: Mutex::new(None) }
    }

    /// The segments; lists the folder the first time.
    pub(crate) fn segments(&self, core: &Core, group: &Arc<Group>) -> io::Result<VecDeque<Arc<Segment>>> {
        let mut list = self.list.lock();
        if let Some(segments) = &*list {
            return Ok(segments.clone());
        }
        let (newest, first) = {
            let inner = group.inner.lock();
            (inner.now.segment, inner.now.first)
        };
        let names = match core.vfs.list(&self.dir) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        for name in names.iter().filter(|name| name.ends_with(rewrite::UNFINISHED)) {
            core.vfs.remove_file(&self.dir.join(name))?; // a crash ended the rewriting
        }
        let mut segments = VecDeque::new();
        let mut firsts: Vec<u64> = names.iter().filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect();
        firsts.sort_unstable();
        for start in firsts {
            let end = newest.filter(|end| end.first == start);
            let segment = Segment::new(&self.dir, self.group, start, end);
            if newest.is_some_and(|newest| start <= newest.first) {
                segments.push_back(Arc::new(segment));
            } else {
                remove(core, &segment)?;
            }
        }
        let stale = segments.get(1).is_some_and(|second: &Arc<Segment>| second.first <= first);
        *list = Some(segments.clone());
        if stale {
            core.add_job(crate::upkeep::Job::Unlink(Arc::clone(group)));
        }
        Ok(segments)
    }

    /// The index after the last entry in segments, as far as this run knows; 0 when there is none. Upkeep only.
    pub(crate) fn next(&self, core: &Core, group: &Arc<Group>) -> io::Result<u64> {
        let segments = self.segments(core, group)?;
        let end = segments.back().and_then(|newest| newest.end(core).ok());
        Ok(end.filter(|end| end.bytes > file::START).map_or(0, |end| end.last.index + 1))
    }

    /// Adds the newest segment. Upkeep only.
    pub(crate) fn add(&self, segment: Arc<Segment>) {
        if let Some(list) = &mut *self.list.lock() {
            list.push_back(segment);
        }
    }

    /// Takes an empty newest segment back. Upkeep only.
    pub(crate) fn discard(&self, core: &Core, segment: &Segment) -> io::Result<()> {
        if let Some(list) = &mut *self.list.lock() {
            list.retain(|known| known.first != segment.first);
        }
        remove(core, segment)
    }

    /// Puts `new` in the place of a segment with the same entries; false when that is not there any more. Upkeep only.
    pub(crate) fn replace(&self, old: &Arc<Segment>, new: Arc<Segment>) -> bool {
        let mut list = self.list.lock();
        let place = list.as_mut().and_then(|list| list.iter_mut().find(|known| Arc::ptr_eq(known, old)));
        place.map(|place| *place = new).is_some()
    }

    /// Whether a segment is among those known. Upkeep only.
    pub(crate) fn holds(&self, segment: &Arc<Segment>) -> bool {
        self.list.lock().as_ref().is_some_and(|list| list.iter().any(|known| Arc::ptr_eq(known, segment)))
    }

    /// Removes segments that lie wholly below the log's start; their purge is durable. Upkeep only.
    pub(crate) fn unlink(&self, core: &Core, group: &Arc<Group>) -> io::Result<()> {
        let segments = self.segments(core, group)?;
        let first = group.inner.lock().first_durable;
        let mut gone = 0;
        for (n, segment) in segments.iter().enumerate() {
            let next = match segments.get(n + 1) {
                Some(next) => Some(next.first),
                // What was added to it counts even before the journal knows of it.
                None => segment.end(core).ok().filter(|end| end.bytes > file::START).map(|end| end.last.index + 1),
            };
            if next.is_none_or(|next| next > first) {
                break;
            }
            gone += 1;
        }
        if gone == 0 {
            return Ok(());
        }
        if let Some(list) = &mut *self.list.lock() {
            list.drain(..gone);
        }
        segments.iter().take(gone).try_for_each(|segment| remove(core, segment))?;
        core.vfs.sync_dir(&self.dir)
    }

    /// Removes the whole folder. Upkeep only.
    pub(crate) fn destroy(&self, core: &Core) -> io::Result<()> {
        *self.list.lock() = Some(VecDeque::new());
        let names = match core.vfs.list(&self.dir) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        for name in names {
            core.vfs.remove_file(&self.dir.join(name))?;
        }
        core.vfs.remove_dir(&self.dir)?;
        core.vfs.sync_dir(&core.groups_dir())
    }

    pub(crate) fn size_bytes(&self, core: &Core, group: &Arc<Group>) -> io::Result<u64> {
        let newest = group.inner.lock().now.segment;
        let mut bytes = 0;
        for segment in self.segments(core, group)? {
            bytes += match newest {
                Some(end) if end.first == segment.first => end.bytes,
                Some(end) if end.first > segment.first => segment.sealed_bytes(core)?,
                _ => segment.bytes(core)?,
            };
        }
        Ok(bytes)
    }

    pub(crate) fn infos(&self, core: &Core, group: &Arc<Group>) -> Vec<SegmentInfo> {
        let Ok(segments) = self.segments(core, group) else { return Vec::new() };
        let (newest, first) = {
            let inner = group.inner.lock();
            (inner.now.segment, inner.now.first)
        };
        let purged = segments.iter().skip(1).take_while(|next| next.first <= first).count();
        let mut infos = Vec::with_capacity(segments.len());
        for segment in segments.iter().skip(purged) {
            let growing = newest.filter(|end| end.first == segment.first);
            if growing.is_none() && newest.is_none_or(|end| end.first < segment.first) {
                break; // being written for the first time
            }
            let Some(end) = growing.or_else(|| segment.end(core).ok()) else { break };
            infos.push(SegmentInfo {
                first_index: segment.first,
                last_index: end.last.index,
                last_term: end.last.term,
                first_mark: end.first_mark,
                last_mark: end.mark,
                bytes: if growing.is_some() { end.bytes } else { end.bytes + file::FOOTER },
                last_time_ms: end.max_time_ms,
                sealed: growing.is_none(),
            });
        }
        infos
    }
}

fn remove(core: &Core, segment: &Segment) -> io::Result<()> {
    segment.close();
    for path in [segment.index_path(), segment.path.clone()] {
        match core.vfs.remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
