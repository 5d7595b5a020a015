//! Deadlines of records: they travel over hops, what has expired is not sent, and clocks that are an hour off do not make
//! everything fail.

use std::time::{Duration, SystemTime};

use busbar_client::{DeliveryError, Reason, Record, RequestError, StartAt};

use crate::{
    fake::{Cluster, record},
    soon,
};

fn within(time: Duration) -> SystemTime {
    SystemTime::now() + time
}

fn is_too_late(error: &DeliveryError) -> bool {
    matches!(error, DeliveryError::Rejected { refusal, .. } if refusal.reason == Reason::DeadlineExceeded)
}

#[tokio::test]
async fn what_has_expired_is_refused_before_it_is_sent() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").build().await.expect("a producer");
    soon("first", producer.send(record(0)).await.expect("taken")).await.expect("stored");
    let publishes = cluster.edit_all(|state| state.publishes);
    for late in [record(1).deadline(SystemTime::now()), record(1).send_before(SystemTime::UNIX_EPOCH)] {
        let error = soon("told", producer.send(late).await.expect("taken")).await.expect_err("too late");
        assert!(is_too_late(&error) && error.has_no_side_effects(), "{error}");
        assert_eq!(error.report().attempt_count(), 0, "{}", error.report());
    }
    assert_eq!(cluster.edit_all(|state| state.publishes), publishes);
    let in_time = record(2).deadline(within(Duration::from_secs(60)));
    soon("in time", producer.send(in_time).await.expect("taken")).await.expect("stored");
    assert_eq!(cluster.values(0), ["0", "2"]);
}

#[tokio::test]
async fn a_deadline_travels_from_a_request_through_its_responder_to_what_that_publishes() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.create("orders", 1);
    let requester = client.requester("t").build().await.expect("a requester");
    let mut responder = client.responder("t").build().await.expect("a responder");
    let orders = client.producer("orders").build().await.expect("a producer");
    let answer = async {
        let request = responder.next().await.expect("readable").expect("not closed");
        let order = Record::new("order").context_of(&request);
        orders.send(order).await.expect("taken").await.expect("in time");
        let _delivery = request.reply("done").await.expect("taken");
        // Once nobody waits any more, what comes of it is not sent.
        let request = responder.next().await.expect("readable").expect("not closed");
        let deadline = request.reply_before().expect("a deadline");
        while request.remaining(SystemTime::now()) != Some(Duration::ZERO) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let late = orders.send(Record::new("late").context_of(&request)).await.expect("taken").await;
        assert!(late.is_err_and(|error| is_too_late(&error)));
        let audit = Record::new("audit").context_of(&request).without_deadline();
        orders.send(audit).await.expect("taken").await.expect("it has no deadline");
        deadline
    };
    let ask = async {
        let asked = SystemTime::now();
        requester.request("now", Duration::from_secs(15)).await.expect("a reply");
        // Its own deadline is earlier than what the call allows.
        let own = Record::new("later").deadline(within(Duration::from_millis(300)));
        let error = requester.request(own, Duration::from_secs(15)).await.expect_err("nobody replies in time");
        assert!(matches!(error, RequestError::Deadline(_)), "{error}");
        asked
    };
    let (deadline, asked) = soon("both", async { tokio::join!(answer, ask) }).await;
    assert!(deadline < asked + Duration::from_secs(10), "the earlier one travels");
    let mut consumer = client.consumer("orders").from(StartAt::Earliest).build().await.expect("a consumer");
    let first = soon("next", consumer.next()).await.expect("readable").expect("not closed");
    let left = first.remaining(asked).expect("the request's deadline");
    assert!(left > Duration::from_secs(14) && left < Duration::from_secs(17), "{left:?}");
    let second = soon("next", consumer.next()).await.expect("readable").expect("not closed");
    assert_eq!((&second.value()[..], second.deadline()), (&b"audit"[..], None));
}

/// The broker's clock is an hour ahead or behind: short deadlines, long ones and none work all the same.
#[tokio::test]
async fn a_broker_whose_clock_is_an_hour_off_stores_what_has_a_deadline() {
    for ahead_ms in [3_600_000, -3_600_000] {
        for own_ms in [Some(700), Some(5_000), None] {
            let (cluster, client) = Cluster::with_topic(1).await;
            cluster.edit_all(|state| state.clock_ahead_ms = ahead_ms);
            let producer = client.producer("t").build().await.expect("a producer");
            for number in 0..10 {
                let record = match own_ms {
                    Some(ms) => record(number).deadline(within(Duration::from_millis(ms))),
                    None => record(number),
                };
                let delivered = soon("told", producer.send(record).await.expect("taken")).await;
                assert!(delivered.is_ok(), "{ahead_ms} ms ahead, {own_ms:?}: {delivered:?}");
            }
            let attempts = cluster.edit_all(|state| state.publishes);
            assert!(attempts <= 12, "{ahead_ms} ms ahead, {own_ms:?}: {attempts} attempts");
        }
        let (cluster, client) = Cluster::with_topic(1).await;
        cluster.edit_all(|state| state.clock_ahead_ms = ahead_ms);
        let requester = client.requester("t").build().await.expect("a requester");
        let mut responder = client.responder("t").build().await.expect("a responder");
        let echo = async |request: busbar_client::Request| {
            Ok::<_, std::convert::Infallible>(Record::new(request.value().clone()))
        };
        let reply = tokio::select! {
            reply = requester.request("x", Duration::from_secs(5)) => reply,
            ended = responder.serve(1, echo) => panic!("{ended:?}"),
        };
        assert_eq!(&reply.expect("a reply").value()[..], b"x");
    }
}
