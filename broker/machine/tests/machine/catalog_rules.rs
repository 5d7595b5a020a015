//! What the catalog refuses and why, its limits, names that are nearly right, and snapshots that can't be.

use busbar_machine::{
    catalog::{Catalog, Command, GROUPS_TOPIC, Outcome, PRODUCER_IDS_PER_BLOCK_MAX, TopicConfig, TopicKind},
    codec::DecodeError,
};
use busbar_proto::{GroupId, NodeId, PartitionId, ProducerEpoch, ProducerId, Reason, TopicId, limits};

fn cluster(nodes: u64) -> Catalog {
    let mut catalog = Catalog::new();
    let init = Command::InitCluster { cluster: "demo".into(), incarnation: "abc".into() };
    let _ = catalog.apply(init);
    for node in 1..=nodes {
        let (address, peer_address) = (format!("a:{}", 7_000 + node), format!("a:{}", 8_000 + node));
        let _ = catalog.apply(Command::RegisterNode { node: None, address, peer_address });
    }
    catalog
}

fn create(name: &str, id: u8, partitions: u32) -> Command {
    Command::CreateTopic {
        name: name.into(),
        id: TopicId::from_bytes([id; 16]),
        partitions,
        config: TopicConfig::default(),
        unreachable: vec![],
        node_replicas_max: None,
    }
}

fn reason(outcome: Outcome) -> Reason {
    outcome.into_result().unwrap_err().reason
}

#[test]
fn the_closest_name() {
    let mut catalog = cluster(1);
    for (id, name) in ["orders", "orders-eu", "payments", "x", "Logs"].into_iter().enumerate() {
        let _ = catalog.apply(create(name, id as u8, 1));
    }
    for (name, want) in [
        ("order", Some("orders")),
        ("odrers", Some("orders")),
        ("ORDERS", Some("orders")),
        ("orders-us", Some("orders-eu")),
        ("logs", Some("Logs")),
        ("payment", Some("payments")),
        ("y", Some("x")),
        ("yy", None),
        ("invoices", None),
        ("", Some("x")),
        ("ördërs", Some("orders")),
    ] {
        assert_eq!(catalog.closest_topic_name(name), want, "{name:?}");
    }
    let refusal = catalog.unknown_topic("order");
    assert_eq!(refusal.message, "there is no topic 'order': did you mean 'orders'?");
    assert!(catalog.unknown_topic(&"ä".repeat(100_000)).message.len() < 1_000, "a message has bounds");
}

#[test]
fn producer_ids_are_handed_out_once() {
    let mut catalog = cluster(1);
    let mut next = 1;
    for count in [1, 1_000, PRODUCER_IDS_PER_BLOCK_MAX, 1] {
        let want = Outcome::ProducerIds { start: ProducerId::new(next), count };
        assert_eq!(catalog.apply(Command::AllocateProducerIds { count }), want);
        next += i64::from(count);
    }
    for count in [0, PRODUCER_IDS_PER_BLOCK_MAX + 1] {
        assert_eq!(reason(catalog.apply(Command::AllocateProducerIds { count })), Reason::InvalidArgument);
    }
}

#[test]
fn partitions_have_a_limit_over_all_topics() {
    let mut catalog = cluster(1);
    for id in 0..10 {
        assert!(matches!(catalog.apply(create(&format!("t{id}"), id, 10_000)), Outcome::TopicCreated { .. }));
    }
    let refusal = catalog.apply(create("one-more", 99, 1)).into_result().unwrap_err();
    assert_eq!(refusal.reason, Reason::LimitReached);
    assert!(refusal.message.contains("only 0 of the cluster's 100000 are left"), "{refusal}");
}

#[test]
fn a_topic_without_nodes_is_refused() {
    assert_eq!(reason(cluster(0).apply(create("orders", 1, 1))), Reason::FailedPrecondition);
}

#[test]
fn the_last_node_stays() {
    let mut catalog = cluster(1);
    let node = NodeId::new(1);
    assert_eq!(catalog.apply(Command::DrainNode { node, unreachable: vec![] }), Outcome::DrainStarted { moves: 0 });
    assert_eq!(reason(catalog.apply(Command::RemoveNode { node })), Reason::FailedPrecondition);
}

