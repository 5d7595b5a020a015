//! One partition: what its entries mean.
//!
//! ```text
//!  a batch ──▶ Sequencer (leader only)          admit: duplicate? gap? fenced? which offset?
//!                 │ seal                        one EntryHead for everything admitted since the last one
//!                 ▼
//!     raft entry = EntryHead ++ stamped batches
//!                 │ committed
//!                 ▼
//!              PartitionMachine (every replica) apply: offsets move, the producer table moves, or the entry is void
//! ```
//!
//! The two share one rule book ([`producers`]): the sequencer runs ahead of the machine over entries in flight, and
//! arrives at the same state when they are applied. The machine checks again: what a sequencer of another term, or one
//! whose speculation did not come true, has stamped moves nothing.

mod checkpoint;
pub mod compaction;
mod entry;
mod fences;
mod machine;
pub mod producers;
mod sequencer;
mod settled;

pub use entry::{BatchSummary, EntryHead};
pub use machine::{Applied, PartitionMachine, VoidReason};
pub use producers::{Producer, ProducerLimits, SequenceFault, StoredBatch};
pub use sequencer::{Admission, Beside, Sequencer};
pub use settled::Settled;
