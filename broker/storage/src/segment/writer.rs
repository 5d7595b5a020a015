//! Adding committed entries to a group's newest segment, and sealing it when it is full. Upkeep only.
//!
//! Nothing is synced here: what was touched is collected in [`Touched`], so that the runs of many groups can share one
//! sync. Until that sync returned, the entries' place is still the journal.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::Bulk;
use super::file::{FOOTER, Fault, START, Segment, header};
use super::index::{POINT, PointMaker};
use crate::frame::{HEADER, Head, Kind, Place, padding, u32_at};
use crate::hard::SegmentEnd;
use crate::journal::direct::BLOCK;
use crate::shared::{Core, Group};
use crate::types::GroupId;
use crate::vfs::{Open, VfsFile};

/// Files and folders with changes that are not durable, and what will be true once they are.
#[derive(Default)]
pub(crate) struct Touched {
    files: Vec<Arc<dyn VfsFile>>,
    /// So many that the whole file system will be synced. They are not kept open for that: with thousands of groups they
    /// would be more than a process may have.
    many: bool,
    dirs: BTreeSet<PathBuf>,
    /// The newest end of each group's history.
    pub(crate) ends: Vec<(Arc<Group>, SegmentEnd)>,
    pub(crate) bytes: u64,
}

/// From so many files on, one sync of the whole file system is cheaper.
const MANY: usize = 8;

impl Touched {
    fn add(&mut self, file: &Arc<dyn VfsFile>) {
        if self.many || self.files.last().is_some_and(|last| Arc::ptr_eq(last, file)) {
            return;
        }
        self.files.push(Arc::clone(file));
        if self.files.len() >= MANY {
            self.files.clear();
            self.many = true;
        }
    }

    /// Makes it all durable.
    pub(crate) fn sync(&self, core: &Core) -> io::Result<()> {
        if self.many {
            return core.vfs.sync_all(&core.dir);
        }
        self.files.iter().try_for_each(|file| file.sync_data())?;
        self.dirs.iter().try_for_each(|dir| match core.vfs.sync_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()), // left by a failed attempt; its group was removed
            result => result,
        })
    }
}

/// Writes a run of entries behind the group's history.
pub(crate) fn append(
    core: &Core,
    group: &Arc<Group>,
    run: &[(Head, Bytes)],
    touched: &mut Touched,
    bulk: &mut Bulk,
) -> io::Result<()> {
    let Some((head, _)) = run.first() else { return Ok(()) };
    let (segment, end) = target(core, group, head.index, touched)?;
    let opened = segment.opened(core).map_err(into_io)?;
    let mut at = end.unwrap_or_else(|| SegmentEnd {
        first: segment.first,
        bytes: START,
        last: Default::default(),
        mark: 0,
        first_mark: head.mark,
        max_time_ms: i64::MIN,
        chain: u32_at(&header(group.id, segment.first), 60),
    });
    let start = at.bytes;
    let last_point = opened.points.lock().last().map_or(START, |point| point.pos);
    let mut maker = PointMaker::new(core.options.index_interval_bytes, last_point, at.mark, at.max_time_ms);
    let mut points = Vec::new();
    let mut headers = Vec::with_capacity(run.len());
    for (head, _) in run {
        assert!(end.is_none() && at.bytes == START || head.index == at.last.index + 1, "segments are contiguous");
        points.extend(maker.pass(head.index, at.bytes, head.mark, head.time_ms));
        headers.push(at.extend(head, &segment.place));
    }
    let mut slices = Vec::with_capacity(run.len() * 3);
    for (bytes, (_, payload)) in headers.iter().zip(run) {
        slices.extend([&bytes[..], payload, padding(payload.len())].map(IoSlice::new));
    }
    let written = bulk.write(core, (&segment, &*opened.file), (start, at.bytes - start), &slices)?;
    if !written {
        opened.file.write_at(&slices, start)?;
    }
    if !points.is_empty() {
        let encoded: Vec<u8> = points.iter().flat_map(|point| point.encode(&segment.place)).collect();
        let mut known = opened.points.lock();
        let index = core.vfs.open(&segment.index_path(), Open::Existing)?;
        index.write_at(&[IoSlice::new(&encoded)], (known.len() * POINT) as u64)?;
        known.extend(points);
    }
    segment.set_end(at);
    touched.bytes += at.bytes - start;
    touched.add(&opened.file);
    match touched.ends.last_mut() {
        Some((last, end)) if Arc::ptr_eq(last, group) => *end = at,
        _ => touched.ends.push((Arc::clone(group), at)),
    }
    Ok(())
}

