//! One outgoing link: a task that keeps a bidirectional stream to one peer and pairs replies with requests.
//!
//! Invariant: every accepted request is answered exactly once: by its reply, or by an error when the link breaks,
//! its deadline passes or the node stops. A broken link fails all of its pending requests at once; openraft retries.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use busbar_proto::{
    GroupId, NodeId, limits,
    peer::{Frame, Hello, frame::Body, peer_client::PeerClient},
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Endpoint};

use super::{AddressBook, DATA_LOST, Identity, NODE_REMOVED, PROTOCOL};
use crate::env::Tasks;

/// Frames queued towards the peer; each append stream has its own byte window above this.
const QUEUE_FRAMES: usize = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(1000);

/// Which of the two streams to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Lane {
    /// Log entries and checkpoints.
    Bulk,
    /// Votes and heartbeats.
    Control,
}

/// Why a request got no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// No connection now; back off.
    #[error("node {peer} can't be reached")]
    Down { peer: NodeId },
    /// The connection broke while the request was under way.
    #[error("the link to node {peer} broke")]
    Broken { peer: NodeId },
    /// No answer in time.
    #[error("node {peer} did not answer within {after:?}")]
    Late { peer: NodeId, after: Duration },
    /// The peer refused.
    #[error("node {peer} refused: {message}")]
    Refused { peer: NodeId, message: String },
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Body>>>>;

pub(crate) struct LinkOptions {
    pub(crate) peer: NodeId,
    pub(crate) lane: Lane,
    pub(crate) identity: Arc<Identity>,
    pub(crate) addresses: Arc<AddressBook>,
    pub(crate) reply_deadline: Duration,
}

struct Inner {
    options: LinkOptions,
    queue: mpsc::Sender<Frame>,
    pending: Pending,
    sequence: AtomicU64,
    up: AtomicBool,
}

/// Handle to a link; cheap to clone.
#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({} {:?})", self.0.options.peer, self.0.options.lane)
    }
}

/// A request on its way; dropping it forgets the reply.
pub(crate) struct Reply {
    link: Link,
    sequence: u64,
    answer: oneshot::Receiver<Body>,
}

impl Link {
    pub(crate) fn start(options: LinkOptions, tasks: &Tasks) -> Self {
        let (queue, frames) = mpsc::channel(QUEUE_FRAMES);
        let link = Self(Arc::new(Inner {
            options,
            queue,
            pending: Pending::default(),
            sequence: AtomicU64::new(1),
            up: AtomicBool::new(false),
        }));
        let run = link.clone();
        tasks.spawn("peer link", async move { run.run(frames).await });
        link
    }

    pub(crate) fn is_up(&self) -> bool {
        self.0.up.load(Ordering::Acquire)
    }

    pub(crate) fn peer(&self) -> NodeId {
        self.0.options.peer
    }

    pub(crate) fn reply_deadline(&self) -> Duration {
        self.0.options.reply_deadline
    }

    /// Requests that wait for a reply.
    #[cfg(test)]
    pub(crate) fn pending(&self) -> usize {
        self.0.pending.lock().len()
    }

