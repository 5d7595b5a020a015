//! NATS JetStream as the broker under test, through its own client, `async-nats`. A partition is a stream of its own, file
//! storage, with one subject; an acknowledgement is JetStream's.
//!
//! Whether the servers sync before they acknowledge is their `sync_interval`, which no client can ask for: `--durability`
//! says how they were started, and is printed as told. Options of Busbar's client that `async-nats` has no counterpart of
//! (batches, linger, compression) do nothing here.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, push},
    stream::{self, StorageType},
};
use futures::{StreamExt as _, stream::SelectAll};

use super::{Consumer, Message, Producer, Received, Sent, Target, TopicFacts, TopicRequest};
use crate::load::options::{Durability, Options};

const PARTITIONS_DEFAULT: u32 = 1;
const REPLICAS_DEFAULT: u32 = 3;

/// A NATS cluster and how its clients are made.
pub(crate) struct Nats {
    servers: Vec<String>,
    topic: String,
    durability: Durability,
    unacknowledged_max: usize,
    jetstream: jetstream::Context,
    partitions: AtomicUsize,
}

impl Nats {
    /// Connects to any of `--server`.
    ///
    /// # Errors
    /// When none answers, or the topic's name is none for a stream.
    pub(crate) async fn connect(options: &Options) -> anyhow::Result<Self> {
        let is_name = options.topic.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        ensure!(is_name, "a stream's name has letters, digits, - and _ only: choose another --topic");
        let servers: Vec<String> = options.server.split(',').map(str::to_owned).collect();
        let jetstream = jetstream::new(connect(&servers).await?);
        Ok(Self {
            servers,
            topic: options.topic.clone(),
            durability: options.durability.unwrap_or(Durability::Replicated),
            unacknowledged_max: options.nats_unacknowledged as usize,
            jetstream,
            partitions: AtomicUsize::new(0),
        })
    }

    fn stream(&self, partition: u32) -> String {
        format!("{}-{partition}", self.topic)
    }
}

async fn connect(servers: &[String]) -> anyhow::Result<async_nats::Client> {
    let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 16).client_capacity(1 << 12);
    options.connect(servers).await.context("connect to NATS")
}

impl Target for Nats {
    type Producer = NatsProducer;
    type Consumer = NatsConsumer;

    async fn prepare(&self, wanted: TopicRequest) -> anyhow::Result<TopicFacts> {
        let partitions = wanted.partitions.unwrap_or(PARTITIONS_DEFAULT);
        let mut replicas = 0;
        for partition in 0..partitions {
            let name = self.stream(partition);
            let config = stream::Config {
                subjects: vec![name.clone()],
                storage: StorageType::File,
                num_replicas: wanted.replicas.unwrap_or(REPLICAS_DEFAULT) as usize,
                name: name.clone(),
                ..stream::Config::default()
            };
            let made = self.jetstream.get_or_create_stream(config).await;
            let stream = made.with_context(|| format!("make stream {name}"))?;
            replicas = stream.cached_info().config.num_replicas.try_into()?;
        }
        self.partitions.store(partitions as usize, Ordering::Relaxed);
        Ok(TopicFacts { durability: self.durability, replicas, partitions })
    }

    async fn producer(&self) -> anyhow::Result<NatsProducer> {
        let client = connect(&self.servers).await?;
        let builder = jetstream::context::ContextBuilder::new().max_ack_inflight(self.unacknowledged_max);
        let partitions = self.partitions.load(Ordering::Relaxed);
        let subject = |partition| self.stream(partition as u32).into();
        Ok(NatsProducer {
            jetstream: builder.backpressure_on_inflight(true).build(client.clone()),
            client,
            subjects: (0..partitions).map(subject).collect(),
            turn: AtomicUsize::new(0),
        })
    }

    async fn consumer(&self, partitions: &[u32]) -> anyhow::Result<NatsConsumer> {
        let client = connect(&self.servers).await?;
        let jetstream = jetstream::new(client.clone());
        let mut messages = SelectAll::new();
        for &partition in partitions {
            let name = self.stream(partition);
            let stream = jetstream.get_stream(&name).await.with_context(|| format!("find stream {name}"))?;
            // A number, not "new": what comes while the consumer is being made counts.
            let last =
                stream.get_info().await.with_context(|| format!("ask for the end of {name}"))?.state.last_sequence;
            let config = push::OrderedConfig {
                deliver_subject: client.new_inbox(),
                deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: last + 1 },
                ..push::OrderedConfig::default()
            };
            let consumer =
                stream.create_consumer(config).await.with_context(|| format!("make a consumer of {name}"))?;
            let read = consumer.messages().await.with_context(|| format!("read {name}"))?;
            messages.push(read.map(move |message| (partition, message)).boxed());
        }
        Ok(NatsConsumer { messages })
    }

    async fn discard(&self) -> anyhow::Result<()> {
        // As many as `prepare` made or found.
        for partition in 0..self.partitions.load(Ordering::Relaxed) {
            let name = self.stream(u32::try_from(partition)?);
            self.jetstream.delete_stream(&name).await.with_context(|| format!("delete stream {name}"))?;
        }
        Ok(())
    }
}

/// One connection that publishes.
pub(crate) struct NatsProducer {
    jetstream: jetstream::Context,
    client: async_nats::Client,
    subjects: Vec<Arc<str>>,
    /// Of records without a key.
    turn: AtomicUsize,
}

impl Producer for NatsProducer {
    type Ack = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

    async fn send(&self, message: Message) -> anyhow::Result<Sent<Self::Ack>> {
        let partitions = self.subjects.len();
        let partition = match (message.partition, &message.key) {
            (Some(partition), _) => partition as usize,
            (None, Some(key)) => busbar_client::partition_of_key(key, u32::try_from(partitions)?).get() as usize,
            (None, None) => self.turn.fetch_add(1, Ordering::Relaxed) % partitions,
        };
        let subject = self.subjects[partition].to_string();
        let ack = self.jetstream.publish(subject, message.value).await.context("publish")?.into_future();
        let ack: Self::Ack = Box::pin(async move { ack.await.map(drop).map_err(|error| error.to_string()) });
        Ok(Sent { partition: Some(u32::try_from(partition)?), ack })
    }

    async fn flush(&self) -> anyhow::Result<()> {
        self.client.flush().await.context("flush")
    }

    fn retries(&self) -> u64 {
        0
    }
}

type Messages = Pin<
    Box<dyn futures::Stream<Item = (u32, Result<jetstream::Message, jetstream::consumer::push::OrderedError>)> + Send>,
>;

/// One connection that reads a share of the streams, each in order.
pub(crate) struct NatsConsumer {
    messages: SelectAll<Messages>,
}

impl Consumer for NatsConsumer {
    async fn next(&mut self) -> anyhow::Result<Option<Received>> {
        let Some((partition, message)) = self.messages.next().await else { return Ok(None) };
        let message = message.context("read")?;
        Ok(Some(Received { partition, value: message.payload.clone() }))
    }
}
