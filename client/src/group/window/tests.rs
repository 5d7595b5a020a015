//! The window, one rule at a time.

use super::*;

const LEASE: Duration = Duration::from_secs(30);

pub(super) fn policy() -> Policy {
    let backoff = BackoffPolicy { base: Duration::from_millis(100), cap: Duration::from_secs(1) };
    Policy {
        lease: LEASE,
        backoff,
        deliveries_max: 3,
        records_max: 100,
        bytes_max: 1 << 20,
        by_key: false,
        ids_max: 0,
        expired: Expired::Drop,
    }
}

/// A window, and the time.
pub(super) struct Desk {
    pub(super) window: Window<u64>,
    pub(super) clock: Clock,
}

impl Desk {
    pub(super) fn new(policy: Policy, from: u64, state: State) -> Self {
        let clock = Clock { now: Instant::now(), unix_ms: 1000, shared_ms: 1000, random: 0 };
        Self { window: Window::new(policy, Offset::new(from), state, 0), clock }
    }

    pub(super) fn fresh(policy: Policy) -> Self {
        let mut desk = Self::new(policy, 0, State::fresh(Offset::ZERO));
        desk.commit();
        desk
    }

    pub(super) fn take(&mut self, offsets: std::ops::Range<u64>) {
        for offset in offsets {
            self.take_of_key(offset, None);
        }
    }

    pub(super) fn take_of_key(&mut self, offset: u64, key: Option<u64>) -> bool {
        self.take_at(offset, key, Times::default())
    }

    pub(super) fn take_at(&mut self, offset: u64, key: Option<u64>, times: Times) -> bool {
        let (bytes, timestamp_ms) = (10, offset as i64);
        let taken = Taken { offset: Offset::new(offset), timestamp_ms, bytes, key, id: None, times, record: offset };
        self.window.take(taken, &self.clock)
    }

    pub(super) fn take_with_id(&mut self, offset: u64, id: u64) -> bool {
        let (bytes, timestamp_ms, times) = (10, offset as i64, Times::default());
        let (id, key) = (Some(id), None);
        let taken = Taken { offset: Offset::new(offset), timestamp_ms, bytes, key, id, times, record: offset };
        self.window.take(taken, &self.clock)
    }

    pub(super) fn hand_out(&mut self) -> Option<(u64, u32)> {
        let clock = self.clock;
        self.window.tick(&clock);
        self.window.hand_out(&clock, true).map(|handout| (handout.offset.get(), handout.delivery))
    }

    pub(super) fn ack(&mut self, offset: u64, delivery: u32) -> Result<(), Stale> {
        self.window.ack(Offset::new(offset), delivery)
    }

    pub(super) fn nack(&mut self, offset: u64, delivery: u32) -> Result<Verdict, Stale> {
        let clock = self.clock;
        self.window.nack(Offset::new(offset), delivery, None, "why".into(), &clock)
    }

    pub(super) fn commit(&mut self) -> Snapshot {
        let snapshot = self.window.snapshot(self.clock.now);
        self.window.committed(&snapshot);
        snapshot
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.clock.now += time;
        self.clock.unix_ms += time.as_millis() as i64;
        self.clock.shared_ms += time.as_millis() as i64;
    }

    /// Whoever gets the partition after this, with what is on record.
    pub(super) fn heir(&self, snapshot: &Snapshot) -> Self {
        self.heir_with(snapshot, policy())
    }

    pub(super) fn heir_with(&self, snapshot: &Snapshot, policy: Policy) -> Self {
        let state = State::decode(snapshot.offset, &snapshot.state).expect("what was encoded");
        let window = Window::new(policy, snapshot.offset, state, snapshot.record_time_ms);
        Self { window, clock: self.clock }
    }
}

#[test]
fn records_are_handed_out_in_order_and_the_prefix_follows_what_is_done() {
    let mut desk = Desk::fresh(policy());
    desk.take(0..5);
    let handed: Vec<_> = std::iter::from_fn(|| desk.hand_out()).collect();
    assert_eq!(handed, [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]);
    for (offset, prefix) in [(1, 0), (3, 0), (0, 2), (4, 2), (2, 5)] {
        assert_eq!(desk.ack(offset, 1), Ok(()));
        assert_eq!(desk.window.prefix(), Offset::new(prefix), "after {offset}");
    }
    assert_eq!(desk.ack(2, 1), Err(Stale), "it is done");
    let snapshot = desk.commit();
    assert_eq!((snapshot.offset, snapshot.record_time_ms), (Offset::new(5), 4));
    assert!(!desk.window.is_dirty());
}

