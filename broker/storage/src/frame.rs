//! The frame: the one record format of journal and segments.
//!
//! All numbers little-endian; a frame starts at a multiple of 8 and is zero-padded to one.
//!
//! ```text
//!  off size field
//!    0   4  header crc   CRC-32 of (place seed, position in the file, bytes 4..72)
//!    4   4  prev         header crc of the frame before it in this file (of the file header, for the first)
//!    8   4  tag          low half of the file's generation (journal) or first index (segment)
//!   12   4  synced / 8   how far this file was durable when the frame was written (journal; 0 in segments)
//!   16   4  len          payload bytes
//!   20   4  payload crc  CRC-32 of the payload alone: computed once, valid in journal and segment
//!   24   1  kind         see [`Kind`]
//!   25   1  flavour      the caller's kind for entries; flags for other kinds
//!   26   2  zero
//!   28   4  head len     leading payload bytes that make the head
//!   32   8  group
//!   40   8  term
//!   48   8  index
//!   56   8  mark
//!   64   8  time
//!   72  len payload, then zeros up to a multiple of 8
//! ```
//!
//! Invariants: a frame is accepted only in the file generation, at the position and behind the frame it was written
//! for, so recycled, misplaced or reordered blocks never pass. Lengths are checked against the file's end before
//! anything is read or allocated by them.

use bytes::Bytes;

use crate::types::{Entry, GroupId};

/// Bytes of a frame header.
pub(crate) const HEADER: usize = 72;
/// Frames start at multiples of this.
pub(crate) const ALIGN: usize = 8;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A new entry.
    Entry = 1,
    /// An entry written again because its first place is about to be recycled.
    Carried = 2,
    /// Entries above `index` are dropped (all of them when flavour is 0); term and mark are those of `index`.
    Truncate = 3,
    /// A vote: term, node in `index`, flavour 1 when committed.
    Vote = 4,
    /// Committed position.
    Committed = 5,
    /// Everything up to the position is purged.
    Purge = 6,
    /// Entries up to the segment end in the payload now live in segments.
    Retired = 7,
    /// The group is removed.
    Remove = 8,
    /// A removed group's files are gone.
    Forget = 9,
    /// Journal files up to generation `index` hold nothing that is needed.
    Freed = 10,
    /// The engine was opened for the `index`-th time.
    Opened = 11,
    /// Last frame of a journal file.
    Seal = 12,
    /// Last frame of a sealed segment.
    Footer = 13,
    /// Filler up to a block boundary, for direct I/O.
    Pad = 14,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::*;
        const ALL: [Kind; 14] = [
            Entry, Carried, Truncate, Vote, Committed, Purge, Retired, Remove, Forget, Freed, Opened, Seal, Footer, Pad,
        ];
        ALL.get(byte.checked_sub(1)? as usize).copied()
    }
}

/// What ties a frame to its file: mixed into every checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    seed: u32,
    tag: u32,
}

impl Place {
    /// A journal file: `slot` names the file, `generation` its current use.
    pub(crate) fn journal(slot: u32, generation: u64) -> Place {
        Place { seed: digest(b"journal.", slot.into(), generation), tag: generation as u32 }
    }

    /// A segment file.
    pub(crate) fn segment(group: GroupId, first: u64) -> Place {
        Place { seed: digest(b"segment.", group.0, first), tag: first as u32 }
    }

    /// What marks this file's frames at first sight.
    pub(crate) fn tag(&self) -> u32 {
        self.tag
    }

    /// Checksum of bytes that stand at `pos` in this file.
    pub(crate) fn crc(&self, pos: u64, bytes: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.seed);
        hasher.update(&pos.to_le_bytes());
        hasher.update(bytes);
        hasher.finalize()
    }
}

fn digest(what: &[u8; 8], a: u64, b: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(what);
    hasher.update(&a.to_le_bytes());
    hasher.update(&b.to_le_bytes());
    hasher.finalize()
}

/// A frame without its payload, and without what the place adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) flavour: u8,
    pub(crate) len: u32,
    pub(crate) payload_crc: u32,
    pub(crate) head_len: u32,
    pub(crate) group: GroupId,
    pub(crate) term: u64,
    pub(crate) index: u64,
    pub(crate) mark: u64,
    pub(crate) time_ms: i64,
}

/// A frame header as read: the head plus the chain it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) head: Head,
    /// Header crc of this frame: the next one's `prev`.
    pub(crate) crc: u32,
    pub(crate) prev: u32,
    /// How far the file was durable when this was written.
    pub(crate) synced: u64,
}

