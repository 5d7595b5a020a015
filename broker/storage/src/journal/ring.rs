//! The ring of journal files: which is written, which are full, which are free, and who may take the next one.
//!
//! ```text
//!   spares ──take──▶ active ──full──▶ sealed (oldest first) ──retired──▶ spares
//! ```
//!
//! Invariants:
//! - the writer's normal lane never takes the last spare while anything is sealed, and does not write while there is
//!   none: so emptying the oldest sealed file (whose uncommitted entries must be written again) always finds room;
//! - generations grow by one with each use; sealed files are consecutive and end right below the active one.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::frame::Place;
use crate::options::LogOptions;
use crate::types::GroupId;
use crate::vfs::VfsFile;

/// Longest a single write is stretched.
const FAIR_MAX: Duration = Duration::from_millis(50);

/// The writer takes one, and one must remain.
const SPARES_TO_TURN: usize = 2;
/// How much more time than emptying one file takes there should be until the next turn; less is pressing.
const TURN_SLACK: u64 = 8;
/// Bytes of a file emptied per second, as long as neither that nor zero-filling was ever measured.
const EMPTIED_GUESS: u64 = 32 << 20;
/// A ring of few files gets another one once this part of the active file is full: early enough to make it slowly.
const GROW_AT_PART: u64 = 8;
/// Over so long the rate is measured at which the active file fills.
const FILL_WINDOW: Duration = Duration::from_millis(200);
/// How long after the writer was held back there is no resting.
const HELD_BACK_COUNTS: Duration = Duration::from_secs(1);
/// One is written, one is emptied, two wait: with fewer files the ring stops at each turn.
const FILES_TO_TURN: usize = 4;

fn rate(bytes: u64, took: Duration) -> u64 {
    (bytes as f64 / took.as_secs_f64().max(1e-3)) as u64
}

/// A journal file in use.
#[derive(Debug)]
pub(crate) struct JournalFile {
    pub(crate) slot: u32,
    pub(crate) generation: u64,
    pub(crate) bytes: u64,
    /// Where its frames begin.
    pub(crate) start: u64,
    pub(crate) file: Arc<dyn VfsFile>,
    /// Groups that have entries in it.
    pub(crate) groups: Mutex<HashSet<GroupId>>,
}

impl JournalFile {
    pub(crate) fn place(&self) -> Place {
        Place::journal(self.slot, self.generation)
    }
}

/// A file that holds nothing that is needed.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) slot: u32,
    pub(crate) bytes: u64,
    pub(crate) file: Arc<dyn VfsFile>,
}

#[derive(Debug, Default)]
struct State {
    active: Option<Arc<JournalFile>>,
    sealed: VecDeque<Arc<JournalFile>>,
    spares: VecDeque<Spare>,
    next_slot: u32,
    /// The normal lane found no room.
    waiting: bool,
    /// The urgent lane found no room: an extra file is due.
    starving: bool,
    /// The background is to end.
    stopping: bool,
    /// Files with which the writer would not have had to wait.
    wish: usize,
    /// Since when, and bytes written since then: the window of `fill_rate`.
    window: Option<(Instant, u64)>,
    /// Bytes per second that go into the journal: at once when it grows, slowly when it falls.
    fill_rate: u64,
    /// When the writer last had to wait, or to slow down.
    held_back: Option<Instant>,
}

impl State {
    fn files(&self) -> usize {
        self.spares.len() + self.sealed.len() + usize::from(self.active.is_some())
    }

    fn note_fill(&mut self, bytes: u64) {
        let now = Instant::now();
        let (since, sum) = self.window.get_or_insert((now, 0));
        *sum += bytes;
        let took = now - *since;
        if took >= FILL_WINDOW {
            let latest = rate(*sum, took);
            self.fill_rate = latest.max((self.fill_rate * 3 + latest) / 4);
            self.window = Some((now, 0));
        }
    }

    /// The cushion to strive for; a small ring cannot have a large one.
    fn spares_wanted(&self, options: &LogOptions) -> usize {
        options.spares_wanted().min(self.files() / 2).max(2)
    }

    fn wait(&mut self) {
        self.held_back = Some(Instant::now());
        if !std::mem::replace(&mut self.waiting, true) {
            self.wish = self.files() + 1;
        }
    }
}

