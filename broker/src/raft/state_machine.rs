//! Drives a pure machine under openraft: applies entries, answers proposers, takes and installs checkpoints.
//!
//! Invariants:
//! * `checkpoint <= durable end of the log` for checkpoints made here (see [`super::checkpoint`]).
//! * The current snapshot is the oldest stored checkpoint at or above the purged position; rows below it go only
//!   after the purge, so a sender never finds less than it needs.
//! * The machine is changed only by openraft's apply task; everyone else reads it through [`super::shared::Shared`].

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use busbar_proto::{GroupId, LogPosition};
use busbar_storage::GroupLog;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine},
};
use parking_lot::Mutex;

use super::{
    checkpoint::{self, Checkpoint},
    convert,
    machine::Applied,
    shared::{AppliedState, Applier},
    types::{LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::env::{StateStore, Tasks};

/// Entries between two checkpoints: bounds what a restart replays.
const CHECKPOINT_ENTRIES: u64 = 20_000;
/// Growth of the log, in bytes, between two checkpoints, at most; half a segment, if that is less. A segment can be
/// unlinked once a checkpoint behind it is stored: this bounds how far retention lags behind its limit.
const CHECKPOINT_LOG_BYTES: u64 = 64 << 20;

/// Checkpoints kept of one group. Beyond that the older half is thinned out: a log that is never trimmed must not
/// gather them without end, and one that is trimmed late only lags a little more.
const CHECKPOINTS_MAX: usize = 64;

/// Where a group's checkpoints stand. Shared with the upkeep that asks for a purge.
pub(crate) struct Checkpoints {
    group: GroupId,
    store: Arc<dyn StateStore>,
    log: GroupLog,
    tasks: Tasks,
    /// Stored rows, oldest first.
    rows: Mutex<Vec<LogId>>,
    /// Newest index that may be checkpointed away; raised by the replicated log start.
    retain_from: AtomicU64,
}

impl Checkpoints {
    /// Allows everything up to `index` to be covered by a checkpoint and purged; true if a stored row is there.
    pub(crate) fn allow_purge_to(&self, index: u64) -> bool {
        self.retain_from.fetch_max(index, Ordering::AcqRel);
        self.candidate().is_some()
    }

    fn candidate(&self) -> Option<LogId> {
        let limit = self.retain_from.load(Ordering::Acquire);
        let purged = self.log.state().purged.map_or(0, |at| at.index);
        let rows = self.rows.lock();
        rows.iter().rev().find(|row| row.index() <= limit && row.index() > purged).copied()
    }

    fn read(&self, at: &LogId) -> io::Result<Option<Checkpoint>> {
        let rows = checkpoint::load(&*self.store, self.group, durable_end(&self.log)).map_err(io::Error::other)?;
        Ok(rows.into_iter().find(|row| row.at == *at))
    }

    fn current(&self) -> io::Result<Option<Checkpoint>> {
        let purged = self.log.state().purged.map_or(0, |at| at.index);
        let oldest = self.rows.lock().iter().find(|row| row.index() >= purged).copied();
        match oldest {
            Some(at) => self.read(&at),
            None => Ok(None),
        }
    }

    /// The oldest stored row that covers `from`, for a peer that has lost its own.
    pub(crate) fn oldest_from(&self, from: u64) -> io::Result<Option<Checkpoint>> {
        let found = self.rows.lock().iter().find(|row| row.index() >= from).copied();
        found.map_or(Ok(None), |at| self.read(&at))
    }

    /// Stores `row` once the log is durable up to it; in the background, off the apply path.
    fn save_when_durable(self: &Arc<Self>, row: Checkpoint) {
        let this = self.clone();
        self.tasks.spawn("save checkpoint", async move {
            if this.log.wait_durable(row.at.index()).await.is_err() {
                return; // the engine is poisoned: the process is on its way out
            }
            let saver = this.clone();
            let saved = this.tasks.spawn_blocking(move || saver.save(&row)).await;
            if let Ok(Err(error)) = saved {
                tracing::warn!(group = %this.group, %error, "a checkpoint could not be stored; a restart will replay more");
            }
        });
    }

    fn save(&self, row: &Checkpoint) -> io::Result<()> {
        checkpoint::save(&*self.store, self.group, row).map_err(io::Error::other)?;
        let mut rows = self.rows.lock();
        rows.push(row.at);
        rows.sort_unstable_by_key(LogId::index);
        rows.dedup();
        let dropped = thin_out(&mut rows);
        drop(rows);
        for at in dropped {
            checkpoint::forget(&*self.store, self.group, at.index()).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Drops the rows that a purge has made useless.
    pub(crate) fn forget_purged(&self) -> io::Result<()> {
        let purged = self.log.state().purged.map_or(0, |at| at.index);
        let keep_from = {
            let mut rows = self.rows.lock();
            let Some(current) = rows.iter().find(|row| row.index() >= purged).map(LogId::index) else { return Ok(()) };
            let before = rows.len();
            rows.retain(|row| row.index() >= current);
            if rows.len() == before {
                return Ok(());
            }
            current
        };
        checkpoint::forget_below(&*self.store, self.group, keep_from).map_err(io::Error::other)
    }
}

/// Takes every second row out of the older half when there are too many; never the first, which may be the log's start.
fn thin_out(rows: &mut Vec<LogId>) -> Vec<LogId> {
    if rows.len() <= CHECKPOINTS_MAX {
        return Vec::new();
    }
    let older = rows.len() / 2;
    let all = std::mem::take(rows);
    let mut dropped = Vec::new();
    for (n, at) in all.into_iter().enumerate() {
        let kept = n >= older || n.is_multiple_of(2);
        if kept { &mut *rows } else { &mut dropped }.push(at);
    }
    dropped
}

/// The last index up to which this replica's own checkpoints may be believed: what is durable, or was and is purged.
pub(crate) fn durable_end(log: &GroupLog) -> Option<u64> {
    log.durable_index().max(log.state().purged.map(|at| at.index))
}

/// An installed checkpoint is stored at once, the cut that goes before it is only queued for the journal: a crash in
/// between brings back the tail of an older term that it replaced, which openraft takes for a damaged log.
fn drop_replaced_tail(log: &GroupLog, row: &Checkpoint) -> io::Result<()> {
    let at = convert::position(&row.at);
    let replaced = |last: &busbar_storage::Position| last.index >= at.index && last.term < at.term;
    if row.installed && log.state().last.as_ref().is_some_and(replaced) {
        tracing::warn!(at = %row.at, "dropping the tail of the log that an installed checkpoint had replaced");
        log.truncate_after(at.index.checked_sub(1)).map_err(io::Error::other)?;
        log.purge(at);
    }
    Ok(())
}

/// openraft's state machine over a [`super::machine::Machine`].
pub struct StateMachine {
    shared: Arc<dyn Applier>,
    checkpoints: Arc<Checkpoints>,
    mark_floor: Arc<AtomicU64>,
    applied: Option<LogId>,
    membership: StoredMembership,
    checkpointed: u64,
    checkpointed_bytes: u64,
    /// Growth of the log that makes a checkpoint due.
    checkpoint_bytes: u64,
}

/// The parts that [`StateMachine::open`] needs.
pub(crate) struct StateMachineParts {
    pub(crate) group: GroupId,
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) log: GroupLog,
    pub(crate) tasks: Tasks,
    pub(crate) shared: Arc<dyn Applier>,
}

impl StateMachine {
    /// Restores the machine from the newest usable checkpoint; openraft replays the log from there.
    pub(crate) fn open(parts: StateMachineParts, mark_floor: Arc<AtomicU64>) -> io::Result<Self> {
        let StateMachineParts { group, store, log, tasks, shared } = parts;
        let rows = checkpoint::load(&*store, group, durable_end(&log)).map_err(io::Error::other)?;
        let newest = rows.last().cloned();
        // An older checkpoint would leave out what lies between it and the log's start, without a word.
        let covered = newest.as_ref().map(|row| row.at.index());
        if let Some(purged) = log.state().purged.filter(|purged| covered < Some(purged.index)) {
            return Err(io::Error::other(format!(
                "the log begins behind entry {}, and the checkpoint for that is missing or damaged: the state folder \
                 does not belong to this log, or was deleted, and no peer has answered with one that fits. Is a majority \
                 of the nodes running? Else drain and remove this node from another one, then join again with an empty \
                 data folder",
                purged.index
            )));
        }
        if let Some(row) = &newest {
            drop_replaced_tail(&log, row)?;
            shared.restore(&row.state, row.installed).map_err(io::Error::other)?;
        }
        let applied = newest.as_ref().map(|row| row.at);
        let membership = newest.map(|row| row.membership).unwrap_or_default();
        mark_floor.fetch_max(shared.mark(), Ordering::AcqRel);
        shared.publish(AppliedState { at: applied.map(position).unwrap_or_default(), mark: shared.mark() });
        let checkpoints = Arc::new(Checkpoints {
            group,
            store,
            log,
            tasks,
            rows: Mutex::new(rows.iter().map(|row| row.at).collect()),
            retain_from: AtomicU64::new(0),
        });
        Ok(Self {
            shared,
            checkpointed: applied.map_or(0, |at| at.index()),
            checkpointed_bytes: checkpoints.log.size_bytes(),
            checkpoint_bytes: CHECKPOINT_LOG_BYTES.min(checkpoints.log.segment_bytes() / 2),
            checkpoints,
            mark_floor,
            applied,
            membership,
        })
    }

    /// Where the checkpoints stand.
    pub(crate) fn checkpoints(&self) -> Arc<Checkpoints> {
        self.checkpoints.clone()
    }

    fn checkpoint_now(&self, at: LogId, installed: bool) -> Checkpoint {
        let state = self.shared.encode();
        Checkpoint { at, membership: self.membership.clone(), state, installed }
    }

    fn checkpoint_if_due(&mut self, at: LogId, all_trimmed: bool) {
        let bytes = self.checkpoints.log.size_bytes();
        let due = at.index() - self.checkpointed >= CHECKPOINT_ENTRIES
            || bytes.saturating_sub(self.checkpointed_bytes) >= self.checkpoint_bytes
            || all_trimmed;
        // Purging shrinks the log: follow it down, or growth would be measured from a stale peak.
        self.checkpointed_bytes = self.checkpointed_bytes.min(bytes);
        if due {
            self.checkpointed = at.index();
            self.checkpointed_bytes = bytes;
            self.checkpoints.save_when_durable(self.checkpoint_now(at, false));
        }
    }

    /// Takes a checkpoint of what is applied; for a clean shutdown.
    pub(crate) fn checkpoint_applied(&self) {
        if let Some(at) = self.applied {
            self.checkpoints.save_when_durable(self.checkpoint_now(at, false));
        }
    }
}

fn position(at: LogId) -> LogPosition {
    LogPosition::new(at.committed_leader_id().term, at.index())
}

fn snapshot_of(row: &Checkpoint) -> Snapshot {
    let meta = SnapshotMeta { last_log_id: Some(row.at), last_membership: row.membership.clone() };
    Snapshot { meta, snapshot: row.state.clone() }
}

/// Builds openraft's snapshot from a checkpoint that is stored already, or stores a forced one first.
pub struct CheckpointBuilder {
    checkpoints: Arc<Checkpoints>,
    row: Checkpoint,
    stored: bool,
}

impl RaftSnapshotBuilder<TypeConfig> for CheckpointBuilder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        if !self.stored {
            self.checkpoints.save(&self.row)?;
            self.checkpoints.retain_from.fetch_max(self.row.at.index(), Ordering::AcqRel);
            self.stored = true;
        }
        Ok(snapshot_of(&self.row))
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = CheckpointBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let at = entry.log_id;
            let applied = match entry.payload {
                EntryPayload::Normal(proposal) => {
                    let head = proposal.payload.get(..proposal.head_len as usize);
                    let head =
                        head.ok_or_else(|| io::Error::other(format!("entry {at} is shorter than its summary")))?;
                    self.shared.apply(position(at), head).map_err(io::Error::other)?
                }
                EntryPayload::Blank => {
                    self.shared.advance(position(at));
                    Applied::Nothing
                }
                EntryPayload::Membership(membership) => {
                    self.shared.advance(position(at));
                    self.membership = StoredMembership::new(Some(at), membership);
                    Applied::Nothing
                }
            };
            self.applied = Some(at);
            let mark = self.shared.mark();
            let all_trimmed = applied.trims_everything(mark);
            self.shared.publish(AppliedState { at: position(at), mark });
            if let Some(responder) = responder {
                responder.send(applied);
            }
            self.checkpoint_if_due(at, all_trimmed);
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<CheckpointBuilder> {
        let checkpoints = self.checkpoints.clone();
        if force {
            // Only openraft's start-up repair and its storage suite force; the row may lie beyond the log then. The
            // suite also forces with nothing applied and a purged log, which `open` refuses.
            let purged = checkpoints.log.state().purged.map(convert::from_position);
            let at = self.applied.max(purged)?;
            let beyond = checkpoints.log.durable_index() < Some(at.index());
            return Some(CheckpointBuilder { checkpoints, row: self.checkpoint_now(at, beyond), stored: false });
        }
        let at = checkpoints.candidate()?;
        let row = checkpoints.read(&at).ok().flatten()?;
        Some(CheckpointBuilder { checkpoints, row, stored: true })
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointBuilder {
        let row = self.checkpoint_now(self.applied.unwrap_or_else(|| convert::log_id(0, 0)), false);
        CheckpointBuilder { checkpoints: self.checkpoints.clone(), row, stored: false }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, state: Bytes) -> Result<(), io::Error> {
        let at = meta.last_log_id.ok_or_else(|| io::Error::other("a checkpoint without a position"))?;
        let row = Checkpoint { at, membership: meta.last_membership.clone(), state, installed: true };
        // Decode before storing: bytes that this version can't read must not replace a usable state.
        self.shared.restore(&row.state, true).map_err(io::Error::other)?;
        self.mark_floor.fetch_max(self.shared.mark(), Ordering::AcqRel);
        self.checkpoints.save(&row)?;
        self.applied = Some(at);
        self.membership = row.membership;
        self.checkpointed = at.index();
        let mark = self.shared.mark();
        self.shared.publish(AppliedState { at: position(at), mark });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.checkpoints.current()?.as_ref().map(snapshot_of))
    }
}

#[cfg(test)]
mod tests;
