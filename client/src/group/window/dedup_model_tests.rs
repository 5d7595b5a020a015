//! Copies of events, delays and expiry against a naive model: holders read, settle, commit, crash, hand over. Whatever is
//! done without a word of the application has a reason; of the copies of an event one at a time is out, and none after
//! one was acknowledged; nothing is early, late, lost or stuck.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const RECORDS: usize = 40;
const IDS: u64 = 6;

/// A record: its identity, when it is due and when it expires, in milliseconds from the start.
#[derive(Clone, Copy, Debug)]
struct Kind {
    id: Option<u64>,
    times: Times,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Take,
    HandOut,
    /// About one of the deliveries that are out.
    Ack(usize),
    Nack(usize),
    Reject(usize),
    Bury,
    Commit {
        reaches: bool,
    },
    Pass(u64),
    Crash,
    GiveUp,
}

fn kinds() -> impl Strategy<Value = Vec<Kind>> {
    let id = prop_oneof![1 => Just(None), 3 => (0..IDS).prop_map(Some)];
    let due_ms = prop_oneof![3 => Just(None), 1 => (0_i64..20_000).prop_map(Some)];
    let expires_ms = prop_oneof![3 => Just(None), 1 => (0_i64..40_000).prop_map(Some)];
    let kind =
        (id, due_ms, expires_ms).prop_map(|(id, due_ms, expires_ms)| Kind { id, times: Times { due_ms, expires_ms } });
    prop::collection::vec(kind, RECORDS)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Take),
        8 => Just(Step::HandOut),
        6 => (0_usize..8).prop_map(Step::Ack),
        2 => (0_usize..8).prop_map(Step::Nack),
        1 => (0_usize..8).prop_map(Step::Reject),
        2 => Just(Step::Bury),
        5 => any::<bool>().prop_map(|reaches| Step::Commit { reaches }),
        2 => (1_u64..8_000).prop_map(Step::Pass),
        1 => Just(Step::Crash),
        1 => Just(Step::GiveUp),
    ];
    prop::collection::vec(step, 1..400)
}

/// What was acknowledged: by offset, and the identities that must be remembered of that.
#[derive(Clone, Default)]
struct Acked {
    offsets: BTreeSet<Offset>,
    /// Oldest first.
    ids: Vec<u64>,
}

struct World {
    window: Window<u64>,
    policy: Policy,
    kinds: Vec<Kind>,
    clock: Clock,
    on_record: Snapshot,
    acked: Acked,
    /// As of the last commit, for the case of a crash.
    acked_on_record: Acked,
    out: Vec<Handout>,
    next: u64,
    /// Known to be done.
    done: BTreeSet<Offset>,
    /// Of those, since the holder began: without a word of the application.
    unasked: u64,
    spared: Spared,
}

impl World {
    fn new(kinds: Vec<Kind>, by_key: bool, expired: Expired, ids_max: usize) -> Self {
        let backoff = BackoffPolicy { base: Duration::from_millis(100), cap: Duration::from_secs(5) };
        let lease = Duration::from_secs(30);
        let bytes_max = 1 << 20;
        let policy =
            Policy { lease, backoff, deliveries_max: u32::MAX, records_max: 12, bytes_max, by_key, ids_max, expired };
        let clock = Clock { now: Instant::now(), unix_ms: 1, shared_ms: 1, random: 0 };
        let mut window = Window::new(policy, Offset::ZERO, State::fresh(Offset::ZERO), 0);
        let on_record = window.snapshot(clock.now);
        window.committed(&on_record);
        Self {
            window,
            policy,
            kinds,
            clock,
            on_record,
            acked: Acked::default(),
            acked_on_record: Acked::default(),
            out: vec![],
            next: 0,
            done: BTreeSet::new(),
            unasked: 0,
            spared: Spared::default(),
        }
    }

    fn kind(&self, offset: Offset) -> Kind {
        self.kinds[offset.get() as usize]
    }

    fn is_done(&self, offset: Offset) -> bool {
        offset < self.window.prefix || self.window.done.contains(offset)
    }

    fn is_seen(&self, offset: Offset) -> bool {
        self.kind(offset).id.is_some_and(|id| self.acked.ids.contains(&id))
    }

    /// What is newly done must be explained: by what was said just now, or by the record itself.
    fn audit(&mut self, asked: Option<Offset>) {
        for offset in (0..self.next).map(Offset::new).filter(|&offset| self.is_done(offset)).collect::<Vec<_>>() {
            if !self.done.insert(offset) || asked == Some(offset) {
                continue;
            }
            self.unasked += 1;
            let times = self.kind(offset).times;
            assert!(self.is_seen(offset) || times.is_over(self.clock.shared_ms), "{offset} is done for no reason");
        }
        assert!(self.done.iter().all(|&offset| self.is_done(offset)), "what was done is not");
        let Spared { duplicates, expired } = self.window.take_spared();
        self.spared.duplicates += duplicates;
        self.spared.expired += expired;
        let silently = match self.policy.expired {
            Expired::Drop => self.spared.expired,
            Expired::DeadLetter => 0,
        };
        assert_eq!(self.unasked, self.spared.duplicates + silently, "{:?}", self.spared);
    }

    fn take(&mut self) {
        if self.next < RECORDS as u64 && self.window.has_room() {
            let offset = Offset::new(self.next);
            let Kind { id, times } = self.kind(offset);
            let key = Some(self.next % 3).filter(|_| self.policy.by_key);
            let taken = Taken { offset, timestamp_ms: 0, bytes: 1, key, id, times, record: self.next };
            let wanted = !self.is_done(offset) && !self.is_seen(offset);
            self.next += 1;
            assert_eq!(self.window.take(taken, &self.clock), wanted, "record {offset}");
        }
    }

