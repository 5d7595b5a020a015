//! Busbar's broker: a replicated log in partitions, each its own raft group.
//!
//! ```text
//!   listener ──▶ service ──▶ partition ──▶ raft ──▶ busbar-storage (log engine), peer links
//!   (gRPC)       (use-cases) groups        (openraft adapter)      ──▶ env (seams)
//! ```
//! Imports go downward only. `rocksdb` is named in [`mod@env`] alone, `openraft` in [`mod@raft`] alone, `tonic` in
//! [`listener`] and `raft::network` alone; `tests/tests/tidy.rs` checks it.

pub mod channel;
pub mod config;
pub mod env;
pub mod folder;
pub mod groups;
pub mod listener;
pub mod node;
pub mod partition;
pub mod raft;
pub mod service;

pub use node::{Node, StartError};
