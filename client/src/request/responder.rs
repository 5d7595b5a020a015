//! Answering: [`Responder`] reads requests and replies to them.
//!
//! Invariants: a request that is handed out is replied to only by whoever has it; dropping it replies nothing. One of a
//! group is acknowledged once its reply is stored, and not before; dropped without a reply, it is delivered again.

use std::{fmt::Display, future::Future, ops::Deref, sync::Arc, time::SystemTime};

use futures::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;

use super::{
    error::{ReplyError, ResponderError},
    replier::{Replier, ReplierStats},
};
use crate::{
    consumer::{ConsumedRecord, Consumer},
    error::DeliveryError,
    group::{GroupConsumer, Received},
    producer::Delivery,
    record::Record,
    retry::{Backoff, BackoffPolicy},
};

/// Reads the requests of a topic and replies to them. Without a group, each responder gets every request; those of one
/// group ([`ResponderBuilder::group`](super::ResponderBuilder::group)) share them, and each request is answered by one.
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
    source: Source,
    replier: Replier,
    /// Records read that ask for no reply.
    not_asked: u64,
}

/// Where requests come from.
#[derive(Debug)]
pub(super) enum Source {
    /// Every request.
    All(Box<Consumer>),
    /// This member's share.
    Group(Box<GroupConsumer>),
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
    /// Of a group, until its reply settles it.
    unsettled: Option<Arc<Mutex<Option<Received>>>>,
}

impl Deref for Request {
    type Target = ConsumedRecord;

    fn deref(&self) -> &ConsumedRecord {
        &self.record
    }
}

impl Request {
    fn of_group(received: Received, replier: Replier) -> Self {
        let record = received.record().clone();
        Self { record, replier, unsettled: Some(Arc::new(Mutex::new(Some(received)))) }
    }

    /// Replies; as [`Replier::reply`]. A second reply would count as late. A request of a group is acknowledged once its
    /// reply is stored, also when nobody awaits the receipt, and delivered again if it can't be.
    ///
    /// # Errors
    /// The request names a topic where no reply can go; of a group, it is rejected then.
    pub async fn reply(&self, reply: impl Into<Record>) -> Result<Delivery, ReplyError> {
        let sent = self.replier.reply(&self.record, reply).await;
        self.settle(&sent);
        sent
    }

    /// Replies that there is no proper reply, and why; as [`Replier::fail`]. That is an answer, too: a request of a group
    /// is acknowledged once it is stored.
    ///
    /// # Errors
    /// As [`Self::reply`].
    pub async fn fail(&self, message: &str) -> Result<Delivery, ReplyError> {
        let sent = self.replier.fail(&self.record, message).await;
        self.settle(&sent);
        sent
    }

    /// Which delivery of the request this is, from 1: more for a request of a group that was not answered before.
    pub fn attempt(&self) -> u32 {
        let unsettled = self.unsettled.as_ref().map(|unsettled| unsettled.lock());
        unsettled.and_then(|unsettled| unsettled.as_ref().map(Received::attempt)).unwrap_or(1)
    }

    /// Settles a request of a group as its reply turns out.
    fn settle(&self, sent: &Result<Delivery, ReplyError>) {
        let Some(unsettled) = &self.unsettled else { return };
        let settled = match sent {
            Ok(delivery) => {
                let Some(received) = unsettled.lock().take() else { return };
                let delivery = delivery.another();
                return self.replier.settle(async move {
                    match delivery.await {
                        Ok(_) => received.ack(),
                        Err(error) => received.nack_because(None, error.to_string()),
                    }
                });
            }
            Err(error) if error.is_hopeless() => {
                let Some(received) = unsettled.lock().take() else { return };
                received.reject(error.to_string())
            }
            // It may be replied to again; dropped, it is delivered again.
            Err(_) => return,
        };
        if let Err(late) = settled {
            tracing::debug!(%late, "a request that can't be replied to");
        }
    }

    /// After that nobody waits for the reply, by the requester's clock: its deadline, which goes on to what is published
    /// because of it with [`Record::context_of`]. To be trusted as far as the clocks agree.
    pub fn reply_before(&self) -> Option<SystemTime> {
        self.record.deadline()
    }
}

impl Responder {
    pub(super) fn new(source: Source, replier: Replier) -> Self {
        Self { source, replier, not_asked: 0 }
    }

    /// The next request; waits for one. Records that ask for no reply are passed over and counted (of a group, also
    /// acknowledged). `None` after [`Self::close`].
    ///
    /// Cancel safe: a call that was dropped while it waited loses no request.
    ///
    /// # Errors
    /// As [`Consumer::next`] or [`GroupConsumer::next`].
    pub async fn next(&mut self) -> Result<Option<Request>, ResponderError> {
        loop {
            let replier = &self.replier;
            let request = match &mut self.source {
                Source::All(consumer) => match consumer.next().await? {
                    Some(record) if Replier::is_asked(&record) => {
                        Some(Request { record: Arc::new(record), replier: replier.clone(), unsettled: None })
                    }
                    Some(_) => None,
                    None => return Ok(None),
                },
                Source::Group(consumer) => match consumer.next().await? {
                    Some(received) if Replier::is_asked(&received) => {
                        Some(Request::of_group(received, replier.clone()))
                    }
                    Some(received) => {
                        if let Err(late) = received.ack() {
                            tracing::debug!(%late, "a record that asks for no reply");
                        }
                        None
                    }
                    None => return Ok(None),
                },
            };
            match request {
                Some(request) => return Ok(Some(request)),
                None => self.not_asked += 1,
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
    /// # async fn example(mut responder: busbar_client::Responder) -> Result<(), busbar_client::ResponderError> {
    /// responder.serve(16, async |request| match std::str::from_utf8(request.value()) {
    ///     Ok(text) => Ok(text.to_uppercase().into()),
    ///     Err(error) => Err(error),
    /// }).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// The topic is gone, or the responder is not in its group any more.
    pub async fn serve<E, F>(
        &mut self,
        concurrency: usize,
        handler: impl Fn(Request) -> F,
    ) -> Result<(), ResponderError>
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
                Err(error) if error.is_final() => return Err(error),
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

    /// The consumer of the requests; `None` with a group.
    pub fn consumer(&self) -> Option<&Consumer> {
        match &self.source {
            Source::All(consumer) => Some(consumer),
            Source::Group(_) => None,
        }
    }

    /// The group's consumer of the requests; `None` without a group.
    pub fn group(&self) -> Option<&GroupConsumer> {
        match &self.source {
            Source::All(_) => None,
            Source::Group(consumer) => Some(consumer),
        }
    }

    /// Reads no more and delivers the replies that were taken. With a group, it then commits and leaves, so that the
    /// others go on at once.
    ///
    /// # Errors
    /// The first reply that could not be delivered.
    pub async fn close(&mut self) -> Result<(), DeliveryError> {
        match &mut self.source {
            Source::All(consumer) => {
                consumer.close().await;
                self.replier.close().await
            }
            // What its replies settle belongs to the last commit.
            Source::Group(consumer) => {
                let delivered = self.replier.close().await;
                if let Err(error) = consumer.close().await {
                    tracing::warn!(%error, "the responder left its group without a last commit");
                }
                delivered
            }
        }
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
