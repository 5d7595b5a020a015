//! The batches of one partition that are sealed and not yet answered, in sequence order. Decides what is sent
//! when, what an answer means, and how order survives every failure. Pure: time and randomness are given.
//!
//! ```text
//!            admit                send                  acknowledged
//!  batcher ---------> [ waiting ] ----> [ under way ] --------------> done
//!                          ^                 | refused, link lost, leader moved
//!                          '-----------------'
//! ```
//! | phase | sends? | left when |
//! |---|---|---|
//! | steady | yes | an answer asks for another attempt |
//! | settling | no | every answer of the stream is in (or its link is lost): then nothing old can overtake |
//! | paused | no | the backoff is over, or the leader moved |
//! | unidentified | no | a producer id is given |
//!
//! Invariants:
//! - flights are in sequence order, those under way before those that wait; sequences are dense;
//! - a retried batch has the same sequence and the same bytes, so the broker stores it once;
//! - **a hole is never sequenced over.** When a batch leaves without an acknowledgement (deadline, refusal), the
//!   sequences after it may be unusable. No batch is admitted until the remaining ones have told: an
//!   acknowledgement proves that the lost batch was stored after all; a sequence gap at the front, once no copy
//!   of the lost batch can arrive any more, proves that nothing from there on is. Then a new producer id is asked
//!   for and the remaining batches restart from sequence 0, in order. This relies on a leader answering with a gap
//!   only for what its committed log lacks, and on brokers refusing a batch whose deadline has passed.

use std::{collections::VecDeque, time::Duration};

use busbar_proto::{ProducerEpoch, ProducerId, Reason, Refusal, Sequence, batch::ProducerState};
use tokio::time::Instant;

use crate::{
    retry::{Backoff, BackoffPolicy},
    topic::Route,
};

/// Gaps in a row at the front, each after all others were answered, that prove that the broker forgot us.
const FRONT_GAPS_MAX: u32 = 3;

/// A broker may call a deadline passed this much later than we do.
const CLOCKS_APART: Duration = Duration::from_secs(1);

/// What a window holds.
pub(crate) trait Sealed {
    /// Takes another identity and sequence; its bytes change.
    fn reseal(&mut self, producer: ProducerState);
    /// Whether the attempt under way may have left this machine.
    fn may_have_left(&self) -> bool;
    /// It is not under way any more.
    fn take_back(&self);
}

/// Names the stream that an attempt went out on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinkId(pub(crate) u64);

/// Numbers the batches of a window; the wire carries the lower half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Serial(u64);

/// Names one attempt of one batch of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttemptId {
    pub(crate) serial: u32,
    pub(crate) attempt: u16,
}

/// Who the producer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: ProducerId,
    pub(crate) epoch: ProducerEpoch,
}

/// A batch in the window.
#[derive(Debug)]
pub(crate) struct Flight<B> {
    pub(crate) batch: B,
    pub(crate) deadlines: Deadlines,
    pub(crate) attempts: u32,
    serial: Serial,
    records: u32,
    sequence: Sequence,
    under_way: Option<UnderWay>,
    /// An attempt ended without an answer: it may have been stored.
    unanswered: bool,
}

/// Until when a batch is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// Its fate must be known.
    pub(crate) delivery: Instant,
    /// It may be sent, for the first time or again.
    pub(crate) send_before: Option<Instant>,
}

impl Deadlines {
    /// From then on no broker stores a copy that is still on its way.
    pub(crate) fn copies_until(&self) -> Instant {
        self.send_before.map_or(self.delivery, |send_before| self.delivery.min(send_before + CLOCKS_APART))
    }

    /// The earlier one: what a broker is told.
    pub(crate) fn earliest(&self) -> Instant {
        self.send_before.map_or(self.delivery, |send_before| send_before.min(self.delivery))
    }
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    link: LinkId,
    since: Instant,
}

impl<B: Sealed> Flight<B> {
    /// Whether it may be stored without our knowing.
    pub(crate) fn is_uncertain(&self) -> bool {
        self.unanswered || (self.under_way.is_some() && self.batch.may_have_left())
    }

    pub(crate) fn attempt_id(&self) -> AttemptId {
        AttemptId { serial: self.serial.0 as u32, attempt: self.attempts as u16 }
    }

