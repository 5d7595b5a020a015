//! The context that travels with a record: which trace it belongs to (W3C `traceparent`, `tracestate`) and what the
//! application adds to it (`baggage`), in headers of these names, as other clients' instrumentations have them; and until
//! when anybody has use for what it leads to (`busbar-deadline`).
//!
//! | file | owns |
//! |---|---|
//! | `traceparent`, `tracestate`, `baggage` | the three formats (pure) |
//! | `record` | writing them to records and reading them |
//! | `deadline` | the deadline that travels |
//! | `spans` | spans of sending and processing; nothing at all without the feature `tracing` |
//! | `metrics` | the OpenTelemetry metrics of the client; nothing at all without the feature `opentelemetry` |
//!
//! Invariant: what is malformed is left out and counted; it never fails a record.

mod baggage;
mod deadline;
pub(crate) mod metrics;
mod record;
pub(crate) mod spans;
mod traceparent;
mod tracestate;

use busbar_proto::batch::BatchHeader;

use crate::consumer::Parcel;

#[cfg(all(test, feature = "cloudevents"))]
pub(crate) use self::record::tests::consumed;
pub use self::{
    record::malformed_contexts,
    traceparent::{MalformedTraceParent, TraceParent},
};

/// A batch reached the application: counted, and traced.
pub(crate) fn received(topic: &str, group: Option<&str>, parcel: &Parcel) {
    let Some(batch) = &parcel.batch else { return };
    if let Ok(header) = BatchHeader::parse(batch) {
        metrics::consumed(topic, header.next_offset().distance_from(parcel.from));
        spans::received(topic, group, parcel.partition, batch, parcel.from);
    }
}

/// Names of the headers.
pub(crate) const TRACEPARENT: &str = "traceparent";
pub(crate) const TRACESTATE: &str = "tracestate";
pub(crate) const BAGGAGE: &str = "baggage";
