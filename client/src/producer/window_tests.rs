//! The window's rules one by one.

use super::*;

#[path = "window_model_tests.rs"]
mod model;

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
fn a_gap_that_was_seen_before_the_last_copy_could_be_stored_proves_nothing() {
    let now = Instant::now();
    let mut window = Window::new(5, POLICY);
    window.identify(identity(1));
    for (number, timeout) in [(0, 1), (1, 9)] {
        let deadline = now + Duration::from_secs(timeout);
        window.admit(1, until(deadline), |producer| Batch { number, producer, left: Default::default() });
        window.send(LinkId(1), now).expect("something to send").batch.left.set(true);
    }
    let second = window.flights().nth(1).expect("the second").attempt_id();
    let later = now + Duration::from_secs(2);
    assert_eq!(window.expired(later).len(), 1);
    // Sent, and perhaps answered, before the first one's copy was stored after all.
    window.refused(second, Verdict::Gap, later, 0);
    assert!(!window.needs_identity());
    window.tick(later);
    let again = window.send(LinkId(1), later).expect("the second again").attempt_id();
    window.refused(again, Verdict::Gap, later, 0);
    assert!(window.needs_identity(), "asked after the deadline, it does");
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
