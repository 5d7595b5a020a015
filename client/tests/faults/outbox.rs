//! The outbox: relays that crash at every point, stores and brokers that fail. Whatever happens, each row is stored once,
//! in order, and nothing is marked done that is not stored.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use busbar_client::{
    Client, MemoryOutbox, OutboxRow, OutboxStore, Record, Relay, RelayError, RelayStats,
    env::{Entropy, SeededEntropy},
};

use crate::{
    fake::{Cluster, PublishFault, numbers},
    soon,
};

const NAME: &str = "shop";

/// Keys are few, so that both partitions get rows that depend on one another.
fn push(outbox: &MemoryOutbox, number: usize) {
    let record = Record::new(number.to_string()).key(format!("customer-{}", number % 7));
    outbox.push("t", record).expect("room");
}

fn relay<S: OutboxStore>(client: &Client, store: S) -> Relay<S> {
    let builder = client.outbox_relay(NAME, store).rows(16).store_timeout(Duration::ZERO);
    builder.poll_interval(Duration::from_millis(5)).build().expect("options")
}

/// Lets the future go on for so many steps, or until it waits for a broker that never answers, and drops it where it is.
async fn crash_after<T>(steps: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = steps;
    let stepping = poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    });
    tokio::time::timeout(Duration::from_millis(300), stepping).await.ok().flatten()
}

/// A relay that works until the outbox is empty, and is stopped in order.
async fn finish<S: OutboxStore>(client: &Client, store: S, outbox: &MemoryOutbox) -> RelayStats {
    let mut relay = relay(client, store);
    let handle = relay.handle();
    let emptied = async {
        while !outbox.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        handle.stop();
    };
    let (ended, ()) = soon("the outbox is empty", async { tokio::join!(relay.run(), emptied) }).await;
    ended.expect("the relay was stopped");
    handle.stats()
}

/// Each row once, those of a partition in order.
fn assert_exact(cluster: &Cluster, rows: usize) {
    let mut all = Vec::new();
    for partition in [0, 1] {
        let values = cluster.values(partition);
        let stored: Vec<usize> = values.iter().map(|value| value.parse().expect("a number")).collect();
        assert!(stored.is_sorted(), "partition {partition}: {stored:?}");
        all.extend(stored);
    }
    all.sort_unstable();
    assert_eq!(all, (0..rows).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_relay_that_crashes_at_every_step_stores_each_row_once() {
    let (cluster, client) = Cluster::with_topic(2).await;
    let outbox = MemoryOutbox::new();
    let mut rows = 0;
    for steps in 1..64 {
        for _ in 0..5 {
            push(&outbox, rows);
            rows += 1;
        }
        let mut relay = relay(&client, outbox.clone());
        let crashed = soon("the crash", crash_after(steps, relay.run())).await;
        assert!(crashed.is_none(), "it does not end by itself: {crashed:?}");
    }
    finish(&client, outbox.clone(), &outbox).await;
    assert_exact(&cluster, rows);
}

#[tokio::test]
async fn whatever_relay_store_and_brokers_do_each_row_is_stored_once() {
    for seed in 0..4 {
        let random = SeededEntropy::new(seed);
        let (cluster, client) = Cluster::with_topic(2).await;
        let outbox = MemoryOutbox::new();
        let mut rows = 0;
        for _ in 0..25 {
            for _ in 0..random.next_u64() % 40 {
                push(&outbox, rows);
                rows += 1;
            }
            let stored = random.next_u64().is_multiple_of(2);
            let fault = match random.next_u64() % 6 {
                0 => PublishFault::Drop { stored },
                1 => PublishFault::Unknown { stored },
                2 => PublishFault::Hang { stored },
                3 => PublishFault::NotLeader,
                4 => PublishFault::Slow(Duration::from_millis(3)),
                _ => PublishFault::None,
            };
            let partition = (random.next_u64() % 2) as u32;
            cluster.edit(partition, |partition| partition.publish_faults.push_back(fault));
            let faulty = Faulty { outbox: outbox.clone(), calls_left: random.next_u64() % 12 };
            let mut relay = relay(&client, faulty);
            let ended = soon("the crash", crash_after(1 + random.next_u64() % 80, relay.run())).await;
            assert!(matches!(ended, None | Some(Err(RelayError::Store { .. }))), "{ended:?}");
        }
        cluster.edit_all(|state| {
            let partitions = state.topics.values_mut().flat_map(|topic| &mut topic.partitions);
            partitions.for_each(|partition| partition.publish_faults.clear());
        });
        finish(&client, outbox.clone(), &outbox).await;
        assert_exact(&cluster, rows);
    }
}

/// A database that is gone after so many calls.
struct Faulty {
    outbox: MemoryOutbox,
    calls_left: u64,
}

impl Faulty {
    fn call(&mut self) -> Result<(), &'static str> {
        self.calls_left = self.calls_left.checked_sub(1).ok_or("the database is gone")?;
        Ok(())
    }
}

impl OutboxStore for Faulty {
    type Error = &'static str;

    async fn pending(&mut self, after: u64, limit: usize) -> Result<Vec<OutboxRow>, &'static str> {
        self.call()?;
        let Ok(rows) = self.outbox.pending(after, limit).await;
        Ok(rows)
    }

    async fn done(&mut self, up_to: u64) -> Result<(), &'static str> {
        self.call()?;
        let Ok(()) = self.outbox.done(up_to).await;
        Ok(())
    }
}

