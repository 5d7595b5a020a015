//! The background: new journal files, emptying old ones, unlinking what retention and removal left behind, and, when there
//! is nothing else to do, rewriting segments.
//!
//! One thread, one thing at a time, so that nothing here has to be locked against itself. It never touches the hot
//! path: what it needs written goes through the journal's urgent lane like everything else. A full disk makes it wait
//! and try again; only a failed sync, or a failure that leaves a file's content uncertain, stops the engine.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

use crate::journal::recovery::file_name;
use crate::journal::ring::{Need, Spare};
use crate::options::Drive;
use crate::queue::{Op, Pending};
use crate::segment::{Bulk, rewrite::Rewriting, writer::Touched};
use crate::shared::{Core, Group};
use crate::types::FlushCallback;
use crate::vfs::{Open, Vfs};

/// Bytes of zeros between two syncs of a new file, when the ring is short of files.
const ZERO_STEP: u64 = 4 << 20;
/// The same when there is time: the journal's next sync waits for the disk that much less.
const ZERO_STEP_QUIET: u64 = 512 << 10;
/// After a failure nothing is tried for so long.
const BACK_OFF: Duration = Duration::from_millis(500);

/// Something to be done that is not about the ring.
#[derive(Debug)]
pub(crate) enum Job {
    /// A purge became durable: segments below it can go.
    Unlink(Arc<Group>),
    /// A removal became durable: all of the group's files can go.
    Remove(Arc<Group>),
}

/// With [`Drive::Manual`]: runs the writer once, false when there is nothing it can do.
pub(crate) type Pump<'a> = Option<&'a mut dyn FnMut() -> bool>;

/// See the module.
pub(crate) struct Upkeep {
    pub(crate) core: Arc<Core>,
    /// Written to segments, not yet synced.
    pub(crate) touched: Touched,
    /// The way of long runs.
    pub(crate) bulk: Bulk,
    /// Time of the current retiring that was not work on it.
    pub(crate) rested: Duration,
    /// The segment that is being rewritten.
    pub(crate) rewriting: Option<Rewriting>,
    /// Nothing is tried before.
    rest_until: Option<Instant>,
    /// The disk was full: said once.
    said_full: bool,
}

impl Upkeep {
    pub(crate) fn new(core: Arc<Core>) -> Upkeep {
        Upkeep {
            core,
            touched: Touched::default(),
            bulk: Bulk::default(),
            rested: Duration::ZERO,
            rewriting: None,
            rest_until: None,
            said_full: false,
        }
    }

    /// Runs until the ring is told to stop or the engine failed.
    pub(crate) fn run(mut self) {
        while !self.core.ring.is_stopping() && self.core.stopped().is_none() {
            let now = Instant::now();
            match self.rest_until.filter(|at| *at > now) {
                Some(at) => self.core.ring.wait(at - now),
                None if !self.step(None) => self.core.ring.wait(Duration::from_secs(1)),
                None => {}
            }
        }
    }

    /// Does one thing; false when there was nothing to do or it could not be done now.
    pub(crate) fn step(&mut self, pump: Pump<'_>) -> bool {
        let result = match self.core.next_job() {
            Some(job) => self.run_job(job).map(|()| true),
            None => match self.core.ring.need(&self.core.options) {
                Need::Nothing => self.shrink().map(|worked| worked || self.rewrite()),
                Need::File => self.add_file().map(|()| true),
                Need::Retire(file) => self.retire(&file, pump).inspect(|_| {
                    // A ring that never rests must not keep it for ever.
                    let _ = !self.core.ring.is_hurried() && self.rewrite();
                }),
            },
        };
        match result {
            Ok(worked) => {
                self.said_full &= !worked;
                let idle = matches!(self.core.ring.need(&self.core.options), Need::Nothing);
                self.rest_until = (!worked && !idle).then(|| Instant::now() + BACK_OFF / 10);
                worked
            }
            Err(error) => {
                self.on_error(&error);
                false
            }
        }
    }

