//! Compression of a batch's records section, as Kafka frames it: an LZ4 frame of independent blocks, or a zstd
//! frame. Only clients compress and decompress. Unfolding is bounded: the output grows with what was really
//! decoded and stops at a limit, and a zstd frame that asks for a window above 8 MiB is refused.

use std::{
    fmt,
    io::{Read, Write},
    str::FromStr,
};

use bytes::Bytes;
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

use super::{
    error::BatchError,
    lz4::{self, Lz4Fault},
};

/// zstd's own default: the knee of its curve.
const ZSTD_LEVEL: i32 = 3;
/// 8 MiB: what every level up to 19 needs; a frame that asks for more is refused before memory is taken for it.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How a batch's records are compressed; the lowest three attribute bits.
///
/// ```
/// use busbar_proto::batch::Compression;
///
/// assert_eq!(Compression::default(), Compression::None);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// Recognised, never written, not decoded.
    Gzip = 1,
    /// Recognised, never written, not decoded.
    Snappy = 2,
    /// An LZ4 frame: cheap.
    Lz4 = 3,
    /// A zstd frame: small.
    Zstd = 4,
}

impl Compression {
    /// The codec of these attribute bits.
    ///
    /// # Errors
    /// [`BatchError::UnknownCodec`] for 5, 6 and 7 (and anything above).
    pub const fn from_codec(codec: u8) -> Result<Self, BatchError> {
        match codec {
            0 => Ok(Self::None),
            1 => Ok(Self::Gzip),
            2 => Ok(Self::Snappy),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            _ => Err(BatchError::UnknownCodec { codec }),
        }
    }

    /// The attribute bits.
    pub const fn codec(self) -> u8 {
        self as u8
    }

    /// The word for it in options and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::None, Self::Lz4, Self::Zstd]
            .into_iter()
            .find(|compression| compression.as_str() == text)
            .ok_or_else(|| UnknownCompression { found: text.to_owned() })
    }
}

/// A word that names no compression that can be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compression is none, lz4 or zstd, not {found:?}")]
pub struct UnknownCompression {
    /// The word.
    pub found: String,
}

/// Appends `records`, compressed, to `out`. `false` (and `out` as it was) where that saves nothing or the codec
/// is one that is never written; the caller then stores the records as they are.
pub(super) fn compress(compression: Compression, records: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let done = match compression {
        Compression::None | Compression::Gzip | Compression::Snappy => return false,
        Compression::Lz4 => compress_lz4(records, out),
        Compression::Zstd => zstd::stream::copy_encode(records, &mut *out, ZSTD_LEVEL).is_ok(),
    };
    let saves = done && out.len() - start < records.len();
    if !saves {
        out.truncate(start);
    }
    saves
}

fn compress_lz4(records: &[u8], out: &mut Vec<u8>) -> bool {
    // Kafka's Java client refuses linked blocks, and itself writes blocks of 64 KiB.
    let frame = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(frame, out);
    encoder.write_all(records).is_ok() && encoder.finish().is_ok()
}

/// Unfolds a records section; `None` compression costs nothing.
pub(super) fn decompress(compression: Compression, section: Bytes, limit: usize) -> Result<Bytes, BatchError> {
    let fail = |error: std::io::Error| BatchError::Decompress { compression, detail: error.to_string() };
    match compression {
        Compression::None if section.len() <= limit => Ok(section),
        Compression::None => Err(BatchError::UnfoldsTooLarge { compression, limit }),
        Compression::Gzip | Compression::Snappy => Err(BatchError::Unsupported { compression }),
        Compression::Lz4 => match lz4::decompress_frame(&section, limit) {
            Ok(unfolded) => Ok(Bytes::from(unfolded)),
            Err(Lz4Fault::Limit) => Err(BatchError::UnfoldsTooLarge { compression, limit }),
            Err(fault) => Err(BatchError::Decompress { compression, detail: fault.to_string() }),
        },
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(section.as_ref()).map_err(fail)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(fail)?;
            read_to_limit(&mut decoder, compression, limit)
        }
    }
}

/// Everything that `decoder` gives, unless that is more than `limit` bytes.
fn read_to_limit(decoder: &mut impl Read, compression: Compression, limit: usize) -> Result<Bytes, BatchError> {
    let mut unfolded = Vec::new();
    let one_too_many = limit.saturating_add(1) as u64;
    let read = decoder.take(one_too_many).read_to_end(&mut unfolded);
    if unfolded.len() > limit {
        return Err(BatchError::UnfoldsTooLarge { compression, limit });
    }
    match read {
        Ok(_) => Ok(Bytes::from(unfolded)),
        Err(error) => Err(BatchError::Decompress { compression, detail: error.to_string() }),
    }
}
