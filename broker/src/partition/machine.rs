//! The partition's pure machine under the raft adapter.

use busbar_machine::partition::{EntryHead, PartitionMachine};
use busbar_proto::{LogIndex, LogPosition};
use bytes::Bytes;

use crate::raft::{Applied, Machine, machine::MachineError};

impl Machine for PartitionMachine {
    fn apply(&mut self, at: LogPosition, head: &[u8]) -> Result<Applied, MachineError> {
        let head = EntryHead::decode(head).map_err(|error| MachineError(format!("entry {at}: {error}")))?;
        Ok(Applied::Partition(PartitionMachine::apply(self, at, &head)))
    }

    fn advance(&mut self, at: LogPosition) {
        PartitionMachine::advance(self, at);
    }

    fn mark(&self) -> u64 {
        self.next_offset().get()
    }

    fn encode(&self) -> Bytes {
        PartitionMachine::encode(self)
    }

    fn forget_below(&mut self, index: LogIndex) {
        PartitionMachine::forget_below(self, index);
    }

    fn restore(&mut self, encoded: &[u8], installed: bool) -> Result<(), MachineError> {
        *self = if encoded.is_empty() {
            Self::new()
        } else {
            Self::decode(encoded).map_err(|error| MachineError(format!("checkpoint: {error}")))?
        };
        if installed {
            self.begin_after_checkpoint();
        }
        Ok(())
    }
}
