//! Spans through the `tracing` crate.

use std::{any::type_name, fmt::Display, future::Future};

use busbar_proto::{Offset, PartitionId, batch::records};
use bytes::Bytes;
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
    /// Begins it, and puts its context on the record, unless the record has one: then that is its creation.
    pub(crate) fn begin(topic: &str, record: &mut Record) -> Self {
        #[cfg(feature = "opentelemetry")]
        let created = record.traceparent().is_some();
        #[cfg(not(feature = "opentelemetry"))]
        let created = false;
        let span = tracing::info_span!(
            target: "busbar_client::send",
            "send",
            otel.name = format!("send {topic}"),
            otel.kind = if created { "client" } else { "producer" },
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
        let injected = match created {
            true => propagation::link_to_own(&span, record),
            false => propagation::inject(&span, record),
        };
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

pub(super) fn created_for(record: Record, topic: &str) -> Record {
    #[cfg(feature = "opentelemetry")]
    let mut record = record;
    #[cfg(feature = "opentelemetry")]
    if record.traceparent().is_some() {
        return record;
    }
    let span = tracing::info_span!(
        target: "busbar_client::create",
        "create",
        otel.name = format!("create {topic}"),
        otel.kind = "producer",
        messaging.system = "busbar",
        messaging.operation.name = "create",
        messaging.operation.type = "create",
        messaging.destination.name = topic,
        messaging.message.body.size = record.value.len(),
    );
    #[cfg(feature = "opentelemetry")]
    propagation::inject(&span, &mut record);
    drop(span);
    record
}

/// A batch reached the application: a span of a moment, linked to what sent its records.
pub(crate) fn received(topic: &str, group: Option<&str>, partition: PartitionId, batch: &Bytes, from: Offset) {
    let span = tracing::info_span!(
        target: "busbar_client::receive",
        "receive",
        otel.name = format!("receive {topic}"),
        otel.kind = "client",
        messaging.system = "busbar",
        messaging.operation.name = "receive",
        messaging.operation.type = "receive",
        messaging.destination.name = topic,
        messaging.destination.partition.id = %partition,
        messaging.consumer.group.name = group,
        messaging.batch.message_count = Empty,
        messaging.busbar.offset = from.get(),
    );
    if span.is_disabled() {
        return;
    }
    // What can't be read is told where it is handed out.
    let Ok(records) = records(batch.clone()) else { return };
    span.record("messaging.batch.message_count", records.header().next_offset().distance_from(from));
    #[cfg(feature = "opentelemetry")]
    propagation::link_batch(&span, topic, partition, records, from);
}

/// A word on a record of a group.
pub(crate) fn settling<T, E: Display>(
    record: &ConsumedRecord,
    group: &str,
    operation: &'static str,
    settle: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let topic = record.topic();
    let span = tracing::info_span!(
        target: "busbar_client::settle",
        "settle",
        otel.name = format!("{operation} {topic}"),
        otel.kind = "client",
        otel.status_code = Empty,
        otel.status_description = Empty,
        messaging.system = "busbar",
        messaging.operation.name = operation,
        messaging.operation.type = "settle",
        messaging.destination.name = topic,
        messaging.destination.partition.id = %record.partition(),
        messaging.consumer.group.name = group,
        messaging.busbar.offset = record.offset(),
        error.type = Empty,
    );
    #[cfg(feature = "opentelemetry")]
    propagation::link(&span, record);
    let settled = span.in_scope(settle);
    if let Err(error) = &settled {
        fail(&span, type_name::<E>(), error);
    }
    settled
}

/// Waiting for a commit of a group.
pub(crate) async fn committing<T, E: Display>(
    topics: &[String],
    group: &str,
    commit: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let topic = if let [only] = topics { Some(only.as_str()) } else { None };
    let span = tracing::info_span!(
        target: "busbar_client::settle",
        "commit",
        otel.name = topic.map_or_else(|| "commit".to_owned(), |topic| format!("commit {topic}")),
        otel.kind = "client",
        otel.status_code = Empty,
        otel.status_description = Empty,
        messaging.system = "busbar",
        messaging.operation.name = "commit",
        messaging.operation.type = "settle",
        messaging.destination.name = topic,
        messaging.consumer.group.name = group,
        error.type = Empty,
    );
    let committed = commit.instrument(span.clone()).await;
    if let Err(error) = &committed {
        fail(&span, type_name::<E>(), error);
    }
    committed
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
