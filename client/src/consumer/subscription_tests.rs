//! The subscription against batches in every order a broker may send them, and its credit against the broker's.

use std::collections::VecDeque;

use busbar_proto::batch::{BatchBuilder, BatchOptions, ProducerState, stamp};
use bytes::BytesMut;
use proptest::prelude::*;

use super::*;

const PARTITION: PartitionId = PartitionId::new(3);
const WINDOW: u64 = 1000;

fn feed(number: u64) -> FeedId {
    FeedId { node: NodeId::new(1), number }
}

fn batch(base: u64, records: u32) -> (BatchHeader, Bytes) {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    for _ in 0..records {
        builder.push::<&str, &[u8]>(0, None, Some(b"value"), &[]).expect("room");
    }
    let mut bytes = BytesMut::from(&builder.build(ProducerState::NONE)[..]);
    stamp(&mut bytes, Offset::new(base), 1);
    let bytes = bytes.freeze();
    (BatchHeader::parse(&bytes).expect("a header"), bytes)
}

fn open_at(offset: u64, now: Instant) -> Subscription {
    let mut subscription = Subscription::new(PARTITION, StartAt::Offset(offset), OnLoss::Earliest, WINDOW);
    subscription.subscribe(feed(1), now);
    subscription.opened(Offset::new(offset), Offset::new(100));
    subscription
}

/// Puts one message in, and returns the first wanted offset of each accepted batch.
fn put(subscription: &mut Subscription, batches: Vec<(BatchHeader, Bytes)>) -> Result<Vec<u64>, Fault> {
    let bytes = batches.iter().map(|(_, batch)| batch.len() as u64).sum();
    let accepted = subscription.batches(bytes, Ok(batches), Offset::new(100))?;
    Ok(accepted.into_iter().map(|(_, from)| from.get()).collect())
}

#[test]
fn ids_name_partition_and_opening() {
    let mut subscription = Subscription::new(PARTITION, StartAt::Earliest, OnLoss::Earliest, WINDOW);
    let now = Instant::now();
    let first = subscription.subscribe(feed(1), now).id;
    assert!(subscription.lost(feed(1), now, 0));
    subscription.tick(now);
    let second = subscription.subscribe(feed(2), now).id;
    assert_ne!(first, second);
    assert_eq!(SubscriptionId::from_wire(second.get()).partition(), PARTITION);
    assert!(!subscription.lost(feed(1), now, 0), "the first feed is not its own any more");
}

#[test]
fn what_the_filter_passed_over_moves_the_place_and_costs_credit() {
    let now = Instant::now();
    let mut subscription = open_at(10, now);
    let end = Offset::new(100);
    assert_eq!(subscription.passed(Offset::new(30), end), Ok(Some(Offset::new(30))));
    assert_eq!(subscription.passed(Offset::new(20), end), Ok(None), "no news");
    assert_eq!(put(&mut subscription, vec![batch(25, 10)]), Ok(vec![30]), "what lies below is cut off");
    let beyond = Offset::new(101);
    assert_eq!(subscription.passed(beyond, end), Err(Fault::BeyondEnd { next: beyond, end }));
    // Every word costs: an application that does not read is not flooded.
    let words = WINDOW / limits::PASSED_CREDIT_BYTES as u64;
    let mut subscription = open_at(10, now);
    for word in 0..words {
        assert_eq!(subscription.passed(Offset::new(11 + word), end), Ok(Some(Offset::new(11 + word))));
        assert_eq!(subscription.refill(), None, "nothing was read");
    }
    assert!(subscription.consumed(words * limits::PASSED_CREDIT_BYTES as u64).is_some());
}

#[test]
fn what_is_below_is_cut_off_and_what_is_missing_is_noticed() {
    let now = Instant::now();
    let mut subscription = open_at(57, now);
    assert_eq!(put(&mut subscription, vec![batch(40, 10), batch(50, 10), batch(60, 5)]), Ok(vec![57, 60]));
    assert_eq!(subscription.next(), StartAt::Offset(65));
    assert_eq!(put(&mut subscription, vec![batch(60, 5)]), Ok(vec![]), "a repetition is nothing new");
    let gap = Fault::Gap { expected: Offset::new(65), found: Offset::new(66) };
    assert_eq!(put(&mut subscription, vec![batch(66, 1)]), Err(gap));
    assert_eq!(subscription.next(), StartAt::Offset(65), "nothing of a refused message is taken");
}

