//! The reasons an operation can fail. A [`Reason`] is stable text on the wire; what a caller can do about it is
//! two questions: may the same request be tried again, and is it certain that nothing was stored?

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{ids::NodeId, v1};

/// Domain of Busbar's `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "busbar";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $code:ident, retry: $retry:literal, unstored: $unstored:literal;)*) => {
        /// Why a request was refused; `docs/ERRORS.md` lists them.
        ///
        /// ```
        /// use busbar_proto::Reason;
        ///
        /// assert_eq!(Reason::from_text("NOT_LEADER"), Some(Reason::NotLeader));
        /// assert!(Reason::NotLeader.is_retryable());
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason, for documentation checks.
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            /// The stable text on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }

            /// The reason with this text; unknown texts (a newer broker's) are `None`.
            pub fn from_text(text: &str) -> Option<Self> {
                match text { $($text => Some(Reason::$name),)* _ => None }
            }

            /// gRPC code of a call that fails with it.
            pub const fn code(self) -> Code {
                match self { $(Reason::$name => Code::$code,)* }
            }

            /// Whether the same request may succeed later, possibly on another node.
            pub const fn is_retryable(self) -> bool {
                match self { $(Reason::$name => $retry,)* }
            }

            /// Whether it is certain that nothing was stored and nothing will be.
            pub const fn has_no_side_effects(self) -> bool {
                match self { $(Reason::$name => $unstored,)* }
            }
        }
    };
}

reasons! {
    /// This node does not lead the partition (or the catalog).
    NotLeader = "NOT_LEADER", Unavailable, retry: true, unstored: true;
    /// No leader is known now.
    NoLeader = "NO_LEADER", Unavailable, retry: true, unstored: true;
    /// Leadership was lost or a deadline passed after the request was proposed: it may or may not be stored.
    OutcomeUnknown = "OUTCOME_UNKNOWN", Unavailable, retry: true, unstored: false;
    /// A byte budget (partition or node) is spent; wait.
    Overloaded = "OVERLOADED", ResourceExhausted, retry: true, unstored: true;
    /// The disk is nearly full: publishes are refused, reads go on.
    DiskFull = "DISK_FULL", ResourceExhausted, retry: true, unstored: true;
    /// The request's own deadline had passed before it was stored.
    DeadlineExceeded = "DEADLINE_EXCEEDED", DeadlineExceeded, retry: false, unstored: true;
    /// No topic of that name or id.
    UnknownTopic = "UNKNOWN_TOPIC", NotFound, retry: false, unstored: true;
    /// The topic has no such partition.
    UnknownPartition = "UNKNOWN_PARTITION", NotFound, retry: false, unstored: true;
    /// No node of that id.
    UnknownNode = "UNKNOWN_NODE", NotFound, retry: false, unstored: true;
    /// A topic of that name exists.
    TopicExists = "TOPIC_EXISTS", AlreadyExists, retry: false, unstored: true;
    /// The name breaks the rules.
    InvalidName = "INVALID_NAME", InvalidArgument, retry: false, unstored: true;
    /// Some other argument is out of range or does not fit.
    InvalidArgument = "INVALID_ARGUMENT", InvalidArgument, retry: false, unstored: true;
    /// The state of the cluster does not allow it now (too few nodes, replicas left on a node, a move under way).
    FailedPrecondition = "FAILED_PRECONDITION", FailedPrecondition, retry: false, unstored: true;
    /// The bytes are no sound record batch: length, checksum, count or magic.
    CorruptBatch = "CORRUPT_BATCH", InvalidArgument, retry: false, unstored: true;
    /// The batch is over the topic's limit.
    BatchTooLarge = "BATCH_TOO_LARGE", InvalidArgument, retry: false, unstored: true;
    /// The sequence does not follow the last stored one: batches between are missing.
    SequenceGap = "SEQUENCE_GAP", FailedPrecondition, retry: false, unstored: true;
    /// The sequence is a duplicate so old that its offset is no longer known; it is stored.
    SequenceTooOld = "SEQUENCE_TOO_OLD", FailedPrecondition, retry: false, unstored: false;
    /// A newer epoch of this producer is active.
    ProducerFenced = "PRODUCER_FENCED", FailedPrecondition, retry: false, unstored: true;
    /// The offset is below the log start or beyond the high watermark.
    OffsetOutOfRange = "OFFSET_OUT_OF_RANGE", OutOfRange, retry: false, unstored: true;
    /// The stored bytes fail their checksum here; another replica may serve them.
    StorageCorrupt = "STORAGE_CORRUPT", DataLoss, retry: true, unstored: true;
    /// The peer belongs to another cluster.
    WrongCluster = "WRONG_CLUSTER", FailedPrecondition, retry: false, unstored: true;
    /// The node is stopping.
    ShuttingDown = "SHUTTING_DOWN", Unavailable, retry: true, unstored: true;
    /// A limit on streams, subscriptions or topics is reached.
    LimitReached = "LIMIT_REACHED", ResourceExhausted, retry: false, unstored: true;
    /// No consumer group of that name.
    UnknownGroup = "UNKNOWN_GROUP", NotFound, retry: false, unstored: true;
    /// The member's session has ended, or it never joined: join again.
    UnknownMember = "UNKNOWN_MEMBER", FailedPrecondition, retry: false, unstored: true;
    /// Another instance has taken over under this member's name: stop.
    FencedMember = "FENCED_MEMBER", FailedPrecondition, retry: false, unstored: true;
    /// The partition is in other hands: drop what is held of it.
    StaleClaim = "STALE_CLAIM", FailedPrecondition, retry: false, unstored: true;
    /// The consumer group has members.
    GroupActive = "GROUP_ACTIVE", FailedPrecondition, retry: false, unstored: true;
    /// A bug or a fault without a better name; the message tells more.
    Internal = "INTERNAL", Internal, retry: false, unstored: false;
}

