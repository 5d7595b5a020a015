//! Spans by OpenTelemetry's conventions for messaging. `on` is in the build with the feature `tracing`, `off` otherwise:
//! types without size and functions without content.
//!
//! | span | type, kind | from, to |
//! |---|---|---|
//! | `create {topic}` | create, producer | a moment: a record that is sent later got its context |
//! | `send {topic}` | send, producer (client, if the record had a context) | `send()`, until the record's fate is known |
//! | `receive {topic}` | receive, client | a moment: a batch reached the application |
//! | `process {topic}` | process, consumer | the application's work on one record |
//! | `ack`, `nack`, `reject {topic}` | settle, client | a word on one record of a group |
//! | `commit {topic}` | settle, client | waiting until what was acknowledged is on record |
//!
//! Invariant: a span of sending ends exactly once, with its record's outcome or when the producer ends.

#[cfg(not(feature = "tracing"))]
mod off;
#[cfg(feature = "tracing")]
mod on;
#[cfg(feature = "opentelemetry")]
mod propagation;

#[cfg(not(feature = "tracing"))]
pub(crate) use off::{SendSpan, SendSpans, committing, received, settling};
#[cfg(feature = "tracing")]
pub(crate) use on::{SendSpan, SendSpans, committing, received, settling};

use std::{fmt::Display, future::Future};

use crate::{consumer::ConsumedRecord, record::Record};

impl Record {
    /// Created now for a topic, to be sent later, perhaps by another process: for records that are kept first, as in an
    /// outbox. With the feature `opentelemetry`, a span `create {topic}` is made, and its context put on the record, which
    /// its sending and processing are linked to from then on; a context that the record has already stays. A record that is
    /// sent at once needs none of this: its `send` span is its creation. Without the feature `tracing`, nothing is done.
    ///
    /// ```
    /// let record = busbar_client::Record::new("paid").created_for("orders");
    /// assert_eq!(&record.value[..], b"paid");
    /// ```
    #[must_use]
    pub fn created_for(self, topic: &str) -> Self {
        #[cfg(feature = "tracing")]
        return on::created_for(self, topic);
        #[cfg(not(feature = "tracing"))]
        {
            let _ = topic;
            self
        }
    }
}

impl ConsumedRecord {
    /// Runs what processes this record. With the feature `tracing`, in a span `process {topic}`, which fails if the
    /// processing does; with the feature `opentelemetry`, also linked to the span that sent the record (as its child,
    /// where there is no current span), and measured (`messaging.process.duration`). Without both, nothing is added.
    ///
    /// ```no_run
    /// # async fn charge(_: &busbar_client::ConsumedRecord) -> Result<(), std::io::Error> { Ok(()) }
    /// # async fn example(mut consumer: busbar_client::Consumer) -> Result<(), Box<dyn std::error::Error>> {
    /// while let Some(record) = consumer.next().await? {
    ///     record.process(charge(&record)).await?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of the processing.
    pub async fn process<T, E: Display>(&self, processing: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        #[cfg(feature = "tracing")]
        return on::process(self, processing).await;
        #[cfg(not(feature = "tracing"))]
        processing.await
    }

    /// The span `process {topic}` of this record, to be entered by whatever processes it. See [`Self::process`].
    #[cfg(feature = "tracing")]
    pub fn process_span(&self) -> tracing::Span {
        on::process_span(self)
    }
}
