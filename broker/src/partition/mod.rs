//! Partitions on this node: one [`Replica`] each, with its [`sequencer`] (the only writer), its [`reader`]s and its
//! [`cleaner`].
//!
//! ```text
//!   publish ─▶ queue (bytes admitted before) ─▶ sequencer ─▶ raft group ─▶ applied ─▶ answers, high watermark
//!                                                                                      └▶ readers woken
//! ```

pub mod claims;
pub mod cleaner;
pub mod machine;
pub mod reader;
pub mod replica;
pub mod sequencer;

pub use claims::Claims;
pub use replica::{Offered, Replica, ReplicaOptions};
pub use sequencer::{Publish, PublishResult, Stored};
