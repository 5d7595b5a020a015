//! The raft adapter: the only code that names openraft. Owns the mapping between openraft's traits and Busbar's
//! log engine, state machines and peer links, and every hazard that comes with it (each named where it is met).
//!
//! ```text
//!   partition, catalog ──▶ Group ──▶ openraft core ──▶ LogStore ──▶ busbar_storage::GroupLog
//!                                      │      └──────▶ StateMachine ──▶ a pure Machine + checkpoints
//!                                      └─ Network ──▶ peer links (one task per peer and lane)
//!   liveness ──▶ succession: elections when a node is lost          hibernation ──▶ pulse: groups without work sleep
//! ```

pub mod checkpoint;
pub mod convert;
pub mod group;
pub mod handle;
pub mod hibernation;
pub mod liveness;
pub mod log_store;
pub mod machine;
pub mod network;
mod pulse;
pub mod rebuild;
pub mod registry;
pub mod runtime;
pub mod shared;
pub mod state_machine;
pub mod succession;
#[cfg(test)]
mod suite_tests;
pub mod types;

pub use group::{Group, GroupHandle, GroupOptions, ProposeError, Proposed};
pub use machine::{Applied, Machine};
pub use registry::Registry;
pub use shared::{AppliedState, Shared};
pub use types::{Proposal, RaftTiming};