#[test]
fn what_failed_comes_again_after_a_pause_once_that_is_on_record_and_is_doomed_in_the_end() {
    let mut desk = Desk::fresh(policy());
    desk.take(0..2);
    assert_eq!((desk.hand_out(), desk.hand_out()), (Some((0, 1)), Some((1, 1))));
    let until = desk.clock.now + Duration::from_millis(50);
    assert_eq!(desk.nack(0, 1), Ok(Verdict::Again { until }), "half of the ceiling, and chance adds nothing");
    assert_eq!(desk.nack(0, 1), Err(Stale), "that delivery is over");
    desk.commit();
    assert_eq!((desk.hand_out(), desk.window.wake_at(&desk.clock)), (None, Some(until)));
    desk.pass(Duration::from_millis(50));
    assert_eq!(desk.hand_out(), Some((0, 2)));
    assert!(desk.nack(0, 2).is_ok());
    desk.pass(Duration::from_secs(1));
    assert_eq!(desk.hand_out(), None, "its failure is not on record");
    desk.commit();
    assert_eq!(desk.hand_out(), Some((0, 3)));
    assert_eq!(desk.nack(0, 3), Ok(Verdict::Doomed));
    assert_eq!(desk.window.take_doomed(9), [Offset::ZERO]);
    let burial = desk.window.burial(Offset::ZERO).expect("it is doomed");
    assert_eq!((burial.deliveries, &*burial.reason, burial.first_ms, burial.last_ms), (3, "why", 1000, 2050));
    assert_eq!(desk.window.prefix(), Offset::ZERO, "not before the dead letter is stored");
    desk.window.buried(Offset::ZERO, &desk.clock);
    assert_eq!(desk.window.prefix(), Offset::new(1));
}

#[test]
fn a_lease_runs_out_unless_extended_and_a_late_ack_counts_until_the_next_delivery() {
    let mut desk = Desk::fresh(policy());
    desk.take(0..3);
    (0..3).for_each(|offset| assert_eq!(desk.hand_out(), Some((offset, 1))));
    let now = desk.clock.now;
    assert_eq!(desk.window.extend(Offset::new(2), 1, LEASE * 2, now), Ok(()));
    desk.pass(LEASE);
    assert_eq!(desk.hand_out(), None);
    assert_eq!(desk.ack(0, 1), Ok(()), "late, and nobody else has it");
    desk.commit();
    desk.pass(Duration::from_secs(1));
    assert_eq!(desk.hand_out(), Some((1, 2)));
    assert_eq!(desk.ack(1, 1), Err(Stale));
    assert_eq!(desk.window.extend(Offset::new(1), 1, LEASE, desk.clock.now), Err(Stale));
    assert_eq!((desk.ack(1, 2), desk.ack(2, 1)), (Ok(()), Ok(())));
    assert_eq!(desk.window.prefix(), Offset::new(3));
}

#[test]
fn nothing_is_handed_out_beyond_the_mark_that_is_on_record() {
    let mut desk = Desk::new(Policy { records_max: 10_000, ..policy() }, 0, State::fresh(Offset::ZERO));
    desk.take(0..300);
    assert!(desk.hand_out().is_none() && desk.window.is_urgent());
    desk.commit();
    let first = std::iter::from_fn(|| desk.hand_out()).count() as u64;
    assert_eq!(first, LEAD_MIN);
    assert!(desk.window.is_urgent());
    desk.commit();
    assert_eq!(std::iter::from_fn(|| desk.hand_out()).count() as u64, 300 - first, "the lead has adapted to the rate");
}

#[test]
fn a_gap_far_beyond_the_mark_does_not_stop_it() {
    let mut desk = Desk::fresh(policy());
    desk.take(100_000..100_001);
    assert!(desk.hand_out().is_none() && desk.window.is_urgent());
    assert_eq!(desk.commit().offset, Offset::new(100_000), "there is nothing there");
    assert_eq!(desk.hand_out(), Some((100_000, 1)));
}

#[test]
fn after_a_crash_suspects_are_tried_one_by_one_each_on_record_first() {
    let mut desk = Desk::fresh(policy());
    desk.take(0..4);
    (0..4).for_each(|offset| assert_eq!(desk.hand_out(), Some((offset, 1))));
    assert_eq!(desk.ack(1, 1), Ok(()));
    let snapshot = desk.commit();

    let mut heir = desk.heir(&snapshot);
    heir.take(0..4);
    heir.take(70..71);
    assert_eq!(heir.hand_out(), None, "not on record yet");
    assert!(heir.window.is_urgent());
    let snapshot = heir.commit();
    assert_eq!((heir.hand_out(), heir.hand_out()), (Some((0, 1)), None), "one at a time");

    // It ends this consumer too. Nobody else is blamed.
    let mut next = heir.heir(&snapshot);
    next.take(0..4);
    next.hand_out();
    next.commit();
    assert_eq!(next.hand_out(), Some((0, 2)));
    assert!(next.nack(0, 2).is_ok());
    next.hand_out();
    next.commit();
    assert_eq!(next.hand_out(), Some((2, 1)));
    assert_eq!(next.ack(2, 1), Ok(()));
    next.pass(Duration::from_secs(1));
    assert_eq!(next.hand_out(), Some((0, 3)), "it failed without a crash: no trial any more");
    let snapshot = next.commit();

    // The third delivery was not on trial: nobody can tell whether it was this record, so it is tried once more.
    let mut last = next.heir(&snapshot);
    last.take(0..4);
    last.hand_out();
    let snapshot = last.commit();
    assert_eq!(last.hand_out(), Some((0, 3)));
    let mut end = last.heir(&snapshot);
    end.take(0..4);
    assert_eq!(end.window.take_doomed(9), [Offset::ZERO], "three deliveries, the last one without an end");
    let burial = end.window.burial(Offset::ZERO).expect("it is doomed");
    assert!(burial.deliveries == 3 && burial.reason.contains("vanished") && burial.first_ms == 1000);
}

