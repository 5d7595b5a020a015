//! An event becomes a record.

use bytes::Bytes;
use cloudevents::{
    Event,
    event::SpecVersion,
    message::{
        BinaryDeserializer, BinarySerializer, MessageAttributeValue, Result, StructuredDeserializer,
        StructuredSerializer,
    },
};

use super::{CONTENT_TYPE, EventError, PARTITION_KEY, PREFIX, SPEC_VERSION, STRUCTURED};
use crate::record::Record;

impl Record {
    /// A record of a CloudEvent in binary mode: its attributes are headers `ce_..`, its data is the value. The
    /// extension `partitionkey` is the key, too.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use busbar_client::{Record, cloudevents::{EventBuilder, EventBuilderV10}};
    ///
    /// let event = EventBuilderV10::new().id("17").source("/shop").ty("order.paid").data("text/plain", "12.50").build()?;
    /// let record = Record::from_event(&event)?;
    /// assert_eq!(record.value, "12.50");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Data that can't be written as bytes.
    pub fn from_event(event: &Event) -> std::result::Result<Self, EventError> {
        Ok(BinaryDeserializer::deserialize_binary(event.clone(), Writer(Self::default()))?)
    }

    /// A record of a CloudEvent in structured mode: the value is the whole event as JSON.
    ///
    /// # Errors
    /// Data that can't be written as JSON.
    pub fn from_event_structured(event: &Event) -> std::result::Result<Self, EventError> {
        let key = event.extension(PARTITION_KEY).map(|key| Bytes::from(key.to_string()));
        let record = StructuredDeserializer::deserialize_structured(event.clone(), Writer(Self::default()))?;
        Ok(Self { key, ..record })
    }
}

/// The record that is being written.
struct Writer(Record);

impl Writer {
    fn put(mut self, name: String, value: String) -> Self {
        self.0.headers.push((name, Bytes::from(value)));
        self
    }
}

impl BinarySerializer<Record> for Writer {
    fn set_spec_version(self, version: SpecVersion) -> Result<Self> {
        Ok(self.put(SPEC_VERSION.to_owned(), version.to_string()))
    }

    fn set_attribute(self, name: &str, value: MessageAttributeValue) -> Result<Self> {
        let header = if name == "datacontenttype" { CONTENT_TYPE.to_owned() } else { format!("{PREFIX}{name}") };
        Ok(self.put(header, value.to_string()))
    }

    fn set_extension(mut self, name: &str, value: MessageAttributeValue) -> Result<Self> {
        let value = value.to_string();
        if name == PARTITION_KEY {
            self.0.key = Some(Bytes::from(value.clone()));
        }
        Ok(self.put(format!("{PREFIX}{name}"), value))
    }

    fn end_with_data(mut self, bytes: Vec<u8>) -> Result<Record> {
        self.0.value = bytes.into();
        Ok(self.0)
    }

    fn end(self) -> Result<Record> {
        Ok(self.0)
    }
}

impl StructuredSerializer<Record> for Writer {
    fn set_structured_event(self, bytes: Vec<u8>) -> Result<Record> {
        self.put(CONTENT_TYPE.to_owned(), STRUCTURED.to_owned()).end_with_data(bytes)
    }
}
