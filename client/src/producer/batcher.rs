//! Where a partition's records gather until they are sent: one open batch that grows, behind full ones that wait
//! for room in the window. Pure: the time is given.
//!
//! ```text
//!  push --> [ open ] --full--> [ full ][ full ] --take--> window
//!              `------- take: window idle, linger over, or flush --^
//! ```
//! Invariants: batches leave in the order in which they were begun; a batch has at least one record; deadlines
//! never decrease from front to back; the records of a batch may be sent until about the same time; `held_bytes` is the
//! sum of the batches'.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use busbar_proto::{
    batch::{BatchBuilder, BatchOptions, Compression, HEADER_BYTES},
    compaction::KeyDigestBuilder,
    filter::{DigestBuilder, DigestNames},
    limits,
};
use tokio::time::Instant;

use crate::{producer::ticket::Ticket, record::Record};

/// How records are gathered.
#[derive(Clone, Debug)]
pub(crate) struct BatcherOptions {
    /// A batch this large is full.
    pub(crate) batch_bytes: usize,
    /// The topic's limit; only a single record may make a batch larger than `batch_bytes`.
    pub(crate) batch_bytes_max: usize,
    pub(crate) compression: Compression,
    /// A batch waits this long for company even when nothing is in flight.
    pub(crate) linger: Duration,
    /// A batch that is not full is sent while fewer than this many are in flight.
    pub(crate) eager_batches: usize,
    /// From a batch's first record to its end.
    pub(crate) delivery_timeout: Duration,
    /// Headers whose values are told beside the batch.
    pub(crate) digest: DigestNames,
    /// The topic is compacted: keys are told, too, and batches have few records.
    pub(crate) compacted: bool,
}

/// A batch that is being filled or waits.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) builder: BatchBuilder,
    pub(crate) digest: DigestBuilder,
    /// Of a compacted topic.
    pub(crate) keys: Option<KeyDigestBuilder>,
    pub(crate) ticket: Arc<Ticket>,
    /// Buffer space its records hold.
    pub(crate) held_bytes: usize,
    pub(crate) begun: Instant,
    pub(crate) deadline: Instant,
    /// The earliest of its records' own deadlines.
    pub(crate) send_before: Option<Instant>,
}

/// Records whose own deadlines are this close share a batch, and the earliest deadline.
const DEADLINES_ALIKE: Duration = Duration::from_millis(10);

/// A record's times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) timestamp_ms: i64,
    /// Its own deadline.
    pub(crate) send_before: Option<Instant>,
}

/// Where a record was put.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) index: u32,
}

/// A record that fits no batch of the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLarge {
    /// Bytes of the batch that it would make alone.
    pub(crate) bytes: usize,
    pub(crate) limit: usize,
}

#[derive(Debug)]
pub(crate) struct Batcher {
    options: BatcherOptions,
    open: Option<Gathered>,
    full: VecDeque<Gathered>,
    held_bytes: usize,
    /// Somebody flushes: the open batch does not wait for company.
    expedite: bool,
}

impl Batcher {
    pub(crate) fn new(options: BatcherOptions) -> Self {
        Self { options, open: None, full: VecDeque::new(), held_bytes: 0, expedite: false }
    }

    /// Whether this record, the next, begins a batch.
    pub(crate) fn begins_batch(&self, record: &Record, send_before: Option<Instant>) -> bool {
        !self.open.as_ref().is_some_and(|open| self.fits(open, record, send_before))
    }

    fn fits(&self, open: &Gathered, record: &Record, send_before: Option<Instant>) -> bool {
        let room = self.options.batch_bytes.saturating_sub(record.bytes_max());
        open.builder.estimated_bytes() <= room && !open.is_full() && open.is_as_urgent(send_before)
    }

