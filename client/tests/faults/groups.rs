//! Consumer groups: settling, hand-overs, crashes, coordinators that move and refuse, dead letters.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use busbar_client::{
    Client, ClientError, DeadLetter, Dedup, GroupBuilder, GroupConsumer, GroupError, Reason, Received, Record,
    SettleError, StartAt,
};

use crate::{fake::Cluster, soon};

pub(crate) const GROUP: &str = "g";

/// A member that does everything soon.
pub(crate) fn member(client: &Client) -> GroupBuilder {
    let short = Duration::from_millis(10);
    let builder = client.group(GROUP).topics(["t"]).commit_interval(short).dead_letter(DeadLetter::Off);
    builder.backoff(short, short).revoke_timeout(Duration::from_secs(2))
}

pub(crate) async fn joined(builder: GroupBuilder) -> GroupConsumer {
    soon("join", builder.build()).await.expect("a member")
}

pub(crate) async fn next(consumer: &mut GroupConsumer) -> Received {
    soon("next", consumer.next()).await.expect("no fault").expect("not closed")
}

pub(crate) fn place(record: &Received) -> (u32, u64) {
    (record.partition(), record.offset())
}

/// Takes and acknowledges so many records.
pub(crate) async fn work(consumer: &mut GroupConsumer, count: usize) -> Vec<(u32, u64)> {
    let mut places = Vec::new();
    while places.len() < count {
        let record = next(consumer).await;
        places.push(place(&record));
        record.ack().expect("it is ours");
    }
    places
}

pub(crate) fn committed(cluster: &Cluster, partition: u32) -> Option<u64> {
    cluster.edit_all(|state| Some(state.group(GROUP).committed.get(&("t".to_owned(), partition))?.offset))
}

fn members(cluster: &Cluster) -> Vec<u64> {
    cluster.edit_all(|state| state.group(GROUP).members.keys().copied().collect())
}

