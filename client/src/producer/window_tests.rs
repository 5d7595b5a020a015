//! The window against a model of a broker that does everything a broker may do: answer late, refuse, store and
//! not answer, lose streams, move the leader. Whatever happens, what the producer was told must be true.

use std::{collections::VecDeque, time::Duration};

use proptest::prelude::*;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(30);
const POLICY: BackoffPolicy = BackoffPolicy { base: Duration::from_millis(10), cap: Duration::from_secs(1) };

/// A batch that knows its number; what a real one would have in its bytes.
#[derive(Clone, Debug)]
struct Batch {
    number: usize,
    producer: ProducerState,
    left: std::cell::Cell<bool>,
}

impl Sealed for Batch {
    fn reseal(&mut self, producer: ProducerState) {
        self.producer = producer;
    }
    fn may_have_left(&self) -> bool {
        self.left.get()
    }
    fn take_back(&self) {
        self.left.set(false);
    }
}

fn identity(id: i64) -> Identity {
    Identity { id: ProducerId::new(id), epoch: ProducerEpoch::new(0) }
}

fn refusal(reason: Reason) -> Verdict {
    Verdict::of(&Refusal::new(reason, "scripted"))
}

fn until(delivery: Instant) -> Deadlines {
    Deadlines { delivery, send_before: None }
}

fn by_metadata(leader: u64) -> Route {
    Route { leader: busbar_proto::NodeId::new(leader), epoch: leader, hinted: false }
}

/// A window with `count` batches of one record under way on link 1.
fn under_way(count: usize, now: Instant) -> (Window<Batch>, Vec<AttemptId>) {
    let mut window = Window::new(5, POLICY);
    window.identify(identity(1));
    let attempts = (0..count)
        .map(|number| {
            window.admit(1, until(now + TIMEOUT), |producer| Batch { number, producer, left: Default::default() });
            let flight = window.send(LinkId(1), now).expect("something to send");
            flight.batch.left.set(true);
            flight.attempt_id()
        })
        .collect();
    (window, attempts)
}

#[test]
fn a_refused_batch_is_resent_with_all_after_it_once_all_answers_are_in() {
    let now = Instant::now();
    let (mut window, attempts) = under_way(3, now);
    window.refused(attempts[0], refusal(Reason::Overloaded), now, 0);
    assert!(window.next_waiting(now).is_none(), "two answers are to come");
    window.refused(attempts[1], Verdict::Gap, now, 0);
    window.refused(attempts[2], Verdict::Gap, now, 0);
    window.tick(now);
    let resent = std::iter::from_fn(|| window.send(LinkId(1), now).map(|f| (f.batch.number, f.sequence.get())));
    assert_eq!(resent.collect::<Vec<_>>(), [(0, 0), (1, 1), (2, 2)]);
}

#[test]
fn a_moved_leader_is_not_waited_for() {
    let now = Instant::now();
    let (mut window, attempts) = under_way(2, now);
    window.leader_moved(by_metadata(2), now);
    assert_eq!(window.send(LinkId(2), now).map(|flight| flight.batch.number), Some(0));
    let late = window.acknowledged(attempts[1], now).expect("an answer of the old leader counts");
    assert_eq!(late.batch.number, 1);
    assert!(window.refused(attempts[0], Verdict::Gap, now, 0).is_none(), "but its refusals don't");
    assert_eq!(window.len(), 1);
}

#[test]
fn nodes_that_name_one_another_are_backed_off_from() {
    let now = Instant::now();
    let (mut window, _) = under_way(1, now);
    let mut hurried = 0;
    for node in 2..20 {
        let attempt = window.flights().next().expect("a flight").attempt_id();
        window.refused(attempt, refusal(Reason::NotLeader), now, u64::MAX);
        window.leader_moved(Route { hinted: true, ..by_metadata(node) }, now);
        let Some(_) = window.send(LinkId(node), now) else { break };
        hurried += 1;
    }
    assert_eq!(hurried, 3);
}

#[test]
fn an_expired_batch_opens_a_hole_that_a_gap_proves_and_a_new_identity_closes() {
    let now = Instant::now();
    let mut window = Window::new(5, POLICY);
    window.identify(identity(1));
    for (number, timeout) in [(0, 1), (1, 9)] {
        let deadline = now + Duration::from_secs(timeout);
        window.admit(2, until(deadline), |producer| Batch { number, producer, left: true.into() });
        window.send(LinkId(1), now);
    }
    let later = now + Duration::from_secs(2);
    assert!(window.expired(later).first().is_some_and(Flight::is_uncertain));
    assert!(!window.may_admit(), "what comes next is not numbered over the hole");
    assert!(window.link_lost(LinkId(1), later, 0));
    window.tick(later);
    let attempt = window.send(LinkId(2), later).expect("the second is sent again").attempt_id();
    window.refused(attempt, Verdict::Gap, later, 0);
    assert!(window.needs_identity());
    window.identify(identity(2));
    let flight = window.send(LinkId(2), later).expect("and again, as another producer");
    assert_eq!((flight.batch.producer.id.get(), flight.batch.producer.sequence.get()), (2, 0));
    assert!(window.may_admit());
}

