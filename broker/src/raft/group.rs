//! One raft group on this node with its machine: start it, read what it has applied and its log. Everything that the rest
//! of the broker knows of consensus goes through [`Group`] and its [`GroupHandle`].

use std::{
    ops::Deref,
    sync::{Arc, atomic::AtomicU64},
};

use busbar_proto::{GroupId, LogIndex, NodeId};
use busbar_storage::{GroupLog, ReadError, ReadMode};
use bytes::Bytes;
use openraft::Raft;

pub use super::handle::{GroupHandle, Lag, Leadership, LeadershipWatch, ProposeError, Proposed};
use super::{
    convert,
    log_store::LogStore,
    machine::Machine,
    network::{Links, client::NetworkFactory},
    pulse::Pulse,
    registry::Registry,
    shared::{Applier as _, Shared},
    state_machine::{StateMachine, StateMachineParts},
    types::{RaftTiming, TypeConfig},
};
use crate::env::{Clock, StateStore, Tasks};

pub(crate) type RaftHandle = Raft<TypeConfig, StateMachine>;

/// What a group is made of.
pub struct GroupOptions {
    /// The group.
    pub id: GroupId,
    /// This node.
    pub node: NodeId,
    /// The group's log.
    pub log: GroupLog,
    /// Where its checkpoints are kept.
    pub store: Arc<dyn StateStore>,
    /// The way to its peers.
    pub links: Arc<Links>,
    /// Where peers find it.
    pub registry: Arc<Registry>,
    /// Election timing.
    pub timing: RaftTiming,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Its background tasks.
    pub tasks: Tasks,
    /// Acknowledge from memory instead of after the fsync.
    pub lazy: bool,
}

/// A group could not be started or changed; the text says what happened.
#[derive(Debug, thiserror::Error)]
#[error("raft group {group}: {message}")]
pub struct GroupError {
    /// The group.
    pub group: GroupId,
    /// What happened.
    pub message: String,
}

/// One entry with records, as stored.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Its index.
    pub index: LogIndex,
    /// Its summary.
    pub head: Bytes,
    /// Its records.
    pub body: Bytes,
}

/// A raft group on this node. `M` is its state machine; all that needs none is the [`GroupHandle`] it derefs to.
pub struct Group<M> {
    handle: GroupHandle,
    shared: Arc<Shared<M>>,
}

impl<M> Deref for Group<M> {
    type Target = GroupHandle;

    fn deref(&self) -> &GroupHandle {
        &self.handle
    }
}

impl<M: Machine> Group<M> {
    /// Opens the group's log and state and joins in. Not cancel safe.
    pub async fn start(options: GroupOptions, machine: M) -> Result<Self, GroupError> {
        let GroupOptions { id, node, log, store, links, registry, timing, clock, tasks, lazy } = options;
        let failed = |message: String| GroupError { group: id, message };
        let config = timing.to_config(format!("group-{id}"), lazy).map_err(|error| failed(error.to_string()))?;
        let shared = Arc::new(Shared::new(machine));
        let floor = Arc::new(AtomicU64::new(0));
        let parts =
            StateMachineParts { group: id, store: store.clone(), log: log.clone(), tasks, shared: shared.clone() };
        let machine = StateMachine::open(parts, floor.clone()).map_err(|error| failed(error.to_string()))?;
        let log_store = LogStore::new(log.clone(), clock, floor, lazy);
        let checkpoints = machine.checkpoints();
        let network = NetworkFactory { group: id, links };
        let raft = Raft::new(node.get(), config, network, log_store, machine).await;
        let raft = raft.map_err(|fatal| failed(fatal.to_string()))?;
        let pulse = Arc::new(Pulse::new(raft.clone()));
        registry.insert(id, pulse.clone());
        let applier = shared.clone();
        Ok(Self { handle: GroupHandle { id, node, raft, pulse, applier, checkpoints, log, store, registry }, shared })
    }

    /// The applied machine.
    pub fn shared(&self) -> &Arc<Shared<M>> {
        &self.shared
    }

    /// Entries with records from `from` up to what is applied, at most `max_bytes` (but one), and the index to go on
    /// from. Cancel safe.
    pub async fn read_records(&self, from: LogIndex, max_bytes: usize) -> Result<(Vec<Logged>, LogIndex), ReadError> {
        let end = self.shared.applied().at.index.next();
        if from >= end {
            return Ok((Vec::new(), from));
        }
        let entries = self.log().read(from.get(), end.get(), max_bytes, ReadMode::Full).await?;
        let next = entries.last().map_or(from, |last| LogIndex::new(last.index).next());
        let records = entries.into_iter().filter_map(|entry| {
            let mut body = entry.payload;
            let is_normal = convert::is_normal(entry.kind) && entry.head_len as usize <= body.len();
            is_normal.then(|| {
                let head = body.split_to(entry.head_len as usize);
                Logged { index: LogIndex::new(entry.index), head, body }
            })
        });
        Ok((records.collect(), next))
    }

    /// The mark of what is applied: the high watermark of a partition.
    pub fn mark(&self) -> u64 {
        self.shared.mark()
    }
}