pub(crate) async fn until(what: &str, cluster: &Cluster, done: impl Fn(&Cluster) -> bool) {
    soon(what, async {
        while !done(cluster) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_acknowledged_is_done_and_the_next_member_gets_the_rest() {
    let (cluster, client) = Cluster::with_topic(3).await;
    (0..3).for_each(|partition| cluster.fill(partition, 10, 10));
    let mut first = joined(member(&client)).await;
    let mut done: BTreeSet<_> = work(&mut first, 130).await.into_iter().collect();
    // In the middle of it, some are not done.
    let mut kept = Vec::new();
    for _ in 0..10 {
        kept.push(next(&mut first).await);
        done.extend(work(&mut first, 2).await);
    }
    assert_eq!(done.len(), 150);
    let not_done: BTreeSet<_> = kept.iter().map(place).collect();
    kept.into_iter().for_each(|record| record.nack(Duration::from_millis(1)).expect("it is ours"));
    soon("close", first.close()).await.expect("committed");
    assert!(soon("next", first.next()).await.expect("no fault").is_none());
    assert!(members(&cluster).is_empty());

    let mut second = joined(member(&client)).await;
    let rest = work(&mut second, 150).await;
    let rest_set: BTreeSet<_> = rest.iter().copied().collect();
    assert_eq!(rest_set.len(), 150, "each of them once");
    assert!(rest_set.is_disjoint(&done) && rest_set.is_superset(&not_done));
    let stats = second.stats();
    assert_eq!((stats.delivered, stats.redelivered, stats.tried), (150, 10, 0), "{stats:?}");
    soon("commit", second.commit()).await.expect("committed");
    assert_eq!((0..3).map(|partition| committed(&cluster, partition)).collect::<Vec<_>>(), [Some(100); 3]);
    assert!(second.try_next().expect("no fault").is_none());
}

#[tokio::test]
async fn leases_and_settling() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.fill(0, 1, 4);
    let mut consumer = joined(member(&client).lease(Duration::from_millis(200))).await;
    let (late, extended) = (next(&mut consumer).await, next(&mut consumer).await);
    assert_eq!((late.attempt(), extended.attempt(), extended.value().as_ref()), (1, 1, &b"1"[..]));
    extended.extend(Duration::from_secs(60)).expect("it is ours");
    drop(next(&mut consumer).await);
    work(&mut consumer, 1).await;
    // The dropped one comes back soon, the late one when its lease is over.
    let again = next(&mut consumer).await;
    assert_eq!((place(&again), again.attempt()), ((0, 2), 2));
    again.ack().expect("it is ours");
    let again = next(&mut consumer).await;
    assert_eq!((place(&again), again.attempt()), ((0, 0), 2));
    let error = late.ack().expect_err("handed out again");
    assert!(matches!(error, SettleError::Expired { offset: 0, delivery: 1, .. }), "{error}");
    again.ack().expect("it is ours");
    extended.ack().expect("it is ours");
    soon("commit", consumer.commit()).await.expect("committed");
    assert_eq!(committed(&cluster, 0), Some(4));
    let stats = consumer.stats();
    assert_eq!((stats.acked, stats.nacked, stats.expired, stats.stale), (4, 1, 1, 1), "{stats:?}");
}

#[tokio::test]
async fn what_fails_too_often_or_is_rejected_becomes_a_dead_letter() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.fill(0, 1, 3);
    let builder = member(&client).dead_letter(DeadLetter::Default).max_deliveries(2);
    let mut consumer = joined(builder).await;
    for attempt in 1..=2 {
        let record = next(&mut consumer).await;
        assert_eq!((place(&record), record.attempt()), ((0, 0), attempt));
        record.nack_because(None, "no stock").expect("it is ours");
        if attempt == 1 {
            next(&mut consumer).await.reject("not json").expect("it is ours");
            work(&mut consumer, 1).await;
        }
    }
    until("commit", &cluster, |cluster| committed(cluster, 0) == Some(3)).await;
    let stats = consumer.stats();
    assert_eq!((stats.dead_lettered, stats.rejected, stats.dropped), (2, 1, 0), "{stats:?}");

    let mut letters = client.consumer("t.dlq").build().await.expect("it was created");
    let mut stories = BTreeMap::new();
    for _ in 0..2 {
        let letter = soon("letter", letters.next()).await.expect("no fault").expect("not closed");
        let tell = |name: &str| {
            let value = letter.header(&format!("busbar-dlq-{name}")).expect("told");
            String::from_utf8(value.to_vec()).expect("text")
        };
        assert_eq!((tell("topic"), tell("partition"), tell("group")), ("t".into(), "0".into(), GROUP.into()));
        assert_eq!(letter.value(), &tell("offset"));
        assert!(tell("first") <= tell("last"));
        stories.insert(tell("offset"), (tell("attempts"), tell("reason")));
    }
    let story = |attempts: &str, reason: &str| (attempts.to_owned(), reason.to_owned());
    assert_eq!(stories["0"], story("2", "no stock"));
    assert_eq!(stories["1"], story("1", "not json"));
}

#[tokio::test]
async fn the_topic_for_dead_letters_is_there_before_the_first_failure_or_the_consumer_is_not() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let build = |dead_letter| member(&client).dead_letter(dead_letter).build();
    let error = build(DeadLetter::Topic("none".to_owned())).await.expect_err("no such topic");
    assert_eq!(error.reason(), Some(Reason::UnknownTopic), "{error}");
    let error = build(DeadLetter::Topic("t".to_owned())).await.expect_err("its own topic");
    assert!(matches!(error, ClientError::InvalidOption { option: "dead_letter", .. }), "{error}");
    cluster.create("graves", 1);
    cluster.fill(0, 1, 1);
    let mut consumer = build(DeadLetter::Topic("graves".to_owned())).await.expect("a member");
    next(&mut consumer).await.reject("no").expect("it is ours");
    let mut letters = client.consumer("graves").build().await.expect("a consumer");
    let letter = soon("letter", letters.next()).await.expect("no fault").expect("not closed");
    assert_eq!(letter.value().as_ref(), b"0");
}

