//! Accepting connections: a cap on how many are open, no delay on small writes, and a plain word in the log for those
//! who speak TLS to a port that does not.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::env::Tasks;

const BACKLOG: i32 = 1024;
/// A connection must have said something within this time.
const FIRST_BYTES_WAIT: Duration = Duration::from_secs(10);

/// Binds an address; the error names it and what to do.
pub fn bind(address: &str, what: &str) -> io::Result<TcpListener> {
    let context = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => "another process has it: stop that one or choose another port",
            io::ErrorKind::PermissionDenied => "ports below 1024 need privileges: choose a higher one",
            _ => "check the address",
        };
        io::Error::new(error.kind(), format!("can't listen on {address} for {what}: {error}; {hint}"))
    };
    let resolved = std::net::ToSocketAddrs::to_socket_addrs(address).map_err(context)?.next();
    let resolved = resolved.ok_or_else(|| context(io::Error::other("the name has no address")))?;
    listen(resolved).map_err(context)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // a restarted node must not wait for its old connections to time out
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// An accepted connection; its place under the cap is free when it is dropped.
pub struct Connection {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

/// Accepts connections, at most `connections_max` open at a time; the others are closed at once.
pub fn connections(
    listener: TcpListener,
    connections_max: usize,
    tasks: &Tasks,
) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, incoming) = mpsc::channel(64);
    let places = Arc::new(Semaphore::new(connections_max));
    let inner = tasks.clone();
    tasks.spawn("accept", async move {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(pair) => pair,
                Err(error) => {
                    // Out of file descriptors, mostly: give the others time to close some.
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                tracing::warn!(%peer, limit = connections_max, "closing a connection over limits.connections_max");
                continue;
            };
            let accepted = accepted.clone();
            inner.spawn("greet", async move {
                if let Some(connection) = greet(stream, place, peer).await {
                    drop(accepted.send(Ok(connection)).await); // closed only when the server stops
                }
            });
        }
    });
    ReceiverStream::new(incoming)
}

async fn greet(stream: TcpStream, place: OwnedSemaphorePermit, peer: SocketAddr) -> Option<Connection> {
    let mut first = [0; 3];
    let peeked = tokio::time::timeout(FIRST_BYTES_WAIT, stream.peek(&mut first)).await;
    match peeked {
        Ok(Ok(1..)) => {}
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "a connection broke before it said anything");
            return None;
        }
        Err(_) => {
            tracing::debug!(%peer, "closing a connection that said nothing");
            return None;
        }
    }
    // 0x16 0x03: a TLS handshake record.
    if first.starts_with(&[0x16, 0x03]) {
        tracing::warn!(%peer, "closing a TLS connection: this port speaks plain HTTP/2; use http:// without TLS");
        return None;
    }
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "no TCP_NODELAY");
    }
    Some(Connection { stream, _place: place })
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
