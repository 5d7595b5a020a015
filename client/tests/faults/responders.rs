//! Responders of one group: each request is answered by one of them, and acknowledged once its reply is stored.

use std::{convert::Infallible, time::Duration};

use busbar_client::{Client, ClientError, Reason, Record, ReplyError, Request, Requester, Responder, StartAt};
use futures::future::join_all;

use crate::{
    fake::{Cluster, PublishFault},
    soon,
};

const LONG: Duration = Duration::from_secs(15);

async fn responder(client: &Client) -> Responder {
    let group = client.responder("t").group_with("answering", |group| {
        group.backoff(Duration::from_millis(20), Duration::from_millis(100)).commit_interval(Duration::from_millis(10))
    });
    soon("a responder", group.build()).await.expect("a responder")
}

async fn requester(client: &Client) -> Requester {
    soon("a requester", client.requester("t").build()).await.expect("a requester")
}

async fn next(responder: &mut Responder) -> Request {
    soon("a request", responder.next()).await.expect("readable").expect("not closed")
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon(what, waiting).await;
}

fn group_stats(responder: &Responder) -> busbar_client::GroupStats {
    responder.group().expect("a group").stats()
}

#[tokio::test]
async fn each_request_is_answered_by_one_of_them() {
    let (_cluster, client) = Cluster::with_topic(2).await;
    let (mut first, mut second) = (responder(&client).await, responder(&client).await);
    until("both have a partition", || {
        [&first, &second].iter().all(|member| member.group().expect("a group").assignment().len() == 1)
    })
    .await;
    let requester = requester(&client).await;
    let echo = async |request: Request| Ok::<_, Infallible>(Record::new(request.value().clone()));
    let ask = |number: u32| {
        let record = Record::new(number.to_string()).partition(number % 2);
        requester.request(record, LONG)
    };
    let replies = tokio::select! {
        replies = soon("all replies", join_all((0..200).map(ask))) => replies,
        ended = first.serve(8, echo) => panic!("{ended:?}"),
        ended = second.serve(8, echo) => panic!("{ended:?}"),
    };
    for (number, reply) in replies.into_iter().enumerate() {
        assert_eq!(reply.expect("a reply").value(), number.to_string().as_bytes());
    }
    assert_eq!((requester.stats().replies, requester.stats().late), (200, 0));
    assert_eq!([&first, &second].map(|member| member.stats().replies), [100, 100]);
    for member in [&mut first, &mut second] {
        soon("close", member.close()).await.expect("delivered");
    }
    // Everything was acknowledged: whoever comes next finds nothing, until something new is asked.
    let mut third = responder(&client).await;
    let (reply, request) = tokio::join!(requester.request("new", LONG), async {
        let request = next(&mut third).await;
        request.reply("yes").await.expect("taken").await.expect("stored");
        request
    });
    assert_eq!((&reply.expect("a reply").value()[..], &request.value()[..]), (&b"yes"[..], &b"new"[..]));
}

#[tokio::test]
async fn a_request_without_a_stored_reply_is_delivered_again() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let mut responder = responder(&client).await;
    let requester = requester(&client).await;
    let asked = requester.request("x", LONG);
    let answered = async {
        // Dropped: nobody else could answer it.
        let dropped = next(&mut responder).await;
        assert_eq!(dropped.attempt(), 1);
        drop(dropped.clone());
        drop(dropped);
        // Answered, but the reply is refused.
        let again = next(&mut responder).await;
        assert_eq!(again.attempt(), 2);
        cluster.edit_all(|state| {
            let replies = state.topics.get_mut("t.replies").expect("made by the requester");
            for partition in &mut replies.partitions {
                partition.publish_faults.push_back(PublishFault::Refuse(Reason::InvalidArgument));
            }
        });
        let lost = again.reply("lost").await.expect("taken").await;
        assert!(lost.is_err(), "{lost:?}");
        drop(again);
        let third = next(&mut responder).await;
        assert_eq!(third.attempt(), 3);
        // Nobody awaits the receipt; it is acknowledged all the same.
        drop(third.reply("here").await.expect("taken"));
        third
    };
    let (reply, third) = soon("a reply", async { tokio::join!(asked, answered) }).await;
    assert_eq!(&reply.expect("a reply").value()[..], b"here");
    until("it is acknowledged", || group_stats(&responder).acked == 1).await;
    let stats = group_stats(&responder);
    assert_eq!((stats.delivered, stats.nacked), (3, 2), "{stats:?}");
    drop(third);
    soon("close", responder.close()).await.expect("delivered");
    assert_eq!(group_stats(&responder).nacked, 2, "what is settled is settled");
}

#[tokio::test]
async fn what_can_never_be_answered_is_not_asked_again() {
    let (_cluster, client) = Cluster::with_topic(1).await;
    let mut responder = responder(&client).await;
    let producer = client.producer("t").build().await.expect("a producer");
    for record in [Record::new("no request"), Record::new("x").header("busbar-reply-to", "a b")] {
        producer.send(record).await.expect("taken").await.expect("stored");
    }
    let request = next(&mut responder).await;
    assert!(matches!(request.reply("y").await, Err(ReplyError::Address(_))));
    until("it is given up", || group_stats(&responder).dropped == 1).await;
    let stats = group_stats(&responder);
    assert_eq!((responder.not_asked(), stats.acked, stats.rejected), (1, 1, 1), "{stats:?}");
    let partitions = client.responder("t").group("answering").partitions([0]).build().await;
    assert!(matches!(partitions, Err(ClientError::InvalidOption { option: "partitions", .. })), "{partitions:?}");
}

#[tokio::test]
async fn a_group_goes_on_where_it_was_and_begins_at_the_end() {
    let (_cluster, client) = Cluster::with_topic(1).await;
    let requester = requester(&client).await;
    let short = Duration::from_millis(100);
    requester.request("before the group began", short).await.expect_err("nobody replies");
    let mut first = responder(&client).await;
    let (_, request) = tokio::join!(requester.request("first", short), next(&mut first));
    assert_eq!(&request.value()[..], b"first");
    drop(request);
    soon("close", first.close()).await.expect("delivered");
    requester.request("meanwhile", short).await.expect_err("nobody replies");
    let mut second = responder(&client).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let request = next(&mut second).await;
        seen.push(String::from_utf8(request.value().to_vec()).expect("text"));
        drop(request.reply("late").await.expect("taken"));
    }
    // What comes again after a pause may come later than what is new.
    seen.sort();
    assert_eq!(seen, ["first", "meanwhile"]);
    let earliest = client.responder("t").group("another").from(StartAt::Earliest).build().await;
    let request = next(&mut earliest.expect("a responder")).await;
    assert_eq!(&request.value()[..], b"before the group began");
}
