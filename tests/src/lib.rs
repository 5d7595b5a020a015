//! The harness of the integration tests: clusters of real processes, load on them, and the judgement of what was seen.
//!
//! | module | owns |
//! |---|---|
//! | [`process`] | a cluster of `busbar serve` processes: start, kill, pause, join |
//! | [`node`] | one such process, its folder and its ports |
//! | [`cli`] | running the `busbar` command and reading what it prints |
//! | [`groups`] | members of consumer groups, spoken by hand |
//! | [`wire`] | `busbar.v1` spoken without the client, to send what the client never would |
//! | [`workload`] | publishers that note each outcome, a reader of everything |
//! | [`verify`] | pure: what was read against what was acknowledged |
//! | [`wait`] | deadlines, and asking until something is so |
//!
//! Invariants: a test asserts behaviour, never a time; every wait has a deadline that only a broken broker reaches; only
//! processes that the harness started are signalled, and they end with it.

pub mod cli;
pub mod groups;
pub mod node;
pub mod process;
pub mod verify;
pub mod wait;
pub mod wire;
pub mod workload;
