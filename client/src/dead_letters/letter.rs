//! One dead letter: the record as it was, and its story from the headers `busbar-dlq-*`.
//!
//! Invariant: what a replay publishes is the record as its origin had it, and where it was replayed from; nothing of the
//! story of its death.

use std::{fmt, ops::Deref};

use bytes::Bytes;

use crate::{consumer::ConsumedRecord, record::Record};

/// What every header of a dead letter's story begins with.
const STORY: &str = "busbar-dlq-";
/// The header of a replayed record that tells from where: `TOPIC/PARTITION/OFFSET` of the letter. One for each replay, so
/// that a record that dies again and again shows it.
pub(super) const REPLAYED: &str = "busbar-dlq-replayed";
/// The header of a replayed record that tells in which entry of the journal that was.
pub(super) const ENTRY: &str = "busbar-dlq-replay-entry";

/// A record that a consumer group has given up, as read from a topic of dead letters. Reads as a [`ConsumedRecord`], whose
/// topic, partition and offset are the letter's own.
///
/// ```no_run
/// # fn example(letter: &busbar_client::Letter) {
/// println!("{}: {}", letter.place(), letter.story().reason);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Letter {
    record: ConsumedRecord,
    story: LetterStory,
    replayed: bool,
}

/// What became of a record before it was a dead letter. Times are milliseconds since the Unix epoch.
///
/// ```no_run
/// # fn example(letter: &busbar_client::Letter) {
/// let busbar_client::LetterStory { group, topic, partition, offset, .. } = letter.story();
/// println!("{group} gave up offset {offset} of {topic}/{partition}");
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LetterStory {
    /// The group that gave it up.
    pub group: String,
    /// Where it came from.
    pub topic: String,
    /// Its partition there.
    pub partition: u32,
    /// Its offset there.
    pub offset: u64,
    /// Its time there.
    pub timestamp_ms: Option<i64>,
    /// How often it was delivered.
    pub attempts: Option<u32>,
    /// Why the last delivery failed, or why it was rejected.
    pub reason: String,
    /// When it was first delivered, where known.
    pub first_ms: Option<i64>,
    /// When the last delivery failed, where known.
    pub last_ms: Option<i64>,
    /// Bytes of its value, where that had to be left out: such a letter can't be replayed.
    pub left_out_bytes: Option<u64>,
}

impl Deref for Letter {
    type Target = ConsumedRecord;

    fn deref(&self) -> &ConsumedRecord {
        &self.record
    }
}

impl LetterStory {
    /// As the headers tell it; `None` when they tell no origin: then it is no dead letter.
    pub(super) fn of<'a>(header: impl Fn(&str) -> Option<&'a Bytes>) -> Option<Self> {
        let text = |name: &str| {
            let value = header(&format!("{STORY}{name}"))?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        Some(Self {
            group: text("group")?,
            topic: text("topic")?,
            partition: text("partition")?.parse().ok()?,
            offset: text("offset")?.parse().ok()?,
            timestamp_ms: text("timestamp").and_then(|text| text.parse().ok()),
            attempts: text("attempts").and_then(|text| text.parse().ok()),
            reason: text("reason").unwrap_or_default(),
            first_ms: text("first").and_then(|text| text.parse().ok()),
            last_ms: text("last").and_then(|text| text.parse().ok()),
            left_out_bytes: text("value-bytes").and_then(|text| text.parse().ok()),
        })
    }
}

impl Letter {
    /// `None` when the record is no dead letter.
    pub(super) fn new(record: ConsumedRecord, replayed: bool) -> Option<Self> {
        let story = LetterStory::of(|name| record.header(name))?;
        Some(Self { record, story, replayed })
    }

    /// Where it came from, and why.
    pub fn story(&self) -> &LetterStory {
        &self.story
    }

    /// Whether it was replayed, or a replay of it has begun.
    pub fn was_replayed(&self) -> bool {
        self.replayed
    }

    /// The headers that the record had at its origin.
    pub fn own_headers(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.record.headers().filter(|(name, _)| is_own(name))
    }

    /// `TOPIC/PARTITION/OFFSET` of the letter itself.
    pub fn place(&self) -> String {
        format!("{}/{}/{}", self.topic(), self.partition(), self.offset())
    }

    /// The record as it is published again.
    pub(super) fn replay(&self) -> Record {
        let mut record = Record::new(self.value().clone());
        record.key = self.key().cloned();
        record.tombstone = self.is_null();
        record.headers = self.own_headers().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        record.header(REPLAYED, self.place())
    }
}

impl fmt::Display for LetterStory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, topic, partition, offset, attempts, reason, .. } = self;
        write!(f, "offset {offset} of {topic}/{partition}, given up by group {group}")?;
        if let Some(attempts) = attempts {
            write!(f, " after {attempts} {}", if *attempts == 1 { "delivery" } else { "deliveries" })?;
        }
        write!(f, ": {reason}")
    }
}

fn is_own(name: &str) -> bool {
    name == REPLAYED || !name.starts_with(STORY)
}

/// `PARTITION` and `OFFSET` of a [`REPLAYED`] header of a letter of `topic`.
pub(super) fn place_of(topic: &str, header: &[u8]) -> Option<(u32, u64)> {
    let place = std::str::from_utf8(header).ok()?.strip_prefix(topic)?.strip_prefix('/')?;
    let (partition, offset) = place.split_once('/')?;
    Some((partition.parse().ok()?, offset.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_story_is_read_from_headers_and_needs_an_origin() {
        let headers: Vec<(&str, Bytes)> = [
            ("busbar-dlq-group", "billing"),
            ("busbar-dlq-topic", "orders"),
            ("busbar-dlq-partition", "3"),
            ("busbar-dlq-offset", "4711"),
            ("busbar-dlq-attempts", "5"),
            ("busbar-dlq-reason", "not an amount"),
            ("busbar-dlq-first", "soon"),
        ]
        .map(|(name, value)| (name, Bytes::from_static(value.as_bytes())))
        .into();
        let find = |name: &str| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
        let story = LetterStory::of(find).expect("a letter");
        assert_eq!((&*story.group, &*story.topic, story.partition, story.offset), ("billing", "orders", 3, 4711));
        assert_eq!((story.attempts, story.first_ms, story.left_out_bytes), (Some(5), None, None));
        assert_eq!(
            story.to_string(),
            "offset 4711 of orders/3, given up by group billing after 5 deliveries: not an amount"
        );
        for missing in ["busbar-dlq-group", "busbar-dlq-topic", "busbar-dlq-partition", "busbar-dlq-offset"] {
            assert_eq!(LetterStory::of(|name| find(name).filter(|_| name != missing)), None, "without {missing}");
        }
    }

    #[test]
    fn a_replay_is_without_the_story_but_tells_its_place() {
        assert!(is_own("traceparent") && is_own(REPLAYED));
        assert!(!is_own("busbar-dlq-reason") && !is_own(ENTRY));
        assert_eq!(place_of("orders.dlq", b"orders.dlq/3/17"), Some((3, 17)));
        for wrong in ["orders/3/17", "orders.dlq/3", "orders.dlq/x/17", "orders.dlq/3/17/1", ""] {
            assert_eq!(place_of("orders.dlq", wrong.as_bytes()), None, "{wrong}");
        }
    }
}
