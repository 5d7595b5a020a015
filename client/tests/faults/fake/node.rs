//! One node: a tonic server behind a forwarder of ours, whose connections can be broken at will.

use std::{net::SocketAddr, sync::Arc};

use busbar_proto::{
    limits,
    v1::{admin_server::AdminServer, broker_server::BrokerServer},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use super::{Shared, service::Service};

pub(crate) struct Node {
    public: SocketAddr,
    inner: SocketAddr,
    shared: Arc<Shared>,
    forwarder: Option<JoinHandle<()>>,
    _server: JoinHandle<()>,
}

impl Node {
    pub(crate) async fn start(id: u64, shared: Arc<Shared>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let inner = listener.local_addr().expect("a bound port");
        let service = Service { node: id, shared: shared.clone() };
        let broker = BrokerServer::new(service.clone())
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        // As a broker has them: a batch larger than the windows would cross in many round trips.
        let mut windows =
            Server::builder().initial_stream_window_size(8 << 20).initial_connection_window_size(16 << 20);
        let serve = windows.add_service(broker).add_service(AdminServer::new(service));
        let server = tokio::spawn(async move {
            serve.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("the server runs");
        });
        let public = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = public.local_addr().expect("a bound port");
        let forwarder = tokio::spawn(forward(public, inner, shared.clone()));
        Self { public: address, inner, shared, forwarder: Some(forwarder), _server: server }
    }

    pub(crate) fn address(&self) -> String {
        self.public.to_string()
    }

    pub(crate) async fn kill(&mut self) {
        if let Some(forwarder) = self.forwarder.take() {
            forwarder.abort();
            forwarder.await.expect_err("it ends by being aborted");
        }
    }

    pub(crate) async fn restart(&mut self) {
        assert!(self.forwarder.is_none(), "the node is running");
        let public = TcpListener::bind(self.public).await.expect("its port is free");
        self.forwarder = Some(tokio::spawn(forward(public, self.inner, self.shared.clone())));
    }
}

/// Forwards connections until it is aborted; each "disconnect" breaks those there are.
async fn forward(public: TcpListener, inner: SocketAddr, shared: Arc<Shared>) {
    let mut disconnect = shared.disconnect.subscribe();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = public.accept() => {
                let (mut client, _) = accepted.expect("a connection");
                connections.spawn(async move {
                    let Ok(mut server) = TcpStream::connect(inner).await else { return };
                    // Without it, each answer waits for the peer's delayed acknowledgement.
                    client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).ok();
                    let buffer = 256 << 10;
                    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, buffer, buffer).await.ok();
                });
            }
            _ = disconnect.changed() => connections.abort_all(),
        }
    }
}
