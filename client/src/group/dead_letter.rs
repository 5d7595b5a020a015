//! Dead letters: what becomes of records that are rejected, or not acknowledged after so many deliveries. The record
//! is done at its origin once its dead letter is acknowledged, and not before; should the consumer end in between,
//! there are two dead letters of it.
//!
//! The undertaker of a member takes doomed records from all its windows, a bounded number at a time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use busbar_proto::{Offset, Reason, Refusal, limits, v1};
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};

use super::{error::GroupError, holding::Holding, member::Member, reading::Kept, window::Burial};
use crate::{
    admin::{Admin, Cleanup, Durability, TopicOptions},
    cluster::{Call, Cluster, Repeat},
    consumer::ConsumedRecord,
    error::{ClientError, SendError},
    pool,
    producer::{Producer, ProducerBuilder},
    record::Record,
    retry::{Backoff, BackoffPolicy},
    schedule::{DELIVER_AT, EXPIRES_AT},
};

/// Dead letters on their way at the same time.
const UNDER_WAY_MAX: usize = 256;
/// What the story of a record adds to it, at most; reasons are cut.
const STORY_BYTES: usize = 4 << 10;
const REASON_BYTES_MAX: usize = 1 << 10;

/// What becomes of records that will not be done.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::DeadLetter;
///
/// let builder = client.group("billing").topics(["orders"]);
/// let consumer = builder.dead_letter(DeadLetter::Topic("lost".to_owned())).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeadLetter {
    /// They go to the topic `<topic>.dlq`, which is created with the origin's partitions, replicas and durability if
    /// it is missing.
    #[default]
    Default,
    /// They go to this topic, which must exist.
    Topic(String),
    /// They are given up, and counted.
    Off,
}

/// Where a member's dead letters go.
#[derive(Debug)]
pub(super) struct Graves {
    group: String,
    /// By the topic of origin; empty without dead letters.
    producers: BTreeMap<String, Producer>,
}

impl Graves {
    /// Sees to it that there is a topic for the dead letters of each of `topics`.
    pub(super) async fn dig(
        cluster: &Arc<Cluster>,
        group: &str,
        topics: &[String],
        policy: &DeadLetter,
    ) -> Result<Self, ClientError> {
        let mut producers = BTreeMap::new();
        for topic in topics {
            let name = match policy {
                DeadLetter::Off => continue,
                DeadLetter::Default => format!("{topic}.dlq"),
                DeadLetter::Topic(name) => name.clone(),
            };
            if topics.contains(&name) {
                let rule = "the group reads that topic: its dead letters would come back to it";
                return Err(ClientError::InvalidOption { option: "dead_letter", found: name, rule });
            }
            let created_if_missing = *policy == DeadLetter::Default;
            let producer = match ProducerBuilder::new(cluster.clone(), name.clone()).build().await {
                Err(error) if created_if_missing && error.reason() == Some(Reason::UnknownTopic) => {
                    create(cluster, topic, &name).await?;
                    ProducerBuilder::new(cluster.clone(), name).build().await?
                }
                built => built?,
            };
            producers.insert(topic.clone(), producer);
        }
        Ok(Self { group: group.to_owned(), producers })
    }

    pub(super) async fn close(&self) {
        for producer in self.producers.values() {
            // What it still had is not done at its origin, and comes back.
            let _ = producer.close().await;
        }
    }

    /// The record as a dead letter: as it was, and its story.
    fn letter(&self, burial: &Burial<'_, Kept>) -> Record {
        let record: &ConsumedRecord = &burial.record.record;
        let mut letter = Record::new(record.value().clone());
        letter.key = record.key().cloned();
        letter.tombstone = record.is_null();
        // Its times would make a group that reads the dead letters wait for them, or leave them out.
        let name_there = |name: &str| match name {
            DELIVER_AT => "busbar-dlq-deliver-at".to_owned(),
            EXPIRES_AT => "busbar-dlq-expires-at".to_owned(),
            name => name.to_owned(),
        };
        letter.headers = record.headers().map(|(name, value)| (name_there(name), value.clone())).collect();
        let mut reason = burial.reason.to_string();
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        let mut tell = |name: &str, value: String| letter.headers.push((format!("busbar-dlq-{name}"), value.into()));
        tell("group", self.group.clone());
        tell("topic", record.topic().to_owned());
        tell("partition", record.partition().to_string());
        tell("offset", record.offset().to_string());
        tell("timestamp", record.timestamp_ms().to_string());
        tell("attempts", burial.deliveries.to_string());
        tell("reason", reason);
        for (name, time_ms) in [("first", burial.first_ms), ("last", burial.last_ms)] {
            if time_ms > 0 {
                tell(name, time_ms.to_string());
            }
        }
        letter
    }
}