/// A refusal: the reason and what a person needs to act on it.
///
/// ```
/// use busbar_proto::{Reason, Refusal};
///
/// let refusal = Refusal::new(Reason::DiskFull, "97 % of the disk are used");
/// assert_eq!(Refusal::from_wire(refusal.to_wire()), refusal);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The stable reason.
    pub reason: Reason,
    /// What, where and what to do.
    pub message: String,
    /// Wait at least this long before another attempt.
    pub retry_after: Option<Duration>,
    /// With [`Reason::NotLeader`]: who leads, if known.
    pub leader: Option<NodeId>,
}

impl Refusal {
    /// A refusal without advice on waiting.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after: None, leader: None }
    }

    /// The same, with the least time to wait before another attempt.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The same, naming the leader.
    #[must_use]
    pub fn led_by(mut self, leader: Option<NodeId>) -> Self {
        self.leader = leader;
        self
    }

    /// As one element's failure on a healthy stream.
    pub fn to_wire(&self) -> v1::Error {
        v1::Error {
            reason: self.reason.as_str().to_owned(),
            message: self.message.clone(),
            retry_after_ms: self.retry_after.map_or(0, |wait| wait.as_millis().try_into().unwrap_or(u64::MAX)),
            leader: self.leader.map_or(0, NodeId::get),
        }
    }

    /// From one element's failure. A reason that this version does not know becomes [`Reason::Internal`].
    pub fn from_wire(error: v1::Error) -> Self {
        let known = Reason::from_text(&error.reason);
        Self {
            reason: known.unwrap_or(Reason::Internal),
            message: if known.is_some() { error.message } else { format!("{}: {}", error.reason, error.message) },
            retry_after: (error.retry_after_ms > 0).then(|| Duration::from_millis(error.retry_after_ms)),
            leader: (error.leader > 0).then(|| NodeId::new(error.leader)),
        }
    }

    /// As a whole call's failure, with `ErrorInfo` and, where waiting helps, `RetryInfo`.
    pub fn to_status(&self) -> Status {
        let mut details = ErrorDetails::new();
        let metadata = self.leader.map(|leader| ("leader".to_owned(), leader.to_string()));
        details.set_error_info(
            self.reason.as_str(),
            ERROR_DOMAIN,
            metadata.into_iter().collect::<std::collections::HashMap<_, _>>(),
        );
        if let Some(wait) = self.retry_after {
            details.set_retry_info(Some(wait));
        }
        Status::with_error_details(self.reason.code(), self.message.clone(), details)
    }

    /// From a whole call's failure; `None` when the status carries no reason of ours (a transport failure).
    pub fn from_status(status: &Status) -> Option<Self> {
        let info = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN)?;
        Some(Self {
            reason: Reason::from_text(&info.reason).unwrap_or(Reason::Internal),
            message: status.message().to_owned(),
            retry_after: status.get_details_retry_info().and_then(|retry| retry.retry_delay),
            leader: info.metadata.get("leader").and_then(|raw| raw.parse().ok()).map(NodeId::new),
        })
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        refusal.to_status()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn refusals_survive_both_wire_forms() {
        for &reason in Reason::ALL {
            let refusal =
                Refusal::new(reason, "why").retry_after(Duration::from_millis(7)).led_by(Some(NodeId::new(3)));
            assert_eq!(Refusal::from_wire(refusal.to_wire()), refusal);
            assert_eq!(Refusal::from_status(&refusal.to_status()).unwrap(), refusal);
        }
    }

    #[test]
    fn a_reason_of_the_future_keeps_its_text() {
        let wire = v1::Error { reason: "FROM_2030".into(), message: "x".into(), ..Default::default() };
        let refusal = Refusal::from_wire(wire);
        assert_eq!((refusal.reason, refusal.message.as_str()), (Reason::Internal, "FROM_2030: x"));
    }
}
