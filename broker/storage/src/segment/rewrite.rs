//! Rewriting a sealed segment: the same entries, some with another payload, in a file that takes the old one's place.
//!
//! ```text
//!   probe: X.log is read until the first entry with a new payload      none: nothing is written
//!   write: X.log ──▶ X.log.new, X.index.new, in synced steps, footer
//!   swap:  rename X.log.new over X.log, X.index.new over X.index, sync the folder
//! ```
//! It is the background's least urgent work and goes in small paced steps, like retiring. One segment at a time.
//!
//! Invariants: at each moment, and after a crash at each moment, `X.log` is one whole segment, the old one or the new one;
//! each frame is checked before it is copied, and one damaged frame leaves the segment as it is; who reads the old file
//! goes on with it; unfinished files are removed when the folder is next listed. An index that a crash left with the
//! other file is noticed when it is opened.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::file::{FOOTER, Fault, Opened, START, Segment, header};
use super::index::PointMaker;
use super::writer::footer;
use crate::error::RewriteError;
use crate::frame::{Head, Kind, crc_of, padding, u32_at};
use crate::hard::SegmentEnd;
use crate::journal::scan::{Found, Scanner};
use crate::log::GroupLog;
use crate::shared::{Core, Group};
use crate::types::{Decide, NewPayload, Position, Rewritten};
use crate::upkeep::Upkeep;
use crate::vfs::{Open, VfsFile};

/// What the names of unfinished files end in.
pub(crate) const UNFINISHED: &str = ".new";
/// Bytes of a step, as a part of those of a retiring one.
const STEP_PART: usize = 4;

/// Somebody wants a segment rewritten.
struct Request {
    group: Arc<Group>,
    first: u64,
    decide: Decide,
    reply: oneshot::Sender<Result<Rewritten, RewriteError>>,
}

/// Those that wait; `None` once nobody will look after them any more.
pub(crate) struct Rewrites(Mutex<Option<VecDeque<Request>>>);

impl Default for Rewrites {
    fn default() -> Rewrites {
        Rewrites(Mutex::new(Some(VecDeque::new())))
    }
}

impl Rewrites {
    /// Whoever waits is told that it will not happen.
    pub(crate) fn close(&self) {
        self.0.lock().take();
    }

    fn push(&self, request: Request) {
        if let Some(waiting) = &mut *self.0.lock() {
            waiting.push_back(request);
        }
    }

    fn pop(&self) -> Option<Request> {
        self.0.lock().as_mut()?.pop_front()
    }
}

impl GroupLog {
    /// Rewrites the sealed segment that begins at `first_index`: each entry keeps its index, term, kind, mark and time, and
    /// its payload unless `decide` gives another one. In the background, slowly; reading goes on meanwhile. When nothing
    /// is replaced, nothing is written. Dropped while it waits, it is given up.
    ///
    /// # Errors
    /// [`RewriteError`]; the segment is as it was.
    pub async fn rewrite_segment(&self, first_index: u64, decide: Decide) -> Result<Rewritten, RewriteError> {
        let (reply, told) = oneshot::channel();
        self.core.rewrites.push(Request { group: Arc::clone(&self.group), first: first_index, decide, reply });
        self.core.ring.wake();
        told.await.unwrap_or(Err(RewriteError::Gone(self.group.id)))
    }
}

/// The new file.
struct Output {
    file: Arc<dyn VfsFile>,
    end: SegmentEnd,
    maker: PointMaker,
    points: Vec<u8>,
}

/// A segment that is being rewritten.
pub(crate) struct Rewriting {
    request: Request,
    old: Arc<Segment>,
    opened: Arc<Opened>,
    end: SegmentEnd,
    /// The next frame to read: its position, and the chain there.
    pos: u64,
    prev: u32,
    next: u64,
    /// Set by the probe: the first entry with a new payload, which is not decided on again.
    found: Option<(u64, Option<NewPayload>)>,
    output: Option<Output>,
    replaced: u64,
}

impl Upkeep {
    /// One step of the rewriting that is due; false when there is none.
    pub(crate) fn rewrite(&mut self) -> bool {
        let core = Arc::clone(&self.core);
        if self.rewriting.is_none() {
            let Some(request) = core.rewrites.pop() else { return false };
            match Rewriting::begin(&core, request) {
                Ok(rewriting) => self.rewriting = Some(rewriting),
                Err((request, error)) => drop(request.reply.send(Err(error))),
            }
            return true;
        }
        let Some(rewriting) = &mut self.rewriting else { return false };
        let began = Instant::now();
        let from = rewriting.pos;
        let done = rewriting.step(&core);
        let bytes = rewriting.pos.saturating_sub(from);
        let result = match done {
            Ok(None) => {
                core.rest_after(began.elapsed(), bytes);
                return true;
            }
            Ok(Some(rewritten)) => Ok(rewritten),
            Err(error) => Err(error),
        };
        if let Some(rewriting) = self.rewriting.take() {
            rewriting.end(&core, result);
        }
        true
    }
}

