//! Kafka as the broker under test, through `rdkafka` (librdkafka): `acks=all`, idempotent producers, at most five batches
//! under way a connection.
//!
//! A Kafka broker acknowledges what is in the page cache of the in-sync replicas; it syncs each batch first when its topic
//! has `flush.messages=1`. `--durability fsync` makes such a topic, and a topic's own setting is read back, so the first
//! line tells what is so. A topic that is made here wants a majority in sync (`min.insync.replicas`).

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, atomic::AtomicU32, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _, StreamConsumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{FutureProducer, FutureRecord, Producer as _},
};
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{Consumer, Message, Producer, Received, Sent, Target, TopicFacts, TopicRequest};
use crate::load::options::{Compression, Durability, Options};

const PARTITIONS_DEFAULT: u32 = 1;
/// Fewer on a cluster that has fewer brokers.
const REPLICAS_DEFAULT: usize = 3;
/// One question to the cluster.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The same of a topic's settings, which some that speak Kafka's protocol never answer.
const SETTINGS_LIMIT: Duration = Duration::from_secs(5);
/// How long a topic that was made may take until every partition has a leader.
const READY_LIMIT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Besides a record's bytes: framing, and what the client keeps of it. Small records must not overrun the client's queue.
const RECORD_OVERHEAD_BYTES: usize = 64;
/// What a batch may be at least, as in the client's own default.
const BATCH_BYTES_DEFAULT: u32 = 1_000_000;
/// The topic's setting that makes a broker sync before it acknowledges.
const SYNC_SETTING: &str = "flush.messages";

/// A Kafka cluster and how its clients are made.
pub(crate) struct Kafka {
    topic: String,
    size: u32,
    buffer_bytes: u32,
    /// Of producers.
    settings: ClientConfig,
    /// Of everything.
    connection: ClientConfig,
    /// Asks, and never makes a topic by asking.
    asker: Arc<BaseConsumer>,
    admin: AdminClient<DefaultClientContext>,
    partitions: AtomicU32,
}

impl Kafka {
    /// A cluster that any of `--server` belongs to.
    ///
    /// # Errors
    /// When none of them answers.
    pub(crate) async fn connect(options: &Options) -> anyhow::Result<Self> {
        let mut connection = ClientConfig::new();
        connection.set("bootstrap.servers", &options.server).set("client.id", "busbar-bench");
        // A small request must not wait for the answer to the one before it.
        connection.set("socket.nagle.disable", "true");
        let mut asking = connection.clone();
        asking.set("group.id", "busbar-bench").set("allow.auto.create.topics", "false");
        let asker: Arc<BaseConsumer> = Arc::new(asking.create().context("make a Kafka client")?);
        let kafka = Self {
            topic: options.topic.clone(),
            size: options.size,
            buffer_bytes: options.buffer_bytes,
            settings: producer_settings(&connection, options),
            admin: connection.create().context("make a Kafka client")?,
            connection,
            asker,
            partitions: AtomicU32::new(0),
        };
        kafka.brokers().await.with_context(|| format!("connect to Kafka at {}", options.server))?;
        Ok(kafka)
    }

    async fn brokers(&self) -> anyhow::Result<usize> {
        let asker = Arc::clone(&self.asker);
        let metadata = spawn_blocking(move || asker.fetch_metadata(None, ANSWER_LIMIT)).await??;
        Ok(metadata.brokers().len())
    }

    /// Partitions and replicas of the topic; `None` without the topic, or while a partition has no leader.
    async fn find(&self) -> anyhow::Result<Option<(u32, u32)>> {
        let (asker, topic) = (Arc::clone(&self.asker), self.topic.clone());
        let metadata = spawn_blocking(move || asker.fetch_metadata(Some(&topic), ANSWER_LIMIT)).await?;
        let metadata = metadata.with_context(|| format!("describe topic {}", self.topic))?;
        let found = metadata.topics().iter().find(|topic| topic.name() == self.topic && topic.error().is_none());
        let Some(found) = found.filter(|topic| !topic.partitions().is_empty()) else { return Ok(None) };
        if found.partitions().iter().any(|partition| partition.leader() < 0) {
            return Ok(None);
        }
        let replicas = found.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
        Ok(Some((u32::try_from(found.partitions().len())?, u32::try_from(replicas)?)))
    }

