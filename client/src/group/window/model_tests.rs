//! The window against a naive model of a partition and its holders: they read, settle, commit, crash, hand over. What
//! was acknowledged and committed is never delivered again; what was not is; nobody is blamed for another's crash.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const RECORDS: u64 = 40;
const DELIVERIES_MAX: u32 = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    Take,
    HandOut,
    /// About one of the deliveries that are out.
    Ack(usize),
    Nack(usize),
    Reject(usize),
    Bury,
    /// Put on record what there is, or only try to.
    Commit {
        reaches: bool,
    },
    Pass(u64),
    Crash,
    GiveUp,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Take),
        8 => Just(Step::HandOut),
        6 => (0_usize..8).prop_map(Step::Ack),
        2 => (0_usize..8).prop_map(Step::Nack),
        1 => (0_usize..8).prop_map(Step::Reject),
        1 => Just(Step::Bury),
        5 => any::<bool>().prop_map(|reaches| Step::Commit { reaches }),
        2 => (1_u64..40_000).prop_map(Step::Pass),
        1 => Just(Step::Crash),
        1 => Just(Step::GiveUp),
    ];
    prop::collection::vec(step, 1..400)
}

/// What is known of a record, by whoever sees everything.
#[derive(Clone, Debug, Default)]
struct Fate {
    /// Acknowledged or buried, by some holder that did not lose that.
    done: bool,
    /// Deliveries that failed before everybody's eyes, or ended their holder while nothing else could have.
    failures: u32,
    buried: bool,
}

struct World {
    window: Window<u64>,
    by_key: bool,
    clock: Clock,
    on_record: Snapshot,
    fates: Vec<Fate>,
    /// As of the last commit, for the case of a crash.
    fates_on_record: Vec<Fate>,
    out: Vec<Handout>,
    next: u64,
}

impl World {
    fn policy(by_key: bool) -> Policy {
        let backoff = BackoffPolicy { base: Duration::from_millis(100), cap: Duration::from_secs(5) };
        let lease = Duration::from_secs(30);
        Policy {
            lease,
            backoff,
            deliveries_max: DELIVERIES_MAX,
            records_max: 12,
            bytes_max: 1 << 20,
            by_key,
            ids_max: 0,
            expired: Expired::Drop,
        }
    }

    fn new(by_key: bool) -> Self {
        let clock = Clock { now: Instant::now(), unix_ms: 1, shared_ms: 1, random: 0 };
        let mut window = Window::new(Self::policy(by_key), Offset::ZERO, State::fresh(Offset::ZERO), 0);
        let on_record = window.snapshot(clock.now);
        window.committed(&on_record);
        let fates = vec![Fate::default(); RECORDS as usize];
        Self { window, by_key, clock, on_record, fates_on_record: fates.clone(), fates, out: vec![], next: 0 }
    }

    fn fate(&mut self, offset: Offset) -> &mut Fate {
        &mut self.fates[offset.get() as usize]
    }

    fn take(&mut self) {
        if self.next < RECORDS && self.window.has_room() {
            let (offset, key) = (Offset::new(self.next), Some(self.next % 3).filter(|_| self.by_key));
            let taken =
                Taken { offset, timestamp_ms: 0, bytes: 1, key, id: None, times: Times::default(), record: self.next };
            let was_done = self.fates_on_record[self.next as usize].done;
            assert_eq!(self.window.take(taken, &self.clock), !was_done, "record {offset}");
            self.next += 1;
        }
    }

    fn hand_out(&mut self) {
        self.expire();
        let Some(handout) = self.window.hand_out(&self.clock, true) else { return };
        let Handout { offset, delivery, on_trial } = handout;
        let earlier = self.out.iter().any(|out| out.offset == offset);
        assert!(!earlier, "{offset} is out already");
        if self.by_key {
            let same_key = |out: &&Handout| out.offset.get() % 3 == offset.get() % 3;
            assert_eq!(self.out.iter().find(same_key), None, "two of one key are out");
        }
        let fate = self.fate(offset).clone();
        assert!(!fate.done && !fate.buried, "{offset} is done: {fate:?}");
        assert_eq!(delivery, fate.failures + 1, "delivery of {offset}");
        assert!(delivery <= DELIVERIES_MAX);
        let state = State::decode(self.on_record.offset, &self.on_record.state).expect("sound");
        assert!(offset < state.mark, "{offset} is handed out, and a crash would not make it suspect");
        if on_trial {
            let past = state.past.get(&offset).expect("a trial is on record");
            assert_eq!((past.deliveries, past.out), (delivery, true));
        }
        self.out.push(handout);
    }

