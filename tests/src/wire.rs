//! `busbar.v1` spoken by hand: batches that the client would never build, streams that it would never leave unread, and
//! bytes that are no protocol at all. Each call makes its own connection, so that one test case can't disturb another.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use busbar_proto::{
    ProducerEpoch, ProducerId, Sequence,
    batch::{BatchBuilder, BatchOptions, NO_HEADERS, ProducerState},
    v1::{self, broker_client::BrokerClient, publish_response::Outcome, subscribe_request, subscribe_response::Event},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Streaming, transport::Channel};

use crate::wait::within;

/// One question and its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A connection to one node.
///
/// # Errors
/// It does not answer.
pub async fn connect(address: &str) -> anyhow::Result<BrokerClient<Channel>> {
    let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
    Ok(BrokerClient::new(channel).max_decoding_message_size(busbar_proto::limits::MESSAGE_BYTES_MAX))
}

/// A sound batch of these values, of a producer without idempotence.
pub fn batch(values: &[&str]) -> Bytes {
    batch_of(ProducerState::NONE, values)
}

/// A sound batch of CloudEvents in binary mode, with these ids, of a producer without idempotence.
pub fn batch_of_events(source: &str, ids: &[u64]) -> Bytes {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    for id in ids {
        let id = id.to_string();
        let headers = [("ce_specversion", "1.0"), ("ce_source", source), ("ce_id", &id)];
        let pushed = builder.push(1_000, None, Some(id.as_bytes()), &headers);
        assert!(pushed.is_ok(), "the test's batch is too large");
    }
    builder.build(ProducerState::NONE)
}

/// A sound batch of an idempotent producer.
pub fn batch_from(producer: i64, sequence: i32, values: &[&str]) -> Bytes {
    let (id, epoch) = (ProducerId::new(producer), ProducerEpoch::new(0));
    batch_of(ProducerState { id, epoch, sequence: Sequence::new(sequence) }, values)
}

fn batch_of(producer: ProducerState, values: &[&str]) -> Bytes {
    let max_bytes = busbar_proto::limits::BATCH_BYTES_MAX as usize;
    let mut builder = BatchBuilder::new(BatchOptions { max_bytes, ..BatchOptions::default() });
    for value in values {
        let pushed = builder.push(1_000, None, Some(value.as_bytes()), NO_HEADERS);
        assert!(pushed.is_ok(), "the test's batch is too large");
    }
    builder.build(producer)
}

/// Publishes one batch and returns what the broker says.
///
/// # Errors
/// The connection breaks, or no answer.
pub async fn publish(address: &str, request: v1::PublishRequest) -> anyhow::Result<Outcome> {
    let answer = async {
        let mut client = connect(address).await?;
        let requests = tokio_stream::once(request).chain(futures::stream::pending());
        let mut answers = client.publish(requests).await?.into_inner();
        let answer = answers.message().await?.context("the stream ended without an answer")?;
        answer.outcome.context("an answer without an outcome")
    };
    within(ANSWER_LIMIT, "an answer to a publish", answer).await
}

/// Publishes a batch that must be stored; the offset of its first record, and whether it was there before.
///
/// # Errors
/// It is refused.
pub async fn store(address: &str, topic_id: &Bytes, partition: u32, batch: Bytes) -> anyhow::Result<(u64, bool)> {
    let request = v1::PublishRequest { topic_id: topic_id.clone(), partition, batch, ..Default::default() };
    match publish(address, request).await? {
        Outcome::Acknowledged(stored) => Ok((stored.base_offset, stored.duplicate)),
        Outcome::Error(error) => bail!("refused: {}: {}", error.reason, error.message),
    }
}

/// A subscription and its stream; the credit is granted once.
#[derive(Debug)]
pub struct Subscription {
    events: Streaming<v1::SubscribeResponse>,
    requests: tokio::sync::mpsc::Sender<v1::SubscribeRequest>,
}

impl Subscription {
    /// The next event.
    ///
    /// # Errors
    /// The stream ends or says nothing.
    pub async fn next(&mut self) -> anyhow::Result<Event> {
        let answer = async { self.events.message().await?.context("the stream ended") };
        within(ANSWER_LIMIT, "an event of a subscription", answer).await?.event.context("no event")
    }

