//! Busbar's log engine: many replicated logs on one disk, made durable by one sync for all of them.
//!
//! ```text
//!    append(group, entries)                         read(group, from)
//!         │                                              │
//!    [ tail cache ]────────────────────────────────▶ memory         newest, bounded in bytes
//!         │                                              │
//!    [ journal: ring of recycled files, one fdatasync ]  (file, pos)    recent log of ALL groups
//!         │  retire: committed runs, in bulk             │
//!    [ segments: per group, committed, immutable ]   (segment, pos) history; retention unlinks whole files
//! ```
//!
//! An entry is in exactly one place at a time (plus memory). Uncommitted entries live in the journal only, so a
//! truncation never touches a segment.
//!
//! | module | owns |
//! |---|---|
//! | `engine`, `log` | the engine and one group's log: the public API |
//! | `group`, `shared` | what a log holds and where, in memory; what all parts of an engine share |
//! | `queue`, `journal` | the write path: lanes, frames, ring, recovery |
//! | `segment`, `retire`, `upkeep` | history, and moving entries into it |
//! | `read`, `cache` | the read path |
//! | `frame`, `hard` | formats |
//! | `vfs`, `sim` | the disk, real and simulated |
//!
//! The crate knows nothing of raft, gRPC or topics. It uses tokio for waking readers and for its blocking pool only;
//! with [`Drive::Manual`] it starts no thread and is a deterministic function of the calls made.

mod cache;
mod engine;
mod error;
mod frame;
mod group;
mod hard;
mod journal;
mod log;
mod options;
mod queue;
mod read;
mod retire;
mod segment;
mod shared;
pub mod sim;
mod types;
mod upkeep;
pub mod vfs;

#[cfg(test)]
mod tests;

pub use engine::LogEngine;
pub use error::{AppendError, OpenError, ReadError, RewriteError};
pub use journal::recovery::{DamagedEntry, RecoveryReport, TornTail};
pub use log::GroupLog;
pub use options::{Drive, LogOptions};
pub use shared::FatalHook;
pub use types::{
    Decide, EngineStats, Entry, FlushCallback, GroupId, LogState, NewPayload, Position, ReadMode, Rewritten,
    SegmentInfo, Vote,
};
