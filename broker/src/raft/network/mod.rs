//! Peer links: how raft groups talk. Per peer two long-lived bidirectional gRPC streams, the *bulk* lane for log
//! entries and checkpoints and the *control* lane for votes and heartbeats, so that a full pipe never delays an
//! election. All groups are multiplexed on them.
//!
//! Hazards handled here: openraft puts no deadline on an append stream, and one black-holed follower would block the
//! leader's retention for ever: [`client`] fails a stream whose oldest request stays unanswered too long. Its default
//! pre-vote grants everything: ours asks the peer.

pub mod calls;
pub mod client;
pub mod grpc;
pub mod link;
pub mod server;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use busbar_proto::NodeId;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use self::link::{Lane, Link, LinkOptions};
use crate::env::Tasks;

/// Unanswered bytes that one group keeps on the way to one follower.
pub(crate) const WINDOW_BYTES: usize = 8 << 20;
/// Unanswered requests likewise; the receiver queues as many.
pub(crate) const WINDOW_REQUESTS: usize = 64;
/// Reason of a refused hello: the node was removed from the cluster. It must end.
pub(crate) const NODE_REMOVED: &str = "NODE_REMOVED";
/// Version of the peer protocol.
pub(crate) const PROTOCOL: u32 = 1;

/// Who we are to the peers.
#[derive(Debug)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// Told apart from other clusters of the same name; empty while unknown.
    pub incarnation: RwLock<String>,
    /// This node; 0 until it has joined.
    pub node: NodeId,
    /// What a peer said when it refused us because this node was removed from the cluster.
    expelled: watch::Sender<Option<String>>,
}

impl Identity {
    /// A member as far as it knows.
    pub fn new(cluster: String, incarnation: String, node: NodeId) -> Self {
        Self { cluster, incarnation: RwLock::new(incarnation), node, expelled: watch::Sender::new(None) }
    }

    /// Follows whether a peer has said that this node was removed; the text is for the operator.
    pub fn expelled(&self) -> watch::Receiver<Option<String>> {
        self.expelled.subscribe()
    }
}

/// Where peers listen. Filled from the configuration, then from the catalog.
#[derive(Debug, Default)]
pub struct AddressBook(RwLock<BTreeMap<NodeId, String>>);

impl AddressBook {
    /// Sets one peer's address.
    pub fn insert(&self, node: NodeId, peer_address: String) {
        self.0.write().insert(node, peer_address);
    }

    /// `host:port` of a peer's peer listener.
    pub fn get(&self, node: NodeId) -> Option<String> {
        self.0.read().get(&node).cloned()
    }
}

/// The outgoing links of one node, opened on first use.
pub struct Links {
    identity: Arc<Identity>,
    addresses: Arc<AddressBook>,
    tasks: Tasks,
    reply_deadline: Duration,
    open: Mutex<BTreeMap<(NodeId, Lane), Link>>,
}

impl Links {
    /// No link yet. `reply_deadline` bounds how long a request may stay unanswered.
    pub fn new(identity: Arc<Identity>, addresses: Arc<AddressBook>, tasks: Tasks, reply_deadline: Duration) -> Self {
        Self { identity, addresses, tasks, reply_deadline, open: Mutex::new(BTreeMap::new()) }
    }

    /// The link to `peer` on `lane`.
    pub(crate) fn get(&self, peer: NodeId, lane: Lane) -> Link {
        let mut open = self.open.lock();
        let options = || LinkOptions {
            peer,
            lane,
            identity: self.identity.clone(),
            addresses: self.addresses.clone(),
            reply_deadline: self.reply_deadline,
        };
        open.entry((peer, lane)).or_insert_with(|| Link::start(options(), &self.tasks)).clone()
    }

    /// Whether a link to `peer` is up now.
    pub fn is_up(&self, peer: NodeId) -> bool {
        self.open.lock().iter().any(|((node, _), link)| *node == peer && link.is_up())
    }
}
