//! Reading a segment: runs of entries from an index on, and searches by mark and time.
//!
//! A frame is served only after its header, its payload and its place in the order were checked.

use std::sync::Arc;

use bytes::Bytes;

use super::file::{Fault, START, Segment};
use crate::frame::Head;
use crate::journal::scan::{Found, Scanner};
use crate::shared::Core;
use crate::types::{Entry, ReadMode};

/// Most bytes read from disk at a time, however much is wanted.
const CHUNK_MAX: u64 = 4 << 20;

/// How much a read may return.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) bytes: usize,
    pub(crate) mode: ReadMode,
}

/// Entries from `want.from` on: as many as there are in this segment and in the budget, at least one. When damage is
/// met behind the first, what was read before it is returned.
pub(crate) fn read(core: &Core, segment: &Arc<Segment>, want: Want) -> Result<Vec<Entry>, Fault> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    let chunk = (want.bytes as u64).min(CHUNK_MAX) + core.options.index_interval_bytes;
    let walked = walk(core, segment, want.from, chunk, |head, payload, next| {
        if head.index < want.from {
            return true;
        }
        let entry = head.entry(payload.clone());
        let entry = if want.mode == ReadMode::HeadOnly { entry.head_only() } else { entry };
        if !entries.is_empty() && bytes + entry.payload.len() > want.bytes {
            return false;
        }
        bytes += entry.payload.len();
        entries.push(entry);
        segment.set_hint(head.index + 1, next);
        bytes < want.bytes && head.index + 1 < want.to
    });
    match walked {
        Err(_) if !entries.is_empty() => Ok(entries),
        Err(fault) => Err(fault),
        Ok(()) if entries.is_empty() => Err(Fault::Damaged(format!("{}: too short", segment.path.display()))),
        Ok(()) => Ok(entries),
    }
}

/// First entry from `from` on that `found` accepts; `start` is a place to begin.
fn find(
    core: &Core,
    segment: &Arc<Segment>,
    start: (u64, u64),
    from: u64,
    found: impl Fn(&Head) -> bool,
) -> Result<Option<u64>, Fault> {
    let mut result = None;
    walk_from(core, segment, start, 1 << 20, |head, _, _| {
        if head.index >= from && found(head) {
            result = Some(head.index);
        }
        result.is_none()
    })?;
    Ok(result)
}

/// First entry from `from` on whose mark is above `mark`.
pub(crate) fn find_mark(core: &Core, segment: &Arc<Segment>, from: u64, mark: u64) -> Result<Option<u64>, Fault> {
    let start = {
        let opened = segment.opened(core)?;
        let points = opened.points.lock();
        let at = points.partition_point(|p| p.mark <= mark);
        at.checked_sub(1).map_or((segment.first, START), |at| (points[at].index, points[at].pos))
    };
    find(core, segment, start, from, |head| head.mark > mark)
}

/// First entry from `from` on whose time is at least `time_ms`.
pub(crate) fn find_time(core: &Core, segment: &Arc<Segment>, from: u64, time_ms: i64) -> Result<Option<u64>, Fault> {
    let start = {
        let opened = segment.opened(core)?;
        let points = opened.points.lock();
        let at = points.partition_point(|p| p.max_time_ms < time_ms);
        at.checked_sub(1).map_or((segment.first, START), |at| (points[at].index, points[at].pos))
    };
    find(core, segment, start, from, |head| head.time_ms >= time_ms)
}

fn walk(
    core: &Core,
    segment: &Arc<Segment>,
    index: u64,
    chunk: u64,
    visit: impl FnMut(&Head, &Bytes, u64) -> bool,
) -> Result<(), Fault> {
    let opened = segment.opened(core)?;
    let start = segment.seek(&opened, index);
    walk_from(core, segment, start, chunk, visit)
}

/// Visits entries from a place that the index, or an earlier read, gave, until told to stop. Falls back to the
/// segment's beginning when that place turns out to be no frame: an index is only a hint.
fn walk_from(
    core: &Core,
    segment: &Arc<Segment>,
    start: (u64, u64),
    chunk: u64,
    mut visit: impl FnMut(&Head, &Bytes, u64) -> bool,
) -> Result<(), Fault> {
    let opened = segment.opened(core)?;
    let end = segment.end(core)?.bytes;
    let (mut expected, start) = start;
    let mut scanner = Scanner::new(&*opened.file, segment.place, start, end, None).reading(chunk);
    let mut first = true;
    while scanner.pos() < end {
        let pos = scanner.pos();
        let found = scanner.next()?;
        match found {
            Found::Frame(read, payload) if read.head.index == expected => {
                (expected, first) = (expected + 1, false);
                if !visit(&read.head, &payload, scanner.pos()) {
                    return Ok(());
                }
            }
            _ if first && start > START => {
                scanner = Scanner::new(&*opened.file, segment.place, START, end, None).reading(chunk);
                (expected, first) = (segment.first, false);
            }
            _ => return Err(Fault::Damaged(format!("{} at byte {pos}", segment.path.display()))),
        }
    }
    Ok(())
}
