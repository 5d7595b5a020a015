//! What can go wrong for a group's member, one enum per operation.

use std::time::Duration;

use busbar_proto::{Reason, Refusal};

use crate::error::{ClientError, ConsumeError};

/// A group consumer can't go on as it is.
///
/// ```no_run
/// # async fn example(mut consumer: busbar_client::GroupConsumer) {
/// use busbar_client::GroupError;
///
/// match consumer.next().await {
///     Err(GroupError::Fenced { member_name, .. }) => println!("another {member_name} has begun"),
///     Err(error) if error.is_retryable() => println!("calling again may help: {error}"),
///     other => println!("{other:?}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// Another instance took over under the member's name: this one gets nothing any more.
    #[error(
        "group {group:?}: another instance took over as member {member_name:?}; stop this one, or give each a name of its own"
    )]
    Fenced {
        /// The group.
        group: String,
        /// The name.
        member_name: String,
    },
    /// The coordinator refuses the member for good.
    #[error("group {group:?}: {}: {}", .refusal.reason.as_str(), .refusal.message)]
    Refused {
        /// The group.
        group: String,
        /// Why.
        refusal: Refusal,
    },
    /// A partition can't be read without somebody doing something; the others are read on.
    #[error(transparent)]
    Consume(#[from] ConsumeError),
    /// What was acknowledged last could not be committed in time: it will be delivered again.
    #[error("group {group:?}: the last acknowledgements were not committed within {waited:?}; last: {last}")]
    Uncommitted {
        /// The group.
        group: String,
        /// The time allowed.
        waited: Duration,
        /// What the last attempt met.
        last: String,
    },
}

impl GroupError {
    /// Whether going on may help without anyone doing something.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Fenced { .. } => false,
            Self::Refused { refusal, .. } => refusal.reason.is_retryable(),
            Self::Consume(error) => error.is_retryable(),
            Self::Uncommitted { .. } => true,
        }
    }

    /// Whether it is certain that nothing was changed. Commits may have been recorded unseen.
    pub fn has_no_side_effects(&self) -> bool {
        !matches!(self, Self::Uncommitted { .. })
    }

    /// The broker's reason, where a broker refused.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Fenced { .. } => Some(Reason::FencedMember),
            Self::Refused { refusal, .. } => Some(refusal.reason),
            Self::Consume(ConsumeError::Refused { refusal, .. }) => Some(refusal.reason),
            Self::Consume(_) | Self::Uncommitted { .. } => None,
        }
    }
}

/// As the failure of a call that was to make the member.
impl From<GroupError> for ClientError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Refused { refusal, .. } => Self::Refused(refusal),
            other => Self::Refused(Refusal::new(other.reason().unwrap_or(Reason::Internal), other.to_string())),
        }
    }
}

/// A word on a record that does not count any more: nothing was committed for it.
///
/// ```no_run
/// # fn example(record: busbar_client::Received) {
/// if let Err(late) = record.ack() {
///     println!("somebody gets it again: {late}");
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettleError {
    /// The partition is not this member's any more; its new holder gets the record.
    #[error("offset {offset} of partition {partition} of {topic:?}: the partition was taken from this consumer")]
    Revoked {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The record's offset.
        offset: u64,
    },
    /// The lease had run out, and the record was handed out again or given up.
    #[error(
        "offset {offset} of partition {partition} of {topic:?}: delivery {delivery} is over, its lease ran out; call extend() in time or allow a longer lease"
    )]
    Expired {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The record's offset.
        offset: u64,
        /// Which delivery it was, from 1.
        delivery: u32,
    },
}

impl SettleError {
    /// Never: the record is delivered again, to whoever is meant to have it.
    pub fn is_retryable(&self) -> bool {
        false
    }

    /// Always: nothing was committed.
    pub fn has_no_side_effects(&self) -> bool {
        true
    }
}
