//! Mending a group whose log is here and whose checkpoint is not: the state store was deleted or damaged after the log's
//! start had moved. Votes and entries are the log's and are safe; only the machine's state at the log's start is gone,
//! and every peer has computed the same one.
//!
//! Invariant: a peer's checkpoint is taken only where this log proves that it fits: it covers the log's start, it lies
//! within what is durable here, and the entry there (or the start itself) has its term. So nothing of the log is
//! dropped, and nothing that was not committed becomes so.

use std::sync::Arc;

use busbar_proto::{GroupId, LogIndex, peer as wire};
use busbar_storage::{GroupLog, ReadMode};

use super::{
    checkpoint::{self, Checkpoint},
    convert,
    group::GroupError,
    state_machine::durable_end,
};
use crate::env::StateStore;

/// A group's log and the place of its checkpoints, before the group is started.
pub struct Stored {
    /// The group.
    pub id: GroupId,
    /// Its log.
    pub log: GroupLog,
    /// Where its checkpoints are.
    pub store: Arc<dyn StateStore>,
}

impl Stored {
    fn failed(&self, error: &impl std::fmt::Display) -> GroupError {
        GroupError { group: self.id, message: error.to_string() }
    }

    /// The first entry that a checkpoint must cover, when none of the stored ones does.
    ///
    /// # Errors
    /// The state store can't be read.
    pub fn missing(&self) -> Result<Option<LogIndex>, GroupError> {
        let Some(purged) = self.log.state().purged else { return Ok(None) };
        let rows = checkpoint::load(&*self.store, self.id, durable_end(&self.log)).map_err(|e| self.failed(&e))?;
        let covered = rows.last().is_some_and(|row| row.at.index() >= purged.index);
        Ok((!covered).then(|| LogIndex::new(purged.index)))
    }

    /// Stores a peer's checkpoint if this log proves that it fits; false if it does not.
    ///
    /// # Errors
    /// The message is malformed, or the log or the state store can't be read or written.
    pub async fn adopt(&self, offered: wire::Checkpoint) -> Result<bool, GroupError> {
        let row = Checkpoint::from_wire(offered, false).map_err(|error| self.failed(&error))?;
        let at = convert::position(&row.at);
        let (purged, durable) = (self.log.state().purged, self.log.durable_index());
        let fits = match purged {
            Some(purged) if at.index == purged.index => at.term == purged.term,
            Some(purged) if at.index > purged.index && Some(at.index) <= durable => {
                let read = self.log.read(at.index, at.index + 1, 0, ReadMode::HeadOnly).await;
                read.map_err(|error| self.failed(&error))?.first().is_some_and(|entry| entry.term == at.term)
            }
            _ => false,
        };
        if fits {
            checkpoint::save(&*self.store, self.id, &row).map_err(|error| self.failed(&error))?;
        }
        Ok(fits)
    }
}

#[cfg(test)]
mod tests {
    use busbar_storage::{Entry, LogEngine, LogOptions, Position, vfs::real::RealVfs};
    use bytes::Bytes;

    use super::*;
    use crate::{env::state::MemoryState, raft::types::StoredMembership};

    fn entry(term: u64, index: u64) -> Entry {
        Entry { term, index, kind: 1, mark: index, time_ms: 0, head_len: 0, payload: Bytes::from_static(b"x") }
    }

    fn offer(term: u64, index: u64) -> wire::Checkpoint {
        let at = convert::log_id(term, index);
        let state = Bytes::from_static(b"state");
        Checkpoint { at, membership: StoredMembership::default(), state, installed: false }.to_wire()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_a_checkpoint_that_the_log_proves_is_adopted() {
        let folder = tempfile::tempdir().unwrap();
        let options = LogOptions { file_bytes: 1 << 20, ..LogOptions::default() };
        let (engine, _) = LogEngine::open(Arc::new(RealVfs), folder.path(), options).unwrap();
        let log = engine.group(busbar_storage::GroupId(7)).unwrap();
        let stored = Stored { id: GroupId::new(7), log: log.clone(), store: Arc::new(MemoryState::default()) };
        let entries = (0..=9).map(|index| entry(1, index)).chain((10..=12).map(|index| entry(3, index))).collect();
        log.append(entries, Box::new(|_| {})).unwrap();
        log.wait_durable(12).await.unwrap();
        assert_eq!(stored.missing().unwrap(), None, "a whole log needs none");
        log.save_committed(Some(Position { term: 3, index: 12 }));
        log.purge(Position { term: 1, index: 5 });
        assert_eq!(stored.missing().unwrap(), Some(LogIndex::new(5)));
        for (term, index, why) in [
            (1, 4, "it does not cover the log's start"),
            (2, 5, "the log's start has another term"),
            (2, 10, "the entry there has another term"),
            (3, 13, "it lies beyond the log"),
        ] {
            assert!(!stored.adopt(offer(term, index)).await.unwrap(), "{term}/{index}: {why}");
        }
        assert_eq!(stored.missing().unwrap(), Some(LogIndex::new(5)), "nothing of that was stored");
        assert!(stored.adopt(offer(3, 10)).await.unwrap());
        assert_eq!(stored.missing().unwrap(), None);
        engine.close();
    }
}
