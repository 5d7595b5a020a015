//! What a group remembers of single records: duplicates are dropped, across crashes and moves; what retention took is
//! counted; a coordinator without room is asked again, and not in a hurry.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use busbar_client::{Client, DeadLetter, Dedup, GroupConsumer, Reason, Record};

use crate::{
    fake::Cluster,
    groups::{GROUP, committed, joined, member, next, place, until, work},
    soon,
};

fn event(id: u64) -> Record {
    Record::new(id.to_string()).header("ce_source", "/shop").header("ce_id", id.to_string())
}

async fn publish(client: &Client, records: impl IntoIterator<Item = Record>) {
    let producer = client.producer("t").build().await.expect("a producer");
    for record in records {
        drop(producer.send(record).await.expect("taken"));
    }
    soon("close", producer.close()).await.expect("stored");
}

/// A crash: nothing is said to the coordinator, which notices.
fn crash(cluster: &Cluster, consumer: GroupConsumer) {
    drop(consumer);
    cluster.edit_all(|state| {
        let members: Vec<_> = state.group(GROUP).members.keys().copied().collect();
        state.expel(GROUP, &members);
    });
}

/// Asks for records that do not come, until everything below `offset` is committed.
async fn done_up_to(cluster: &Cluster, consumer: &mut GroupConsumer, offset: u64) {
    soon("the duplicates", async {
        while committed(cluster, 0) != Some(offset) {
            let more = tokio::time::timeout(Duration::from_millis(20), consumer.next()).await;
            assert!(more.is_err(), "{more:?}");
        }
    })
    .await;
}

