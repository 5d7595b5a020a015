//! One node: a tonic server behind a forwarder of ours, whose connections can be broken or frozen at will.

use std::{net::SocketAddr, sync::Arc};

use busbar_proto::{
    limits,
    v1::{admin_server::AdminServer, broker_server::BrokerServer, groups_server::GroupsServer},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
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
    frozen: watch::Sender<bool>,
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
        let serve = windows
            .add_service(broker)
            .add_service(AdminServer::new(service.clone()))
            .add_service(GroupsServer::new(service).max_decoding_message_size(limits::MESSAGE_BYTES_MAX));
        let server = tokio::spawn(async move {
            serve.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("the server runs");
        });
        let public = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = public.local_addr().expect("a bound port");
        let frozen = watch::Sender::new(false);
        let forwarder = tokio::spawn(forward(public, inner, shared.clone(), frozen.subscribe()));
        Self { public: address, inner, shared, forwarder: Some(forwarder), frozen, _server: server }
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
        self.forwarder = Some(tokio::spawn(forward(public, self.inner, self.shared.clone(), self.frozen.subscribe())));
    }

    /// As SIGSTOP does: connections stay open, new ones are accepted, nothing moves.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }
}

/// Forwards connections until it is aborted; each "disconnect" breaks those there are.
async fn forward(public: TcpListener, inner: SocketAddr, shared: Arc<Shared>, frozen: watch::Receiver<bool>) {
    let mut disconnect = shared.disconnect.subscribe();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = public.accept() => {
                let (client, _) = accepted.expect("a connection");
                let frozen = frozen.clone();
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(inner).await else { return };
                    // Without it, each answer waits for the peer's delayed acknowledgement.
                    client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).ok();
                    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                    // Either side's end is the connection's end.
                    tokio::select! {
                        () = copy(from_client, to_server, frozen.clone()) => {}
                        () = copy(from_server, to_client, frozen) => {}
                    }
                });
            }
            _ = disconnect.changed() => connections.abort_all(),
        }
    }
}

/// Copies until an end, but nothing while frozen, not even what was read just before.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut frozen: watch::Receiver<bool>) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if frozen.wait_for(|frozen| !frozen).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