#[test]
fn what_may_not_be_sent_any_more_is_taken_out_and_the_rest_goes_on_as_another_producer() {
    let now = Instant::now();
    let mut window = Window::new(5, POLICY);
    window.identify(identity(1));
    let later = now + Duration::from_secs(1);
    for (number, send_before) in [(0, None), (1, Some(later)), (2, None)] {
        let deadlines = Deadlines { delivery: now + TIMEOUT, send_before };
        window.admit(1, deadlines, |producer| Batch { number, producer, left: Default::default() });
    }
    assert_eq!(window.wake_at(TIMEOUT), Some(later));
    window.send(LinkId(1), now).expect("the first").batch.left.set(true);
    assert!(window.next_waiting(now).is_some() && window.next_waiting(later).is_none());
    let expired = window.expired(later);
    assert!(matches!(&expired[..], [only] if only.batch.number == 1 && !only.is_uncertain()));
    let third = window.send(LinkId(1), later).expect("the third").attempt_id();
    let first = window.flights().next().expect("the first").attempt_id();
    assert!(window.acknowledged(first, later).is_some());
    window.refused(third, Verdict::Gap, later, 0);
    assert!(window.needs_identity());
    // Under way, it is waited for.
    let mut window = Window::new(5, POLICY);
    window.identify(identity(1));
    let deadlines = Deadlines { delivery: now + TIMEOUT, send_before: Some(later) };
    window.admit(1, deadlines, |producer| Batch { number: 0, producer, left: Default::default() });
    window.send(LinkId(1), now).expect("in time");
    assert!(window.expired(later).is_empty() && window.wake_at(TIMEOUT) == Some(now + TIMEOUT));
    assert!(window.link_lost(LinkId(1), later, 0));
    assert_eq!(window.expired(later).len(), 1, "but not sent again");
}

#[test]
fn an_acknowledgement_behind_a_hole_proves_that_there_was_none() {
    let now = Instant::now();
    let (mut window, attempts) = under_way(3, now);
    let gone = window.refused(attempts[0], Verdict::Final { perhaps_stored: true }, now, 0);
    assert!(gone.is_some_and(|gone| gone.is_uncertain()) && !window.may_admit());
    assert!(window.acknowledged(attempts[1], now).is_some());
    assert!(window.may_admit() && !window.needs_identity());
}

#[test]
fn sequences_of_batches_that_certainly_were_not_stored_are_used_again() {
    let now = Instant::now();
    let (mut window, attempts) = under_way(1, now);
    let gone = window.refused(attempts[0], refusal(Reason::CorruptBatch), now, 0);
    assert!(gone.is_some_and(|gone| !gone.is_uncertain()));
    assert!(window.may_admit() && !window.needs_identity());
    window.admit(1, until(now + TIMEOUT), |producer| {
        assert_eq!(producer.sequence, Sequence::new(0));
        Batch { number: 1, producer, left: Default::default() }
    });
}

#[test]
fn a_producer_that_the_broker_forgot_starts_over() {
    let now = Instant::now();
    let (mut window, _) = under_way(1, now);
    let mut later = now;
    for _ in 0..FRONT_GAPS_MAX {
        let attempt = window.flights().next().expect("a flight").attempt_id();
        window.refused(attempt, Verdict::Gap, later, 0);
        later += Duration::from_secs(5);
        window.tick(later);
        window.send(LinkId(1), later);
    }
    assert!(window.needs_identity());
}

#[test]
fn an_answer_that_does_not_come_is_noticed() {
    let now = Instant::now();
    let (window, _) = under_way(1, now);
    let patience = Duration::from_secs(10);
    assert_eq!(window.wake_at(patience), Some(now + patience));
    assert_eq!(window.overdue(now + patience - Duration::from_millis(1), patience), None);
    assert_eq!(window.overdue(now + patience, patience), Some(LinkId(1)));
}

/// A request on its way, or buffered by a broker.
#[derive(Clone, Debug)]
struct Request {
    attempt: AttemptId,
    number: usize,
    records: u32,
    producer: ProducerState,
    deadline: Instant,
}

#[derive(Debug, Default)]
struct Stream {
    requests: VecDeque<Request>,
    answers: VecDeque<(AttemptId, Result<(), Verdict>)>,
    /// Its client end is gone; requests in it may still be carried out.
    lost: bool,
    /// It leads to a node that leads no more.
    deposed: bool,
}

