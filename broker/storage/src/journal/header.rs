//! The head of a journal file: which use of the file this is, and the hard state of every group when it began.
//!
//! ```text
//!      0 ┌────────────────────────┐
//!        │ header block           │ magic, version, slot, generation, ... crc
//!   4096 ├────────────────────────┤
//!        │ the same block again   │ one rotten sector does not make the file unreadable
//!   8192 ├────────────────────────┤
//!        │ snapshot, zero-padded  │ hard state of all groups
//!   data ├────────────────────────┤ multiple of 4096
//!        │ frames ...       Seal  │
//!        └────────────────────────┘ file_bytes
//!  block: 0 magic "BUSBARJ1" · 8 version u32 · 12 slot u32 · 16 generation u64 · 24 file bytes u64 ·
//!         32 oldest generation needed u64 · 40 times opened u64 · 48 snapshot bytes u32 · 52 snapshot crc u32 ·
//!         56 zero u32 · 60 crc u32 of bytes 0..60
//! ```
//!
//! A block with a bad crc says nothing; whether that is a torn write or damage is recovery's to decide.

use crate::frame::{u32_at, u64_at};

const MAGIC: &[u8; 8] = b"BUSBARJ1";
/// Format version of the journal.
pub(crate) const VERSION: u32 = 1;
/// Bytes of one header block; also the unit everything before the frames is aligned to.
pub(crate) const BLOCK: u64 = 4096;
/// Where the snapshot begins.
pub(crate) const SNAPSHOT_AT: u64 = 2 * BLOCK;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) slot: u32,
    pub(crate) generation: u64,
    pub(crate) file_bytes: u64,
    /// Oldest generation that recovery needs, as of this header.
    pub(crate) oldest: u64,
    /// How often the engine had been opened.
    pub(crate) opened: u64,
    pub(crate) snapshot_bytes: u32,
    pub(crate) snapshot_crc: u32,
}

/// What a header block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// Nothing but zeros: never used.
    Blank,
    /// Not a header: torn or damaged.
    Invalid,
    /// Valid, but written by another version.
    Version(u32),
    /// Valid.
    Header(FileHeader),
}

impl FileHeader {
    /// Where frames begin in a file with so large a snapshot.
    pub(crate) fn data_start(snapshot_bytes: u64) -> u64 {
        (SNAPSHOT_AT + snapshot_bytes).next_multiple_of(BLOCK)
    }

    /// The `prev` of the first frame.
    pub(crate) fn chain(&self) -> u32 {
        u32_at(&self.block(), 60)
    }

    fn block(&self) -> [u8; 64] {
        let mut b = [0; 64];
        b[..8].copy_from_slice(MAGIC);
        b[8..12].copy_from_slice(&VERSION.to_le_bytes());
        b[12..16].copy_from_slice(&self.slot.to_le_bytes());
        b[16..24].copy_from_slice(&self.generation.to_le_bytes());
        b[24..32].copy_from_slice(&self.file_bytes.to_le_bytes());
        b[32..40].copy_from_slice(&self.oldest.to_le_bytes());
        b[40..48].copy_from_slice(&self.opened.to_le_bytes());
        b[48..52].copy_from_slice(&self.snapshot_bytes.to_le_bytes());
        b[52..56].copy_from_slice(&self.snapshot_crc.to_le_bytes());
        let crc = crc32fast::hash(&b[..60]);
        b[60..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Everything before the first frame.
    pub(crate) fn encode(&self, snapshot: &[u8]) -> Vec<u8> {
        let mut out = vec![0; Self::data_start(snapshot.len() as u64) as usize];
        let block = self.block();
        for at in [0, BLOCK as usize] {
            out[at..at + block.len()].copy_from_slice(&block);
        }
        out[SNAPSHOT_AT as usize..][..snapshot.len()].copy_from_slice(snapshot);
        out
    }

    /// Reads one block.
    pub(crate) fn parse(block: &[u8]) -> Parsed {
        let Some(b) = block.get(..64) else { return Parsed::Invalid };
        if block.iter().all(|byte| *byte == 0) {
            return Parsed::Blank;
        }
        if &b[..8] != MAGIC || u32_at(b, 60) != crc32fast::hash(&b[..60]) {
            return Parsed::Invalid;
        }
        if u32_at(b, 8) != VERSION {
            return Parsed::Version(u32_at(b, 8));
        }
        Parsed::Header(FileHeader {
            slot: u32_at(b, 12),
            generation: u64_at(b, 16),
            file_bytes: u64_at(b, 24),
            oldest: u64_at(b, 32),
            opened: u64_at(b, 40),
            snapshot_bytes: u32_at(b, 48),
            snapshot_crc: u32_at(b, 52),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_block_and_round_trip() {
        let header = FileHeader {
            slot: 1,
            generation: 2,
            file_bytes: 65536,
            oldest: 1,
            opened: 3,
            snapshot_bytes: 5,
            snapshot_crc: 6,
        };
        let bytes = header.encode(b"state");
        assert_eq!(bytes.len(), 12288);
        assert_eq!(FileHeader::parse(&bytes[..4096]), Parsed::Header(header));
        assert_eq!(FileHeader::parse(&bytes[4096..8192]), Parsed::Header(header));
        let hex: String = bytes[..64].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "4255534241524a31",
                "01000000",
                "01000000",
                "0200000000000000",
                "0000010000000000",
                "0100000000000000",
                "0300000000000000",
                "05000000",
                "06000000",
                "00000000",
                "67bbe7fe"
            )
        );
        for bit in 0..64 * 8 {
            let mut bad = bytes[..4096].to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FileHeader::parse(&bad), Parsed::Invalid);
        }
        assert_eq!(FileHeader::parse(&[0; 4096]), Parsed::Blank);
    }
}