#[tokio::test]
async fn what_is_stored_and_not_marked_is_marked_and_not_sent_again() {
    let (cluster, client) = Cluster::with_topic(2).await;
    let outbox = MemoryOutbox::new();
    (0..10).for_each(|number| push(&outbox, number));
    // It is read, and can't be marked.
    let mut first = relay(&client, Faulty { outbox: outbox.clone(), calls_left: 1 });
    let error = soon("the failure", first.run()).await.expect_err("the database is gone");
    assert!(matches!(error, RelayError::Store { what: "be marked as relayed", .. }) && error.is_retryable(), "{error}");
    assert_eq!((outbox.len(), first.handle().stats()), (10, RelayStats::default()));
    let stats = finish(&client, outbox.clone(), &outbox).await;
    assert_eq!((stats.sent, stats.stored_before, stats.done_up_to), (0, 10, 10));
    assert_exact(&cluster, 10);
}

#[tokio::test]
async fn the_older_of_two_relays_ends_at_its_next_row() {
    let (cluster, client) = Cluster::with_topic(2).await;
    // Each sees an outbox of its own, as if both had fetched the same rows.
    let (mine, theirs) = (MemoryOutbox::new(), MemoryOutbox::new());
    for number in 0..10 {
        push(&mine, number);
        push(&theirs, number);
    }
    let mut older = relay(&client, mine.clone());
    let older_handle = older.handle();
    let newer_takes_over = async {
        while !mine.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let stats = finish(&client, theirs.clone(), &theirs).await;
        (10..20).for_each(|number| push(&mine, number));
        older_handle.notify();
        stats
    };
    let (ended, newer) = soon("the older one ends", async { tokio::join!(older.run(), newer_takes_over) }).await;
    assert!(matches!(&ended, Err(RelayError::Fenced { relay, .. }) if relay == NAME), "{ended:?}");
    assert_eq!((newer.sent, newer.stored_before), (0, 10));
    assert_eq!(mine.len(), 10, "none of these is marked done");
    assert_exact(&cluster, 10);
}

#[tokio::test]
async fn a_row_that_can_not_be_delivered_is_named_and_holds_up_those_after_it() {
    let (cluster, client) = Cluster::with_topic(1).await;
    for (bad, want) in
        [(Record::new(vec![0; 2 << 20]), "max_batch_bytes"), (Record::new("2").partition(7), "partitions 0 to 0")]
    {
        let outbox = MemoryOutbox::new();
        outbox.push("t", "0").expect("room");
        outbox.push("t", bad).expect("room");
        outbox.push("t", "2").expect("room");
        let error = soon("the failure", relay(&client, outbox.clone()).run()).await.expect_err("it can't be stored");
        assert!(matches!(&error, RelayError::Row { sequence: 2, topic, .. } if topic == "t"), "{error}");
        assert!(error.to_string().contains(want) && !error.is_retryable(), "{error}");
    }
    // The first row of the second outbox is the very one that is stored.
    assert_eq!(cluster.values(0), ["0"]);
    let outbox = MemoryOutbox::new();
    outbox.push("nowhere", "1").expect("room");
    let error = soon("the failure", relay(&client, outbox).run()).await.expect_err("no such topic");
    assert!(matches!(&error, RelayError::Topic { sequence: 1, .. }), "{error}");
}