/// The segment that takes entry `index`, and its end unless it is new.
fn target(
    core: &Core,
    group: &Arc<Group>,
    index: u64,
    touched: &mut Touched,
) -> io::Result<(Arc<Segment>, Option<SegmentEnd>)> {
    let segments = group.history.segments(core, group)?;
    let newest = segments.back().map(|segment| (Arc::clone(segment), segment.end(core)));
    match newest {
        Some((segment, Ok(end))) if end.bytes == START => {
            if segment.first == index {
                return Ok((segment, None)); // created, and then the disk was full
            }
            group.history.discard(core, &segment)?;
        }
        Some((segment, Ok(end))) if end.last.index + 1 == index => {
            let whole = segment.bytes(core)? >= end.bytes;
            if whole && end.bytes < core.options.segment_bytes {
                resume(core, &segment, end)?;
                return Ok((segment, Some(end)));
            }
            if whole {
                seal(core, &segment, end, touched)?;
            } else {
                tracing::error!(segment = %segment.path.display(), "segment is shorter than it was: entries are lost");
            }
        }
        _ => {}
    }
    create(core, group, index, touched).map(|segment| (segment, None))
}

/// Drops what an interrupted run left behind the end.
fn resume(core: &Core, segment: &Arc<Segment>, end: SegmentEnd) -> io::Result<()> {
    let opened = segment.opened(core).map_err(into_io)?;
    // Up to the end of a block stand the zeros of a long run.
    if opened.file.len()? > end.bytes.next_multiple_of(BLOCK) {
        opened.file.set_len(end.bytes)?;
    }
    let points = opened.points.lock();
    let path = segment.index_path();
    let whole = core.vfs.file_len(&path).is_ok_and(|len| len == (points.len() * POINT) as u64);
    if !whole {
        let encoded: Vec<u8> = points.iter().flat_map(|point| point.encode(&segment.place)).collect();
        core.vfs.open(&path, Open::Fresh)?.write_at(&[IoSlice::new(&encoded)], 0)?;
    }
    Ok(())
}

/// Writes the footer: nothing will be added.
fn seal(core: &Core, segment: &Arc<Segment>, end: SegmentEnd, touched: &mut Touched) -> io::Result<()> {
    let opened = segment.opened(core).map_err(into_io)?;
    footer(&*opened.file, segment.group, &segment.place, &end)?;
    touched.add(&opened.file);
    touched.add(&core.vfs.open(&segment.index_path(), Open::Existing)?);
    Ok(())
}

/// The last frame of a sealed segment, behind its end.
pub(super) fn footer(file: &dyn VfsFile, group: GroupId, place: &Place, end: &SegmentEnd) -> io::Result<()> {
    let payload = end.encode();
    let head =
        Head { len: payload.len() as u32, payload_crc: crc32fast::hash(&payload), ..Head::bare(Kind::Footer, group) };
    let bytes = head.encode(place, end.bytes, end.chain, 0);
    file.write_at(&[IoSlice::new(&bytes), IoSlice::new(&payload)], end.bytes)?;
    file.set_len(end.bytes + FOOTER)
}

fn create(core: &Core, group: &Arc<Group>, first: u64, touched: &mut Touched) -> io::Result<Arc<Segment>> {
    let dir = &group.history.dir;
    core.vfs.create_dir_all(dir)?;
    touched.dirs.extend([core.groups_dir(), dir.clone()]);
    let empty = SegmentEnd {
        first,
        bytes: START,
        last: Default::default(),
        mark: 0,
        first_mark: 0,
        max_time_ms: i64::MIN,
        chain: 0,
    };
    let segment = Arc::new(Segment::new(dir, group.id, first, Some(empty)));
    core.vfs.open(&segment.index_path(), Open::Fresh)?;
    let file = core.vfs.open(&segment.path, Open::Fresh)?;
    file.write_at(&[IoSlice::new(&header(group.id, first))], 0)?;
    group.history.add(Arc::clone(&segment));
    Ok(segment)
}

fn into_io(fault: Fault) -> io::Error {
    match fault {
        Fault::Io(error) => error,
        Fault::Damaged(place) => io::Error::new(io::ErrorKind::InvalidData, format!("{place} is damaged")),
    }
}

const _: () = assert!(HEADER.is_multiple_of(8));
