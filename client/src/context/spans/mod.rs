//! Spans of sending and processing, by OpenTelemetry's conventions for messaging: `send {topic}` of kind producer, from
//! `send()` until the record's fate is known, and `process {topic}` of kind consumer. `on` is in the build with the
//! feature `tracing`, `off` otherwise: types without size and functions without content.
//!
//! Invariant: a span of sending ends exactly once, with its record's outcome or when the producer ends.

#[cfg(not(feature = "tracing"))]
mod off;
#[cfg(feature = "tracing")]
mod on;
#[cfg(feature = "opentelemetry")]
mod propagation;

#[cfg(not(feature = "tracing"))]
pub(crate) use off::{SendSpan, SendSpans};
#[cfg(feature = "tracing")]
pub(crate) use on::{SendSpan, SendSpans};

use std::{fmt::Display, future::Future};

use crate::consumer::ConsumedRecord;

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
