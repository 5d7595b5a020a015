//! What can go wrong, one enum per operation. Each answers two questions: may the same be tried again, and is it
//! certain that nothing was stored? Texts say what, where and what to do; causes stay typed.

use std::{error::Error, io, time::Duration};

use busbar_proto::{
    Reason, Refusal,
    filter::{DigestNameError, FilterError},
};
use tonic::Status;

use crate::{
    address::{Address, InvalidAddress},
    producer::DeliveryReport,
    record::Record,
};

/// A call to the cluster failed: connecting, metadata, administration.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::{Client, Reason};
///
/// match client.admin().delete_topic("orders").await {
///     Err(error) if error.reason() == Some(Reason::UnknownTopic) => println!("there was none"),
///     Err(error) if error.is_retryable() => println!("later, perhaps: {error}"),
///     done => done?,
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The list of servers has a fault.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    /// A broker said no, and why.
    #[error("{}: {}", .0.reason.as_str(), .0.message)]
    Refused(Refusal),
    /// Nobody answered.
    #[error(
        "no broker answered at {}: {source}; start one with `busbar dev up` or give the right --server",
        join(.addresses)
    )]
    Unreachable {
        /// Who was asked.
        addresses: Vec<Address>,
        /// What the last one's connection failed with.
        source: TransportError,
    },
    /// The connection broke while the call was under way: what was asked may or may not be done.
    #[error("{what}: the connection to {address} broke: {source}; it may or may not be done, so look before repeating")]
    Interrupted {
        /// The operation.
        what: &'static str,
        /// Who was asked.
        address: Address,
        /// What the connection broke with.
        source: TransportError,
    },
    /// No answer within the time allowed.
    #[error("{what}: no answer within {waited:?}; last: {last}")]
    Timeout {
        /// The operation.
        what: String,
        /// The time allowed.
        waited: Duration,
        /// What the last attempt met.
        last: String,
    },
    /// An option is out of its range.
    #[error("{option} is {found}: {rule}")]
    InvalidOption {
        /// The option.
        option: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// Headers that can't be told beside batches.
    #[error(transparent)]
    Digest(#[from] DigestNameError),
    /// A filter does not parse; the text points at the place.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A broker answered what makes no sense: it is of another version, or no broker.
    #[error("{0}")]
    Protocol(String),
    /// The client, or the part of it that was used, is closed.
    #[error("the client is closed")]
    Closed,
}

impl ClientError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.reason.is_retryable(),
            Self::Unreachable { .. } | Self::Interrupted { .. } | Self::Timeout { .. } => true,
            Self::Address(_) | Self::InvalidOption { .. } | Self::Digest(_) | Self::Filter(_) => false,
            Self::Protocol(_) | Self::Closed => false,
        }
    }

    /// Whether it is certain that nothing was changed.
    pub fn has_no_side_effects(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.reason.has_no_side_effects(),
            Self::Interrupted { .. } | Self::Timeout { .. } | Self::Protocol(_) => false,
            Self::Unreachable { .. } | Self::Address(_) | Self::Closed => true,
            Self::InvalidOption { .. } | Self::Digest(_) | Self::Filter(_) => true,
        }
    }

    /// The broker's reason, where a broker refused.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused(refusal) => Some(refusal.reason),
            _ => None,
        }
    }
}

impl From<Refusal> for ClientError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A connection failed; the text is the root cause ("connection refused").
///
/// ```no_run
/// # async fn example() {
/// use busbar_client::{Client, ClientError};
///
/// if let Err(ClientError::Unreachable { source, .. }) = Client::connect("broker-1:7400").await {
///     println!("{source}; was there a connection: {}", source.was_connected());
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct TransportError {
    text: String,
    connected: bool,
}

impl TransportError {
    /// Of a status that carries no refusal.
    pub(crate) fn of(status: &Status) -> Self {
        let mut connected = true;
        let mut text = status.message().to_owned();
        let mut next = status.source();
        while let Some(cause) = next {
            connected &= !cause.is::<tonic::ConnectError>();
            text = match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
                Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
                Some(io::ErrorKind::ConnectionReset) => "connection reset".to_owned(),
                Some(io::ErrorKind::TimedOut) => "timed out".to_owned(),
                _ => cause.to_string(),
            };
            next = cause.source();
        }
        Self { text, connected }
    }

    pub(crate) fn timed_out(waited: Duration) -> Self {
        Self { text: format!("no answer within {waited:?}"), connected: true }
    }

    /// Whether there was a connection, so that the request may have been seen.
    pub fn was_connected(&self) -> bool {
        self.connected
    }
}