    fn on_error(&mut self, error: &io::Error) {
        self.rest_until = Some(Instant::now() + BACK_OFF);
        if self.core.stopped().is_some() || error.kind() == io::ErrorKind::BrokenPipe {
            return;
        }
        if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            self.core.poison("move entries into segments", error);
        } else if !std::mem::replace(&mut self.said_full, true) {
            tracing::warn!(dir = %self.core.dir.display(), "disk is full: entries stay in the journal until there is room");
        }
    }

    fn run_job(&mut self, job: Job) -> io::Result<()> {
        self.bulk.forget();
        match job {
            Job::Unlink(group) => group.history.unlink(&self.core, &group),
            Job::Remove(group) => {
                group.history.destroy(&self.core)?;
                let _ = self.core.queue.push_urgent(Pending::new(&group, Op::Forget, 0)); // else at the next start
                Ok(())
            }
        }
    }

    /// Adds a zero-filled file to the ring.
    pub(crate) fn add_file(&self) -> io::Result<()> {
        let mut worked = Duration::ZERO;
        let mut pace = |took, written| {
            worked += took;
            self.core.rest_after(took, written);
            if self.core.ring.is_hurried() { ZERO_STEP } else { ZERO_STEP_QUIET }
        };
        let slot = self.core.ring.new_slot();
        let dir = self.core.journal_dir();
        let spare =
            new_file(&*self.core.vfs, &dir, slot, self.core.options.file_bytes, &mut pace).inspect_err(|_| {
                let _ = self.core.vfs.remove_file(&dir.join(file_name(slot)).with_extension("new"));
            })?;
        self.core.ring.note_zeroed(spare.bytes, worked);
        self.core.ring.added(spare);
        self.core.queue.wake();
        Ok(())
    }

    /// Removes a file that the ring needed once and has no use for now.
    fn shrink(&self) -> io::Result<bool> {
        let Some(spare) = self.core.ring.shrink(&self.core.options) else { return Ok(false) };
        let dir = self.core.journal_dir();
        self.core.vfs.remove_file(&dir.join(file_name(spare.slot)))?;
        self.core.vfs.sync_dir(&dir)?;
        Ok(true)
    }

    /// Waits until an urgent operation is durable, making room for it when the ring has none.
    pub(crate) fn wait(&self, done: &Receiver<io::Result<()>>, pump: &mut Pump<'_>) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the journal's writer is gone");
        loop {
            match (&mut *pump, self.core.options.drive) {
                (Some(pump), Drive::Manual) => match done.try_recv() {
                    Ok(result) => return result,
                    Err(TryRecvError::Disconnected) => return Err(gone()),
                    Err(TryRecvError::Empty) if pump() => continue,
                    Err(TryRecvError::Empty) => {}
                },
                _ => match done.recv_timeout(Duration::from_millis(20)) {
                    Ok(result) => return result,
                    Err(RecvTimeoutError::Disconnected) => return Err(gone()),
                    Err(RecvTimeoutError::Timeout) => {}
                },
            }
            if self.core.ring.is_starving() {
                self.add_file()?;
            } else if pump.is_some() {
                return done.try_recv().unwrap_or_else(|_| Err(gone()));
            }
        }
    }
}

/// A callback and where its result arrives.
pub(crate) fn ticket() -> (FlushCallback, Receiver<io::Result<()>>) {
    let (sender, receiver) = channel();
    (Box::new(move |result| drop(sender.send(result))), receiver)
}

/// Creates a journal file full of zeros: rewriting blocks that exist costs a sync no metadata. `pace` is told how long
/// a step took and how many bytes it wrote, may rest, and says how many the next one may have.
pub(crate) fn new_file(
    vfs: &dyn Vfs,
    dir: &Path,
    slot: u32,
    bytes: u64,
    pace: &mut dyn FnMut(Duration, u64) -> u64,
) -> io::Result<Spare> {
    let path = dir.join(file_name(slot));
    let unfinished = path.with_extension("new");
    let file = vfs.open(&unfinished, Open::Fresh)?;
    let zeros = vec![0; ZERO_STEP.min(bytes) as usize];
    let (mut pos, mut took, mut len) = (0, Duration::ZERO, 0);
    while pos < bytes {
        len = pace(took, len).min(zeros.len() as u64).min(bytes - pos);
        let began = Instant::now();
        file.write_at(&[IoSlice::new(&zeros[..len as usize])], pos)?;
        file.sync_data()?;
        pos += len;
        took = began.elapsed();
    }
    vfs.rename(&unfinished, &path)?;
    vfs.sync_dir(dir)?;
    Ok(Spare { slot, bytes, file })
}

/// A pace that never rests, for a file that somebody waits for.
pub(crate) fn at_once(_: Duration, _: u64) -> u64 {
    ZERO_STEP
}
