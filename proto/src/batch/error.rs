//! What can be wrong with a batch. Every variant says which field, what was found and what is allowed, so that
//! whoever built the bytes can find the fault; corruption, size and lack of support stay apart.

use super::{compress::Compression, header::HEADER_BYTES, varint::VarintError};
use crate::{error::Reason, error::Refusal, limits};

/// Why bytes are not an acceptable record batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than the header has, or than it declares.
    #[error("the batch is cut short: {needed} bytes needed, {found} found")]
    Truncated {
        /// Bytes of the header, or of the batch as its header declares it.
        needed: usize,
        /// Bytes there are.
        found: usize,
    },
    /// Bytes follow the batch where exactly one was expected.
    #[error("the batch length says {declared} bytes in all, but {found} were found")]
    TrailingBytes {
        /// Bytes of the batch as its header declares it.
        declared: usize,
        /// Bytes there are.
        found: usize,
    },
    /// Not format version 2.
    #[error("magic is {found}, only 2 (RecordBatch v2) is accepted")]
    Magic {
        /// The byte at position 16.
        found: i8,
    },
    /// A header field outside its range.
    #[error("{field} is {found}, at least {min} is allowed")]
    Field {
        /// The field's name.
        field: &'static str,
        /// Its value.
        found: i64,
        /// The smallest legal value.
        min: i64,
    },
    /// Over the size limit.
    #[error("the batch has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit that the caller set.
        limit: usize,
    },
    /// No record, or a count that does not match the offsets claimed.
    #[error("record count is {count}, which must be 1 or more and last offset delta ({last_offset_delta}) + 1")]
    RecordCount {
        /// The count in the header.
        count: u32,
        /// The last offset delta in the header.
        last_offset_delta: u32,
    },
    /// More records than a batch may have.
    #[error("record count is {count}, the limit is {}", limits::BATCH_RECORDS_MAX)]
    TooManyRecords {
        /// The count in the header.
        count: u32,
    },
    /// More records than its bytes can possibly hold.
    #[error("record count is {count}, but {bytes} bytes of records hold {} at most", bytes / super::record::RECORD_BYTES_MIN)]
    ImpossibleCount {
        /// The count in the header.
        count: u32,
        /// Bytes of the (decompressed) records section.
        bytes: usize,
    },
    /// Attribute bits that only a broker sets, or that mean nothing yet.
    #[error("attributes are {found:#06x}: transactional, control, log-append-time and unused bits can't be published")]
    Attributes {
        /// The attributes of the header.
        found: u16,
    },
    /// The bytes changed after the batch was built.
    #[error("CRC-32C is {stored:#010x} in the header, {computed:#010x} over the bytes: the batch was damaged")]
    Checksum {
        /// What the header says.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// Codec bits without a meaning.
    #[error("compression codec is {codec}; known are 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd")]
    UnknownCodec {
        /// The three codec bits.
        codec: u8,
    },
    /// A codec that is recognised but not decoded here.
    #[error("{compression} batches can't be decoded; publish with none, lz4 or zstd")]
    Unsupported {
        /// The codec.
        compression: Compression,
    },
    /// The compressed section is not sound.
    #[error("the {compression} records section can't be decompressed: {detail}")]
    Decompress {
        /// The codec.
        compression: Compression,
        /// What the codec's library says.
        detail: String,
    },
    /// The compressed section unfolds to more than the reader accepts.
    #[error("the {compression} records section unfolds to more than {limit} bytes")]
    UnfoldsTooLarge {
        /// The codec.
        compression: Compression,
        /// The reader's limit.
        limit: usize,
    },
    /// A record inside the batch is not sound.
    #[error("record {index}: {fault}")]
    Record {
        /// Its place in the batch, from 0.
        index: u32,
        /// What is wrong with it.
        fault: RecordFault,
    },
    /// Bytes are left after the last record.
    #[error("{bytes} bytes are left after the last of {count} records")]
    UnreadRecords {
        /// Bytes left.
        bytes: usize,
        /// The count in the header.
        count: u32,
    },
}

/// What can be wrong with one record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// A number can't be read.
    #[error("{field}: {fault}")]
    Varint {
        /// The field's name.
        field: &'static str,
        /// What is wrong with the number.
        fault: VarintError,
    },
    /// A length or count that is negative or larger than what is there.
    #[error("{field} is {found}, allowed is {min} to {max}")]
    Length {
        /// The field's name.
        field: &'static str,
        /// Its value.
        found: i64,
        /// The smallest legal value (-1 where null is legal).
        min: i64,
        /// What the bytes left can hold.
        max: usize,
    },
    /// An offset delta that does not rise, or rises above the header's last offset delta.
    #[error("offset delta is {found}, allowed is {min} to {max}")]
    OffsetDelta {
        /// Its value.
        found: i32,
        /// One more than the delta before.
        min: u32,
        /// The header's last offset delta.
        max: u32,
    },
    /// A header's key that is not UTF-8.
    #[error("a header key is not UTF-8")]
    HeaderKey,
    /// The record's declared length is larger than its content.
    #[error("{bytes} bytes are left after its last header")]
    Unread {
        /// Bytes left.
        bytes: usize,
    },
}

impl BatchError {
    /// The reason that a broker answers with.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::TooLarge { .. } => Reason::BatchTooLarge,
            Self::Attributes { .. } | Self::Unsupported { .. } | Self::TooManyRecords { .. } => Reason::InvalidArgument,
            _ => Reason::CorruptBatch,
        }
    }

    pub(super) const fn short_header(found: usize) -> Self {
        Self::Truncated { needed: HEADER_BYTES, found }
    }
}

impl From<BatchError> for Refusal {
    fn from(error: BatchError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}