/// A record was not taken: it will never be stored.
///
/// ```no_run
/// # async fn example(producer: busbar_client::Producer) {
/// use busbar_client::SendError;
///
/// match producer.send("paid").await {
///     Ok(delivery) => println!("{:?}", delivery.await),
///     Err(SendError::TooLarge { bytes, limit, .. }) => println!("{bytes} bytes, {limit} are allowed"),
///     Err(error) => println!("{error}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The producer is closed.
    #[error("the producer is closed")]
    Closed,
    /// Another instance of this producer's name took over: this one is over.
    #[error("this producer is fenced: {}", .refusal.message)]
    Fenced {
        /// How a broker said so.
        refusal: Refusal,
    },
    /// The record fits no batch of the topic.
    #[error(
        "a record of {bytes} bytes is over the {limit} bytes (max_batch_bytes) that topic {topic:?} allows a batch: raise the topic's limit or send less"
    )]
    TooLarge {
        /// The topic.
        topic: String,
        /// Bytes of the batch it would make alone.
        bytes: usize,
        /// The topic's limit.
        limit: usize,
    },
    /// The topic has no such partition.
    #[error("topic {topic:?} has partitions 0 to {}, not {partition}", .partitions - 1)]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The one named by the record.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The topic is compacted, and the record has no key.
    #[error("topic {topic:?} is compacted (the newest record of each key stays), so each record needs a key")]
    KeyRequired {
        /// The topic.
        topic: String,
    },
    /// The topic was deleted, whether or not there is another of its name by now.
    #[error("topic {topic:?} was deleted: build another producer once there is a topic of that name")]
    TopicGone {
        /// The topic.
        topic: String,
    },
}

/// `try_send` did not take the record.
///
/// ```no_run
/// # fn example(producer: busbar_client::Producer) {
/// match producer.try_send("paid") {
///     Ok(delivery) => drop(delivery),
///     Err(error) => match error.into_record() {
///         Some(record) => println!("no room now for {record:?}"),
///         None => println!("it would never be taken"),
///     },
/// }
/// # }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrySendError {
    /// No buffer space now; here is the record back.
    #[error("the producer's buffer is full: await a delivery, or use send(), which waits")]
    Full(Box<Record>),
    /// It would never be taken.
    #[error(transparent)]
    Refused(#[from] SendError),
}

impl TrySendError {
    /// The record, where the buffer was full.
    pub fn into_record(self) -> Option<Record> {
        match self {
            Self::Full(record) => Some(*record),
            Self::Refused(_) => None,
        }
    }
}

/// A record was taken but no acknowledgement was received.
///
/// ```no_run
/// # async fn example(producer: busbar_client::Producer) -> Result<(), busbar_client::SendError> {
/// if let Err(error) = producer.send("paid").await?.await {
///     println!("stored for certain: no; perhaps: {}", !error.has_no_side_effects());
///     println!("{}", error.report());
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeliveryError {
    /// It is certain: not stored, and it never will be.
    #[error("not stored: {refusal}")]
    Rejected {
        /// Why.
        refusal: Refusal,
        /// What was tried.
        report: DeliveryReport,
    },
    /// It may or may not be stored: it was sent, and no answer was received in time.
    #[error("may or may not be stored after {} attempts: {last}", .report.attempt_count())]
    Unknown {
        /// What the last attempt met.
        last: Refusal,
        /// What was tried.
        report: DeliveryReport,
    },
    /// Another instance of this producer's name took over before the record was stored: it is not stored, and this
    /// producer is over.
    #[error("not stored, as this producer is fenced: {}", .refusal.message)]
    Fenced {
        /// How a broker said so.
        refusal: Refusal,
        /// What was tried.
        report: DeliveryReport,
    },
    /// The topic was deleted, whether or not there is another of its name by now. If an attempt had stored the
    /// record, it went with the topic.
    #[error(
        "not stored: topic {:?} was deleted; build another producer once there is a topic of that name",
        .report.topic()
    )]
    TopicGone {
        /// What was tried.
        report: DeliveryReport,
    },
    /// The producer was closed or dropped before the record was sent: not stored.
    #[error("not stored: the producer was dropped before it was sent; call close() to deliver what is queued")]
    Closed {
        /// What was tried.
        report: DeliveryReport,
    },
}

