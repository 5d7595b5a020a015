//! Reads LZ4 frames, the form in which Kafka keeps LZ4-compressed records. Blocks are unfolded straight behind
//! each other into the output; the block codec itself is `lz4_flex`'s.
//!
//! ```text
//!  magic u32 LE | FLG u8 | BD u8 | [content size u64] | HC u8 | block... | end mark 0u32 | [content xxh32]
//!  block: length u32 LE, highest bit = stored as it is | bytes | [xxh32 of these bytes]
//! ```
//!
//! Invariant: room for a block is bounded by what its bytes that are really there can unfold to (255 times as
//! much), never by the size that the frame declares alone.

use std::hash::Hasher;

use lz4_flex::block::{decompress_into, decompress_into_with_dict};
use twox_hash::XxHash32;

const MAGIC: u32 = 0x184d_2204;
/// How far back a linked block may refer.
const WINDOW_BYTES: usize = 64 << 10;
/// The most that one byte of a block unfolds to.
const RATIO_MAX: usize = 255;
/// Highest bit of a block's length: the block is stored as it is.
const STORED: u32 = 1 << 31;

/// Why bytes are no LZ4 frame that can be unfolded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lz4Fault {
    #[error("the frame ends early")]
    Truncated,
    #[error("the frame's magic number is {0:#010x}")]
    Magic(u32),
    #[error("the frame's descriptor {0:#04x} {1:#04x} is not one of version 1")]
    Descriptor(u8, u8),
    #[error("the frame needs a dictionary")]
    Dictionary,
    #[error("the {0} checksum does not match")]
    Checksum(&'static str),
    #[error("a block has {found} bytes, the frame allows {limit}")]
    Block { found: usize, limit: usize },
    #[error("a block is not sound: {0}")]
    Codec(String),
    #[error("the content has {found} bytes, the frame says {declared}")]
    ContentSize { found: usize, declared: u64 },
    #[error("{0} bytes follow the frame")]
    Trailing(usize),
    #[error("the content exceeds the limit")]
    Limit,
}

/// What the frame's descriptor says.
struct Descriptor {
    linked: bool,
    block_checksums: bool,
    content_checksum: bool,
    content_bytes: Option<u64>,
    block_bytes_max: usize,
}

/// The content of exactly one frame, at most `limit` bytes.
pub(super) fn decompress_frame(frame: &[u8], limit: usize) -> Result<Vec<u8>, Lz4Fault> {
    let mut rest = frame;
    let descriptor = read_descriptor(&mut rest)?;
    let mut out = Vec::new();
    loop {
        let word = read_u32(&mut rest)?;
        if word == 0 {
            break;
        }
        let length = (word & !STORED) as usize;
        if length > descriptor.block_bytes_max {
            return Err(Lz4Fault::Block { found: length, limit: descriptor.block_bytes_max });
        }
        let block = read(&mut rest, length)?;
        if descriptor.block_checksums && read_u32(&mut rest)? != xxh32(block) {
            return Err(Lz4Fault::Checksum("block"));
        }
        if word & STORED == 0 {
            unfold(block, &descriptor, limit, &mut out)?;
        } else {
            out.extend_from_slice(block);
        }
        if out.len() > limit {
            return Err(Lz4Fault::Limit);
        }
    }
    if descriptor.content_checksum && read_u32(&mut rest)? != xxh32(&out) {
        return Err(Lz4Fault::Checksum("content"));
    }
    match descriptor.content_bytes {
        Some(declared) if declared != out.len() as u64 => Err(Lz4Fault::ContentSize { found: out.len(), declared }),
        _ if !rest.is_empty() => Err(Lz4Fault::Trailing(rest.len())),
        _ => Ok(out),
    }
}

fn read_descriptor(rest: &mut &[u8]) -> Result<Descriptor, Lz4Fault> {
    let magic = read_u32(rest)?;
    if magic != MAGIC {
        return Err(Lz4Fault::Magic(magic));
    }
    let described = *rest;
    let [flags, sizes] = read_array(rest)?;
    if flags >> 6 != 1 || flags & 0b10 != 0 || sizes & 0b1000_1111 != 0 || sizes < 0x40 {
        return Err(Lz4Fault::Descriptor(flags, sizes));
    }
    if flags & 1 != 0 {
        return Err(Lz4Fault::Dictionary);
    }
    let content_bytes = if flags & 0b1000 == 0 { None } else { Some(u64::from_le_bytes(read_array(rest)?)) };
    let described = &described[..described.len() - rest.len()];
    let [check] = read_array(rest)?;
    if check != (xxh32(described) >> 8) as u8 {
        return Err(Lz4Fault::Checksum("descriptor"));
    }
    Ok(Descriptor {
        linked: flags & 0b10_0000 == 0,
        block_checksums: flags & 0b1_0000 != 0,
        content_checksum: flags & 0b100 != 0,
        content_bytes,
        // 4 to 7: 64 KiB, 256 KiB, 1 MiB, 4 MiB.
        block_bytes_max: 1 << (8 + 2 * (sizes >> 4)),
    })
}

