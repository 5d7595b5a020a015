//! What can go wrong with dead letters.

use crate::error::{ClientError, ConsumeError, DeliveryError, SendError};

/// Dead letters can't be read or replayed. A replay that failed is taken up where it was by the next one.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), busbar_client::DeadLetterError> {
/// use busbar_client::{DeadLetterError, LetterSelection};
///
/// match client.dead_letters("orders.dlq").replay(LetterSelection::waiting(), None).await {
///     Err(DeadLetterError::Fenced { topic }) => eprintln!("somebody else replays {topic} now"),
///     other => println!("{} replayed", other?.replayed()),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeadLetterError {
    /// A call to the cluster failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A topic can't be read.
    #[error(transparent)]
    Consume(#[from] ConsumeError),
    /// Somebody else has begun to replay this topic: this replay has ended.
    #[error("another replay of {topic:?} has taken over")]
    Fenced {
        /// The topic of dead letters.
        topic: String,
    },
    /// A letter was not taken: nothing of it is stored.
    #[error("letter {letter} can't be replayed to {to:?}: {source}")]
    Refused {
        /// Its place: `TOPIC/PARTITION/OFFSET`.
        letter: String,
        /// Where it was to go.
        to: String,
        /// Why it was not taken.
        source: SendError,
    },
    /// A letter was not acknowledged. Whether it is stored is found out by the next replay.
    #[error("letter {letter} was not replayed to {to:?}: {source}; replay again to go on from there")]
    Undelivered {
        /// Its place: `TOPIC/PARTITION/OFFSET`.
        letter: String,
        /// Where it was to go.
        to: String,
        /// What became of it.
        source: Box<DeliveryError>,
    },
    /// The journal of replays has something in it that no replay has written.
    #[error("offset {offset} of {journal:?}: {fault}; what was replayed before can't be told")]
    Journal {
        /// The journal: `<topic>.replays`.
        journal: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        fault: String,
    },
}

impl DeadLetterError {
    /// Whether the same may work later without anyone doing something.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Client(error) => error.is_retryable(),
            Self::Consume(error) => error.is_retryable(),
            Self::Undelivered { source, .. } => source.is_retryable(),
            Self::Fenced { .. } | Self::Refused { .. } | Self::Journal { .. } => false,
        }
    }
}
