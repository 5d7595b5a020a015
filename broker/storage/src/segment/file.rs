//! One segment file: committed entries of one group, in order, never changed once written.
//!
//! ```text
//!    0 ┌──────────┐ header: 0 magic "BUSBARS1" · 8 version u32 · 12 zero u32 · 16 group u64 · 24 first index u64 ·
//!      │          │         32 zeros · 60 crc u32 of bytes 0..60, the `prev` of the first frame
//!   64 ├──────────┤
//!      │ frames   │ entries, chained
//!  end ├──────────┤ known from the journal while the segment grows, from the footer once it is sealed
//!      │ footer   │ one frame: its payload is the segment's end, as in the journal's Retired frames
//!      └──────────┘ end of file
//! ```
//!
//! Invariants: nothing below `end` is ever written again; bytes behind `end` of a growing segment belong to nobody. A
//! sealed segment may be replaced as a whole, see [`super::rewrite`]: whoever reads the old file goes on with it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::index::{Point, PointMaker, decode_points};
use crate::frame::{HEADER, Kind, Place, decode, u32_at};
use crate::hard::{SEGMENT_END, SegmentEnd};
use crate::journal::scan::{Found, Scanner};
use crate::shared::Core;
use crate::types::GroupId;
use crate::vfs::{Open, VfsFile, read_vec};

const MAGIC: &[u8; 8] = b"BUSBARS1";
const VERSION: u32 = 1;
/// Bytes of the file header.
pub(crate) const START: u64 = 64;
/// Bytes of the footer frame.
pub(crate) const FOOTER: u64 = (HEADER + SEGMENT_END) as u64;

/// Why a segment could not be read.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Bytes are not what they were; says where.
    Damaged(String),
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::Io(error)
    }
}

/// The first bytes of a segment.
pub(crate) fn header(group: GroupId, first: u64) -> [u8; START as usize] {
    let mut b = [0; START as usize];
    b[..8].copy_from_slice(MAGIC);
    b[8..12].copy_from_slice(&VERSION.to_le_bytes());
    b[16..24].copy_from_slice(&group.0.to_le_bytes());
    b[24..32].copy_from_slice(&first.to_le_bytes());
    let crc = crc32fast::hash(&b[..60]);
    b[60..].copy_from_slice(&crc.to_le_bytes());
    b
}

/// Name of a segment.
pub(crate) fn log_name(first: u64) -> String {
    format!("{first:020}.log")
}

/// What is kept of a segment while it is in use.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: Arc<dyn VfsFile>,
    pub(crate) points: Mutex<Vec<Point>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) group: GroupId,
    pub(crate) first: u64,
    pub(crate) path: PathBuf,
    pub(crate) place: Place,
    opened: Mutex<Option<Arc<Opened>>>,
    /// It was read or written since it last stood in line for being closed.
    used: AtomicBool,
    /// The file, once another one has taken its name: it can't be opened again.
    pinned: OnceLock<Arc<Opened>>,
    /// `None` until the footer was read.
    end: Mutex<Option<SegmentEnd>>,
    /// Where the entry after the last read stands: reading on needs no search.
    hint: Mutex<Option<(u64, u64)>>,
    /// Bytes on disk, once it was measured when nothing was to be added any more.
    sealed_bytes: OnceLock<u64>,
}

impl Segment {
    pub(crate) fn new(dir: &Path, group: GroupId, first: u64, end: Option<SegmentEnd>) -> Segment {
        Segment {
            group,
            first,
            path: dir.join(log_name(first)),
            place: Place::segment(group, first),
            opened: Mutex::new(None),
            used: AtomicBool::new(false),
            pinned: OnceLock::new(),
            end: Mutex::new(end),
            hint: Mutex::new(None),
            sealed_bytes: OnceLock::new(),
        }
    }

    pub(crate) fn index_path(&self) -> PathBuf {
        self.path.with_extension("index")
    }

