//! A file system in memory that can lose exactly what a real one may lose.
//!
//! Every change is recorded in a trace. From any prefix of the trace, [`SimVfs::crashed_at`] makes the file system that
//! could be found after a power loss at that point: synced bytes and names are there, unsynced ones are there, gone or
//! torn as [`Loss`] says. Faults (full disk, failing syncs and reads, flipped bits) are injected with the `fail_*`,
//! `set_capacity` and `flip_bit` calls.
//!
//! Deterministic: the same calls and seeds give the same states.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use self::disk::{Change, Disk, Inode};
use crate::vfs::{Open, Vfs, VfsFile, VfsLock};

mod disk;

/// Unsynced writes survive or vanish in units of this many bytes.
const SECTOR: usize = 512;

/// What a power loss does to what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it is gone: the least that must be there.
    All,
    /// None of it is gone, as after a killed process.
    None,
    /// Each sector and each name is there or not, by this seed.
    Some(u64),
    /// Everything is there but the end of the last write, cut at this many bytes.
    TornLast(usize),
}

#[derive(Debug, Default)]
struct State {
    disk: Disk,
    /// What the trace starts from.
    base: Disk,
    trace: Vec<Change>,
    recording: bool,
    next_inode: Inode,
    locks: BTreeSet<PathBuf>,
    capacity: Option<u64>,
    sync_fails: Option<String>,
    write_fails: Option<String>,
    read_fails: Option<String>,
    refuses_direct: bool,
    syncs: u64,
}

/// See the module. Clones are the same file system.
#[derive(Clone, Debug, Default)]
pub struct SimVfs {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct SimFile {
    state: Arc<Mutex<State>>,
    inode: Inode,
    path: PathBuf,
    way: Way,
}

/// How a file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Cached,
    /// In whole blocks only.
    Direct,
    /// In whole blocks only, and durable when the write returns.
    Durable,
}

struct SimLock {
    state: Arc<Mutex<State>>,
    path: PathBuf,
}

impl VfsLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.state.lock().locks.remove(&self.path);
    }
}

fn injected(what: &str) -> io::Error {
    io::Error::other(format!("injected {what} error"))
}

fn hits(pattern: &Option<String>, path: &Path) -> bool {
    pattern.as_ref().is_some_and(|part| path.to_string_lossy().contains(part.as_str()))
}

impl State {
    fn change(&mut self, change: Change) {
        self.disk.apply(&change);
        if self.recording {
            self.trace.push(change);
        }
    }

