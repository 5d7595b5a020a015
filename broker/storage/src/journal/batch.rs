//! What goes to the journal in one vectored write: frame headers and small payloads gathered, large payloads by
//! reference.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;

use crate::frame::{HEADER, padding};
use crate::group::Slot;
use crate::hard::SegmentEnd;
use crate::shared::Group;
use crate::types::FlushCallback;

/// Payloads below this are copied next to their header: cheaper than two more slices.
const GATHER_BELOW: usize = 4096;

enum Piece {
    /// A range of the arena.
    Gathered(usize, usize),
    Payload(Bytes),
}

/// Entries of one operation that got their place in this batch.
pub(crate) struct Placed {
    pub(crate) group: Arc<Group>,
    pub(crate) epoch: u64,
    pub(crate) from: u64,
    pub(crate) slots: Vec<Slot>,
    pub(crate) cost: usize,
}

/// An entry that moved to the journal's head.
pub(crate) struct Moved {
    pub(crate) group: Arc<Group>,
    pub(crate) index: u64,
    /// Tag of the file it left.
    pub(crate) from: u32,
    pub(crate) slot: Slot,
}

/// What an operation means once it is durable.
pub(crate) enum Effect {
    /// Entries below this index.
    Entries(u64),
    Cut,
    /// Entries below this index are gone.
    Purge(u64),
    Retired(SegmentEnd),
    Remove,
    Freed(u64),
    /// Nothing is left of a removed group.
    Forgotten,
    Nothing,
}

/// An operation that is completely written.
pub(crate) struct Finished {
    pub(crate) group: Arc<Group>,
    pub(crate) epoch: u64,
    pub(crate) effect: Effect,
    pub(crate) done: Option<FlushCallback>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Batch {
    /// Where in the file it begins.
    pub(crate) start: u64,
    pieces: Vec<Piece>,
    arena: Vec<u8>,
    pub(crate) bytes: usize,
    pub(crate) frames: u64,
    pub(crate) placed: Vec<Placed>,
    pub(crate) moved: Vec<Moved>,
    pub(crate) finished: Vec<Finished>,
    /// Queue bytes this batch gives back.
    pub(crate) released: usize,
    /// Somebody waits for it.
    pub(crate) sync: bool,
}

impl Batch {
    pub(crate) fn push(&mut self, header: &[u8; HEADER], payload: &Bytes) {
        self.gather(header);
        if payload.len() < GATHER_BELOW {
            self.gather(payload);
        } else {
            self.bytes += payload.len();
            self.pieces.push(Piece::Payload(payload.clone()));
        }
        self.gather(padding(payload.len()));
        self.frames += 1;
    }

    /// Appends bytes to the arena.
    pub(crate) fn gather(&mut self, bytes: &[u8]) {
        let from = self.arena.len();
        self.arena.extend_from_slice(bytes);
        self.bytes += bytes.len();
        match self.pieces.last_mut() {
            Some(Piece::Gathered(_, end)) if *end == from => *end = self.arena.len(),
            _ => self.pieces.push(Piece::Gathered(from, self.arena.len())),
        }
    }

    pub(crate) fn slices(&self) -> Vec<IoSlice<'_>> {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Gathered(from, to) => IoSlice::new(&self.arena[*from..*to]),
                Piece::Payload(bytes) => IoSlice::new(bytes),
            })
            .collect()
    }

    /// Empties it, keeping the memory unless it grew unusually large.
    pub(crate) fn restart(&mut self, start: u64) {
        let mut arena = std::mem::take(&mut self.arena);
        arena.clear();
        if arena.capacity() > 4 << 20 {
            arena.shrink_to(1 << 20);
        }
        *self = Batch { start, arena, ..Batch::default() };
    }
}
