//! Replying: [`Replier`] publishes replies where their requests ask for them, through one producer a reply topic.
//!
//! Invariants: a reply carries its request's correlation as it came; there are at most
//! [`limits::REPLY_TOPICS_MAX`] producers, as requests may name any topic. One that has to make room first delivers
//! what it holds.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use busbar_proto::{TopicName, limits};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::{
    error::ReplyError,
    headers::{self, NoAddress, ReplyAddress},
};
use crate::{
    cluster::Cluster,
    consumer::ConsumedRecord,
    error::{DeliveryError, SendError},
    group::SettleError,
    producer::{Delivery, Producer, ProducerBuilder},
    record::Record,
    task::{Kind, Tasks},
};

/// Replies to records that ask for it, whichever consumer has read them. Cheap to clone; clones share producers.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::Record;
///
/// let replier = client.replier();
/// let mut consumer = client.consumer("prices").build().await?;
/// while let Some(request) = consumer.next().await? {
///     replier.reply(&request, Record::new("12.50")).await?.await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Replier {
    core: Arc<Core>,
}

/// What a replier has done so far.
///
/// ```no_run
/// # fn example(replier: busbar_client::Replier) {
/// let stats = replier.stats();
/// println!("{} replies, {} of them failures", stats.replies, stats.failures);
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplierStats {
    /// Replies taken, those of failure included.
    pub replies: u64,
    /// Of those: replies of failure.
    pub failures: u64,
    /// Replies that were not taken: nowhere to go, or no such topic.
    pub refused: u64,
    /// Topics that it has a producer for now.
    pub topics: u64,
}

#[derive(Debug)]
struct Core {
    cluster: Arc<Cluster>,
    tasks: Tasks,
    producers: Mutex<Producers>,
    replies: AtomicU64,
    failures: AtomicU64,
    refused: AtomicU64,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// A producer that is being built, or is there.
type Slot = Arc<OnceCell<Producer>>;

#[derive(Debug, Default)]
struct Producers {
    by_topic: HashMap<TopicName, Used>,
    /// Counts uses.
    clock: u64,
    closed: bool,
}

#[derive(Debug)]
struct Used {
    slot: Slot,
    last: u64,
}

impl Producers {
    /// The topic's slot, and the one that had to go for it.
    fn slot(&mut self, topic: &TopicName) -> Option<(Slot, Option<Slot>)> {
        if self.closed {
            return None;
        }
        self.clock += 1;
        let last = self.clock;
        if let Some(used) = self.by_topic.get_mut(topic) {
            used.last = last;
            return Some((used.slot.clone(), None));
        }
        let mut gone = None;
        if self.by_topic.len() >= limits::REPLY_TOPICS_MAX {
            let oldest = self.by_topic.iter().min_by_key(|(_, used)| used.last).map(|(topic, _)| topic.clone());
            gone = oldest.and_then(|oldest| self.by_topic.remove(&oldest)).map(|used| used.slot);
        }
        let slot = Slot::default();
        self.by_topic.insert(topic.clone(), Used { slot: slot.clone(), last });
        Some((slot, gone))
    }

    /// The slot is of no more use.
    fn drop_slot(&mut self, topic: &TopicName, slot: &Slot) {
        if self.by_topic.get(topic).is_some_and(|used| Arc::ptr_eq(&used.slot, slot)) {
            self.by_topic.remove(topic);
        }
    }
}

impl Replier {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        let tasks = cluster.tasks.child();
        let (replies, failures, refused) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self { core: Arc::new(Core { cluster, tasks, producers: Mutex::default(), replies, failures, refused }) }
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.core.cluster
    }

    /// Settles a request in the background.
    pub(super) fn settle(&self, settling: impl Future<Output = Result<(), SettleError>> + Send + 'static) {
        self.core.tasks.spawn(Kind::SettleRequest, async move {
            if let Err(late) = settling.await {
                tracing::debug!(%late, "a request was replied to, and is delivered again");
            }
        });
    }

    /// Whether a record asks for a reply.
    pub fn is_asked(record: &ConsumedRecord) -> bool {
        ReplyAddress::of(record) != Err(NoAddress::NotAsked)
    }