    fn damaged(&self, pos: u64) -> Fault {
        Fault::Damaged(format!("{} at byte {pos}", self.path.display()))
    }

    /// Its end; reads the footer the first time.
    pub(crate) fn end(&self, core: &Core) -> Result<SegmentEnd, Fault> {
        if let Some(end) = *self.end.lock() {
            return Ok(end);
        }
        let file = core.vfs.open(&self.path, Open::Existing)?;
        let len = file.len()?;
        let at = len.checked_sub(FOOTER).filter(|at| *at > START).ok_or_else(|| self.damaged(len))?;
        let bytes = read_vec(&*file, at, FOOTER as usize)?;
        let read = decode(&bytes, &self.place, at).filter(|r| r.head.kind == Kind::Footer && r.head.size() == FOOTER);
        let read = read.ok_or_else(|| self.damaged(at))?;
        let payload = &bytes[HEADER..];
        let end = SegmentEnd::decode(payload).filter(|end| {
            crc32fast::hash(payload) == read.head.payload_crc && end.first == self.first && end.bytes == at
        });
        let end = end.ok_or_else(|| self.damaged(at))?;
        // What was read may be the end of a file that has just taken this one's name.
        Ok(*self.end.lock().get_or_insert(end))
    }

    pub(crate) fn set_end(&self, end: SegmentEnd) {
        *self.end.lock() = Some(end);
    }

    /// The file and its index; opens them the first time.
    pub(crate) fn opened(self: &Arc<Self>, core: &Core) -> Result<Arc<Opened>, Fault> {
        if let Some(opened) = self.pinned.get().or(self.opened.lock().as_ref()) {
            self.used.store(true, Relaxed);
            return Ok(Arc::clone(opened));
        }
        let end = self.end(core)?;
        let file = core.vfs.open(&self.path, Open::Existing)?;
        if let Some(pinned) = self.pinned.get() {
            return Ok(Arc::clone(pinned)); // what was opened may be the file that has taken this one's name
        }
        let head = read_vec(&*file, 0, START as usize)?;
        if head.len() == START as usize && &head[..8] == MAGIC && u32_at(&head, 8) != VERSION {
            return Err(Fault::Damaged(format!("{}: format version {}", self.path.display(), u32_at(&head, 8))));
        }
        if head != header(self.group, self.first) {
            return Err(self.damaged(0));
        }
        let points = self.read_points(core, end.bytes).unwrap_or_default();
        // One point per interval is due; clearly fewer means the index was lost.
        let due = (end.bytes - START) / (core.options.index_interval_bytes + core.options.max_payload_bytes() as u64);
        let lost = (points.len() as u64) < due || !self.is_index_of(&points, &*file)?;
        let points = if lost { self.rebuild_points(core, &*file, end.bytes)? } else { points };
        let opened = Arc::new(Opened { file, points: Mutex::new(points) });
        *self.opened.lock() = Some(Arc::clone(&opened));
        core.open_segments.note(self, core.options.open_segments_max);
        Ok(opened)
    }

    /// Whether the index belongs to this file: a crash may have left that of the file that had its name before.
    fn is_index_of(&self, points: &[Point], file: &dyn VfsFile) -> io::Result<bool> {
        let Some(last) = points.last() else { return Ok(true) };
        let head = read_vec(file, last.pos, HEADER)?;
        Ok(decode(&head, &self.place, last.pos).is_some_and(|read| read.head.index == last.index))
    }

    /// Another file is about to take its name: whoever still reads this one keeps it. Its end must be known.
    pub(crate) fn pin(&self, opened: &Arc<Opened>) {
        let _ = self.pinned.set(Arc::clone(opened)); // only ever the same
    }

    /// Gives file and index back; the next use opens them again.
    pub(crate) fn close(&self) {
        self.opened.lock().take();
    }

