//! A cluster's life as text; see `golden/catalog.txt`.
//!
//! ```text
//! init NAME INCARNATION
//! join ADDRESS                 a node without an id; its peer address is the next port
//! register ID ADDRESS          a node that has an id
//! create TOPIC ID xPARTITIONS rREPLICAS [-NODE...]    -NODE: can't be reached
//! delete TOPIC
//! move TOPIC/PARTITION NODE...
//! finish GROUP MOVE NODE...
//! drain NODE [-NODE...]
//! remove NODE
//! ids COUNT
//! claim NAME INSTANCE MS       a producer's name; renew NAME INSTANCE EPOCH: another epoch for the same instance
//! show                         nodes, topics, partitions
//! ```

use busbar_machine::catalog::{Catalog, Command, NamedProducer, Outcome, TopicConfig};
use busbar_proto::{GroupId, NodeId, PartitionId, ProducerEpoch, TopicId};

use crate::golden;

fn node(text: &str) -> NodeId {
    NodeId::new(text.parse().unwrap())
}

fn nodes(words: &[&str]) -> Vec<NodeId> {
    words.iter().map(|word| node(word.trim_start_matches('-'))).collect()
}

fn peer_address(address: &str) -> String {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    format!("{host}:{}", port.parse::<u32>().unwrap_or(0) + 1)
}

fn command(words: &[&str]) -> Command {
    match words {
        ["init", cluster, incarnation] => {
            Command::InitCluster { cluster: (*cluster).to_owned(), incarnation: (*incarnation).to_owned() }
        }
        ["join", address] => {
            Command::RegisterNode { node: None, address: (*address).to_owned(), peer_address: peer_address(address) }
        }
        ["register", id, address] => Command::RegisterNode {
            node: Some(node(id)),
            address: (*address).to_owned(),
            peer_address: peer_address(address),
        },
        ["create", name, id, partitions, replicas, unreachable @ ..] => Command::CreateTopic {
            name: (*name).to_owned(),
            id: TopicId::from_bytes([id.parse().unwrap(); 16]),
            partitions: partitions.trim_start_matches('x').parse().unwrap(),
            config: TopicConfig { replicas: replicas.trim_start_matches('r').parse().unwrap(), ..Default::default() },
            unreachable: nodes(unreachable),
            node_replicas_max: None,
        },
        ["delete", name] => Command::DeleteTopic { name: (*name).to_owned() },
        ["move", partition, to @ ..] => {
            let (topic, partition) = partition.split_once('/').unwrap();
            let partition = PartitionId::new(partition.parse().unwrap());
            Command::MovePartition { topic: topic.to_owned(), partition, to: nodes(to) }
        }
        ["finish", group, move_id, replicas @ ..] => Command::FinishMove {
            group: GroupId::new(group.parse().unwrap()),
            move_id: move_id.parse().unwrap(),
            replicas: nodes(replicas),
        },
        ["drain", id, unreachable @ ..] => Command::DrainNode { node: node(id), unreachable: nodes(unreachable) },
        ["remove", id] => Command::RemoveNode { node: node(id) },
        ["ids", count] => Command::AllocateProducerIds { count: count.parse().unwrap() },
        ["claim", name, instance, now_ms] => Command::ClaimProducer {
            name: (*name).to_owned(),
            instance: instance.parse().unwrap(),
            renews: None,
            now_ms: now_ms.parse().unwrap(),
        },
        ["renew", name, instance, epoch] => Command::ClaimProducer {
            name: (*name).to_owned(),
            instance: instance.parse().unwrap(),
            renews: Some(ProducerEpoch::new(epoch.parse().unwrap())),
            now_ms: 0,
        },
        _ => panic!("no such command: {words:?}"),
    }
}

fn show(catalog: &Catalog) -> String {
    let list = |nodes: &[NodeId]| nodes.iter().map(|node| node.to_string()).collect::<Vec<_>>().join(",");
    let mut text = String::new();
    for node in catalog.nodes() {
        let leads = catalog.partitions().filter(|partition| partition.target().first() == Some(&node.id)).count();
        let holds = catalog.partitions_of_node(node.id).count();
        let draining = if node.draining { " draining" } else { "" };
        text +=
            &format!("node {} {} {}{draining}: leads {leads}, in {holds}\n", node.id, node.address, node.peer_address);
    }
    for topic in catalog.topics() {
        text += &format!("topic {} replicas {}:", topic.name, topic.config.replicas);
        for partition in topic.partitions.iter().filter_map(|&group| catalog.partition(group)) {
            text += &format!(" {}:{}", partition.group, list(&partition.replicas));
            if let Some(to) = &partition.moving_to {
                text += &format!("=>{}", list(to));
            }
        }
        text.push('\n');
    }
    for producer in catalog.named_producers() {
        let NamedProducer { name, id, epoch, oldest_epoch, .. } = producer;
        text += &format!("producer {name}: {id}, epochs {oldest_epoch} to {epoch}\n");
    }
    text
}

#[test]
fn catalog() {
    let mut catalog = Catalog::new();
    golden::replay("catalog.txt", |line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words == ["show"] {
            return show(&catalog);
        }
        let command = command(&words);
        assert_eq!(Command::decode(&command.encode()).as_ref(), Ok(&command));
        let outcome = catalog.apply(command);
        assert_eq!(Outcome::decode(&outcome.encode()).as_ref(), Ok(&outcome));
        assert_eq!(Catalog::decode(&catalog.encode()).as_ref(), Ok(&catalog));
        let text = match outcome {
            Outcome::Refused { reason, message } => format!("{}: {message}", reason.as_str()),
            done => format!("{done:?}"),
        };
        format!("v{} {text}", catalog.version())
    });
}