    /// Buffer space that the records here hold.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_none() && self.full.is_empty()
    }

    /// Adds a record that holds `held_bytes` of the buffer. `now` is asked only when a batch begins.
    pub(crate) fn push(
        &mut self,
        record: &Record,
        times: Times,
        held_bytes: usize,
        now: impl FnOnce() -> Instant,
    ) -> Result<Placed, TooLarge> {
        let Times { timestamp_ms, send_before } = times;
        if self.begins_batch(record, send_before) {
            self.full.extend(self.open.take());
        }
        if let Some(open) = &mut self.open {
            if let Some(placed) = open.push(record, timestamp_ms, held_bytes) {
                open.send_before = open.send_before.min(send_before);
                self.held_bytes += held_bytes;
                return Ok(placed);
            }
            self.full.extend(self.open.take());
        }
        let mut fresh = Gathered { send_before, ..Gathered::new(&self.options, now()) };
        let limit = self.options.batch_bytes_max;
        let too_large = TooLarge { bytes: HEADER_BYTES + record.bytes_max(), limit };
        let placed = fresh.push(record, timestamp_ms, held_bytes).ok_or(too_large)?;
        self.open = Some(fresh);
        self.held_bytes += held_bytes;
        Ok(placed)
    }

    /// Whether [`Self::take`] has something to send while `in_flight` batches are under way.
    pub(crate) fn is_ready(&self, in_flight: usize, now: Instant) -> bool {
        let Some(open) = &self.open else { return !self.full.is_empty() };
        let company = open.builder.estimated_bytes() >= self.options.batch_bytes || open.is_full();
        let idle = in_flight < self.options.eager_batches && now >= open.begun + self.options.linger;
        !self.full.is_empty() || company || self.expedite || idle
    }

    /// The oldest batch.
    pub(crate) fn take(&mut self) -> Option<Gathered> {
        let next = self.full.pop_front().or_else(|| self.open.take());
        self.expedite &= self.open.is_some();
        self.held_bytes -= next.as_ref().map_or(0, |next| next.held_bytes);
        next
    }

    /// Batches whose deadline has passed, or that of their records.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<Gathered> {
        let mut expired = VecDeque::new();
        if self.full.iter().any(|batch| batch.is_expired(now)) {
            (expired, self.full) = self.full.drain(..).partition(|batch| batch.is_expired(now));
        }
        expired.extend(self.open.take_if(|open| open.is_expired(now)));
        self.expedite &= self.open.is_some();
        self.held_bytes -= expired.iter().map(|batch| batch.held_bytes).sum::<usize>();
        expired.into()
    }

    /// The open batch is sent as soon as the window has room.
    pub(crate) fn expedite(&mut self) {
        self.expedite = self.open.is_some();
    }

    /// When to look again, apart from news: the end of the linger time, or the first deadline.
    pub(crate) fn wake_at(&self, in_flight: usize) -> Option<Instant> {
        let idle = in_flight < self.options.eager_batches;
        let linger = self.open.as_ref().filter(|_| idle).map(|open| open.begun + self.options.linger);
        let deadline = self.oldest().map(|oldest| oldest.deadline);
        let own = self.full.iter().chain(&self.open).filter_map(|gathered| gathered.send_before);
        linger.into_iter().chain(deadline).chain(own).min()
    }

    /// Tickets of everything that waits, oldest first.
    pub(crate) fn tickets(&self) -> impl Iterator<Item = &Arc<Ticket>> {
        self.full.iter().chain(&self.open).map(|gathered| &gathered.ticket)
    }

    fn oldest(&self) -> Option<&Gathered> {
        self.full.front().or(self.open.as_ref())
    }
}

impl Gathered {
    fn new(options: &BatcherOptions, now: Instant) -> Self {
        let &BatcherOptions { compression, batch_bytes_max, delivery_timeout, ref digest, compacted, .. } = options;
        Self {
            builder: BatchBuilder::new(BatchOptions { compression, max_bytes: batch_bytes_max }),
            digest: DigestBuilder::new(digest.clone()),
            keys: compacted.then(KeyDigestBuilder::new),
            ticket: Arc::default(),
            held_bytes: 0,
            begun: now,
            deadline: now + delivery_timeout,
            send_before: None,
        }
    }