#[test]
fn queries_agree() {
    let mut catalog = cluster(3);
    let _ = catalog.apply(create("orders", 1, 4));
    let topic = catalog.topic_by_name("orders").unwrap();
    assert_eq!(Some(topic), catalog.topic_by_id(TopicId::from_bytes([1; 16])));
    for (number, &group) in topic.partitions.iter().enumerate() {
        let partition = catalog.partition(group).unwrap();
        assert_eq!(Some(partition), catalog.partition_of_topic(topic.id, PartitionId::new(number as u32)));
        assert_eq!(catalog.partition_name(partition), format!("orders/{number}"));
        for &node in &partition.replicas {
            assert!(catalog.partitions_of_node(node).any(|other| other == partition));
        }
    }
    assert_eq!(catalog.partition_of_topic(topic.id, PartitionId::new(4)), None);
    assert_eq!(catalog.partition(GroupId::CATALOG), None);
    assert!(catalog.topic_by_name("no/name").is_none());
}

#[test]
fn commands_are_readable_json() {
    let text = br#"{"version":1,"body":{"move_partition":{"topic":"orders","partition":3,"to":[2,3]}}}"#;
    let to = vec![NodeId::new(2), NodeId::new(3)];
    let command = Command::MovePartition { topic: "orders".into(), partition: PartitionId::new(3), to };
    assert_eq!(Command::decode(text), Ok(command.clone()));
    assert_eq!(&command.encode()[..], text);
    let refused = br#"{"version":1,"body":{"refused":{"reason":"UNKNOWN_TOPIC","message":"m"}}}"#;
    let outcome = Outcome::Refused { reason: Reason::UnknownTopic, message: "m".into() };
    assert_eq!(Outcome::decode(refused), Ok(outcome.clone()));
    assert_eq!(&outcome.encode()[..], refused);
}

