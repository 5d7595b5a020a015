//! The applied state machine as two sides see it: the apply task changes it through `Applier`, everyone else reads
//! it through [`Shared`] and follows how far it is.

use busbar_proto::{LogIndex, LogPosition};
use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::watch;

use super::machine::{Applied, Machine, MachineError};

/// What has been applied; watched by readers and by proposers that wait for their term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppliedState {
    /// Last applied entry.
    pub at: LogPosition,
    /// Offset after the last applied record.
    pub mark: u64,
}

/// The applied machine, shared between the apply task (writes) and everyone else (reads).
pub struct Shared<M> {
    machine: RwLock<M>,
    applied: watch::Sender<AppliedState>,
}

impl<M: Machine> Shared<M> {
    /// Starts with `machine` and nothing applied.
    pub fn new(machine: M) -> Self {
        Self { machine: RwLock::new(machine), applied: watch::Sender::new(AppliedState::default()) }
    }

    /// The machine as applied now. Hold the guard shortly and never across an await: apply waits for it.
    pub fn read(&self) -> RwLockReadGuard<'_, M> {
        self.machine.read()
    }

    /// Follows what is applied.
    pub fn watch(&self) -> watch::Receiver<AppliedState> {
        self.applied.subscribe()
    }

    /// What is applied now.
    pub fn applied(&self) -> AppliedState {
        *self.applied.borrow()
    }
}

/// The apply task's side, whatever the machine.
pub(crate) trait Applier: Send + Sync + 'static {
    fn apply(&self, at: LogPosition, head: &[u8]) -> Result<Applied, MachineError>;
    fn advance(&self, at: LogPosition);
    fn mark(&self) -> u64;
    fn encode(&self) -> Bytes;
    fn restore(&self, encoded: &[u8], installed: bool) -> Result<(), MachineError>;
    fn forget_below(&self, index: LogIndex);
    fn publish(&self, state: AppliedState);
}

impl<M: Machine> Applier for Shared<M> {
    fn apply(&self, at: LogPosition, head: &[u8]) -> Result<Applied, MachineError> {
        self.machine.write().apply(at, head)
    }

    fn advance(&self, at: LogPosition) {
        self.machine.write().advance(at);
    }

    fn mark(&self) -> u64 {
        self.machine.read().mark()
    }

    fn encode(&self) -> Bytes {
        self.machine.read().encode()
    }

    fn restore(&self, encoded: &[u8], installed: bool) -> Result<(), MachineError> {
        self.machine.write().restore(encoded, installed)
    }

    fn forget_below(&self, index: LogIndex) {
        self.machine.write().forget_below(index);
    }

    fn publish(&self, state: AppliedState) {
        self.applied.send_replace(state);
    }
}
