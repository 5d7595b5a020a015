//! Delays, expiry and copies, one rule at a time.

use super::{tests::*, *};

fn times(due_ms: Option<i64>, expires_ms: Option<i64>) -> Times {
    Times { due_ms, expires_ms }
}

#[test]
fn a_delayed_record_holds_up_no_other_and_comes_when_it_is_due() {
    let mut desk = Desk::fresh(policy());
    desk.take_at(0, None, times(Some(1500), None));
    desk.take(1..3);
    assert_eq!([desk.hand_out(), desk.hand_out(), desk.hand_out()], [Some((1, 1)), Some((2, 1)), None]);
    let due_at = desk.clock.now + Duration::from_millis(500);
    assert_eq!((desk.ack(1, 1), desk.ack(2, 1)), (Ok(()), Ok(())));
    assert_eq!(desk.window.wake_at(&desk.clock), Some(due_at));
    desk.pass(Duration::from_millis(499));
    assert_eq!(desk.hand_out(), None);
    desk.pass(Duration::from_millis(1));
    assert_eq!(desk.hand_out(), Some((0, 1)));
}

#[test]
fn a_clock_that_is_put_right_moves_what_is_due() {
    let mut desk = Desk::fresh(policy());
    desk.take_at(0, None, times(Some(3_600_000), None));
    assert_eq!(desk.hand_out(), None);
    desk.clock.shared_ms = 3_600_000;
    assert_eq!(desk.hand_out(), Some((0, 1)));
}

#[test]
fn a_delayed_record_takes_its_place_among_its_key_when_it_is_due() {
    let mut desk = Desk::fresh(Policy { by_key: true, ..policy() });
    desk.take_at(0, Some(7), times(Some(1500), None));
    for offset in 1..3 {
        desk.take_at(offset, Some(7), Times::default());
    }
    assert_eq!((desk.hand_out(), desk.hand_out()), (Some((1, 1)), None));
    desk.pass(Duration::from_millis(500));
    assert_eq!((desk.hand_out(), desk.ack(1, 1)), (None, Ok(())));
    assert_eq!((desk.hand_out(), desk.ack(2, 1)), (Some((2, 1)), Ok(())), "it was there before");
    assert_eq!(desk.hand_out(), Some((0, 1)));
}

#[test]
fn an_expired_record_is_done_wherever_it_waits() {
    let mut desk = Desk::fresh(policy());
    desk.take_at(0, None, times(None, Some(1000)));
    desk.take_at(1, None, times(Some(5000), Some(5000)));
    assert_eq!(desk.window.prefix(), Offset::new(2), "on arrival, also where it will be when it is due");
    desk.take_at(2, None, times(None, Some(1100)));
    desk.take_at(3, None, times(None, Some(1200)));
    assert_eq!(desk.hand_out(), Some((2, 1)));
    assert!(desk.nack(2, 1).is_ok());
    desk.commit();
    desk.pass(Duration::from_millis(300));
    assert_eq!(desk.hand_out(), None, "in its pause, and before its turn");
    assert_eq!(desk.window.prefix(), Offset::new(4));
    assert_eq!(desk.window.take_spared(), Spared { duplicates: 0, expired: 4 });
    desk.take_at(4, None, times(None, Some(1400)));
    assert_eq!(desk.hand_out(), Some((4, 1)));
    desk.pass(Duration::from_secs(1));
    assert_eq!(desk.ack(4, 1), Ok(()), "delivered in time");
}

#[test]
fn an_expired_record_is_buried_with_the_reason() {
    let mut desk = Desk::fresh(Policy { expired: Expired::DeadLetter, ..policy() });
    desk.take_at(0, None, times(None, Some(1100)));
    assert_eq!(desk.hand_out(), Some((0, 1)));
    assert!(desk.nack(0, 1).is_ok());
    desk.commit();
    desk.pass(Duration::from_millis(200));
    assert_eq!((desk.hand_out(), desk.window.take_doomed(9)), (None, vec![Offset::ZERO]));
    let burial = desk.window.burial(Offset::ZERO).expect("it is doomed");
    assert_eq!((burial.deliveries, &*burial.reason), (1, "it has expired; its last delivery failed: why"));
    desk.window.buried(Offset::ZERO, &desk.clock);
    assert_eq!(desk.window.prefix(), Offset::new(1));
}

#[test]
fn after_a_crash_only_what_can_have_been_handed_out_is_suspect() {
    let mut desk = Desk::fresh(policy());
    desk.take_at(0, None, times(Some(10_000_000), None));
    desk.take_at(1, None, times(Some(1001), None));
    desk.take(2..3);
    let snapshot = desk.commit();
    let mut heir = desk.heir(&snapshot);
    heir.take_at(0, None, times(Some(10_000_000), None));
    heir.take_at(1, None, times(Some(1001), None));
    heir.take(2..3);
    assert_eq!(heir.hand_out(), None, "2 is suspect");
    heir.commit();
    assert_eq!((heir.hand_out(), heir.ack(2, 1)), (Some((2, 1)), Ok(())));
    heir.pass(Duration::from_millis(1));
    assert_eq!(heir.hand_out(), None, "the clock of its former holder may have been a little ahead");
    heir.commit();
    assert_eq!((heir.hand_out(), heir.ack(1, 1)), (Some((1, 1)), Ok(())));
    heir.pass(Duration::from_secs(10_000));
    heir.commit();
    assert_eq!(heir.hand_out(), Some((0, 1)), "without a trial");
    assert!(!heir.window.has_trial());
}

#[test]
fn a_copy_waits_for_the_first_and_follows_what_becomes_of_it() {
    let mut desk = Desk::fresh(Policy { ids_max: 10, ..policy() });
    for (offset, id) in [(0, 7), (1, 7), (2, 8), (3, 8), (4, 7)] {
        desk.take_with_id(offset, id);
    }
    assert_eq!([desk.hand_out(), desk.hand_out(), desk.hand_out()], [Some((0, 1)), Some((2, 1)), None]);
    assert_eq!(desk.ack(0, 1), Ok(()));
    assert_eq!(desk.window.take_spared().duplicates, 2);
    let clock = desk.clock;
    assert_eq!(desk.window.reject(Offset::new(2), 1, "no".into(), &clock), Ok(()));
    assert_eq!(desk.hand_out(), None, "until its dead letter is stored");
    desk.window.buried(Offset::new(2), &clock);
    assert_eq!((desk.hand_out(), desk.ack(3, 1)), (Some((3, 1)), Ok(())));
    assert_eq!(desk.window.prefix(), Offset::new(5));
    let snapshot = desk.commit();
    let mut heir = desk.heir_with(&snapshot, Policy { ids_max: 10, ..policy() });
    for (offset, id) in [(5, 8), (6, 9), (7, 7)] {
        heir.take_with_id(offset, id);
    }
    assert_eq!((heir.hand_out(), heir.commit().offset), (None, Offset::new(6)));
    assert_eq!((heir.hand_out(), heir.ack(6, 1)), (Some((6, 1)), Ok(())));
    assert_eq!((heir.window.prefix(), heir.window.take_spared().duplicates), (Offset::new(8), 2));
}
