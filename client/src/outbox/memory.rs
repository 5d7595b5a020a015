//! An outbox in memory, for tests and for trying things out: it ends with the process, which an outbox is there to survive.

use std::{collections::VecDeque, convert::Infallible, sync::Arc};

use parking_lot::Mutex;

use super::store::{OutboxRow, OutboxStore};
use crate::record::Record;

/// Rows that it holds unless told otherwise.
const ROWS_MAX: usize = 100_000;

/// An outbox in memory. Clones share it, so that one can be kept by the application (or a test) and outlive relays.
///
/// ```
/// use busbar_client::MemoryOutbox;
///
/// let outbox = MemoryOutbox::with_room_for(2);
/// assert_eq!(outbox.push("orders", "one").ok(), Some(1));
/// assert_eq!(outbox.push("orders", "two").ok(), Some(2));
/// assert!(outbox.push("orders", "three").is_err(), "it is full");
/// assert_eq!(outbox.len(), 2);
/// ```
#[derive(Clone, Debug)]
pub struct MemoryOutbox {
    rows: Arc<Mutex<Rows>>,
}

#[derive(Debug)]
struct Rows {
    waiting: VecDeque<OutboxRow>,
    rows_max: usize,
    last: u64,
}

/// The outbox holds as many rows as it may; here is the record back.
///
/// ```
/// use busbar_client::{MemoryOutbox, OutboxFull, Record};
///
/// let outbox = MemoryOutbox::with_room_for(0);
/// let OutboxFull { record, rows_max } = outbox.push("orders", "paid").expect_err("no room");
/// assert_eq!((*record, rows_max), (Record::new("paid"), 0));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the outbox is full: {rows_max} rows wait to be relayed")]
pub struct OutboxFull {
    /// What was to be added.
    pub record: Box<Record>,
    /// Rows that it holds at most.
    pub rows_max: usize,
}

impl Default for MemoryOutbox {
    fn default() -> Self {
        Self::with_room_for(ROWS_MAX)
    }
}

impl MemoryOutbox {
    /// An empty one with room for 100,000 rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty one with room for so many rows.
    pub fn with_room_for(rows_max: usize) -> Self {
        Self { rows: Arc::new(Mutex::new(Rows { waiting: VecDeque::new(), rows_max, last: 0 })) }
    }

    /// Adds a row; returns its sequence. Tell the relay's [`RelayHandle::notify`](super::RelayHandle::notify) then.
    ///
    /// # Errors
    /// It is full.
    pub fn push(&self, topic: impl Into<String>, record: impl Into<Record>) -> Result<u64, OutboxFull> {
        let mut rows = self.rows.lock();
        let record = record.into();
        if rows.waiting.len() >= rows.rows_max {
            return Err(OutboxFull { record: Box::new(record), rows_max: rows.rows_max });
        }
        rows.last += 1;
        let sequence = rows.last;
        rows.waiting.push_back(OutboxRow::new(sequence, topic, record));
        Ok(sequence)
    }

    /// Rows that are not done.
    pub fn len(&self) -> usize {
        self.rows.lock().waiting.len()
    }

    /// Whether every row is done.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl OutboxStore for MemoryOutbox {
    type Error = Infallible;

    async fn pending(&mut self, after: u64, limit: usize) -> Result<Vec<OutboxRow>, Infallible> {
        let rows = self.rows.lock();
        let begin = rows.waiting.partition_point(|row| row.sequence <= after);
        Ok(rows.waiting.iter().skip(begin).take(limit).cloned().collect())
    }

    async fn done(&mut self, up_to: u64) -> Result<(), Infallible> {
        let mut rows = self.rows.lock();
        while rows.waiting.pop_front_if(|row| row.sequence <= up_to).is_some() {}
        Ok(())
    }
}
