//! Rules of consumer groups, one table or short story each; what random histories can't name.

use busbar_machine::group::{
    Command, CommitEntry, Committed, GroupShard, Held, Join, Outcome, PartitionKey, ResetEntry, SeenTopic, SeenTopics,
};
use busbar_proto::{ClaimId, GroupName, MemberId, Offset, PartitionId, Reason, Refusal, TopicId};
use bytes::Bytes;

const ORDERS: TopicId = TopicId::from_bytes([7; 16]);

fn billing() -> GroupName {
    "billing".parse().unwrap()
}

fn orders(catalog_version: u64, partitions: u32) -> SeenTopics {
    let known = vec![SeenTopic { id: ORDERS, name: "orders".parse().unwrap(), partitions }];
    SeenTopics { catalog_version, known, gone: vec![] }
}

fn join(name: &str, instance: &str) -> Join {
    Join {
        group: billing(),
        member: None,
        name: name.to_owned(),
        instance: Bytes::copy_from_slice(instance.as_bytes()),
        topics: ["orders".parse().unwrap()].into(),
        session_timeout_ms: 1_000,
        seen: orders(5, 4),
    }
}

fn joined(shard: &mut GroupShard, join: Join) -> (MemberId, u64) {
    match shard.apply(Command::Join(join)) {
        Outcome::Joined { member, joins } => (member, joins),
        other => panic!("{other:?}"),
    }
}

fn refused(outcome: Outcome) -> Refusal {
    outcome.into_result().unwrap_err()
}

fn held(shard: &GroupShard, member: MemberId) -> Vec<Held> {
    let held = shard.group(&billing()).unwrap().assignment(member);
    held.map(|(key, position)| Held { key, claim: position.claim }).collect()
}

fn commit(shard: &mut GroupShard, member: MemberId, held: Held, offset: u64) -> Option<Reason> {
    let committed = Committed { offset: Offset::new(offset), state: Bytes::from_static(b"s"), record_time_ms: 9 };
    let entries = vec![CommitEntry { held, committed }];
    match shard.apply(Command::Commit { group: billing(), member, entries }) {
        Outcome::Committed(results) => results.into_iter().next().unwrap().err().map(|refusal| refusal.reason),
        other => Some(refused(other).reason),
    }
}

#[test]
fn a_name_is_one_member_and_its_newest_instance_counts() {
    let mut shard = GroupShard::new();
    let (first, 1) = joined(&mut shard, join("m", "one")) else { panic!("the first join") };
    let before = held(&shard, first);
    assert_eq!(joined(&mut shard, join("m", "one")), (first, 2), "the same instance again");
    assert_eq!(held(&shard, first), before, "keeps its claims");
    assert_eq!(joined(&mut shard, join("m", "two")), (first, 3), "another one takes its place");
    let after = held(&shard, first);
    assert!(before.iter().zip(&after).all(|(old, new)| old.key == new.key && old.claim < new.claim), "{after:?}");
    assert_eq!(commit(&mut shard, first, before[0], 1), Some(Reason::StaleClaim));
    assert_eq!(commit(&mut shard, first, after[0], 1), None);
    let back = Join { member: Some(first), ..join("m", "one") };
    assert_eq!(refused(shard.apply(Command::Join(back))).reason, Reason::FencedMember);
    let back = Join { member: Some(first), ..join("other", "two") };
    assert_eq!(refused(shard.apply(Command::Join(back))).reason, Reason::InvalidArgument);
    // The end of an older membership is not the end of the newer one.
    let late = Command::Remove { group: billing(), member: first, joins: 2, now_ms: 1 };
    assert_eq!(shard.apply(late), Outcome::Removed);
    assert_eq!(held(&shard, first), after);
    let now = Command::Remove { group: billing(), member: first, joins: 3, now_ms: 1 };
    assert_eq!(shard.apply(now), Outcome::Removed);
    assert_eq!(commit(&mut shard, first, after[0], 2), Some(Reason::UnknownMember));
    let back = Join { member: Some(first), ..join("m", "two") };
    assert_eq!(refused(shard.apply(Command::Join(back))).reason, Reason::UnknownMember);
    assert_eq!(joined(&mut shard, join("", "x")).0, MemberId::new(first.get() + 1), "an id is not given twice");
}

