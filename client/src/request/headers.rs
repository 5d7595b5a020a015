//! What a request and its reply carry as record headers. Pure: parsing and writing, nothing else.
//!
//! | header | in | value |
//! |---|---|---|
//! | `busbar-correlation-id` | both | names the request; a responder gives it back as it was |
//! | `busbar-reply-to` | request | the topic of the reply |
//! | `busbar-reply-partition` | request | the partition of the reply, decimal; without it any |
//! | `busbar-deadline` | request | milliseconds since the Unix epoch after which nobody waits any more, decimal; as any record's ([`Record::deadline`]) |
//! | `busbar-reply-error` | reply | why there is no proper reply; text |
//!
//! Invariant: of several headers of one name the last counts, so what is appended here overrules what a record had.

use std::{fmt, str};

use busbar_proto::{TopicName, limits};
use bytes::Bytes;

use crate::{consumer::ConsumedRecord, record::Record};

const CORRELATION: &str = "busbar-correlation-id";
const REPLY_TO: &str = "busbar-reply-to";
const REPLY_PARTITION: &str = "busbar-reply-partition";
const REPLY_ERROR: &str = "busbar-reply-error";

/// Names a request: the requester by a number that chance drew, and the requester's own count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Correlation {
    pub(crate) requester: u64,
    pub(crate) number: u64,
}

impl Correlation {
    const HALF: usize = 16;
    const BYTES: usize = 2 * Self::HALF + 1;

    /// The name in a record's header; `None` for what no requester of ours wrote.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES || bytes.get(Self::HALF) != Some(&b'-') {
            return None;
        }
        let (requester, number) = (bytes.get(..Self::HALF)?, bytes.get(Self::HALF + 1..)?);
        Some(Self { requester: hex(requester)?, number: hex(number)? })
    }
}

impl fmt::Display for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}", self.requester, self.number)
    }
}

/// Lower-case digits only: there is one way to write a name.
fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

/// Makes a request of a record.
pub(crate) fn ask(record: &mut Record, correlation: Correlation, reply_to: &str, partition: u32, deadline_ms: i64) {
    let mut put = |name: &str, value: String| record.headers.push((name.to_owned(), Bytes::from(value)));
    put(CORRELATION, correlation.to_string());
    put(REPLY_TO, reply_to.to_owned());
    put(REPLY_PARTITION, partition.to_string());
    record.set_deadline_ms(deadline_ms);
}

/// Where the reply to a record goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplyAddress {
    pub(crate) topic: TopicName,
    pub(crate) partition: Option<u32>,
    /// Given back as it came.
    pub(crate) correlation: Option<Bytes>,
}

/// Why a record can't be replied to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoAddress {
    /// It asks for none.
    NotAsked,
    /// It names no possible topic or partition.
    Malformed(String),
}

impl ReplyAddress {
    /// Of a record that was read.
    pub(crate) fn of(record: &ConsumedRecord) -> Result<Self, NoAddress> {
        Self::read(|name| record.header(name))
    }

    fn read<'a>(header: impl Fn(&str) -> Option<&'a Bytes>) -> Result<Self, NoAddress> {
        let malformed = |name: &str, fault: &str| NoAddress::Malformed(format!("{name}: {fault}"));
        let topic = header(REPLY_TO).ok_or(NoAddress::NotAsked)?;
        let topic = str::from_utf8(topic).map_err(|_| malformed(REPLY_TO, "no UTF-8"))?;
        let topic = topic.parse::<TopicName>().map_err(|fault| malformed(REPLY_TO, &fault.to_string()))?;
        let partition = match header(REPLY_PARTITION) {
            Some(number) => {
                Some(decimal(number).ok_or_else(|| malformed(REPLY_PARTITION, "no number of a partition"))?)
            }
            None => None,
        };
        Ok(Self { topic, partition, correlation: header(CORRELATION).cloned() })
    }

    /// Makes a record a reply.
    pub(crate) fn put_on(self, record: &mut Record) {
        record.partition = self.partition;
        let correlation = self.correlation.map(|correlation| (CORRELATION.to_owned(), correlation));
        record.headers.extend(correlation);
    }
}

