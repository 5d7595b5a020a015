//! openraft's own storage suite on our log store and state machine, over the real log engine in a temporary folder.

use std::sync::{Arc, atomic::AtomicU64};

use busbar_machine::partition::PartitionMachine;
use busbar_proto::GroupId;
use busbar_storage::{LogEngine, LogOptions, vfs::real::RealVfs};
use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use super::{
    log_store::LogStore,
    shared::Shared,
    state_machine::{StateMachine, StateMachineParts},
    types::TypeConfig,
};
use crate::env::{SystemClock, Tasks, state::MemoryState};

struct Builder;

/// Keeps the engine and its folder alive while a test runs.
struct Place {
    _folder: TempDir,
    engine: LogEngine,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.engine.close();
    }
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, Place> for Builder {
    async fn build(&self) -> Result<(Place, LogStore, StateMachine), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        let options = LogOptions { file_bytes: 1 << 20, ..LogOptions::default() };
        let (engine, _) = LogEngine::open(Arc::new(RealVfs), folder.path(), options).unwrap();
        let log = engine.group(busbar_storage::GroupId(1)).unwrap();
        let floor = Arc::new(AtomicU64::new(0));
        let parts = StateMachineParts {
            group: GroupId::new(1),
            store: Arc::new(MemoryState::default()),
            log: log.clone(),
            tasks: Tasks::new(),
            shared: Arc::new(Shared::new(PartitionMachine::new())),
        };
        let machine = StateMachine::open(parts, floor.clone()).unwrap();
        let store = LogStore::new(log, Arc::new(SystemClock), floor, false);
        Ok((Place { _folder: folder, engine }, store, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_storage_suite() {
    Suite::test_all(Builder).await.unwrap();
}
