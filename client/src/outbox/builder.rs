//! Options of a relay, and its making.

use std::{sync::Arc, time::Duration};

use super::{
    relay::{Options, Relay},
    store::OutboxStore,
};
use crate::{cluster::Cluster, error::ClientError};

const POLL_INTERVAL_MIN: Duration = Duration::from_millis(1);
const ROWS_MAX: usize = 100_000;

/// Options of a [`Relay`]; `build` makes it.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use busbar_client::MemoryOutbox;
///
/// let outbox = MemoryOutbox::new();
/// let relay = client.outbox_relay("shop", outbox.clone()).poll_interval(Duration::from_millis(200)).build()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until build() is called"]
pub struct RelayBuilder<S> {
    cluster: Arc<Cluster>,
    store: S,
    options: Options,
}

impl<S: OutboxStore> RelayBuilder<S> {
    pub(crate) fn new(cluster: Arc<Cluster>, name: String, store: S) -> Self {
        let options = Options {
            name,
            poll_interval: Duration::from_secs(1),
            rows_max: 1000,
            stop_timeout: Duration::from_secs(10),
            store_timeout: Duration::from_secs(60),
        };
        Self { cluster, store, options }
    }

    /// How long after the outbox was found empty it is looked at again, unless [`RelayHandle::notify`] is called before:
    /// what finds the rows that other processes commit. Default 1 s.
    ///
    /// [`RelayHandle::notify`]: super::RelayHandle::notify
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.options.poll_interval = interval;
        self
    }

    /// Rows that are fetched at a time: all that the relay keeps in memory. Default 1000.
    pub fn rows(mut self, rows: usize) -> Self {
        self.options.rows_max = rows;
        self
    }

    /// How long a relay that is told to stop waits for what is under way. Default 10 s.
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.options.stop_timeout = timeout;
        self
    }

    /// How long failures of the store are tried again, with a growing pause, until the relay gives up; zero = at once.
    /// Default 60 s.
    pub fn store_timeout(mut self, timeout: Duration) -> Self {
        self.options.store_timeout = timeout;
        self
    }

    /// Makes the relay, which does nothing until [`Relay::run`].
    ///
    /// # Errors
    /// An option out of range.
    pub fn build(self) -> Result<Relay<S>, ClientError> {
        let Options { poll_interval, rows_max, .. } = &self.options;
        let must = |ok: bool, option, found: String, rule| match ok {
            true => Ok(()),
            false => Err(ClientError::InvalidOption { option, found, rule }),
        };
        must(*poll_interval >= POLL_INTERVAL_MIN, "poll_interval", format!("{poll_interval:?}"), "at least 1 ms")?;
        must((1..=ROWS_MAX).contains(rows_max), "rows", rows_max.to_string(), "1 to 100000")?;
        Ok(Relay::new(self.cluster, self.store, self.options))
    }
}