    fn room_for(&self, inode: Inode, end: u64) -> io::Result<()> {
        let Some(capacity) = self.capacity else { return Ok(()) };
        let len = self.disk.files.get(&inode).map_or(0, |file| file.len() as u64);
        let grown = end.saturating_sub(len);
        if grown > 0 && self.disk.used() + grown > capacity {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

impl SimVfs {
    /// An empty file system.
    pub fn new() -> SimVfs {
        SimVfs::default()
    }

    /// Records changes from here on.
    pub fn record(&self) {
        let mut state = self.state.lock();
        state.base = state.disk.clone();
        state.trace.clear();
        state.recording = true;
    }

    /// Changes recorded so far.
    pub fn trace_len(&self) -> usize {
        self.state.lock().trace.len()
    }

    /// How many syncs of file content there were.
    pub fn sync_count(&self) -> u64 {
        self.state.lock().syncs
    }

    /// What would be found after a power loss behind the first `changes` recorded changes. What was there when the
    /// recording began counts as synced.
    pub fn crashed_at(&self, changes: usize, loss: Loss) -> SimVfs {
        let state = self.state.lock();
        let trace = &state.trace[..changes.min(state.trace.len())];
        let disk = match loss {
            Loss::None => replay_all(&state.base, trace),
            Loss::All => replay_synced(&state.base, trace, |_| false),
            Loss::Some(seed) => {
                let mut random = Random(seed);
                replay_synced(&state.base, trace, move |_| random.next().is_multiple_of(2))
            }
            Loss::TornLast(keep) => replay_torn(&state.base, trace, keep),
        };
        let next_inode = state.next_inode;
        SimVfs { state: Arc::new(Mutex::new(State { disk, next_inode, ..State::default() })) }
    }

    /// Flips one bit of a file, durably.
    pub fn flip_bit(&self, path: &Path, byte: u64, bit: u8) {
        let mut state = self.state.lock();
        let inode = state.disk.names.get(path).copied();
        if let Some(byte) = inode.and_then(|i| state.disk.files.get_mut(&i)).and_then(|f| f.get_mut(byte as usize)) {
            *byte ^= 1 << bit;
        }
    }

    /// A file's bytes.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.lock();
        state.disk.files.get(state.disk.names.get(path)?).cloned()
    }

    /// Replaces a file's bytes, durably.
    pub fn set_content(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.state.lock();
        if let Some(inode) = state.disk.names.get(path).copied() {
            state.disk.files.insert(inode, bytes);
        }
    }

    /// Paths of all files.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.state.lock().disk.names.keys().cloned().collect()
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> SimVfs {
        let state = self.state.lock();
        let copy = State { disk: state.disk.clone(), next_inode: state.next_inode, ..State::default() };
        SimVfs { state: Arc::new(Mutex::new(copy)) }
    }

    /// Bytes the disk holds in all, or no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Syncs of files whose path contains this fail.
    pub fn fail_syncs(&self, part: Option<&str>) {
        self.state.lock().sync_fails = part.map(str::to_owned);
    }

    /// Writes to files whose path contains this fail.
    pub fn fail_writes(&self, part: Option<&str>) {
        self.state.lock().write_fails = part.map(str::to_owned);
    }

    /// Files can be opened for direct writes, but each such write is refused, as where blocks are larger.
    pub fn refuse_direct_writes(&self) {
        self.state.lock().refuses_direct = true;
    }

    /// Reads of files whose path contains this fail.
    pub fn fail_reads(&self, part: Option<&str>) {
        self.state.lock().read_fails = part.map(str::to_owned);
    }
}

/// SplitMix64: small, seedable, good enough to choose what is lost.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

fn replay_all(base: &Disk, trace: &[Change]) -> Disk {
    let mut disk = base.clone();
    trace.iter().for_each(|change| disk.apply(change));
    disk
}

/// Everything, but of the last write only the first bytes.
fn replay_torn(base: &Disk, trace: &[Change], keep: usize) -> Disk {
    let mut disk = base.clone();
    let last = trace.iter().rposition(|change| matches!(change, Change::Write(..)));
    let later_sync =
        last.is_some_and(|at| trace[at..].iter().any(|change| matches!(change, Change::Sync(_) | Change::SyncAll)));
    for (n, change) in trace.iter().enumerate() {
        match change {
            Change::Write(inode, pos, bytes) if Some(n) == last && !later_sync => {
                disk.write(*inode, *pos, &bytes[..keep.min(bytes.len())]);
            }
            _ => disk.apply(change),
        }
    }
    disk
}

/// What is synced, and of the rest what `survives` says.
fn replay_synced(base: &Disk, trace: &[Change], mut survives: impl FnMut(usize) -> bool) -> Disk {
    let mut disk = base.clone();
    let all_later = |at: usize| trace[at..].iter().any(|c| matches!(c, Change::SyncAll));
    let synced_later = |at: usize, inode: Inode| {
        all_later(at) || trace[at..].iter().any(|c| matches!(c, Change::Sync(i) if *i == inode))
    };
    let named_later = |at: usize, path: &Path| {
        path.parent().is_none()
            || all_later(at)
            || trace[at..].iter().any(|c| matches!(c, Change::SyncDir(dir) if path.parent() == Some(dir)))
    };
    for (n, change) in trace.iter().enumerate() {
        match change {
            Change::Write(inode, ..) | Change::SetLen(inode, _) if synced_later(n, *inode) => disk.apply(change),
            Change::Write(inode, pos, bytes) => {
                for (s, sector) in bytes.chunks(SECTOR).enumerate() {
                    if survives(n) {
                        disk.write(*inode, pos + (s * SECTOR) as u64, sector);
                    }
                }
            }
            Change::SetLen(..) => {
                if survives(n) {
                    disk.apply(change);
                }
            }
            Change::Create(path, inode) => {
                disk.files.entry(*inode).or_default();
                if named_later(n, path) || survives(n) {
                    disk.apply(change);
                }
            }
            Change::Rename(path, _) | Change::Remove(path) | Change::MakeDir(path) | Change::RemoveDir(path) => {
                if named_later(n, path) || survives(n) {
                    disk.apply(change);
                }
            }
            Change::Sync(_) | Change::SyncDir(_) | Change::SyncAll => {}
        }
    }
    // A name inside a folder that is gone is gone, too.
    let dirs = disk.dirs.clone();
    disk.names.retain(|path, _| path.parent().is_none_or(|dir| dirs.contains(dir)));
    disk
}

impl Vfs for SimVfs {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn VfsFile>> {
        let mut state = self.state.lock();
        let inode = match (state.disk.names.get(path).copied(), how) {
            (Some(inode), Open::Existing) => inode,
            (Some(inode), Open::Fresh) => {
                state.change(Change::SetLen(inode, 0));
                inode
            }
            (None, Open::Existing) => return Err(io::Error::from(io::ErrorKind::NotFound)),
            (None, Open::Fresh) => {
                if path.parent().is_some_and(|dir| !state.disk.dirs.contains(dir)) {
                    return Err(io::Error::from(io::ErrorKind::NotFound));
                }
                state.next_inode += 1;
                let inode = state.next_inode;
                state.change(Change::Create(path.to_owned(), inode));
                inode
            }
        };
        Ok(Arc::new(SimFile { state: Arc::clone(&self.state), inode, path: path.to_owned(), way: Way::Cached }))
    }

    fn open_direct(&self, path: &Path, durable: bool) -> Option<Arc<dyn VfsFile>> {
        let inode = self.state.lock().disk.names.get(path).copied()?;
        let way = if durable { Way::Durable } else { Way::Direct };
        Some(Arc::new(SimFile { state: Arc::clone(&self.state), inode, path: path.to_owned(), way }))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        for ancestor in dir.ancestors().collect::<Vec<_>>().into_iter().rev() {
            if !state.disk.dirs.contains(ancestor) {
                state.change(Change::MakeDir(ancestor.to_owned()));
            }
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        if !state.disk.dirs.contains(dir) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        let paths = state.disk.names.keys().chain(&state.disk.dirs);
        let inside = paths.filter(|path| path.parent() == Some(dir)).filter_map(|path| path.file_name());
        Ok(inside.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn file_len(&self, path: &Path) -> io::Result<u64> {
        self.content(path).map(|bytes| bytes.len() as u64).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.disk.names.contains_key(from) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        state.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.disk.names.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        state.change(Change::Remove(path.to_owned()));
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.disk.names.keys().any(|path| path.starts_with(dir)) {
            return Err(io::Error::from(io::ErrorKind::DirectoryNotEmpty));
        }
        state.change(Change::RemoveDir(dir.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.disk.dirs.contains(dir) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        state.change(Change::SyncDir(dir.to_owned()));
        Ok(())
    }

    fn sync_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if hits(&state.sync_fails, dir) {
            return Err(injected("sync"));
        }
        state.change(Change::SyncAll);
        Ok(())
    }

    fn available_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let state = self.state.lock();
        Ok(state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.disk.used())))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        let fresh = self.state.lock().locks.insert(path.to_owned());
        Ok(fresh
            .then(|| Box::new(SimLock { state: Arc::clone(&self.state), path: path.to_owned() }) as Box<dyn VfsLock>))
    }
}

impl VfsFile for SimFile {
    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        let state = self.state.lock();
        if hits(&state.read_fails, &self.path) {
            return Err(injected("read"));
        }
        let file = state.disk.files.get(&self.inode).map_or(&[][..], Vec::as_slice);
        let from = (pos as usize).min(file.len());
        let len = buf.len().min(file.len() - from);
        buf[..len].copy_from_slice(&file[from..from + len]);
        Ok(len)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], pos: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        if hits(&state.write_fails, &self.path) {
            return Err(injected("write"));
        }
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        state.room_for(self.inode, pos + bytes.len() as u64)?;
        let whole = (pos | bytes.len() as u64).is_multiple_of(4096);
        if self.way != Way::Cached && (state.refuses_direct || !whole) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        state.change(Change::Write(self.inode, pos, bytes.into()));
        if self.way == Way::Durable {
            state.change(Change::Sync(self.inode));
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if hits(&state.sync_fails, &self.path) {
            return Err(injected("sync"));
        }
        state.syncs += 1;
        state.change(Change::Sync(self.inode));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.room_for(self.inode, len)?;
        state.change(Change::SetLen(self.inode, len));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().disk.files.get(&self.inode).map_or(0, |file| file.len() as u64))
    }
}