/// Which request a record replies to.
pub(crate) fn correlation(reply: &ConsumedRecord) -> Option<Correlation> {
    Correlation::parse(reply.header(CORRELATION)?)
}

/// Makes a record say that there is no proper reply.
pub(crate) fn fail(record: &mut Record, message: &str) {
    record.headers.push((REPLY_ERROR.to_owned(), Bytes::copy_from_slice(cut(message).as_bytes())));
}

/// What a reply of failure says; whoever wrote it may have written anything.
pub(crate) fn failure(reply: &ConsumedRecord) -> Option<String> {
    let text = reply.header(REPLY_ERROR)?;
    Some(cut(&String::from_utf8_lossy(&text[..text.len().min(limits::REPLY_ERROR_BYTES_MAX)])).to_owned())
}

/// As much of a text as a reply of failure carries.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(limits::REPLY_ERROR_BYTES_MAX)]
}

fn decimal<T: str::FromStr>(bytes: &[u8]) -> Option<T> {
    if !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(headers: &[(String, Bytes)]) -> Result<ReplyAddress, NoAddress> {
        ReplyAddress::read(|name| headers.iter().rfind(|(header, _)| header == name).map(|(_, value)| value))
    }

    #[test]
    fn what_is_asked_is_read_and_overrules_what_the_record_had() {
        let mut record = Record::new("x").header(REPLY_TO, "elsewhere").header(CORRELATION, "older");
        let correlation = Correlation { requester: 0xfe, number: 3 };
        ask(&mut record, correlation, "replies", 7, 99);
        let address = read(&record.headers).expect("an address");
        assert_eq!((address.topic.as_str(), address.partition), ("replies", Some(7)));
        assert_eq!(address.correlation.as_deref(), Some(&b"00000000000000fe-0000000000000003"[..]));
        let mut reply = Record::new("y").partition(1);
        address.put_on(&mut reply);
        assert_eq!(reply.partition, Some(7));
        let carried = Correlation::parse(&reply.headers[0].1);
        assert_eq!(carried, Some(correlation));
    }

    #[test]
    fn an_address_that_names_nothing_possible_is_told_from_none() {
        let header = |name: &str, value: &'static [u8]| (name.to_owned(), Bytes::from_static(value));
        assert_eq!(read(&[header(CORRELATION, b"x")]), Err(NoAddress::NotAsked));
        for headers in [
            vec![header(REPLY_TO, b"a b")],
            vec![header(REPLY_TO, b"")],
            vec![header(REPLY_TO, b"\xff")],
            vec![header(REPLY_TO, b"t"), header(REPLY_PARTITION, b"-1")],
            vec![header(REPLY_TO, b"t"), header(REPLY_PARTITION, b"+1")],
            vec![header(REPLY_TO, b"t"), header(REPLY_PARTITION, b"")],
            vec![header(REPLY_TO, b"t"), header(REPLY_PARTITION, b"99999999999")],
        ] {
            assert!(matches!(read(&headers), Err(NoAddress::Malformed(_))), "{headers:?}");
        }
        let plain = read(&[header(REPLY_TO, b"t")]).expect("enough");
        assert_eq!((plain.partition, plain.correlation), (None, None));
    }

    #[test]
    fn a_failure_is_cut_at_a_whole_character() {
        let mut record = Record::new("");
        fail(&mut record, &"ä".repeat(limits::REPLY_ERROR_BYTES_MAX));
        let text = str::from_utf8(&record.headers[0].1).expect("whole characters");
        assert_eq!(text.len(), limits::REPLY_ERROR_BYTES_MAX & !1);
    }

    proptest! {
        #[test]
        fn a_correlation_survives_the_trip(requester: u64, number: u64) {
            let correlation = Correlation { requester, number };
            prop_assert_eq!(Correlation::parse(correlation.to_string().as_bytes()), Some(correlation));
        }

        #[test]
        fn other_bytes_are_no_correlation(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(read) = Correlation::parse(&bytes) {
                prop_assert_eq!(read.to_string().into_bytes(), bytes);
            }
        }
    }
}