    async fn create(&self, wanted: TopicRequest) -> anyhow::Result<()> {
        let replicas = match wanted.replicas {
            Some(replicas) => replicas as usize,
            None => self.brokers().await?.clamp(1, REPLICAS_DEFAULT),
        };
        let partitions = i32::try_from(wanted.partitions.unwrap_or(PARTITIONS_DEFAULT))?;
        let majority = (replicas / 2 + 1).to_string();
        let largest = largest_batch(self.size, 0).to_string();
        let mut topic = NewTopic::new(&self.topic, partitions, TopicReplication::Fixed(i32::try_from(replicas)?))
            .set("min.insync.replicas", &majority)
            .set("max.message.bytes", &largest);
        if wanted.durability.unwrap_or(Durability::Fsync) == Durability::Fsync {
            topic = topic.set(SYNC_SETTING, "1");
        }
        let limits = AdminOptions::new().request_timeout(Some(ANSWER_LIMIT)).operation_timeout(Some(ANSWER_LIMIT));
        let made = self.admin.create_topics([&topic], &limits).await;
        let made = made.with_context(|| format!("create topic {}", self.topic))?;
        match made.into_iter().find_map(Result::err) {
            // Another run was faster: its topic is as good.
            None | Some((_, RDKafkaErrorCode::TopicAlreadyExists)) => Ok(()),
            Some((topic, code)) => bail!("create topic {topic}: {code}"),
        }
    }

    /// Waits until the topic that was made has a leader for each partition.
    async fn ready(&self) -> anyhow::Result<(u32, u32)> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            match self.find().await? {
                Some(found) => return Ok(found),
                None if Instant::now() >= deadline => bail!("topic {} gets no leaders", self.topic),
                None => sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Whether the topic's batches are synced before they are acknowledged. What the cluster does not tell is not so.
    async fn durability(&self) -> Durability {
        let limits = AdminOptions::new().request_timeout(Some(SETTINGS_LIMIT));
        let described = self.admin.describe_configs([&ResourceSpecifier::Topic(&self.topic)], &limits).await;
        let described = described.and_then(|mut all| match all.pop() {
            Some(one) => one.map_err(KafkaError::AdminOp),
            None => Err(KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopicOrPartition)),
        });
        let setting = match &described {
            Ok(resource) => resource.get(SYNC_SETTING).and_then(|entry| entry.value.as_deref()),
            Err(error) => {
                eprintln!(
                    "busbar-bench: the cluster does not tell the topic's {SYNC_SETTING} ({error}): taken as not set"
                );
                None
            }
        };
        if setting == Some("1") { Durability::Fsync } else { Durability::Replicated }
    }
}

/// A batch as large as this must pass, with room for its framing.
fn largest_batch(size: u32, batch_bytes: u32) -> u32 {
    BATCH_BYTES_DEFAULT.max(size.saturating_add(1_024)).max(batch_bytes)
}

fn producer_settings(connection: &ClientConfig, options: &Options) -> ClientConfig {
    let mut settings = connection.clone();
    settings.set("enable.idempotence", "true").set("acks", "all");
    settings.set("max.in.flight.requests.per.connection", options.in_flight.to_string());
    settings.set("linger.ms", options.linger.to_string());
    settings.set("batch.size", options.batch_bytes.to_string());
    settings.set("batch.num.messages", "1000000");
    settings.set("message.max.bytes", largest_batch(options.size, options.batch_bytes).to_string());
    let compression = match options.compression {
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    };
    settings.set("compression.type", compression);
    // The bound is `buffer_bytes`, awaited before the queue; the queue's own limits would have to be polled for.
    settings.set("queue.buffering.max.messages", "10000000");
    settings.set("queue.buffering.max.kbytes", "2097151");
    settings
}

