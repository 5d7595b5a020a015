//! Partitions on this node: one [`Replica`] each, with its [`sequencer`] (the only writer) and its [`reader`]s.
//!
//! ```text
//!   publish ─▶ queue (bytes admitted before) ─▶ sequencer ─▶ raft group ─▶ applied ─▶ answers, high watermark
//!                                                                                      └▶ readers woken
//! ```

pub mod claims;
pub mod machine;
pub mod reader;
pub mod replica;
pub mod sequencer;

pub use claims::Claims;
pub use replica::{Offered, Replica, ReplicaOptions};
pub use sequencer::{Publish, PublishResult, Stored};
