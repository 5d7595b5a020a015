//! The catalog's encodings: JSON, in an envelope that names the version.
//!
//! ```text
//! {"version":1,"body":{...}}
//! ```
//! Invariant: what decodes obeys every invariant of the catalog, and encodes to the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use busbar_proto::{GroupId, NodeId, PartitionId, ProducerId, TopicId, TopicName};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Catalog, Identity, NamedProducer, Node, Partition, Topic, TopicConfig, TopicKind, claims::NamedProducers};
use crate::codec::DecodeError;

const WHAT: &str = "a catalog snapshot";
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Written<'a, T> {
    version: u32,
    body: &'a T,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read<T> {
    #[serde(rename = "version")]
    _version: u32,
    body: T,
}

/// `body` in its envelope.
pub(super) fn to_json<T: Serialize>(body: &T) -> Bytes {
    match serde_json::to_vec(&Written { version: VERSION, body }) {
        Ok(bytes) => bytes.into(),
        Err(error) => unreachable!("the catalog's types have no map with keys that aren't text: {error}"),
    }
}

/// The body of an envelope, if its version is ours.
pub(super) fn from_json<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    let invalid = |error: serde_json::Error| DecodeError::Invalid { what, field: "JSON", found: error.to_string() };
    let Version { version } = serde_json::from_slice(bytes).map_err(invalid)?;
    if version != VERSION {
        return Err(DecodeError::UnknownVersion { what, found: version, known: VERSION });
    }
    serde_json::from_slice::<Read<T>>(bytes).map(|read| read.body).map_err(invalid)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    cluster: Option<Identity>,
    changes: u64,
    next_node_id: NodeId,
    next_group_id: GroupId,
    next_producer_id: ProducerId,
    nodes: Vec<Node>,
    removed_nodes: Vec<NodeId>,
    topics: Vec<TopicEntry>,
    partitions: Vec<Partition>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    named_producers: Vec<NamedProducer>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TopicEntry {
    id: TopicId,
    name: TopicName,
    #[serde(default, skip_serializing_if = "TopicKind::is_records")]
    kind: TopicKind,
    config: TopicConfig,
}

impl Catalog {
    /// Its whole state.
    pub fn encode(&self) -> Bytes {
        let topics = self.topics.values();
        to_json(&Snapshot {
            cluster: self.cluster.clone(),
            changes: self.version,
            next_node_id: self.next_node_id,
            next_group_id: self.next_group_id,
            next_producer_id: self.next_producer_id,
            nodes: self.nodes.values().cloned().collect(),
            removed_nodes: self.removed_nodes.iter().copied().collect(),
            topics: topics
                .map(|topic| TopicEntry {
                    id: topic.id,
                    name: topic.name.clone(),
                    kind: topic.kind,
                    config: topic.config,
                })
                .collect(),
            partitions: self.partitions.values().cloned().collect(),
            named_producers: self.producers.iter().cloned().collect(),
        })
    }

    /// The catalog that these bytes are.
    ///
    /// # Errors
    /// When they are no possible catalog of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let snapshot: Snapshot = from_json(WHAT, bytes)?;
        let mut catalog = Self {
            cluster: snapshot.cluster,
            version: snapshot.changes,
            next_node_id: snapshot.next_node_id,
            next_group_id: snapshot.next_group_id,
            next_producer_id: snapshot.next_producer_id,
            nodes: BTreeMap::new(),
            removed_nodes: BTreeSet::new(),
            topics: BTreeMap::new(),
            topic_ids: BTreeMap::new(),
            partitions: BTreeMap::new(),
            producers: NamedProducers::default(),
        };
        for node in snapshot.nodes {
            catalog.restore_node(node)?;
        }
        for node in snapshot.removed_nodes {
            let is_new = !catalog.nodes.contains_key(&node) && catalog.removed_nodes.insert(node);
            ensure(is_new && node < catalog.next_node_id, "removed node", node)?;
        }
        for TopicEntry { id, name, kind, config } in snapshot.topics {
            ensure(catalog.topic_ids.insert(name.clone(), id).is_none(), "topic name", &name)?;
            ensure(config.replicas > 0 && config.validate().is_ok(), "configuration of topic", &name)?;
            let before = catalog.topics.insert(id, Topic { id, name, kind, config, partitions: Vec::new() });
            ensure(before.is_none(), "topic id", id)?;
        }
        for partition in snapshot.partitions {
            catalog.restore_partition(partition)?;
        }
        for producer in snapshot.named_producers {
            let (name, next_id) = (producer.name.clone(), catalog.next_producer_id);
            ensure(catalog.producers.restore(producer, next_id), "named producer", name)?;
        }
        for topic in catalog.topics.values() {
            ensure(!topic.partitions.is_empty(), "topic without partitions", &topic.name)?;
        }
        Ok(catalog)
    }

    fn restore_node(&mut self, node: Node) -> Result<(), DecodeError> {
        let id = node.id;
        ensure(id > NodeId::new(0) && id < self.next_node_id, "node id", id)?;
        ensure(self.nodes.insert(id, node).is_none(), "node id", id)
    }

    /// Partitions are written by group, and groups are numbered by partition within a topic.
    fn restore_partition(&mut self, partition: Partition) -> Result<(), DecodeError> {
        let group = partition.group;
        ensure(group > GroupId::CATALOG && group < self.next_group_id, "group id", group)?;
        for replicas in [Some(&partition.replicas), partition.moving_to.as_ref()].into_iter().flatten() {
            let distinct: BTreeSet<_> = replicas.iter().collect();
            let are_known = replicas.iter().all(|node| self.nodes.contains_key(node));
            ensure(!replicas.is_empty() && distinct.len() == replicas.len() && are_known, "replicas of group", group)?;
        }
        let Some(topic) = self.topics.get_mut(&partition.topic) else {
            return ensure(false, "topic of group", group);
        };
        let number = topic.partitions.len().try_into().map(PartitionId::new);
        ensure(number == Ok(partition.partition), "partition number of group", group)?;
        topic.partitions.push(group);
        ensure(self.partitions.insert(group, partition).is_none(), "group id", group)
    }
}

fn ensure(holds: bool, field: &'static str, found: impl ToString) -> Result<(), DecodeError> {
    match holds {
        true => Ok(()),
        false => Err(DecodeError::Invalid { what: WHAT, field, found: found.to_string() }),
    }
}
