//! The three context headers on records: written when they are sound, read when they are sound, else as if they were
//! not there. A record that is being built knows no client, so what was left out is counted for the whole process.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{BAGGAGE, TRACEPARENT, TRACESTATE, TraceParent, baggage, tracestate};
use crate::{consumer::ConsumedRecord, record::Record};

static MALFORMED: AtomicU64 = AtomicU64::new(0);

/// Context headers that were malformed and therefore left out, when records were built and each time that such a header
/// was read, in this process.
pub fn malformed_contexts() -> u64 {
    MALFORMED.load(Ordering::Relaxed)
}

/// `Some` if it is sound; counts it otherwise.
pub(super) fn sound<T>(read: Option<T>) -> Option<T> {
    MALFORMED.fetch_add(u64::from(read.is_none()), Ordering::Relaxed);
    read
}

impl Record {
    /// Of this trace, in the words of W3C Trace Context; `tracestate` may be empty. Overrules what it had. A
    /// malformed `traceparent` is left out, and the `tracestate` with it.
    ///
    /// With the feature `opentelemetry` this happens by itself; a context that was set here is kept, and linked.
    ///
    /// ```
    /// use busbar_client::Record;
    ///
    /// let record = Record::new("paid").trace_context("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "");
    /// assert_eq!(record.headers.len(), 1);
    /// assert!(Record::new("paid").trace_context("nonsense", "").headers.is_empty());
    /// ```
    #[must_use]
    pub fn trace_context(mut self, traceparent: &str, tracestate: &str) -> Self {
        self.headers.retain(|(name, _)| name != TRACEPARENT && name != TRACESTATE);
        let Some(parent) = sound(traceparent.parse::<TraceParent>().ok()) else { return self };
        self.headers.push((TRACEPARENT.to_owned(), Bytes::from(parent.to_string())));
        if !tracestate.is_empty() && sound(tracestate::is_sound(tracestate).then_some(())).is_some() {
            self.headers.push((TRACESTATE.to_owned(), Bytes::copy_from_slice(tracestate.as_bytes())));
        }
        self
    }

    /// With this W3C baggage: `user=42,region=eu`. Overrules what it had; malformed, it is left out.
    #[must_use]
    pub fn baggage(mut self, baggage: &str) -> Self {
        self.headers.retain(|(name, _)| name != BAGGAGE);
        if sound(baggage::is_sound(baggage).then_some(())).is_some() {
            self.headers.push((BAGGAGE.to_owned(), Bytes::copy_from_slice(baggage.as_bytes())));
        }
        self
    }

    /// Of the same trace as a record that was read, with the same baggage, and no later deadline
    /// ([`Record::deadline`]): for what is published because of it. What must be published however late it is takes
    /// [`Record::without_deadline`] after that.
    #[must_use]
    pub fn context_of(mut self, cause: &ConsumedRecord) -> Self {
        self.headers.retain(|(name, _)| ![TRACEPARENT, TRACESTATE, BAGGAGE].contains(&name.as_str()));
        let parent = cause.traceparent().map(|parent| (TRACEPARENT, Bytes::from(parent.to_string())));
        let copy = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let state = cause.tracestate().map(|state| (TRACESTATE, copy(state)));
        let baggage = cause.baggage().map(|baggage| (BAGGAGE, copy(baggage)));
        let headers = [parent, state, baggage].into_iter().flatten();
        self.headers.extend(headers.map(|(name, value)| (name.to_owned(), value)));
        self.inherit_deadline(cause);
        self
    }

    #[cfg(feature = "opentelemetry")]
    pub(crate) fn traceparent(&self) -> Option<TraceParent> {
        let (_, value) = self.headers.iter().rfind(|(name, _)| name == TRACEPARENT)?;
        sound(TraceParent::parse(value))
    }
}

impl ConsumedRecord {
    /// Which trace it belongs to and what caused it, if that is told, and well-formed.
    pub fn traceparent(&self) -> Option<TraceParent> {
        sound(TraceParent::parse(self.header(TRACEPARENT)?))
    }

    /// What tracing systems have added to [`Self::traceparent`]; `None` without that.
    pub fn tracestate(&self) -> Option<&str> {
        let state = self.header(TRACESTATE)?;
        self.traceparent()?;
        sound(std::str::from_utf8(state).ok().filter(|state| tracestate::is_sound(state)))
    }

    /// The W3C baggage that came along.
    pub fn baggage(&self) -> Option<&str> {
        sound(std::str::from_utf8(self.header(BAGGAGE)?).ok().filter(|baggage| baggage::is_sound(baggage)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use busbar_proto::{
        Offset, PartitionId,
        batch::{BatchBuilder, BatchOptions, ProducerState, records, stamp},
    };
    use bytes::BytesMut;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// The record as a consumer reads it.
    pub(crate) fn consumed(record: &Record) -> ConsumedRecord {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        builder.push(0, record.key.as_deref(), Some(&record.value), &record.headers).expect("room");
        let mut batch = BytesMut::from(&builder.build(ProducerState::NONE)[..]);
        stamp(&mut batch, Offset::new(0), 1);
        let view = records(batch.freeze()).expect("sound").next().expect("one").expect("sound");
        ConsumedRecord::new("t".into(), PartitionId::new(0), view)
    }

    #[test]
    fn a_context_travels_and_the_last_word_counts() {
        let record = Record::new("x").trace_context(PARENT, "a=1").baggage("user=1");
        let record = record.trace_context(PARENT, "b=2").baggage("user=2");
        let read = consumed(&record);
        assert_eq!(read.headers().count(), 3);
        assert_eq!(read.traceparent().map(|parent| parent.to_string()).as_deref(), Some(PARENT));
        assert_eq!((read.tracestate(), read.baggage()), (Some("b=2"), Some("user=2")));
        let next = Record::new("y").header("own", "1").baggage("old=1").context_of(&read);
        let next = consumed(&next);
        assert_eq!((next.traceparent(), next.baggage()), (read.traceparent(), read.baggage()));
        assert_eq!((next.tracestate(), next.headers().count()), (Some("b=2"), 4));
    }

    #[test]
    fn what_is_malformed_is_left_out_and_counted() {
        let before = malformed_contexts();
        let record = Record::new("x").trace_context("nonsense", "a=1").baggage("");
        assert!(record.headers.is_empty());
        let record = record.trace_context(PARENT, "A=1");
        assert_eq!(record.headers.len(), 1);
        let forged = Record::new("x").header(TRACEPARENT, "nonsense").header(TRACESTATE, "a=1");
        let read = consumed(&forged.header(BAGGAGE, vec![0xff]));
        assert_eq!((read.traceparent(), read.tracestate(), read.baggage()), (None, None, None));
        // Three when written; the parent twice when read, the baggage once. Other tests count, too.
        assert!(malformed_contexts() >= before + 6);
        let plain = consumed(&Record::new("x"));
        assert_eq!((plain.traceparent(), plain.tracestate(), plain.baggage()), (None, None, None));
    }
}
