//! The pure machine of a shard of consumer groups under the raft adapter.

use busbar_machine::group::{Command, GroupShard};
use busbar_proto::{LogIndex, LogPosition};
use bytes::Bytes;

use crate::raft::{Applied, Machine, machine::MachineError};

impl Machine for GroupShard {
    fn apply(&mut self, at: LogPosition, head: &[u8]) -> Result<Applied, MachineError> {
        let command = Command::decode(head).map_err(|error| MachineError(format!("group entry {at}: {error}")))?;
        Ok(Applied::Groups(GroupShard::apply(self, command)))
    }

    fn advance(&mut self, _at: LogPosition) {}

    fn mark(&self) -> u64 {
        0
    }

    fn encode(&self) -> Bytes {
        GroupShard::encode(self)
    }

    fn forget_below(&mut self, _index: LogIndex) {}

    fn restore(&mut self, encoded: &[u8], _installed: bool) -> Result<(), MachineError> {
        *self = if encoded.is_empty() {
            Self::new()
        } else {
            Self::decode(encoded).map_err(|error| MachineError(format!("group checkpoint: {error}")))?
        };
        Ok(())
    }
}
