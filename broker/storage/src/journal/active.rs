//! Where the journal is written: the newest file, and how far it is filled. Decides nothing about what is written.

use std::sync::Arc;

use bytes::Bytes;

use super::direct::{BLOCK, Direct, pad_of};
use super::ring::JournalFile;
use crate::frame::{Head, Place, size_of};

/// Where the writer stands.
pub(crate) struct Active {
    pub(crate) file: Arc<JournalFile>,
    pub(crate) place: Place,
    /// Where the next frame goes.
    pub(crate) pos: u64,
    /// Header crc of the last frame.
    pub(crate) prev: u32,
    /// Everything below is durable.
    pub(crate) synced: u64,
    /// For small batches, where the file system can do that.
    pub(crate) direct: Option<Direct>,
}

impl Active {
    /// The frame that fills the last block, where blocks are written directly and end in the middle. Never so long that
    /// it takes the room which the seal needs.
    pub(crate) fn padding(&self) -> Option<(Head, Bytes)> {
        self.direct.as_ref()?;
        let end = (self.pos + size_of(0)).next_multiple_of(BLOCK);
        let fits = !self.pos.is_multiple_of(BLOCK) && end + size_of(0) <= self.file.bytes;
        fits.then(|| pad_of(end - self.pos))
    }

    /// True when not even the smallest frame fits in front of the seal.
    pub(crate) fn is_full(&self) -> bool {
        self.pos + 2 * size_of(0) > self.file.bytes
    }
}