#[tokio::test]
async fn members_share_and_hand_over_without_a_record_twice() {
    let (cluster, client) = Cluster::with_topic(6).await;
    let seen = Arc::new(Mutex::new(BTreeMap::<(u32, u64), usize>::new()));
    let run = |mut consumer: GroupConsumer| {
        let seen = seen.clone();
        tokio::spawn(async move {
            let mut stop = std::pin::pin!(tokio::time::sleep(Duration::from_secs(3600)));
            loop {
                tokio::select! {
                    record = consumer.next() => {
                        let Some(record) = record.expect("no fault") else { return consumer };
                        *seen.lock().expect("sound").entry(place(&record)).or_default() += 1;
                        record.ack().expect("in time");
                    }
                    () = &mut stop => return consumer,
                }
            }
        })
    };
    let first = joined(member(&client)).await;
    let stats_of_first = run(first);
    for _ in 0..4 {
        (0..6).for_each(|partition| cluster.fill(partition, 5, 10));
        let mut second = joined(member(&client)).await;
        until("a share", &cluster, |cluster| {
            let held = cluster.edit_all(|state| state.group(GROUP).held.clone());
            let holders: BTreeSet<_> = held.values().map(|(member, _)| *member).collect();
            held.len() == 6 && holders.len() == 2
        })
        .await;
        assert_eq!(
            soon("assignment", async {
                while second.assignment().len() < 3 {
                    tokio::task::yield_now().await;
                }
                second.assignment().len()
            })
            .await,
            3
        );
        (0..6).for_each(|partition| cluster.fill(partition, 5, 10));
        let places = work(&mut second, 30).await;
        for place in places {
            *seen.lock().expect("sound").entry(place).or_default() += 1;
        }
        soon("close", second.close()).await.expect("committed");
    }
    until("everything", &cluster, |_| seen.lock().expect("sound").len() == 4 * 600).await;
    until("committed", &cluster, |cluster| (0..6).all(|partition| committed(cluster, partition) == Some(400))).await;
    assert!(seen.lock().expect("sound").values().all(|&times| times == 1), "twice");
    stats_of_first.abort();
}

/// A partition that is given to a member and meant for another before the member has heard of it would be nobody's for
/// ever: only the member can say that it does not have it.
#[tokio::test]
async fn what_a_member_never_heard_of_it_releases() {
    let (cluster, client) = Cluster::with_topic(6).await;
    let (mut first, mut second) = (joined(member(&client)).await, joined(member(&client)).await);
    until("a share", &cluster, |cluster| {
        let held = cluster.edit_all(|state| state.group(GROUP).held.clone());
        held.values().map(|(member, _)| *member).collect::<BTreeSet<_>>().len() == 2
    })
    .await;
    let (place, claim) = cluster.edit_all(|state| {
        let group = state.group(GROUP);
        let place = group.held.keys().next().cloned().expect("held");
        let claim = group.give_and_take_back(&place);
        (place, claim)
    });
    until("it is given on", &cluster, |cluster| {
        cluster.edit_all(|state| state.group(GROUP).held.get(&place).is_some_and(|(_, now)| *now > claim))
    })
    .await;
    for consumer in [&mut first, &mut second] {
        soon("close", consumer.close()).await.expect("nothing is left to commit");
    }
}

#[tokio::test]
async fn after_a_crash_a_poisoned_record_is_found_and_nobody_else_is_blamed() {
    const POISON: u64 = 7;
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.fill(0, 4, 5);
    let (mut crashes, mut handed) = (0, BTreeMap::<u64, u32>::new());
    loop {
        let builder = member(&client).dead_letter(DeadLetter::Default).max_deliveries(3);
        let mut consumer = joined(builder).await;
        let mut kept = Vec::new();
        let poisoned = loop {
            let record = next(&mut consumer).await;
            *handed.entry(record.offset()).or_default() += 1;
            if record.offset() == POISON {
                kept.push(record);
                break true;
            }
            // The first consumer acknowledges late: what it had in hand is suspect.
            match crashes {
                0 => kept.push(record),
                _ => record.ack().expect("it is ours"),
            }
            if consumer.stats().dead_lettered == 1 && handed.len() == 20 {
                break false;
            }
        };
        if !poisoned {
            soon("close", consumer.close()).await.expect("committed");
            break;
        }
        crashes += 1;
        drop(consumer);
        let revoked = kept.pop().expect("the poison").ack().expect_err("its consumer is gone");
        assert!(matches!(revoked, SettleError::Revoked { .. }), "{revoked}");
        drop(kept);
        cluster.edit_all(|state| {
            let members: Vec<_> = state.group(GROUP).members.keys().copied().collect();
            state.expel(GROUP, &members);
        });
    }
    assert_eq!(crashes, 4, "once unseen, three times on trial");
    until("commit", &cluster, |cluster| committed(cluster, 0) == Some(20)).await;
    let mut letters = client.consumer("t.dlq").build().await.expect("a consumer");
    let letter = soon("letter", letters.next()).await.expect("no fault").expect("not closed");
    assert_eq!(letter.header("busbar-dlq-offset").map(AsRef::as_ref), Some(&b"7"[..]));
    assert_eq!(letter.header("busbar-dlq-attempts").map(AsRef::as_ref), Some(&b"3"[..]));
    assert!(letters.try_next().expect("no fault").is_none(), "one dead letter only");
    assert!(handed.iter().all(|(&offset, &times)| offset == POISON || times <= 2), "{handed:?}");
}

