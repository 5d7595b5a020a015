//! Busbar's replicated state machines: what every replica computes from the same log, and nothing else.
//!
//! | module | owns |
//! |---|---|
//! | [`partition`] | one partition's offsets, log start and producer table, and the leader's speculation over them |
//! | [`catalog`] | the cluster: nodes, topics, placement, moves, producer-id blocks |
//! | [`group`] | consumer groups: members, who holds which partition, how far each group is |
//! | [`retention`] | where a partition's log may start, given what is stored |
//! | [`codec`] | the bytes they write into entries and checkpoints |
//!
//! Invariant: equal inputs give equal states and equal bytes on every replica. So nothing here reads a clock, draws a
//! random number, touches a file, starts a task or iterates in a hasher's order: time and randomness are arguments.

pub mod catalog;
pub mod codec;
pub mod group;
pub mod partition;
pub mod retention;