async fn nothing_comes(consumer: &mut GroupConsumer) {
    let more = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn a_duplicate_is_dropped_also_after_a_crash_and_when_the_partition_has_moved() {
    let (cluster, client) = Cluster::with_topic(1).await;
    publish(&client, (0..50).map(event)).await;
    let build = || member(&client).dedup(Dedup::by_event());
    let mut first = joined(build()).await;
    work(&mut first, 30).await;
    soon("commit", first.commit()).await.expect("committed");
    let in_hand = next(&mut first).await;
    crash(&cluster, first);
    drop(in_hand);
    publish(&client, (0..50).map(event)).await;

    let mut second = joined(build()).await;
    assert_eq!(work(&mut second, 20).await[0], (0, 30));
    done_up_to(&cluster, &mut second, 100).await;
    assert_eq!(second.stats().duplicates, 50);
    soon("close", second.close()).await.expect("committed");

    publish(&client, (0..51).map(event)).await;
    let mut third = joined(build()).await;
    assert_eq!(work(&mut third, 1).await, [(0, 150)], "the only one that is new");
    done_up_to(&cluster, &mut third, 151).await;
    let stats = third.stats();
    assert_eq!((stats.duplicates, stats.delivered), (50, 1), "{stats:?}");
}

#[tokio::test]
async fn what_was_acknowledged_and_not_committed_before_a_crash_comes_again_once() {
    let (cluster, client) = Cluster::with_topic(1).await;
    publish(&client, (0..10).chain(0..10).map(event)).await;
    let build = || member(&client).dedup(Dedup::by_event());
    let mut first = joined(build()).await;
    work(&mut first, 5).await;
    soon("commit", first.commit()).await.expect("committed");
    cluster.edit_all(|state| state.coordinator.sick = Some(Reason::NoLeader));
    work(&mut first, 3).await;
    crash(&cluster, first);
    cluster.edit_all(|state| state.coordinator.sick = None);
    let mut second = joined(build()).await;
    let places: Vec<_> = (5..10).map(|offset| (0, offset)).collect();
    assert_eq!(work(&mut second, 5).await, places);
    done_up_to(&cluster, &mut second, 20).await;
    assert_eq!(second.stats().duplicates, 10);
}

#[tokio::test]
async fn of_two_copies_at_once_the_second_waits_and_is_delivered_if_the_first_is_given_up() {
    let (cluster, client) = Cluster::with_topic(1).await;
    publish(&client, [1, 1, 2, 2, 3].map(event)).await;
    let builder = member(&client).dedup(Dedup::by_event()).dead_letter(DeadLetter::Default);
    let mut consumer = joined(builder).await;
    let (one, two, three) = (next(&mut consumer).await, next(&mut consumer).await, next(&mut consumer).await);
    assert_eq!([&one, &two, &three].map(place), [(0, 0), (0, 2), (0, 4)]);
    nothing_comes(&mut consumer).await;
    one.nack(None).expect("it is ours");
    let one = next(&mut consumer).await;
    assert_eq!((place(&one), one.attempt()), ((0, 0), 2), "parked, and its copy waits on");
    one.ack().expect("it is ours");
    two.reject("not json").expect("it is ours");
    let copy = next(&mut consumer).await;
    assert_eq!((place(&copy), consumer.stats().dead_lettered), ((0, 3), 1));
    copy.ack().expect("it is ours");
    three.ack().expect("it is ours");
    until("everything", &cluster, |cluster| committed(cluster, 0) == Some(5)).await;
    assert_eq!(consumer.stats().duplicates, 1);
}

#[tokio::test]
async fn identities_of_producers_and_of_any_header() {
    let (cluster, client) = Cluster::with_topic(1).await;
    publish(&client, (0..3).map(|id: u64| Record::new("v").header("order", id.to_string()))).await;
    cluster.edit(0, |partition| partition.log.repeat_last());
    let end = cluster.edit(0, |partition| partition.log.end());
    let copies = end - 3;
    for (group, dedup, new) in [
        ("by-producer", Dedup::by_producer(), 3),
        ("by-header", Dedup::by_header("order"), 3),
        ("by-event", Dedup::by_event(), end),
    ] {
        let builder = client.group(group).topics(["t"]).dead_letter(DeadLetter::Off).dedup(dedup);
        let mut consumer = joined(builder).await;
        work(&mut consumer, new as usize).await;
        nothing_comes(&mut consumer).await;
        assert_eq!(consumer.stats().duplicates, if new == 3 { copies } else { 0 }, "{group}");
    }
}

#[tokio::test]
async fn the_window_remembers_so_many_and_no_more() {
    let (_cluster, client) = Cluster::with_topic(1).await;
    publish(&client, [1, 2, 3, 2, 1].map(event)).await;
    let mut consumer = joined(member(&client).dedup(Dedup::by_event().ids(2)).window_records(1)).await;
    let places = work(&mut consumer, 4).await;
    assert_eq!(places, [(0, 0), (0, 1), (0, 2), (0, 4)], "of 1 nothing was known any more");
}

#[tokio::test]
async fn what_retention_took_is_counted() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.fill(0, 10, 10);
    let mut first = joined(member(&client)).await;
    work(&mut first, 20).await;
    assert_eq!(first.stats().skipped, 0);
    soon("close", first.close()).await.expect("committed");
    cluster.edit(0, |partition| partition.log.start = 50);
    let mut second = joined(member(&client)).await;
    assert_eq!(work(&mut second, 50).await[0], (0, 50));
    assert_eq!(second.stats().skipped, 30);
    soon("close", second.close()).await.expect("committed");
    assert_eq!(second.stats().skipped, 30, "also when nothing is held any more");
}

#[tokio::test]
async fn a_coordinator_without_room_is_asked_later_and_later_and_the_member_goes_on_when_there_is_room() {
    let (cluster, client) = Cluster::with_topic(2).await;
    (0..2).for_each(|partition| cluster.fill(partition, 10, 10));
    let mut consumer = joined(member(&client)).await;
    work(&mut consumer, 20).await;
    cluster.edit_all(|state| state.coordinator.full = BTreeSet::from([0]));
    let began = Instant::now();
    let done: BTreeSet<_> = work(&mut consumer, 130).await.into_iter().collect();
    assert!(done.range((1, 0)..).count() > 60, "the other partition goes on");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let refusals = cluster.edit_all(|state| state.coordinator.refusals) as u64;
    assert!((1..=1 + began.elapsed().as_secs()).contains(&refusals), "{refusals} in {:?}", began.elapsed());
    assert_eq!(consumer.stats().commits_refused, refusals);
    assert_eq!(consumer.stats().lost, 0);
    cluster.edit_all(|state| state.coordinator.full.clear());
    work(&mut consumer, 50).await;
    soon("commit", consumer.commit()).await.expect("committed");
    assert_eq!((committed(&cluster, 0), committed(&cluster, 1)), (Some(100), Some(100)));
}
