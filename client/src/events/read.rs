//! A record becomes an event.

use std::{collections::BTreeMap, str};

use bytes::Bytes;
use cloudevents::{
    Event,
    event::SpecVersion,
    message::{
        BinaryDeserializer, BinarySerializer, MessageAttributeValue, Result, StructuredDeserializer,
        StructuredSerializer,
    },
};

use super::{CONTENT_TYPE, EventError, PREFIX, SPEC_VERSION, STRUCTURED};
use crate::consumer::ConsumedRecord;

impl ConsumedRecord {
    /// The CloudEvent that this record is, in binary or structured mode. In binary mode data is read as bytes, and an
    /// empty value as no data; extensions are read as text.
    ///
    /// # Errors
    /// It is no event, or a malformed one.
    pub fn to_event(&self) -> std::result::Result<Event, EventError> {
        let content_type = self.header(CONTENT_TYPE);
        if content_type.is_some_and(|found| is_structured(found)) {
            return Ok(StructuredDeserializer::into_event(Structured(self.value()))?);
        }
        let version = text(SPEC_VERSION, self.header(SPEC_VERSION).ok_or(EventError::NotAnEvent)?)?;
        let content_type = content_type.map(|found| text(CONTENT_TYPE, found)).transpose()?;
        // Of several headers of one name the last counts.
        let mut attributes = BTreeMap::new();
        for (header, value) in self.headers().filter(|(header, _)| *header != SPEC_VERSION) {
            if let Some(name) = header.strip_prefix(PREFIX) {
                attributes.insert(name, text(header, value)?);
            }
        }
        let binary = Binary { version, content_type, attributes, data: self.value() };
        Ok(BinaryDeserializer::into_event(binary)?)
    }
}

/// The media type itself, or with parameters behind it.
fn is_structured(content_type: &[u8]) -> bool {
    content_type.get(..STRUCTURED.len()).is_some_and(|found| found.eq_ignore_ascii_case(STRUCTURED.as_bytes()))
        && matches!(content_type.get(STRUCTURED.len()), None | Some(b';' | b' '))
}

fn text<'a>(name: &str, value: &'a Bytes) -> std::result::Result<&'a str, EventError> {
    str::from_utf8(value).map_err(|_| EventError::NotText { name: name.to_owned() })
}

struct Structured<'a>(&'a Bytes);

impl StructuredDeserializer for Structured<'_> {
    fn deserialize_structured<R: Sized, V: StructuredSerializer<R>>(self, visitor: V) -> Result<R> {
        visitor.set_structured_event(self.0.to_vec())
    }
}

struct Binary<'a> {
    version: &'a str,
    content_type: Option<&'a str>,
    /// By name, without the prefix.
    attributes: BTreeMap<&'a str, &'a str>,
    data: &'a Bytes,
}

impl BinaryDeserializer for Binary<'_> {
    fn deserialize_binary<R: Sized, V: BinarySerializer<R>>(self, visitor: V) -> Result<R> {
        let Self { version, content_type, attributes, data } = self;
        let version = SpecVersion::try_from(version)?;
        let known = version.attribute_names();
        let value = |text: &str| MessageAttributeValue::String(text.to_owned());
        let mut visitor = visitor.set_spec_version(version)?;
        if let Some(content_type) = content_type {
            visitor = visitor.set_attribute("datacontenttype", value(content_type))?;
        }
        for (name, text) in attributes {
            visitor = match known.contains(&name) {
                true => visitor.set_attribute(name, value(text))?,
                false => visitor.set_extension(name, value(text))?,
            };
        }
        match data.is_empty() {
            true => visitor.end(),
            false => visitor.end_with_data(data.to_vec()),
        }
    }
}
