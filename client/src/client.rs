//! The entrance: a [`Client`] knows a cluster and makes producers, consumers and the admin handle from it.

use std::{sync::Arc, time::Duration};

use busbar_proto::v1;

use crate::{
    address,
    admin::Admin,
    cluster::{Call, Cluster, Repeat},
    consumer::ConsumerBuilder,
    dead_letters::DeadLetters,
    env::Env,
    error::ClientError,
    group::GroupBuilder,
    outbox::{OutboxStore, RelayBuilder},
    pool,
    producer::ProducerBuilder,
    request::{Replier, RequesterBuilder, ResponderBuilder},
    task::Tasks,
};

/// A connection to a cluster: through the nodes it was given, and all others that it learns of.
///
/// Cheap to clone; clones share connections. Producers and consumers keep what they need of it alive.
///
/// ```no_run
/// # async fn example() -> Result<(), busbar_client::ClientError> {
/// use busbar_client::Client;
///
/// let client = Client::connect("127.0.0.1:7400,127.0.0.1:7401").await?;
/// println!("{}", client.admin().describe_cluster().await?.cluster);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    cluster: Arc<Cluster>,
}

impl Client {
    /// Connects to a cluster by a comma-separated list of `host:port`; any of its nodes will do.
    ///
    /// # Errors
    /// A list with a fault, or nobody answers.
    pub async fn connect(servers: impl Into<String>) -> Result<Self, ClientError> {
        Self::builder().servers(servers).build().await
    }

    /// Connects with options.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// A producer for a topic.
    pub fn producer(&self, topic: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.cluster.clone(), topic.into())
    }

    /// A consumer of a topic.
    pub fn consumer(&self, topic: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.cluster.clone(), topic.into())
    }

    /// A member of a consumer group.
    pub fn group(&self, group: impl Into<String>) -> GroupBuilder {
        GroupBuilder::new(self.cluster.clone(), group.into())
    }

    /// A requester: publishes to a topic and waits for replies.
    pub fn requester(&self, topic: impl Into<String>) -> RequesterBuilder {
        RequesterBuilder::new(self.cluster.clone(), topic.into())
    }

    /// A responder: reads a topic's requests and replies to them.
    pub fn responder(&self, topic: impl Into<String>) -> ResponderBuilder {
        ResponderBuilder::new(self.cluster.clone(), topic.into())
    }

    /// A replier: replies to requests that some other consumer has read.
    pub fn replier(&self) -> Replier {
        Replier::new(self.cluster.clone())
    }

    /// A relay: publishes the rows of an application's outbox, each once. One relay of a name works at a time; its
    /// producers are named `<name>.<topic>`.
    pub fn outbox_relay<S: OutboxStore>(&self, name: impl Into<String>, store: S) -> RelayBuilder<S> {
        RelayBuilder::new(self.cluster.clone(), name.into(), store)
    }

    /// A topic of dead letters: to read them, and to replay them.
    pub fn dead_letters(&self, topic: impl Into<String>) -> DeadLetters {
        DeadLetters::new(self.cluster.clone(), topic.into())
    }

    /// Administration.
    pub fn admin(&self) -> Admin {
        Admin::new(self.cluster.clone())
    }
}

/// Options of a [`Client`]; `build` connects.
///
/// ```no_run
/// # async fn example() -> Result<(), busbar_client::ClientError> {
/// use std::time::Duration;
/// use busbar_client::Client;
///
/// let builder = Client::builder().servers("broker-1:7400,broker-2:7400");
/// let client = builder.connect_timeout(Duration::from_secs(2)).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until build() is called"]
pub struct ClientBuilder {
    servers: String,
    connect_timeout: Duration,
    request_timeout: Duration,
    env: Env,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            servers: format!("127.0.0.1:{}", address::DEFAULT_PORT),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(15),
            env: Env::system(),
        }
    }
}

impl ClientBuilder {
    /// A comma-separated list of `host:port`. Default `127.0.0.1:7400`.
    pub fn servers(mut self, servers: impl Into<String>) -> Self {
        self.servers = servers.into();
        self
    }

    /// Time for a connection to come up. Default 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Time for a request other than publishing to be done, retries included. Default 15 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Clock and randomness: for simulations and tests.
    pub fn env(mut self, env: Env) -> Self {
        self.env = env;
        self
    }

    /// Connects to any of the servers. Must be called inside a tokio runtime, which the client's tasks then use.
    ///
    /// # Errors
    /// A list with a fault, or nobody answers.
    pub async fn build(self) -> Result<Client, ClientError> {
        let Self { servers, connect_timeout, request_timeout, env } = self;
        let bootstrap = address::parse_list(&servers)?;
        let cluster = Cluster::new(env, Tasks::new(), bootstrap, connect_timeout, request_timeout);
        let call = Call { what: "connect", repeat: Repeat::Safe, timeout: request_timeout };
        let ask = |channel| async { pool::broker(channel).metadata(v1::MetadataRequest::default()).await };
        let asked_at = cluster.env.now();
        let metadata = cluster.call(call, ask).await?;
        cluster.told_time(metadata.time_ms, cluster.env.now().saturating_duration_since(asked_at));
        cluster.learn(&metadata.nodes);
        Ok(Client { cluster })
    }
}