/// What the ring needs next.
#[derive(Clone, Debug)]
pub(crate) enum Need {
    Nothing,
    /// A new file.
    File,
    /// The oldest sealed file emptied.
    Retire(Arc<JournalFile>),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    state: Mutex<State>,
    /// Signalled when the background has something to do.
    pub(crate) wanted: Condvar,
    /// How far the active file is filled.
    fill: AtomicU64,
    /// Bytes of journal files emptied per second of work, the last time; 0 when it never was done.
    emptied_per_second: AtomicU64,
    /// Bytes of zeros written per second into the last new file; 0 when there was none.
    zeroed_per_second: AtomicU64,
}

impl Ring {
    pub(crate) fn new(sealed: VecDeque<Arc<JournalFile>>, spares: VecDeque<Spare>, next_slot: u32) -> Ring {
        let state = State { sealed, spares, next_slot, ..State::default() };
        Ring { state: Mutex::new(state), ..Ring::default() }
    }

    /// Goes on with a file that an earlier run has filled up to `fill`, which is no traffic of this one.
    pub(crate) fn set_active(&self, file: Arc<JournalFile>, fill: u64) {
        self.state.lock().active = Some(file);
        self.fill.store(fill, Ordering::Relaxed);
    }

    /// A file for the next generation, or `None` when this lane has to wait for one.
    pub(crate) fn take_spare(&self, urgent: bool) -> Option<Spare> {
        let mut state = self.state.lock();
        let spared = if urgent || (state.sealed.is_empty() && state.active.is_none()) { 0 } else { 1 };
        if state.spares.len() > spared {
            return state.spares.pop_front();
        }
        state.wait();
        state.starving |= urgent;
        self.wanted.notify_all();
        None
    }

    /// True when the normal lane may write into the active file.
    pub(crate) fn is_open(&self) -> bool {
        let mut state = self.state.lock();
        let open = !state.spares.is_empty() || state.sealed.is_empty();
        if !open {
            state.wait();
            self.wanted.notify_all();
        }
        open
    }

    /// The active file is full; `next` takes its place.
    pub(crate) fn rolled(&self, next: Arc<JournalFile>) {
        let mut state = self.state.lock();
        self.fill.store(0, Ordering::Relaxed);
        let full = state.active.replace(next);
        state.sealed.extend(full);
        self.wanted.notify_all();
    }

    /// How far the active file is filled, in bytes.
    pub(crate) fn set_fill(&self, bytes: u64) {
        let before = self.fill.swap(bytes, Ordering::Relaxed);
        let mut state = self.state.lock();
        state.note_fill(bytes.saturating_sub(before));
        if let Some(active) = &state.active {
            let marks = [active.bytes / GROW_AT_PART, active.bytes / 2];
            if marks.iter().any(|mark| before < *mark && bytes >= *mark) {
                self.wanted.notify_all();
            }
        }
    }

    /// The file of a generation, by its low half.
    pub(crate) fn find(&self, tag: u32) -> Option<Arc<JournalFile>> {
        let state = self.state.lock();
        state.active.iter().chain(&state.sealed).find(|file| file.generation as u32 == tag).cloned()
    }

