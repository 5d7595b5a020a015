//! OpenTelemetry's context on records, through the propagator that the application has set
//! (`opentelemetry::global::set_text_map_propagator`): which headers there are is that propagator's choice.

use std::sync::Arc;

use busbar_proto::{Offset, PartitionId, batch::Records};
use bytes::Bytes;
use opentelemetry::{
    Context, global,
    propagation::{Extractor, Injector},
    trace::{SpanContext, TraceContextExt},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{consumer::ConsumedRecord, record::Record};

/// Links that a span has at most; what is above that is left out by most of OpenTelemetry's implementations anyway.
const LINKS_MAX: usize = 128;

/// Appends to a record's headers.
struct Headers<'a>(&'a mut Vec<(String, Bytes)>);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.push((key.to_owned(), Bytes::from(value)));
    }
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let (_, value) = self.0.iter().rfind(|(name, _)| name.eq_ignore_ascii_case(key))?;
        std::str::from_utf8(value).ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// Reads a consumed record's headers.
struct ReadHeaders<'a>(&'a ConsumedRecord);

impl Extractor for ReadHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(self.0.header(key)?).ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.headers().map(|(name, _)| name).collect()
    }
}

/// Links the span to the context that the application has put on the record, its creation; no header is added.
pub(super) fn link_to_own(span: &Span, record: &mut Record) -> usize {
    let created = global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&Context::new(), &Headers(&mut record.headers))
    });
    link_to(span, created.span().span_context());
    0
}

/// Puts the span's context on the record; how many headers that took.
pub(super) fn inject(span: &Span, record: &mut Record) -> usize {
    let own = record.headers.len();
    // Without a layer for OpenTelemetry the span has no context; the application may have one all the same.
    let mut context = span.context();
    if !context.span().span_context().is_valid() {
        context = Context::current();
    }
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Headers(&mut record.headers));
    });
    record.headers.len() - own
}

/// Links a span of receiving to what sent each record of a batch from an offset on, as far as links go.
pub(super) fn link_batch(span: &Span, topic: &str, partition: PartitionId, records: Records, from: Offset) {
    let topic: Arc<str> = topic.into();
    let received = records.map_while(Result::ok).filter(|view| view.offset >= from).take(LINKS_MAX);
    for view in received.filter(|view| !view.headers.is_empty()) {
        let record = ConsumedRecord::new(topic.clone(), partition, view);
        let created = global::get_text_map_propagator(|propagator| {
            propagator.extract_with_context(&Context::new(), &ReadHeaders(&record))
        });
        link_to(span, created.span().span_context());
    }
}

/// Links a span of processing or settling to what sent the record; without a current span it becomes its child.
pub(super) fn link(span: &Span, record: &ConsumedRecord) {
    let created = global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&Context::new(), &ReadHeaders(record))
    });
    let alone = Span::current().is_none() && !Context::current().span().span_context().is_valid();
    link_to(span, created.span().span_context());
    if alone && let Err(error) = span.set_parent(created) {
        tracing::trace!(%error, "no parent for a span of processing");
    }
}

fn link_to(span: &Span, created: &SpanContext) {
    if created.is_valid() {
        span.add_link(created.clone());
    }
}
