//! One partition of a producer: its batcher, its window, and who leads it. Everything here happens under the
//! partition's lock and is short: nothing waits, no waker is called, what is finished is handed back.

use std::sync::Arc;

use busbar_proto::{NodeId, Offset, PartitionId, Reason, Refusal};
use tokio::time::Instant;

use crate::{
    error::DeliveryError,
    producer::{
        batcher::{Batcher, BatcherOptions, Gathered},
        link::Link,
        sealed::SealedBatch,
        ticket::{Outcome, Stored, Ticket},
        window::{AttemptId, Flight, Verdict, Window},
    },
    retry::BackoffPolicy,
    topic::Route,
};

/// Attempts after which a node's word that it knows no such topic is believed: it may be catching up.
const UNKNOWN_TOPIC_ATTEMPTS: u16 = 3;

#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) partition: PartitionId,
    pub(crate) batcher: Batcher,
    pub(crate) window: Window<SealedBatch>,
    /// The last known leader; kept while none is known.
    pub(crate) leader: Option<NodeId>,
    pub(crate) link: Option<Arc<Link>>,
    /// What the last failure was, for the report of a batch that fails in the end.
    pub(crate) last: Option<Refusal>,
}

/// A batch whose fate is known.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) outcome: Outcome,
    pub(crate) held_bytes: usize,
    pub(crate) records: u32,
}

/// Why a producer gives up what it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending<'a> {
    /// The application dropped it.
    Dropped,
    /// Its topic is gone.
    TopicGone { topic: &'a str },
}

impl Ending<'_> {
    fn of(self, uncertain: bool, attempts: u32) -> DeliveryError {
        match self {
            Self::Dropped if uncertain => DeliveryError::Unknown { attempts, last: dropped() },
            Self::Dropped => DeliveryError::Closed,
            // Wherever it was stored is gone too.
            Self::TopicGone { topic } => DeliveryError::TopicGone { topic: topic.to_owned() },
        }
    }
}

impl Shard {
    pub(crate) fn new(partition: PartitionId, options: BatcherOptions, in_flight_max: usize) -> Self {
        Self {
            partition,
            batcher: Batcher::new(options),
            window: Window::new(in_flight_max, BackoffPolicy::default()),
            leader: None,
            link: None,
            last: None,
        }
    }

    /// Takes over who leads now; everything under way elsewhere is sent again.
    pub(crate) fn follow(&mut self, route: Option<Route>, now: Instant) {
        let Some(route) = route.filter(|route| self.leader != Some(route.leader)) else { return };
        self.leader = Some(route.leader);
        self.link = None;
        self.window.leader_moved(route, now);
    }

    /// Moves batches into the window while it has room and they are due.
    pub(crate) fn fill_window(&mut self, now: Instant) {
        while self.window.may_admit() && self.batcher.is_ready(self.window.len(), now) {
            let Some(gathered) = self.batcher.take() else { return };
            let (records, deadline) = (gathered.builder.record_count(), gathered.deadline);
            self.window.admit(records, deadline, |producer| SealedBatch::seal(gathered, producer));
        }
    }

    /// Whether there is anything that an identity would help.
    pub(crate) fn wants_identity(&self) -> bool {
        self.window.needs_identity() && !(self.batcher.is_empty() && self.window.len() == 0)
    }

    pub(crate) fn acknowledged(
        &mut self,
        attempt: AttemptId,
        base: Offset,
        duplicate: bool,
        now: Instant,
    ) -> Option<Finished> {
        let flight = self.window.acknowledged(attempt, now)?;
        self.last = None;
        let stored = Stored { partition: self.partition, base, duplicate, attempts: flight.attempts };
        Some(finished(flight, Ok(stored)))
    }

    pub(crate) fn refused(
        &mut self,
        attempt: AttemptId,
        refusal: Refusal,
        now: Instant,
        random: u64,
    ) -> Option<Finished> {
        let again = Verdict::Retry { perhaps_stored: false, advice: refusal.retry_after };
        let verdict = match refusal.reason {
            Reason::UnknownTopic | Reason::UnknownPartition if attempt.attempt <= UNKNOWN_TOPIC_ATTEMPTS => again,
            // By the broker's clock. Ours decides when to give up.
            Reason::DeadlineExceeded => again,
            _ => Verdict::of(&refusal),
        };
        let flight = self.window.refused(attempt, verdict, now, random);
        let finished = flight.map(|flight| {
            let outcome = failure(flight.is_uncertain(), flight.attempts, refusal.clone());
            finished(flight, Err(outcome))
        });
        self.last = Some(refusal);
        finished
    }

    /// Batches whose delivery deadline has passed, oldest first.
    pub(crate) fn expired(&mut self, now: Instant, topic: &str, finish: &mut Vec<Finished>) {
        for flight in self.window.expired(now) {
            let uncertain = flight.is_uncertain();
            let refusal = self.expiry(topic, if uncertain { "acknowledged" } else { "stored" });
            let outcome = failure(uncertain, flight.attempts, refusal);
            finish.push(finished(flight, Err(outcome)));
        }
        for gathered in self.batcher.expired(now) {
            let refusal = self.expiry(topic, "sent");
            finish.push(unsent(gathered, DeliveryError::Rejected(refusal)));
        }
    }

    /// Everything that is left, when the producer ends before it is delivered.
    pub(crate) fn abandon(&mut self, ending: Ending<'_>, finish: &mut Vec<Finished>) {
        for flight in self.window.drain() {
            let outcome = ending.of(flight.is_uncertain(), flight.attempts);
            finish.push(finished(flight, Err(outcome)));
        }
        while let Some(gathered) = self.batcher.take() {
            finish.push(unsent(gathered, ending.of(false, 0)));
        }
    }

    /// Tickets of everything unfinished.
    pub(crate) fn tickets(&self) -> impl Iterator<Item = &Arc<Ticket>> {
        self.window.flights().map(|flight| &flight.batch.ticket).chain(self.batcher.tickets())
    }

    fn expiry(&self, topic: &str, done: &str) -> Refusal {
        let Self { partition, leader, last, .. } = self;
        let why = match (last, leader) {
            (Some(last), _) => format!("last: {last}"),
            (None, None) => "no leader is known; `busbar cluster status` shows why".to_owned(),
            (None, Some(node)) => format!("its leader, node {node}, is slow; raise delivery_timeout or send less"),
        };
        let message = format!("partition {partition} of {topic:?}: not {done} within the delivery timeout: {why}");
        Refusal::new(Reason::DeadlineExceeded, message)
    }
}

fn failure(uncertain: bool, attempts: u32, last: Refusal) -> DeliveryError {
    match uncertain {
        true => DeliveryError::Unknown { attempts, last },
        false => DeliveryError::Rejected(last),
    }
}

fn dropped() -> Refusal {
    Refusal::new(Reason::OutcomeUnknown, "the producer was dropped before the answer came; call close() first")
}

fn finished(flight: Flight<SealedBatch>, outcome: Outcome) -> Finished {
    let SealedBatch { ticket, held_bytes, records, .. } = flight.batch;
    Finished { ticket, outcome, held_bytes, records }
}

fn unsent(gathered: Gathered, error: DeliveryError) -> Finished {
    let Gathered { builder, ticket, held_bytes, .. } = gathered;
    Finished { ticket, outcome: Err(error), held_bytes, records: builder.record_count() }
}
