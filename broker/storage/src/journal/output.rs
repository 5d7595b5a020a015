//! The way of a batch from the writer to the disk: padding, the write, the sync, and what is told to whom afterwards.
//!
//! Invariants: callbacks run in the order of the operations, after the sync that covers them; a direct write happens only
//! behind what is durable, so that the frame chain never gets a hole.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::active::Active;
use super::direct::Direct;
use super::writer::Writer;

impl Writer {
    /// Fills the batch up to a block boundary, so that it, or the next one, can be written directly.
    fn pad(&mut self) {
        if self.batch.bytes > 0
            && let Some((head, zeros)) = self.active.as_ref().and_then(Active::padding)
        {
            self.encode(&head, &zeros);
        }
    }

    /// Writes the batch, and syncs and completes everything written so far when asked to.
    pub(super) fn flush(&mut self, sync: bool) -> io::Result<()> {
        if sync {
            self.pad();
        }
        self.write_out(sync)
    }

    pub(super) fn write_out(&mut self, sync: bool) -> io::Result<()> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if self.batch.bytes > 0 {
            let slices = self.batch.slices();
            let (start, len) = (self.batch.start, self.batch.bytes);
            // Only behind what is durable: the frame chain must not get a hole.
            let may = sync && active.synced == start && Direct::takes(start, len);
            let began = Instant::now();
            match active.direct.as_mut().filter(|_| may).map(|direct| direct.write(&slices, start)) {
                Some(Ok(())) => {
                    active.synced = active.pos;
                    self.core.stats.note_sync(began.elapsed());
                    self.core.stats.direct_writes.fetch_add(1, Relaxed);
                }
                Some(Err(error)) if !Direct::is_refusal(&error) => return Err(error),
                refused => {
                    if let Some(Err(error)) = refused {
                        tracing::warn!(%error, "the disk refuses direct writes: the journal goes through the page cache");
                        (active.direct, self.refuses_direct) = (None, true);
                    }
                    active.file.file.write_at(&slices, start)?;
                }
            }
            let stats = &self.core.stats;
            stats.journal_bytes.fetch_add(self.batch.bytes as u64, Relaxed);
            stats.frames.fetch_add(self.batch.frames, Relaxed);
            self.core.ring.set_fill(active.pos);
        }
        let pos = active.pos;
        self.unsynced.append(&mut self.batch.finished);
        self.settle();
        self.batch.restart(pos);
        if sync {
            self.sync()?;
        } else if !self.unsynced.is_empty() && self.deadline.is_none() {
            self.deadline = Some(Instant::now() + self.core.options.flush_interval);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if active.synced < active.pos {
            let began = Instant::now();
            active.file.file.sync_data()?;
            active.synced = active.pos;
            self.core.stats.note_sync(began.elapsed());
        }
        self.deadline = None;
        for finished in std::mem::take(&mut self.unsynced) {
            finished.group.on_durable(&self.core, finished.epoch, &finished.effect);
            if let Some(done) = finished.done {
                done(Ok(()));
            }
        }
        Ok(())
    }

    /// What was written has a place now: it can be read from disk and evicted from memory.
    fn settle(&mut self) {
        for placed in self.batch.placed.drain(..) {
            let last = placed.from + placed.slots.len() as u64 - 1;
            placed.group.inner.lock().located(placed.epoch, placed.from, &placed.slots);
            self.core.cache.note(placed.group, last, placed.cost);
        }
        for moved in self.batch.moved.drain(..) {
            let mut inner = moved.group.inner.lock();
            if let Some(slot) = inner.slots.get_mut(moved.index)
                && slot.tag == moved.from
                && slot.term == moved.slot.term
            {
                *slot = moved.slot;
            }
        }
        self.core.cache.trim();
        if self.batch.released > 0 {
            self.core.queue.release(std::mem::take(&mut self.batch.released));
        }
    }
}
