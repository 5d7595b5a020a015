//! Reads a partition in offset order, batch by batch, never past the high watermark. A reader is a position: it
//! holds no lock, file or memory between calls, so a slow one costs nobody anything.
//!
//! Entries that were voided when applied are skipped, and so is what lies below the wanted offset, batches that compaction
//! hollowed, and those whose digest says that the filter wants none of their records. Batches are never cut: the first
//! one may begin below the wanted offset. A batch without a digest, or with one that is not understood, is never skipped.

use std::{ops::Range, sync::Arc};

use busbar_machine::partition::EntryHead;
use busbar_proto::{
    LogIndex, Offset, Reason, Refusal,
    filter::{Digest, Filter},
};
use busbar_storage::ReadError;
use bytes::Bytes;

use super::Replica;
use crate::raft::{AppliedState, group::Logged};

/// A position in a partition.
pub struct Reader {
    replica: Arc<Replica>,
    next_offset: Offset,
    /// Where `next_offset` is or will be in the log; `None` = to be looked up.
    next_index: Option<LogIndex>,
    filter: Option<Filter>,
    applied: tokio::sync::watch::Receiver<AppliedState>,
}

/// Batches that follow one another.
#[derive(Clone, Debug)]
pub struct Run {
    /// Of the first record of the first batch.
    pub first_offset: Offset,
    /// After the last record of the last batch.
    pub next_offset: Offset,
    /// The whole batches, back to back.
    pub batches: Bytes,
}

impl Reader {
    pub(super) fn new(replica: Arc<Replica>, from: Offset) -> Self {
        let applied = replica.group().shared().watch();
        Self { replica, next_offset: from, next_index: None, filter: None, applied }
    }

    /// The same, without batches in which no record can match.
    #[must_use]
    pub fn filtered(self, filter: Option<Filter>) -> Self {
        Self { filter, ..self }
    }

    /// The offset of the next record it will return.
    pub fn next_offset(&self) -> Offset {
        self.next_offset
    }

    /// The high watermark now.
    pub fn high_watermark(&self) -> Offset {
        self.replica.bounds().1
    }

    /// Whole batches from the position on, about `max_bytes` of them but at least one entry; empty when the reader is
    /// at the high watermark, or has moved on and found nothing but what the filter or compaction leaves out. Cancel safe:
    /// the position moves only on return.
    ///
    /// # Errors
    /// [`Reason::OffsetOutOfRange`] below the log start, [`Reason::StorageCorrupt`] where stored bytes are damaged.
    pub async fn next(&mut self, max_bytes: usize) -> Result<Vec<Run>, Refusal> {
        loop {
            let (log_start, high_watermark) = self.replica.bounds();
            if self.next_offset < log_start {
                return Err(out_of_range(self.next_offset, log_start, high_watermark));
            }
            if self.next_offset >= high_watermark {
                return Ok(Vec::new());
            }
            let index = match self.next_index {
                Some(index) => index,
                None => self.find().await?,
            };
            let (entries, next_index) = match self.replica.group().read_records(index, max_bytes).await {
                Ok(read) => read,
                Err(ReadError::Purged { .. }) => {
                    // The log start moved past us between the check and the read: look again.
                    self.next_index = None;
                    tokio::task::yield_now().await;
                    continue;
                }
                Err(error) => return Err(unreadable(&error)),
            };
            let mut runs = Vec::with_capacity(entries.len());
            let mut next_offset = self.next_offset;
            for entry in entries {
                self.wanted(&entry, &mut next_offset, &mut runs)?;
            }
            let moved = next_index > index;
            let passed = next_offset > self.next_offset;
            self.next_offset = next_offset;
            self.next_index = Some(next_index);
            if passed || !moved {
                return Ok(runs);
            }
        }
    }

    /// Waits until there is something to read. Cancel safe.
    pub async fn readable(&mut self) -> Result<(), Refusal> {
        let wanted = self.next_offset.get();
        let waited = self.applied.wait_for(|state| state.mark > wanted).await;
        waited
            .map(drop)
            .map_err(|_| Refusal::new(Reason::ShuttingDown, "the partition left this node: look it up again"))
    }

    async fn find(&self) -> Result<LogIndex, Refusal> {
        let found = self.replica.group().log().find_mark(self.next_offset.get()).await;
        let found = found.map_err(|error| unreadable(&error))?;
        found.map(LogIndex::new).ok_or_else(|| {
            let wanted = self.next_offset;
            Refusal::new(Reason::Internal, format!("offset {wanted} is below the high watermark but not in the log"))
        })
    }

    /// The batches of `entry` from `next_offset` on that are wanted; moves it past all of them.
    fn wanted(&self, entry: &Logged, next_offset: &mut Offset, runs: &mut Vec<Run>) -> Result<(), Refusal> {
        let corrupt = |what: &str| Refusal::new(Reason::StorageCorrupt, format!("log entry {}: {what}", entry.index));
        let head = EntryHead::decode(&entry.head).map_err(|error| corrupt(&error.to_string()))?;
        if head.body_bytes() != entry.body.len() as u64 {
            return Err(corrupt("its body is not as long as its summary says"));
        }
        let EntryHead::Batches { batches, .. } = head else { return Ok(()) };
        if self.replica.group().shared().read().is_void(entry.index) {
            return Ok(());
        }
        let mut at = 0;
        let mut digest_at: usize = batches.iter().map(|batch| batch.bytes as usize).sum();
        let mut open: Option<(Range<Offset>, Range<usize>)> = None;
        for batch in &batches {
            let bytes = at..at + batch.bytes as usize;
            let digest = digest_at..digest_at + batch.digest_bytes as usize;
            (at, digest_at) = (bytes.end, digest.end);
            let is_left = batch.next_offset() > *next_offset && !batch.is_hollow();
            let is_wanted = is_left && self.may_match(&entry.body[digest]);
            match &mut open {
                Some((offsets, run)) if is_wanted => (offsets.end, run.end) = (batch.next_offset(), bytes.end),
                None if is_wanted => open = Some((batch.base_offset..batch.next_offset(), bytes)),
                _ => close(open.take(), &entry.body, runs),
            }
        }
        close(open, &entry.body, runs);
        if let Some(last) = batches.last() {
            *next_offset = last.next_offset().max(*next_offset);
        }
        Ok(())
    }

    fn may_match(&self, digest: &[u8]) -> bool {
        let Some(filter) = &self.filter else { return true };
        // What is not known may match.
        digest.is_empty() || Digest::decode(digest).map_or(true, |digest| filter.may_match(&digest))
    }
}

fn close(open: Option<(Range<Offset>, Range<usize>)>, body: &Bytes, runs: &mut Vec<Run>) {
    runs.extend(open.map(|(offsets, range)| Run {
        first_offset: offsets.start,
        next_offset: offsets.end,
        batches: body.slice(range),
    }));
}

/// The refusal for an offset that is not there (any more, or yet).
pub(crate) fn out_of_range(wanted: Offset, log_start: Offset, high_watermark: Offset) -> Refusal {
    let message = format!(
        "offset {wanted} is not in this partition: it holds {log_start} to {high_watermark} (exclusive); \
         start from earliest or latest"
    );
    Refusal::new(Reason::OffsetOutOfRange, message)
}

fn unreadable(error: &ReadError) -> Refusal {
    match error {
        ReadError::Corrupt { .. } => Refusal::new(
            Reason::StorageCorrupt,
            format!("this replica's copy is damaged: {error}; read from another replica"),
        ),
        other => Refusal::new(Reason::Internal, format!("the log can't be read: {other}")),
    }
}
