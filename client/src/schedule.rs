//! When a record may be delivered to a group: not before a time, and not from a time on. Pure.
//!
//! | header | value |
//! |---|---|
//! | `busbar-deliver-at` | not before this: milliseconds since the Unix epoch, decimal |
//! | `busbar-expires-at` | not from this on, the same |
//!
//! Invariant: what can't be read counts as not there; of several headers of one name the last counts.

use std::{
    str,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

pub(crate) const DELIVER_AT: &str = "busbar-deliver-at";
pub(crate) const EXPIRES_AT: &str = "busbar-expires-at";

/// A moment that a record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// At this time, in milliseconds since the Unix epoch.
    AtMs(i64),
    /// So long after the call that sends the record.
    In(Duration),
}

impl Moment {
    /// At this time; one before the Unix epoch counts as the epoch.
    pub fn at(time: SystemTime) -> Self {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self::AtMs(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    /// In milliseconds since the Unix epoch.
    pub(crate) fn unix_ms(self, now_ms: i64) -> i64 {
        match self {
            Self::AtMs(at) => at.max(0),
            Self::In(after) => now_ms.saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX)).max(0),
        }
    }
}

/// The times of a record, as it carries them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// Not to be delivered before this, in milliseconds since the Unix epoch.
    pub(crate) due_ms: Option<i64>,
    /// Not to be delivered from this on.
    pub(crate) expires_ms: Option<i64>,
}

impl Times {
    /// Of a record's headers, and how many of them can't be read.
    pub(crate) fn read<'a>(header: impl Fn(&str) -> Option<&'a Bytes>) -> (Self, u32) {
        let (mut times, mut malformed) = (Self::default(), 0);
        for (name, time) in [(DELIVER_AT, &mut times.due_ms), (EXPIRES_AT, &mut times.expires_ms)] {
            if let Some(text) = header(name) {
                *time = parse(text);
                malformed += u32::from(time.is_none());
            }
        }
        (times, malformed)
    }

    /// Whether it must wait for its time.
    pub(crate) fn is_early(&self, now_ms: i64) -> bool {
        self.due_ms.is_some_and(|due_ms| due_ms > now_ms)
    }

    /// Whether it will not be delivered any more: it has expired, or will have when it is due.
    pub(crate) fn is_over(&self, now_ms: i64) -> bool {
        let earliest_ms = self.due_ms.map_or(now_ms, |due_ms| due_ms.max(now_ms));
        self.expires_ms.is_some_and(|expires_ms| expires_ms <= earliest_ms)
    }
}

/// A header's value: digits only, so that there is one way to write a time.
pub(crate) fn parse(text: &[u8]) -> Option<i64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_that_fit_are_a_time() {
        for (text, want) in [
            ("0", Some(0)),
            ("1764000000000", Some(1_764_000_000_000)),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1 ", None),
            ("1e3", None),
            ("soon", None),
        ] {
            assert_eq!(parse(text.as_bytes()), want, "{text:?}");
        }
        assert_eq!(parse(b"\xff"), None);
    }

    #[test]
    fn malformed_headers_count_and_change_nothing() {
        let (due, expires) = (Bytes::from("x"), Bytes::from("7"));
        let header = |name: &str| match name {
            DELIVER_AT => Some(&due),
            EXPIRES_AT => Some(&expires),
            _ => None,
        };
        assert_eq!(Times::read(header), (Times { due_ms: None, expires_ms: Some(7) }, 1));
        assert_eq!(Times::read(|_| None), (Times::default(), 0));
    }

    #[test]
    fn early_and_over() {
        let times = |due_ms, expires_ms| Times { due_ms, expires_ms };
        for (times, now_ms, early, over) in [
            (times(None, None), 5, false, false),
            (times(Some(5), None), 4, true, false),
            (times(Some(5), None), 5, false, false),
            (times(None, Some(5)), 4, false, false),
            (times(None, Some(5)), 5, false, true),
            (times(Some(5), Some(6)), 1, true, false),
            (times(Some(6), Some(6)), 1, true, true),
            (times(Some(2), Some(6)), 6, false, true),
        ] {
            assert_eq!((times.is_early(now_ms), times.is_over(now_ms)), (early, over), "{times:?} at {now_ms}");
        }
    }

    #[test]
    fn moments_become_times() {
        assert_eq!(Moment::at(UNIX_EPOCH + Duration::from_millis(17)), Moment::AtMs(17));
        assert_eq!(Moment::at(UNIX_EPOCH - Duration::from_secs(1)), Moment::AtMs(0));
        assert_eq!(Moment::AtMs(-5).unix_ms(9), 0);
        assert_eq!(Moment::In(Duration::from_secs(1)).unix_ms(9), 1009);
        assert_eq!(Moment::In(Duration::MAX).unix_ms(9), i64::MAX);
    }
}