/// Creates the topic for the dead letters of `origin`, in its image. They are kept for ever.
async fn create(cluster: &Arc<Cluster>, origin: &str, name: &str) -> Result<(), ClientError> {
    let call = Call { what: "read the topic's metadata", repeat: Repeat::Safe, timeout: cluster.request_timeout };
    let request = || v1::MetadataRequest { topics: vec![origin.to_owned()] };
    let ask = |channel| async move { pool::broker(channel).metadata(request()).await };
    let metadata = cluster.call(call, ask).await?;
    let nonsense = || ClientError::Protocol(format!("the metadata of topic {origin:?} lacks its configuration"));
    let topic = metadata.topics.into_iter().find(|topic| topic.name == origin).ok_or_else(nonsense)?;
    let config = topic.config.as_ref().ok_or_else(nonsense)?;
    let batch_bytes = match config.max_batch_bytes {
        0 => limits::BATCH_BYTES_DEFAULT,
        bytes => bytes,
    };
    let options = TopicOptions {
        partitions: topic.partitions.len() as u32,
        replicas: config.replicas.max(1),
        durability: Durability::of(config),
        retention_bytes: None,
        retention_ms: None,
        cleanup: Cleanup::Delete,
        max_batch_bytes: Some((batch_bytes + STORY_BYTES as u32).min(limits::BATCH_BYTES_MAX)),
    };
    match Admin::new(cluster.clone()).create_topic(name, options).await {
        Err(error) if error.reason() == Some(Reason::TopicExists) => Ok(()),
        created => created.map(drop),
    }
}

impl Member {
    /// Buries what is doomed, for as long as the member lives.
    pub(super) async fn undertake(self: Arc<Self>) {
        let mut under_way = FuturesUnordered::new();
        loop {
            for holding in self.holdings() {
                let room = UNDER_WAY_MAX - under_way.len();
                let doomed = holding.with_window(|window| window.take_doomed(room)).unwrap_or_default();
                under_way.extend(doomed.into_iter().map(|offset| self.bury(holding.clone(), offset)));
            }
            tokio::select! {
                Some(()) = under_way.next() => {}
                () = self.undertaker.notified() => {}
            }
        }
    }

    /// One record, until it is stored, or somebody else's.
    async fn bury(&self, holding: Arc<Holding>, offset: Offset) {
        let letter = |burial: Burial<'_, Kept>| self.graves.letter(&burial);
        let Some(Some(mut letter)) = holding.with_window(|window| window.burial(offset).map(letter)) else { return };
        let Some(producer) = self.graves.producers.get(&*holding.topic) else {
            self.counters.dropped.add(1);
            return self.buried(&holding, offset);
        };
        let mut backoff = Backoff::new(BackoffPolicy { base: Duration::from_millis(100), cap: Duration::from_secs(5) });
        while !holding.is_over() {
            let error = match producer.send(letter.clone()).await {
                Ok(delivery) => match delivery.await {
                    Ok(_) => {
                        self.counters.dead_lettered.add(1);
                        return self.buried(&holding, offset);
                    }
                    Err(error) => error.to_string(),
                },
                Err(SendError::TooLarge { bytes, limit, .. }) if !letter.value.is_empty() => {
                    tracing::warn!(topic = %holding.topic, %offset, bytes, limit, "dead letter too large: its value is left out");
                    let left_out = Bytes::from(letter.value.len().to_string());
                    letter.value = Bytes::new();
                    letter.headers.push(("busbar-dlq-value-bytes".to_owned(), left_out));
                    continue;
                }
                Err(error @ SendError::TopicGone { .. }) => return self.fail(self.no_grave(&error)),
                Err(error) => error.to_string(),
            };
            tracing::warn!(topic = %holding.topic, %offset, error, "dead letter not stored yet");
            tokio::time::sleep(backoff.failed(self.cluster.env.random(), None)).await;
        }
    }

    fn buried(&self, holding: &Holding, offset: Offset) {
        self.heed(holding.buried(offset, &self.clock()));
        self.inbox.wake();
        self.upkeep.notify_one();
    }

    fn no_grave(&self, error: &SendError) -> GroupError {
        let text = format!("the topic for dead letters is gone: {error}");
        GroupError::Refused { group: self.options.group.clone(), refusal: Refusal::new(Reason::UnknownTopic, text) }
    }
}
