//! Requests and replies: every caller gets its own reply or an error that says how far its request came, whatever
//! becomes of brokers, responders and topics.

use std::time::{Duration, Instant};

use busbar_client::{
    Client, Reason, Record, ReplyError, Request, RequestError, RequestFate, Requester, Responder, StartAt,
};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};

use crate::{
    fake::{Cluster, PublishFault},
    soon,
};

const LONG: Duration = Duration::from_secs(15);
const SHORT: Duration = Duration::from_millis(100);

async fn requester(client: &Client) -> Requester {
    soon("a requester", client.requester("t").build()).await.expect("a requester")
}

async fn responder(client: &Client) -> Responder {
    soon("a responder", client.responder("t").build()).await.expect("a responder")
}

async fn next(responder: &mut Responder) -> Request {
    soon("a request", responder.next()).await.expect("readable").expect("not closed")
}

async fn echo(request: Request) -> Result<Record, std::convert::Infallible> {
    Ok(Record::new(request.value().clone()).key("echo"))
}

fn text(record: &busbar_client::ConsumedRecord) -> String {
    String::from_utf8(record.value().to_vec()).expect("text")
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon(what, waiting).await;
}

#[tokio::test]
async fn each_caller_gets_its_own_reply_whatever_the_order() {
    let (cluster, client) = Cluster::with_topic(2).await;
    let mut responder = responder(&client).await;
    // Both read the same partition or not, as chance will have it.
    let requesters = [requester(&client).await, requester(&client).await];
    let asked = async {
        let ask = |number: usize| {
            let requester = &requesters[number % 2];
            async move { requester.request(Record::new(number.to_string()), LONG).await }
        };
        join_all((0..400).map(ask)).await
    };
    let answered = async {
        let mut waiting = Vec::new();
        for _ in 0..400 {
            waiting.push(next(&mut responder).await);
        }
        while let Some(request) = waiting.pop() {
            let _delivery = request.reply(format!("re: {}", text(&request))).await.expect("taken");
        }
    };
    let (replies, ()) = soon("all replies", async { tokio::join!(asked, answered) }).await;
    for (number, reply) in replies.into_iter().enumerate() {
        assert_eq!(text(&reply.expect("a reply")), format!("re: {number}"));
    }
    for requester in &requesters {
        let stats = requester.stats();
        assert_eq!((stats.requests, stats.replies, stats.waiting, stats.late), (200, 200, 0, 0));
        assert_eq!(requester.replies_come_to().0, "t.replies");
    }
    assert_eq!(responder.stats().replies, 400);
    soon("close", responder.close()).await.expect("delivered");
    drop(cluster);
}

#[tokio::test]
async fn a_request_survives_the_loss_of_the_leaders_of_both_topics() {
    let (mut cluster, client) = Cluster::with_topic(1).await;
    cluster.create("answers", 1);
    let mut responder = responder(&client).await;
    let requester = client.requester("t").reply_topic("answers").build().await.expect("a requester");
    let asked = async {
        let ask = |number: usize| {
            let requester = &requester;
            async move { requester.request(Record::new(number.to_string()), LONG).await }
        };
        join_all((0..50).map(ask)).await
    };
    let failing = async {
        let first = next(&mut responder).await;
        cluster.kill(1).await;
        cluster.edit_all(|state| {
            for topic in state.topics.values_mut() {
                (topic.partitions[0].leader, topic.partitions[0].epoch) = (2, 2);
            }
        });
        let _delivery = first.reply(first.value().clone()).await.expect("taken");
        responder.serve(8, echo).await
    };
    let replies = tokio::select! {
        replies = soon("all replies", asked) => replies,
        ended = failing => panic!("the responder ended: {ended:?}"),
    };
    for (number, reply) in replies.into_iter().enumerate() {
        assert_eq!(text(&reply.expect("a reply")), number.to_string());
    }
}

#[tokio::test]
async fn late_repeated_and_foreign_replies_are_counted_and_handed_to_nobody() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let mut responder = responder(&client).await;
    let requester = requester(&client).await;
    let error = requester.request("too slow", SHORT).await.expect_err("nobody replies");
    let RequestError::Deadline(report) = &error else { panic!("{error:?}") };
    assert!(matches!(report.fate(), RequestFate::Stored(delivered) if delivered.offset == 0), "{report}");
    assert!(error.is_retryable() && !error.has_no_side_effects(), "{error}");
    let late = next(&mut responder).await;
    let known = report.correlation_id().expect("it was sent");
    assert_eq!(late.header("busbar-correlation-id").map(|id| id.to_vec()), Some(known.clone().into_bytes()));
    assert!(late.reply_before().is_some());
    let _delivery = late.reply("at last").await.expect("taken");
    // To a request that is answered already, and to ones that were never asked.
    let answer = async {
        let request = next(&mut responder).await;
        for _ in 0..2 {
            request.reply("here").await.expect("taken").await.expect("stored");
        }
    };
    let (reply, ()) = tokio::join!(requester.request("again", LONG), answer);
    assert_eq!(text(&reply.expect("a reply")), "here");
    let (topic, partition) = requester.replies_come_to();
    let producer = client.producer(topic).build().await.expect("a producer");
    let mine = known.split_once('-').expect("two halves").0;
    for id in ["nonsense".to_owned(), format!("{:016x}-{:016x}", 1, 0), format!("{mine}-{:016x}", 99)] {
        let record = Record::new("forged").partition(partition).header("busbar-correlation-id", id);
        producer.send(record).await.expect("taken").await.expect("stored");
    }
    producer.send(Record::new("no reply").partition(partition)).await.expect("taken").await.expect("stored");
    until("all are counted", || requester.stats().foreign == 4).await;
    let stats = requester.stats();
    assert_eq!((stats.replies, stats.late, stats.deadlines, stats.waiting), (1, 2, 1, 0));
    drop(cluster);
}

