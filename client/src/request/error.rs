//! What can go wrong with a request or a reply. Each answers two questions: may the same be tried again, and is it
//! certain that nothing was stored?

use busbar_proto::Reason;

use crate::{
    consumer::ConsumedRecord,
    error::{ClientError, ConsumeError, SendError},
    group::GroupError,
    request::report::RequestReport,
};

/// A request got no proper reply.
///
/// ```no_run
/// # async fn example(prices: busbar_client::Requester) {
/// use std::time::Duration;
/// use busbar_client::RequestError;
///
/// match prices.request("ACME", Duration::from_secs(2)).await {
///     Ok(reply) => println!("{:?}", reply.value()),
///     Err(RequestError::Failed { message, .. }) => println!("it says: {message}"),
///     Err(error) => println!("may have been seen: {}", !error.has_no_side_effects()),
/// }
/// # }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The record was not taken.
    #[error(transparent)]
    Send(#[from] SendError),
    /// It is certain that the request is not stored and never will be, before its deadline.
    #[error("{0}")]
    Undelivered(Box<RequestReport>),
    /// No reply before the deadline; or it is certain, earlier, that the request was not sent in time.
    #[error("no reply in time: {0}")]
    Deadline(Box<RequestReport>),
    /// The responder says that it can't reply properly, and why.
    #[error("the responder failed: {message}")]
    Failed {
        /// Its words, cut at 1 KiB.
        message: String,
        /// The whole reply.
        reply: Box<ConsumedRecord>,
    },
    /// Replies can't be read any more; build another requester.
    #[error("replies can't be read any more: {0}")]
    RepliesLost(ConsumeError),
    /// The requester was closed.
    #[error("the requester is closed")]
    Closed,
}

impl RequestError {
    /// Whether asking again makes sense. The responder may then see the request twice, unless
    /// [`Self::has_no_side_effects`].
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Undelivered(report) | Self::Deadline(report) => match report.fate() {
                super::RequestFate::Failed(error) => error.is_retryable(),
                _ => true,
            },
            Self::Send(_) | Self::Failed { .. } | Self::RepliesLost(_) | Self::Closed => false,
        }
    }

    /// Whether it is certain that the request is not stored and never will be, so that no responder sees it.
    pub fn has_no_side_effects(&self) -> bool {
        match self {
            Self::Send(_) | Self::Undelivered(_) => true,
            Self::Deadline(report) => report.has_no_side_effects(),
            Self::Failed { .. } | Self::RepliesLost(_) | Self::Closed => false,
        }
    }

    /// How far the request came, where it matters.
    pub fn report(&self) -> Option<&RequestReport> {
        match self {
            Self::Undelivered(report) | Self::Deadline(report) => Some(report),
            Self::Send(_) | Self::Failed { .. } | Self::RepliesLost(_) | Self::Closed => None,
        }
    }
}

/// Requests can't be read as things are.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResponderError {
    /// A partition can't be read without somebody doing something; the others are read on.
    #[error(transparent)]
    Consume(#[from] ConsumeError),
    /// The responder is not in its group any more.
    #[error(transparent)]
    Group(GroupError),
}

impl From<GroupError> for ResponderError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Consume(error) => Self::Consume(error),
            error => Self::Group(error),
        }
    }
}

impl ResponderError {
    /// Whether going on may help without anyone doing something.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Consume(error) => error.is_retryable(),
            Self::Group(error) => error.is_retryable(),
        }
    }

    /// Whether it is certain that nothing was changed.
    pub fn has_no_side_effects(&self) -> bool {
        match self {
            Self::Consume(_) => true,
            Self::Group(error) => error.has_no_side_effects(),
        }
    }

    /// The broker's reason, where a broker refused.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Consume(ConsumeError::Refused { refusal, .. }) => Some(refusal.reason),
            Self::Consume(_) => None,
            Self::Group(error) => error.reason(),
        }
    }

    /// Whether no other call will do better.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Group(_)) || self.reason() == Some(Reason::UnknownTopic)
    }
}

/// A reply was not taken.
///
/// ```no_run
/// # async fn example(replier: busbar_client::Replier, record: busbar_client::ConsumedRecord) -> Result<(), busbar_client::ReplyError> {
/// use busbar_client::ReplyError;
///
/// match replier.reply(&record, "12.50").await {
///     Err(ReplyError::NotAsked) => println!("nobody waits for a reply"),
///     taken => drop(taken?),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// The record asks for no reply.
    #[error("the record asks for no reply: it has no header busbar-reply-to")]
    NotAsked,
    /// The record's headers name no possible place for the reply.
    #[error("the reply has nowhere to go: {0}")]
    Address(String),
    /// The topic of the reply can't be published to.
    #[error("the reply's topic {topic:?}: {source}")]
    Topic {
        /// The topic, as the request names it.
        topic: String,
        /// Why.
        source: Box<ClientError>,
    },
    /// The producer of replies did not take it.
    #[error("the reply was not taken: {0}")]
    Send(#[from] SendError),
    /// The replier is closed.
    #[error("the replier is closed")]
    Closed,
}

impl ReplyError {
    /// Whether the same reply may be taken later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Topic { source, .. } => source.is_retryable(),
            Self::NotAsked | Self::Address(_) | Self::Send(_) | Self::Closed => false,
        }
    }

    /// Whether there is no place where the reply could ever go.
    pub(super) fn is_hopeless(&self) -> bool {
        matches!(self, Self::NotAsked | Self::Address(_))
            || (matches!(self, Self::Topic { .. }) && !self.is_retryable())
    }

    /// Always: a reply that was not taken is not stored.
    pub fn has_no_side_effects(&self) -> bool {
        true
    }
}