    /// Whether it has as many records as it may.
    fn is_full(&self) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.len() >= limits::COMPACTED_BATCH_RECORDS_MAX as usize)
    }

    fn is_expired(&self, now: Instant) -> bool {
        self.deadline <= now || self.send_before.is_some_and(|deadline| deadline <= now)
    }

    /// Whether a record that may be sent until then belongs here.
    fn is_as_urgent(&self, send_before: Option<Instant>) -> bool {
        match (self.send_before, send_before) {
            (None, None) => true,
            (Some(ours), Some(its)) => ours.max(its) - ours.min(its) <= DEADLINES_ALIKE,
            _ => false,
        }
    }

    fn push(&mut self, record: &Record, timestamp_ms: i64, held_bytes: usize) -> Option<Placed> {
        let index = self.builder.record_count();
        let Record { key, value, headers, tombstone, .. } = record;
        let value = (!tombstone).then_some(&value[..]);
        self.builder.push(timestamp_ms, key.as_deref(), value, headers).ok()?;
        self.digest.push(headers);
        if let (Some(keys), Some(key)) = (&mut self.keys, key) {
            keys.push(key, *tombstone);
        }
        self.held_bytes += held_bytes;
        Some(Placed { ticket: self.ticket.clone(), index })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINGER: Duration = Duration::from_millis(5);

    fn batcher(linger: Duration) -> Batcher {
        Batcher::new(BatcherOptions {
            batch_bytes: 1000,
            batch_bytes_max: 2000,
            compression: Compression::None,
            linger,
            eager_batches: 1,
            delivery_timeout: Duration::from_secs(30),
            digest: DigestNames::default(),
            compacted: false,
        })
    }

    fn push(batcher: &mut Batcher, bytes: usize, now: Instant) -> Result<Placed, TooLarge> {
        push_before(batcher, bytes, now, None)
    }

    fn push_before(
        batcher: &mut Batcher,
        bytes: usize,
        now: Instant,
        send_before: Option<Instant>,
    ) -> Result<Placed, TooLarge> {
        batcher.push(&Record::new(vec![7; bytes]), Times { timestamp_ms: 0, send_before }, bytes, || now)
    }

    #[test]
    fn records_of_like_deadlines_share_a_batch_that_goes_with_the_earliest() {
        let now = Instant::now();
        let at = |ms| Some(now + Duration::from_millis(ms));
        let mut batcher = batcher(LINGER);
        for (deadline, wake_at) in [(at(1000), at(5)), (at(995), at(5)), (None, at(5)), (at(3), at(3)), (at(50), at(3))]
        {
            push_before(&mut batcher, 10, now, deadline).expect("room");
            assert_eq!(batcher.wake_at(0), wake_at);
        }
        let counts =
            |batches: Vec<Gathered>| batches.iter().map(|batch| batch.builder.record_count()).collect::<Vec<_>>();
        assert_eq!(counts(batcher.expired(now + Duration::from_millis(3))), [1]);
        assert_eq!(counts(batcher.expired(now + Duration::from_millis(995))), [2, 1]);
        assert_eq!(batcher.take().map(|rest| rest.send_before), Some(None));
        assert!(batcher.is_empty());
    }

    #[test]
    fn what_is_open_waits_for_an_idle_window_and_the_linger_time() {
        let now = Instant::now();
        let mut lingering = batcher(LINGER);
        push(&mut lingering, 10, now).expect("room");
        assert!(!lingering.is_ready(0, now));
        assert_eq!(lingering.wake_at(0), Some(now + LINGER));
        assert!(lingering.is_ready(0, now + LINGER));
        assert!(!lingering.is_ready(1, now + LINGER), "one is in flight: it gathers");
        lingering.expedite();
        assert!(lingering.is_ready(1, now), "a flush does not wait");
        assert_eq!(lingering.take().map(|batch| batch.builder.record_count()), Some(1));
        assert!(lingering.is_empty() && lingering.wake_at(0).is_none());
    }

    #[test]
    fn a_full_batch_waits_for_nothing_but_room() {
        let now = Instant::now();
        let mut batcher = batcher(LINGER);
        for _ in 0..4 {
            push(&mut batcher, 400, now).expect("room");
        }
        assert!(batcher.is_ready(4, now));
        assert_eq!(batcher.take().map(|batch| batch.builder.record_count()), Some(2));
        assert!(!batcher.is_ready(4, now), "the other two are not full yet");
    }

    #[test]
    fn batches_of_a_compacted_topic_have_few_records_and_tell_their_keys() {
        let now = Instant::now();
        let mut batcher = batcher(LINGER);
        batcher.options.compacted = true;
        let most = limits::COMPACTED_BATCH_RECORDS_MAX as usize;
        for nr in 0..most + 1 {
            let record = match nr {
                0 => Record::tombstone("gone"),
                _ => Record::new("v").key(nr.to_string()),
            };
            batcher.push(&record, Times { timestamp_ms: 0, send_before: None }, 1, || now).expect("room");
            assert_eq!(batcher.is_ready(4, now), nr >= most - 1, "the {nr}-th");
        }
        let sizes: Vec<_> = std::iter::from_fn(|| batcher.take()).collect();
        let counts: Vec<_> = sizes.iter().map(|batch| batch.builder.record_count() as usize).collect();
        assert_eq!(counts, [most, 1]);
        let told = sizes[0].keys.as_ref().map(KeyDigestBuilder::build).expect("keys");
        let digest = busbar_proto::compaction::KeyDigest::decode(&told).expect("sound");
        let tombstones: Vec<bool> = digest.iter().map(|record| record.tombstone).collect();
        assert_eq!((tombstones.len(), tombstones.iter().position(|is| *is)), (most, Some(0)));
    }

    #[test]
    fn one_record_may_be_as_large_as_the_topic_allows() {
        let now = Instant::now();
        let mut batcher = batcher(Duration::ZERO);
        push(&mut batcher, 10, now).expect("room");
        push(&mut batcher, 1800, now).expect("a batch of its own");
        let too_large = push(&mut batcher, 2000, now).map(|_| ()).expect_err("over the topic's limit");
        assert_eq!(too_large.limit, 2000);
        let counts: Vec<_> = std::iter::from_fn(|| batcher.take().map(|batch| batch.builder.record_count())).collect();
        assert_eq!(counts, [1, 1]);
    }

    proptest! {
        #[test]
        fn order_is_kept_and_batches_fit(sizes in prop::collection::vec(0_usize..1500, 1..100)) {
            let start = Instant::now();
            let mut batcher = batcher(Duration::ZERO);
            let mut placed = Vec::new();
            for (&size, step) in sizes.iter().zip(0..) {
                placed.push(push(&mut batcher, size, start + Duration::from_millis(step)).expect("fits"));
            }
            let mut placed = placed.into_iter();
            prop_assert_eq!(batcher.held_bytes(), sizes.iter().sum::<usize>());
            let (mut held, mut deadline) = (0, start);
            while let Some(batch) = batcher.take() {
                let count = batch.builder.record_count();
                let limit = if count > 1 { 1000 } else { 2000 };
                prop_assert!(batch.builder.estimated_bytes() <= limit);
                prop_assert!(batch.deadline >= deadline);
                deadline = batch.deadline;
                held += batch.held_bytes;
                for (index, place) in (0..count).zip(placed.by_ref()) {
                    prop_assert!(place.index == index && Arc::ptr_eq(&place.ticket, &batch.ticket));
                }
            }
            prop_assert!(placed.next().is_none() && batcher.held_bytes() == 0);
            prop_assert_eq!(held, sizes.iter().sum::<usize>());
        }
    }
}
