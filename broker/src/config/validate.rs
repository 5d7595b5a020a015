//! What must hold between keys. Each rule is one function that adds its faults, so that all are reported together.

use std::collections::HashSet;

use busbar_proto::limits;

use super::{Config, Fault, HostPort};

/// Silent heartbeats that must pass before an election: fewer, and one lost packet deposes a healthy leader.
const HEARTBEATS_PER_ELECTION_MIN: u64 = 3;
/// Longest cluster name.
const CLUSTER_NAME_BYTES_MAX: usize = 64;

impl Config {
    pub(super) fn validate(&self, faults: &mut Vec<Fault>) {
        self.validate_identity(faults);
        self.validate_initial_nodes(faults);
        self.validate_addresses(faults);
        self.validate_raft(faults);
        self.validate_sizes(faults);
        self.validate_groups(faults);
        self.validate_compaction(faults);
    }

    fn validate_compaction(&self, faults: &mut Vec<Fault>) {
        let percent = self.compaction.dirty_percent;
        if percent > 100 {
            faults
                .push(Fault::new("compaction.dirty_percent", format!("{percent} is no part of a whole: use 1 to 100")));
        }
    }

    fn validate_identity(&self, faults: &mut Vec<Fault>) {
        let name = &self.cluster.name;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > CLUSTER_NAME_BYTES_MAX || !name.chars().all(legal) {
            let rule = format!("{name:?} is no cluster name: use 1 to {CLUSTER_NAME_BYTES_MAX} of a-z A-Z 0-9 . _ -");
            faults.push(Fault::new("cluster.name", rule));
        }
        if self.node.id == Some(0) {
            faults.push(Fault::new("node.id", "0 means \"no node\": ids start at 1"));
        }
        if !self.cluster.join.is_empty() && !self.cluster.initial_nodes.is_empty() {
            let rule = "set it or cluster.initial_nodes, not both: a node joins a cluster or is of its first nodes";
            faults.push(Fault::new("cluster.join", rule));
        }
    }

    fn validate_initial_nodes(&self, faults: &mut Vec<Fault>) {
        let place = "cluster.initial_nodes";
        let nodes = &self.cluster.initial_nodes;
        let mut ids = HashSet::new();
        let mut addresses = HashSet::new();
        for node in nodes {
            if node.id == 0 {
                faults.push(Fault::new(place, "0 means \"no node\": ids start at 1"));
            } else if !ids.insert(node.id) {
                faults.push(Fault::new(place, format!("node {} is listed twice", node.id)));
            }
            for address in [&node.address, &node.peer_address] {
                if !address.is_reachable() {
                    faults.push(Fault::new(place, unreachable(address)));
                } else if !addresses.insert(address) {
                    faults.push(Fault::new(place, format!("{address} is listed twice: each address is one node's")));
                }
            }
        }
        match self.node.id {
            _ if nodes.is_empty() => {}
            None => {
                faults.push(Fault::new("node.id", "is needed with cluster.initial_nodes: say which of them this is"))
            }
            Some(id) if !ids.contains(&id) => {
                let listed = nodes.iter().map(|node| node.id.to_string()).collect::<Vec<_>>().join(", ");
                faults.push(Fault::new("node.id", format!("{id} is not among cluster.initial_nodes ({listed})")));
            }
            Some(_) => {}
        }
    }

    fn validate_addresses(&self, faults: &mut Vec<Fault>) {
        let listen = &self.listen;
        for (name, heard, told) in [
            ("advertise", &listen.address, &listen.advertise),
            ("advertise_peer", &listen.peer_address, &listen.advertise_peer),
        ] {
            match told {
                Some(address) if !address.is_reachable() => {
                    faults.push(Fault::new(format!("listen.{name}"), unreachable(address)));
                }
                None if heard.is_wildcard() => {
                    let advice =
                        format!("is needed: others can't connect to {}, which this node listens on", heard.host());
                    faults.push(Fault::new(format!("listen.{name}"), advice));
                }
                _ => {}
            }
        }
        if listen.address == listen.peer_address && listen.address.port() != 0 {
            let advice = format!("is {}, as listen.address: clients and peers need a port each", listen.address);
            faults.push(Fault::new("listen.peer_address", advice));
        }
        for address in self.cluster.join.iter().filter(|address| !address.is_reachable()) {
            faults.push(Fault::new("cluster.join", unreachable(address)));
        }
    }

    fn validate_raft(&self, faults: &mut Vec<Fault>) {
        let raft = &self.raft;
        if raft.election_min_ms.get() < HEARTBEATS_PER_ELECTION_MIN.saturating_mul(raft.heartbeat_ms.get()) {
            let rule = format!(
                "{} must be at least {HEARTBEATS_PER_ELECTION_MIN} times raft.heartbeat_ms ({})",
                raft.election_min_ms, raft.heartbeat_ms
            );
            faults.push(Fault::new("raft.election_min_ms", rule));
        }
        if raft.election_max_ms <= raft.election_min_ms {
            let rule = format!(
                "{} must be more than raft.election_min_ms ({}): the spread keeps nodes from standing at once",
                raft.election_max_ms, raft.election_min_ms
            );
            faults.push(Fault::new("raft.election_max_ms", rule));
        }
    }

    fn validate_groups(&self, faults: &mut Vec<Fault>) {
        let (shards, timeout) = (self.groups.shards, self.groups.session_timeout_ms);
        if shards > limits::GROUP_SHARDS_MAX {
            let rule = format!("{shards} is too many: the maximum is {}", limits::GROUP_SHARDS_MAX);
            faults.push(Fault::new("groups.shards", rule));
        }
        if timeout.get() > limits::SESSION_TIMEOUT_MS_MAX {
            let rule = format!("{timeout} is too long: the maximum is {} ms", limits::SESSION_TIMEOUT_MS_MAX);
            faults.push(Fault::new("groups.session_timeout_ms", rule));
        }
    }

    fn validate_sizes(&self, faults: &mut Vec<Fault>) {
        let (node, partition) = (self.limits.node_in_flight_bytes, self.limits.partition_in_flight_bytes);
        if partition > node {
            let rule = format!("{partition} is more than limits.node_in_flight_bytes ({node})");
            faults.push(Fault::new("limits.partition_in_flight_bytes", rule));
        }
    }
}

// A journal file holds at least one entry of the largest size: the schema's minimum of 16 MiB.
const _: () = assert!(limits::ENTRY_BYTES_MAX + (64 << 10) <= 16 << 20);

fn unreachable(address: &HostPort) -> String {
    format!("{address} can't be connected to: name a host and a port other than 0")
}
