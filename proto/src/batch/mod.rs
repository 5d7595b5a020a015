//! The RecordBatch v2 codec: Apache Kafka's batch format, byte for byte, and nothing else. The broker uses
//! [`verify`], [`split`] and [`stamp`], which read no further than the header; clients use [`BatchBuilder`] and
//! [`records`].
//!
//! ```text
//!  0        8      12     16 17   21   23       27      35      43      51  53     57     61
//!  | base   | len  | lead | m| crc| att| last   | base  | max   | prod  | p.| base | rec. | records,
//!  | offset | i32  | epoch| 2| u32| r. | offset | time  | time  | id    | ep| seq. | count| perhaps
//!  | i64    |      | i32  |i8|    | i16| delta  | i64   | i64   | i64   |i16| i32  | i32  | compressed
//!  `-stamped-'     `stamp-'       `------------------- under the CRC-32C --------------------- - - -
//! ```
//!
//! Invariants:
//! - what [`BatchBuilder`] builds, [`verify`] accepts and [`records`] reads back unchanged;
//! - the two stamped fields lie outside the checksum: [`stamp`] never invalidates a batch;
//! - no buffer is sized by a length that was read before that length was compared with the bytes at hand, and
//!   decompression stops at a limit;
//! - no input panics: every fault in bytes from outside is a [`BatchError`].

mod builder;
mod compress;
mod error;
mod header;
mod lz4;
mod record;
mod varint;

pub use builder::{BatchBuilder, BatchOptions, Full, NO_HEADERS, ProducerState};
pub use compress::{Compression, UnknownCompression};
pub use error::{BatchError, RecordFault};
pub use header::{Attributes, BatchHeader, HEADER_BYTES, Split, split, stamp, verify};
pub use record::{RecordHeader, RecordView, Records, records, records_within};
pub use varint::VarintError;
