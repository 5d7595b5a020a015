//! One partition of a producer: its batcher, its window, and who leads it. Everything here happens under the
//! partition's lock and is short: nothing waits, no waker is called, what is finished is handed back.

use std::{sync::Arc, time::Duration};

use busbar_proto::{NodeId, Offset, PartitionId, Reason, Refusal};
use tokio::time::Instant;

use crate::{
    breaker::{Breaker, CircuitBreaker, Failure},
    destinations::{Obstacle, Word, word_on_partition},
    error::DeliveryError,
    producer::{
        batcher::{Batcher, BatcherOptions, Gathered},
        link::Link,
        report::DeliveryReport,
        sealed::SealedBatch,
        story::{Diary, Epilogue},
        ticket::{Outcome, Stored, Ticket},
        window::{AttemptId, Deadlines, Flight, LinkId, Verdict, Window},
    },
    retry::BackoffPolicy,
    topic::Route,
};

/// Attempts after which a node's word that it knows no such topic is believed: it may be catching up.
const UNKNOWN_TOPIC_ATTEMPTS: u16 = 3;

#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: PartitionId,
    /// Its producer has a name, so another instance may take over.
    named: bool,
    pub(crate) batcher: Batcher,
    pub(crate) window: Window<SealedBatch>,
    /// The last known leader; kept while none is known.
    pub(crate) leader: Option<NodeId>,
    pub(crate) link: Option<Arc<Link>>,
    pub(crate) epoch: u64,
    /// `None` = not guarded.
    pub(crate) breaker: Option<Breaker>,
    /// What keeps it from sending, and since when.
    pub(crate) parked: Option<(Obstacle, Instant)>,
    /// It gets nothing done: since something kept it from that, and until something is acknowledged.
    pub(crate) stuck: bool,
    /// What its records count for among those of stuck partitions.
    pub(crate) counted_bytes: u64,
    /// What the last failure was, for the report of a batch that fails in the end.
    pub(crate) last: Option<Refusal>,
}

/// A batch whose fate is known.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) partition: PartitionId,
    /// How long the acknowledging node took.
    pub(crate) answered_within: Option<Duration>,
    /// It took another attempt at the same node, which did no harm.
    pub(crate) retried: bool,
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) outcome: Outcome,
    pub(crate) held_bytes: usize,
    pub(crate) records: u32,
}

/// Why a producer gives up what it holds.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    /// The application dropped it.
    Dropped,
    /// Its topic is gone.
    TopicGone,
    /// Another instance has its name.
    Fenced(Refusal),
}

impl Ending {
    fn told(&self, uncertain: bool, report: DeliveryReport) -> DeliveryError {
        match self {
            Self::Dropped if uncertain => DeliveryError::Unknown { last: dropped(), report },
            Self::Dropped => DeliveryError::Closed { report },
            // Wherever it was stored is gone too.
            Self::TopicGone => DeliveryError::TopicGone { report },
            Self::Fenced(refusal) if uncertain => DeliveryError::Unknown { last: refusal.clone(), report },
            Self::Fenced(refusal) => DeliveryError::Fenced { refusal: refusal.clone(), report },
        }
    }
}

/// What time it is, and a random number: all that a step of a shard needs from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) now: Instant,
    pub(crate) now_ms: i64,
    pub(crate) random: u64,
}

/// Bounds of a shard.
#[derive(Clone, Debug)]
pub(crate) struct ShardOptions {
    pub(crate) batching: BatcherOptions,
    pub(crate) in_flight_max: usize,
    pub(crate) circuit_breaker: Option<CircuitBreaker>,
    pub(crate) named: bool,
    pub(crate) now: Instant,
}

impl Shard {
    pub(crate) fn new(topic: Arc<str>, partition: PartitionId, options: ShardOptions) -> Self {
        let ShardOptions { batching, in_flight_max, circuit_breaker, named, now } = options;
        Self {
            topic,
            partition,
            named,
            batcher: Batcher::new(batching),
            window: Window::new(in_flight_max, BackoffPolicy::default()),
            leader: None,
            epoch: 0,
            breaker: circuit_breaker.map(|policy| Breaker::new(policy, now)),
            parked: None,
            stuck: false,
            counted_bytes: 0,
            link: None,
            last: None,
        }
    }