#[tokio::test]
async fn rows_of_another_outbox_of_the_same_name_are_not_taken_for_stored_ones() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let first = MemoryOutbox::new();
    (0..10).for_each(|number| push(&first, number));
    finish(&client, first.clone(), &first).await;
    // Made anew, it counts from 1 again: rows 1 to 3 are not those that are stored, and row 10 is not there at all.
    let second = MemoryOutbox::new();
    (20..23).for_each(|number| push(&second, number));
    let error = soon("the failure", relay(&client, second.clone()).run()).await.expect_err("another outbox");
    assert!(matches!(error, RelayError::AnotherOutbox { sequence: 10, offset: 9, .. }), "{error}");
    // Nor is it taken for the same once it has so many rows.
    (23..40).for_each(|number| push(&second, number));
    let error = soon("the failure", relay(&client, second.clone()).run()).await.expect_err("another outbox");
    assert!(matches!(error, RelayError::AnotherOutbox { sequence: 10, .. }) && !error.is_retryable(), "{error}");
    assert_eq!((second.len(), cluster.values(0)), (20, numbers(10)));
}

#[tokio::test]
async fn news_wake_the_relay_and_a_stop_ends_it() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let outbox = MemoryOutbox::new();
    let builder = client.outbox_relay(NAME, outbox.clone()).poll_interval(Duration::from_secs(3600));
    let mut relay = builder.build().expect("options");
    let handle = relay.handle();
    let application = async {
        for number in 0..20 {
            outbox.push("t", number.to_string()).expect("room");
            handle.notify();
            while !outbox.is_empty() {
                tokio::task::yield_now().await;
            }
        }
        handle.stop();
    };
    let (ended, ()) = soon("rows and the end", async { tokio::join!(relay.run(), application) }).await;
    ended.expect("stopped");
    assert_eq!(cluster.values(0), numbers(20));
    assert_eq!((handle.stats().sent, handle.stats().done_up_to), (20, 20));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_brokers_for_ever() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let outbox = MemoryOutbox::new();
    outbox.push("t", "0").expect("room");
    cluster.edit_all(|state| state.held = true);
    let builder = client.outbox_relay(NAME, outbox.clone()).stop_timeout(Duration::from_millis(50));
    let mut relay = builder.build().expect("options");
    let handle = relay.handle();
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        handle.stop();
    };
    let (ended, ()) = soon("the end", async { tokio::join!(relay.run(), stopping) }).await;
    ended.expect("stopped");
    assert_eq!(outbox.len(), 1, "it is for the next relay");
    cluster.edit_all(|state| state.held = false);
    finish(&client, outbox.clone(), &outbox).await;
    assert_eq!(cluster.values(0), ["0"]);
}

#[tokio::test]
async fn options_and_rows_out_of_bounds_are_refused() {
    struct Backwards;
    impl OutboxStore for Backwards {
        type Error = &'static str;
        async fn pending(&mut self, _: u64, _: usize) -> Result<Vec<OutboxRow>, &'static str> {
            Ok(vec![OutboxRow::new(2, "t", "2"), OutboxRow::new(1, "t", "1")])
        }
        async fn done(&mut self, _: u64) -> Result<(), &'static str> {
            Ok(())
        }
    }
    let (cluster, client) = Cluster::with_topic(1).await;
    let error = soon("the failure", relay(&client, Backwards).run()).await.expect_err("out of order");
    assert!(matches!(error, RelayError::Disorder { after: 2, found: 1 }), "{error}");
    assert!(cluster.values(0).is_empty());
    assert!(client.outbox_relay(NAME, Backwards).rows(0).build().is_err());
    assert!(client.outbox_relay(NAME, Backwards).poll_interval(Duration::ZERO).build().is_err());
}
