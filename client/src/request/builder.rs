//! Options of a [`Requester`] and of a [`Responder`].

use std::sync::Arc;

use busbar_proto::limits;

use super::{
    reading,
    replier::Replier,
    reply_topic,
    requester::{Core, Parts, Requester},
    responder::{Responder, Source},
};
use crate::{
    admin::TopicOptions,
    cluster::Cluster,
    consumer::{ConsumerBuilder, StartAt},
    error::ClientError,
    group::{DeadLetter, GroupBuilder},
    producer::{Producer, ProducerBuilder},
    task::Kind,
};

/// Requests that may wait for a reply unless told otherwise.
const IN_FLIGHT_DEFAULT: usize = 1 << 16;

/// Options of a [`Requester`]; `build` makes it.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let prices = client.requester("prices").in_flight(1000).reply_topic("answers").build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until build() is called"]
pub struct RequesterBuilder {
    cluster: Arc<Cluster>,
    topic: String,
    reply_topic: Option<String>,
    reply_topic_options: Option<TopicOptions>,
    producer: Option<Producer>,
    in_flight: usize,
}

impl RequesterBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>, topic: String) -> Self {
        Self {
            cluster,
            topic,
            reply_topic: None,
            reply_topic_options: None,
            producer: None,
            in_flight: IN_FLIGHT_DEFAULT,
        }
    }

    /// A topic for the replies, which must be there. Requesters may share one: each reads one partition of it, that
    /// chance chooses. Default: `<topic>.replies`, made at [`Self::build`] when it is missing.
    pub fn reply_topic(mut self, name: impl Into<String>) -> Self {
        self.reply_topic = Some(name.into());
        self
    }

    /// How `<topic>.replies` is made when it is missing. Default: up to 8 partitions, replicas as the topic of the
    /// requests, durability `replicated`, kept for an hour.
    pub fn reply_topic_options(mut self, options: TopicOptions) -> Self {
        self.reply_topic_options = Some(options);
        self
    }

    /// Sends through this producer of the same topic, which stays open when the requester ends. Default: one of its
    /// own, with default options.
    pub fn producer(mut self, producer: Producer) -> Self {
        self.producer = Some(producer);
        self
    }

    /// Requests that may wait for a reply at a time; more wait for one of these to end. Default 65,536; at most
    /// 1,048,576.
    pub fn in_flight(mut self, requests: usize) -> Self {
        self.in_flight = requests;
        self
    }

    /// Looks both topics up, makes the one of replies if it may, and begins to read replies at its end: none is
    /// missed.
    ///
    /// # Errors
    /// An option out of range; no such topic; nobody answers; the partition of the replies has no leader.
    pub async fn build(self) -> Result<Requester, ClientError> {
        self.check()?;
        let Self { cluster, topic, reply_topic, reply_topic_options, producer, in_flight } = self;
        let owned = producer.is_none();
        let producer = match producer {
            Some(producer) => producer,
            None => ProducerBuilder::new(cluster.clone(), topic.clone()).build().await?,
        };
        let (reply_topic, partitions) = match reply_topic {
            Some(name) => {
                let partitions = reply_topic::partitions(&cluster, &name).await?;
                (name, partitions)
            }
            None => {
                let name = reply_topic::name_for(&topic);
                let partitions = reply_topic::find_or_make(&cluster, &name, &topic, reply_topic_options).await?;
                (name, partitions)
            }
        };
        let reply_partition = (cluster.env.random() % u64::from(partitions.max(1))) as u32;
        let replies = ConsumerBuilder::new(cluster.clone(), reply_topic.clone()).partitions([reply_partition]);
        let replies = replies.from(StartAt::Latest).build().await?;
        let places = in_flight;
        let parts = Parts { cluster, producer, owned, reply_topic: reply_topic.into(), reply_partition, places };
        let core = Core::new(&parts);
        core.tasks.spawn(Kind::Replies, reading::run(core.clone(), replies));
        Ok(Requester::new(core, parts))
    }

    fn check(&self) -> Result<(), ClientError> {
        if !(1..=limits::REQUESTS_IN_FLIGHT_MAX).contains(&self.in_flight) {
            let (found, rule) = (self.in_flight.to_string(), "1 to 1,048,576 requests");
            return Err(ClientError::InvalidOption { option: "in_flight", found, rule });
        }
        match &self.producer {
            Some(producer) if producer.topic() != self.topic => {
                let (found, rule) = (producer.topic().to_owned(), "the topic of the requests");
                Err(ClientError::InvalidOption { option: "producer", found, rule })
            }
            _ => Ok(()),
        }
    }
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
    topic: String,
    from: StartAt,
    partitions: Option<Vec<u32>>,
    credit_bytes: Option<usize>,
    group: Option<GroupBuilder>,
}