impl Rewriting {
    fn begin(core: &Core, request: Request) -> Result<Rewriting, (Request, RewriteError)> {
        match Self::open(core, &request) {
            Ok((old, opened, end)) => {
                let (pos, prev) = start(&old);
                let next = old.first;
                Ok(Rewriting { request, old, opened, end, pos, prev, next, found: None, output: None, replaced: 0 })
            }
            Err(error) => Err((request, error)),
        }
    }

    fn open(core: &Core, request: &Request) -> Result<(Arc<Segment>, Arc<Opened>, SegmentEnd), RewriteError> {
        let Request { group, first, .. } = request;
        let failed = |source| RewriteError::Io { group: group.id, source };
        if group.inner.lock().removed {
            return Err(RewriteError::Gone(group.id));
        }
        let segments = group.history.segments(core, group).map_err(failed)?;
        // Sealed, and durably so: the journal says that a newer one has entries.
        let newest = group.inner.lock().now.segment.map(|end| end.first);
        let sealed = segments.into_iter().find(|segment| segment.first == *first && Some(segment.first) < newest);
        let old = sealed.ok_or(RewriteError::Missing { group: group.id, first: *first })?;
        let of = |fault: Fault| match fault {
            Fault::Io(source) => failed(source),
            Fault::Damaged(place) => RewriteError::Damaged { group: group.id, place },
        };
        let (end, opened) = (old.end(core).map_err(of)?, old.opened(core).map_err(of)?);
        Ok((old, opened, end))
    }

    fn failed(&self, source: io::Error) -> RewriteError {
        RewriteError::Io { group: self.request.group.id, source }
    }

    /// Reads, and perhaps writes, a few frames; the outcome when that was all.
    fn step(&mut self, core: &Core) -> Result<Option<Rewritten>, RewriteError> {
        let group = &self.request.group;
        if group.inner.lock().removed || self.request.reply.is_closed() {
            return Err(RewriteError::Gone(group.id));
        }
        if !group.history.holds(&self.old) {
            return Err(RewriteError::Missing { group: group.id, first: self.request.first });
        }
        let frames = self.read(core)?;
        if let Some(output) = &mut self.output {
            let written = output.write(&self.old, &frames);
            written.map_err(|source| self.failed(source))?;
            self.sync(core)?;
        }
        if self.found.is_some() && self.output.is_none() {
            self.output = Some(Output::create(core, &self.old, &self.end).map_err(|source| self.failed(source))?);
            (self.pos, self.prev) = start(&self.old);
            self.next = self.old.first;
            return Ok(None);
        }
        if self.pos < self.end.bytes {
            return Ok(None);
        }
        let bytes_before = self.end.bytes + FOOTER;
        match self.output.take() {
            None => Ok(Some(Rewritten { entries: 0, bytes_before, bytes_after: bytes_before })),
            Some(output) => {
                let bytes_after = self.swap(core, output)?;
                core.stats.rewritten_bytes.fetch_add(bytes_after, Relaxed);
                Ok(Some(Rewritten { entries: self.replaced, bytes_before, bytes_after }))
            }
        }
    }

    /// The next frames as they are to be written; when probing none, and only up to the first that changes.
    fn read(&mut self, core: &Core) -> Result<Vec<(Head, Bytes)>, RewriteError> {
        let step = (core.options.retire_step_bytes / STEP_PART).max(1) as u64;
        let opened = Arc::clone(&self.opened);
        let mut scanner =
            Scanner::new(&*opened.file, self.old.place, self.pos, self.end.bytes, Some(self.prev)).reading(step);
        let mut frames = Vec::new();
        let until = (self.pos + step).min(self.end.bytes);
        while scanner.pos() < until {
            let found = scanner.next().map_err(|source| self.failed(source))?;
            let (head, payload) = match found {
                Found::Frame(read, payload) if read.head.index == self.next && read.head.kind == Kind::Entry => {
                    (read.head, payload)
                }
                _ => {
                    let place = format!("{} at byte {}", self.old.path.display(), self.pos);
                    return Err(RewriteError::Damaged { group: self.request.group.id, place });
                }
            };
            (self.pos, self.prev, self.next) = (scanner.pos(), scanner.prev().unwrap_or(self.prev), self.next + 1);
            let new = self.decide(&head, &payload, core.options.max_payload_bytes())?;
            if self.output.is_some() {
                frames.push(new.map_or((head, payload), |new| with_payload(head, new)));
            } else if let Some(new) = new {
                self.found = Some((head.index, Some(new)));
                return Ok(Vec::new());
            }
        }
        Ok(frames)
    }

    fn decide(&mut self, head: &Head, payload: &Bytes, limit: usize) -> Result<Option<NewPayload>, RewriteError> {
        let new = match &mut self.found {
            Some((found, _)) if head.index < *found => None,
            Some((found, new)) if head.index == *found => new.take(),
            _ => (self.request.decide)(&head.entry(payload.clone())),
        };
        if let Some(NewPayload { head_len, payload }) = &new {
            if payload.len() > limit || *head_len as usize > payload.len() {
                let (group, index) = (self.request.group.id, head.index);
                return Err(RewriteError::BadPayload { group, index, bytes: payload.len() });
            }
            // The first one comes by twice: when it is found and when it is written.
            self.replaced += u64::from(self.output.is_some());
        }
        Ok(new)
    }

