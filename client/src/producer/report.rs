//! What a producer tells about a delivery: every attempt, what came of it and what was done next. One report per
//! batch, shared by its records; it is written once the batch's fate is known and never changes.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use busbar_proto::Reason;

/// The story of a record's batch. Cheap to clone; all records of a batch share it.
///
/// Printed, it tells a person what happened, a line an attempt:
///
/// ```text
/// partition 0 of "orders": 2 attempts, 1.2s in all, first sent after 0ns
///   1: at +0ns to node 1, no answer within 1.1s (the stream to node 1 ended: it closed the stream); sent again after 12ms
///   2: at +1.1s to node 2, acknowledged within 3ms
/// ```
///
/// ```no_run
/// # async fn example(producer: busbar_client::Producer) -> Result<(), Box<dyn std::error::Error>> {
/// let report = producer.send("paid").await?.await?.report;
/// println!("{} attempts in {:?}: {report}", report.attempt_count(), report.took());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryReport(Arc<Story>);

/// What a [`DeliveryReport`] shares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Story {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: u32,
    /// Of the batch's first record.
    pub(crate) offset: Option<u64>,
    pub(crate) begun_ms: i64,
    pub(crate) took: Duration,
    pub(crate) parked: Duration,
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) total: u32,
}

/// One sending of a batch to one broker.
///
/// ```no_run
/// # fn example(report: busbar_client::DeliveryReport) {
/// for attempt in report.attempts() {
///     println!("{} to node {}: {:?}", attempt.number, attempt.node, attempt.verdict);
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// Counts from 1.
    pub number: u32,
    /// The broker's node id.
    pub node: u64,
    /// When it was sent, after the batch was begun.
    pub at: Duration,
    /// How long until its verdict.
    pub took: Duration,
    /// What came of it.
    pub verdict: Verdict,
    /// What was done next.
    pub next: NextStep,
}

/// What came of an attempt.
///
/// ```no_run
/// # fn example(report: busbar_client::DeliveryReport) {
/// use busbar_client::Verdict;
///
/// let silent = report.attempts().iter().filter(|attempt| matches!(attempt.verdict, Verdict::Unanswered { .. }));
/// println!("{} attempts were left unanswered", silent.count());
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The broker stored it.
    Acknowledged,
    /// The broker had stored it already.
    Duplicate,
    /// The broker refused it.
    Refused {
        /// The stable reason.
        reason: Reason,
        /// What the broker said, cut at 256 bytes.
        message: String,
    },
    /// There was no answer.
    Unanswered {
        /// Why none is awaited any more, cut at 256 bytes.
        why: String,
    },
}

/// What was done after an attempt.
///
/// ```no_run
/// # fn example(report: busbar_client::DeliveryReport) {
/// use busbar_client::NextStep;
///
/// let gave_up = report.attempts().last().is_some_and(|attempt| attempt.next == NextStep::GaveUp);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NextStep {
    /// Nothing: it is stored.
    Delivered,
    /// The same bytes were sent again.
    SentAgain {
        /// Time between the verdict and that.
        after: Duration,
    },
    /// Nothing: the delivery was given up.
    GaveUp,
}

impl DeliveryReport {
    pub(crate) fn new(story: Story) -> Self {
        Self(Arc::new(story))
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.0.topic
    }

    /// The partition.
    pub fn partition(&self) -> u32 {
        self.0.partition
    }

    /// The offset of the batch's first record, where it is known to be stored.
    pub fn base_offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// When the batch was begun, by the client's clock.
    pub fn begun(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(u64::try_from(self.0.begun_ms).unwrap_or(0))
    }

    /// Time from the batch's first record until its fate was known.
    pub fn took(&self) -> Duration {
        self.0.took
    }

    /// Of that: how long it was held back by a circuit breaker or a spent retry budget, without an attempt.
    pub fn parked(&self) -> Duration {
        self.0.parked
    }

    /// The attempts, oldest first. Of many, the first 4 and the last 12 are kept.
    pub fn attempts(&self) -> &[Attempt] {
        &self.0.attempts
    }

    /// Times the batch was sent, those that are not kept included.
    pub fn attempt_count(&self) -> u32 {
        self.0.total
    }
}

impl fmt::Display for DeliveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Story { topic, partition, took, parked, attempts, total, .. } = &*self.0;
        write!(f, "partition {partition} of {topic:?}: ")?;
        match attempts.first() {
            None => write!(f, "never sent, given up after {took:.1?}")?,
            Some(first) => {
                let plural = if *total == 1 { "" } else { "s" };
                write!(f, "{total} attempt{plural}, {took:.1?} in all, first sent after {:.1?}", first.at)?;
            }
        }
        if !parked.is_zero() {
            write!(f, ", parked for {parked:.1?}")?;
        }
        let mut expected = 1;
        for attempt in attempts {
            if attempt.number > expected {
                write!(f, "\n  ... {} attempts left out", attempt.number - expected)?;
            }
            expected = attempt.number + 1;
            write!(f, "\n  {attempt}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, node, at, took, verdict, next } = self;
        write!(f, "{number}: at +{at:.1?} to node {node}, ")?;
        match verdict {
            Verdict::Acknowledged => write!(f, "acknowledged within {took:.1?}")?,
            Verdict::Duplicate => write!(f, "known to be stored already, within {took:.1?}")?,
            Verdict::Refused { reason, message } => {
                write!(f, "{} within {took:.1?} ({message})", reason.as_str())?;
            }
            Verdict::Unanswered { why } => write!(f, "no answer within {took:.1?} ({why})")?,
        }
        match next {
            NextStep::Delivered => Ok(()),
            NextStep::SentAgain { after } => write!(f, "; sent again after {after:.1?}"),
            NextStep::GaveUp => f.write_str("; given up"),
        }
    }
}