    fn expire(&mut self) {
        for offset in self.window.tick(&self.clock) {
            self.out.retain(|out| out.offset != offset);
            self.fate(offset).failures += 1;
        }
    }

    fn pick(&mut self, index: usize) -> Option<Handout> {
        self.expire();
        let index = index.checked_rem(self.out.len())?;
        Some(self.out.remove(index))
    }

    fn settle(&mut self, step: Step) {
        let (Step::Ack(index) | Step::Nack(index) | Step::Reject(index)) = step else { return };
        let Some(Handout { offset, delivery, .. }) = self.pick(index) else { return };
        assert_eq!(self.window.ack(offset, delivery + 1), Err(Stale));
        let clock = self.clock;
        match step {
            Step::Ack(_) => {
                self.window.ack(offset, delivery).expect("it is out");
                self.fate(offset).done = true;
            }
            Step::Nack(_) => {
                let verdict = self.window.nack(offset, delivery, None, "".into(), &clock).expect("it is out");
                assert_eq!(verdict == Verdict::Doomed, delivery == DELIVERIES_MAX);
                self.fate(offset).failures += 1;
            }
            _ => {
                self.window.reject(offset, delivery, "".into(), &clock).expect("it is out");
                self.fate(offset).failures += 1;
            }
        }
        assert_eq!(
            self.window.ack(offset, delivery).is_ok(),
            matches!(step, Step::Nack(_)) && {
                // A word after the word: an acknowledgement counts as long as nobody else has the record.
                let again = delivery < DELIVERIES_MAX;
                if again {
                    self.fate(offset).done = true;
                }
                again
            }
        );
    }

    fn bury(&mut self) {
        for offset in self.window.take_doomed(1) {
            assert!(self.window.burial(offset).is_some());
            self.window.buried(offset, &self.clock);
            let fate = self.fate(offset);
            assert!(!fate.buried);
            (fate.buried, fate.done) = (true, true);
        }
    }

    fn record(&mut self, snapshot: Snapshot) {
        assert!(snapshot.offset >= self.on_record.offset);
        assert!(snapshot.state.len() <= STATE_BYTES_MAX);
        let done = |fate: &&Fate| fate.done;
        assert_eq!(snapshot.offset.get(), self.fates.iter().take_while(done).count() as u64);
        self.window.committed(&snapshot);
        self.on_record = snapshot;
        self.fates_on_record = self.fates.clone();
    }

    /// Another holder goes on from what is on record.
    fn hand_over(&mut self) {
        let Snapshot { offset, state, .. } = self.on_record.clone();
        let state = State::decode(offset, &state).expect("what was encoded");
        // Whoever was on trial is known to have ended its holder, as far as anybody can tell.
        let blamed: BTreeSet<_> = state.past.iter().filter(|(_, past)| past.out).map(|(&offset, _)| offset).collect();
        assert!(blamed.len() <= 1, "two are blamed: {blamed:?}");
        self.fates = self.fates_on_record.clone();
        for &offset in &blamed {
            self.fate(offset).failures = state.past[&offset].deliveries;
        }
        self.fates_on_record = self.fates.clone();
        self.next = offset.get();
        self.out.clear();
        self.window = Window::new(Self::policy(self.by_key), offset, state, 0);
        assert_eq!(self.window.is_dirty(), self.window.is_urgent());
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Take => self.take(),
            Step::HandOut => self.hand_out(),
            Step::Ack(_) | Step::Nack(_) | Step::Reject(_) => self.settle(step),
            Step::Bury => self.bury(),
            Step::Commit { reaches } => {
                let snapshot = self.window.snapshot(self.clock.now);
                if reaches {
                    self.record(snapshot);
                }
            }
            Step::Pass(ms) => self.clock.now += Duration::from_millis(ms),
            Step::Crash => self.hand_over(),
            Step::GiveUp => {
                self.expire();
                let snapshot = self.window.last_snapshot(self.clock.now);
                self.record(snapshot);
                self.hand_over();
            }
        }
    }

    /// Everything ends, with a holder that does its work.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.take();
            self.hand_out();
            self.settle(Step::Ack(0));
            self.bury();
            let snapshot = self.window.snapshot(self.clock.now);
            self.record(snapshot);
            if self.fates.iter().all(|fate| fate.done) {
                return;
            }
            self.clock.now += Duration::from_secs(1);
        }
        panic!("stuck: {:?}", self.window);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn acknowledged_is_done_and_all_else_comes_again(steps in steps(), by_key: bool) {
        let mut world = World::new(by_key);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }
}