impl ResponderBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>, topic: String) -> Self {
        Self { cluster, topic, from: StartAt::Latest, partitions: None, credit_bytes: None, group: None }
    }

    /// Shares the requests with the other responders of this group: each is answered by one of them, acknowledged once
    /// its reply is stored, and delivered again, perhaps to another, if that does not come to pass. One that is not
    /// answered in 5 deliveries is given up and counted ([`GroupStats::dropped`](crate::GroupStats::dropped)), as nobody
    /// waits any more; see [`Self::group_with`] for other rules. Default: none, each responder answers every request.
    ///
    /// ```no_run
    /// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut responder = client.responder("prices").group("pricing").build().await?;
    /// while let Some(request) = responder.next().await? {
    ///     request.reply("12.50").await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn group(self, group: impl Into<String>) -> Self {
        self.group_with(group, |options| options)
    }

    /// As [`Self::group`], with options of the group's consumer: lease, deliveries, dead letters, the member's name.
    ///
    /// ```no_run
    /// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// let slow = client.responder("prices").group_with("pricing", |group| group.lease(Duration::from_secs(300)));
    /// let mut responder = slow.build().await?;
    /// # Ok(()) }
    /// ```
    pub fn group_with(mut self, group: impl Into<String>, options: impl FnOnce(GroupBuilder) -> GroupBuilder) -> Self {
        let group = GroupBuilder::new(self.cluster.clone(), group.into()).dead_letter(DeadLetter::Off);
        self.group = Some(options(group.topics([self.topic.clone()])));
        self
    }

    /// Where to begin in every partition; with a group, in those that it has not begun with. Default: latest, as nobody
    /// waits for replies to what is old.
    pub fn from(mut self, from: StartAt) -> Self {
        self.from = from;
        self
    }

    /// The partitions to read; not with a group, which shares them itself. Default: all.
    pub fn partitions(mut self, partitions: impl Into<Vec<u32>>) -> Self {
        self.partitions = Some(partitions.into());
        self
    }

    /// Bytes of requests received and not read yet (with a group: not replied to). Default 8 MiB.
    pub fn credit_bytes(mut self, credit_bytes: usize) -> Self {
        self.credit_bytes = Some(credit_bytes);
        self
    }

    /// Looks the topic up and begins to read: what is published after that is answered.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::build`], or as [`GroupBuilder::build`] with a group; partitions and a group.
    pub async fn build(self) -> Result<Responder, ClientError> {
        let Self { cluster, topic, from, partitions, credit_bytes, group } = self;
        let replier = Replier::new(cluster.clone());
        let Some(mut group) = group else {
            let mut consumer = ConsumerBuilder::new(cluster, topic).from(from);
            if let Some(partitions) = partitions {
                consumer = consumer.partitions(partitions);
            }
            if let Some(credit_bytes) = credit_bytes {
                consumer = consumer.credit_bytes(credit_bytes);
            }
            return Ok(Responder::new(Source::All(Box::new(consumer.build().await?)), replier));
        };
        if let Some(partitions) = partitions {
            let (found, rule) = (format!("{partitions:?}"), "none with a group, which shares the partitions itself");
            return Err(ClientError::InvalidOption { option: "partitions", found, rule });
        }
        group = group.from(from);
        if let Some(credit_bytes) = credit_bytes {
            group = group.credit_bytes(credit_bytes);
        }
        let consumer = group.build().await?;
        consumer.begun().await?;
        Ok(Responder::new(Source::Group(Box::new(consumer)), replier))
    }
}
