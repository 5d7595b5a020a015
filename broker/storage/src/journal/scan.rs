//! Walking frames of one file, front to back, in large reads.
//!
//! Never decides what a bad frame means: it says what is at a position and leaves torn-or-damaged to the caller.

use std::io;

use bytes::Bytes;

use crate::frame::{ALIGN, HEADER, Place, Read, decode, u32_at};
use crate::vfs::{VfsFile, read_vec};

/// Bytes of one read.
const CHUNK: u64 = 2 << 20;

/// What stands at a position.
#[derive(Debug)]
pub(crate) enum Found {
    /// A frame whose payload is as it was written.
    Frame(Read, Bytes),
    /// A frame whose header is valid and whose payload is not.
    BadPayload(Read),
    /// Not a frame of this file, at this position, behind the frame before.
    Bad,
}

/// See the module.
pub(crate) struct Scanner<'a> {
    file: &'a dyn VfsFile,
    place: Place,
    pos: u64,
    end: u64,
    prev: Option<u32>,
    chunk: Bytes,
    chunk_pos: u64,
    read_bytes: u64,
    chunk_bytes: u64,
}

impl<'a> Scanner<'a> {
    /// Walks from `pos` to at most `end`; `prev` is the chain at `pos`, or `None` to take it from the first frame.
    pub(crate) fn new(file: &'a dyn VfsFile, place: Place, pos: u64, end: u64, prev: Option<u32>) -> Scanner<'a> {
        Scanner { file, place, pos, end, prev, chunk: Bytes::new(), chunk_pos: pos, read_bytes: 0, chunk_bytes: CHUNK }
    }

    /// Reads about so many bytes at once instead of the large default.
    pub(crate) fn reading(self, chunk_bytes: u64) -> Scanner<'a> {
        Scanner { chunk_bytes: chunk_bytes.clamp(16 << 10, CHUNK), ..self }
    }

    /// Where the next frame is looked for.
    pub(crate) fn pos(&self) -> u64 {
        self.pos
    }

    /// Header crc of the last frame.
    pub(crate) fn prev(&self) -> Option<u32> {
        self.prev
    }

    /// Bytes read so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The next frame; steps over it unless it is [`Found::Bad`].
    pub(crate) fn next(&mut self) -> io::Result<Found> {
        let head = self.window(HEADER as u64)?;
        let Some(read) = decode(&head, &self.place, self.pos) else { return Ok(Found::Bad) };
        if self.prev.is_some_and(|prev| prev != read.prev) || read.head.size() > self.end - self.pos {
            return Ok(Found::Bad);
        }
        let whole = self.window(read.head.size())?;
        let len = read.head.len as usize;
        let Some(payload) = whole.get(HEADER..HEADER + len) else { return Ok(Found::BadPayload(read)) };
        let good = crc32fast::hash(payload) == read.head.payload_crc;
        self.pos += read.head.size();
        self.prev = Some(read.crc);
        Ok(if good { Found::Frame(read, whole.slice(HEADER..HEADER + len)) } else { Found::BadPayload(read) })
    }

    /// `len` bytes from the current position, fewer at the end.
    fn window(&mut self, len: u64) -> io::Result<Bytes> {
        let len = len.min(self.end.saturating_sub(self.pos));
        let have = self.chunk_pos + self.chunk.len() as u64;
        if self.pos < self.chunk_pos || self.pos + len > have {
            let want = len.max(self.chunk_bytes).min(self.end.saturating_sub(self.pos));
            self.chunk = read_vec(self.file, self.pos, want as usize)?.into();
            self.chunk_pos = self.pos;
            self.read_bytes += self.chunk.len() as u64;
        }
        let from = (self.pos - self.chunk_pos) as usize;
        let to = (from + len as usize).min(self.chunk.len());
        Ok(self.chunk.slice(from.min(to)..to))
    }
}

/// What lies behind a bad frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Behind {
    /// Some valid frame of this use of the file.
    pub(crate) any: bool,
    /// A frame written when the file was durable beyond the position asked about: what is bad there was good once.
    pub(crate) proof: bool,
}

/// Looks at every aligned position of `from..end` for frames of `place`.
pub(crate) fn look_behind(file: &dyn VfsFile, place: &Place, bad: u64, from: u64, end: u64) -> io::Result<Behind> {
    let tag = place.tag();
    let mut found = Behind::default();
    let mut pos = from.next_multiple_of(ALIGN as u64);
    while pos + HEADER as u64 <= end {
        let chunk = read_vec(file, pos, CHUNK.min(end - pos) as usize)?;
        if chunk.len() < HEADER {
            break;
        }
        let mut at = 0;
        while at + HEADER <= chunk.len() {
            if u32_at(&chunk, at + 8) == tag
                && let Some(read) = decode(&chunk[at..], place, pos + at as u64)
            {
                found.any = true;
                if read.synced > bad {
                    found.proof = true;
                    return Ok(found);
                }
            }
            at += ALIGN;
        }
        pos += at as u64;
    }
    Ok(found)
}
