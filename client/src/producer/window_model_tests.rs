//! The window against a model of a broker that does everything a broker may do: answer late, refuse, store and
//! not answer, lose streams, move the leader. Whatever happens, what the producer was told must be true.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

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