#[tokio::test]
async fn a_coordinator_that_moves_fails_and_disconnects_costs_no_record() {
    let (mut cluster, client) = Cluster::with_topic(2).await;
    let mut consumer = joined(member(&client)).await;
    let mut seen = BTreeSet::new();
    let mut count = 0;
    for round in 0..8 {
        (0..2).for_each(|partition| cluster.fill(partition, 4, 25));
        match round % 4 {
            0 => cluster.edit_all(|state| state.coordinator.node = 2),
            1 => cluster.edit_all(|state| state.coordinator.sick = Some(Reason::NoLeader)),
            2 => cluster.edit_all(|state| {
                state.coordinator.sick = None;
                state.coordinator.node = 1;
            }),
            _ => {
                cluster.kill(1).await;
                (0..2).for_each(|partition| cluster.lead(partition, 2));
                cluster.edit_all(|state| state.coordinator.node = 2);
            }
        }
        count += 150;
        // Without commits it goes on for as far as the mark on record reaches.
        seen.extend(work(&mut consumer, 30).await);
        cluster.edit_all(|state| state.coordinator.sick = None);
        seen.extend(work(&mut consumer, 120).await);
        assert_eq!(seen.len(), count, "one came twice in round {round}");
        if round % 4 == 3 {
            cluster.restart(1).await;
        }
    }
    seen.extend(work(&mut consumer, 400).await);
    assert_eq!(seen.len(), 1600);
    soon("commit", consumer.commit()).await.expect("committed");
    assert_eq!((committed(&cluster, 0), committed(&cluster, 1)), (Some(800), Some(800)));
    assert_eq!(consumer.stats().lost, 0);
}

#[tokio::test]
async fn a_member_that_expired_joins_anew_and_what_it_held_does_not_count() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.fill(0, 1, 10);
    let mut consumer = joined(member(&client)).await;
    work(&mut consumer, 3).await;
    soon("commit", consumer.commit()).await.expect("committed");
    let held = next(&mut consumer).await;
    cluster.edit_all(|state| {
        let members: Vec<_> = state.group(GROUP).members.keys().copied().collect();
        state.expel(GROUP, &members);
    });
    until("loss", &cluster, |_| consumer.stats().lost == 1).await;
    let again = next(&mut consumer).await;
    assert_eq!((place(&held), place(&again)), ((0, 3), (0, 3)), "not acknowledged: delivered again");
    let error = held.ack().expect_err("lost");
    assert!(matches!(error, SettleError::Revoked { offset: 3, .. }), "{error}");
    soon("commit", consumer.commit()).await.expect("committed");
    assert_eq!(committed(&cluster, 0), Some(3), "a word on what was lost commits nothing");
    again.ack().expect("it is ours");
    assert_eq!(work(&mut consumer, 6).await.len(), 6);
    let stats = consumer.stats();
    assert_eq!((stats.joins, stats.lost, stats.stale), (2, 1, 1), "{stats:?}");
}

#[tokio::test]
async fn of_two_under_one_name_the_later_one_stays() {
    let (cluster, client) = Cluster::with_topic(2).await;
    cluster.fill(0, 1, 5);
    let mut older = joined(member(&client).member_name("worker-1")).await;
    let held = next(&mut older).await;
    let mut younger = joined(member(&client).member_name("worker-1")).await;
    let error = soon("fence", async {
        loop {
            match older.next().await {
                Ok(record) => drop(record),
                Err(error) => break error,
            }
        }
    })
    .await;
    assert!(matches!(error, GroupError::Fenced { .. }) && error.to_string().contains("worker-1"), "{error}");
    assert!(held.ack().is_err());
    assert_eq!(members(&cluster).len(), 1);
    work(&mut younger, 5).await;
    assert!(older.close().await.is_err());
    soon("close", younger.close()).await.expect("committed");
}