impl Target for Kafka {
    type Producer = KafkaProducer;
    type Consumer = KafkaConsumer;

    async fn prepare(&self, wanted: TopicRequest) -> anyhow::Result<TopicFacts> {
        let (partitions, replicas) = match self.find().await? {
            Some(found) => found,
            None => {
                self.create(wanted).await?;
                self.ready().await?
            }
        };
        self.partitions.store(partitions, Ordering::Relaxed);
        Ok(TopicFacts { durability: self.durability().await, replicas, partitions })
    }

    async fn producer(&self) -> anyhow::Result<KafkaProducer> {
        Ok(KafkaProducer {
            producer: self.settings.create().context("make a Kafka producer")?,
            topic: self.topic.clone(),
            partitions: self.partitions.load(Ordering::Relaxed),
            buffer_bytes: self.buffer_bytes,
            room: Arc::new(Semaphore::new(self.buffer_bytes as usize)),
        })
    }

    async fn consumer(&self, partitions: &[u32]) -> anyhow::Result<KafkaConsumer> {
        let mut settings = self.connection.clone();
        settings.set("group.id", "busbar-bench").set("enable.auto.commit", "false");
        settings.set("allow.auto.create.topics", "false");
        // What retention took away before it was read must not look like a loss.
        settings.set("auto.offset.reset", "error");
        settings.set("fetch.message.max.bytes", largest_batch(self.size, 0).to_string());
        // A full queue is looked at again soon: by default it would be a second, in which nothing is fetched.
        settings.set("fetch.queue.backoff.ms", "5");
        let consumer: StreamConsumer = settings.create().context("make a Kafka consumer")?;
        let (asker, topic, partitions) = (Arc::clone(&self.asker), self.topic.clone(), partitions.to_vec());
        let ends = spawn_blocking(move || {
            // Numbers, not "the end": what comes while the consumer is being made counts.
            let end = |partition: i32| asker.fetch_watermarks(&topic, partition, ANSWER_LIMIT).map(|(_, high)| high);
            let place = |partition: i32| Ok(((topic.clone(), partition), Offset::Offset(end(partition)?)));
            let partitions = partitions.into_iter().map(|partition| partition.cast_signed());
            partitions.map(place).collect::<Result<HashMap<_, _>, KafkaError>>()
        });
        let ends = ends.await?.with_context(|| format!("ask for the ends of topic {}", self.topic))?;
        consumer.assign(&TopicPartitionList::from_topic_map(&ends)?).context("assign partitions")?;
        Ok(KafkaConsumer(consumer))
    }

