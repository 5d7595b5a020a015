//! Opening the journal: which files are in use, where the newest one ends, and whether anything is missing.
//!
//! ```text
//!   every header ─▶ the newest generation ─▶ the run of consecutive generations that ends there ─▶ replay, oldest first
//! ```
//!
//! - A file whose header says nothing is free, unless frames in it prove that it was in use: then it is damage.
//! - Older files end with a seal. Anything else that does not read there is damage.
//! - The newest file may end **torn**: bytes behind the last good frame that were never known to be durable. They are
//!   kept aside and cut. Every frame says how far its file was durable when it was written, so a later frame that
//!   knows the bad place as durable turns it into **damage**.
//! - An entry whose frame reads but whose payload does not is damage of that one entry: it is reported, refused to
//!   readers, and everything else goes on. Any other damage refuses to open, and nothing on disk is changed.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::active::Active;
use super::header::{BLOCK, FileHeader, Parsed, SNAPSHOT_AT, VERSION};
use super::replay::Replay;
use super::ring::{JournalFile, Spare};
use super::scan::{Found, Scanner, look_behind};
use crate::error::OpenError;
use crate::frame::{Kind, Place, u32_at};
use crate::group::Inner;
use crate::hard::Snapshot;
use crate::types::GroupId;
use crate::vfs::{Open, Vfs, VfsFile, read_vec};

/// Most bytes of a torn tail that are kept aside.
const TORN_BYTES_MAX: u64 = 1 << 20;
/// Most torn tails that are kept aside.
const TORN_FILES_MAX: usize = 16;

/// What was cut off the newest journal file: written, never known to be durable, unreadable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Generation of the file.
    pub generation: u64,
    /// Where the readable part ends.
    pub position: u64,
    /// Copy of what stood there, bounded in size; `None` when it could not be written or enough are kept already.
    pub kept_as: Option<PathBuf>,
}

/// An entry whose stored bytes are damaged. It is refused to readers and has to come from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedEntry {
    /// Group.
    pub group: GroupId,
    /// Term of the entry.
    pub term: u64,
    /// Index of the entry.
    pub index: u64,
    /// File and position.
    pub place: String,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Groups known.
    pub groups: usize,
    /// Journal files read.
    pub files: usize,
    /// Frames read.
    pub frames: u64,
    /// Bytes read.
    pub bytes: u64,
    /// The torn tail, if there was one.
    pub torn: Option<TornTail>,
    /// Damaged entries still in the journal.
    pub damaged: Vec<DamagedEntry>,
    /// Folders and files that belong to nobody; they were left alone.
    pub strays: Vec<PathBuf>,
    /// True when the engine was closed in order before.
    pub clean: bool,
}

/// Everything the engine starts with.
pub(crate) struct Recovered {
    pub(crate) groups: BTreeMap<GroupId, Inner>,
    pub(crate) written: Snapshot,
    pub(crate) active: Option<Active>,
    pub(crate) sealed: VecDeque<Arc<JournalFile>>,
    pub(crate) spares: VecDeque<Spare>,
    pub(crate) generation: u64,
    pub(crate) opened: u64,
    pub(crate) next_slot: u32,
    pub(crate) report: RecoveryReport,
}

/// One file of the ring as found.
struct Candidate {
    slot: u32,
    path: PathBuf,
    file: Arc<dyn VfsFile>,
    bytes: u64,
    header: Option<FileHeader>,
    blank: bool,
}

/// Name of a ring file.
pub(crate) fn file_name(slot: u32) -> String {
    format!("{slot:04}.journal")
}

fn is_corrupt(error: &OpenError) -> bool {
    matches!(error, OpenError::Corrupt { .. })
}

fn damage(path: &Path, pos: u64, detail: impl Into<String>) -> OpenError {
    OpenError::Corrupt { place: format!("{} at byte {pos}", path.display()), detail: detail.into() }
}