#[tokio::test]
async fn options_and_refusals() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let wrong: [GroupBuilder; 8] = [
        client.group("a b").topics(["t"]),
        client.group(GROUP),
        member(&client).member_name("x/y"),
        member(&client).lease(Duration::ZERO),
        member(&client).window_records(0),
        member(&client).commit_interval(Duration::ZERO),
        member(&client).dedup(Dedup::by_event().ids(0)),
        member(&client).dedup(Dedup::by_event().ids(4097)),
    ];
    for builder in wrong {
        let error = builder.build().await.expect_err("refused");
        assert!(matches!(error, ClientError::InvalidOption { .. }), "{error}");
    }
    let error = client.group(GROUP).topics(["none"]).build().await.expect_err("no such topic");
    assert_eq!(error.reason(), Some(Reason::UnknownTopic));
    cluster.edit_all(|state| state.coordinator.closed = Some(Reason::LimitReached));
    let error = soon("join", member(&client).build()).await.expect_err("refused");
    assert_eq!(error.reason(), Some(Reason::LimitReached), "{error}");
    let patient = Client::builder().servers(cluster.servers()).request_timeout(Duration::from_millis(500));
    let client = patient.build().await.expect("a client");
    cluster.edit_all(|state| state.coordinator.closed = Some(Reason::NoLeader));
    let error = soon("join", member(&client).build()).await.expect_err("nobody lets it in");
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn the_latest_is_where_the_group_began() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.fill(0, 1, 50);
    let builder = || member(&client).from(StartAt::Latest);
    let mut first = joined(builder()).await;
    until("begun", &cluster, |cluster| committed(cluster, 0) == Some(50)).await;
    soon("close", first.close()).await.expect("committed");
    cluster.fill(0, 1, 5);
    let mut second = joined(builder()).await;
    assert_eq!(work(&mut second, 5).await[0], (0, 50));
}

#[tokio::test]
async fn who_never_acknowledges_gets_no_more_than_its_window_and_its_credit() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.fill(0, 5000, 10);
    let mut consumer = joined(member(&client).window_records(25).credit_bytes(1 << 10)).await;
    let mut kept = Vec::new();
    for _ in 0..25 {
        kept.push(next(&mut consumer).await);
    }
    let more = tokio::time::timeout(Duration::from_millis(200), consumer.next()).await;
    assert!(more.is_err(), "the window is full");
    let sent = cluster.edit(0, |partition| partition.sent_bytes);
    assert!(sent <= 3 << 20, "{sent} bytes came for a credit of a batch's largest size");
    kept.into_iter().for_each(|record| record.ack().expect("it is ours"));
    work(&mut consumer, 49_975).await;
}

#[tokio::test]
async fn keys_keep_their_order_side_by_side_and_a_poisoned_one_parks_alone() {
    const KEYS: u64 = 8;
    let (cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").build().await.expect("a producer");
    for number in 0..400_u64 {
        let record = Record::new(number.to_string()).key((number % KEYS).to_string());
        drop(producer.send(record).await.expect("taken"));
    }
    producer.flush().await.expect("stored");
    let mut consumer = joined(member(&client).max_deliveries(2)).await;
    let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = Mutex::new(BTreeMap::<u64, Vec<u64>>::new());
    let handle = async |record: Received| {
        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let number: u64 = String::from_utf8_lossy(record.value()).parse().expect("a number");
        tokio::time::sleep(Duration::from_micros(200 * (number % 3))).await;
        running.fetch_sub(1, Ordering::SeqCst);
        // Key 3 fails whenever it is its first delivery, and number 11 always.
        if number == 11 || (number % KEYS == 3 && record.attempt() == 1) {
            return record.nack(None).expect("it is ours");
        }
        done.lock().expect("sound").entry(number % KEYS).or_default().push(number);
        record.ack().expect("it is ours");
    };
    let all = || done.lock().expect("sound").values().map(Vec::len).sum::<usize>() == 399;
    tokio::select! {
        ended = consumer.for_each_concurrent(16, handle) => panic!("it ended: {ended:?}"),
        () = until("all", &cluster, |_| all()) => {}
    }
    for (key, numbers) in done.lock().expect("sound").iter() {
        let want: Vec<_> = (0..400).filter(|number| number % KEYS == *key && *number != 11).collect();
        assert_eq!(*numbers, want, "key {key}");
    }
    assert!(most.load(Ordering::SeqCst) > 3, "side by side");
    assert_eq!(consumer.stats().dropped, 1);
}