    /// Generation of the oldest file in use.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let state = self.state.lock();
        state.sealed.front().or(state.active.as_ref()).map(|file| file.generation)
    }

    /// The oldest sealed file is empty: it becomes a spare. Heard twice when emptying it was tried again while the
    /// first word of it still waited for room.
    pub(crate) fn freed(&self, generation: u64) {
        let mut state = self.state.lock();
        if state.sealed.front().is_none_or(|oldest| oldest.generation != generation) {
            return;
        }
        let Some(file) = state.sealed.pop_front() else { return };
        state.spares.push_back(Spare { slot: file.slot, bytes: file.bytes, file: Arc::clone(&file.file) });
        state.waiting = false;
        state.starving = false;
    }

    /// A new file is ready.
    pub(crate) fn added(&self, spare: Spare) {
        let mut state = self.state.lock();
        state.spares.push_back(spare);
        state.waiting = false;
        state.starving = false;
    }

    /// The number of a file that is about to be created.
    pub(crate) fn new_slot(&self) -> u32 {
        let mut state = self.state.lock();
        state.next_slot += 1;
        state.next_slot - 1
    }

    /// Files in all.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().files()
    }

    /// True when the writer waits, or the next turn would leave the ring without a spare.
    pub(crate) fn is_pressed(&self) -> bool {
        let state = self.state.lock();
        let filling = state.active.as_ref().is_some_and(|f| self.fill.load(Ordering::Relaxed) > f.bytes / 2);
        state.waiting || (filling && state.spares.len() < SPARES_TO_TURN)
    }

    /// True when it is pressed and has no time to lose: no resting then. At the rate it goes there is not much more
    /// time until the next turn than making room for it takes, or the writer is held back already.
    pub(crate) fn is_hurried(&self) -> bool {
        if !self.is_pressed() {
            return false;
        }
        let state = self.state.lock();
        let Some(active) = state.active.as_ref().filter(|_| !state.waiting) else { return true };
        if state.held_back.is_some_and(|at| at.elapsed() < HELD_BACK_COUNTS) {
            return true;
        }
        let left = active.bytes.saturating_sub(self.fill.load(Ordering::Relaxed));
        let known = |rate: &AtomicU64| Some(rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0);
        let zeroed = known(&self.zeroed_per_second).map(|rate| rate / 2);
        let emptied = known(&self.emptied_per_second).or(zeroed).unwrap_or(EMPTIED_GUESS);
        // left / fill_rate < TURN_SLACK * bytes / emptied
        u128::from(left) * u128::from(emptied)
            < u128::from(TURN_SLACK) * u128::from(active.bytes) * u128::from(state.fill_rate)
    }

    /// The writer was made to write more slowly than it could: see [`Ring::fair_time`].
    pub(crate) fn note_held_back(&self) {
        self.state.lock().held_back = Some(Instant::now());
    }

    /// True when a new file should be made before anything else.
    pub(crate) fn is_short(&self, options: &LogOptions) -> bool {
        self.is_pressed() && matches!(self.need(options), Need::File)
    }

    /// See [`Need`]. Emptying a file and zero-filling a new one cost about the same disk time, so a ring that is short of
    /// files rather empties, unless that is much slower (many groups, or nothing committed); what it lacked it gets
    /// when there is time.
    pub(crate) fn need(&self, options: &LogOptions) -> Need {
        let pressed = self.is_pressed();
        let emptied = self.emptied_per_second.load(Ordering::Relaxed);
        let slow = emptied > 0 && emptied < self.zeroed_per_second.load(Ordering::Relaxed) / 2;
        let state = self.state.lock();
        let files = state.files();
        let fill = self.fill.load(Ordering::Relaxed);
        let grows = state.active.as_ref().is_some_and(|file| fill >= file.bytes / GROW_AT_PART);
        let few = files < FILES_TO_TURN && (grows || pressed) && state.spares.len() < SPARES_TO_TURN;
        let missed = !pressed && files < state.wish;
        if state.starving || files < options.files_min || (files < options.files_max && (few || missed)) {
            return Need::File;
        }
        if state.spares.len() >= state.spares_wanted(options) {
            return Need::Nothing;
        }
        match state.sealed.front() {
            Some(_) if pressed && slow && files < options.files_max => Need::File,
            Some(oldest) => Need::Retire(Arc::clone(oldest)),
            None => Need::Nothing,
        }
    }

    /// So many bytes of a file were emptied, in so much time of work.
    pub(crate) fn note_emptied(&self, bytes: u64, took: Duration) {
        self.emptied_per_second.store(rate(bytes, took), Ordering::Relaxed);
    }

    /// A new file was zero-filled.
    pub(crate) fn note_zeroed(&self, bytes: u64, took: Duration) {
        self.zeroed_per_second.store(rate(bytes, took), Ordering::Relaxed);
    }

    /// How long writing `bytes` should take so that the ring does not run dry: nothing while the next turn is safe,
    /// then as long as emptying them takes. A writer that slows down in time never has to stop.
    pub(crate) fn fair_time(&self, bytes: u64) -> Duration {
        let rate = self.emptied_per_second.load(Ordering::Relaxed);
        let spares = self.state.lock().spares.len();
        if rate == 0 || spares >= SPARES_TO_TURN {
            return Duration::ZERO;
        }
        let share = (spares + 1) as f64 / SPARES_TO_TURN as f64;
        Duration::from_secs_f64(bytes as f64 / (rate as f64 * share)).min(FAIR_MAX)
    }

    /// Bytes per second that go into the journal.
    pub(crate) fn fill_rate(&self) -> u64 {
        self.state.lock().fill_rate
    }

    /// Sleeps for `rest`, or until the ring is hurried or stops.
    pub(crate) fn rest(&self, rest: Duration) {
        let until = Instant::now() + rest;
        loop {
            let mut state = self.state.lock();
            if state.stopping || state.waiting || self.wanted.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }

    /// Sleeps until something may be needed, at most `wait`.
    pub(crate) fn wait(&self, wait: Duration) {
        let mut state = self.state.lock();
        self.wanted.wait_for(&mut state, wait);
    }

    /// Wakes whoever sleeps in [`Ring::wait`].
    pub(crate) fn wake(&self) {
        let _held = self.state.lock();
        self.wanted.notify_all();
    }

    /// The background is to end.
    pub(crate) fn stop(&self) {
        self.state.lock().stopping = true;
        self.wanted.notify_all();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.state.lock().stopping
    }

    /// True when the normal lane waits for a file.
    pub(crate) fn is_waiting(&self) -> bool {
        self.state.lock().waiting
    }

    /// Takes a spare out of the ring for good when there are more files than there should be.
    pub(crate) fn shrink(&self, options: &LogOptions) -> Option<Spare> {
        let mut state = self.state.lock();
        if state.files() > options.files_max && state.spares.len() > state.spares_wanted(options) {
            return state.spares.pop_back();
        }
        None
    }

    /// True when the urgent lane waits for a file.
    pub(crate) fn is_starving(&self) -> bool {
        self.state.lock().starving
    }

    /// True when every entry of the file at `tag` is out of the writer's reach: it is sealed.
    pub(crate) fn is_sealed(&self, tag: u32) -> bool {
        self.state.lock().sealed.iter().any(|file| file.generation as u32 == tag)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::sim::SimVfs;
    use crate::vfs::{Open, Vfs};

    fn file(vfs: &SimVfs, slot: u32, generation: u64, bytes: u64) -> Arc<JournalFile> {
        let file = vfs.open(Path::new(&format!("/j/{slot}")), Open::Fresh).unwrap();
        Arc::new(JournalFile { slot, generation, bytes, start: 0, file, groups: Mutex::default() })
    }

    /// A small ring that fills slowly grows early and without haste; a guess that was too low made it hurry.
    #[test]
    fn a_small_ring_grows_early_and_slowly() {
        let vfs = SimVfs::new();
        vfs.create_dir_all(Path::new("/j")).unwrap();
        let (bytes, options) = (32 << 20, LogOptions::default());
        let spare = file(&vfs, 1, 0, bytes);
        let ring = Ring::new(VecDeque::new(), [Spare { slot: 1, bytes, file: Arc::clone(&spare.file) }].into(), 2);
        ring.set_active(file(&vfs, 0, 1, bytes), 0);
        ring.note_zeroed(bytes, Duration::from_millis(100));
        ring.state.lock().fill_rate = 4 << 20;
        assert!(matches!(ring.need(&options), Need::Nothing));
        ring.fill.store(bytes / GROW_AT_PART, Ordering::Relaxed);
        assert!(matches!(ring.need(&options), Need::File));
        assert!(!ring.is_hurried());
        // Four seconds are left, and a file takes a fifth of one.
        ring.fill.store(bytes / 2 + 1, Ordering::Relaxed);
        assert!(ring.is_pressed() && !ring.is_hurried());
        ring.fill.store(bytes / 16 * 15, Ordering::Relaxed);
        assert!(ring.is_hurried());
    }

    /// A full disk can end the wait for a Freed frame that is queued already; the next attempt queues another.
    #[test]
    fn a_file_that_is_given_free_twice_frees_no_other() {
        let vfs = SimVfs::new();
        vfs.create_dir_all(Path::new("/j")).unwrap();
        let file = vfs.open(Path::new("/j/0000.journal"), Open::Fresh).unwrap();
        let of = |slot: u32, generation| {
            let (file, groups) = (Arc::clone(&file), Mutex::default());
            Arc::new(JournalFile { slot, generation, bytes: 1 << 16, start: 0, file, groups })
        };
        let ring = Ring::new([of(0, 7), of(1, 8)].into(), VecDeque::new(), 2);
        ring.freed(7);
        ring.freed(7);
        assert!(!ring.is_sealed(7) && ring.is_sealed(8) && ring.len() == 2);
        ring.freed(8);
        ring.freed(8);
        assert!(!ring.is_sealed(8) && ring.len() == 2);
    }
}