/// Unfolds one block behind what `out` holds already. Asks for one byte more room than the limit leaves, so that
/// reaching the limit and exceeding it can be told apart.
fn unfold(block: &[u8], descriptor: &Descriptor, limit: usize, out: &mut Vec<u8>) -> Result<(), Lz4Fault> {
    let done = out.len();
    let left = limit - done + 1;
    let format_max = descriptor.block_bytes_max.min(block.len().saturating_mul(RATIO_MAX));
    let room = format_max.min(left);
    out.resize(done + room, 0);
    let (before, target) = out.split_at_mut(done);
    let unfolded = if descriptor.linked && done > 0 {
        decompress_into_with_dict(block, target, &before[done.saturating_sub(WINDOW_BYTES)..])
    } else {
        decompress_into(block, target)
    };
    match unfolded {
        Ok(bytes) => {
            out.truncate(done + bytes);
            Ok(())
        }
        Err(_) if room == left && left < format_max => Err(Lz4Fault::Limit),
        Err(error) => Err(Lz4Fault::Codec(error.to_string())),
    }
}

fn read<'a>(rest: &mut &'a [u8], bytes: usize) -> Result<&'a [u8], Lz4Fault> {
    let (taken, left) = rest.split_at_checked(bytes).ok_or(Lz4Fault::Truncated)?;
    *rest = left;
    Ok(taken)
}

fn read_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Lz4Fault> {
    let (taken, left) = rest.split_first_chunk().ok_or(Lz4Fault::Truncated)?;
    *rest = left;
    Ok(*taken)
}

fn read_u32(rest: &mut &[u8]) -> Result<u32, Lz4Fault> {
    read_array(rest).map(u32::from_le_bytes)
}

fn xxh32(bytes: &[u8]) -> u32 {
    let mut hasher = XxHash32::with_seed(0);
    hasher.write(bytes);
    hasher.finish_32()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 1 << 20;

    fn frame_of(content: &[u8], info: FrameInfo) -> Vec<u8> {
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// Text-like content, so that some of it compresses and some does not.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let piece = (proptest::collection::vec(any::<u8>(), 0..2_000), 1..80_usize);
        proptest::collection::vec(piece, 0..6)
            .prop_map(|pieces| pieces.into_iter().flat_map(|(piece, times)| piece.repeat(times)).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_kind_of_frame_is_read(
            content in content(), linked: bool, blocks: bool, whole: bool, sized: bool, small: bool,
        ) {
            let info = FrameInfo::new()
                .block_mode(if linked { BlockMode::Linked } else { BlockMode::Independent })
                .block_size(if small { BlockSize::Max64KB } else { BlockSize::Max256KB })
                .block_checksums(blocks)
                .content_checksum(whole)
                .content_size(sized.then_some(content.len() as u64));
            let frame = frame_of(&content, info);
            prop_assert_eq!(decompress_frame(&frame, content.len()), Ok(content.clone()));
            if !content.is_empty() {
                prop_assert_eq!(decompress_frame(&frame, content.len() - 1), Err(Lz4Fault::Limit));
            }
        }

        #[test]
        fn any_bytes_are_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200), keep_start: bool) {
            let mut frame = frame_of(b"abcabcabcabcabc", FrameInfo::new());
            frame.truncate(if keep_start { 7 } else { 0 });
            frame.extend_from_slice(&bytes);
            let _ = decompress_frame(&frame, LIMIT);
        }
    }

    #[test]
    fn damaged_frames_say_what_is_wrong() {
        let info = FrameInfo::new().block_checksums(true).content_checksum(true).content_size(Some(300));
        let sound = frame_of(&[7; 300], info);
        assert_eq!(decompress_frame(&sound, LIMIT), Ok(vec![7; 300]));
        let end = sound.len();
        let damaged = |at: usize, bits: u8| {
            let mut frame = sound.clone();
            frame[at] ^= bits;
            decompress_frame(&frame, LIMIT).unwrap_err()
        };
        assert_eq!(damaged(0, 1), Lz4Fault::Magic(MAGIC ^ 1));
        assert!(matches!(damaged(4, 0x80), Lz4Fault::Descriptor(..)));
        assert_eq!(damaged(4, 1), Lz4Fault::Dictionary);
        assert_eq!(damaged(6, 1), Lz4Fault::Checksum("descriptor"));
        assert!(matches!(damaged(17, 0x40), Lz4Fault::Block { .. }));
        assert_eq!(damaged(end - 9, 1), Lz4Fault::Checksum("block"));
        assert_eq!(damaged(end - 1, 1), Lz4Fault::Checksum("content"));
        assert_eq!(decompress_frame(&sound[..end - 1], LIMIT), Err(Lz4Fault::Truncated));
        assert_eq!(decompress_frame(&[&sound[..], &[0]].concat(), LIMIT), Err(Lz4Fault::Trailing(1)));
    }

    #[test]
    fn a_small_frame_of_large_blocks_takes_little_room() {
        let frame = frame_of(b"abc", FrameInfo::new().block_size(BlockSize::Max4MB));
        assert!(decompress_frame(&frame, 64 << 20).unwrap().capacity() < 4096);
    }
}
