//! The state machine under openraft, without openraft: what its checkpoints say, and how many there are.

use std::collections::BTreeSet;

use busbar_machine::partition::PartitionMachine;
use busbar_storage::{Entry, LogEngine, LogOptions, Position, vfs::real::RealVfs};
use futures::stream;
use openraft::{Membership, entry::RaftEntry as _, impls::EmptyNode};

use super::*;
use crate::{
    env::state::MemoryState,
    raft::{shared::Shared, types::RaftEntry},
};

#[test]
fn checkpoints_of_a_log_that_is_never_trimmed_are_bounded_and_stay_spread() {
    let mut rows = Vec::new();
    for index in 1..=10_000 {
        rows.push(convert::log_id(1, index));
        let dropped = thin_out(&mut rows);
        assert!(dropped.iter().all(|at| !rows.contains(at)));
        assert!(rows.len() <= CHECKPOINTS_MAX && rows[0].index() == 1 && rows.last().unwrap().index() == index);
    }
    let newer: Vec<u64> = rows[rows.len() / 2..].iter().map(LogId::index).collect();
    assert!(newer.windows(2).all(|pair| pair[1] == pair[0] + 1), "the newer half is complete: {newer:?}");
}

struct World {
    folder: tempfile::TempDir,
    engine: LogEngine,
    store: Arc<MemoryState>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = LogOptions { file_bytes: 1 << 20, ..LogOptions::default() };
        let (engine, _) = LogEngine::open(Arc::new(RealVfs), folder.path(), options).unwrap();
        Self { folder, engine, store: Arc::default() }
    }

    fn open(&self) -> io::Result<StateMachine> {
        let parts = StateMachineParts {
            group: GroupId::new(1),
            store: self.store.clone(),
            log: self.log(),
            tasks: Tasks::new(),
            shared: Arc::new(Shared::new(PartitionMachine::new())),
        };
        StateMachine::open(parts, Arc::default())
    }

    fn log(&self) -> GroupLog {
        self.engine.group(busbar_storage::GroupId(1)).unwrap()
    }

    /// Entries 0 to 9, durable.
    async fn fill_log(&self) {
        let entry = |index| Entry { term: 1, index, kind: 0, mark: 0, time_ms: 0, head_len: 0, payload: Bytes::new() };
        self.log().append((0..10).map(entry).collect(), Box::new(drop)).unwrap();
        self.log().wait_durable(9).await.unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.engine.close();
        assert!(self.folder.path().exists());
    }
}

async fn apply(machine: &mut StateMachine, index: u64, voters: Option<[u64; 2]>) {
    let payload = voters.map_or(EntryPayload::Blank, |voters| {
        let nodes = voters.map(|id| (id, EmptyNode {})).into_iter().collect::<std::collections::BTreeMap<_, _>>();
        EntryPayload::Membership(Membership::new(vec![BTreeSet::from(voters)], nodes).unwrap())
    });
    let entry = RaftEntry::new(convert::log_id(1, index), payload);
    machine.apply(stream::iter([Ok((entry, None))])).await.unwrap();
}

fn voters(meta: &SnapshotMeta) -> Vec<u64> {
    meta.last_membership.voter_ids().collect()
}

/// OPENRAFT.md hazard 4.5: what a checkpoint tells of the membership is what held there, not what holds now.
#[tokio::test]
async fn a_checkpoint_carries_the_membership_of_its_own_position() {
    let world = World::new();
    world.fill_log().await;
    let mut machine = world.open().unwrap();
    apply(&mut machine, 0, Some([1, 2])).await;
    apply(&mut machine, 1, None).await;
    let mut builder = machine.try_create_snapshot_builder(true).await.unwrap();
    assert_eq!(builder.build_snapshot().await.unwrap().meta.last_log_id, Some(convert::log_id(1, 1)));
    apply(&mut machine, 2, Some([3, 4])).await;
    apply(&mut machine, 3, None).await;

    machine.checkpoints().allow_purge_to(3);
    let mut builder = machine.try_create_snapshot_builder(false).await.unwrap();
    let meta = builder.build_snapshot().await.unwrap().meta;
    assert_eq!((meta.last_log_id, voters(&meta)), (Some(convert::log_id(1, 1)), vec![1, 2]));
    let current = machine.get_current_snapshot().await.unwrap().unwrap().meta;
    assert_eq!((current.last_log_id, voters(&current)), (Some(convert::log_id(1, 1)), vec![1, 2]));
    // And so after a restart, which goes on from there.
    let (applied, membership) = world.open().unwrap().applied_state().await.unwrap();
    assert_eq!(applied, Some(convert::log_id(1, 1)));
    assert_eq!(membership.voter_ids().collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn a_log_without_its_checkpoint_is_refused_and_the_advice_is_given() {
    let world = World::new();
    world.fill_log().await;
    world.log().purge(Position { term: 1, index: 4 });
    let error = world.open().map(drop).unwrap_err().to_string();
    assert!(error.contains("behind entry 4") && error.contains("empty data folder"), "{error}");
}

fn save_row(world: &World, term: u64, index: u64, installed: bool) {
    let state = Shared::new(PartitionMachine::new()).encode();
    let row =
        Checkpoint { at: convert::log_id(term, index), membership: StoredMembership::default(), state, installed };
    checkpoint::save(&*world.store, GroupId::new(1), &row).unwrap();
}

#[tokio::test]
async fn a_checkpoint_from_before_the_start_of_the_log_does_not_stand_in_for_the_one_that_is_missing() {
    let world = World::new();
    world.fill_log().await;
    save_row(&world, 1, 2, false);
    world.log().purge(Position { term: 1, index: 4 });
    let error = world.open().map(drop).unwrap_err().to_string();
    assert!(error.contains("behind entry 4"), "{error}");
    save_row(&world, 1, 4, false);
    assert!(world.open().is_ok());
}

/// A crash right after an installed checkpoint was stored, and before the cut of the log in front of it was.
#[tokio::test]
async fn a_tail_that_an_installed_checkpoint_had_replaced_does_not_come_back() {
    let world = World::new();
    world.fill_log().await;
    save_row(&world, 3, 5, true);
    let (applied, _) = world.open().unwrap().applied_state().await.unwrap();
    assert_eq!(applied, Some(convert::log_id(3, 5)));
    let state = world.log().state();
    assert_eq!((state.first, state.last), (None, Some(Position { term: 3, index: 5 })));
}