#[test]
fn commands_of_another_version_are_not_half_understood() {
    for (text, want) in [
        (
            r#"{"version":2,"body":{"from":"the future"}}"#,
            "a catalog command has format version 2, this build reads version 1: upgrade this node",
        ),
        (
            r#"{"version":1,"body":{"remove_node":{"node":1,"force":true}}}"#,
            "a catalog command has a JSON that can't be: unknown field `force`",
        ),
        (r#"{"version":1,"body":{"fly":{}}}"#, "a catalog command has a JSON that can't be: unknown variant `fly`"),
        ("", "a catalog command has a JSON that can't be: EOF"),
        ("[[[[", "a catalog command has a JSON that can't be: "),
    ] {
        let error = Command::decode(text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(want), "{text}: {error}");
    }
}

fn claim(name: &str, instance: u64, now_ms: i64) -> Command {
    Command::ClaimProducer { name: name.into(), instance, renews: None, now_ms }
}

fn claimed(outcome: Outcome) -> (i64, i16) {
    match outcome {
        Outcome::ProducerClaimed { id, epoch } => (id.get(), epoch.get()),
        other => panic!("not claimed: {other:?}"),
    }
}

#[test]
fn a_claim_that_was_long_on_its_way_takes_nothing_back() {
    let mut catalog = cluster(1);
    for instance in 1..=5 {
        assert_eq!(claimed(catalog.apply(claim("relay", instance, 0))), (1, instance as i16 - 1));
    }
    let before = catalog.clone();
    for instance in 1..=4 {
        assert_eq!(reason(catalog.apply(claim("relay", instance, 9))), Reason::ProducerFenced);
    }
    assert_eq!(claimed(catalog.apply(claim("relay", 5, 9))), (1, 4), "its own, again");
    assert_eq!(catalog, before);
    let named = catalog.named_producer(ProducerId::new(1)).unwrap();
    for (epoch, want) in [(3, Some(4)), (4, None), (5, None)] {
        let replaced = named.replaces(ProducerId::new(1), ProducerEpoch::new(epoch));
        assert_eq!(replaced, want.map(ProducerEpoch::new), "{epoch}");
    }
}

#[test]
fn a_name_that_has_used_up_its_epochs_gets_another_id() {
    let mut catalog = cluster(1);
    for epoch in 0..=i16::MAX {
        assert_eq!(claimed(catalog.apply(claim("relay", 0, 0))), (1, epoch));
    }
    assert_eq!(claimed(catalog.apply(claim("relay", 9, 0))), (2, 0));
    let retired = catalog.named_producer(ProducerId::new(1)).unwrap();
    assert!(retired.replaces(ProducerId::new(1), ProducerEpoch::new(i16::MAX)).is_some(), "all of it is fenced");
    assert_eq!(retired.replaces(ProducerId::new(2), ProducerEpoch::new(0)), None);
    assert_eq!(Catalog::decode(&catalog.encode()), Ok(catalog.clone()));
    for epoch in 0..i16::MAX {
        let renews = Some(ProducerEpoch::new(epoch));
        let renewal = Command::ClaimProducer { name: "relay".into(), instance: 9, renews, now_ms: 0 };
        assert_eq!(claimed(catalog.apply(renewal)), (2, epoch + 1));
    }
    let renews = Some(ProducerEpoch::new(i16::MAX));
    let renewal = Command::ClaimProducer { name: "relay".into(), instance: 9, renews, now_ms: 0 };
    assert_eq!(reason(catalog.apply(renewal)), Reason::FailedPrecondition, "partitions still use the id");
}

#[test]
fn names_of_producers_have_a_limit_and_the_longest_unclaimed_goes_first() {
    let mut catalog = cluster(1);
    for number in 0..limits::NAMED_PRODUCERS_MAX as i64 {
        let _ = claimed(catalog.apply(claim(&format!("relay-{number}"), 1, number)));
    }
    let week = limits::PRODUCER_NAME_KEPT_MS;
    assert_eq!(reason(catalog.apply(claim("one-more", 1, week))), Reason::LimitReached);
    assert_eq!(claimed(catalog.apply(claim("relay-0", 2, week))).1, 1, "those that are known go on");
    let _ = claimed(catalog.apply(claim("one-more", 1, week + 2)));
    assert_eq!(catalog.named_producers().len(), limits::NAMED_PRODUCERS_MAX);
    assert!(catalog.named_producer(ProducerId::new(2)).is_none(), "relay-1 was given up");
    assert!(catalog.named_producer(ProducerId::new(1)).is_some());
    let renews = Some(ProducerEpoch::new(0));
    let renewal = Command::ClaimProducer { name: "relay-1".into(), instance: 1, renews, now_ms: week };
    assert_eq!(reason(catalog.apply(renewal)), Reason::ProducerFenced);
    assert_eq!(Catalog::decode(&catalog.encode()), Ok(catalog));
}

#[test]
fn a_snapshot_has_named_producers_once_there_are_some() {
    let mut catalog = cluster(0);
    let without = catalog.encode();
    assert!(!std::str::from_utf8(&without).unwrap().contains("named_producers"), "as before there were any");
    let _ = claimed(catalog.apply(claim("relay", 7, 5)));
    let _ = claimed(catalog.apply(claim("relay", 8, 6)));
    let text = String::from_utf8(catalog.encode().to_vec()).unwrap();
    let want = concat!(
        r#""named_producers":[{"name":"relay","id":1,"epoch":1,"oldest_epoch":1,"instance":8,"former":[7],"#,
        r#""claimed_ms":6}]"#,
    );
    assert!(text.contains(want), "{text}");
    for (name, from, to) in [
        ("an id yet to come", r#""name":"relay","id":1"#, r#""name":"relay","id":2"#),
        ("no id", r#""name":"relay","id":1"#, r#""name":"relay","id":0"#),
        ("epochs turned round", r#""oldest_epoch":1"#, r#""oldest_epoch":2"#),
        ("a name that is none", r#""name":"relay""#, r#""name":"re/lay""#),
        ("too many that were replaced", r#""former":[7]"#, r#""former":[7,6,5,4,3]"#),
        ("an id twice", r#""claimed_ms":6"#, r#""claimed_ms":6,"retired":1"#),
    ] {
        assert!(text.contains(from), "{name}: {text}");
        let error = Catalog::decode(text.replacen(from, to, 1).as_bytes());
        assert!(matches!(error, Err(DecodeError::Invalid { .. })), "{name}: {error:?}");
    }
}

#[test]
fn a_snapshot_has_this_text() {
    let mut catalog = cluster(2);
    let _ = catalog.apply(create("orders", 1, 1));
    let _ = catalog.apply(Command::DrainNode { node: NodeId::new(2), unreachable: vec![] });
    let want = concat!(
        r#"{"version":1,"body":{"cluster":{"name":"demo","incarnation":"abc"},"changes":4,"next_node_id":3,"#,
        r#""next_group_id":2,"next_producer_id":1,"nodes":["#,
        r#"{"id":1,"address":"a:7001","peer_address":"a:8001","draining":false},"#,
        r#"{"id":2,"address":"a:7002","peer_address":"a:8002","draining":false}],"removed_nodes":[],"topics":["#,
        r#"{"id":"01010101010101010101010101010101","name":"orders","config":{"replicas":2,"durability":"fsync","#,
        r#""retention_bytes":null,"retention_ms":null,"max_batch_bytes":1048576}}],"partitions":["#,
        r#"{"group":1,"topic":"01010101010101010101010101010101","partition":0,"replicas":[1,2],"move_id":0}]}}"#,
    );
    assert_eq!(std::str::from_utf8(&catalog.encode()), Ok(want));
    assert_eq!(Catalog::decode(want.as_bytes()), Ok(catalog));
}

#[test]
fn snapshots_that_cannot_be_are_refused() {
    let mut catalog = cluster(3);
    let _ = catalog.apply(create("orders", 1, 2));
    let text = String::from_utf8(catalog.encode().to_vec()).unwrap();
    for (name, from, to) in [
        ("a node id yet to come", r#""next_node_id":4"#, r#""next_node_id":3"#),
        ("a group id yet to come", r#""next_group_id":3"#, r#""next_group_id":2"#),
        ("a replica nowhere", r#""replicas":[1,2,3]"#, r#""replicas":[1,2,9]"#),
        ("a replica twice", r#""replicas":[1,2,3]"#, r#""replicas":[1,2,2]"#),
        ("no replica", r#""replicas":[1,2,3]"#, r#""replicas":[]"#),
        ("a group twice", r#""group":2"#, r#""group":1"#),
        ("the catalog's group", r#""group":1"#, r#""group":0"#),
        ("a hole in the partitions", r#""partition":1"#, r#""partition":2"#),
        ("a removed node that is there", r#""removed_nodes":[]"#, r#""removed_nodes":[2]"#),
        (
            "a topic name twice",
            r#""topics":[{"#,
            r#""topics":[{"id":"00000000000000000000000000000000","name":"orders","config":{"replicas":1,"durability":"fsync","retention_bytes":null,"retention_ms":null,"max_batch_bytes":1048576}},{"#,
        ),
        ("a configuration that can't be", r#""max_batch_bytes":1048576"#, r#""max_batch_bytes":7"#),
        ("a name that is none", r#""name":"orders""#, r#""name":"or/ders""#),
        ("a field too many", r#""changes""#, r#""x":1,"changes""#),
    ] {
        assert!(text.contains(from), "{name}: {text}");
        let error = Catalog::decode(text.replacen(from, to, 1).as_bytes());
        assert!(matches!(error, Err(DecodeError::Invalid { .. })), "{name}: {error:?}");
    }
}

#[test]
fn the_shards_of_groups_are_made_once_and_are_nobody_else_s() {
    let mut catalog = cluster(3);
    let shards = |id: u8, unreachable: &[u64]| Command::CreateGroupShards {
        id: TopicId::from_bytes([id; 16]),
        shards: 4,
        unreachable: unreachable.iter().copied().map(NodeId::new).collect(),
    };
    let created = Outcome::TopicCreated { id: TopicId::from_bytes([1; 16]) };
    assert_eq!(catalog.apply(shards(1, &[3])), created);
    let version = catalog.version();
    assert_eq!(catalog.apply(shards(2, &[])), created, "the first one counts");
    assert_eq!(catalog.version(), version);
    let topic = catalog.groups_topic().unwrap();
    assert_eq!((topic.kind, topic.partitions.len(), topic.config.replicas), (TopicKind::Groups, 4, 3));
    assert!(
        catalog.partitions().all(|partition| partition.replicas.len() == 3),
        "a node that is down for a moment counts"
    );
    assert_eq!(reason(catalog.apply(create(GROUPS_TOPIC, 9, 1))), Reason::InvalidName);
    assert_eq!(reason(catalog.apply(create("__mine", 9, 1))), Reason::InvalidName);
    assert_eq!(reason(catalog.apply(Command::DeleteTopic { name: GROUPS_TOPIC.into() })), Reason::InvalidName);
    assert_eq!(catalog.closest_topic_name("__group"), None, "it is suggested to nobody");
    assert_eq!(catalog.require_records_topic(GROUPS_TOPIC).unwrap_err().reason, Reason::UnknownTopic);
    assert_eq!(Catalog::decode(&catalog.encode()), Ok(catalog.clone()));
    // With nodes enough an unreachable one gets none.
    let mut larger = cluster(4);
    let _ = larger.apply(shards(1, &[2]));
    assert!(larger.partitions().all(|partition| !partition.replicas.contains(&NodeId::new(2))));
    assert_eq!(reason(Catalog::new().apply(shards(1, &[]))), Reason::FailedPrecondition);
}