    fn hand_out(&mut self) {
        self.tick();
        let Some(handout) = self.window.hand_out(&self.clock, true) else { return };
        let offset = handout.offset;
        let Kind { id, times } = self.kind(offset);
        assert!(!self.is_done(offset) && !self.is_seen(offset), "{offset} was acknowledged before");
        let out = |like: &dyn Fn(Offset) -> bool| self.out.iter().any(|out| like(out.offset));
        assert!(!out(&|other| other == offset), "{offset} is out already");
        assert!(id.is_none() || !out(&|other| self.kind(other).id == id), "a copy of {offset} is out");
        if self.policy.by_key {
            assert!(!out(&|other| other.get() % 3 == offset.get() % 3), "two of one key are out");
        }
        let now_ms = self.clock.shared_ms;
        assert!(!times.is_early(now_ms) && times.expires_ms.is_none_or(|at| at > now_ms), "{offset} at {now_ms}");
        self.out.push(handout);
    }

    fn tick(&mut self) {
        for offset in self.window.tick(&self.clock) {
            self.out.retain(|out| out.offset != offset);
        }
    }

    fn settle(&mut self, step: Step) -> Option<Offset> {
        let (Step::Ack(index) | Step::Nack(index) | Step::Reject(index)) = step else { return None };
        self.tick();
        let index = index.checked_rem(self.out.len())?;
        let Handout { offset, delivery, .. } = self.out.remove(index);
        let clock = self.clock;
        match step {
            Step::Ack(_) => {
                self.window.ack(offset, delivery).expect("it is out");
                self.acked.offsets.insert(offset);
                if let Some(id) = self.kind(offset).id.filter(|id| !self.acked.ids.contains(id)) {
                    self.acked.ids.push(id);
                    let over = self.acked.ids.len().saturating_sub(self.policy.ids_max);
                    self.acked.ids.drain(..over);
                }
                return Some(offset);
            }
            Step::Nack(_) => drop(self.window.nack(offset, delivery, None, "".into(), &clock).expect("it is out")),
            _ => self.window.reject(offset, delivery, "".into(), &clock).expect("it is out"),
        }
        None
    }

    fn bury(&mut self) -> Option<Offset> {
        let offset = *self.window.take_doomed(1).first()?;
        assert!(self.window.burial(offset).is_some());
        self.window.buried(offset, &self.clock);
        assert!(self.is_done(offset));
        Some(offset)
    }

    fn record(&mut self, snapshot: Snapshot) {
        assert!(snapshot.state.len() <= STATE_BYTES_MAX);
        let state = State::decode(snapshot.offset, &snapshot.state).expect("what was encoded");
        assert_eq!(state.seen, self.acked.ids);
        self.window.committed(&snapshot);
        self.on_record = snapshot;
        self.acked_on_record = self.acked.clone();
    }

    /// Another holder goes on from what is on record.
    fn hand_over(&mut self) {
        let Snapshot { offset, state, .. } = self.on_record.clone();
        let state = State::decode(offset, &state).expect("what was encoded");
        self.window = Window::new(self.policy, offset, state, 0);
        self.acked = self.acked_on_record.clone();
        self.out.clear();
        self.next = self.window.reach().get();
        // What is done beyond the committed offset is passed over silently.
        self.done = (0..RECORDS as u64).map(Offset::new).filter(|&offset| self.is_done(offset)).collect();
        (self.unasked, self.spared) = (0, Spared::default());
        let kept = |offset: &Offset| self.is_done(*offset);
        assert!(self.acked.offsets.iter().all(kept), "an acknowledgement was lost");
    }

    fn step(&mut self, step: Step) {
        let mut asked = None;
        match step {
            Step::Take => self.take(),
            Step::HandOut => self.hand_out(),
            Step::Ack(_) | Step::Nack(_) | Step::Reject(_) => asked = self.settle(step),
            Step::Bury => asked = self.bury(),
            Step::Commit { reaches } => {
                let snapshot = self.window.snapshot(self.clock.now);
                if reaches {
                    self.record(snapshot);
                }
            }
            Step::Pass(ms) => {
                self.clock.now += Duration::from_millis(ms);
                self.clock.shared_ms += ms as i64;
            }
            Step::Crash => self.hand_over(),
            Step::GiveUp => {
                self.tick();
                let snapshot = self.window.last_snapshot(self.clock.now);
                self.record(snapshot);
                self.audit(None);
                self.hand_over();
            }
        }
        self.audit(asked);
    }

    /// Everything ends, with a holder that does its work.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            for step in [Step::Take, Step::HandOut, Step::Ack(0), Step::Bury, Step::Commit { reaches: true }] {
                self.step(step);
            }
            if (0..RECORDS as u64).map(Offset::new).all(|offset| self.is_done(offset)) {
                return;
            }
            self.step(Step::Pass(1000));
        }
        panic!("stuck: {:?}", self.window);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]
    #[test]
    fn one_copy_is_done_and_nothing_is_early_or_late(
        kinds in kinds(),
        steps in steps(),
        by_key: bool,
        to_dead_letters: bool,
        ids_max in prop_oneof![Just(2_usize), Just(IDS as usize)],
    ) {
        let expired = if to_dead_letters { Expired::DeadLetter } else { Expired::Drop };
        let mut world = World::new(kinds, by_key, expired, ids_max);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
        if ids_max >= IDS as usize {
            let ids: Vec<_> = world.acked.offsets.iter().filter_map(|&offset| world.kind(offset).id).collect();
            let once: BTreeSet<_> = ids.iter().copied().collect();
            prop_assert_eq!(ids.len(), once.len(), "an event was acknowledged twice");
        }
    }
}
