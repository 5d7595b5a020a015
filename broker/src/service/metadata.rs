//! What clients are told of the cluster: nodes, topics, who leads. In protocol-neutral terms it would be a second copy
//! of the wire structs, so the wire structs it is.

use std::collections::BTreeSet;

use busbar_machine::catalog::{Catalog, Topic, TopicKind};
use busbar_proto::v1;
use bytes::Bytes;

use super::broker::Broker;

impl Broker {
    /// The cluster as this node sees it. `topics` limits the answer; unknown names are left out, and so are
    /// the cluster's own topics unless they are named.
    pub fn metadata(&self, topics: &[String]) -> v1::MetadataResponse {
        let wanted: BTreeSet<&str> = topics.iter().map(String::as_str).collect();
        let version = *self.leaders().watch().borrow();
        self.cluster().read(|catalog| {
            let topics = catalog.topics().filter(|topic| match wanted.is_empty() {
                true => topic.kind == TopicKind::Records,
                false => wanted.contains(topic.name.as_str()),
            });
            v1::MetadataResponse {
                cluster: self.config().cluster.name.clone(),
                version,
                nodes: self.nodes(catalog),
                topics: topics.map(|topic| self.topic(catalog, topic)).collect(),
                answered_by: self.node().get(),
                time_ms: 0,
            }
        })
    }

    /// The refusal for a topic that is not there, with the closest name that is.
    pub fn unknown_topic(&self, name: &str) -> busbar_proto::Refusal {
        self.cluster().read(|catalog| catalog.unknown_topic(name))
    }

    pub(super) fn nodes(&self, catalog: &Catalog) -> Vec<v1::Node> {
        let now = self.clock().now();
        let node = |node: &busbar_machine::catalog::Node| v1::Node {
            id: node.id.get(),
            address: node.address.clone(),
            alive: node.id == self.node() || self.leaders().is_alive(node.id, now),
            draining: node.draining,
        };
        catalog.nodes().map(node).collect()
    }

    pub(super) fn topic(&self, catalog: &Catalog, topic: &Topic) -> v1::Topic {
        let partitions = topic.partitions.iter().filter_map(|group| catalog.partition(*group)).map(|partition| {
            let leader = self.parts.leaders.leader(partition.group);
            v1::Partition {
                partition: partition.partition.get(),
                leader: leader.map_or(0, |(node, _)| node.get()),
                epoch: leader.map_or(0, |(_, term)| term.get()),
                replicas: partition.replicas.iter().map(|node| node.get()).collect(),
            }
        });
        v1::Topic {
            name: topic.name.as_str().to_owned(),
            id: Bytes::copy_from_slice(topic.id.as_bytes()),
            partitions: partitions.collect(),
            config: Some(topic.config.to_wire()),
        }
    }
}