/// One partition's log and its producer table.
#[derive(Debug, Default)]
struct Log {
    /// Batch numbers in the order in which they were stored.
    stored: Vec<usize>,
    /// By producer id: next sequence, and (sequence, number) of what is stored.
    producers: std::collections::BTreeMap<i64, (Sequence, Vec<(Sequence, usize)>)>,
}

impl Log {
    fn publish(&mut self, request: &Request) -> Result<(), Verdict> {
        let (next, known) = self.producers.entry(request.producer.id.get()).or_default();
        let sequence = request.producer.sequence;
        if let Some(&(_, number)) = known.iter().find(|(stored, _)| *stored == sequence) {
            assert_eq!(number, request.number, "a sequence was used for two batches");
            return Ok(());
        }
        if sequence != *next {
            return Err(Verdict::Gap);
        }
        *next = sequence.advance(request.records);
        known.push((sequence, request.number));
        self.stored.push(request.number);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish,
    Send,
    /// A broker takes the next request of a stream and: does it, refuses it, or does something and says "unknown".
    Serve {
        stream: usize,
        how: How,
    },
    Answer {
        stream: usize,
    },
    LoseStream {
        served_later: bool,
    },
    MoveLeader,
    Wait {
        ms: u64,
    },
}

#[derive(Clone, Copy, Debug)]
enum How {
    Well,
    Refuse(Reason),
    Unknown { stored: bool },
    Silent { stored: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        12 => Just(How::Well),
        1 => Just(How::Refuse(Reason::Overloaded)),
        1 => Just(How::Refuse(Reason::NotLeader)),
        1 => Just(How::Refuse(Reason::CorruptBatch)),
        1 => any::<bool>().prop_map(|stored| How::Unknown { stored }),
        1 => any::<bool>().prop_map(|stored| How::Silent { stored }),
    ];
    prop_oneof![
        6 => Just(Step::Publish),
        8 => Just(Step::Send),
        8 => (0_usize..3, how).prop_map(|(stream, how)| Step::Serve { stream, how }),
        8 => (0_usize..3).prop_map(|stream| Step::Answer { stream }),
        1 => any::<bool>().prop_map(|served_later| Step::LoseStream { served_later }),
        1 => Just(Step::MoveLeader),
        3 => (1_u64..1500).prop_map(|ms| Step::Wait { ms }),
        1 => (8_000_u64..20_000).prop_map(|ms| Step::Wait { ms }),
    ]
}

/// What the application was told about a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Stored,
    NotStored,
    Unknown,
}

struct World {
    now: Instant,
    window: Window<Batch>,
    streams: Vec<Stream>,
    log: Log,
    told: Vec<Told>,
    identities: i64,
}

impl World {
    fn new() -> Self {
        let window = Window::new(5, POLICY);
        Self {
            now: Instant::now(),
            window,
            streams: vec![Stream::default()],
            log: Log::default(),
            told: vec![],
            identities: 0,
        }
    }

    fn apply(&mut self, step: Step, random: u64) {
        match step {
            Step::Publish if self.window.may_admit() => {
                let number = self.told.len();
                let urgent = random.is_multiple_of(5).then(|| self.now + Duration::from_millis(random % 997));
                let deadline = Deadlines { delivery: self.now + TIMEOUT, send_before: urgent };
                let seal = |producer| Batch { number, producer, left: Default::default() };
                self.window.admit(1 + (random % 3) as u32, deadline, seal);
                self.told.push(Told::Nothing);
            }
            Step::Publish => {}
            Step::Send => self.send(),
            Step::Serve { stream, how } => self.serve(stream, how),
            Step::Answer { stream } => self.answer(stream, random),
            Step::LoseStream { served_later } => {
                let link = LinkId(self.streams.len() as u64 - 1);
                let Some(stream) = self.streams.last_mut() else { return };
                stream.lost = true;
                stream.answers.clear();
                if !served_later {
                    stream.requests.clear();
                }
                self.window.link_lost(link, self.now, random);
                self.streams.push(Stream::default());
            }
            Step::MoveLeader => {
                self.streams.iter_mut().for_each(|stream| stream.deposed = true);
                self.streams.push(Stream::default());
                self.window.leader_moved(by_metadata(self.streams.len() as u64), self.now);
            }
            Step::Wait { ms } => self.now += Duration::from_millis(ms),
        }
        for flight in self.window.expired(self.now) {
            self.tell(&flight);
        }
        self.window.tick(self.now);
        if self.window.needs_identity() {
            self.identities += 1;
            self.window.identify(identity(self.identities));
        }
    }

