//! What the broker does for its callers, whatever protocol they speak: publish, read, describe, administer. Owns the
//! replicas of this node and keeps them as the catalog says.
//!
//! | file | owns |
//! |---|---|
//! | [`cluster`] | the catalog group: proposing commands from any node |
//! | [`broker`] | the use-cases |
//! | [`leaders`] | who leads what, gathered from all nodes |
//! | [`reconcile`] | replicas on this node against the catalog |
//! | [`rebuild`] | checkpoints from peers, where the own one is lost |
//! | `hosted` | what this node hosts: partitions and shards of consumer groups alike |
//! | [`groups`] | consumer groups: from any node to the shard that knows, members, coordination |
//! | [`moves`] | partitions on their way to other nodes; preferred leaders |
//! | [`producers`] | producer ids, names of producers, what is stored of one |
//! | `cleaning` | compaction: which partition is due, what is agreed on tombstones |
//! | [`upkeep`] | retention, checkpoints, catalog membership |
//! | [`metadata`], [`describe`] | what clients are told |

pub mod broker;
pub mod catalog_machine;
mod cleaning;
pub mod cluster;
pub mod describe;
pub mod groups;
mod hosted;
pub mod leaders;
pub mod metadata;
pub mod moves;
pub mod peers;
pub mod producers;
pub mod rebuild;
pub mod reconcile;
pub mod upkeep;

pub use broker::{Broker, BrokerOptions};
pub use cluster::Cluster;