/// Reads the journal in `dir`. `has_history` says that segments exist, so a journal must, too.
pub(crate) fn recover(vfs: &dyn Vfs, dir: &Path, file_bytes: u64, has_history: bool) -> Result<Recovered, OpenError> {
    let mut candidates = candidates(vfs, dir)?;
    let next_slot = candidates.iter().map(|c| c.slot + 1).max().unwrap_or(0);
    let newest = newest(dir, &mut candidates, has_history)?;
    let mut recovery = Recovery { vfs, dir, replay: Replay::default(), report: RecoveryReport::default() };
    let (mut active, mut sealed, mut generation) = (None, VecDeque::new(), 0);
    let mut spares = candidates;
    if let Some(header) = newest {
        generation = header.generation;
        let mut run = Vec::new();
        for wanted in (0..=generation).rev() {
            let at = spares.iter().position(|c| c.header.is_some_and(|h| h.generation == wanted));
            match at {
                Some(at) if wanted >= header.oldest => run.push(spares.swap_remove(at)),
                _ => break,
            }
        }
        run.reverse();
        let unused;
        ((active, sealed), unused) = recovery.read_needed(run, header.oldest)?;
        spares.extend(unused);
    }
    let Recovery { replay, mut report, .. } = recovery;
    report.frames = replay.frames;
    let opened = replay.opened.max(newest.map_or(0, |header| header.opened));
    let (groups, written) =
        replay.finish().map_err(|detail| OpenError::Corrupt { place: dir.display().to_string(), detail })?;
    report.damaged.retain(|d| groups.get(&d.group).is_some_and(|inner| inner.damaged.contains(&d.index)));
    report.damaged.reverse(); // where an entry was carried to is its place
    let mut seen = HashSet::new();
    report.damaged.retain(|d| seen.insert((d.group, d.index)));
    report.damaged.reverse();
    report.groups = groups.len();
    let spares = reuse(vfs, spares, file_bytes)?;
    Ok(Recovered { groups, written, active, sealed, spares, generation, opened, next_slot, report })
}

fn candidates(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<Candidate>, OpenError> {
    let mut found = Vec::new();
    for name in vfs.list(dir).map_err(OpenError::io("list", dir))? {
        let path = dir.join(&name);
        if name.ends_with(".new") {
            vfs.remove_file(&path).map_err(OpenError::io("remove", &path))?; // never finished being zeroed
            continue;
        }
        let Some(slot) = name.strip_suffix(".journal").and_then(|n| n.parse::<u32>().ok()) else { continue };
        let file = vfs.open(&path, Open::Existing).map_err(OpenError::io("open", &path))?;
        let bytes = file.len().map_err(OpenError::io("measure", &path))?;
        let blocks = read_vec(&*file, 0, SNAPSHOT_AT as usize).map_err(OpenError::io("read", &path))?;
        let (mut header, mut blank) = (None, true);
        for block in blocks.chunks(BLOCK as usize) {
            match FileHeader::parse(block) {
                Parsed::Header(h) if h.slot == slot && h.file_bytes <= bytes => header = header.or(Some(h)),
                Parsed::Version(found) => {
                    return Err(OpenError::Version { place: path.display().to_string(), found, known: VERSION });
                }
                Parsed::Header(_) | Parsed::Invalid => blank = false,
                Parsed::Blank => {}
            }
        }
        found.push(Candidate { slot, path, file, bytes, header, blank: blank && header.is_none() });
    }
    found.sort_by_key(|c| c.slot);
    Ok(found)
}

/// The header to start from. A file that was about to be used next, and was not yet, loses its header here.
fn newest(dir: &Path, candidates: &mut [Candidate], has_history: bool) -> Result<Option<FileHeader>, OpenError> {
    loop {
        let newest = candidates.iter().filter_map(|c| c.header).max_by_key(|h| h.generation);
        let Some(header) = newest else {
            let used: Vec<&Candidate> = candidates.iter().filter(|c| !c.blank).collect();
            let proof = match used.first() {
                Some(first) => used.len() > 1 || was_used(first, 1)?,
                None => has_history,
            };
            if proof {
                return Err(damage(dir, 0, "no journal file has a readable header, yet the folder was in use"));
            }
            return Ok(None);
        };
        for c in candidates.iter().filter(|c| c.header.is_none() && !c.blank) {
            if was_used(c, header.generation + 1)? {
                return Err(damage(&c.path, 0, "both headers are unreadable, and the file holds durable frames"));
            }
        }
        let Some(c) = candidates.iter_mut().find(|c| c.header == Some(header)) else { return Ok(None) };
        if read_snapshot(c, &header)?.is_some() || was_used(c, header.generation)? {
            return Ok(Some(header));
        }
        (c.header, c.blank) = (None, true); // its first write never became durable
    }
}

/// True when frames in the file prove that some of it was durable under that generation.
fn was_used(c: &Candidate, generation: u64) -> Result<bool, OpenError> {
    let place = Place::journal(c.slot, generation);
    let behind = look_behind(&*c.file, &place, 0, SNAPSHOT_AT, c.bytes);
    Ok(behind.map_err(OpenError::io("read", &c.path))?.proof)
}

fn read_snapshot(c: &Candidate, header: &FileHeader) -> Result<Option<Snapshot>, OpenError> {
    let len = u64::from(header.snapshot_bytes).min(c.bytes);
    let bytes = read_vec(&*c.file, SNAPSHOT_AT, len as usize).map_err(OpenError::io("read", &c.path))?;
    let valid = bytes.len() as u64 == u64::from(header.snapshot_bytes);
    Ok(Some(bytes).filter(|b| valid && crc32fast::hash(b) == header.snapshot_crc).and_then(|b| Snapshot::decode(&b)))
}

/// Files of the right size are used again, others are removed.
fn reuse(vfs: &dyn Vfs, files: Vec<Candidate>, file_bytes: u64) -> Result<VecDeque<Spare>, OpenError> {
    let mut spares = VecDeque::new();
    for c in files {
        if c.bytes == file_bytes {
            spares.push_back(Spare { slot: c.slot, bytes: c.bytes, file: c.file });
        } else {
            vfs.remove_file(&c.path).map_err(OpenError::io("remove", &c.path))?;
        }
    }
    Ok(spares)
}

type Files = (Option<Active>, VecDeque<Arc<JournalFile>>);

struct Recovery<'a> {
    vfs: &'a dyn Vfs,
    dir: &'a Path,
    replay: Replay,
    report: RecoveryReport,
}

