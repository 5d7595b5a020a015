//! A record to publish.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::schedule::{DELIVER_AT, EXPIRES_AT, Moment};

/// Most bytes that a record's own framing takes in a batch: length, attributes, deltas, key and value length,
/// header count, each a varint at its longest.
const FRAMING_BYTES_MAX: usize = 40;
/// The same for each header: two lengths.
const HEADER_FRAMING_BYTES_MAX: usize = 10;

/// A record to publish: a value, and what goes with it.
///
/// ```
/// use busbar_client::Record;
///
/// let record = Record::new("paid").key("order-17").header("region", "eu");
/// assert_eq!(record.key.as_deref(), Some(&b"order-17"[..]));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Where it goes; `None` = by key, or wherever there is room when there is no key either.
    pub partition: Option<u32>,
    /// Records of equal key go to one partition and keep their order.
    pub key: Option<Bytes>,
    /// The payload.
    pub value: Bytes,
    /// There is no value, not even an empty one: the key is deleted. See [`Record::tombstone`].
    pub tombstone: bool,
    /// Names and values, in order; names may repeat.
    pub headers: Vec<(String, Bytes)>,
    /// Milliseconds since the Unix epoch; `None` = now.
    pub timestamp_ms: Option<i64>,
    /// Milliseconds since the Unix epoch from which on it is not sent any more; `None` = only the producer's
    /// delivery timeout counts.
    pub send_before_ms: Option<i64>,
    /// Consumer groups do not deliver it before this.
    pub deliver_at: Option<Moment>,
    /// Consumer groups do not deliver it from this on.
    pub expires_at: Option<Moment>,
}

impl Record {
    /// A record of this value.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self { value: value.into(), ..Self::default() }
    }

    /// A record that deletes a key: its value is null. In a topic with key compaction every older record of the key goes,
    /// and so does this one, when all who read on have had time to see it.
    ///
    /// ```
    /// use busbar_client::Record;
    ///
    /// let gone = Record::tombstone("order-17");
    /// assert!(gone.tombstone && gone.value.is_empty());
    /// ```
    pub fn tombstone(key: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), tombstone: true, ..Self::default() }
    }

    /// With this key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// To this partition, whatever the key.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// With this time, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// Of no use to its topic from then on: it is not sent (again) after that, and its delivery then says so. What is
    /// under way at that moment is waited for. Kept to 10 ms: it may be given up that much too early. Of several such
    /// times the earliest counts. Nobody is told; [`Record::deadline`] travels with the record.
    ///
    /// ```
    /// # use std::time::{Duration, SystemTime};
    /// let record = busbar_client::Record::new("quote").send_before(SystemTime::now() + Duration::from_secs(2));
    /// assert!(record.send_before_ms.is_some());
    /// ```
    #[must_use]
    pub fn send_before(mut self, deadline: SystemTime) -> Self {
        let since_epoch = deadline.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let deadline_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        self.send_before_ms = Some(self.send_before_ms.map_or(deadline_ms, |own| own.min(deadline_ms)));
        self
    }

    /// Consumer groups deliver it so long after it was sent, at the earliest: it is stored at once, and waits in the
    /// client that reads it while others go on. Both times are by the brokers' clock,
    /// as far as clients are told. Written as the header `busbar-deliver-at`. A consumer without a group gets it at once.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use busbar_client::Record;
    ///
    /// let reminder = Record::new("pay").deliver_after(Duration::from_secs(3600)).ttl(Duration::from_secs(7200));
    /// # assert!(reminder.deliver_at.is_some() && reminder.expires_at.is_some());
    /// ```
    #[must_use]
    pub fn deliver_after(mut self, delay: Duration) -> Self {
        self.deliver_at = Some(Moment::In(delay));
        self
    }

    /// As [`Self::deliver_after`], at this time.
    #[must_use]
    pub fn deliver_at(mut self, time: SystemTime) -> Self {
        self.deliver_at = Some(Moment::at(time));
        self
    }

    /// Of no use so long after it was sent: consumer groups do not deliver it from then on, neither for the first time nor
    /// again. It is counted, or dead-lettered ([`GroupBuilder::expired`](crate::GroupBuilder::expired)). Written as the header
    /// `busbar-expires-at`. One that is delivered in time may be acknowledged later.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.expires_at = Some(Moment::In(ttl));
        self
    }

    /// As [`Self::ttl`], from this time on.
    #[must_use]
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.expires_at = Some(Moment::at(time));
        self
    }

    /// Writes its times as headers, as of now. Once: they are gone from the record then.
    pub(crate) fn note_times(&mut self, now_ms: impl FnOnce() -> i64) {
        if self.deliver_at.is_none() && self.expires_at.is_none() {
            return;
        }
        let now_ms = now_ms();
        for (name, moment) in [(DELIVER_AT, self.deliver_at.take()), (EXPIRES_AT, self.expires_at.take())] {
            let time = moment.map(|moment| (name.to_owned(), Bytes::from(moment.unix_ms(now_ms).to_string())));
            self.headers.extend(time);
        }
    }

    /// Bytes it takes in a batch, at most.
    pub(crate) fn bytes_max(&self) -> usize {
        let headers: usize =
            self.headers.iter().map(|(name, value)| name.len() + value.len() + HEADER_FRAMING_BYTES_MAX).sum();
        FRAMING_BYTES_MAX + self.key.as_ref().map_or(0, Bytes::len) + self.value.len() + headers
    }
}

impl From<Bytes> for Record {
    fn from(value: Bytes) -> Self {
        Self::new(value)
    }
}

impl From<&'static str> for Record {
    fn from(value: &'static str) -> Self {
        Self::new(value)
    }
}

impl From<String> for Record {
    fn from(value: String) -> Self {
        Self::new(value)
    }
}

impl From<Vec<u8>> for Record {
    fn from(value: Vec<u8>) -> Self {
        Self::new(value)
    }
}
