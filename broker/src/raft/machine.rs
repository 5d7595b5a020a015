//! What the adapter asks of a replicated state machine, and the answers it carries back to proposers.

use busbar_machine::{catalog, group, partition};
use busbar_proto::{LogIndex, LogPosition};
use bytes::Bytes;

/// The state machine refuses bytes that consensus agreed on: a bug or corruption. The group must stop.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MachineError(pub String);

/// What applying an entry did; travels back to whoever proposed it.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// A blank or membership entry.
    Nothing,
    /// A partition's entry.
    Partition(partition::Applied),
    /// A catalog command.
    Catalog(catalog::Outcome),
    /// A command for consumer groups.
    Groups(group::Outcome),
}

/// A pure replicated state machine. Applying is deterministic and does no I/O.
pub trait Machine: Send + Sync + 'static {
    /// Applies the entry at `at`; `head` is its summary.
    fn apply(&mut self, at: LogPosition, head: &[u8]) -> Result<Applied, MachineError>;
    /// A blank or membership entry was applied at `at`.
    fn advance(&mut self, at: LogPosition);
    /// The offset after the last record; 0 for machines without records.
    fn mark(&self) -> u64;
    /// The whole state as bytes.
    fn encode(&self) -> Bytes;
    /// Replaces the state by an encoded one; empty bytes are the initial state. `installed`: it came from a peer, and
    /// the entries that it covers are not held here.
    fn restore(&mut self, encoded: &[u8], installed: bool) -> Result<(), MachineError>;
    /// The log's entries below `index` are gone: whatever is remembered of them alone may go too.
    fn forget_below(&mut self, index: LogIndex);
}

impl Applied {
    /// Whether the entry moved the log start to `mark`, the end, so that no record is left.
    pub(crate) fn trims_everything(&self, mark: u64) -> bool {
        matches!(self, Self::Partition(partition::Applied::Trimmed { log_start }) if log_start.get() == mark)
    }
}
