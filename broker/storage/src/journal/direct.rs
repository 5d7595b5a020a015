//! Writing a small batch past the page cache, durable when the write returns: one trip to the disk instead of two.
//!
//! Such writes begin and end at block boundaries and come from aligned memory. The block that the journal ends in is
//! therefore written again with each batch, with the same bytes in front of the new ones, and zeros behind.
//!
//! Invariant: used only while everything in front of the batch is durable. Rewriting the last block can then tear
//! nothing that was acknowledged: its sectors are rewritten with the bytes they hold.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::vfs::VfsFile;

/// Unit and alignment of direct I/O.
const BLOCK: usize = 4096;
/// Larger batches go through the page cache: their cost is the bytes, not the trips.
pub(crate) const DIRECT_MAX: usize = 64 << 10;

/// A file opened for direct writes, and the bytes of the block the journal ends in.
pub(crate) struct Direct {
    file: Arc<dyn VfsFile>,
    memory: Vec<u8>,
    /// Where the aligned part of `memory` begins.
    base: usize,
    /// The journal's end as of the last write here; the bytes of its last block in front of it are in memory.
    end: Option<u64>,
}

impl Direct {
    pub(crate) fn new(file: Arc<dyn VfsFile>) -> Direct {
        let memory = vec![0; DIRECT_MAX + 3 * BLOCK];
        let base = memory.as_ptr().align_offset(BLOCK).min(BLOCK);
        Direct { file, memory, base, end: None }
    }

    /// Writes `slices` at `pos`, durably. `buffered` is the same file, to read the block in front of `pos` from.
    pub(crate) fn write(&mut self, buffered: &dyn VfsFile, slices: &[IoSlice<'_>], pos: u64) -> io::Result<()> {
        let head = (pos % BLOCK as u64) as usize;
        let start = pos - head as u64;
        let buf = &mut self.memory[self.base..];
        if self.end.take() != Some(pos) && buffered.read_at(&mut buf[..head], start)? != head {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = head;
        for slice in slices {
            buf[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        }
        let whole = at.next_multiple_of(BLOCK);
        buf[at..whole].fill(0);
        self.file.write_at(&[IoSlice::new(&buf[..whole])], start)?;
        let last = at / BLOCK * BLOCK;
        buf.copy_within(last..at, 0);
        self.end = Some(start + at as u64);
        Ok(())
    }
}