    fn is_expired(&self, now: Instant) -> bool {
        self.deadlines.delivery <= now || (self.under_way.is_none() && self.deadlines.earliest() <= now)
    }

    /// The attempt under way is over, answered or given up.
    fn land(&mut self, answered: bool) {
        self.unanswered |= !answered && self.is_uncertain();
        self.under_way = None;
        self.batch.take_back();
    }
}

/// What a refusal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Another attempt, after at least `advice`; `stored` = perhaps, this one may have been stored.
    Retry { perhaps_stored: bool, advice: Option<Duration> },
    /// Batches before it are missing at the broker.
    Gap,
    /// No attempt will do better.
    Final { perhaps_stored: bool },
}

impl Verdict {
    pub(crate) fn of(refusal: &Refusal) -> Self {
        let perhaps_stored = !refusal.reason.has_no_side_effects();
        match refusal.reason {
            Reason::SequenceGap => Self::Gap,
            reason if reason.is_retryable() => Self::Retry { perhaps_stored, advice: refusal.retry_after },
            _ => Self::Final { perhaps_stored },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Steady,
    Settling { then: Then },
    Paused { until: Instant },
    Unidentified,
}

/// What follows once all answers are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Pause(Duration),
    Renew,
}

/// Where batches left unacknowledged, so that the sequences after them are in doubt.
#[derive(Clone, Copy, Debug)]
struct Hole {
    /// The last of them.
    last: Serial,
    /// Until then a copy in a dead stream may still be stored, and what follows it in that stream too.
    copies_until: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Window<B> {
    in_flight_max: usize,
    identity: Option<Identity>,
    next_sequence: Sequence,
    next_serial: Serial,
    flights: VecDeque<Flight<B>>,
    phase: Phase,
    hole: Option<Hole>,
    backoff: Backoff,
    front_gaps: u32,
}

impl<B: Sealed> Window<B> {
    pub(crate) fn new(in_flight_max: usize, policy: BackoffPolicy) -> Self {
        Self {
            in_flight_max,
            identity: None,
            next_sequence: Sequence::new(0),
            next_serial: Serial(0),
            flights: VecDeque::new(),
            phase: Phase::Unidentified,
            hole: None,
            backoff: Backoff::new(policy),
            front_gaps: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flights.len()
    }

    pub(crate) fn flights(&self) -> impl Iterator<Item = &Flight<B>> {
        self.flights.iter()
    }

    pub(crate) fn flights_mut(&mut self) -> impl Iterator<Item = &mut Flight<B>> {
        self.flights.iter_mut()
    }

    /// Whether another batch may be sealed.
    pub(crate) fn may_admit(&self) -> bool {
        self.phase == Phase::Steady && self.hole.is_none() && self.flights.len() < self.in_flight_max
    }

    /// Seals a batch with the next sequences. Only when [`Self::may_admit`].
    pub(crate) fn admit(&mut self, records: u32, deadlines: Deadlines, seal: impl FnOnce(ProducerState) -> B) {
        assert!(self.may_admit(), "the window is closed");
        let Some(Identity { id, epoch }) = self.identity else { unreachable!("steady without an identity") };
        let sequence = self.next_sequence;
        self.flights.push_back(Flight {
            batch: seal(ProducerState { id, epoch, sequence }),
            deadlines,
            attempts: 0,
            serial: self.next_serial,
            records,
            sequence,
            under_way: None,
            unanswered: false,
        });
        self.next_serial = Serial(self.next_serial.0 + 1);
        self.next_sequence = sequence.advance(records);
    }

    /// Whether nothing has failed since the last pause was over.
    pub(crate) fn is_steady(&self) -> bool {
        self.phase == Phase::Steady
    }

    /// What [`Self::send`] would give.
    pub(crate) fn next_waiting(&self, now: Instant) -> Option<&Flight<B>> {
        let next = self.flights.iter().find(|flight| flight.under_way.is_none())?;
        // What has expired is taken out first.
        (self.phase == Phase::Steady && !next.is_expired(now)).then_some(next)
    }

    /// What is not under way.
    pub(crate) fn waiting_mut(&mut self) -> impl Iterator<Item = &mut Flight<B>> {
        self.flights.iter_mut().filter(|flight| flight.under_way.is_none())
    }

    /// The next batch to put on `link`; it counts as under way from now on.
    pub(crate) fn send(&mut self, link: LinkId, now: Instant) -> Option<&mut Flight<B>> {
        if self.phase != Phase::Steady {
            return None;
        }
        let flight = self.flights.iter_mut().find(|flight| flight.under_way.is_none())?;
        flight.under_way = Some(UnderWay { link, since: now });
        flight.attempts = flight.attempts.saturating_add(1);
        Some(flight)
    }

    /// The batch is stored. Also counts for an attempt that was given up: stored is stored.
    pub(crate) fn acknowledged(&mut self, attempt: AttemptId, now: Instant) -> Option<Flight<B>> {
        let at = self.flights.iter().position(|flight| flight.attempt_id().serial == attempt.serial)?;
        let mut flight = self.flights.remove(at)?;
        flight.land(true);
        self.backoff.succeeded();
        self.front_gaps = 0;
        // The broker took it, so it has everything before: the hole was none.
        self.hole = self.hole.filter(|hole| hole.last > flight.serial);
        self.settle(now);
        Some(flight)
    }

    /// The attempt was refused. Returns the batch when no attempt will do better.
    pub(crate) fn refused(
        &mut self,
        attempt: AttemptId,
        verdict: Verdict,
        now: Instant,
        random: u64,
    ) -> Option<Flight<B>> {
        let at = self.flights.iter().position(|flight| flight.attempt_id() == attempt)?;
        let flight = &mut self.flights[at];
        let sent = flight.under_way?.since;
        flight.land(true);
        let gone = match verdict {
            Verdict::Retry { perhaps_stored, advice } => {
                flight.unanswered |= perhaps_stored;
                self.retry(advice, random);
                None
            }
            Verdict::Gap => {
                self.gap(at, sent, random);
                None
            }
            Verdict::Final { perhaps_stored } => {
                flight.unanswered |= perhaps_stored;
                self.remove(at)
            }
        };
        self.settle(now);
        gone
    }

    /// The stream broke: what was under way on it may or may not be stored. Whether anything was.
    pub(crate) fn link_lost(&mut self, link: LinkId, now: Instant, random: u64) -> bool {
        let lost = |flight: &&mut Flight<B>| flight.under_way.is_some_and(|under_way| under_way.link == link);
        let lost = self.flights.iter_mut().filter(lost).map(|flight| flight.land(false)).count() > 0;
        if lost {
            self.retry(None, random);
            self.settle(now);
        }
        lost
    }

    /// Another node leads now: nothing is waited for, everything is sent again, there.
    pub(crate) fn leader_moved(&mut self, route: Route, now: Instant) {
        self.flights.iter_mut().filter(|flight| flight.under_way.is_some()).for_each(|flight| flight.land(false));
        self.settle(now);
        self.hurry(route);
    }

    /// There was an election: a pause is over, unless it is hearsay and was hurried for often.
    pub(crate) fn hurry(&mut self, route: Route) {
        if matches!(self.phase, Phase::Paused { .. }) && route.is_worth_hurrying(self.backoff.failures()) {
            self.phase = Phase::Steady;
        }
    }

    /// Removes the batches whose deadline has passed, oldest first.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<Flight<B>> {
        let gone: Vec<_> = (0..self.flights.len()).filter(|&at| self.flights[at].is_expired(now)).collect();
        // From the back: where all go and none was stored, their sequences are simply used again.
        let mut expired: Vec<_> = gone.into_iter().rev().filter_map(|at| self.remove(at)).collect();
        expired.reverse();
        self.settle(now);
        expired
    }