    /// Takes over who leads now; everything under way elsewhere is sent again.
    pub(crate) fn follow(&mut self, route: Option<Route>, now: Instant) {
        let Some(route) = route else { return };
        let elected = route.epoch > self.epoch;
        self.epoch = self.epoch.max(route.epoch);
        if elected && let Some(breaker) = &mut self.breaker {
            // What came before the election says nothing of what comes after it.
            breaker.reset(now);
        }
        if self.leader == Some(route.leader) {
            if elected {
                self.window.hurry(route);
            }
            return;
        }
        self.leader = Some(route.leader);
        self.link = None;
        let moved = || format!("node {} leads now", route.leader);
        self.window.flights_mut().for_each(|flight| flight.batch.diary.unanswered_for(moved, now));
        self.window.leader_moved(route, now);
    }

    /// The next batch to put on the link; it counts as under way from now on.
    pub(crate) fn send(&mut self, link: &Link, now: Instant) -> Option<&mut Flight<SealedBatch>> {
        self.unpark(now);
        let flight = self.window.send(link.id, now)?;
        flight.batch.diary.sent(link.id, link.node, now);
        Some(flight)
    }

    /// Where the next batch would go, if there is one, and whether that node has had it.
    pub(crate) fn destination(&self, now: Instant) -> Option<(NodeId, bool)> {
        let (node, flight) = (self.leader?, self.window.next_waiting(now)?);
        Some((node, flight.batch.diary.was_sent_to(node)))
    }

    /// It may not be sent now. Whether that is news.
    pub(crate) fn park(&mut self, obstacle: Obstacle, now: Instant) -> bool {
        let since = self.parked.map_or(now, |(_, since)| since);
        self.parked.replace((obstacle, since)).is_none()
    }

    fn unpark(&mut self, now: Instant) {
        if let Some((_, since)) = self.parked.take() {
            self.window.waiting_mut().for_each(|flight| flight.batch.diary.parked(since, now));
        }
    }

    /// A stream broke. Whether something was under way on it, and how many retries among it never left.
    pub(crate) fn link_lost(&mut self, link: LinkId, cause: &Refusal, clock: Clock) -> Option<usize> {
        let Clock { now, random, .. } = clock;
        let stayed = |flight: &&Flight<SealedBatch>| {
            flight.batch.diary.is_retry(Some(link)) && !flight.batch.ticket.may_have_left()
        };
        let stayed = self.window.flights().filter(stayed).count();
        self.window.flights_mut().for_each(|flight| flight.batch.diary.link_lost(link, &cause.message, now));
        let lost = self.window.link_lost(link, now, random);
        if lost {
            self.last = Some(cause.clone());
        }
        lost.then_some(stayed)
    }

    /// Moves batches into the window while it has room and they are due.
    pub(crate) fn fill_window(&mut self, now: Instant) {
        while self.window.may_admit() && self.batcher.is_ready(self.window.len(), now) {
            let Some(gathered) = self.batcher.take() else { return };
            let &Gathered { deadline: delivery, send_before, .. } = &gathered;
            let records = gathered.builder.record_count();
            self.window
                .admit(records, Deadlines { delivery, send_before }, |producer| SealedBatch::seal(gathered, producer));
        }
    }

    /// Whether there is anything that an identity would help.
    pub(crate) fn wants_identity(&self) -> bool {
        self.window.needs_identity() && !self.is_empty()
    }

    /// Decides whether it is stuck; an answer that is overdue by `patience` is none.
    pub(crate) fn judge(&mut self, now: Instant, patience: Duration) {
        let waits_to_try_again = !self.window.is_steady() && !self.window.needs_identity();
        let held_back = self.parked.is_some() || self.leader.is_none() || waits_to_try_again;
        let unanswered = self.window.overdue(now, patience).is_some();
        self.stuck = !self.is_empty() && (self.stuck || held_back || unanswered);
    }

    /// Buffer space that its unfinished records hold.
    pub(crate) fn held_bytes(&self) -> usize {
        self.batcher.held_bytes() + self.window.flights().map(|flight| flight.batch.held_bytes).sum::<usize>()
    }

