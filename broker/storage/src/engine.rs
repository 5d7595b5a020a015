//! The engine: opens the folder, owns the threads, hands out groups.
//!
//! ```text
//!   GroupLog ── append, vote, cut ──▶ Queue ──▶ Writer (thread 1) ──▶ journal files
//!      │                                            │ retired, freed          ▲
//!      └── read ── memory, journal, segments        ▼                         │ zero-filled spares
//!                                     Upkeep (thread 2) ──▶ segments ── carried entries, segment ends
//! ```
//!
//! Invariants: one engine per folder (an exclusive lock); after the first failed write or sync every call fails and
//! the fatal hook was called once; closing makes everything queued durable before it returns.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::OpenError;
use crate::frame::size_of;
use crate::group::Inner;
use crate::hard::Snapshot;
use crate::journal::header::FileHeader;
use crate::journal::recovery::{RecoveryReport, recover};
use crate::journal::ring::Ring;
use crate::journal::writer::{Step, Writer};
use crate::log::GroupLog;
use crate::options::{Drive, LogOptions};
use crate::queue::{Op, Pending};
use crate::shared::Core;
use crate::types::{EngineStats, GroupId};
use crate::upkeep::{Upkeep, at_once, new_file};
use crate::vfs::{Vfs, VfsLock};

/// Who does the work.
enum Workers {
    Threads(std::thread::JoinHandle<()>, std::thread::JoinHandle<()>),
    Manual(Box<(Writer, Upkeep)>),
    None,
}

/// Ends with the last [`LogEngine`].
struct Life {
    core: Arc<Core>,
    workers: Mutex<Workers>,
    /// Released last.
    lock: Mutex<Option<Box<dyn VfsLock>>>,
}

/// The log engine of one node. Clones are the same engine; dropping the last one closes it.
#[derive(Clone)]
pub struct LogEngine {
    life: Arc<Life>,
}

impl std::fmt::Debug for LogEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogEngine({})", self.life.core.dir.display())
    }
}

