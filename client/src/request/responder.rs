//! Answering: [`Responder`] reads requests and replies to them.
//!
//! Invariant: a request that is handed out is replied to only by whoever has it; dropping it replies nothing.

use std::{
    fmt::Display,
    future::Future,
    ops::Deref,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use busbar_proto::Reason;
use futures::{StreamExt, stream::FuturesUnordered};

use super::{
    error::ReplyError,
    headers,
    replier::{Replier, ReplierStats},
};
use crate::{
    cluster::Cluster,
    consumer::{ConsumedRecord, Consumer, ConsumerBuilder, StartAt},
    error::{ClientError, ConsumeError, DeliveryError},
    producer::Delivery,
    record::Record,
    retry::{Backoff, BackoffPolicy},
};

/// Reads the requests of a topic and replies to them. Without a group, each responder gets every request: give
/// responders that share the work different partitions, or read with a group and reply with a
/// [`Replier`](super::Replier).
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::Record;
///
/// let mut responder = client.responder("prices").build().await?;
/// while let Some(request) = responder.next().await? {
///     match request.value().as_ref() {
///         b"ACME" => request.reply(Record::new("12.50")).await?,
///         _ => request.fail("no such share").await?,
///     };
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Responder {
    consumer: Consumer,
    replier: Replier,
    /// Records read that ask for no reply.
    not_asked: u64,
}

/// A record that asks for a reply. Reads as a [`ConsumedRecord`].
///
/// ```no_run
/// # async fn example(request: busbar_client::Request) -> Result<(), Box<dyn std::error::Error>> {
/// match request.value().as_ref() {
///     b"ACME" => request.reply("12.50").await?.await?,
///     _ => request.fail("no such share").await?.await?,
/// };
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Request {
    record: Arc<ConsumedRecord>,
    replier: Replier,
}

impl Deref for Request {
    type Target = ConsumedRecord;

    fn deref(&self) -> &ConsumedRecord {
        &self.record
    }
}

impl Request {
    /// Replies; as [`Replier::reply`]. A second reply would count as late.
    ///
    /// # Errors
    /// The request names a topic where no reply can go.
    pub async fn reply(&self, reply: impl Into<Record>) -> Result<Delivery, ReplyError> {
        self.replier.reply(&self.record, reply).await
    }

    /// Replies that there is no proper reply, and why; as [`Replier::fail`].
    ///
    /// # Errors
    /// As [`Self::reply`].
    pub async fn fail(&self, message: &str) -> Result<Delivery, ReplyError> {
        self.replier.fail(&self.record, message).await
    }

    /// After that nobody waits for the reply, by the requester's clock. To be trusted as far as the clocks agree.
    pub fn reply_before(&self) -> Option<SystemTime> {
        let since_epoch = Duration::from_millis(headers::reply_before_ms(&self.record)?);
        UNIX_EPOCH.checked_add(since_epoch)
    }
}

impl Responder {
    /// The next request; waits for one. Records that ask for no reply are passed over and counted. `None` after
    /// [`Self::close`].
    ///
    /// Cancel safe: a call that was dropped while it waited loses no request.
    ///
    /// # Errors
    /// As [`Consumer::next`].
    pub async fn next(&mut self) -> Result<Option<Request>, ConsumeError> {
        loop {
            match self.consumer.next().await? {
                Some(record) if Replier::is_asked(&record) => {
                    return Ok(Some(Request { record: Arc::new(record), replier: self.replier.clone() }));
                }
                Some(_) => self.not_asked += 1,
                None => return Ok(None),
            }
        }
    }

    /// Replies to every request with what `handler` makes of it, up to `concurrency` of them at a time, until the
    /// topic can't be read any more. An error is replied as a failure. Replies leave in the order in which they are
    /// ready. Each is handled as by [`ConsumedRecord::process`].
    ///
    /// Not cancel safe: requests that were being handled get no reply.
    ///
    /// ```no_run
    /// # async fn example(mut responder: busbar_client::Responder) -> Result<(), busbar_client::ConsumeError> {
    /// responder.serve(16, async |request| match std::str::from_utf8(request.value()) {
    ///     Ok(text) => Ok(text.to_uppercase().into()),
    ///     Err(error) => Err(error),
    /// }).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// The topic is gone.
    pub async fn serve<E, F>(&mut self, concurrency: usize, handler: impl Fn(Request) -> F) -> Result<(), ConsumeError>
    where
        E: Display,
        F: Future<Output = Result<Record, E>>,
    {
        let mut handled = FuturesUnordered::new();
        let mut backoff = Backoff::new(BackoffPolicy::default());
        loop {
            let next = tokio::select! {
                biased;
                Some(()) = handled.next() => continue,
                next = self.next(), if handled.len() < concurrency.max(1) => next,
            };
            match next {
                Ok(Some(request)) => {
                    backoff.succeeded();
                    let handling = handler(request.clone());
                    handled.push(answer(request, handling));
                }
                Ok(None) => break,
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "requests can't be read now");
                    let env = &self.replier.cluster().env;
                    let pause = tokio::time::sleep(backoff.failed(env.random(), None));
                    tokio::pin!(pause);
                    while tokio::select! { () = &mut pause => false, Some(()) = handled.next() => true } {}
                }
            }
        }
        while handled.next().await.is_some() {}
        Ok(())
    }

    /// What was replied so far.
    pub fn stats(&self) -> ReplierStats {
        self.replier.stats()
    }

    /// Records passed over because they ask for no reply.
    pub fn not_asked(&self) -> u64 {
        self.not_asked
    }

    /// The consumer of the requests.
    pub fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// Reads no more and delivers the replies that were taken.
    ///
    /// # Errors
    /// The first reply that could not be delivered.
    pub async fn close(&mut self) -> Result<(), DeliveryError> {
        self.consumer.close().await;
        self.replier.close().await
    }
}