    /// Whether nothing is unfinished.
    pub(crate) fn is_empty(&self) -> bool {
        self.batcher.is_empty() && self.window.len() == 0
    }

    pub(crate) fn acknowledged(
        &mut self,
        attempt: AttemptId,
        base: Offset,
        duplicate: bool,
        clock: Clock,
    ) -> Option<Finished> {
        if let Some(breaker) = &mut self.breaker {
            breaker.succeeded(clock.now);
        }
        let flight = self.window.acknowledged(attempt, clock.now)?;
        (self.last, self.stuck) = (None, false);
        let SealedBatch { ticket, held_bytes, records, diary, .. } = flight.batch;
        let retried = diary.is_retry(None);
        let report = diary.stored(base.get(), duplicate, self.epilogue(clock));
        let (partition, answered_within) = (self.partition, report.attempts().last().map(|last| last.took));
        let stored = Stored { partition, base, duplicate, report };
        Some(Finished { partition, answered_within, retried, ticket, outcome: Ok(stored), held_bytes, records })
    }

    pub(crate) fn refused(&mut self, attempt: AttemptId, refusal: Refusal, clock: Clock) -> Option<Finished> {
        let Clock { now, random, .. } = clock;
        let first = self.is_first_failure();
        if let Some(breaker) = &mut self.breaker {
            match word_on_partition(refusal.reason) {
                Word::Works => {
                    breaker.succeeded(now);
                }
                Word::Fails(failure) if first || failure == Failure::Soft => {
                    breaker.failed(failure, now, random);
                }
                Word::Fails(_) | Word::Nothing => {}
            }
        }
        let again = Verdict::Retry { perhaps_stored: false, advice: refusal.retry_after };
        let verdict = match refusal.reason {
            Reason::UnknownTopic | Reason::UnknownPartition if attempt.attempt <= UNKNOWN_TOPIC_ATTEMPTS => again,
            // By the broker's clock. Ours decides when to give up.
            Reason::DeadlineExceeded => again,
            _ => Verdict::of(&refusal),
        };
        if let Some(flight) = self.window.flights_mut().find(|flight| flight.attempt_id() == attempt) {
            flight.batch.diary.refused(&refusal, now);
        }
        let gone = self.window.refused(attempt, verdict, now, random);
        let finished = gone.map(|flight| self.failed(flight, refusal.clone(), clock));
        self.last = Some(refusal);
        finished
    }

    /// Batches whose delivery deadline has passed, oldest first.
    pub(crate) fn expired(&mut self, clock: Clock, finish: &mut Vec<Finished>) {
        for flight in self.window.expired(clock.now) {
            let refusal = match flight.deadlines.delivery <= clock.now {
                true => self.expiry(if flight.is_uncertain() { "acknowledged" } else { "stored" }),
                false => self.too_late(),
            };
            finish.push(self.failed(flight, refusal, clock));
        }
        for gathered in self.batcher.expired(clock.now) {
            let refusal = if gathered.deadline <= clock.now { self.expiry("sent") } else { self.too_late() };
            finish.push(self.unsent(gathered, clock, |report| DeliveryError::Rejected { refusal, report }));
        }
    }

    /// Everything that is left, when the producer ends before it is delivered.
    pub(crate) fn abandon(&mut self, ending: &Ending, clock: Clock, finish: &mut Vec<Finished>) {
        let flights: Vec<_> = self.window.drain().collect();
        for flight in flights {
            let uncertain = flight.is_uncertain();
            finish.push(self.finish(flight, clock, |report| ending.told(uncertain, report)));
        }
        while let Some(gathered) = self.batcher.take() {
            finish.push(self.unsent(gathered, clock, |report| ending.told(false, report)));
        }
    }

    /// Tickets of everything unfinished.
    pub(crate) fn tickets(&self) -> impl Iterator<Item = &Arc<Ticket>> {
        self.window.flights().map(|flight| &flight.batch.ticket).chain(self.batcher.tickets())
    }

    /// Several batches under way that fail together are one failure.
    pub(crate) fn is_first_failure(&self) -> bool {
        self.window.is_steady()
    }

