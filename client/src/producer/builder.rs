//! Options of a producer: their ranges and defaults, and the making of one.

use std::{sync::Arc, time::Duration};

use busbar_proto::{TopicName, batch::Compression, filter::DigestNames, limits};

use super::{
    Handle, Producer,
    batcher::BatcherOptions,
    core::{Core, CoreOptions},
    identity::Named,
    shard::{Shard, ShardOptions},
};
use crate::{
    breaker::CircuitBreaker, budget::RetryBudget, cluster::Cluster, destinations::Guards, error::ClientError,
    task::Kind, watch::TopicWatch,
};

/// Batches in flight per partition that a broker can tell apart as duplicates.
const IN_FLIGHT_MAX: usize = 5;
/// A buffer smaller than this could not hold a useful batch.
const BUFFER_BYTES_MIN: usize = 64 << 10;
/// The semaphore counts in 32 bits.
const BUFFER_BYTES_MAX: usize = u32::MAX as usize;
const BATCH_BYTES_MIN: usize = 1 << 10;
const PARKED_BYTES_MIN: usize = 1 << 10;
const NAME_RULE: &str = "1 to 249 of a-z A-Z 0-9 . _ -, and neither \".\" nor \"..\"";
/// Time for an answer before the stream is given up and opened anew.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of a [`Producer`]; `build` makes it.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use busbar_client::Compression;
///
/// let builder = client.producer("orders").compression(Compression::Lz4).linger(Duration::from_millis(2));
/// let producer = builder.delivery_timeout(Duration::from_secs(10)).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until build() is called"]
pub struct ProducerBuilder {
    cluster: Arc<Cluster>,
    topic: String,
    name: Option<String>,
    linger: Duration,
    batch_bytes: usize,
    compression: Compression,
    in_flight: usize,
    eager_batches: usize,
    buffer_bytes: usize,
    parked_bytes: Option<usize>,
    delivery_timeout: Duration,
    answer_timeout: Duration,
    guards: Guards,
    digest: Vec<String>,
}

