//! CloudEvents on records, by the Kafka protocol binding: events of `cloudevents-sdk` in and out.
//!
//! ```text
//!  binary      ce_specversion ce_id ce_source ce_type ce_... content-type | value = the event's data
//!  structured  content-type: application/cloudevents+json                 | value = the whole event as JSON
//! ```
//! | file | owns |
//! |---|---|
//! | `write` | an event becomes a record |
//! | `read` | a record becomes an event |
//!
//! Invariants: the attribute `partitionkey` becomes the record's key, so that events of equal ones keep their order;
//! whatever a record holds, reading it ends in an event or an error.

mod read;
mod write;

use cloudevents::message;

/// Header of an event's data type (binary), or of the event itself (structured).
const CONTENT_TYPE: &str = "content-type";
/// Beginning of [`CONTENT_TYPE`] in structured mode.
const STRUCTURED: &str = "application/cloudevents+json";
/// What names of headers begin with that are an event's attributes.
const PREFIX: &str = "ce_";
const SPEC_VERSION: &str = "ce_specversion";
/// The attribute that becomes the key.
const PARTITION_KEY: &str = "partitionkey";

/// An event could not be written, or a record is none.
///
/// ```no_run
/// # fn example(record: busbar_client::ConsumedRecord) {
/// use busbar_client::EventError;
///
/// match record.to_event() {
///     Ok(event) => println!("{event:?}"),
///     Err(EventError::NotAnEvent) => println!("a plain record"),
///     Err(error) => println!("{error}"),
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// The record is no event: it has neither a header `ce_specversion` nor a content type of an event.
    #[error("the record is no CloudEvent: no header ce_specversion, and content-type is not {STRUCTURED}")]
    NotAnEvent,
    /// A header that should be text is not UTF-8.
    #[error("header {name} of the event is no UTF-8")]
    NotText {
        /// The header.
        name: String,
    },
    /// The SDK refuses it: an attribute is missing, unknown or malformed, or the JSON is.
    #[error("the event is malformed: {0}")]
    Malformed(#[from] message::Error),
}

#[cfg(test)]
mod tests {
    use cloudevents::{AttributesReader, Data, Event, EventBuilder, EventBuilderV10};
    use proptest::prelude::*;

    use super::*;
    use crate::{consumer::ConsumedRecord, context::consumed, record::Record};

    #[derive(Clone, Debug)]
    enum Payload {
        None,
        Text(String),
        Bytes(Vec<u8>),
        Json(i64, String),
    }

    fn payload() -> impl Strategy<Value = Payload> {
        prop_oneof![
            Just(Payload::None),
            ".{1,40}".prop_map(Payload::Text),
            prop::collection::vec(any::<u8>(), 1..40).prop_map(Payload::Bytes),
            (any::<i64>(), ".{0,20}").prop_map(|(number, text)| Payload::Json(number, text)),
        ]
    }

    prop_compose! {
        fn event()(
            id in ".{1,20}",
            kind in "[a-z.]{1,20}",
            subject in prop::option::of(".{1,20}"),
            seconds in 0_u32..60,
            extensions in prop::collection::btree_map("x[a-z0-9]{1,15}", ".{0,20}", 0..5),
            key in prop::option::of(".{1,10}"),
            payload in payload(),
        ) -> Event {
            let mut builder = EventBuilderV10::new().id(id).ty(kind).source("/shop/till").time(format!("2026-03-01T10:00:{seconds:02}.25Z"));
            if let Some(subject) = subject {
                builder = builder.subject(subject);
            }
            for (name, value) in extensions {
                builder = builder.extension(&name, value);
            }
            if let Some(key) = key {
                builder = builder.extension(PARTITION_KEY, key);
            }
            builder = match payload {
                Payload::None => builder,
                Payload::Text(text) => builder.data("text/plain", text),
                Payload::Bytes(bytes) => builder.data("application/octet-stream", bytes),
                Payload::Json(number, text) => {
                    builder.data("application/json", serde_json::json!({ "number": number, "text": text }))
                }
            };
            builder.build().expect("an event")
        }
    }

    fn bytes(event: &Event) -> Option<Vec<u8>> {
        event.data().map(|data| Vec::try_from(data.clone()).expect("bytes"))
    }

    /// As binary mode leaves it: data is bytes.
    fn with_bytes(mut event: Event) -> Event {
        if let Some(bytes) = bytes(&event) {
            event.set_data_unchecked(Data::Binary(bytes));
        }
        event
    }

    fn read(record: &Record) -> ConsumedRecord {
        consumed(record)
    }

    proptest! {
        #[test]
        fn an_event_survives_binary_mode(event in event()) {
            let record = Record::from_event(&event).expect("written");
            let key = event.extension(PARTITION_KEY).map(|key| key.to_string().into_bytes());
            prop_assert_eq!(record.key.as_ref().map(|key| key.to_vec()), key);
            prop_assert_eq!(Some(record.value.to_vec()).filter(|value| !value.is_empty()), bytes(&event));
            prop_assert_eq!(read(&record).to_event().expect("read"), with_bytes(event));
        }

        #[test]
        fn an_event_survives_structured_mode(event in event()) {
            let record = Record::from_event_structured(&event).expect("written");
            prop_assert_eq!(record.headers.len(), 1);
            let back = read(&record).to_event().expect("read");
            prop_assert_eq!(with_bytes(back), with_bytes(event));
        }

        #[test]
        fn any_record_is_read_without_harm(
            headers in prop::collection::vec(("(ce_)?(specversion|id|type|source|time|dataschema|x)|content-type", prop_oneof![
                Just(b"1.0".to_vec()), Just(STRUCTURED.into()), Just(b"application/json".to_vec()), prop::collection::vec(any::<u8>(), 0..20),
            ]), 0..8),
            value in prop_oneof![Just(b"{\"specversion\":\"1.0\",\"data\":1}".to_vec()), prop::collection::vec(any::<u8>(), 0..40)],
        ) {
            let record = headers.into_iter().fold(Record::new(value), |record, (name, value)| record.header(name, value));
            let _ = read(&record).to_event();
        }
    }

    #[test]
    fn what_is_no_event_says_why() {
        let plain = read(&Record::new("x").header(CONTENT_TYPE, "text/plain")).to_event();
        assert!(matches!(plain, Err(EventError::NotAnEvent)), "{plain:?}");
        let base = || Record::new("x").header(SPEC_VERSION, "1.0").header("ce_id", "1").header("ce_source", "/s");
        for (record, want) in [
            (base(), "type"),
            (base().header("ce_type", vec![0xff]), "header ce_type of the event is no UTF-8"),
            (Record::new("x").header(SPEC_VERSION, "7.0"), "7.0"),
            (base().header("ce_type", "t").header("ce_time", "noon"), "time"),
            (Record::new("{").header(CONTENT_TYPE, STRUCTURED), "malformed"),
            (Record::new("[]").header(CONTENT_TYPE, "application/cloudevents-batch+json"), "no CloudEvent"),
        ] {
            let error = read(&record).to_event().expect_err("malformed").to_string();
            assert!(error.contains(want), "{want}: {error}");
        }
        let sound = read(&base().header("ce_type", "t").header(CONTENT_TYPE, "text/plain; charset=utf-8"));
        let event = sound.to_event().expect("an event");
        assert_eq!((event.ty(), event.datacontenttype()), ("t", Some("text/plain; charset=utf-8")));
    }
}