#[tokio::test]
async fn a_dropped_call_gives_its_place_back() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let requester = client.requester("t").in_flight(1).build().await.expect("a requester");
    let first = requester.request("one", LONG);
    tokio::pin!(first);
    let ended = tokio::time::timeout(SHORT, &mut first).await;
    assert!(ended.is_err(), "{ended:?}");
    let error = requester.request("two", SHORT).await.expect_err("the only place is taken");
    let RequestError::Deadline(report) = &error else { panic!("{error:?}") };
    assert_eq!((report.fate(), report.correlation_id()), (&RequestFate::NoPlace, None));
    assert!(error.has_no_side_effects() && error.is_retryable());
    first.set(requester.request("three", SHORT));
    let error = first.await.expect_err("nobody replies");
    assert!(matches!(&error, RequestError::Deadline(report) if report.correlation_id().is_some()), "{error}");
    assert_eq!(requester.stats().waiting, 0);
    drop(cluster);
}

#[tokio::test]
async fn a_failure_reaches_the_caller_as_one() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let mut responder = responder(&client).await;
    let requester = requester(&client).await;
    let answer = async {
        let request = next(&mut responder).await;
        let _delivery = request.fail(&"no ".repeat(1000)).await.expect("taken");
    };
    let (reply, ()) = tokio::join!(requester.request("?", LONG), answer);
    match reply {
        Err(RequestError::Failed { message, reply }) => {
            assert!(message.starts_with("no no ") && message.len() == 1024, "{message}");
            assert_eq!(reply.topic(), "t.replies");
        }
        other => panic!("{other:?}"),
    }
    let serving = responder.serve(2, async |request: Request| match request.value().is_empty() {
        true => Err("nothing asked"),
        false => Ok(Record::new("fine")),
    });
    tokio::select! {
        ended = serving => panic!("{ended:?}"),
        () = async {
            let error = requester.request("", LONG).await.expect_err("a failure");
            assert_eq!(error.to_string(), "the responder failed: nothing asked");
            assert_eq!(text(&requester.request("x", LONG).await.expect("a reply")), "fine");
        } => {}
    }
    let stats = requester.stats();
    assert_eq!((stats.replies, stats.failures), (3, 2));
    assert_eq!((responder.stats().replies, responder.stats().failures), (3, 2));
    drop(cluster);
}

#[tokio::test]
async fn what_is_certainly_not_stored_is_told_at_once() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let requester = requester(&client).await;
    cluster.edit(0, |partition| partition.publish_faults.push_back(PublishFault::Refuse(Reason::InvalidArgument)));
    let error = soon("told", requester.request("x", LONG)).await.expect_err("refused");
    let RequestError::Undelivered(report) = &error else { panic!("{error:?}") };
    let RequestFate::Failed(delivery) = report.fate() else { panic!("{report}") };
    assert_eq!(delivery.report().attempt_count(), 1, "{report}");
    assert!(error.has_no_side_effects() && !error.is_retryable());
    let error = requester.request(vec![0; 2 << 20], LONG).await.expect_err("too large");
    assert!(matches!(error, RequestError::Send(_)), "{error:?}");
    // Stored, but nobody was told: the reply counts.
    cluster.edit(0, |partition| partition.publish_faults.push_back(PublishFault::Hang { stored: true }));
    let mut responder = responder(&client).await;
    let answer = async { next(&mut responder).await.reply("seen").await.map(drop) };
    let (reply, answered) = tokio::join!(requester.request("y", LONG), answer);
    answered.expect("taken");
    assert_eq!(text(&reply.expect("a reply")), "seen");
}

#[tokio::test]
async fn a_reply_topic_that_goes_ends_the_requester_with_the_reason() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.create("answers", 1);
    let requester = client.requester("t").reply_topic("answers").build().await.expect("a requester");
    let gone = async {
        until("it waits", || requester.stats().waiting == 1).await;
        cluster.edit_all(|state| state.topics.remove("answers"));
    };
    let (reply, ()) = soon("told", async { tokio::join!(requester.request("x", LONG), gone) }).await;
    assert!(matches!(reply, Err(RequestError::RepliesLost(_))), "{reply:?}");
    let again = soon("told", requester.request("y", LONG)).await;
    assert!(matches!(again, Err(RequestError::RepliesLost(_))), "{again:?}");
}