#[test]
fn a_partition_given_up_in_order_leaves_no_suspects_and_keeps_attempts_and_pauses() {
    let mut desk = Desk::fresh(policy());
    desk.take(0..4);
    (0..3).for_each(|offset| assert_eq!(desk.hand_out(), Some((offset, 1))));
    assert_eq!((desk.ack(0, 1), desk.ack(2, 1)), (Ok(()), Ok(())));
    assert!(desk.nack(1, 1).is_ok());
    assert_eq!(desk.window.unsettled(), 0);
    let snapshot = desk.window.last_snapshot(desk.clock.now);

    let mut heir = desk.heir(&snapshot);
    heir.take(0..4);
    heir.commit();
    assert_eq!((heir.hand_out(), heir.hand_out()), (Some((3, 1)), None));
    heir.pass(Duration::from_millis(50));
    assert_eq!(heir.hand_out(), Some((1, 2)));
}

#[test]
fn one_key_waits_and_the_others_go_on() {
    let mut desk = Desk::fresh(Policy { by_key: true, ..policy() });
    for (offset, key) in [(0, 7), (1, 7), (2, 8), (3, 7), (4, 9)] {
        desk.take_of_key(offset, Some(key));
    }
    desk.take_of_key(5, None);
    let handed: Vec<_> = std::iter::from_fn(|| desk.hand_out()).map(|(offset, _)| offset).collect();
    assert_eq!(handed, [0, 2, 4, 5]);
    assert!(desk.nack(0, 1).is_ok());
    assert_eq!(desk.ack(2, 1), Ok(()));
    desk.commit();
    assert_eq!(desk.hand_out(), None, "the key is parked with its record");
    desk.pass(Duration::from_secs(1));
    assert_eq!(desk.hand_out(), Some((0, 2)));
    assert_eq!(desk.ack(0, 2), Ok(()));
    assert_eq!((desk.hand_out(), desk.hand_out()), (Some((1, 1)), None));
    let clock = desk.clock;
    assert_eq!(desk.window.reject(Offset::new(1), 1, "no".into(), &clock), Ok(()));
    assert_eq!(desk.hand_out(), None);
    desk.window.buried(Offset::new(1), &desk.clock);
    assert_eq!(desk.hand_out(), Some((3, 1)));
}

#[test]
fn it_is_bounded_in_records_bytes_and_state() {
    let mut desk = Desk::fresh(Policy { records_max: 3, ..policy() });
    desk.take(0..3);
    assert!(!desk.window.has_room());
    desk.hand_out();
    assert_eq!(desk.ack(0, 1), Ok(()));
    assert!(desk.window.has_room());
    let mut desk = Desk::fresh(Policy { bytes_max: 15, ..policy() });
    desk.take(0..2);
    assert!(!desk.window.has_room());
    // Every other record fails: as many ranges and pasts as there can be.
    let mut desk = Desk::fresh(Policy { records_max: usize::MAX, deliveries_max: u32::MAX, ..policy() });
    let mut offset = 0;
    while desk.window.has_room() {
        desk.take(offset..offset + 2);
        desk.commit();
        assert_eq!((desk.hand_out(), desk.hand_out()), (Some((offset, 1)), Some((offset + 1, 1))));
        assert!(desk.ack(offset, 1).is_ok());
        let clock = desk.clock;
        assert!(desk.window.nack(Offset::new(offset + 1), 1, Some(WAIT_MAX), "".into(), &clock).is_ok());
        offset += 2;
    }
    assert!(offset > 2000, "only {offset} records fit");
    assert!(desk.commit().state.len() <= STATE_BYTES_MAX);
}

#[test]
fn an_heir_whose_state_is_full_goes_on() {
    let mut desk = Desk::fresh(Policy { records_max: usize::MAX, ..policy() });
    let mut offset = 0;
    while desk.window.has_room() {
        desk.take(offset..offset + 2);
        desk.commit();
        desk.hand_out();
        desk.hand_out();
        assert!(desk.ack(offset + 1, 1).is_ok());
        offset += 2;
    }
    let snapshot = desk.commit();
    let mut heir = desk.heir(&snapshot);
    let mut done = 0;
    for offset in 0..offset {
        assert!(heir.window.has_room(), "stuck at {offset}");
        heir.take(offset..offset + 1);
        heir.hand_out();
        heir.commit();
        if let Some((offset, delivery)) = heir.hand_out() {
            assert!(heir.ack(offset, delivery).is_ok());
            done += 1;
        }
    }
    assert_eq!((heir.window.prefix(), done), (Offset::new(offset), offset / 2));
}