    /// Ends a pause that is over.
    pub(crate) fn tick(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Paused { until } if until <= now) {
            self.phase = Phase::Steady;
        }
    }

    /// Whether nothing can be sent before [`Self::identify`].
    pub(crate) fn needs_identity(&self) -> bool {
        self.phase == Phase::Unidentified
    }

    /// Who it was last, or is.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Starts over as another producer: what is left is numbered from 0, in order.
    pub(crate) fn identify(&mut self, identity: Identity) {
        assert!(self.needs_identity(), "an identity is changed only while nothing is under way");
        let mut sequence = Sequence::new(0);
        for flight in &mut self.flights {
            flight.batch.reseal(ProducerState { id: identity.id, epoch: identity.epoch, sequence });
            flight.sequence = sequence;
            // The gap that led here proved that it is not stored.
            flight.unanswered = false;
            sequence = sequence.advance(flight.records);
        }
        self.identity = Some(identity);
        self.next_sequence = sequence;
        self.hole = None;
        self.front_gaps = 0;
        self.phase = Phase::Steady;
    }

    /// The link whose oldest attempt has been without an answer for too long.
    pub(crate) fn overdue(&self, now: Instant, answer_timeout: Duration) -> Option<LinkId> {
        let oldest = self.flights.iter().find_map(|flight| flight.under_way)?;
        (oldest.since + answer_timeout <= now).then_some(oldest.link)
    }

