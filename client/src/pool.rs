//! Connections: two channels per broker address, shared by everything of one client, connected when first used
//! and again whenever they broke. The only place that knows how a connection is tuned.
//!
//! News of the cluster travel apart from records: a connection full of records answers a ping late, and one that
//! must notice a frozen node within a second may not be one whose loss costs a window of batches.

use std::{collections::HashMap, time::Duration};

use busbar_proto::{
    limits,
    v1::{admin_client::AdminClient, broker_client::BrokerClient, groups_client::GroupsClient},
};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use crate::{address::Address, error::ClientError};

/// Bytes in flight towards us on one stream: above bandwidth x delay of a fast network, so that it never waits.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// The same for all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A peer that vanished without a word is noticed after one interval and one timeout.
const DATA_KEEP_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_secs(5), timeout: Duration::from_secs(5), while_idle: true };
/// Short, as whoever tells of new leaders must not be the one that is frozen; only while somebody watches.
const NEWS_KEEP_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_millis(400), timeout: Duration::from_millis(600), while_idle: false };

const _: () = assert!(STREAM_WINDOW_BYTES as usize >= limits::BATCH_BYTES_MAX as usize);
const _: () = assert!(CONNECTION_WINDOW_BYTES >= STREAM_WINDOW_BYTES);

/// How a connection finds out that its peer is gone.
#[derive(Clone, Copy, Debug)]
struct KeepAlive {
    interval: Duration,
    timeout: Duration,
    while_idle: bool,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    Data,
    News,
}

#[derive(Debug)]
pub(crate) struct Pool {
    connect_timeout: Duration,
    /// Grows with the addresses of the cluster's nodes only.
    channels: Mutex<HashMap<(Address, Lane), Channel>>,
}

impl Pool {
    pub(crate) fn new(connect_timeout: Duration) -> Self {
        Self { connect_timeout, channels: Mutex::new(HashMap::new()) }
    }

    /// The channel to a broker; connects when used. Must be called inside the runtime.
    pub(crate) fn channel(&self, address: &Address) -> Result<Channel, ClientError> {
        self.lane(address, Lane::Data, DATA_KEEP_ALIVE)
    }

    /// The same, for news of the cluster: breaks soon after its node stops answering.
    pub(crate) fn news_channel(&self, address: &Address) -> Result<Channel, ClientError> {
        self.lane(address, Lane::News, NEWS_KEEP_ALIVE)
    }

    fn lane(&self, address: &Address, lane: Lane, keep_alive: KeepAlive) -> Result<Channel, ClientError> {
        let mut channels = self.channels.lock();
        let key = (address.clone(), lane);
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(address.uri())
            .map_err(|error| ClientError::Protocol(format!("{address} is no address to connect to: {error}")))?;
        let channel = endpoint
            .tcp_nodelay(true)
            .connect_timeout(self.connect_timeout)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(keep_alive.interval)
            .keep_alive_timeout(keep_alive.timeout)
            .keep_alive_while_idle(keep_alive.while_idle)
            .connect_lazy();
        channels.insert(key, channel.clone());
        Ok(channel)
    }
}

/// The data plane's stub.
pub(crate) fn broker(channel: Channel) -> BrokerClient<Channel> {
    BrokerClient::new(channel)
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
}

/// The control plane's stub.
pub(crate) fn admin(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel)
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
}

/// The consumer groups' stub.
pub(crate) fn groups(channel: Channel) -> GroupsClient<Channel> {
    GroupsClient::new(channel)
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
}