impl Recovery<'_> {
    /// Replays consecutive files, oldest first. `oldest` is the generation the newest header asks for; later frames may
    /// know better. A freed file was perhaps being overwritten, so what is wrong with it does not count. Returns the
    /// files not needed, too.
    fn read_needed(&mut self, mut run: Vec<Candidate>, oldest: u64) -> Result<(Files, Vec<Candidate>), OpenError> {
        let mut unused: Vec<Candidate> = Vec::new();
        let mut fault = None;
        loop {
            let first = run.iter().find_map(|c| c.header).map_or(0, |h| h.generation);
            match self.read_run(&run) {
                Ok(_) if first > oldest && self.replay.freed + 1 < first => {
                    let missing = format!("journal generations {oldest} to {} are missing", first - 1);
                    return Err(fault.unwrap_or_else(|| damage(self.dir, 0, missing)));
                }
                Ok(files) => return Ok((files, unused)),
                Err((at, error)) if at + 1 < run.len() && is_corrupt(&error) => {
                    unused.extend(run.drain(..=at));
                    fault.get_or_insert(error);
                    (self.replay, self.report) = Default::default();
                }
                Err((_, error)) => return Err(fault.unwrap_or(error)),
            }
        }
    }

    /// Replays these files; an error names the file.
    fn read_run(&mut self, run: &[Candidate]) -> Result<Files, (usize, OpenError)> {
        let mut sealed = VecDeque::new();
        let mut active = None;
        self.report.files = run.len();
        for (n, c) in run.iter().enumerate() {
            match self.begin_and_read(c, n + 1 == run.len()).map_err(|error| (n, error))? {
                (file, None) => sealed.push_back(file),
                (_, at) => active = at,
            }
        }
        Ok((active, sealed))
    }

    fn begin_and_read(&mut self, c: &Candidate, newest: bool) -> Result<(Arc<JournalFile>, Option<Active>), OpenError> {
        let header = c.header.ok_or_else(|| damage(&c.path, 0, "no readable header"))?;
        let snapshot = read_snapshot(c, &header)?;
        self.replay.begin_file(snapshot).map_err(|detail| damage(&c.path, SNAPSHOT_AT, detail))?;
        let file = Arc::new(JournalFile {
            slot: c.slot,
            generation: header.generation,
            bytes: header.file_bytes,
            start: FileHeader::data_start(header.snapshot_bytes.into()),
            file: Arc::clone(&c.file),
            groups: Mutex::new(HashSet::new()),
        });
        let active = self.read_file(c, &header, &file, newest)?;
        Ok((file, active))
    }

    /// Replays one file; `None` when it ends with a seal, else where to go on.
    fn read_file(
        &mut self,
        c: &Candidate,
        header: &FileHeader,
        file: &Arc<JournalFile>,
        is_newest: bool,
    ) -> Result<Option<Active>, OpenError> {
        let (place, start, end) = (file.place(), file.start, header.file_bytes);
        let mut scanner = Scanner::new(&*c.file, place, start, end, Some(header.chain()));
        loop {
            let (pos, prev) = (scanner.pos(), scanner.prev().unwrap_or_default());
            let found = scanner.next().map_err(OpenError::io("read", &c.path))?;
            let torn = match &found {
                Found::Frame(..) => false,
                Found::BadPayload(_) | Found::Bad if !is_newest => false,
                Found::BadPayload(_) => self.is_torn(c, &place, pos, scanner.pos(), end)?,
                Found::Bad => self.is_torn(c, &place, pos, pos, end)?,
            };
            if torn {
                self.report.bytes += scanner.read_bytes();
                c.file.sync_data().map_err(OpenError::io("sync", &c.path))?;
                return Ok(Some(Active { file: Arc::clone(file), place, pos, prev, synced: pos, direct: None }));
            }
            let (read, payload) = match found {
                Found::Frame(read, payload) => (read, Some(payload)),
                Found::BadPayload(read) => (read, None),
                Found::Bad => return Err(damage(&c.path, pos, "no valid frame where durable ones must follow")),
            };
            let applied = self.replay.frame(header.generation, pos, &read, payload.as_deref());
            applied.map_err(|detail| damage(&c.path, pos, detail))?;
            if matches!(read.head.kind, Kind::Entry | Kind::Carried) {
                file.groups.lock().insert(read.head.group);
                if payload.is_none() {
                    self.note_damaged(c, pos, &read.head);
                }
            }
            if read.head.kind != Kind::Pad {
                self.report.clean = read.head.kind == Kind::Opened && read.head.flavour == 1;
            }
            if read.head.kind == Kind::Seal {
                self.report.bytes += scanner.read_bytes();
                return Ok(None);
            }
        }
    }

    fn note_damaged(&mut self, c: &Candidate, pos: u64, head: &crate::frame::Head) {
        let place = format!("{} at byte {pos}", c.path.display());
        self.report.damaged.push(DamagedEntry { group: head.group, term: head.term, index: head.index, place });
    }

    /// True when nothing proves that `pos` was ever durable. Keeps a torn tail aside.
    fn is_torn(&mut self, c: &Candidate, place: &Place, pos: u64, from: u64, end: u64) -> Result<bool, OpenError> {
        let behind = look_behind(&*c.file, place, pos, from, end).map_err(OpenError::io("read", &c.path))?;
        if behind.proof {
            return Ok(false);
        }
        let head = read_vec(&*c.file, pos, 16.min(end - pos) as usize).map_err(OpenError::io("read", &c.path))?;
        let begun = head.len() == 16 && u32_at(&head, 8) == place.tag();
        if behind.any || begun {
            let generation = c.header.map_or(0, |h| h.generation);
            let kept_as = self.keep_aside(c, generation, pos, end);
            self.report.torn = Some(TornTail { generation, position: pos, kept_as });
        }
        Ok(true)
    }

    /// Best effort: opening must not fail because the copy of a torn tail cannot be written.
    fn keep_aside(&self, c: &Candidate, generation: u64, pos: u64, end: u64) -> Option<PathBuf> {
        let kept = self.vfs.list(self.dir).ok()?.iter().filter(|name| name.starts_with("torn-")).count();
        if kept >= TORN_FILES_MAX {
            return None;
        }
        let bytes = read_vec(&*c.file, pos, TORN_BYTES_MAX.min(end - pos) as usize).ok()?;
        let path = self.dir.join(format!("torn-{generation}-{pos}"));
        let kept = || -> io::Result<()> {
            let file = self.vfs.open(&path, Open::Fresh)?;
            file.write_at(&[io::IoSlice::new(&bytes)], 0)?;
            file.sync_data()?;
            self.vfs.sync_dir(self.dir)
        };
        kept().ok().map(|()| path)
    }
}