impl Head {
    /// A frame with neither payload nor numbers.
    pub(crate) fn bare(kind: Kind, group: GroupId) -> Head {
        Head { kind, flavour: 0, len: 0, payload_crc: 0, head_len: 0, group, term: 0, index: 0, mark: 0, time_ms: 0 }
    }

    /// The frame of an entry; hashes the payload.
    pub(crate) fn of_entry(kind: Kind, group: GroupId, entry: &Entry) -> Head {
        Head {
            kind,
            flavour: entry.kind,
            len: entry.payload.len() as u32,
            payload_crc: crc32fast::hash(&entry.payload),
            head_len: entry.head_len,
            group,
            term: entry.term,
            index: entry.index,
            mark: entry.mark,
            time_ms: entry.time_ms,
        }
    }

    /// The entry this frame carries.
    pub(crate) fn entry(&self, payload: Bytes) -> Entry {
        Entry {
            term: self.term,
            index: self.index,
            kind: self.flavour,
            mark: self.mark,
            time_ms: self.time_ms,
            head_len: self.head_len,
            payload,
        }
    }

    /// Bytes of the whole frame, padding included.
    pub(crate) fn size(&self) -> u64 {
        size_of(self.len as usize)
    }

    /// The header's bytes at `pos` of `place`, behind the frame whose header crc is `prev`.
    pub(crate) fn encode(&self, place: &Place, pos: u64, prev: u32, synced: u64) -> [u8; HEADER] {
        let mut b = [0; HEADER];
        b[4..8].copy_from_slice(&prev.to_le_bytes());
        b[8..12].copy_from_slice(&place.tag.to_le_bytes());
        b[12..16].copy_from_slice(&((synced / ALIGN as u64) as u32).to_le_bytes());
        b[16..20].copy_from_slice(&self.len.to_le_bytes());
        b[20..24].copy_from_slice(&self.payload_crc.to_le_bytes());
        b[24] = self.kind as u8;
        b[25] = self.flavour;
        b[28..32].copy_from_slice(&self.head_len.to_le_bytes());
        b[32..40].copy_from_slice(&self.group.0.to_le_bytes());
        b[40..48].copy_from_slice(&self.term.to_le_bytes());
        b[48..56].copy_from_slice(&self.index.to_le_bytes());
        b[56..64].copy_from_slice(&self.mark.to_le_bytes());
        b[64..72].copy_from_slice(&self.time_ms.to_le_bytes());
        let crc = place.crc(pos, &b[4..]);
        b[..4].copy_from_slice(&crc.to_le_bytes());
        b
    }
}

/// Bytes a frame takes for a payload of `len`, padding included.
pub(crate) fn size_of(len: usize) -> u64 {
    (HEADER + len).next_multiple_of(ALIGN) as u64
}

/// Zeros that follow a payload of `len`.
pub(crate) fn padding(len: usize) -> &'static [u8] {
    &[0; ALIGN][..len.next_multiple_of(ALIGN) - len]
}

/// The header crc in an encoded header.
pub(crate) fn crc_of(header: &[u8; HEADER]) -> u32 {
    u32_at(header, 0)
}

/// Reads a header; `None` when the bytes are not a frame of this place at this position. The payload is not looked at.
pub(crate) fn decode(bytes: &[u8], place: &Place, pos: u64) -> Option<Read> {
    let b = bytes.get(..HEADER)?;
    if u32_at(b, 8) != place.tag || u32_at(b, 0) != place.crc(pos, &b[4..]) {
        return None;
    }
    let head = Head {
        kind: Kind::from_byte(b[24])?,
        flavour: b[25],
        len: u32_at(b, 16),
        payload_crc: u32_at(b, 20),
        head_len: u32_at(b, 28),
        group: GroupId(u64_at(b, 32)),
        term: u64_at(b, 40),
        index: u64_at(b, 48),
        mark: u64_at(b, 56),
        time_ms: u64_at(b, 64) as i64,
    };
    Some(Read { head, crc: u32_at(b, 0), prev: u32_at(b, 4), synced: u64::from(u32_at(b, 12)) * ALIGN as u64 })
}

/// A little-endian u32; the caller made sure it is there.
pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(raw)
}

/// A little-endian u64; the caller made sure it is there.
pub(crate) fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(raw)
}

#[cfg(test)]
mod tests;
