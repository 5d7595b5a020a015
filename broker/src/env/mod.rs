//! The seams: everything through which the broker touches the outside world besides files (those are
//! `busbar_storage::Vfs`). The core takes them by injection, so that a simulation can stand in for each.

pub mod clock;
pub mod descriptors;
pub mod rocks;
pub mod state;
pub mod task;

pub use clock::{Clock, SystemClock};
pub use state::{StateError, StateStore};
pub use task::Tasks;
