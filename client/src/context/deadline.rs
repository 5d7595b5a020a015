//! The deadline that travels with a record, from whoever set it over all hops: the header `busbar-deadline`, milliseconds
//! since the Unix epoch, decimal. Brokers don't read it; every client that sends such a record does, and every consumer
//! may.
//!
//! Invariants: of several headers of that name the last counts; passing a deadline on never makes it later.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::record::sound;
use crate::{consumer::ConsumedRecord, record::Record};

const DEADLINE: &str = "busbar-deadline";

/// Milliseconds in the decimal form of the header; `None` for anything else.
fn parse(value: &[u8]) -> Option<i64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

impl Record {
    /// Of use until then, here and wherever it leads: told to consumers ([`ConsumedRecord::deadline`]), passed on by
    /// [`Record::context_of`], and kept to in sending, as by [`Record::send_before`]. The last one set travels, the earliest
    /// is kept to in sending. A request's deadline is set by [`Requester::request`](crate::Requester::request) itself, to this one if it is earlier.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    ///
    /// let record = busbar_client::Record::new("quote").deadline(SystemTime::now() + Duration::from_secs(2));
    /// assert_eq!(record.headers[0].0, "busbar-deadline");
    /// assert!(record.send_before_ms.is_some());
    /// ```
    #[must_use]
    pub fn deadline(mut self, deadline: SystemTime) -> Self {
        let since_epoch = deadline.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.set_deadline_ms(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX));
        self
    }

    /// Without a deadline, be it its own or that of what caused it: for what must be sent however late it is.
    ///
    /// ```
    /// # use std::time::SystemTime;
    /// let record = busbar_client::Record::new("audit").deadline(SystemTime::now()).without_deadline();
    /// assert!(record.headers.is_empty() && record.send_before_ms.is_none());
    /// ```
    #[must_use]
    pub fn without_deadline(mut self) -> Self {
        self.headers.retain(|(name, _)| name != DEADLINE);
        self.send_before_ms = None;
        self
    }

    pub(crate) fn set_deadline_ms(&mut self, deadline_ms: i64) {
        self.headers.retain(|(name, _)| name != DEADLINE);
        self.headers.push((DEADLINE.to_owned(), Bytes::from(deadline_ms.max(0).to_string())));
        self.send_before_ms = Some(self.send_before_ms.map_or(deadline_ms, |own| own.min(deadline_ms)));
    }

    /// The deadline that travels with it.
    pub(crate) fn deadline_ms(&self) -> Option<i64> {
        let (_, value) = self.headers.iter().rfind(|(name, _)| name == DEADLINE)?;
        sound(parse(value))
    }

    /// Takes over the deadline of what caused it, unless its own is earlier.
    pub(super) fn inherit_deadline(&mut self, cause: &ConsumedRecord) {
        if let Some(theirs) = cause.deadline_ms() {
            self.set_deadline_ms(self.deadline_ms().map_or(theirs, |own| own.min(theirs)));
        }
    }
}

impl ConsumedRecord {
    /// The moment after which nobody has any use for what it leads to, by the clock of whoever set it; `None` if none
    /// was set. To be trusted as far as the clocks agree.
    pub fn deadline(&self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(self.deadline_ms()?).ok()?))
    }

    /// What is left of it at `now`: zero once it has passed, `None` if none was set.
    ///
    /// ```no_run
    /// # async fn example(mut consumer: busbar_client::Consumer) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::{Duration, SystemTime};
    ///
    /// while let Some(record) = consumer.next().await? {
    ///     match record.remaining(SystemTime::now()) {
    ///         Some(Duration::ZERO) => println!("too late for {:?}", record.key()),
    ///         left => println!("{left:?} left"),
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn remaining(&self, now: SystemTime) -> Option<Duration> {
        Some(self.deadline()?.duration_since(now).unwrap_or(Duration::ZERO))
    }

    pub(crate) fn deadline_ms(&self) -> Option<i64> {
        sound(parse(self.header(DEADLINE)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::record::tests::consumed;

    fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    #[test]
    fn a_deadline_travels_and_is_kept_to() {
        let record = Record::new("x").deadline(at(9000)).deadline(at(5000));
        assert_eq!((record.headers.len(), record.send_before_ms, record.deadline_ms()), (1, Some(5000), Some(5000)));
        let read = consumed(&record);
        assert_eq!(read.deadline(), Some(at(5000)));
        assert_eq!(read.remaining(at(3000)), Some(Duration::from_secs(2)));
        assert_eq!(read.remaining(at(6000)), Some(Duration::ZERO));
        let next = Record::new("y").header("own", "1").context_of(&read);
        assert_eq!((next.deadline_ms(), next.send_before_ms, next.headers.len()), (Some(5000), Some(5000), 2));
        assert_eq!(next.without_deadline(), Record::new("y").header("own", "1"));
        let plain = consumed(&Record::new("x"));
        assert_eq!((plain.deadline(), plain.remaining(at(0))), (None, None));
    }

    #[test]
    fn passing_on_never_makes_it_later() {
        let cause = consumed(&Record::new("x").deadline(at(5000)));
        for (own, want) in [(3000, 3000), (5000, 5000), (7000, 5000)] {
            let next = Record::new("y").deadline(at(own)).context_of(&cause);
            assert_eq!((next.deadline_ms(), next.send_before_ms), (Some(want), Some(want)), "{own}");
        }
        let sooner = Record::new("y").send_before(at(1000)).context_of(&cause);
        assert_eq!((sooner.deadline_ms(), sooner.send_before_ms), (Some(5000), Some(1000)));
        let later = Record::new("y").context_of(&cause).send_before(at(9000));
        assert_eq!(later.send_before_ms, Some(5000));
        let own = Record::new("y").deadline(at(7000)).context_of(&consumed(&Record::new("x")));
        assert_eq!(own.deadline_ms(), Some(7000), "the cause has none");
    }

    #[test]
    fn what_is_no_deadline_is_as_if_it_were_not_there() {
        for value in ["", "-5", "+5", "5.0", "soon", "99999999999999999999"] {
            let read = consumed(&Record::new("x").header(DEADLINE, value));
            assert_eq!(read.deadline(), None, "{value:?}");
        }
        let far = consumed(&Record::new("x").header(DEADLINE, i64::MAX.to_string()));
        assert!(far.remaining(at(0)).is_none_or(|left| left > Duration::from_secs(1 << 40)));
    }
}
