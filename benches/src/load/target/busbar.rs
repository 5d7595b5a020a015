//! Busbar as the broker under test, through `busbar-client` and nothing else: the tool measures what an
//! application would get.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, bail};
use busbar_client as client;
use busbar_proto::{Reason, v1};
use tokio::time::{Instant, sleep};

use super::{Consumer, Message, Producer, Received, Sent, Target, TopicFacts, TopicRequest};
use crate::load::options::{Compression, Durability, Options};

const PARTITIONS_DEFAULT: u32 = 1;
/// Fewer on a cluster that has fewer nodes.
const REPLICAS_DEFAULT: usize = 3;
/// How long a topic of thousands of partitions may take to be made, to have its leaders, or to be gone.
const CHANGE_LIMIT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A Busbar cluster and the options of the clients on it.
pub(crate) struct Busbar {
    client: client::Client,
    topic: String,
    batch_bytes: usize,
    linger: Duration,
    compression: client::Compression,
    in_flight: usize,
    buffer_bytes: usize,
    keyed: bool,
}

impl Busbar {
    /// Connects to the first of `--server` that answers.
    ///
    /// # Errors
    /// When none does.
    pub(crate) async fn connect(options: &Options) -> anyhow::Result<Self> {
        Ok(Self {
            client: client::Client::connect(&options.server).await?,
            topic: options.topic.clone(),
            batch_bytes: options.batch_bytes as usize,
            linger: Duration::from_millis(options.linger),
            compression: match options.compression {
                Compression::None => client::Compression::None,
                Compression::Lz4 => client::Compression::Lz4,
                Compression::Zstd => client::Compression::Zstd,
            },
            in_flight: options.in_flight as usize,
            buffer_bytes: options.buffer_bytes as usize,
            keyed: options.keyed,
        })
    }

    async fn describe(&self) -> Result<v1::DescribeTopicResponse, client::ClientError> {
        self.client.admin().describe_topic(&self.topic).await
    }

    async fn create(&self, wanted: TopicRequest) -> anyhow::Result<()> {
        let admin = self.client.admin();
        let replicas = match wanted.replicas {
            Some(replicas) => replicas,
            None => {
                let cluster = admin.describe_cluster().await.context("count the cluster's nodes")?;
                u32::try_from(cluster.nodes.len().clamp(1, REPLICAS_DEFAULT))?
            }
        };
        let options = client::TopicOptions {
            partitions: wanted.partitions.unwrap_or(PARTITIONS_DEFAULT),
            replicas,
            durability: match wanted.durability.unwrap_or(Durability::Fsync) {
                Durability::Fsync => client::Durability::Fsync,
                Durability::Replicated => client::Durability::Replicated,
            },
            ..client::TopicOptions::default()
        };
        let deadline = Instant::now() + CHANGE_LIMIT;
        loop {
            match admin.create_topic(&self.topic, options).await {
                Ok(_) => return Ok(()),
                // Another run was faster, or this one at an earlier attempt: that topic is as good.
                Err(error) if error.reason() == Some(Reason::TopicExists) => return Ok(()),
                Err(error) if error.is_retryable() && Instant::now() < deadline => sleep(LOOK_EVERY).await,
                Err(error) => return Err(error).with_context(|| format!("create topic {}", self.topic)),
            }
        }
    }

    /// Waits until each partition of the topic that was made has a leader: before, thousands of consumers' and producers'
    /// questions would come on top of as many elections.
    async fn ready(&self) -> anyhow::Result<v1::DescribeTopicResponse> {
        let deadline = Instant::now() + CHANGE_LIMIT;
        loop {
            match self.describe().await {
                Ok(found) if found.partitions.iter().all(|partition| partition.leader > 0) => return Ok(found),
                Ok(_) if Instant::now() >= deadline => bail!("topic {}: some partitions have no leader", self.topic),
                Err(error) if !error.is_retryable() || Instant::now() >= deadline => {
                    return Err(error).with_context(|| format!("describe topic {}", self.topic));
                }
                Ok(_) | Err(_) => sleep(LOOK_EVERY).await,
            }
        }
    }
}

