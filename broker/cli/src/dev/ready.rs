//! Waiting until nodes answer and have formed a cluster. A node can't tell us when (it may be another's child), so we
//! ask again and again, not too often, until a deadline.

use std::{collections::HashSet, time::Duration};

use anyhow::bail;

use super::cluster_file::{ClusterFile, NodeEntry};
use crate::connection;

/// How long a cluster may take to form, with cold disks and few cores.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// How long the others may take to say whether a node that has ended was removed.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);
/// One question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether a node answers now.
pub(super) async fn answers(node: &NodeEntry) -> bool {
    connection::probe(&node.address, ANSWER_TIMEOUT).await.is_ok()
}

/// Waits until a node answers. Cancel safe.
pub(super) async fn node_answers(node: &NodeEntry) -> anyhow::Result<()> {
    let poll = async {
        while !answers(node).await {
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(READY_TIMEOUT, poll).await.is_err() {
        bail!("node {} runs but does not answer on {} after {READY_TIMEOUT:?}: see its log", node.id, node.address);
    }
    Ok(())
}

/// Waits until every node of the cluster answers, knows all others, and the catalog has a leader. Cancel safe.
pub(super) async fn cluster_formed(cluster: &ClusterFile) -> anyhow::Result<()> {
    let mut missing = String::from("it was not asked yet");
    let poll = async {
        for node in cluster.members() {
            while let Err(reason) = sees_all(node, cluster).await {
                missing = crate::output::explain(&reason);
                tokio::time::sleep(POLL).await;
            }
        }
    };
    if tokio::time::timeout(READY_TIMEOUT, poll).await.is_err() {
        bail!("the cluster has not formed after {READY_TIMEOUT:?} ({missing}): see the nodes' logs");
    }
    Ok(())
}

/// Whether `node` sees the whole cluster; the error says what it lacks.
async fn sees_all(node: &NodeEntry, cluster: &ClusterFile) -> anyhow::Result<()> {
    let client = connection::probe(&node.address, ANSWER_TIMEOUT).await?;
    let state = client.admin().describe_cluster().await?;
    if state.catalog_leader == 0 {
        bail!("node {} knows no leader of the catalog", node.id);
    }
    let answering = state.nodes.iter().filter(|node| node.answered).filter_map(|state| state.node.as_ref());
    let answering: HashSet<u64> = answering.map(|node| node.id).collect();
    for other in cluster.members() {
        if !answering.contains(&other.id) {
            bail!("node {} does not see node {}", node.id, other.id);
        }
    }
    Ok(())
}

/// Whether the cluster, as its other nodes tell, has no node of this id (any more). Asks until one knows, at most as long
/// as a cluster may take to form. Cancel safe.
pub(super) async fn was_removed(cluster: &ClusterFile, id: u64) -> bool {
    let ask = async {
        loop {
            for node in cluster.members().filter(|node| node.id != id) {
                if let Ok(known) = knows(node, id).await {
                    return !known;
                }
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(REMOVAL_TIMEOUT, ask).await.unwrap_or(false)
}

async fn knows(node: &NodeEntry, id: u64) -> anyhow::Result<bool> {
    let state = connection::probe(&node.address, ANSWER_TIMEOUT).await?.admin().describe_cluster().await?;
    if state.catalog_leader == 0 {
        bail!("node {} knows no leader of the catalog", node.id);
    }
    Ok(state.nodes.iter().filter_map(|state| state.node.as_ref()).any(|known| known.id == id))
}
