//! Writing a small batch past the page cache, durable when the write returns: one trip to the disk instead of two,
//! and no page to read first when the cache has dropped it.
//!
//! Such a write begins and ends at a block boundary and comes from aligned memory. The writer fills the batch up to
//! the boundary with a frame of its own ([`crate::frame::Kind::Pad`]), so a block that holds something durable is
//! never written again: a write that tears can't touch what was acknowledged.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;

use crate::frame::{HEADER, Head, Kind};
use crate::types::GroupId;
use crate::vfs::VfsFile;

/// Unit and alignment of direct I/O.
pub(crate) const BLOCK: u64 = 4096;
/// Larger batches go through the page cache: their cost is the bytes, not the trips.
const DIRECT_MAX: usize = 64 << 10;

/// A frame of `size` bytes that says nothing; at most a header more than a block.
pub(crate) fn pad_of(size: u64) -> (Head, Bytes) {
    let zeros = Bytes::from_static(&[0; BLOCK as usize]).slice(..size as usize - HEADER);
    let (len, payload_crc) = (zeros.len() as u32, crc32fast::hash(&zeros));
    (Head { len, payload_crc, ..Head::bare(Kind::Pad, GroupId::default()) }, zeros)
}

/// A file opened for direct writes, and aligned memory to write from.
pub(crate) struct Direct {
    file: Arc<dyn VfsFile>,
    memory: Vec<u8>,
    /// Where the aligned part of `memory` begins.
    base: usize,
}

impl Direct {
    pub(crate) fn new(file: Arc<dyn VfsFile>) -> Direct {
        let memory = vec![0; DIRECT_MAX + BLOCK as usize];
        let base = memory.as_ptr().align_offset(BLOCK as usize).min(BLOCK as usize);
        Direct { file, memory, base }
    }

    /// True when a batch of `len` bytes at `pos` can and should go this way.
    pub(crate) fn takes(pos: u64, len: usize) -> bool {
        len <= DIRECT_MAX && pos.is_multiple_of(BLOCK) && (len as u64).is_multiple_of(BLOCK)
    }

    /// True when a failed write only says that this device or file system does not take writes of this kind: nothing
    /// is uncertain then, and the same bytes can go through the page cache.
    pub(crate) fn is_refusal(error: &io::Error) -> bool {
        matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
    }

    /// Writes `slices` at `pos`, durably; [`Direct::takes`] said that it can.
    pub(crate) fn write(&mut self, slices: &[IoSlice<'_>], pos: u64) -> io::Result<()> {
        let buf = &mut self.memory[self.base..];
        let mut at = 0;
        for slice in slices {
            buf[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        }
        self.file.write_at(&[IoSlice::new(&buf[..at])], pos)
    }
}