    /// Replies to a record. The partition of the reply is the requester's choice. The receipt resolves when the
    /// reply's fate is known.
    ///
    /// Cancel safe: a reply whose call was dropped is not sent.
    ///
    /// # Errors
    /// [`ReplyError`]: the record asks for no reply, or for one where none can go.
    pub async fn reply(&self, to: &ConsumedRecord, reply: impl Into<Record>) -> Result<Delivery, ReplyError> {
        let sent = self.send(to, reply.into()).await;
        let counter = if sent.is_ok() { &self.core.replies } else { &self.core.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        sent
    }

    /// Replies that there is no proper reply, and why: the requester gets
    /// [`RequestError::Failed`](super::RequestError::Failed). The text is cut at 1 KiB.
    ///
    /// # Errors
    /// As [`Self::reply`].
    pub async fn fail(&self, to: &ConsumedRecord, message: &str) -> Result<Delivery, ReplyError> {
        let mut reply = Record::default();
        headers::fail(&mut reply, message);
        let sent = self.reply(to, reply).await;
        self.core.failures.fetch_add(u64::from(sent.is_ok()), Ordering::Relaxed);
        sent
    }

    /// What it has done so far.
    pub fn stats(&self) -> ReplierStats {
        let core = &self.core;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReplierStats {
            replies: read(&core.replies),
            failures: read(&core.failures),
            refused: read(&core.refused),
            topics: core.producers.lock().by_topic.len() as u64,
        }
    }

    /// Takes no more replies, for all clones, and delivers those it has taken.
    ///
    /// # Errors
    /// The first reply that could not be delivered.
    pub async fn close(&self) -> Result<(), DeliveryError> {
        let left = {
            let mut producers = self.core.producers.lock();
            producers.closed = true;
            std::mem::take(&mut producers.by_topic)
        };
        let mut closed = Ok(());
        for producer in left.values().filter_map(|used| used.slot.get()) {
            let ended = producer.close().await;
            closed = closed.and(ended);
        }
        closed
    }

    async fn send(&self, to: &ConsumedRecord, mut reply: Record) -> Result<Delivery, ReplyError> {
        let address = ReplyAddress::of(to).map_err(|fault| match fault {
            NoAddress::NotAsked => ReplyError::NotAsked,
            NoAddress::Malformed(fault) => ReplyError::Address(fault),
        })?;
        let topic = address.topic.clone();
        address.put_on(&mut reply);
        let (slot, producer) = self.producer(&topic).await?;
        let sent = producer.send(reply).await;
        if let Err(SendError::TopicGone { .. }) = sent {
            // The next reply looks for a topic of that name anew.
            self.core.producers.lock().drop_slot(&topic, &slot);
        }
        Ok(sent?)
    }

    async fn producer(&self, topic: &TopicName) -> Result<(Slot, Producer), ReplyError> {
        let (slot, gone) = self.core.producers.lock().slot(topic).ok_or(ReplyError::Closed)?;
        if let Some(producer) = gone.and_then(|gone| gone.get().cloned()) {
            self.core.tasks.spawn(Kind::ReplyProducerEnd, async move {
                if let Err(error) = producer.close().await {
                    tracing::warn!(topic = producer.topic(), %error, "a reply was not delivered");
                }
            });
        }
        let build = || ProducerBuilder::new(self.core.cluster.clone(), topic.as_str().to_owned()).build();
        match slot.get_or_try_init(build).await {
            Ok(producer) => Ok((slot.clone(), producer.clone())),
            Err(source) => {
                self.core.producers.lock().drop_slot(topic, &slot);
                Err(ReplyError::Topic { topic: topic.as_str().to_owned(), source: Box::new(source) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(number: usize) -> TopicName {
        format!("t{number}").parse().expect("a name")
    }

    #[test]
    fn the_one_longest_unused_makes_room() {
        let mut producers = Producers::default();
        for number in 0..limits::REPLY_TOPICS_MAX {
            assert!(producers.slot(&topic(number)).is_some_and(|(_, gone)| gone.is_none()));
        }
        let (first, gone) = producers.slot(&topic(0)).expect("open");
        assert!(gone.is_none());
        let second = producers.by_topic[&topic(1)].slot.clone();
        let (_, gone) = producers.slot(&topic(limits::REPLY_TOPICS_MAX)).expect("open");
        assert!(gone.is_some_and(|gone| Arc::ptr_eq(&gone, &second)), "the first was used since");
        assert_eq!(producers.by_topic.len(), limits::REPLY_TOPICS_MAX);
        producers.drop_slot(&topic(0), &second);
        assert!(producers.by_topic.contains_key(&topic(0)), "not its slot");
        producers.drop_slot(&topic(0), &first);
        assert!(!producers.by_topic.contains_key(&topic(0)));
        producers.closed = true;
        assert!(producers.slot(&topic(2)).is_none());
    }
}