/// Handles a request and replies, both as its processing; then waits for the fate of the reply.
async fn answer<E: Display>(request: Request, handling: impl Future<Output = Result<Record, E>>) {
    let mut sent = None;
    let processing = async {
        let handled = handling.await;
        sent = Some(match &handled {
            Ok(reply) => request.reply(reply.clone()).await,
            Err(error) => request.fail(&error.to_string()).await,
        });
        handled.map(drop)
    };
    // A failure is told to the requester, and to whoever traces.
    let _ = request.process(processing).await;
    let (topic, partition, offset) = (request.topic(), request.partition(), request.offset());
    let delivered = match sent {
        Some(Ok(delivery)) => delivery.await,
        Some(Err(error)) => return tracing::warn!(topic, partition, offset, %error, "a reply was not sent"),
        None => return,
    };
    if let Err(error) = delivered {
        tracing::warn!(topic, partition, offset, %error, "a reply was not delivered");
    }
}

fn is_final(error: &ConsumeError) -> bool {
    matches!(error, ConsumeError::Refused { refusal, .. } if refusal.reason == Reason::UnknownTopic)
}

/// Options of a [`Responder`]; `build` makes it.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let responder = client.responder("prices").partitions([0]).credit_bytes(1 << 20).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until build() is called"]
pub struct ResponderBuilder {
    cluster: Arc<Cluster>,
    consumer: ConsumerBuilder,
}

impl ResponderBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>, topic: String) -> Self {
        let consumer = ConsumerBuilder::new(cluster.clone(), topic).from(StartAt::Latest);
        Self { cluster, consumer }
    }

    /// Where to begin in every partition. Default: latest, as nobody waits for replies to what is old.
    pub fn from(mut self, from: StartAt) -> Self {
        self.consumer = self.consumer.from(from);
        self
    }

    /// The partitions to read. Default: all.
    pub fn partitions(mut self, partitions: impl Into<Vec<u32>>) -> Self {
        self.consumer = self.consumer.partitions(partitions);
        self
    }

    /// Bytes of requests received and not read yet. Default 8 MiB.
    pub fn credit_bytes(mut self, credit_bytes: usize) -> Self {
        self.consumer = self.consumer.credit_bytes(credit_bytes);
        self
    }

    /// Looks the topic up and begins to read.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::build`].
    pub async fn build(self) -> Result<Responder, ClientError> {
        let consumer = self.consumer.build().await?;
        Ok(Responder { consumer, replier: Replier::new(self.cluster), not_asked: 0 })
    }
}
