//! Connections: one channel per broker address, shared by everything of one client, connected when first used
//! and again whenever it broke. The only place that knows how a connection is tuned.

use std::{collections::HashMap, time::Duration};

use busbar_proto::{
    limits,
    v1::{admin_client::AdminClient, broker_client::BrokerClient},
};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use crate::{address::Address, error::ClientError};

/// Bytes in flight towards us on one stream: above bandwidth x delay of a fast network, so that it never waits.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// The same for all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A peer that vanished without a word is noticed after one interval and one timeout.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

const _: () = assert!(STREAM_WINDOW_BYTES as usize >= limits::BATCH_BYTES_MAX as usize);
const _: () = assert!(CONNECTION_WINDOW_BYTES >= STREAM_WINDOW_BYTES);

#[derive(Debug)]
pub(crate) struct Pool {
    connect_timeout: Duration,
    /// Grows with the addresses of the cluster's nodes only.
    channels: Mutex<HashMap<Address, Channel>>,
}

impl Pool {
    pub(crate) fn new(connect_timeout: Duration) -> Self {
        Self { connect_timeout, channels: Mutex::new(HashMap::new()) }
    }

    /// The channel to a broker; connects when used. Must be called inside the runtime.
    pub(crate) fn channel(&self, address: &Address) -> Result<Channel, ClientError> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(address.uri())
            .map_err(|error| ClientError::Protocol(format!("{address} is no address to connect to: {error}")))?;
        let channel = endpoint
            .tcp_nodelay(true)
            .connect_timeout(self.connect_timeout)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_lazy();
        channels.insert(address.clone(), channel.clone());
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
