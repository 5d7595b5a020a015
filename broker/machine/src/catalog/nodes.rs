//! Nodes come, are drained, and go for good.

use std::collections::BTreeSet;

use busbar_proto::{GroupId, NodeId, Reason, Refusal};

use super::{ADDRESS_BYTES_MAX, Catalog, NODE_ID_MAX, NODES_MAX, Node, Outcome, list, placement::Load, refusal};

impl Catalog {
    pub(super) fn register_node(
        &mut self,
        id: Option<NodeId>,
        address: String,
        peer_address: String,
    ) -> Result<Outcome, Refusal> {
        check_address("address", &address)?;
        check_address("peer address", &peer_address)?;
        if let Some(known) = id.and_then(|id| self.nodes.get_mut(&id)) {
            let node = known.id;
            if known.address != address || known.peer_address != peer_address {
                known.address = address;
                known.peer_address = peer_address;
                self.version += 1;
            }
            return Ok(Outcome::NodeRegistered { node });
        }
        if self.nodes.len() >= NODES_MAX {
            let message = format!("there are {NODES_MAX} nodes, as many as may be: remove one first");
            return Err(refusal(Reason::LimitReached, message));
        }
        let id = self.new_node_id(id)?;
        self.next_node_id = self.next_node_id.max(NodeId::new(id.get() + 1));
        self.nodes.insert(id, Node { id, address, peer_address, draining: false });
        self.version += 1;
        Ok(Outcome::NodeRegistered { node: id })
    }

    pub(super) fn drain_node(&mut self, node: NodeId, unreachable: &[NodeId]) -> Result<Outcome, Refusal> {
        let was_draining = self.nodes.get(&node).ok_or_else(|| self.unknown_node(node))?.draining;
        let mut eligible = self.eligible_nodes(unreachable);
        eligible.remove(&node);
        self.check_drain(node, &eligible, unreachable)?;
        let mut load = Load::new(eligible, self.partitions.values());
        let moves: Vec<(GroupId, Vec<NodeId>)> = self
            .partitions
            .values()
            .filter(|partition| partition.target().contains(&node))
            .filter_map(|partition| Some((partition.group, load.replace(&partition.replicas, node)?)))
            .collect();
        let count = moves.len().try_into().unwrap_or(u32::MAX);
        if !was_draining || count > 0 {
            self.version += 1;
        }
        for (group, to) in moves {
            self.start_move(group, to);
        }
        if let Some(known) = self.nodes.get_mut(&node) {
            known.draining = true;
        }
        Ok(Outcome::DrainStarted { moves: count })
    }

    pub(super) fn remove_node(&mut self, node: NodeId) -> Result<Outcome, Refusal> {
        if self.removed_nodes.contains(&node) {
            return Ok(Outcome::NodeRemoved { node });
        }
        let known = self.nodes.get(&node).ok_or_else(|| self.unknown_node(node))?;
        if !known.draining {
            let message =
                format!("node {node} is not drained: drain it, wait until it holds no replica, then remove it");
            return Err(refusal(Reason::FailedPrecondition, message));
        }
        if let Some(example) = self.partitions_of_node(node).next() {
            let (count, example) = (self.partitions_of_node(node).count(), self.partition_name(example));
            let message =
                format!("node {node} still holds replicas ({count}, such as of {example}): wait until it is drained");
            return Err(refusal(Reason::FailedPrecondition, message));
        }
        if self.nodes.len() == 1 {
            let message = format!("node {node} is the cluster's last: stop it instead");
            return Err(refusal(Reason::FailedPrecondition, message));
        }
        self.nodes.remove(&node);
        self.removed_nodes.insert(node);
        self.version += 1;
        Ok(Outcome::NodeRemoved { node })
    }

    /// The refusal of a request for a node that is not there.
    pub fn unknown_node(&self, node: NodeId) -> Refusal {
        let known = list(self.nodes.keys().copied());
        let message = match self.removed_nodes.contains(&node) {
            true => format!("node {node} was removed, and its id is not used again; the nodes are {known}"),
            false => format!("there is no node {node}; the nodes are {known}"),
        };
        refusal(Reason::UnknownNode, message)
    }

    /// The nodes that may get replicas: not draining, and not named unreachable.
    pub(super) fn eligible_nodes(&self, unreachable: &[NodeId]) -> BTreeSet<NodeId> {
        let nodes = self.nodes.values().filter(|node| !node.draining && !unreachable.contains(&node.id));
        nodes.map(|node| node.id).collect()
    }

    /// How many nodes are eligible, and why not more: `2 (of 4, 1 draining, 1 unreachable)`.
    pub(super) fn describe_eligible(&self, eligible: &BTreeSet<NodeId>, unreachable: &[NodeId]) -> String {
        let draining = self.nodes.values().filter(|node| node.draining).count();
        let silent = self.nodes.values().filter(|node| !node.draining && unreachable.contains(&node.id)).count();
        let mut text = format!("{}", eligible.len());
        if draining + silent > 0 {
            text += &format!(" (of {}", self.nodes.len());
            if draining > 0 {
                text += &format!(", {draining} draining");
            }
            if silent > 0 {
                text += &format!(", {silent} unreachable");
            }
            text.push(')');
        }
        text
    }

    fn new_node_id(&self, wanted: Option<NodeId>) -> Result<NodeId, Refusal> {
        let id = wanted.unwrap_or(self.next_node_id);
        if self.removed_nodes.contains(&id) {
            let message = format!(
                "node {id} was removed from the cluster, and its id is not used again: let the node join with an \
                 empty data folder, as a new one"
            );
            return Err(refusal(Reason::FailedPrecondition, message));
        }
        if !(1..=NODE_ID_MAX).contains(&id.get()) {
            let message = format!("{id} can't be a node's id: it may be 1 to {NODE_ID_MAX}");
            return Err(refusal(Reason::InvalidArgument, message));
        }
        Ok(id)
    }

    fn check_drain(&self, node: NodeId, eligible: &BTreeSet<NodeId>, unreachable: &[NodeId]) -> Result<(), Refusal> {
        let mut missing = 0;
        for partition in self.partitions.values().filter(|partition| partition.target().contains(&node)) {
            if partition.moving_to.is_some() {
                let what = self.partition_name(partition);
                let message = format!("{what} is moving to node {node} now: wait until it is there, then drain");
                return Err(refusal(Reason::FailedPrecondition, message));
            }
            let can_stay = partition.replicas.iter().filter(|replica| **replica != node).count();
            let can_join = eligible.iter().filter(|candidate| !partition.replicas.contains(candidate)).count();
            missing = missing.max((can_stay + 1).saturating_sub(can_stay + can_join));
        }
        if missing > 0 {
            let there = self.describe_eligible(eligible, unreachable);
            let message = format!(
                "node {node} can't be drained: its partitions need {missing} more than the other nodes that can take \
                 replicas, {there}: add nodes first"
            );
            return Err(refusal(Reason::FailedPrecondition, message));
        }
        Ok(())
    }
}

fn check_address(what: &str, address: &str) -> Result<(), Refusal> {
    let parts = address.rsplit_once(':').filter(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) && !address.contains(char::is_whitespace)
    });
    if parts.is_some() && address.len() <= ADDRESS_BYTES_MAX {
        return Ok(());
    }
    let shown: String = address.chars().take(ADDRESS_BYTES_MAX).collect();
    Err(refusal(Reason::InvalidArgument, format!("'{shown}' can't be a node's {what}: write host:port")))
}
