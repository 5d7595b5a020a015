//! Writing long runs into a segment past the page cache.
//!
//! What goes into a segment was read a moment ago and will be read again late, if ever. Through the page cache each such
//! write takes new pages from the kernel and pushes others out; on a virtual machine whose free memory belongs to the
//! host that cost more than everything else that a broker under full load did (docs/decisions/0009).
//!
//! ```text
//!            start                                    end
//!   ┌──────────┼───────────────────┬───────────────────┼────────┐
//!   │ kept     │ the run           │                   │ zeros  │   all of it in whole blocks
//!   └──────────┴───────────────────┴───────────────────┴────────┘
//! ```
//! The first block may hold the end of what was written before: it is read, and written again with the same bytes, as the
//! kernel would do with its page. Behind the end stand zeros, which belong to nobody, like everything behind a growing
//! segment's end. Nothing is durable before the segment is synced.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::Segment;
use crate::journal::direct::{BLOCK, Direct};
use crate::shared::Core;
use crate::vfs::VfsFile;

/// Bytes of one write.
const CHUNK: usize = 1 << 20;

/// Aligned memory, and the file that was written last.
#[derive(Default)]
pub(crate) struct Bulk {
    memory: Vec<u8>,
    /// Where the aligned part of `memory` begins.
    base: usize,
    file: Option<(Arc<Segment>, Arc<dyn VfsFile>)>,
    /// The file system does not take such writes.
    refused: bool,
}

impl Bulk {
    /// Writes `slices`, `len` bytes together, at `start` of `segment`, which `file` is open on; false when they should go
    /// through the page cache, and nothing is written then. Short runs should: many of them share one sync of the file system.
    pub(crate) fn write(
        &mut self,
        core: &Core,
        (segment, file): (&Arc<Segment>, &dyn VfsFile),
        (start, len): (u64, u64),
        slices: &[IoSlice<'_>],
    ) -> io::Result<bool> {
        if self.refused || !core.options.direct_io || len < core.options.bulk_bytes {
            return Ok(false);
        }
        let Some(direct) = self.open(core, segment) else {
            self.refused = true;
            return Ok(false);
        };
        match self.write_blocks(&*direct, file, start, slices) {
            Ok(()) => Ok(true),
            Err(error) if Direct::is_refusal(&error) => {
                tracing::warn!(%error, "the disk refuses direct writes: segments go through the page cache");
                (self.refused, self.file) = (true, None);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Lets go of the file: it may be closed or removed.
    pub(crate) fn forget(&mut self) {
        self.file = None;
    }

    /// By segment, not by name: another file may get the name of one that is gone.
    fn open(&mut self, core: &Core, segment: &Arc<Segment>) -> Option<Arc<dyn VfsFile>> {
        if let Some((known, file)) = &self.file
            && Arc::ptr_eq(known, segment)
        {
            return Some(Arc::clone(file));
        }
        let file = core.vfs.open_direct(&segment.path, false)?;
        self.file = Some((Arc::clone(segment), Arc::clone(&file)));
        Some(file)
    }

    fn write_blocks(
        &mut self,
        direct: &dyn VfsFile,
        file: &dyn VfsFile,
        start: u64,
        slices: &[IoSlice<'_>],
    ) -> io::Result<()> {
        if self.memory.is_empty() {
            self.memory = vec![0; CHUNK + BLOCK as usize];
            self.base = self.memory.as_ptr().align_offset(BLOCK as usize).min(BLOCK as usize);
        }
        let buf = &mut self.memory[self.base..self.base + CHUNK];
        let mut pos = start - start % BLOCK;
        let mut filled = (start - pos) as usize;
        if file.read_at(&mut buf[..filled], pos)? < filled {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a segment is shorter than what was written to it",
            ));
        }
        for slice in slices {
            let mut rest: &[u8] = slice;
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(CHUNK - filled));
                buf[filled..filled + now.len()].copy_from_slice(now);
                (filled, rest) = (filled + now.len(), later);
                if filled == CHUNK {
                    direct.write_at(&[IoSlice::new(buf)], pos)?;
                    (pos, filled) = (pos + CHUNK as u64, 0);
                }
            }
        }
        let whole = filled.next_multiple_of(BLOCK as usize);
        buf[filled..whole].fill(0);
        if whole > 0 { direct.write_at(&[IoSlice::new(&buf[..whole])], pos) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::sim::SimVfs;
    use crate::vfs::{Open, Vfs as _, read_vec};

    #[test]
    fn runs_of_any_length_at_any_place_change_nothing_before_them() {
        let vfs = SimVfs::new();
        let (dir, path) = (Path::new("/d"), Path::new("/d/segment"));
        vfs.create_dir_all(dir).unwrap();
        let file = vfs.open(path, Open::Fresh).unwrap();
        let direct = vfs.open_direct(path, false).unwrap();
        let mut bulk = Bulk::default();
        let mut want = Vec::new();
        let chunk = CHUNK as u64;
        for (number, len) in [1, 4095, 4096, chunk - 8192, 8, chunk, 3 * chunk + 17, 5000].into_iter().enumerate() {
            let run: Vec<u8> = (0..len).map(|at| (at * 7 + number as u64) as u8).collect();
            let (a, b) = run.split_at(run.len() / 3);
            let slices = [IoSlice::new(a), IoSlice::new(&[]), IoSlice::new(b)];
            // The file system in memory refuses what is not in whole blocks.
            bulk.write_blocks(&*direct, &*file, want.len() as u64, &slices).unwrap();
            want.extend_from_slice(&run);
            let end = want.len().next_multiple_of(BLOCK as usize);
            let found = read_vec(&*file, 0, end + 1).unwrap();
            assert_eq!(found.len(), end);
            assert!(
                found[..want.len()] == want[..] && found[want.len()..].iter().all(|byte| *byte == 0),
                "run {number}"
            );
        }
        let short = vfs.open(Path::new("/d/short"), Open::Fresh).unwrap();
        let lost = bulk.write_blocks(&*direct, &*short, 100, &[IoSlice::new(&[1; 10])]);
        assert_eq!(lost.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
