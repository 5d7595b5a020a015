//! Spans through the `tracing` crate.

use std::{any::type_name, fmt::Display, future::Future};

use parking_lot::Mutex;
use tracing::{Instrument, Span, field::Empty};

#[cfg(feature = "opentelemetry")]
use super::propagation;
use crate::{
    consumer::ConsumedRecord,
    error::{DeliveryError, SendError},
    record::Record,
};

/// The span of one record's sending.
#[derive(Debug)]
pub(crate) struct SendSpan {
    span: Span,
    /// Headers that were put behind the record's own.
    injected: usize,
}

impl SendSpan {
    /// Begins it, and puts its context on the record.
    pub(crate) fn begin(topic: &str, record: &mut Record) -> Self {
        let span = tracing::info_span!(
            target: "busbar_client::send",
            "send",
            otel.name = format!("send {topic}"),
            otel.kind = "producer",
            otel.status_code = Empty,
            otel.status_description = Empty,
            messaging.system = "busbar",
            messaging.operation.name = "send",
            messaging.operation.type = "send",
            messaging.destination.name = topic,
            messaging.destination.partition.id = Empty,
            messaging.message.body.size = record.value.len(),
            messaging.busbar.offset = Empty,
            messaging.busbar.batch.message_count = Empty,
            error.type = Empty,
        );
        #[cfg(feature = "opentelemetry")]
        let injected = propagation::inject(&span, record);
        #[cfg(not(feature = "opentelemetry"))]
        let injected = 0;
        Self { span, injected }
    }

    /// The record was not taken now, but is given back as it came.
    pub(crate) fn take_back(self, record: &mut Record) {
        record.headers.truncate(record.headers.len() - self.injected);
        fail(&self.span, "full", &"the producer's buffer is full");
    }

    /// The record was not taken.
    pub(crate) fn refused(self, error: &SendError) {
        fail(&self.span, error.kind(), error);
    }
}

/// The spans of a batch's records.
#[derive(Debug, Default)]
pub(crate) struct SendSpans {
    open: Mutex<Vec<(u32, Span)>>,
}

impl SendSpans {
    /// The span ends with the batch.
    pub(crate) fn add(&self, index: u32, span: SendSpan) {
        if !span.span.is_disabled() {
            self.open.lock().push((index, span.span));
        }
    }

    /// The batch is stored in a partition from an offset on, or failed.
    pub(crate) fn end(&self, stored: Result<(u32, u64), &DeliveryError>) {
        let open = std::mem::take(&mut *self.open.lock());
        let count = open.len();
        for (index, span) in open {
            span.record("messaging.busbar.batch.message_count", count);
            match stored {
                Ok((partition, base)) => {
                    span.record("messaging.destination.partition.id", tracing::field::display(partition));
                    span.record("messaging.busbar.offset", base + u64::from(index));
                }
                Err(error) => {
                    let partition = error.report().partition();
                    span.record("messaging.destination.partition.id", tracing::field::display(partition));
                    fail(&span, error.kind(), error);
                }
            }
        }
    }
}

fn fail(span: &Span, kind: &str, error: &dyn Display) {
    span.record("error.type", kind);
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", tracing::field::display(error));
}

pub(super) fn process_span(record: &ConsumedRecord) -> Span {
    let topic = record.topic();
    let span = tracing::info_span!(
        target: "busbar_client::process",
        "process",
        otel.name = format!("process {topic}"),
        otel.kind = "consumer",
        otel.status_code = Empty,
        otel.status_description = Empty,
        messaging.system = "busbar",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = topic,
        messaging.destination.partition.id = %record.partition(),
        messaging.message.body.size = record.value().len(),
        messaging.busbar.offset = record.offset(),
        error.type = Empty,
    );
    #[cfg(feature = "opentelemetry")]
    propagation::link(&span, record);
    span
}

pub(super) async fn process<T, E: Display>(
    record: &ConsumedRecord,
    processing: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let span = process_span(record);
    let begun = std::time::Instant::now();
    let processed = processing.instrument(span.clone()).await;
    let kind = processed.as_ref().err().map(|error| {
        fail(&span, type_name::<E>(), error);
        type_name::<E>()
    });
    crate::context::metrics::processed(record.topic(), begun.elapsed(), kind);
    processed
}