    fn read_points(&self, core: &Core, end: u64) -> io::Result<Vec<Point>> {
        let file = core.vfs.open(&self.index_path(), Open::Existing)?;
        let len = usize::try_from(file.len()?).unwrap_or(0).min(256 << 20);
        Ok(decode_points(&read_vec(&*file, 0, len)?, &self.place, end))
    }

    fn rebuild_points(&self, core: &Core, file: &dyn VfsFile, end: u64) -> Result<Vec<Point>, Fault> {
        tracing::warn!(segment = %self.path.display(), "index is missing or damaged, rebuilding it in memory");
        let mut maker = PointMaker::new(core.options.index_interval_bytes, START, 0, i64::MIN);
        let mut points = Vec::new();
        let mut scanner = Scanner::new(file, self.place, START, end, None);
        while scanner.pos() < end {
            let pos = scanner.pos();
            match scanner.next()? {
                Found::Frame(read, _) | Found::BadPayload(read) => {
                    let head = read.head;
                    points.extend(maker.pass(head.index, pos, head.mark, head.time_ms));
                }
                Found::Bad => break, // readers that get there will say so
            }
        }
        Ok(points)
    }

    /// Where to begin scanning for entry `index`: an entry at or below it, and its position.
    pub(crate) fn seek(&self, opened: &Opened, index: u64) -> (u64, u64) {
        let points = opened.points.lock();
        let at = points.partition_point(|p| p.index <= index);
        let found = at.checked_sub(1).map_or((self.first, START), |at| (points[at].index, points[at].pos));
        let hint = *self.hint.lock();
        hint.filter(|hint| hint.0 <= index && hint.0 >= found.0).unwrap_or(found)
    }

    /// Entry `index` stands at `pos`.
    pub(crate) fn set_hint(&self, index: u64, pos: u64) {
        *self.hint.lock() = Some((index, pos));
    }

    /// Bytes on disk of a segment that is not the newest: asked for often, so measured once.
    pub(crate) fn sealed_bytes(&self, core: &Core) -> io::Result<u64> {
        match self.sealed_bytes.get() {
            Some(bytes) => Ok(*bytes),
            None => self.bytes(core).map(|bytes| *self.sealed_bytes.get_or_init(|| bytes)),
        }
    }

    /// Bytes on disk.
    pub(crate) fn bytes(&self, core: &Core) -> io::Result<u64> {
        core.vfs.file_len(&self.path)
    }
}

/// Bounds how many segments are open at once. When one too many is, the one that stands first in line is closed, unless
/// it was used since it was put there: then it is put at the end once more (the "second chance" form of LRU, in which a use
/// costs a store and no lock).
#[derive(Debug, Default)]
pub(crate) struct OpenSegments {
    order: Mutex<std::collections::VecDeque<std::sync::Weak<Segment>>>,
}

impl OpenSegments {
    fn note(&self, segment: &Arc<Segment>, max: usize) {
        let mut order = self.order.lock();
        order.push_back(Arc::downgrade(segment));
        // Whoever is in line twice over has been used: it ends, as each round forgets the uses it has seen.
        while order.len() > max {
            let Some(oldest) = order.pop_front() else { return };
            match oldest.upgrade() {
                Some(segment) if segment.used.swap(false, Relaxed) => order.push_back(oldest),
                Some(segment) => segment.close(),
                None => {}
            }
        }
    }
}

const _: () = assert!(FOOTER == 136);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::size_of;

    #[test]
    fn golden_header() {
        let hex: String = header(GroupId(7), 1000).iter().map(|b| format!("{b:02x}")).collect();
        let want = concat!("4255534241525331", "0100000000000000", "0700000000000000", "e803000000000000");
        assert_eq!(&hex[..64], want);
        assert_eq!(&hex[64..120], "0".repeat(56));
        assert_eq!(&hex[120..], "99adf635");
        assert_eq!(size_of(SEGMENT_END), FOOTER);
        assert_eq!(log_name(1000), "00000000000000001000.log");
    }
}
