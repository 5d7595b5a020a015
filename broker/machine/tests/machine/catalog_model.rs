//! Random commands: what must hold of the catalog after each of them, whatever came before.

use std::collections::{BTreeMap, BTreeSet};

use busbar_machine::catalog::{Catalog, Command, Outcome, TopicConfig};
use busbar_proto::{GroupId, NodeId, PartitionId, ProducerEpoch, ProducerId, TopicId};
use proptest::{collection::vec, prelude::*, sample::Index};

#[derive(Clone, Debug)]
enum Step {
    Command(Command),
    /// One of the moves under way is done.
    Finish(Index),
    /// The same command again, as after a lost answer.
    Again,
}

fn any_node() -> impl Strategy<Value = NodeId> {
    (0..9_u64).prop_map(NodeId::new)
}

fn any_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "orders", "order", "", "no/name"]).prop_map(str::to_owned)
}

fn any_command() -> impl Strategy<Value = Command> {
    let address = (0..4_u16).prop_map(|port| format!("a:{port}"));
    let unreachable = vec(any_node(), 0..2).boxed();
    let config = (0..5_u32).prop_map(|replicas| TopicConfig { replicas, ..TopicConfig::default() });
    let id = (0..20_u8).prop_map(|id| TopicId::from_bytes([id; 16])).boxed();
    prop_oneof![
        1 => any_name().prop_map(|cluster| Command::InitCluster { cluster, incarnation: "abc".into() }),
        6 => (proptest::option::of(any_node()), address.clone(), address).prop_map(|(node, address, peer_address)| {
            Command::RegisterNode { node, address, peer_address }
        }),
        1 => (id.clone(), 0..4_u32, unreachable.clone()).prop_map(|(id, shards, unreachable)| {
            Command::CreateGroupShards { id, shards, unreachable }
        }),
        4 => (any_name(), id, 0..6_u32, config, unreachable.clone()).prop_map(
            |(name, id, partitions, config, unreachable)| Command::CreateTopic {
                name, id, partitions, config, unreachable, node_replicas_max: (partitions == 5).then_some(6),
            }
        ),
        1 => any_name().prop_map(|name| Command::DeleteTopic { name }),
        4 => (any_name(), 0..6_u32, vec(any_node(), 0..4)).prop_map(|(topic, partition, to)| {
            Command::MovePartition { topic, partition: PartitionId::new(partition), to }
        }),
        1 => (0..30_u64, 0..3_u64, vec(any_node(), 0..4)).prop_map(|(group, move_id, replicas)| {
            Command::FinishMove { group: GroupId::new(group), move_id, replicas }
        }),
        2 => (any_node(), unreachable).prop_map(|(node, unreachable)| Command::DrainNode { node, unreachable }),
        2 => any_node().prop_map(|node| Command::RemoveNode { node }),
        1 => (0..5_u32).prop_map(|count| Command::AllocateProducerIds { count }),
        3 => (any_name(), 0..4_u64, proptest::option::of(0..4_i16), 0..9_i64).prop_map(
            |(name, instance, renews, now_ms)| {
                let renews = renews.map(ProducerEpoch::new);
                Command::ClaimProducer { name, instance, renews, now_ms }
            }
        ),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any_command().prop_map(Step::Command),
        3 => any::<Index>().prop_map(Step::Finish),
        1 => Just(Step::Again),
    ]
}

/// What was ever handed out.
#[derive(Default)]
struct Seen {
    removed: BTreeSet<NodeId>,
    groups: BTreeSet<GroupId>,
    groups_gone: BTreeSet<GroupId>,
    assigned: BTreeSet<NodeId>,
    next_producer_id: i64,
    /// Whose each id and epoch is.
    claimed: BTreeMap<(ProducerId, ProducerEpoch), (String, u64)>,
}

fn finish(catalog: &Catalog, which: Index) -> Option<Command> {
    let moving: Vec<_> = catalog.partitions().filter(|partition| partition.moving_to.is_some()).collect();
    let partition = moving.get(which.index(moving.len().max(1)))?;
    let replicas = partition.moving_to.clone()?;
    Some(Command::FinishMove { group: partition.group, move_id: partition.move_id, replicas })
}