    fn failed(&self, flight: Flight<SealedBatch>, last: Refusal, clock: Clock) -> Finished {
        let uncertain = flight.is_uncertain();
        self.finish(flight, clock, |report| match uncertain {
            true => DeliveryError::Unknown { last, report },
            false if self.named && last.reason == Reason::ProducerFenced => {
                DeliveryError::Fenced { refusal: last, report }
            }
            false => DeliveryError::Rejected { refusal: last, report },
        })
    }

    fn finish(
        &self,
        flight: Flight<SealedBatch>,
        clock: Clock,
        error: impl FnOnce(DeliveryReport) -> DeliveryError,
    ) -> Finished {
        let SealedBatch { ticket, held_bytes, records, mut diary, .. } = flight.batch;
        self.note_parking(&mut diary, clock.now);
        let report = diary.failed(self.epilogue(clock));
        let (partition, outcome) = (self.partition, Err(error(report)));
        Finished { partition, answered_within: None, retried: false, ticket, outcome, held_bytes, records }
    }

    fn unsent(
        &self,
        gathered: Gathered,
        clock: Clock,
        error: impl FnOnce(DeliveryReport) -> DeliveryError,
    ) -> Finished {
        let Gathered { builder, ticket, held_bytes, begun, .. } = gathered;
        let mut diary = Diary::new(begun);
        self.note_parking(&mut diary, clock.now);
        let report = diary.failed(self.epilogue(clock));
        let (partition, outcome, records) = (self.partition, Err(error(report)), builder.record_count());
        Finished { partition, answered_within: None, retried: false, ticket, outcome, held_bytes, records }
    }

    /// A record that there was no room for before its own deadline.
    pub(crate) fn never_taken(&self, begun: Instant, clock: Clock) -> Finished {
        let Self { topic, partition, last, .. } = self;
        let why = match (&self.parked, last) {
            (Some((obstacle, _)), _) => obstacle.to_string(),
            (None, Some(last)) => format!("last: {last}"),
            (None, None) => "the producer's buffer is full".to_owned(),
        };
        let message =
            format!("partition {partition} of {topic:?}: no room for the record before its own deadline: {why}");
        let refusal = Refusal::new(Reason::DeadlineExceeded, message);
        let report = Diary::new(begun).failed(self.epilogue(clock));
        let (ticket, outcome) = (Arc::default(), Err(DeliveryError::Rejected { refusal, report }));
        let (partition, answered_within) = (self.partition, None);
        Finished { partition, answered_within, retried: false, ticket, outcome, held_bytes: 0, records: 1 }
    }

    fn note_parking(&self, diary: &mut Diary, now: Instant) {
        if let Some((_, since)) = self.parked {
            diary.parked(since, now);
        }
    }

    fn epilogue(&self, clock: Clock) -> Epilogue {
        let Clock { now, now_ms, .. } = clock;
        Epilogue { topic: self.topic.clone(), partition: self.partition.get(), now, now_ms }
    }

    /// For what its own deadline keeps from being sent.
    fn too_late(&self) -> Refusal {
        let Self { topic, partition, parked, last, .. } = self;
        let why = match (parked, last) {
            (Some((obstacle, _)), _) => obstacle.to_string(),
            (None, Some(last)) => format!("last: {last}"),
            (None, None) => "too little time, or too much before it".to_owned(),
        };
        let message = format!("partition {partition} of {topic:?}: not sent before the record's own deadline: {why}");
        Refusal::new(Reason::DeadlineExceeded, message)
    }

    fn expiry(&self, done: &str) -> Refusal {
        let Self { topic, partition, leader, last, parked, .. } = self;
        let why = match (last, leader) {
            (Some(last), _) => match parked {
                Some((obstacle, _)) => format!("{obstacle}; last: {last}"),
                None => format!("last: {last}"),
            },
            (None, None) => "no leader is known; `busbar cluster status` shows why".to_owned(),
            (None, Some(node)) => format!("its leader, node {node}, is slow; raise delivery_timeout or send less"),
        };
        let message = format!("partition {partition} of {topic:?}: not {done} within the delivery timeout: {why}");
        Refusal::new(Reason::DeadlineExceeded, message)
    }
}

fn dropped() -> Refusal {
    Refusal::new(Reason::OutcomeUnknown, "the producer was dropped before the answer came; call close() first")
}
