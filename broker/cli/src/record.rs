//! How one record is printed: a line of text for eyes, or a line of JSON that loses nothing.

use std::fmt::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use busbar_client::ConsumedRecord;
use bytes::Bytes;
use serde::{Serialize, Serializer, ser::SerializeMap};

/// A record as `busbar sub` saw it.
pub(crate) struct RecordView<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) timestamp_ms: i64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) headers: Vec<(&'a str, &'a Bytes)>,
    /// `None` for a record without a value, as other clients can write it.
    pub(crate) value: Option<&'a [u8]>,
}

impl<'a> RecordView<'a> {
    pub(crate) fn of(record: &'a ConsumedRecord) -> Self {
        Self {
            topic: record.topic(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp_ms: record.timestamp_ms(),
            key: record.key().map(AsRef::as_ref),
            headers: record.headers().collect(),
            value: (!record.is_null()).then(|| record.value().as_ref()),
        }
    }

    /// The value as [`line_of`].
    pub(crate) fn line(&self) -> String {
        line_of(self.value.unwrap_or_default())
    }
}

/// Bytes as one line of text: what is no UTF-8 is replaced, and characters that would break the line or drive the terminal
/// are written as escapes.
pub(crate) fn line_of(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            let _ = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// `{"topic","partition","offset","timestamp","key","headers":[{"name","value"}],"value"}`; bytes that are no UTF-8 are
/// under `key_base64` and `value_base64` instead.
impl Serialize for RecordView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("topic", self.topic)?;
        map.serialize_entry("partition", &self.partition)?;
        map.serialize_entry("offset", &self.offset)?;
        map.serialize_entry("timestamp", &self.timestamp_ms)?;
        bytes_entry(&mut map, "key", "key_base64", self.key)?;
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| Header { name, value }).collect();
        map.serialize_entry("headers", &headers)?;
        bytes_entry(&mut map, "value", "value_base64", self.value)?;
        map.end()
    }
}

struct Header<'a> {
    name: &'a str,
    value: &'a [u8],
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", self.name)?;
        bytes_entry(&mut map, "value", "value_base64", Some(self.value))?;
        map.end()
    }
}

fn bytes_entry<M: SerializeMap>(map: &mut M, text: &str, base64: &str, bytes: Option<&[u8]>) -> Result<(), M::Error> {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => map.serialize_entry(text, &None::<&str>),
        Some(Ok(value)) => map.serialize_entry(text, value),
        Some(Err(bytes)) => map.serialize_entry(base64, &STANDARD.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record<'a>(key: Option<&'a [u8]>, headers: &'a [(String, Bytes)], value: &'a [u8]) -> RecordView<'a> {
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
        RecordView { topic: "t", partition: 1, offset: 2, timestamp_ms: 3, key, headers, value: Some(value) }
    }

    #[test]
    fn text_is_always_one_line_that_drives_no_terminal() {
        for (value, want) in [
            (&b"plain \xc3\xa4\tx"[..], "plain ä\tx"),
            (b"two\nlines\r", "two\\nlines\\r"),
            (b"\x1b[2J\0", "\\u{1b}[2J\\u{0}"),
            (b"\xff!", "\u{fffd}!"),
            (b"", ""),
        ] {
            assert_eq!(record(None, &[], value).line(), want);
        }
    }

    #[test]
    fn json_loses_nothing() {
        let headers = [("h".to_owned(), Bytes::from_static(b"1")), ("h".to_owned(), Bytes::from_static(b"\xff"))];
        let json = serde_json::to_string(&record(Some(b"k"), &headers, b"a\nb")).unwrap();
        let want = r#"{"topic":"t","partition":1,"offset":2,"timestamp":3,"key":"k","headers":[{"name":"h","value":"1"},{"name":"h","value_base64":"/w=="}],"value":"a\nb"}"#;
        assert_eq!(json, want);
        let json = serde_json::to_string(&record(None, &[], b"\xff")).unwrap();
        assert!(json.ends_with(r#""key":null,"headers":[],"value_base64":"/w=="}"#), "{json}");
    }
}
