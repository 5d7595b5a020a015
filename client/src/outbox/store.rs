//! What an application's database must do for its outbox.

use std::{error::Error, future::Future};

use crate::record::Record;

/// One row of an outbox: a record that the application has handed over.
///
/// ```
/// use busbar_client::{OutboxRow, Record};
///
/// let row = OutboxRow::new(17, "orders", Record::new("paid").key("order-4711"));
/// assert_eq!((row.sequence, row.topic.as_str()), (17, "orders"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxRow {
    /// Its place in the outbox, from 1: the same for ever, and never another row's.
    pub sequence: u64,
    /// Where it goes.
    pub topic: String,
    /// What goes there. A deadline of its own ([`Record::send_before`]) is passed over: what is committed is delivered.
    pub record: Record,
}

impl OutboxRow {
    /// A row of this sequence.
    pub fn new(sequence: u64, topic: impl Into<String>, record: impl Into<Record>) -> Self {
        Self { sequence, topic: topic.into(), record: record.into() }
    }
}

/// The outbox as its [`Relay`](super::Relay) sees it: a table of the application's database. The application writes rows
/// in the transactions that they belong to; only the relay calls this.
///
/// **The one rule**: once a row was seen, no row with a smaller sequence may appear. Where transactions commit in another
/// order than that in which they drew their numbers (PostgreSQL's sequences, most databases), number the rows when they are
/// read, not when they are written; where one transaction writes at a time (SQLite), the number of the row will do, if it
/// is never used again (`AUTOINCREMENT`). The examples `outbox_sqlite.rs` and `outbox_postgres.rs` show both.
///
/// ```
/// use busbar_client::{OutboxRow, OutboxStore};
///
/// /// Rows in memory, in order.
/// struct Rows(Vec<OutboxRow>);
///
/// impl OutboxStore for Rows {
///     type Error = std::io::Error;
///
///     async fn pending(&mut self, after: u64, limit: usize) -> Result<Vec<OutboxRow>, Self::Error> {
///         Ok(self.0.iter().filter(|row| row.sequence > after).take(limit).cloned().collect())
///     }
///
///     async fn done(&mut self, up_to: u64) -> Result<(), Self::Error> {
///         self.0.retain(|row| row.sequence > up_to);
///         Ok(())
///     }
/// }
/// ```
pub trait OutboxStore: Send {
    /// What can go wrong in the database.
    type Error: Into<Box<dyn Error + Send + Sync>> + Send;

    /// The first `limit` committed rows with a sequence above `after` that are not done, in the order of their sequence.
    fn pending(&mut self, after: u64, limit: usize)
    -> impl Future<Output = Result<Vec<OutboxRow>, Self::Error>> + Send;

    /// Every row up to this sequence is stored for good: it may be deleted, or marked. May be called again for the same.
    fn done(&mut self, up_to: u64) -> impl Future<Output = Result<(), Self::Error>> + Send;
}