    /// Grants more credit.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn grant(&self, bytes: u64) -> anyhow::Result<()> {
        let action = Some(subscribe_request::Action::Credit(bytes));
        Ok(self.requests.send(v1::SubscribeRequest { subscription: 1, action }).await?)
    }
}

/// Opens a subscription as `open` says.
///
/// # Errors
/// The node does not answer.
pub async fn subscribe(address: &str, open: subscribe_request::Open) -> anyhow::Result<Subscription> {
    let mut client = connect(address).await?;
    let (requests, sent) = tokio::sync::mpsc::channel(4);
    let action = Some(subscribe_request::Action::Open(open));
    requests.send(v1::SubscribeRequest { subscription: 1, action }).await?;
    let events = client.subscribe(tokio_stream::wrappers::ReceiverStream::new(sent)).await?.into_inner();
    Ok(Subscription { events, requests })
}

/// The stored bytes of a partition on one node, leader or not, from the log start to `end`.
///
/// # Errors
/// The node has no such replica, or does not get as far as `end`.
pub async fn replica_bytes(address: &str, topic_id: &Bytes, partition: u32, end: u64) -> anyhow::Result<Bytes> {
    let open = subscribe_request::Open {
        topic_id: topic_id.clone(),
        partition,
        from: Some(subscribe_request::open::From::Earliest(true)),
        credit: 1 << 40,
        any_replica: true,
        filter: String::new(),
    };
    let mut subscription = subscribe(address, open).await?;
    let mut stored = BytesMut::new();
    let mut next = None;
    while next.is_none_or(|next| next < end) {
        match subscription.next().await? {
            Event::Opened(opened) => next = Some(opened.start_offset),
            Event::Batches(batches) => {
                let split = busbar_proto::batch::split(batches.batches.clone());
                for batch in split {
                    let (header, _) = batch.map_err(|fault| anyhow::anyhow!("a stored batch is broken: {fault}"))?;
                    next = Some(header.next_offset().get());
                }
                stored.extend_from_slice(&batches.batches);
            }
            Event::Ended(error) => bail!("the subscription ended: {}: {}", error.reason, error.message),
            Event::CaughtUp(_) | Event::Passed(_) => {}
        }
    }
    Ok(stored.freeze())
}

/// Sends raw bytes on a connection of its own and returns what comes back until the other side closes it.
///
/// # Errors
/// It is not closed in time.
pub async fn send_raw(address: &str, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        // A reset while we still write is an answer, too.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        Ok(answer)
    };
    within(ANSWER_LIMIT, "the node closes the connection", exchange).await
}

/// Declares a gRPC message of `declared` bytes for `path` but sends only a few; the gRPC status that comes back.
///
/// # Errors
/// No status comes back.
pub async fn declare_message(address: &str, path: &str, declared: u32) -> anyhow::Result<i32> {
    let exchange = async {
        let (mut sender, connection) = h2::client::handshake(TcpStream::connect(address).await?).await?;
        let connection = tokio::spawn(connection);
        let request = http::Request::post(format!("http://{address}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (response, mut body) = sender.send_request(request, false)?;
        let mut message = vec![0];
        message.extend_from_slice(&declared.to_be_bytes());
        message.extend_from_slice(b"abc");
        body.send_data(message.into(), false)?;
        let response = response.await?;
        let status = match response.headers().get("grpc-status") {
            Some(status) => status.clone(),
            None => {
                let mut answer = response.into_body();
                while answer.data().await.transpose()?.is_some() {}
                let trailers = answer.trailers().await?.context("no trailers")?;
                trailers.get("grpc-status").context("no grpc-status")?.clone()
            }
        };
        connection.abort();
        Ok(status.to_str()?.parse()?)
    };
    within(ANSWER_LIMIT, "a status for a huge message", exchange).await
}

/// The id of a topic.
///
/// # Errors
/// There is no such topic.
pub async fn topic_id(client: &busbar_client::Client, topic: &str) -> anyhow::Result<Bytes> {
    let id = client.admin().describe_topic(topic).await?.id;
    ensure!(id.len() == 16, "a topic id of {} bytes", id.len());
    Ok(id)
}
