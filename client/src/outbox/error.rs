//! What ends a relay.

use std::{error::Error, sync::Arc};

use crate::error::ClientError;

/// A relay can't go on. No row is lost, whatever it was: those that are not done are relayed by the next one, each once.
///
/// ```
/// use busbar_client::RelayError;
///
/// /// Whether to start another relay, rather than to call somebody.
/// fn is_worth_another(error: &RelayError) -> bool {
///     error.is_retryable()
/// }
///
/// assert!(!is_worth_another(&RelayError::Fenced { relay: "shop".into(), topic: "orders".into() }));
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// Another relay of this name took over, as one that is started does: stop this one, or give each outbox a name.
    #[error(
        "relay {relay:?} of topic {topic:?}: another relay of that name took over; one outbox has one relay at a time"
    )]
    Fenced {
        /// The relay's name.
        relay: String,
        /// Where it found out.
        topic: String,
    },
    /// The database failed, and went on failing.
    #[error("the outbox can't {what}: {source}")]
    Store {
        /// What was asked of it.
        what: &'static str,
        /// What it said last.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The store broke its rule: rows come in the order of their sequence, each once.
    #[error("the outbox gave row {found} after row {after}: rows must come in the order of their sequence, each once")]
    Disorder {
        /// The sequence before.
        after: u64,
        /// The one that came.
        found: u64,
    },
    /// A row's topic can't be written to.
    #[error("row {sequence} for topic {topic:?}: {source}")]
    Topic {
        /// The row.
        sequence: u64,
        /// Its topic.
        topic: String,
        /// Why not.
        source: ClientError,
    },
    /// A row can't be delivered: it is too large, names a partition that does not exist, or was refused for good. The rows
    /// after it wait, as their order is promised: change the row, or delete it.
    #[error(
        "row {sequence} for topic {topic:?} can't be delivered: {source}; change or delete it, the rows after it wait"
    )]
    Row {
        /// The row.
        sequence: u64,
        /// Its topic.
        topic: String,
        /// Why not.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// What is stored under the relay's name is of another outbox: of another database, or of one that was made anew or
    /// restored, and began to count again. Going on would pass over rows that were never stored. Give each outbox a name of
    /// its own, and a new one when its sequences begin anew.
    #[error(
        "relay {relay:?}: offset {offset} of {topic}/{partition} is row {sequence} of another outbox of that name; give this one another name"
    )]
    AnotherOutbox {
        /// The relay's name.
        relay: String,
        /// Where the other's row is stored.
        topic: String,
        /// The partition.
        partition: u32,
        /// The offset.
        offset: u64,
        /// The sequence that it has.
        sequence: u64,
    },
    /// Rows for more topics than one relay writes to.
    #[error("row {sequence} is for topic {topic:?}, one more than the {limit} that a relay writes to")]
    TooManyTopics {
        /// The row.
        sequence: u64,
        /// Its topic.
        topic: String,
        /// How many there may be.
        limit: usize,
    },
}

impl RelayError {
    /// Whether another relay may get on without anyone doing something.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store { .. } => true,
            Self::Topic { source, .. } => source.is_retryable(),
            Self::Fenced { .. } | Self::Disorder { .. } | Self::Row { .. } => false,
            Self::AnotherOutbox { .. } | Self::TooManyTopics { .. } => false,
        }
    }
}