impl SendError {
    /// One word for what went wrong, for labels.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Fenced { refusal } => refusal.reason.as_str(),
            Self::TooLarge { .. } => Reason::BatchTooLarge.as_str(),
            Self::UnknownPartition { .. } => Reason::UnknownPartition.as_str(),
            Self::KeyRequired { .. } => Reason::InvalidArgument.as_str(),
            Self::TopicGone { .. } => Reason::UnknownTopic.as_str(),
        }
    }
}

impl DeliveryError {
    /// One word for what went wrong, for labels: the reason, `closed`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Rejected { refusal, .. } | Self::Fenced { refusal, .. } => refusal.reason.as_str(),
            Self::Unknown { last, .. } => last.reason.as_str(),
            Self::TopicGone { .. } => Reason::UnknownTopic.as_str(),
            Self::Closed { .. } => "closed",
        }
    }

    /// Whether sending the record again makes sense. After [`Self::Unknown`] that may store it twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Rejected { refusal, .. } => {
                refusal.reason.is_retryable() || refusal.reason == Reason::DeadlineExceeded
            }
            Self::TopicGone { .. } | Self::Fenced { .. } => false,
            Self::Unknown { .. } | Self::Closed { .. } => true,
        }
    }

    /// Whether it is certain that the record is not stored and never will be.
    pub fn has_no_side_effects(&self) -> bool {
        !matches!(self, Self::Unknown { .. })
    }

    /// Every attempt, what came of it and what was done next.
    pub fn report(&self) -> &DeliveryReport {
        match self {
            Self::Rejected { report, .. }
            | Self::Unknown { report, .. }
            | Self::Fenced { report, .. }
            | Self::TopicGone { report }
            | Self::Closed { report } => report,
        }
    }
}

/// A consumer can't go on as it is. Calling `next()` again tries again.
///
/// ```no_run
/// # async fn example(mut consumer: busbar_client::Consumer) {
/// use busbar_client::ConsumeError;
///
/// match consumer.next().await {
///     Err(ConsumeError::Refused { partition, refusal, .. }) => println!("partition {partition}: {refusal}"),
///     Err(error) => println!("{error}"),
///     Ok(record) => println!("{record:?}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    /// A broker ended the subscription for good.
    #[error("partition {partition} of {topic:?}, at offset {position}: {}: {}", .refusal.reason.as_str(), .refusal.message)]
    Refused {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The next offset wanted.
        position: String,
        /// Why.
        refusal: Refusal,
    },
    /// Bytes that are no sound batch were received again and again.
    #[error(
        "partition {partition} of {topic:?}, at offset {offset}: {fault}; `busbar topic describe {topic}` names its replicas: check the disks"
    )]
    Corrupt {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The offset that could not be read.
        offset: u64,
        /// What is wrong.
        fault: String,
    },
}

impl ConsumeError {
    /// Whether calling `next()` again may help without anyone doing something.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } => refusal.reason.is_retryable(),
            Self::Corrupt { .. } => true,
        }
    }

    /// Always: reading changes nothing.
    pub fn has_no_side_effects(&self) -> bool {
        true
    }
}

fn join(addresses: &[Address]) -> String {
    addresses.iter().map(Address::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::story::{Diary, Epilogue};

    #[test]
    fn unreachable_says_what_where_and_what_to_do() {
        let address: Address = "127.0.0.1:7400".parse().expect("an address");
        let source = TransportError { text: "connection refused".into(), connected: false };
        assert_eq!(
            ClientError::Unreachable { addresses: vec![address], source }.to_string(),
            "no broker answered at 127.0.0.1:7400: connection refused; start one with `busbar dev up` or give the right --server"
        );
    }

    #[test]
    fn certainty_follows_the_reason() {
        let now = tokio::time::Instant::now();
        let report = Diary::new(now).failed(Epilogue { topic: "t".into(), partition: 0, now, now_ms: 0 });
        let refusal = Refusal::new(Reason::CorruptBatch, "x");
        let rejected = DeliveryError::Rejected { refusal, report: report.clone() };
        assert!(rejected.has_no_side_effects() && !rejected.is_retryable());
        let unknown = DeliveryError::Unknown { last: Refusal::new(Reason::OutcomeUnknown, "x"), report };
        assert!(!unknown.has_no_side_effects() && unknown.is_retryable());
    }
}