impl Target for Busbar {
    type Producer = BusbarProducer;
    type Consumer = BusbarConsumer;

    async fn prepare(&self, wanted: TopicRequest) -> anyhow::Result<TopicFacts> {
        let found = match self.describe().await {
            Ok(found) => found,
            Err(error) if error.reason() == Some(Reason::UnknownTopic) => {
                self.create(wanted).await?;
                self.ready().await?
            }
            Err(error) => return Err(error).with_context(|| format!("describe topic {}", self.topic)),
        };
        let config = found.config.unwrap_or_default();
        Ok(TopicFacts {
            durability: match client::Durability::of(&config) {
                client::Durability::Replicated => Durability::Replicated,
                client::Durability::Fsync => Durability::Fsync,
            },
            replicas: config.replicas,
            partitions: u32::try_from(found.partitions.len())?,
        })
    }

    async fn producer(&self) -> anyhow::Result<BusbarProducer> {
        let producer = self
            .client
            .producer(&self.topic)
            .batch_bytes(self.batch_bytes)
            .linger(self.linger)
            .compression(self.compression)
            .in_flight(self.in_flight)
            .buffer_bytes(self.buffer_bytes)
            .build()
            .await?;
        Ok(BusbarProducer { keyed: self.keyed, producer })
    }

    async fn consumer(&self, partitions: &[u32]) -> anyhow::Result<BusbarConsumer> {
        let latest = client::StartAt::Latest;
        let consumer = self.client.consumer(&self.topic).partitions(partitions.to_vec()).from(latest).build().await?;
        Ok(BusbarConsumer(consumer))
    }

    async fn discard(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + CHANGE_LIMIT;
        loop {
            match self.client.admin().delete_topic(&self.topic).await {
                Err(error) if error.reason() == Some(Reason::UnknownTopic) => return Ok(()),
                Err(error) if error.is_retryable() && Instant::now() < deadline => sleep(LOOK_EVERY).await,
                deleted => return deleted.with_context(|| format!("delete topic {}", self.topic)),
            }
        }
    }
}

/// One idempotent producer.
pub(crate) struct BusbarProducer {
    producer: client::Producer,
    keyed: bool,
}

impl Producer for BusbarProducer {
    type Ack = Ack;

    async fn send(&self, message: Message) -> anyhow::Result<Sent<Ack>> {
        let partitions = self.producer.partitions();
        let partition = match (message.partition, &message.key) {
            _ if partitions == 1 => Some(0),
            (Some(partition), _) => Some(partition),
            (None, Some(key)) if self.keyed => Some(client::partition_of_key(key, partitions).get()),
            // The client picks; its receipt tells where only with the outcome.
            _ => None,
        };
        let mut record = client::Record::new(message.value);
        (record.key, record.partition) = (message.key, message.partition);
        Ok(Sent { partition, ack: Ack(self.producer.send(record).await?) })
    }

    async fn flush(&self) -> anyhow::Result<()> {
        // Failed deliveries are counted where they are awaited; they do not end a run.
        let _ = self.producer.flush().await;
        Ok(())
    }

    fn retries(&self) -> u64 {
        self.producer.stats().retries
    }
}

/// A delivery whose place does not matter.
pub(crate) struct Ack(client::Delivery);

impl Future for Ack {
    type Output = Result<(), String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|fate| fate.map(drop).map_err(|error| error.to_string()))
    }
}

/// One consumer of a share of the partitions.
pub(crate) struct BusbarConsumer(client::Consumer);

impl Consumer for BusbarConsumer {
    async fn next(&mut self) -> anyhow::Result<Option<Received>> {
        loop {
            match self.0.next().await {
                Ok(found) => {
                    return Ok(
                        found.map(|record| Received { partition: record.partition(), value: record.value().clone() })
                    );
                }
                // The client has tried for a while and tries on; a run outlives a failover, and what stays
                // unread shows as lost.
                Err(error) if error.is_retryable() => eprintln!("busbar-bench: still trying: {error}"),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