    fn sync(&self, core: &Core) -> Result<(), RewriteError> {
        let Some(output) = &self.output else { return Ok(()) };
        self.synced(core, output.file.sync_data())
    }

    /// A failed sync says that the disk is not to be trusted, whatever was on it.
    fn synced(&self, core: &Core, result: io::Result<()>) -> Result<(), RewriteError> {
        result.inspect_err(|error| core.poison("sync a rewritten segment", error)).map_err(|source| self.failed(source))
    }

    /// The new file takes the old one's place; its size.
    fn swap(&mut self, core: &Core, output: Output) -> Result<u64, RewriteError> {
        let Output { file, end, points, .. } = output;
        let (old, group) = (Arc::clone(&self.old), Arc::clone(&self.request.group));
        let [log, index] = unfinished(&old);
        let finish = || {
            footer(&*file, old.group, &old.place, &end)?;
            let points_file = core.vfs.open(&index, Open::Fresh)?;
            points_file.write_at(&[IoSlice::new(&points)], 0)?;
            Ok(points_file)
        };
        let points_file = finish().map_err(|source| self.failed(source))?;
        self.synced(core, file.sync_data().and_then(|()| points_file.sync_data()))?;
        old.pin(&self.opened);
        core.vfs.rename(&log, &old.path).map_err(|source| self.failed(source))?;
        // From here on it is the new one that will be found, or the old one after a power loss: both are right.
        let renamed = core.vfs.rename(&index, &old.index_path()).and_then(|()| core.vfs.sync_dir(&group.history.dir));
        self.synced(core, renamed)?;
        let new = Arc::new(Segment::new(&group.history.dir, old.group, old.first, Some(end)));
        assert!(group.history.replace(&old, new), "only the background changes the list");
        // What the new file does not have any more must not be read from memory either.
        let freed = group.inner.lock().evict(end.last.index);
        core.cache.dropped(freed);
        Ok(end.bytes + FOOTER)
    }

    /// Tells the outcome; nothing unfinished stays.
    fn end(self, core: &Core, result: Result<Rewritten, RewriteError>) {
        for path in unfinished(&self.old) {
            match core.vfs.remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "an unfinished file stays until the next start");
                }
                _ => {}
            }
        }
        let _ = self.request.reply.send(result);
    }
}

/// The first frame's place, and the chain there.
fn start(segment: &Segment) -> (u64, u32) {
    (START, u32_at(&header(segment.group, segment.first), 60))
}

fn unfinished(segment: &Segment) -> [PathBuf; 2] {
    [segment.path.clone(), segment.index_path()].map(|path| {
        let mut name = path.into_os_string();
        name.push(UNFINISHED);
        PathBuf::from(name)
    })
}

fn with_payload(head: Head, new: NewPayload) -> (Head, Bytes) {
    let NewPayload { head_len, payload } = new;
    let (len, payload_crc) = (payload.len() as u32, crc32fast::hash(&payload));
    (Head { len, payload_crc, head_len, ..head }, payload)
}

impl Output {
    fn create(core: &Core, old: &Segment, end: &SegmentEnd) -> io::Result<Output> {
        let [log, _] = unfinished(old);
        let file = core.vfs.open(&log, Open::Fresh)?;
        file.write_at(&[IoSlice::new(&header(old.group, old.first))], 0)?;
        let (bytes, chain) = start(old);
        let begin = SegmentEnd { bytes, chain, last: Position::default(), mark: 0, max_time_ms: i64::MIN, ..*end };
        let maker = PointMaker::new(core.options.index_interval_bytes, START, 0, i64::MIN);
        Ok(Output { file, end: begin, maker, points: Vec::new() })
    }

    fn write(&mut self, old: &Segment, frames: &[(Head, Bytes)]) -> io::Result<()> {
        let start = self.end.bytes;
        let mut headers = Vec::with_capacity(frames.len());
        for (head, _) in frames {
            let point = self.maker.pass(head.index, self.end.bytes, head.mark, head.time_ms);
            self.points.extend(point.iter().flat_map(|point| point.encode(&old.place)));
            headers.push(self.end.extend(head, &old.place));
        }
        let mut slices = Vec::with_capacity(frames.len() * 3);
        for (bytes, (_, payload)) in headers.iter().zip(frames) {
            slices.extend([&bytes[..], payload, padding(payload.len())].map(IoSlice::new));
        }
        self.file.write_at(&slices, start)
    }
}

impl SegmentEnd {
    /// The end behind one more entry, and the header of that entry's frame.
    pub(crate) fn extend(&mut self, head: &Head, place: &crate::frame::Place) -> [u8; crate::frame::HEADER] {
        let bytes = Head { kind: Kind::Entry, ..*head }.encode(place, self.bytes, self.chain, 0);
        (self.chain, self.bytes) = (crc_of(&bytes), self.bytes + head.size());
        self.last = Position { term: head.term, index: head.index };
        (self.mark, self.max_time_ms) = (head.mark, self.max_time_ms.max(head.time_ms));
        bytes
    }
}