impl ProducerBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>, topic: String) -> Self {
        Self {
            cluster,
            topic,
            name: None,
            linger: Duration::ZERO,
            batch_bytes: 256 << 10,
            compression: Compression::None,
            in_flight: IN_FLIGHT_MAX,
            eager_batches: 1,
            buffer_bytes: 32 << 20,
            parked_bytes: None,
            delivery_timeout: Duration::from_secs(30),
            answer_timeout: ANSWER_TIMEOUT,
            guards: Guards::default(),
            digest: DigestNames::EVENTS.map(str::to_owned).into(),
        }
    }

    /// Names the producer: it keeps its identity across restarts, and **one instance at a time** may have the name.
    /// `build` claims it; the instance that had it is fenced: its records come to [`DeliveryError::Fenced`](crate::DeliveryError::Fenced) and
    /// [`SendError::Fenced`](crate::SendError::Fenced), and it never claims the name again by itself. Rules as for topic names; any topic. See
    /// [`Producer::last_stored`] for going on after a crash.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How long a batch waits for company when nothing is in flight. Default 0: an idle producer sends at once, a
    /// busy one batches by itself.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Headers that consumers are meant to filter by: which values they have is told beside each batch, so that brokers
    /// need not send it to those who want none of its records. Default: `ce_type`, `ce_source` and `ce_subject`, the
    /// attributes of CloudEvents. At most 16 names of at most 64 bytes; with more than 16 different values in a batch, or
    /// long ones, the batch is sent to everyone. Filters on other headers work, too: on the consumer's side only.
    pub fn digest(mut self, headers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.digest = headers.into_iter().map(Into::into).collect();
        self
    }

    /// Bytes of a full batch, before compression. Default 256 KiB; never above the topic's `max_batch_bytes`.
    pub fn batch_bytes(mut self, batch_bytes: usize) -> Self {
        self.batch_bytes = batch_bytes;
        self
    }

    /// Compression of batches. Default none.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Batches in flight per partition, 1 to 5. Default 5. Order is kept with any number.
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.in_flight = batches;
        self
    }

    /// A batch that is not full is sent while fewer than this many are in flight. Default 1: wait for the answer,
    /// gathering. More = lower latency at middling rates, smaller batches.
    pub fn eager_batches(mut self, batches: usize) -> Self {
        self.eager_batches = batches;
        self
    }

    /// Bytes of unfinished records; then `send` waits. Default 32 MiB.
    pub fn buffer_bytes(mut self, buffer_bytes: usize) -> Self {
        self.buffer_bytes = buffer_bytes;
        self
    }

    /// Bytes of the buffer that records of partitions may take which get nothing done, all of these together: behind an
    /// open circuit breaker or a spent retry budget, without a leader, between two attempts, or unanswered for a second.
    /// A record beyond that waits in `send` (`try_send` gives it back), so that records for other partitions still pass;
    /// those without a key go elsewhere anyway. Default: half of [`Self::buffer_bytes`]; all of it turns the bound off. A
    /// topic with one partition has none.
    pub fn parked_bytes(mut self, parked_bytes: usize) -> Self {
        self.parked_bytes = Some(parked_bytes);
        self
    }

    /// Time from a batch's first record until its fate is decided, retries included. Default 30 s.
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = timeout;
        self
    }

    /// Time for an answer before a stream is given up and its batches are sent again. Default 10 s.
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    /// How many batches may be sent again to one broker; `None` = any number. What is over it waits. A batch that
    /// goes to a node for the first time, as after an election, is no retry. Default: 10 a second, and 20 for each
    /// hundred batches sent, shared by all producers of the client that have default guards; a producer with settings
    /// of its own counts alone, for itself and its clones.
    pub fn retry_budget(mut self, budget: impl Into<Option<RetryBudget>>) -> Self {
        self.guards.retry_budget = budget.into();
        self
    }

    /// When batches are held back from a broker or a partition that fails; `None` = never. They wait for it to
    /// recover until their delivery timeout, without attempts. Default: after 5 failures in a row, or when half of
    /// 20 or more answers within 10 s were failures. Shared as [`Self::retry_budget`]; a partition's breaker is the
    /// producer's own.
    pub fn circuit_breaker(mut self, breaker: impl Into<Option<CircuitBreaker>>) -> Self {
        self.guards.circuit_breaker = breaker.into();
        self
    }

    /// Looks the topic up and starts the producer.
    ///
    /// # Errors
    /// An option out of range; no such topic (the broker names the closest); a name that is none, or one too many;
    /// nobody answers.
    pub async fn build(self) -> Result<Producer, ClientError> {
        self.check()?;
        let Self { cluster, topic, name, linger, batch_bytes, compression, .. } = self;
        let Self { in_flight, eager_batches, buffer_bytes, parked_bytes, delivery_timeout, answer_timeout, .. } = self;
        let Self { guards, digest, .. } = self;
        let digest = DigestNames::new(digest.iter().map(String::as_str))?;
        let topic = TopicWatch::open(&cluster, &topic).await?;
        let (batch_bytes_max, compacted) = (topic.view().batch_bytes_max, topic.view().compacted);
        let batching = BatcherOptions {
            batch_bytes: batch_bytes.min(batch_bytes_max),
            batch_bytes_max,
            compression,
            linger,
            eager_batches,
            delivery_timeout,
            digest,
            compacted,
        };
        let named = name.map(|name| Named::new(name, cluster.env.random()));
        let identity = match &named {
            Some(named) => Some(named.claim(&cluster, None).await?),
            None => None,
        };
        let parked_bytes = parked_bytes.unwrap_or(buffer_bytes / 2);
        let in_flight_max = in_flight;
        let options = CoreOptions {
            in_flight_max,
            buffer_bytes,
            parked_bytes,
            answer_timeout,
            batch_bytes,
            guards,
            compacted,
            named,
        };
        let name = topic.name.clone();
        let (circuit_breaker, now) = (guards.circuit_breaker, cluster.env.now());
        let shard_options = ShardOptions { batching, in_flight_max, circuit_breaker, named: identity.is_some(), now };
        let core = Core::new(cluster, topic, options, |partition| {
            let mut shard = Shard::new(name.clone(), partition, shard_options.clone());
            if let Some(identity) = identity {
                shard.window.identify(identity);
            }
            shard
        });
        core.tasks.spawn(Kind::ProducerUpkeep, core.clone().upkeep());
        Ok(Producer { handle: Arc::new(Handle { core, buffer_bytes, batch_bytes_max }) })
    }

    fn check(&self) -> Result<(), ClientError> {
        let in_range = |option, found: usize, rule, ok: bool| match ok {
            true => Ok(()),
            false => Err(ClientError::InvalidOption { option, found: found.to_string(), rule }),
        };
        in_range("in_flight", self.in_flight, "1 to 5 batches", (1..=IN_FLIGHT_MAX).contains(&self.in_flight))?;
        in_range("eager_batches", self.eager_batches, "at least 1", self.eager_batches >= 1)?;
        let batch_range = BATCH_BYTES_MIN..=limits::BATCH_BYTES_MAX as usize;
        in_range("batch_bytes", self.batch_bytes, "1 KiB to 8 MiB", batch_range.contains(&self.batch_bytes))?;
        let buffer_range = BUFFER_BYTES_MIN..=BUFFER_BYTES_MAX;
        in_range("buffer_bytes", self.buffer_bytes, "64 KiB to 4 GiB", buffer_range.contains(&self.buffer_bytes))?;
        let parked_bytes = self.parked_bytes.unwrap_or(self.buffer_bytes);
        let parked_range = PARKED_BYTES_MIN..=self.buffer_bytes;
        in_range("parked_bytes", parked_bytes, "1 KiB to buffer_bytes", parked_range.contains(&parked_bytes))?;
        if let Some(name) = self.name.as_deref().filter(|name| name.parse::<TopicName>().is_err()) {
            return Err(ClientError::InvalidOption { option: "name", found: format!("{name:?}"), rule: NAME_RULE });
        }
        let written = matches!(self.compression, Compression::None | Compression::Lz4 | Compression::Zstd);
        match written {
            true => Ok(()),
            false => Err(ClientError::InvalidOption {
                option: "compression",
                found: self.compression.to_string(),
                rule: "none, lz4 or zstd",
            }),
        }
    }
}