#[test]
fn a_start_that_moved_is_counted() {
    let mut subscription = Subscription::new(PARTITION, StartAt::Offset(10), OnLoss::Earliest, WINDOW);
    subscription.subscribe(feed(1), Instant::now());
    subscription.opened(Offset::new(25), Offset::new(30));
    assert_eq!((subscription.next(), subscription.skipped()), (StartAt::Offset(25), 15));
}

#[test]
fn the_latest_is_an_offset_from_the_first_opening_on() {
    let now = Instant::now();
    let mut subscription = Subscription::new(PARTITION, StartAt::Latest, OnLoss::Earliest, WINDOW);
    assert_eq!(subscription.subscribe(feed(1), now).from, StartAt::Latest);
    subscription.opened(Offset::new(70), Offset::new(70));
    subscription.lost(feed(1), now, 0);
    subscription.tick(now);
    assert_eq!(subscription.subscribe(feed(2), now).from, StartAt::Offset(70));
}

#[test]
fn a_fault_is_told_once_it_is_stubborn_and_waits_for_the_application() {
    let mut now = Instant::now();
    let mut subscription = open_at(0, now);
    let mut told = 0;
    for number in 2..2 + u64::from(STRIKES_MAX) {
        told += u32::from(subscription.faulty(Fault::NotOpen, now, 0).is_some());
        now += Duration::from_secs(5);
        subscription.tick(now);
        if subscription.is_due() {
            subscription.subscribe(feed(number), now);
        }
    }
    assert_eq!(told, 1);
    assert!(!subscription.is_due());
    subscription.resume();
    assert!(subscription.is_due());
}

#[test]
fn refusals_that_waiting_heals_are_never_told() {
    let mut now = Instant::now();
    let mut subscription = open_at(0, now);
    for number in 2..100 {
        let refusal = Refusal::new(Reason::NoLeader, "an election");
        assert_eq!(subscription.ended(refusal, now, u64::MAX), None);
        now += Duration::from_secs(1);
        subscription.tick(now);
        subscription.subscribe(feed(number), now);
    }
    let refusal = Refusal::new(Reason::LimitReached, "too many subscriptions");
    assert_eq!(subscription.ended(refusal.clone(), now, 0), Some(refusal));
}

#[test]
fn a_new_leader_cuts_a_pause_short() {
    let now = Instant::now();
    let route = |leader| Route { leader: NodeId::new(leader), epoch: leader, hinted: false };
    let mut subscription = open_at(0, now);
    assert_eq!(subscription.follow(route(1)), Some(feed(1)), "the first news moves it");
    subscription.subscribe(feed(2), now);
    assert_eq!(subscription.follow(route(1)), None, "no news");
    subscription.lost(feed(2), now, u64::MAX);
    assert!(!subscription.is_due());
    assert_eq!(subscription.follow(route(2)), None);
    assert!(subscription.is_due());
}

proptest! {
    /// The broker sends while it has credit and may overdraw by one message; the application reads as it likes.
    /// Both sides count alike, memory stays bounded, and neither ever waits for the other for ever.
    #[test]
    fn credit_is_bounded_and_never_stalls(turns in prop::collection::vec((any::<bool>(), 1_u32..60), 1..300)) {
        let now = Instant::now();
        let mut subscription = Subscription::new(PARTITION, StartAt::Offset(0), OnLoss::Earliest, WINDOW);
        let mut credit = subscription.subscribe(feed(1), now).credit as i64;
        subscription.opened(Offset::ZERO, Offset::ZERO);
        let (mut end, mut unread, mut largest) = (0, VecDeque::new(), 0);
        for (send, records) in turns {
            if send && credit > 0 {
                let message = batch(end, records);
                let bytes = message.1.len() as u64;
                largest = largest.max(bytes);
                end = message.0.next_offset().get();
                credit -= bytes as i64;
                prop_assert!(put(&mut subscription, vec![message]).is_ok());
                unread.push_back(bytes);
                credit += subscription.refill().unwrap_or(0) as i64;
            } else if let Some(bytes) = unread.pop_front() {
                credit += subscription.consumed(bytes).unwrap_or(0) as i64;
            }
            prop_assert_eq!(credit, subscription.granted);
            prop_assert!(unread.iter().sum::<u64>() <= WINDOW + largest);
            prop_assert!(!unread.is_empty() || credit > 0, "all is read and the broker may not send");
        }
    }
}
