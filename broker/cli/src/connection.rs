//! `--server`: which cluster a command talks to, and connecting to it.

use std::time::Duration;

use busbar_client::{Client, ClientError};

/// Where `busbar dev up` and `busbar serve` listen unless told otherwise.
pub(crate) const SERVER_DEFAULT: &str = "127.0.0.1:7400";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// `--server`, of every command that talks to a cluster.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// Nodes to ask, comma-separated; any of them leads to the whole cluster
    #[arg(long, env = "BUSBAR_SERVER", default_value = SERVER_DEFAULT, value_name = "ADDRESS,..")]
    pub(crate) server: String,
}

impl ServerArgs {
    pub(crate) async fn connect(&self) -> Result<Client, ClientError> {
        connect(&self.server).await
    }
}

/// A client of the cluster that one of `servers` (comma-separated) belongs to.
pub(crate) async fn connect(servers: &str) -> Result<Client, ClientError> {
    Client::builder().servers(servers).connect_timeout(CONNECT_TIMEOUT).build().await
}

/// The same, to see whether one of them answers: what this client asks takes no longer than `timeout`.
pub(crate) async fn probe(servers: &str, timeout: Duration) -> Result<Client, ClientError> {
    Client::builder().servers(servers).connect_timeout(timeout).request_timeout(timeout).build().await
}
