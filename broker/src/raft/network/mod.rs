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

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use busbar_proto::{
    GroupId, NodeId,
    peer::{self as wire, frame::Body},
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use self::link::{Lane, Link, LinkOptions};
use super::liveness::Boot;
use crate::env::Tasks;

/// Unanswered bytes that one group keeps on the way to one follower.
pub(crate) const WINDOW_BYTES: usize = 8 << 20;
/// Unanswered requests likewise; the receiver queues as many.
pub(crate) const WINDOW_REQUESTS: usize = 64;
/// Reason of a refused hello: the node was removed from the cluster. It must end.
pub(crate) const NODE_REMOVED: &str = "NODE_REMOVED";
/// Reason of a refused hello: the node's data folder is not the one that it was registered with. It must end.
pub(crate) const DATA_LOST: &str = "DATA_LOST";
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
    /// This run of the process.
    pub boot: Boot,
    /// What a peer said when it refused us for good: this node was removed, or has lost its data.
    expelled: watch::Sender<Option<String>>,
    /// The nodes that the catalog knows.
    registered: RwLock<BTreeSet<NodeId>>,
    /// Whether the incarnation is written into the data folder.
    remembered: watch::Sender<bool>,
}

impl Identity {
    /// A member as far as it knows.
    pub fn new(cluster: String, incarnation: String, node: NodeId) -> Self {
        let remembered = watch::Sender::new(!incarnation.is_empty());
        let incarnation = RwLock::new(incarnation);
        Self {
            cluster,
            incarnation,
            node,
            boot: Boot::new(rand::random()),
            expelled: watch::Sender::default(),
            registered: RwLock::default(),
            remembered,
        }
    }

    /// Notes the nodes that the catalog knows.
    pub fn set_registered(&self, nodes: BTreeSet<NodeId>) {
        *self.registered.write() = nodes;
    }

    /// The data folder holds the incarnation from now on.
    pub fn note_remembered(&self, incarnation: String) {
        *self.incarnation.write() = incarnation;
        self.remembered.send_replace(true);
    }

    /// Waits until the data folder holds the incarnation. A node may be registered only then: one that
    /// is, and does not know its cluster any more, has lost its data.
    pub async fn remembered(&self) {
        // The sender lives as long as we do: this can't fail.
        let _ = self.remembered.subscribe().wait_for(|done| *done).await;
    }

    /// Whether a node that says hello has lost its data folder. It was registered, which it is only after its folder
    /// has learned the cluster's incarnation, and now it does not know that. What it had voted for and acknowledged
    /// is forgotten: it must not take part under its old id.
    pub(crate) fn lost_data(&self, hello: &wire::Hello) -> Result<(), wire::Failed> {
        let node = NodeId::new(hello.node);
        let is_known = !self.incarnation.read().is_empty() && self.registered.read().contains(&node);
        if !is_known || !hello.incarnation.is_empty() {
            return Ok(());
        }
        let message = format!(
            "node {node} is known to this cluster, but its data folder is a new one: what it had acknowledged is lost. \
             Drain and remove node {node}, then let it join as a new node (cluster.join) with an empty data folder"
        );
        Err(wire::Failed { reason: DATA_LOST.to_owned(), message })
    }

    /// Follows whether a peer has refused this node for good; the text is for the operator.
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

    /// Every known peer but `node`.
    pub fn others(&self, node: NodeId) -> Vec<String> {
        self.0.read().iter().filter(|(known, _)| **known != node).map(|(_, address)| address.clone()).collect()
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

    /// Tells all peers that this node lives, for as long as it does. A task of its own: nothing else may hold it up.
    pub async fn keep_beating(self: Arc<Self>, every: Duration) {
        let mut beats = tokio::time::interval(every);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            self.beat();
        }
    }

    fn beat(&self) {
        for ((_, lane), link) in &*self.open.lock() {
            if *lane == Lane::Control {
                link.notify(GroupId::CATALOG, 0, Body::Beat(wire::Beat {}));
            }
        }
    }

    /// Those to whom there are links.
    pub(crate) fn peers(&self) -> BTreeSet<NodeId> {
        self.open.lock().keys().map(|(node, _)| *node).collect()
    }

    /// Whether a link to `peer` is up now.
    pub fn is_up(&self, peer: NodeId) -> bool {
        self.open.lock().iter().any(|((node, _), link)| *node == peer && link.is_up())
    }
}
