//! openraft's log storage over one group's log in the engine.
//!
//! Hazards handled here (numbers of the project's openraft notes):
//! * `append` returns when readable, its callback fires after the fsync: replication runs in parallel to the disk.
//! * Truncation goes through the same ordered queue as appends.
//! * 4.2 the committed position read at start is at most the durable end of the log.
//! * Reads for apply carry only an entry's summary, never its payload.
//! * Reads for replication are capped in bytes and return at least one entry.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use busbar_proto::limits;
use busbar_storage::{GroupLog, ReadError, ReadMode};
use futures::{Stream, StreamExt as _, stream};
use openraft::{
    OptionalSend,
    storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage},
};
use tokio::sync::oneshot;

use super::{
    convert,
    types::{LogId, RaftEntry, RaftVote, TypeConfig},
};
use crate::env::Clock;

/// Bytes of summaries that one read for apply returns at most.
const APPLY_READ_BYTES: usize = 4 << 20;
/// Bytes that one step of an unbounded read takes.
const READ_BYTES: usize = 8 << 20;

/// One group's log as openraft sees it. Clones share the log.
#[derive(Clone)]
pub struct LogStore {
    log: GroupLog,
    clock: Arc<dyn Clock>,
    /// Mark of the last entry, or of the checkpoint when the log is empty; entries without records inherit it.
    mark: Arc<AtomicU64>,
    /// Acknowledge appends from memory (`durability = replicated`) instead of after the fsync.
    lazy: bool,
}

impl LogStore {
    /// Wraps `log`. `mark` is shared with the state machine, which raises it to its checkpoint's mark.
    pub(crate) fn new(log: GroupLog, clock: Arc<dyn Clock>, mark: Arc<AtomicU64>, lazy: bool) -> Self {
        mark.fetch_max(log.state().last_mark.unwrap_or(0), Ordering::AcqRel);
        Self { log, clock, mark, lazy }
    }

    async fn read(&self, from: u64, to: u64, max_bytes: usize, mode: ReadMode) -> io::Result<Vec<RaftEntry>> {
        let entries = self.log.read(from, to, max_bytes, mode).await.map_err(read_failed)?;
        entries.into_iter().map(|entry| convert::entry_from_log(entry).map_err(io::Error::other)).collect()
    }

    /// `[from, to)` cut to what the log holds.
    fn clamp(&self, range: impl RangeBounds<u64>) -> (u64, u64) {
        let state = self.log.state();
        let end = state.last.map_or(0, |last| last.index + 1);
        let first = state.first.unwrap_or(end);
        let from = match range.start_bound() {
            Bound::Included(&index) => index,
            Bound::Excluded(&index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&index) => index.saturating_add(1),
            Bound::Excluded(&index) => index,
            Bound::Unbounded => u64::MAX,
        };
        (from.max(first), to.min(end))
    }
}

fn read_failed(error: ReadError) -> io::Error {
    let kind = match &error {
        ReadError::Corrupt { .. } => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        let (mut from, to) = self.clamp(range);
        let mut entries = Vec::new();
        while from < to {
            let more = self.read(from, to, READ_BYTES, ReadMode::Full).await?;
            let Some(last) = more.last() else { break };
            from = last.log_id.index() + 1;
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        self.read(start, end, limits::APPEND_BYTES_TARGET, ReadMode::Full).await
    }

    async fn entries_stream<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<RaftEntry, io::Error>> + OptionalSend {
        let (from, to) = self.clamp(range);
        let store = self.clone();
        stream::unfold(from, move |from| {
            let store = store.clone();
            async move {
                if from >= to {
                    return None;
                }
                match store.read(from, to, APPLY_READ_BYTES, ReadMode::HeadOnly).await {
                    Ok(entries) => {
                        let next = entries.last().map_or(to, |last| last.log_id.index() + 1);
                        Some((stream::iter(entries.into_iter().map(Ok).collect::<Vec<_>>()), next))
                    }
                    Err(error) => Some((stream::iter(vec![Err(error)]), to)),
                }
            }
        })
        .flatten()
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.log.read_vote().map(convert::vote_from_log))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.log.state();
        let purged = state.purged.map(convert::from_position);
        let last = state.last.map(convert::from_position).or(purged);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let (done, saved) = oneshot::channel();
        let callback = Box::new(move |result| drop(done.send(result)));
        self.log.save_vote(convert::vote_to_log(vote), callback).map_err(io::Error::other)?;
        saved.await.map_err(|_| io::Error::other("the log engine stopped before the vote was saved"))?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.log.save_committed(committed.as_ref().map(convert::position));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        // What is purged lies in a checkpoint: there is nothing of it left here to apply again.
        let purged = self.log.state().purged.map(|at| at.index);
        let held = self.log.read_committed().filter(|at| Some(at.index) > purged);
        Ok(held.map(convert::from_position))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        // A disk that is slow or full makes the group wait; an error here would end the group's core for good.
        self.log.room().await;
        let now_ms = self.clock.unix_ms();
        // Only openraft's core task appends: nothing races between this load and the store below.
        let mut mark = self.mark.load(Ordering::Acquire);
        let entries: Vec<_> = entries
            .into_iter()
            .map(|entry| {
                let stored = convert::entry_to_log(entry, mark, now_ms);
                mark = stored.mark;
                stored
            })
            .collect();
        let done = Box::new(move |result| callback.io_completed(result));
        self.log.append_in_room(entries, self.lazy, done).map_err(io::Error::other)?;
        self.mark.store(mark, Ordering::Release);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.log.truncate_after(last.map(|id| id.index())).map_err(io::Error::other)?;
        if let Some(mark) = self.log.state().last_mark {
            self.mark.store(mark, Ordering::Release);
        }
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.log.purge(convert::position(&upto));
        Ok(())
    }
}