impl LogEngine {
    /// Opens the folder, creating it when missing, and recovers what is in it. Blocking; reads at most the ring.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when the folder is in use, [`OpenError::Corrupt`] when durable bytes are damaged (nothing
    /// is changed then), and I/O errors.
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path, options: LogOptions) -> Result<(LogEngine, RecoveryReport), OpenError> {
        options.validate()?;
        let (journal, groups) = (dir.join("journal"), dir.join("groups"));
        for folder in [&journal, &groups] {
            vfs.create_dir_all(folder).map_err(OpenError::io("create", folder))?;
        }
        let lock_path = dir.join("LOCK");
        let lock = vfs.lock(&lock_path).map_err(OpenError::io("lock", &lock_path))?;
        let Some(lock) = lock else { return Err(OpenError::Locked(dir.to_owned())) };
        for folder in dir.parent().filter(|parent| !parent.as_os_str().is_empty()).into_iter().chain([dir]) {
            vfs.sync_dir(folder).map_err(OpenError::io("sync", folder))?;
        }
        let folders = vfs.list(&groups).map_err(OpenError::io("list", &groups))?;
        let mut found = recover(&*vfs, &journal, options.file_bytes, !folders.is_empty())?;
        let full = found.active.as_ref().is_none_or(|active| active.is_full());
        if full && found.spares.is_empty() {
            let spare = new_file(&*vfs, &journal, found.next_slot, options.file_bytes, &mut at_once);
            found.spares.push_back(spare.map_err(OpenError::io("create a journal file in", &journal))?);
            found.next_slot += 1;
        }
        found.report.strays = strays(&groups, &folders, &found.written);
        let ring = Ring::new(found.sealed, found.spares, found.next_slot);
        if let Some(active) = &found.active {
            ring.set_active(Arc::clone(&active.file), active.pos);
        }
        let (drive, opened) = (options.drive, found.opened + 1);
        let core = Arc::new(Core::new(vfs, dir, options, ring, found.written.removed.clone()));
        core.restore(found.groups, &found.written);
        let mut writer = Writer::new(Arc::clone(&core), found.active, found.generation, opened, found.written);
        writer.begin().map_err(OpenError::io("write the journal in", &journal))?;
        let workers = start(&core, writer, drive).map_err(OpenError::io("start threads for", dir))?;
        let life = Life { core, workers: Mutex::new(workers), lock: Mutex::new(Some(lock)) };
        Ok((LogEngine { life: Arc::new(life) }, found.report))
    }

    fn core(&self) -> &Arc<Core> {
        &self.life.core
    }

    /// The log of a group, created empty when it is not known. The same log for the same id, every time.
    ///
    /// # Errors
    /// [`OpenError::Removed`] until nothing is left of a removed group, [`OpenError::TooManyGroups`] when the largest
    /// entry would no longer fit into a journal file behind the states of all groups.
    pub fn group(&self, id: GroupId) -> Result<GroupLog, OpenError> {
        let core = self.core();
        if let Some(text) = core.stopped() {
            return Err(OpenError::Stopped(text.to_owned()));
        }
        let mut groups = core.groups.write();
        if !groups.contains_key(&id) {
            let removed = core.removed.lock();
            if removed.contains(&id) {
                return Err(OpenError::Removed(id));
            }
            // Groups whose removal is not written yet still take their full room.
            let states = Snapshot::size_of(groups.len() + 1 + core.removing.lock().len(), removed.len());
            if FileHeader::data_start(states) + size_of(core.options.max_payload_bytes()) + size_of(0)
                > core.options.file_bytes
            {
                return Err(OpenError::TooManyGroups { groups: groups.len() + 1 });
            }
        }
        let group = groups.entry(id).or_insert_with(|| core.make_group(id, Inner::default()));
        Ok(GroupLog::new(Arc::clone(core), Arc::clone(group)))
    }

    /// Every group known, in order.
    pub fn groups(&self) -> Vec<GroupId> {
        let mut ids: Vec<GroupId> = self.core().groups.read().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Forgets a group; its files go in the background, and only then can the id be used again, for a new and empty
    /// log. Blocks until the removal is durable. Unknown ids are fine.
    pub fn remove_group(&self, id: GroupId) -> io::Result<()> {
        let core = self.core();
        let group = {
            let mut groups = core.groups.write();
            let Some(group) = groups.remove(&id) else { return Ok(()) };
            core.removed.lock().insert(id);
            core.removing.lock().push(Arc::clone(&group));
            group
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        {
            let mut inner = group.inner.lock();
            core.cache.dropped(inner.clear());
            inner.drops += 1;
            let done = Box::new(move |result| drop(sender.send(result)));
            let pending = Pending::new(&group, Op::Remove, inner.epoch).durable(Some(done));
            if core.queue.push(pending).is_err() {
                return Err(core.stopped_error().unwrap_or_else(|| io::Error::other("the log engine is closed")));
            }
        }
        group.changed.notify_waiters();
        let closed = || io::Error::new(io::ErrorKind::BrokenPipe, "the log engine was closed meanwhile");
        if core.options.drive == Drive::Manual {
            self.drive();
            let full = || io::Error::new(io::ErrorKind::WouldBlock, "queued: the journal has no room now");
            return receiver.try_recv().unwrap_or_else(|_| Err(full()));
        }
        receiver.recv().unwrap_or_else(|_| Err(closed()))
    }

    /// Bytes that can still be written on the folder's file system.
    pub fn free_disk_bytes(&self) -> u64 {
        self.core().vfs.available_bytes(&self.core().dir).unwrap_or(0)
    }

    /// True below the reserve: new data should be refused now, before the disk is full.
    pub fn is_disk_low(&self) -> bool {
        self.free_disk_bytes() < self.core().options.reserve_disk_bytes
    }

    /// Counters since it was opened.
    pub fn stats(&self) -> EngineStats {
        self.core().stats()
    }

    /// Sets what is called, once, when a write or sync failed. The process should exit there: what the kernel holds
    /// of this folder can no longer be trusted. Called at once when it already happened. Only the first hook counts.
    pub fn on_fatal(&self, hook: impl Fn(&str) + Send + Sync + 'static) {
        let core = self.core();
        if core.hook.set(Box::new(hook)).is_ok()
            && let (Some(text), Some(hook)) = (core.stopped(), core.hook.get())
        {
            hook(text);
        }
    }

    /// With [`Drive::Manual`]: does all work there is, then returns. Otherwise does nothing.
    pub fn drive(&self) {
        self.life.drive();
    }

    /// Makes everything queued durable, stops the threads and gives the folder free. Later calls fail. Idempotent.
    pub fn close(&self) {
        self.life.close();
    }
}

/// Folders below `groups/` that no group accounts for.
fn strays(dir: &Path, names: &[String], written: &Snapshot) -> Vec<PathBuf> {
    let known = |name: &String| {
        let id = u64::from_str_radix(name, 16).map(GroupId);
        id.is_ok_and(|id| written.groups.contains_key(&id) || written.removed.contains(&id))
    };
    names.iter().filter(|name| !known(name)).map(|name| dir.join(name)).collect()
}

fn start(core: &Arc<Core>, writer: Writer, drive: Drive) -> io::Result<Workers> {
    let upkeep = Upkeep::new(Arc::clone(core));
    if drive == Drive::Manual {
        return Ok(Workers::Manual(Box::new((writer, upkeep))));
    }
    let journal = std::thread::Builder::new().name("log-journal".to_owned()).spawn(move || writer.run())?;
    let upkeep = std::thread::Builder::new().name("log-upkeep".to_owned()).spawn(move || upkeep.run())?;
    Ok(Workers::Threads(journal, upkeep))
}

impl Life {
    fn drive(&self) {
        let mut workers = self.workers.lock();
        let Workers::Manual(both) = &mut *workers else { return };
        let (writer, upkeep) = &mut **both;
        loop {
            let wrote = match writer.step(false) {
                Ok(Step::Closed) => return,
                Ok(step) => step == Step::Busy,
                Err(error) => {
                    writer.fail(&error);
                    return;
                }
            };
            if !wrote && !upkeep.step(Some(&mut || pump(writer))) {
                return;
            }
        }
    }

    fn close(&self) {
        self.core.queue.close();
        self.drive();
        let workers = {
            let mut held = self.workers.lock();
            std::mem::replace(&mut *held, Workers::None)
        };
        match workers {
            Workers::None => return,
            Workers::Manual(both) => {
                let (mut writer, _) = *both;
                pump_until_closed(&mut writer);
            }
            Workers::Threads(journal, upkeep) => {
                // The upkeep goes on until the writer is done: the last writes may need the room it makes.
                if journal.thread().id() != std::thread::current().id() {
                    let _ = journal.join();
                }
                self.core.ring.stop();
                let _ = upkeep.join();
            }
        }
        self.core.rewrites.close();
        let closed = io::Error::new(io::ErrorKind::BrokenPipe, "closed");
        let _ = self.core.stopped.set(("it was closed".to_owned(), closed));
        self.core.groups.read().values().for_each(|group| group.changed.notify_waiters());
        self.lock.lock().take();
    }
}

/// Runs the writer once for an upkeep that waits; false when there is nothing more it can do.
fn pump(writer: &mut Writer) -> bool {
    match writer.step(false) {
        Ok(step) => step == Step::Busy,
        Err(error) => {
            writer.fail(&error);
            false
        }
    }
}

fn pump_until_closed(writer: &mut Writer) {
    loop {
        match writer.step(false) {
            Ok(Step::Closed) => {
                return writer.end(&io::Error::new(io::ErrorKind::BrokenPipe, "the log engine is closed"));
            }
            Ok(Step::NoRoom) => {
                return writer.end(&io::Error::new(io::ErrorKind::StorageFull, "the journal has no room"));
            }
            Ok(_) => {}
            Err(error) => return writer.fail(&error),
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.close();
    }
}
