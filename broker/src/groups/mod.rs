//! Consumer groups on this node: one [`Shard`] for each replica of a shard, and the [`sessions`] of the members of those
//! that this node leads.
//!
//! ```text
//!   member stream ─▶ Join, Released, Leave ─┐
//!   commit ─────────────────────────────────┼─▶ raft group ─▶ GroupShard (pure) ─▶ assignments pushed to members
//!   silent member, changed topic ───────────┘
//! ```

pub mod machine;
pub mod sessions;
pub mod shard;

pub use sessions::{Session, Sessions};
pub use shard::{Shard, ShardOptions};