    async fn discard(&self) -> anyhow::Result<()> {
        let limits = AdminOptions::new().request_timeout(Some(ANSWER_LIMIT)).operation_timeout(Some(ANSWER_LIMIT));
        let deleted = self.admin.delete_topics(&[&self.topic], &limits).await;
        let deleted = deleted.with_context(|| format!("delete topic {}", self.topic))?;
        match deleted.into_iter().find_map(Result::err) {
            None | Some((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => Ok(()),
            Some((topic, code)) => bail!("delete topic {topic}: {code}"),
        }
    }
}

/// One idempotent producer.
pub(crate) struct KafkaProducer {
    producer: FutureProducer,
    topic: String,
    partitions: u32,
    buffer_bytes: u32,
    /// Bytes that may still be taken.
    room: Arc<Semaphore>,
}

impl Producer for KafkaProducer {
    type Ack = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

    async fn send(&self, message: Message) -> anyhow::Result<Sent<Self::Ack>> {
        let Message { partition, key, value } = message;
        let partition = match (partition, &key) {
            _ if self.partitions == 1 => Some(0),
            (Some(partition), _) => Some(partition),
            // The same as in Busbar's client, so that both meet the same load.
            (None, Some(key)) => Some(busbar_client::partition_of_key(key, self.partitions).get()),
            (None, None) => None,
        };
        let bytes = value.len() + key.as_ref().map_or(0, Bytes::len) + RECORD_OVERHEAD_BYTES;
        let bytes = u32::try_from(bytes)?.min(self.buffer_bytes);
        let room = Arc::clone(&self.room).acquire_many_owned(bytes).await.context("wait for room")?;
        let mut record = FutureRecord::<[u8], [u8]>::to(&self.topic).payload(&value);
        record.key = key.as_deref();
        record.partition = partition.map(u32::cast_signed);
        let fate = self.producer.send_result(record).map_err(|(error, _)| error).context("publish")?;
        let ack: Self::Ack = Box::pin(async move {
            let fate = fate.await;
            drop(room);
            match fate {
                Ok(Ok(_)) => Ok(()),
                Ok(Err((error, _))) => Err(error.to_string()),
                Err(_) => Err("the producer has ended".to_owned()),
            }
        });
        Ok(Sent { partition, ack })
    }

    async fn flush(&self) -> anyhow::Result<()> {
        let producer = self.producer.clone();
        // Failed deliveries are counted where they are awaited; they do not end a run.
        let _ = spawn_blocking(move || producer.flush(ANSWER_LIMIT)).await?;
        Ok(())
    }

    fn retries(&self) -> u64 {
        // librdkafka tells them in its statistics only.
        0
    }
}

/// One consumer of a share of the partitions, without a group.
pub(crate) struct KafkaConsumer(StreamConsumer);

impl Consumer for KafkaConsumer {
    async fn next(&mut self) -> anyhow::Result<Option<Received>> {
        loop {
            match self.0.recv().await {
                Ok(message) => {
                    let value = Bytes::copy_from_slice(message.payload().unwrap_or_default());
                    return Ok(Some(Received { partition: u32::try_from(message.partition())?, value }));
                }
                Err(error) if is_final(&error) => return Err(error).context("read"),
                // The client tries on; what stays unread shows as lost.
                Err(error) => eprintln!("busbar-bench: still trying: {error}"),
            }
        }
    }
}

/// Whether reading on is in vain.
fn is_final(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AutoOffsetReset, Fatal, TopicAuthorizationFailed, UnknownTopic, UnknownTopicOrPartition};
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| {
        [AutoOffsetReset, Fatal, TopicAuthorizationFailed, UnknownTopic, UnknownTopicOrPartition].contains(&code)
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use rdkafka::mocking::MockCluster;

    use super::*;
    use crate::load::{
        run::Audience,
        session::{Measured, connected},
    };

    /// Against librdkafka's own mock brokers: they speak the protocol, keep 5 MB a partition, and know no settings.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_paced_run_is_carried_and_checked() {
        let brokers = MockCluster::new(3).expect("mock brokers");
        brokers.create_topic("t", 4, 3).expect("a topic");
        for more in ["", "--keyed", "--even --producers 2 --consumers 2"] {
            let line = format!(
                "busbar-bench --target kafka --server {} --topic t --rate 1000 --warmup 0.2 --duration 1 --size 100 {more}",
                brokers.bootstrap_servers()
            );
            let options = Options::try_parse_from(line.split_whitespace()).expect("valid options");
            let mut printed = Vec::new();
            let audience = Audience { print: &mut |line| printed.push(line.to_owned()), mark: &mut |_| {} };
            let report = connected(&options, Measured { options: &options, audience }).await.expect("runs");
            assert_eq!(report.failure(), None, "{more}: {report:?}");
            assert_eq!((report.errors, report.unresolved, report.unsent, report.backlog), (0, 0, 0, 0), "{more}");
            assert!(report.publish.records >= 900 && report.end_to_end_ms.is_some(), "{more}: {report:?}");
            let told = "kafka: durability replicated (acks=all, not synced before it), replicas 3, partitions 4";
            assert!(printed.first().is_some_and(|line| line.starts_with(told)), "{printed:?}");
        }
    }

    #[test]
    fn a_batch_of_the_largest_record_passes() {
        for (size, batch_bytes, want) in
            [(100, 262_144, 1_000_000), (2 << 20, 0, (2 << 20) + 1_024), (1, 4 << 20, 4 << 20)]
        {
            assert_eq!(largest_batch(size, batch_bytes), want);
        }
    }
}