    /// A number unique on this link.
    pub(crate) fn next_number(&self) -> u64 {
        self.0.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Queues a request. Fails at once while the link is down, so that openraft backs off instead of queueing.
    /// Cancel safe: a cancelled call has either queued the request or not.
    pub(crate) async fn send(&self, group: GroupId, stream: u64, body: Body) -> Result<Reply, LinkError> {
        let peer = self.peer();
        if !self.is_up() {
            return Err(LinkError::Down { peer });
        }
        let sequence = self.next_number();
        let (tx, answer) = oneshot::channel();
        self.0.pending.lock().insert(sequence, tx);
        let reply = Reply { link: self.clone(), sequence, answer };
        let frame = Frame { group: group.get(), sequence, stream, body: Some(body) };
        self.0.queue.send(frame).await.map_err(|_| LinkError::Broken { peer })?;
        // The link may have broken between the check above and the insertion: its drain has then missed this one.
        if !self.is_up() {
            return Err(LinkError::Broken { peer });
        }
        Ok(reply)
    }

    /// Queues a frame that has no reply; dropped when the queue is full or the link is down.
    pub(crate) fn notify(&self, group: GroupId, stream: u64, body: Body) {
        if self.is_up() {
            let frame = Frame { group: group.get(), sequence: 0, stream, body: Some(body) };
            drop(self.0.queue.try_send(frame));
        }
    }

    /// Sends a request and waits for its reply, at most `limit`. Cancel safe: the reply is then dropped.
    pub(crate) async fn call(&self, group: GroupId, body: Body, limit: Duration) -> Result<Body, LinkError> {
        let peer = self.peer();
        let answered = async { self.send(group, 0, body).await?.receive().await };
        tokio::time::timeout(limit, answered).await.unwrap_or(Err(LinkError::Late { peer, after: limit }))
    }

    async fn run(&self, frames: mpsc::Receiver<Frame>) {
        let mut frames = frames;
        let mut backoff = BACKOFF_MIN;
        loop {
            match self.connect().await {
                Ok((sender, replies)) => {
                    backoff = BACKOFF_MIN;
                    self.0.up.store(true, Ordering::Release);
                    tracing::info!(peer = %self.peer(), lane = ?self.0.options.lane, "peer link is up");
                    let reason = self.pump(&mut frames, sender, replies).await;
                    self.0.up.store(false, Ordering::Release);
                    tracing::info!(peer = %self.peer(), lane = ?self.0.options.lane, %reason, "peer link is down");
                }
                Err(reason) => {
                    tracing::debug!(peer = %self.peer(), lane = ?self.0.options.lane, %reason, "peer link can't connect");
                }
            }
            // Whatever was queued for the broken stream is stale: its requests fail, openraft sends anew.
            while frames.try_recv().is_ok() {}
            self.0.pending.lock().clear();
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn connect(&self) -> Result<(mpsc::Sender<Frame>, Streaming<Frame>), String> {
        let LinkOptions { peer, identity, addresses, .. } = &self.0.options;
        let address = addresses.get(*peer).ok_or_else(|| format!("no address of node {peer} is known"))?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| format!("{address} is no address: {error}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(16 << 20)
            .initial_connection_window_size(32 << 20)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(2));
        let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        let (sender, outgoing) = mpsc::channel(64);
        let hello = Hello {
            cluster: identity.cluster.clone(),
            incarnation: identity.incarnation.read().clone(),
            node: identity.node.get(),
            protocol: PROTOCOL,
            boot: identity.boot.get(),
        };
        let frame = Frame { body: Some(Body::Hello(hello)), ..Frame::default() };
        sender.send(frame).await.map_err(|_| "closed while connecting".to_owned())?;
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, client.link(ReceiverStream::new(outgoing))).await;
        let mut replies = opened
            .map_err(|_| "no answer to hello".to_owned())?
            .map_err(|status| status.message().to_owned())?
            .into_inner();
        let first = tokio::time::timeout(CONNECT_TIMEOUT, replies.message()).await;
        match first.map_err(|_| "no answer to hello".to_owned())?.map_err(|status| status.message().to_owned())? {
            Some(Frame { body: Some(Body::Hello(theirs)), .. }) => match identity.lost_data(&theirs) {
                Ok(()) => Ok((sender, replies)),
                Err(lost) => {
                    tracing::error!(peer = %peer, %address, reason = lost.message, "refusing a peer");
                    Err(lost.message)
                }
            },
            Some(Frame { body: Some(Body::Failed(failed)), .. }) => {
                tracing::error!(peer = %peer, %address, reason = failed.message, "the peer refuses this node");
                if failed.reason == NODE_REMOVED || failed.reason == DATA_LOST {
                    identity.expelled.send_replace(Some(failed.message.clone()));
                }
                Err(failed.message)
            }
            _ => Err("the peer did not say hello".to_owned()),
        }
    }

    /// Moves frames both ways until the stream breaks; says why it did.
    async fn pump(
        &self,
        frames: &mut mpsc::Receiver<Frame>,
        sender: mpsc::Sender<Frame>,
        mut replies: Streaming<Frame>,
    ) -> String {
        let send = async {
            while let Some(frame) = frames.recv().await {
                if sender.send(frame).await.is_err() {
                    return "the stream was closed".to_owned();
                }
            }
            "the node is stopping".to_owned()
        };
        let receive = async {
            loop {
                match replies.message().await {
                    Ok(Some(Frame { sequence, body: Some(body), .. })) => {
                        if let Some(waiter) = self.0.pending.lock().remove(&sequence) {
                            drop(waiter.send(body)); // a dropped receiver no longer wants it
                        }
                    }
                    Ok(Some(_)) => return "an empty frame".to_owned(),
                    Ok(None) => return "the peer closed it".to_owned(),
                    Err(status) => return status.message().to_owned(),
                }
            }
        };
        tokio::select! {
            reason = send => reason,
            reason = receive => reason,
        }
    }
}

impl Reply {
    /// The reply's body. Cancel safe.
    pub(crate) async fn receive(&mut self) -> Result<Body, LinkError> {
        let peer = self.link.peer();
        match (&mut self.answer).await {
            Ok(Body::Failed(failed)) => Err(LinkError::Refused { peer, message: failed.message }),
            Ok(body) => Ok(body),
            Err(_) => Err(LinkError::Broken { peer }),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.link.0.pending.lock().remove(&self.sequence);
    }
}