    fn send(&mut self) {
        let link = LinkId(self.streams.len() as u64 - 1);
        if self.window.next_waiting(self.now).is_none() {
            return;
        }
        let Some(flight) = self.window.send(link, self.now) else { return };
        flight.batch.left.set(true);
        let request = Request {
            attempt: flight.attempt_id(),
            number: flight.batch.number,
            records: flight.records,
            producer: flight.batch.producer,
            deadline: flight.deadlines.earliest(),
        };
        self.streams.last_mut().expect("a stream").requests.push_back(request);
    }

    /// `stream` counts from the newest.
    fn serve(&mut self, stream: usize, how: How) {
        let Some(at) = self.streams.len().checked_sub(stream + 1) else { return };
        let Some(request) = self.streams[at].requests.pop_front() else { return };
        let usable = request.deadline > self.now && !self.streams[at].deposed;
        let answer = match how {
            _ if self.streams[at].deposed => Some(Err(refusal(Reason::NotLeader))),
            _ if !usable => Some(Err(Verdict::Retry { perhaps_stored: false, advice: None })),
            How::Well => Some(self.log.publish(&request)),
            How::Refuse(reason) => Some(Err(refusal(reason))),
            How::Unknown { stored } => {
                let stored = stored.then(|| self.log.publish(&request));
                // A gap is seen before anything is proposed.
                Some(Err(stored.and_then(Result::err).unwrap_or(refusal(Reason::OutcomeUnknown))))
            }
            How::Silent { stored } => {
                if stored {
                    self.log.publish(&request).ok();
                }
                None
            }
        };
        match answer {
            Some(answer) if !self.streams[at].lost => self.streams[at].answers.push_back((request.attempt, answer)),
            Some(_) => {}
            // A broker that does not answer one request of a stream answers none after it.
            None => self.apply(Step::LoseStream { served_later: true }, 0),
        }
    }

    fn answer(&mut self, stream: usize, random: u64) {
        let Some(at) = self.streams.len().checked_sub(stream + 1) else { return };
        let Some((attempt, answer)) = self.streams[at].answers.pop_front() else { return };
        match answer {
            Ok(()) => {
                if let Some(flight) = self.window.acknowledged(attempt, self.now) {
                    assert_eq!(self.told[flight.batch.number], Told::Nothing);
                    self.told[flight.batch.number] = Told::Stored;
                }
            }
            Err(verdict) => {
                if let Some(flight) = self.window.refused(attempt, verdict, self.now, random) {
                    self.tell(&flight);
                }
            }
        }
    }

    fn tell(&mut self, flight: &Flight<Batch>) {
        let told = if flight.is_uncertain() { Told::Unknown } else { Told::NotStored };
        assert_eq!(self.told[flight.batch.number], Told::Nothing);
        self.told[flight.batch.number] = told;
    }

    fn check(&self) {
        let places = |number| self.log.stored.iter().filter(move |&&stored| stored == number).count();
        for (number, told) in self.told.iter().enumerate() {
            match told {
                Told::Stored => assert_eq!(places(number), 1, "batch {number} was acknowledged"),
                Told::NotStored => assert_eq!(places(number), 0, "batch {number} was called not stored"),
                Told::Nothing | Told::Unknown => assert!(places(number) <= 1, "batch {number} is stored twice"),
            }
        }
        let acknowledged = self.log.stored.iter().filter(|&&number| self.told[number] == Told::Stored);
        assert!(acknowledged.is_sorted(), "acknowledged batches are out of order: {:?}", self.log.stored);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn what_the_producer_is_told_is_true(steps in prop::collection::vec((step(), any::<u64>()), 1..250)) {
        let mut world = World::new();
        let mut any_final = false;
        for (step, random) in steps {
            world.apply(step, random);
            world.check();
            any_final |= matches!(step, Step::Serve { how: How::Refuse(Reason::CorruptBatch), .. });
        }
        // From here on everything works: all that is left must be stored, soon.
        world.apply(Step::LoseStream { served_later: true }, 0);
        for _ in 0..400 {
            for step in [Step::Send, Step::Serve { stream: 0, how: How::Well }, Step::Answer { stream: 0 }] {
                world.apply(step, 0);
            }
            world.apply(Step::Wait { ms: 10 }, 0);
            for stream in 0..world.streams.len() {
                world.serve(stream, How::Well);
            }
        }
        world.check();
        // A batch refused for good while a copy of it may be in a dead stream holds up the others until that copy's
        // deadline: safe, if slow, and nothing that a sound broker brings about.
        if any_final {
            world.apply(Step::Wait { ms: 31_000 }, 0);
            world.check();
        }
        prop_assert_eq!(world.window.len(), 0, "batches are stuck: {:?}", world.window);
    }
}