    /// When the oldest attempt under way was sent.
    pub(crate) fn sent_at(&self) -> Option<Instant> {
        self.flights.iter().find_map(|flight| flight.under_way).map(|under_way| under_way.since)
    }

    /// When to look again, apart from news.
    pub(crate) fn wake_at(&self, answer_timeout: Duration) -> Option<Instant> {
        let deadline = self.flights.front().map(|flight| flight.deadlines.delivery);
        let own = self.flights.iter().filter(|flight| flight.under_way.is_none());
        let own = own.filter_map(|flight| flight.deadlines.send_before);
        let overdue = self.flights.iter().find_map(|flight| flight.under_way).map(|sent| sent.since + answer_timeout);
        let pause = match self.phase {
            Phase::Paused { until } => Some(until),
            _ => None,
        };
        deadline.into_iter().chain(own).chain(overdue).chain(pause).min()
    }

    /// Everything still here, when the producer ends.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Flight<B>> {
        self.flights.drain(..)
    }

    fn retry(&mut self, advice: Option<Duration>, random: u64) {
        let delay = match self.phase {
            // One failure of many batches is one failure.
            Phase::Settling { then: Then::Renew } | Phase::Unidentified => return,
            Phase::Settling { then: Then::Pause(delay) } => delay.max(advice.unwrap_or_default()),
            Phase::Steady | Phase::Paused { .. } => self.backoff.failed(random, advice),
        };
        self.phase = Phase::Settling { then: Then::Pause(delay) };
    }

    fn gap(&mut self, at: usize, sent: Instant, random: u64) {
        if at > 0 {
            return self.retry(None, random);
        }
        self.front_gaps += 1;
        // What may be stored is never given another number: a gap that its own earlier attempt could explain
        // away is waited out until the deadline.
        let forgotten = self.front_gaps >= FRONT_GAPS_MAX && !self.flights[0].unanswered;
        // An answer may be old news: what counts is that no copy could be stored any more when we asked.
        let proven = self.hole.is_some_and(|hole| hole.copies_until <= Some(sent));
        match proven || forgotten {
            true => self.phase = Phase::Settling { then: Then::Renew },
            false => self.retry(None, random),
        }
    }

    /// Takes a batch out that was not acknowledged.
    fn remove(&mut self, at: usize) -> Option<Flight<B>> {
        let flight = self.flights.remove(at)?;
        let copies_until = flight.is_uncertain().then(|| flight.deadlines.copies_until());
        if at == self.flights.len() && copies_until.is_none() {
            self.next_sequence = flight.sequence;
            return Some(flight);
        }
        let Hole { last, copies_until: earlier } = self.hole.unwrap_or(Hole { last: flight.serial, copies_until });
        self.hole = Some(Hole { last: last.max(flight.serial), copies_until: earlier.max(copies_until) });
        Some(flight)
    }

    /// Leaves [`Phase::Settling`] once nothing is under way, and asks for an identity once nobody is left who
    /// could tell what became of a hole.
    fn settle(&mut self, now: Instant) {
        if self.flights.iter().any(|flight| flight.under_way.is_some()) {
            return;
        }
        if self.hole.is_some() && self.flights.is_empty() {
            self.phase = Phase::Unidentified;
        }
        self.phase = match self.phase {
            Phase::Settling { then: Then::Pause(delay) } if delay.is_zero() => Phase::Steady,
            Phase::Settling { then: Then::Pause(delay) } => Phase::Paused { until: now + delay },
            Phase::Settling { then: Then::Renew } => Phase::Unidentified,
            phase => phase,
        };
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
