//! What a requester tells about a request that got no proper reply: how far it came.

use std::{fmt, sync::Arc, time::Duration};

use super::headers::Correlation;
use crate::{error::DeliveryError, producer::Delivered};

/// How far a request came.
///
/// ```no_run
/// # fn example(error: busbar_client::RequestError) {
/// if let Some(report) = error.report() {
///     println!("after {:?}: {report}", report.took());
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestReport {
    pub(super) topic: Arc<str>,
    pub(super) correlation: Option<Correlation>,
    pub(super) took: Duration,
    pub(super) fate: RequestFate,
}

/// What is known of a request's delivery to its topic.
///
/// ```no_run
/// # fn example(report: &busbar_client::RequestReport) {
/// use busbar_client::RequestFate;
///
/// match report.fate() {
///     RequestFate::Stored(delivered) => println!("a responder may have seen offset {}", delivered.offset),
///     other => println!("{other:?}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestFate {
    /// It was not sent: too many requests wait for a reply.
    NoPlace,
    /// It was not sent: the producer's buffer is full.
    NoBuffer,
    /// It was handed to the producer, and its fate was not known yet: it may be stored, or not.
    UnderWay,
    /// It is stored: the responder may have seen it.
    Stored(Delivered),
    /// It is not stored, or nobody knows whether it is.
    Failed(DeliveryError),
}

impl RequestReport {
    /// The topic of the request.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The value of its header `busbar-correlation-id`, once it had one.
    pub fn correlation_id(&self) -> Option<String> {
        self.correlation.map(|correlation| correlation.to_string())
    }

    /// Time from the call until it was given up.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// What is known of its delivery, with the report of every attempt.
    pub fn fate(&self) -> &RequestFate {
        &self.fate
    }

    /// Whether it is certain that the request is not stored and never will be.
    pub fn has_no_side_effects(&self) -> bool {
        match &self.fate {
            RequestFate::NoPlace | RequestFate::NoBuffer => true,
            RequestFate::UnderWay | RequestFate::Stored(_) => false,
            RequestFate::Failed(error) => error.has_no_side_effects(),
        }
    }
}

impl fmt::Display for RequestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, correlation, took, fate } = self;
        write!(f, "request ")?;
        if let Some(correlation) = correlation {
            write!(f, "{correlation} ")?;
        }
        write!(f, "to {topic:?}, given up after {took:.1?}: ")?;
        match fate {
            RequestFate::NoPlace => f.write_str("not sent, too many others wait for a reply"),
            RequestFate::NoBuffer => f.write_str("not sent, the producer's buffer is full"),
            RequestFate::UnderWay => f.write_str("may or may not be stored, the broker has not answered yet"),
            RequestFate::Stored(Delivered { partition, offset, report, .. }) => {
                write!(f, "stored in partition {partition} at offset {offset}, no reply\n{report}")
            }
            RequestFate::Failed(error) => write!(f, "{error}\n{}", error.report()),
        }
    }
}
