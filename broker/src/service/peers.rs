//! What other nodes ask of this one beyond raft: forwarded catalog commands, joins, reports of who leads.

use std::{sync::Arc, time::Duration};

use busbar_machine::catalog::{Command, Outcome};
use busbar_proto::{
    GroupId, LogIndex, NodeId, Reason, Refusal, Term,
    peer::{Checkpoint, Cleaned, JoinRequest, JoinResponse, Leaders as LeaderReport, PeerNode},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::OnceCell;

use super::broker::Broker;
use crate::raft::network::grpc::PeerHooks;

/// Hands peers' requests to the broker, which is made after the peer listener: until then they are told to retry.
#[derive(Default)]
pub struct Hooks(Arc<OnceCell<Arc<Broker>>>);

impl Hooks {
    /// From now on requests reach `broker`.
    pub fn attach(&self, broker: Arc<Broker>) {
        // Set once, by the node's start.
        drop(self.0.set(broker));
    }
}

fn broker(cell: &OnceCell<Arc<Broker>>) -> Result<Arc<Broker>, Refusal> {
    let starting = || Refusal::new(Reason::NoLeader, "the node is starting").retry_after(Duration::from_millis(100));
    cell.get().cloned().ok_or_else(starting)
}

impl PeerHooks for Hooks {
    fn leaders(&self, node: NodeId, report: LeaderReport) {
        if let Some(broker) = self.0.get() {
            let groups = report.led.into_iter().map(|led| (GroupId::new(led.group), Term::new(led.term)));
            broker.leaders().report(node, broker.clock().now(), groups);
        }
    }

    fn cleaned(&self, node: NodeId, group: GroupId, told: Cleaned) {
        if let Some(broker) = self.0.get() {
            broker.heard_cleaned(node, group, told);
        }
    }

    fn forward(&self, command: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let cell = self.0.clone();
        Box::pin(async move { Ok(broker(&cell)?.cluster().propose(command).await?.encode()) })
    }

    fn is_removed(&self, node: NodeId) -> bool {
        self.0.get().is_some_and(|broker| broker.cluster().read(|catalog| catalog.is_removed(node)))
    }

    fn checkpoint(&self, group: GroupId, from: LogIndex) -> Result<Option<Checkpoint>, Refusal> {
        broker(&self.0)?.checkpoint_from(group, from)
    }

    fn join(&self, request: JoinRequest) -> BoxFuture<'static, Result<JoinResponse, Refusal>> {
        let cell = self.0.clone();
        Box::pin(async move { join(&*broker(&cell)?, request).await })
    }
}

async fn join(broker: &Broker, request: JoinRequest) -> Result<JoinResponse, Refusal> {
    let ours = &broker.config().cluster.name;
    if request.cluster != *ours {
        let message =
            format!("this is cluster {ours:?}, not {:?}: check cluster.name and cluster.join", request.cluster);
        return Err(Refusal::new(Reason::WrongCluster, message));
    }
    let command = Command::RegisterNode {
        node: (request.node > 0).then(|| NodeId::new(request.node)),
        address: request.address,
        peer_address: request.peer_address,
    };
    let node = match broker.cluster().submit(command).await? {
        Outcome::NodeRegistered { node } => node,
        other => return Err(Refusal::new(Reason::Internal, format!("the catalog answered {other:?}"))),
    };
    broker.cluster().applied(Duration::from_secs(2), |catalog| catalog.node(node).is_some()).await;
    let (voters, _) = broker.cluster().group().members();
    Ok(broker.cluster().read(|catalog| JoinResponse {
        node: node.get(),
        incarnation: catalog.incarnation().unwrap_or_default().to_owned(),
        nodes: catalog
            .nodes()
            .map(|node| PeerNode {
                node: node.id.get(),
                address: node.address.clone(),
                peer_address: node.peer_address.clone(),
            })
            .collect(),
        catalog_voters: voters.into_iter().map(NodeId::get).collect(),
    }))
}