fn check(before: &Catalog, after: &Catalog, command: &Command, outcome: &Outcome, seen: &mut Seen) {
    let changed = before != after;
    assert_eq!(after.version(), before.version() + u64::from(changed), "a change has a version: {command:?}");
    match (command, outcome) {
        (_, Outcome::Refused { message, .. }) => assert!(!changed && !message.is_empty(), "{command:?}"),
        (Command::RegisterNode { node: None, .. }, Outcome::NodeRegistered { node }) => {
            assert!(before.node(*node).is_none() && seen.assigned.insert(*node), "{node} is assigned twice");
        }
        (Command::RegisterNode { node: Some(id), .. }, Outcome::NodeRegistered { node }) => {
            assert_eq!(id, node);
            seen.assigned.insert(*node);
        }
        (Command::DrainNode { node, .. }, Outcome::DrainStarted { .. }) => {
            assert!(after.partitions().all(|partition| !partition.target().contains(node)), "{node} keeps a replica");
        }
        (Command::RemoveNode { node }, Outcome::NodeRemoved { .. }) => {
            assert_eq!(before.partitions_of_node(*node).count(), 0);
            seen.removed.insert(*node);
        }
        (_, Outcome::ProducerIds { start, count }) => {
            assert!(*start >= ProducerId::new(seen.next_producer_id), "producer ids are handed out twice");
            seen.next_producer_id = start.get() + i64::from(*count);
        }
        (Command::ClaimProducer { name, instance, renews, .. }, Outcome::ProducerClaimed { id, epoch }) => {
            check_claim(after, (name, *instance, *renews), (*id, *epoch), changed, seen);
        }
        _ => (),
    }
    let unreachable: &[NodeId] = match command {
        Command::CreateTopic { unreachable, .. } | Command::DrainNode { unreachable, .. } => unreachable,
        _ => &[],
    };
    for partition in after.partitions() {
        for replicas in [&partition.replicas].into_iter().chain(&partition.moving_to) {
            assert!(!replicas.is_empty());
            assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), replicas.len(), "two replicas on one node");
            assert!(replicas.iter().all(|&node| after.node(node).is_some()), "a replica on no node");
        }
        let is_new = before.partition(partition.group).is_none();
        let is_planned = partition.moving_to.is_some() && before.partition(partition.group) != Some(partition);
        let was: &[NodeId] = if is_new { &[] } else { &partition.replicas };
        if is_new || is_planned {
            let mut joining = partition.target().iter().filter(|node| !was.contains(node));
            assert!(joining.all(|node| !unreachable.contains(node)), "an unreachable node gets a replica");
            assert!(seen.groups.insert(partition.group) || !is_new, "{} is used twice", partition.group);
        }
    }
    let gone = before.partitions().map(|partition| partition.group).filter(|&group| after.partition(group).is_none());
    seen.groups_gone.extend(gone);
    assert!(seen.groups_gone.iter().all(|&group| after.partition(group).is_none()), "a group is back");
    assert!(seen.removed.iter().all(|&node| after.node(node).is_none() && after.is_removed(node)), "a node is back");
    assert!(after.topics().all(|topic| after.topic_by_name(topic.name.as_str()) == Some(topic)));
    let of_topics: usize = after.topics().map(|topic| topic.partitions.len()).sum();
    assert_eq!(of_topics, after.partitions().len(), "each partition has a topic");
}

fn check_claim(
    after: &Catalog,
    (name, instance, renews): (&String, u64, Option<ProducerEpoch>),
    (id, epoch): (ProducerId, ProducerEpoch),
    changed: bool,
    seen: &mut Seen,
) {
    let whose = seen.claimed.entry((id, epoch)).or_insert_with(|| (name.clone(), instance));
    assert_eq!(*whose, (name.clone(), instance), "{id} epoch {epoch} is handed out twice");
    assert!(changed || instance != 0, "without a number each claim is another instance");
    let named = after.named_producer(id).unwrap();
    assert!(named.name == *name && named.id == id && named.epoch == epoch);
    for epoch in (0..=epoch.get()).map(ProducerEpoch::new) {
        // All that the instance has and nothing else may write.
        let is_ours = seen.claimed.get(&(id, epoch)).is_some_and(|whose| *whose == (name.clone(), instance));
        let held = epoch >= named.oldest_epoch;
        assert_eq!(named.replaces(id, epoch).is_none(), held);
        assert!(is_ours || !held || instance == 0, "{id} epoch {epoch} of another instance may write");
    }
    assert!(renews.is_none_or(|renews| epoch > renews || !changed), "a renewal gives a newer epoch");
    seen.next_producer_id = seen.next_producer_id.max(id.get() + 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn invariants_hold(steps in vec(any_step(), 1..80)) {
        let mut catalog = Catalog::new();
        let mut twin = Catalog::new();
        let mut seen = Seen::default();
        let mut last = None;
        for step in steps {
            let (command, is_again) = match step {
                Step::Command(command) => (Some(command), false),
                Step::Finish(which) => (finish(&catalog, which), false),
                Step::Again => (last.clone(), true),
            };
            let Some(command) = command else { continue };
            let before = catalog.clone();
            let outcome = catalog.apply(command.clone());
            // A replica that was restarted from a snapshot just now does the same.
            twin = Catalog::decode(&twin.encode()).unwrap();
            let command_read = Command::decode(&command.encode()).unwrap();
            prop_assert_eq!(twin.apply(command_read), outcome.clone());
            prop_assert_eq!(twin.encode(), catalog.encode());
            check(&before, &catalog, &command, &outcome, &mut seen);
            let is_meant_to_add = matches!(
                command,
                Command::RegisterNode { node: None, .. } | Command::AllocateProducerIds { .. }
            );
            let is_meant_to_add = is_meant_to_add || matches!(command, Command::ClaimProducer { instance: 0, .. });
            if is_again && !is_meant_to_add {
                prop_assert_eq!(&before, &catalog, "a repeated command changes nothing more");
            }
            last = Some(command);
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_an_error(bytes in vec(any::<u8>(), 0..60), at: Index, to: u8) {
        let _ = (Command::decode(&bytes), Outcome::decode(&bytes), Catalog::decode(&bytes));
        let mut catalog = Catalog::new();
        let _ = catalog.apply(Command::RegisterNode { node: None, address: "a:1".into(), peer_address: "a:2".into() });
        let config = TopicConfig::default();
        let _ = catalog.apply(Command::CreateTopic {
            name: "a".into(), id: TopicId::from_bytes([1; 16]), partitions: 2, config, unreachable: vec![],
            node_replicas_max: None,
        });
        let mut damaged = catalog.encode().to_vec();
        *at.get_mut(&mut damaged) = to;
        if let Ok(read) = Catalog::decode(&damaged) {
            prop_assert_eq!(Catalog::decode(&read.encode()), Ok(read));
        }
    }
}
