//! `busbar.v1` over gRPC: the servers for clients and for peers, with their limits.

mod admin;
mod data;
mod groups;
mod publish;
mod subscribe;

use std::{sync::Arc, time::Duration};

use busbar_proto::{
    limits,
    v1::{admin_server::AdminServer, broker_server::BrokerServer, groups_server::GroupsServer},
};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::Router};

use super::accept;
use crate::{
    env::Tasks,
    raft::network::{
        grpc::{PeerHooks, PeerService},
        server::PeerServer,
    },
    service::Broker,
};

/// What one server allows.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Connections open at once.
    pub connections: usize,
    /// Streams and calls open at once on one connection.
    pub streams: u32,
}

fn server(caps: Caps) -> Server {
    Server::builder()
        .max_concurrent_streams(caps.streams)
        .max_connection_age(Duration::from_secs(u64::from(u32::MAX)))
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .http2_max_pending_accept_reset_streams(Some(64))
        .http2_max_header_list_size(16 << 10)
        .max_frame_size(256 << 10)
        // What one stream may have on its way here; more waits at the sender.
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
}

/// Serves clients until the tasks are cancelled.
pub fn serve_clients(listener: TcpListener, broker: Arc<Broker>, caps: Caps, tasks: &Tasks) {
    let data = BrokerServer::new(data::DataService::new(broker.clone()))
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
    let groups = GroupsServer::new(groups::GroupsService::new(broker.clone()))
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
    let admin = AdminServer::new(admin::AdminService::new(broker))
        .max_decoding_message_size(1 << 20)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
    run(
        "client listener",
        listener,
        server(caps).add_service(data).add_service(groups).add_service(admin),
        caps,
        tasks,
    );
}

/// Serves the other nodes until the tasks are cancelled.
pub fn serve_peers<H: PeerHooks>(listener: TcpListener, peers: PeerServer<H>, caps: Caps, tasks: &Tasks) {
    let service = PeerService::new(peers, tasks.clone());
    let server = server(caps).initial_stream_window_size(16 << 20).initial_connection_window_size(32 << 20);
    run("peer listener", listener, { server }.add_service(service), caps, tasks);
}

fn run(name: &'static str, listener: TcpListener, router: Router, caps: Caps, tasks: &Tasks) {
    let incoming = accept::connections(listener, caps.connections, tasks);
    tasks.spawn(name, async move {
        if let Err(error) = router.serve_with_incoming(incoming).await {
            tracing::error!(%error, name, "the listener ended");
        }
    });
}
