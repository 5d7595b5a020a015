//! Busbar's client: publish, consume and administer, with the network functions built in. Applications know of
//! retries, batching, backpressure and failover, but never write them.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use busbar_client::{Client, Record, StartAt};
//!
//! let client = Client::connect("127.0.0.1:7400").await?;
//!
//! let producer = client.producer("orders").build().await?;
//! let delivery = producer.send(Record::new("paid").key("order-17")).await?;
//! println!("stored at offset {}", delivery.await?.offset);
//!
//! let mut consumer = client.consumer("orders").from(StartAt::Earliest).build().await?;
//! if let Some(record) = consumer.next().await? {
//!     println!("{:?} = {:?}", record.key(), record.value());
//! }
//! producer.close().await?;
//! # Ok(()) }
//! ```
//!
//! # What is done for you
//! | function | default | more |
//! |---|---|---|
//! | stored once, in order, whatever is sent again | on | [`Producer`] |
//! | an identity that survives restarts, fenced | with a name | [`ProducerBuilder::name`] |
//! | batching that adapts to the load | on, no waiting time | [`ProducerBuilder::linger`], [`ProducerBuilder::batch_bytes`] |
//! | backpressure | 32 MiB, then `send` waits | [`ProducerBuilder::buffer_bytes`], [`Producer::try_send`] |
//! | retries with backoff and jitter | for 30 s | [`ProducerBuilder::delivery_timeout`] |
//! | retry budget of each broker, for the whole client | 20 % and 10 a second | [`ProducerBuilder::retry_budget`] |
//! | circuit breakers of brokers and partitions | on | [`ProducerBuilder::circuit_breaker`] |
//! | certainty about failures | rejected or unknown | [`DeliveryError`] |
//! | the story of every delivery | on | [`DeliveryReport`] |
//! | discovery, failover | any node, pushed news of leaders | [`Client`] |
//! | room for healthy partitions while one is sick | half of the buffer | [`ProducerBuilder::parked_bytes`] |
//! | replies to their own callers | when asked for | [`Requester`], [`Responder`] |
//! | responders that share the work | with a group | [`ResponderBuilder::group`] |
//! | deadlines that travel over all hops | when set | [`Record::deadline`], [`ConsumedRecord::deadline`] |
//! | trace context, spans, metrics | features `tracing`, `opentelemetry` | [`Record::trace_context`], [`ConsumedRecord::process`] |
//! | CloudEvents | feature `cloudevents` | `Record::from_event` |
//! | flow control of reading | 8 MiB of credit | [`ConsumerBuilder::credit_bytes`] |
//! | consumer groups, every record settled on its own | [`Client::group`] | [`GroupConsumer`] |
//! | redelivery with backoff, leases | 5 deliveries, 30 s | [`GroupBuilder::max_deliveries`], [`GroupBuilder::lease`] |
//! | dead letters, and replaying them | `<topic>.dlq` | [`GroupBuilder::dead_letter`], [`Client::dead_letters`] |
//! | duplicates dropped, also after a crash | off | [`GroupBuilder::dedup`] |
//! | delays and expiry of records | when asked for | [`Record::deliver_after`], [`Record::ttl`] |
//! | events within the application's own transactions | with an outbox | [`Client::outbox_relay`], [`OutboxStore`] |
//! | order of each key, keys side by side | in [`GroupConsumer::for_each_concurrent`] | |
//!
//! # Layers
//! ```text
//!  client ─▶ group, request ─▶ producer, consumer, admin ─▶ watch (topic), cluster (nodes) ─▶ destinations, pool
//!            window, batcher, subscription, partitioner, retry, budget, breaker: pure state machines, no I/O, no clock
//!            env: clock and randomness · task: the only place that spawns
//! ```
//! Never here: knowledge of the broker's insides; the only shared words are `busbar-proto`'s.

mod address;
mod admin;
mod alarm;
mod breaker;
mod budget;
mod client;
mod cluster;
mod consumer;
mod context;
mod courier;
mod dead_letters;
mod destinations;
pub mod env;
mod error;
#[cfg(feature = "cloudevents")]
mod events;
mod group;
mod outbox;
mod partitioner;
mod pool;
mod producer;
mod record;
mod request;
mod retry;
mod schedule;
mod sliding;
mod task;
mod timekeeper;
mod topic;
mod watch;

#[cfg(feature = "cloudevents")]
pub use cloudevents;

pub use busbar_proto::{
    Reason, Refusal,
    batch::Compression,
    filter::{DigestNameError, Filter, FilterError},
    partition_of_key, v1,
};

pub use self::{
    address::{Address, DEFAULT_PORT, InvalidAddress},
    admin::{Admin, Cleanup, Durability, TopicOptions, UnknownDurability},
    breaker::{BreakerState, CircuitBreaker},
    budget::RetryBudget,
    client::{Client, ClientBuilder},
    consumer::{ConsumedRecord, Consumer, ConsumerBuilder, OnLoss, ReadFrom, StartAt},
    context::{MalformedTraceParent, TraceParent, malformed_contexts},
    dead_letters::{DeadLetterError, DeadLetters, Letter, LetterSelection, LetterStory, Letters, ReplayReport},
    destinations::BrokerStats,
    error::{ClientError, ConsumeError, DeliveryError, SendError, TransportError, TrySendError},
    group::{DeadLetter, Dedup, Expired, GroupBuilder, GroupConsumer, GroupError, GroupStats, Received, SettleError},
    outbox::{
        MemoryOutbox, OUTBOX_SEQUENCE_HEADER, OutboxFull, OutboxRow, OutboxStore, Relay, RelayBuilder, RelayError,
        RelayHandle, RelayStats,
    },
    producer::{
        Attempt, Delivered, Delivery, DeliveryReport, LastStored, NextStep, Producer, ProducerBuilder, ProducerStats,
        Verdict,
    },
    record::Record,
    request::{
        Replier, ReplierStats, ReplyError, Request, RequestError, RequestFate, RequestReport, Requester,
        RequesterBuilder, RequesterStats, Responder, ResponderBuilder, ResponderError,
    },
    schedule::Moment,
};

#[cfg(feature = "cloudevents")]
pub use self::events::EventError;