#[tokio::test]
async fn close_tells_those_who_wait() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let requester = requester(&client).await;
    let closing = async {
        until("it waits", || requester.stats().waiting == 1).await;
        requester.close().await
    };
    let (reply, closed) = soon("closed", async { tokio::join!(requester.request("x", LONG), closing) }).await;
    closed.expect("delivered");
    assert!(matches!(reply, Err(RequestError::Closed)), "{reply:?}");
    assert!(matches!(requester.clone().request("y", LONG).await, Err(RequestError::Closed)));
    // A producer that was handed in stays open, and must be of the topic.
    let producer = client.producer("t").build().await.expect("a producer");
    let requester = client.requester("t").producer(producer.clone()).build().await.expect("a requester");
    requester.close().await.expect("nothing to deliver");
    producer.send("still open").await.expect("taken").await.expect("stored");
    let other = client.requester("u").producer(producer).build().await.expect_err("another topic");
    assert!(other.to_string().contains("the topic of the requests"), "{other}");
    drop(cluster);
}

#[tokio::test]
async fn an_address_where_no_reply_can_go_is_refused() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").build().await.expect("a producer");
    let asks = |topic: &'static str| Record::new("x").header("busbar-reply-to", topic);
    for record in
        [Record::new("no request"), asks("a b"), asks("nowhere"), asks("t").header("busbar-reply-partition", "7")]
    {
        producer.send(record).await.expect("taken").await.expect("stored");
    }
    let mut responder = client.responder("t").from(StartAt::Earliest).build().await.expect("a responder");
    let mut refused = Vec::new();
    for _ in 0..3 {
        refused.push(next(&mut responder).await.reply("y").await.expect_err("nowhere to go"));
    }
    assert_eq!(responder.not_asked(), 1);
    assert!(matches!(&refused[0], ReplyError::Address(_)), "{refused:?}");
    assert!(matches!(&refused[1], ReplyError::Topic { topic, .. } if topic == "nowhere"), "{refused:?}");
    assert!(matches!(&refused[2], ReplyError::Send(_)), "{refused:?}");
    assert_eq!((responder.stats().refused, responder.stats().topics), (3, 1));
    responder.close().await.expect("nothing to deliver");
    assert!(matches!(client.replier().reply(&read_one(&client).await, "y").await, Err(ReplyError::NotAsked)));
    drop(cluster);
}

async fn read_one(client: &Client) -> busbar_client::ConsumedRecord {
    let mut consumer = client.consumer("t").build().await.expect("a consumer");
    soon("next", consumer.next()).await.expect("readable").expect("not closed")
}

/// Bytes of memory that this process holds, where the system tells.
fn resident_bytes() -> Option<u64> {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

/// `cargo nextest run --release -p busbar-client --test faults outstanding --no-capture` prints the figures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outstanding_requests_of_a_stopped_broker_all_end_with_a_report() {
    const REQUESTS: usize = 100_000;
    const WITHIN: Duration = Duration::from_secs(1);
    for frozen in [false, true] {
        let (mut cluster, client) = Cluster::with_topic(1).await;
        let requester = client.requester("t").in_flight(REQUESTS).build().await.expect("a requester");
        requester.request("warm", SHORT).await.expect_err("nobody replies");
        if frozen {
            (1..=2).for_each(|node| cluster.freeze(node, true));
        } else {
            cluster.kill(1).await;
            cluster.kill(2).await;
        }
        let before = resident_bytes();
        let started = Instant::now();
        let ask = || {
            let requester = requester.clone();
            async move { requester.request(Record::new(vec![7; 100]), WITHIN).await }
        };
        let future_bytes = std::mem::size_of_val(&ask());
        let mut asked: FuturesUnordered<_> = (0..REQUESTS).map(|_| ask()).collect();
        let (mut ended, mut fates, mut peak, mut last) = (0, [0_usize; 4], before, Duration::ZERO);
        while let Some(reply) = soon("the next one ends", asked.next()).await {
            let Err(RequestError::Deadline(report)) = reply else { panic!("{reply:?}") };
            match report.fate() {
                RequestFate::NoBuffer => fates[0] += 1,
                RequestFate::UnderWay => fates[1] += 1,
                RequestFate::Failed(error) if error.has_no_side_effects() => fates[2] += 1,
                RequestFate::Failed(_) => fates[3] += 1,
                other => panic!("{other:?}"),
            }
            if ended % 10_000 == 0 {
                peak = peak.max(resident_bytes());
            }
            ended += 1;
            last = last.max(report.took());
        }
        let (all, stats) = (started.elapsed(), requester.stats());
        let grown = peak.zip(before).map(|(peak, before)| peak.saturating_sub(before) >> 20);
        println!(
            "frozen {frozen}: {ended} requests ended after {all:?}, the last {last:?} after its call; no buffer, under way, \
             not sent, unknown: {fates:?}; a future has {future_bytes} bytes; memory grew by {grown:?} MiB"
        );
        assert_eq!((ended, stats.deadlines, stats.waiting), (REQUESTS, REQUESTS as u64 + 1, 0));
        assert!(grown.is_none_or(|mib| mib < 1024), "memory grew by {grown:?} MiB");
    }
}
