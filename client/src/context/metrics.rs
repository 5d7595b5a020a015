//! The client's metrics by OpenTelemetry's conventions for messaging, through the meter provider that the application
//! has set (`opentelemetry::global::set_meter_provider`) before the first of them is used. Without the feature
//! `opentelemetry` everything here compiles to nothing.
//!
//! | metric | counts |
//! |---|---|
//! | `messaging.client.operation.duration` | seconds from a batch's first record until its fate is known |
//! | `messaging.client.sent.messages` | records whose fate is known |
//! | `messaging.client.consumed.messages` | records handed to the application's consumers |
//! | `messaging.process.duration` | seconds of processing a record |
//!
//! Invariant: a closed set of labels: system, operation, topic, and the kind of error where there is one.

use std::time::Duration;

use crate::error::DeliveryError;

/// The fate of a batch is known.
pub(crate) fn sent(topic: &str, records: u32, took: Duration, error: Option<&DeliveryError>) {
    #[cfg(feature = "opentelemetry")]
    on::sent(topic, records, took, error.map(DeliveryError::kind));
    #[cfg(not(feature = "opentelemetry"))]
    let _ = (topic, records, took, error);
}

/// A consumer has a batch of so many records to hand out.
pub(crate) fn consumed(topic: &str, records: u64) {
    #[cfg(feature = "opentelemetry")]
    on::consumed(topic, records);
    #[cfg(not(feature = "opentelemetry"))]
    let _ = (topic, records);
}

/// A record has been processed.
#[cfg(feature = "tracing")]
pub(crate) fn processed(topic: &str, took: Duration, error: Option<&'static str>) {
    #[cfg(feature = "opentelemetry")]
    on::processed(topic, took, error);
    #[cfg(not(feature = "opentelemetry"))]
    let _ = (topic, took, error);
}

#[cfg(feature = "opentelemetry")]
mod on {
    use std::{sync::OnceLock, time::Duration};

    use opentelemetry::{
        KeyValue, global,
        metrics::{Counter, Histogram},
    };

    /// As the conventions advise.
    const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

    struct Instruments {
        operation: Histogram<f64>,
        sent: Counter<u64>,
        consumed: Counter<u64>,
        process: Histogram<f64>,
    }

    fn instruments() -> &'static Instruments {
        static INSTRUMENTS: OnceLock<Instruments> = OnceLock::new();
        INSTRUMENTS.get_or_init(|| {
            let meter = global::meter("busbar_client");
            let seconds = |name| meter.f64_histogram(name).with_unit("s").with_boundaries(SECONDS.to_vec()).build();
            let messages = |name| meter.u64_counter(name).with_unit("{message}").build();
            Instruments {
                operation: seconds("messaging.client.operation.duration"),
                sent: messages("messaging.client.sent.messages"),
                consumed: messages("messaging.client.consumed.messages"),
                process: seconds("messaging.process.duration"),
            }
        })
    }

    fn labels(operation: &'static str, topic: &str, error: Option<&'static str>) -> Vec<KeyValue> {
        let mut labels = vec![
            KeyValue::new("messaging.system", "busbar"),
            KeyValue::new("messaging.operation.name", operation),
            KeyValue::new("messaging.destination.name", topic.to_owned()),
        ];
        labels.extend(error.map(|error| KeyValue::new("error.type", error)));
        labels
    }

    pub(super) fn sent(topic: &str, records: u32, took: Duration, error: Option<&'static str>) {
        let labels = labels("send", topic, error);
        instruments().operation.record(took.as_secs_f64(), &labels);
        instruments().sent.add(records.into(), &labels);
    }

    pub(super) fn consumed(topic: &str, records: u64) {
        instruments().consumed.add(records, &labels("receive", topic, None));
    }

    pub(super) fn processed(topic: &str, took: Duration, error: Option<&'static str>) {
        instruments().process.record(took.as_secs_f64(), &labels("process", topic, error));
    }
}