#[test]
fn offsets_go_forward_under_a_claim_and_anywhere_by_a_reset() {
    let mut shard = GroupShard::new();
    let (member, joins) = joined(&mut shard, join("", "one"));
    let at = held(&shard, member)[0];
    for (offset, want) in [
        (10, None),
        (10, None),
        (9, Some(Reason::OffsetOutOfRange)),
        (i64::MAX as u64, None),
        (u64::MAX, Some(Reason::OffsetOutOfRange)),
    ] {
        assert_eq!(commit(&mut shard, member, at, offset), want, "{offset}");
    }
    let entries = [ResetEntry { key: at.key, offset: Offset::new(3) }];
    let reset = |force, partition| {
        let key = PartitionKey { topic: ORDERS, partition: PartitionId::new(partition) };
        let more = ResetEntry { key, offset: Offset::new(3) };
        let entries = [&entries[..], &[more]].concat();
        Command::Reset { group: billing(), entries, force, topics: orders(5, 4) }
    };
    assert_eq!(refused(shard.apply(reset(false, 1))).reason, Reason::GroupActive);
    assert_eq!(refused(shard.apply(reset(true, 4))).reason, Reason::UnknownPartition);
    assert_eq!(shard.apply(reset(true, 1)), Outcome::Reset);
    assert_eq!(commit(&mut shard, member, at, 20), Some(Reason::StaleClaim), "its claim is gone");
    let now = held(&shard, member);
    assert_eq!(now.len(), 4, "it holds the partition anew");
    assert!(now[0].claim > at.claim);
    assert_eq!(commit(&mut shard, member, now[0], 4), None);
    // Without members the offsets stay until they are idle for long.
    let delete = || Command::Delete { group: billing() };
    assert_eq!(refused(shard.apply(delete())).reason, Reason::GroupActive);
    let _ = shard.apply(Command::Remove { group: billing(), member, joins, now_ms: 100 });
    assert_eq!(shard.idle_before(100), None);
    assert_eq!(shard.apply(Command::RemoveIdle { before_ms: 100 }), Outcome::IdleRemoved(0));
    let position = shard.group(&billing()).unwrap().partitions()[&at.key].clone();
    assert_eq!((position.holder, position.committed.unwrap().offset), (None, Offset::new(4)));
    assert!(shard.idle_before(101).is_some());
    assert_eq!(shard.apply(Command::RemoveIdle { before_ms: 101 }), Outcome::IdleRemoved(1));
    assert_eq!(refused(shard.apply(delete())).reason, Reason::UnknownGroup);
}

#[test]
fn an_older_catalog_makes_no_topic_vanish() {
    let mut shard = GroupShard::new();
    let (member, _) = joined(&mut shard, join("", "one"));
    let at = held(&shard, member)[0];
    assert_eq!(commit(&mut shard, member, at, 10), None);
    let gone = |catalog_version| Command::SeeTopics(SeenTopics { catalog_version, known: vec![], gone: vec![ORDERS] });
    assert_eq!(refused(shard.apply(gone(4))).reason, Reason::NoLeader);
    assert_eq!(commit(&mut shard, member, at, 11), None);
    // A topic of the same name made later is another one: nothing of the old one holds for it.
    let anew = SeenTopic { id: TopicId::from_bytes([8; 16]), name: "orders".parse().unwrap(), partitions: 2 };
    let seen = SeenTopics { catalog_version: 6, known: vec![anew], gone: vec![] };
    assert_eq!(shard.apply(Command::SeeTopics(seen)), Outcome::TopicsSeen);
    assert_eq!(commit(&mut shard, member, at, 12), Some(Reason::StaleClaim));
    assert_eq!(held(&shard, member).len(), 2);
    assert!(shard.group(&billing()).unwrap().partitions().values().all(|position| position.committed.is_none()));
    assert_eq!(shard.apply(Command::SeeTopics(SeenTopics { catalog_version: 7, ..orders(7, 4) })), Outcome::TopicsSeen);
    assert_eq!(held(&shard, member).len(), 4, "and back again");
}

/// What a checkpoint and a command of version 1 look like: bytes that are stored must go on being readable.
#[test]
fn stored_bytes_stay_readable() {
    let mut shard = GroupShard::new();
    let (member, _) = joined(&mut shard, Join { seen: orders(5, 1), ..join("m", "one") });
    let held = Held { key: PartitionKey { topic: ORDERS, partition: PartitionId::new(0) }, claim: ClaimId::new(1) };
    let committed = Committed { offset: Offset::new(300), state: Bytes::from_static(b"s"), record_time_ms: 9 };
    let command = Command::Commit { group: billing(), member, entries: vec![CommitEntry { held, committed }] };
    let _ = shard.apply(command.clone());
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let id = "07".repeat(16);
    let command_want = format!("010407{}0101{id}0001ac02017312", hex(b"billing"));
    assert_eq!(hex(&command.encode()), command_want);
    let shard_want = format!(
        "0105020201{id}06{orders}010107{billing}020100010101{m}03{one}0106{orders}e8070101{id}0001010101ac0201731201",
        orders = hex(b"orders"),
        billing = hex(b"billing"),
        m = "6d",
        one = hex(b"one"),
    );
    assert_eq!(hex(&shard.encode()), shard_want);
}
