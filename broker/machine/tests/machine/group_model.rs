//! Random histories of a shard of consumer groups: what must hold after each command, whatever came before.

use std::collections::{BTreeMap, BTreeSet};

use busbar_machine::group::{
    Command, CommitEntry, Committed, GroupShard, Held, Join, Outcome, PartitionKey, ResetEntry, SeenTopic, SeenTopics,
};
use busbar_proto::{ClaimId, GroupName, MemberId, Offset, PartitionId, Reason, TopicId, limits};
use bytes::Bytes;
use proptest::{collection::vec, prelude::*, sample::Index};

const TOPICS: [(&str, u8, u32); 3] = [("a", 1, 6), ("b", 2, 3), ("c", 3, 1)];

#[derive(Clone, Debug)]
enum Step {
    /// `which` of the members there are joins again, or a new one comes.
    Join {
        group: u8,
        name: u8,
        instance: u8,
        topics: u8,
        again: Option<Index>,
    },
    Remove(Index, bool),
    /// A member gives back what it should not hold (or, rudely, something else).
    Release(Index, bool),
    Commit {
        which: Index,
        offset: u64,
        state: u8,
        stale: bool,
    },
    Reset {
        group: u8,
        partition: u32,
        offset: u64,
        force: bool,
    },
    Delete(u8),
    Topics {
        present: u8,
        version: u64,
    },
    Idle(i64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_u8, 0..4_u8, 0..6_u8, 1..8_u8, proptest::option::weighted(0.3, any::<Index>()))
            .prop_map(|(group, name, instance, topics, again)| Step::Join { group, name, instance, topics, again }),
        3 => (any::<Index>(), prop::bool::weighted(0.8)).prop_map(|(which, current)| Step::Remove(which, current)),
        6 => (any::<Index>(), prop::bool::weighted(0.9)).prop_map(|(which, polite)| Step::Release(which, polite)),
        6 => (any::<Index>(), 0..50_u64, any::<u8>(), prop::bool::weighted(0.2))
            .prop_map(|(which, offset, state, stale)| Step::Commit { which, offset, state, stale }),
        1 => (0..3_u8, 0..7_u32, 0..50_u64, any::<bool>())
            .prop_map(|(group, partition, offset, force)| Step::Reset { group, partition, offset, force }),
        1 => (0..3_u8).prop_map(Step::Delete),
        2 => (0..8_u8, 0..3_u64).prop_map(|(present, version)| Step::Topics { present, version }),
        1 => (0..20_i64).prop_map(Step::Idle),
    ]
}

fn group_name(number: u8) -> GroupName {
    format!("group-{number}").parse().unwrap()
}

fn topic_id(number: u8) -> TopicId {
    TopicId::from_bytes([number; 16])
}

fn seen(catalog_version: u64, present: u8) -> SeenTopics {
    let mut seen = SeenTopics { catalog_version, ..SeenTopics::default() };
    for (at, (name, id, partitions)) in TOPICS.into_iter().enumerate() {
        match present & (1 << at) != 0 {
            true => seen.known.push(SeenTopic { id: topic_id(id), name: name.parse().unwrap(), partitions }),
            false => seen.gone.push(topic_id(id)),
        }
    }
    seen
}

/// Every member of every group.
fn members(shard: &GroupShard) -> Vec<(GroupName, MemberId)> {
    let all = shard.groups().flat_map(|(name, group)| group.members().keys().map(move |id| (name.clone(), *id)));
    all.collect()
}

/// Everything that is held: group, member, partition, claim.
fn held(shard: &GroupShard) -> Vec<(GroupName, MemberId, Held)> {
    let mut all = Vec::new();
    for (name, group) in shard.groups() {
        for (key, position) in group.partitions() {
            if let Some(holder) = position.holder {
                all.push((name.clone(), holder, Held { key: *key, claim: position.claim }));
            }
        }
    }
    all
}

fn pick<T: Clone>(all: &[T], which: Index) -> Option<T> {
    (!all.is_empty()).then(|| which.get(all).clone())
}

struct World {
    shard: GroupShard,
    present: u8,
    now_ms: i64,
}

impl World {
    fn command(&mut self, step: Step) -> Option<Command> {
        let shard = &self.shard;
        Some(match step {
            Step::Join { group, name, instance, topics, again } => {
                let names = TOPICS.iter().enumerate().filter(|(at, _)| topics & (1 << at) != 0);
                let mut join = Join {
                    group: group_name(group),
                    member: None,
                    name: if name == 0 { String::new() } else { format!("m{name}") },
                    instance: Bytes::from(vec![instance + 1]),
                    topics: names.map(|(_, (name, ..))| name.parse().unwrap()).collect(),
                    session_timeout_ms: 1_000,
                    seen: seen(shard.catalog_version(), self.present),
                };
                if let Some(which) = again {
                    let (group, id) = pick(&members(shard), which)?;
                    let known = shard.group(&group).unwrap().members().get(&id).unwrap();
                    (join.group, join.member, join.name) = (group.clone(), Some(id), known.name.clone());
                    if instance > 0 {
                        join.instance = known.instance.clone();
                    }
                }
                Command::Join(join)
            }
            Step::Remove(which, current) => {
                let (group, member) = pick(&members(shard), which)?;
                let joins = shard.group(&group).unwrap().members().get(&member).unwrap().joins;
                Command::Remove { group, member, joins: if current { joins } else { joins - 1 }, now_ms: self.now_ms }
            }
            Step::Release(which, polite) => {
                let unwanted = |(group, member, held): &(GroupName, MemberId, Held)| {
                    shard.group(group).unwrap().partitions().get(&held.key).unwrap().target != Some(*member)
                };
                let all: Vec<_> = held(shard).into_iter().filter(|entry| !polite || unwanted(entry)).collect();
                let (group, member, held) = pick(&all, which)?;
                Command::Release { group, member, held: vec![held] }
            }
            Step::Commit { which, offset, state, stale } => {
                let (group, member, mut held) = pick(&held(shard), which)?;
                held.claim = ClaimId::new(held.claim.get() - u64::from(stale));
                let state = Bytes::from(vec![state; usize::from(state)]);
                let committed = Committed { offset: Offset::new(offset), state, record_time_ms: 5 };
                Command::Commit { group, member, entries: vec![CommitEntry { held, committed }] }
            }
            Step::Reset { group, partition, offset, force } => {
                let key = PartitionKey { topic: topic_id(1), partition: PartitionId::new(partition) };
                let entries = vec![ResetEntry { key, offset: Offset::new(offset) }];
                let topics = seen(shard.catalog_version(), self.present);
                Command::Reset { group: group_name(group), entries, force, topics }
            }
            Step::Delete(group) => Command::Delete { group: group_name(group) },
            Step::Topics { present, version } => {
                let version = (shard.catalog_version() + version).saturating_sub(1);
                if version >= shard.catalog_version() {
                    self.present = present;
                }
                Command::SeeTopics(seen(version, present))
            }
            Step::Idle(before_ms) => Command::RemoveIdle { before_ms },
        })
    }
}

/// Partitions of a topic set differ by one at most between those who ask for just that.
fn check_balance(shard: &GroupShard) {
    for (name, group) in shard.groups() {
        let mut loads: BTreeMap<MemberId, usize> = group.members().keys().map(|id| (*id, 0)).collect();
        for position in group.partitions().values() {
            if let Some(target) = position.target {
                *loads.get_mut(&target).unwrap() += 1;
            }
        }
        let mut by_topics: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (id, member) in group.members() {
            by_topics.entry(member.topics.clone()).or_default().push(loads[id]);
        }
        for (topics, loads) in by_topics {
            let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            assert!(most - least <= 1, "{name}: {loads:?} of {topics:?}");
        }
    }
}

fn check_state(shard: &GroupShard) {
    assert!(shard.encode().len() <= shard.bytes() + 64, "{} of {}", shard.encode().len(), shard.bytes());
    for (name, group) in shard.groups() {
        let asked: BTreeSet<_> = group.members().values().flat_map(|member| &member.topics).collect();
        for (id, topic) in shard.topics() {
            for partition in (0..topic.partitions).map(PartitionId::new) {
                let position = group.partitions().get(&PartitionKey { topic: *id, partition });
                let target = position.and_then(|position| position.target);
                assert_eq!(target.is_some(), asked.contains(&topic.name), "{name}: {topic:?}/{partition}");
            }
        }
        for (key, position) in group.partitions() {
            let what = format!("{name}: {key:?} {position:?}");
            let topic = shard.topics().get(&key.topic).unwrap_or_else(|| panic!("an unknown topic: {what}"));
            if let Some(target) = position.target {
                assert!(group.members()[&target].topics.contains(&topic.name), "it does not ask for it: {what}");
                assert!(position.holder.is_some(), "what is free is given at once: {what}");
            }
            if let Some(holder) = position.holder {
                assert!(group.members().contains_key(&holder) && position.claim.get() > 0, "{what}");
            }
            let used = position.holder.is_some() || position.target.is_some() || position.committed.is_some();
            assert!(used, "kept for nothing: {what}");
        }
        let held = group.partitions().values().filter(|position| position.holder.is_some());
        let claims: Vec<_> = held.map(|position| position.claim).collect();
        assert_eq!(claims.iter().collect::<BTreeSet<_>>().len(), claims.len(), "a claim is given twice: {name}");
    }
}

fn check_step(before: &GroupShard, after: &GroupShard, command: &Command, outcome: &Outcome) {
    if matches!(outcome, Outcome::Refused(_)) {
        assert_eq!(before, after, "refused: {command:?}");
    }
    for (name, old) in before.groups() {
        let Some(new) = after.group(name) else {
            assert!(
                matches!(command, Command::Delete { .. } | Command::RemoveIdle { .. }),
                "{name} is gone: {command:?}"
            );
            assert!(old.members().is_empty(), "{name} had members");
            continue;
        };
        let changed = new.members() != old.members() || !held_alike(old, new);
        assert!(new.generation() > old.generation() || (!changed && new.generation() == old.generation()), "{name}");
        for (key, was) in old.partitions() {
            let Some(is) = new.partitions().get(key) else {
                let gone = !after.topics().contains_key(&key.topic);
                assert!(was.committed.is_none() || gone, "a commit is lost: {name} {key:?} {command:?}");
                continue;
            };
            assert!(is.claim >= was.claim, "claims only grow: {name} {key:?}");
            let changes_hands = is.holder.is_some() && is.holder != was.holder;
            assert!(!changes_hands || is.claim > was.claim, "new hands, new claim: {name} {key:?}");
            if is.committed != was.committed {
                assert!(matches!(command, Command::Commit { .. } | Command::Reset { .. }), "{command:?}");
            }
            // Taken from a member that is there and has not let go: by force only, or by its own new instance.
            let stays = was.holder.is_some_and(|holder| new.members().contains_key(&holder));
            if stays && (is.holder != was.holder || is.claim != was.claim) {
                assert!(
                    matches!(command, Command::Release { .. } | Command::Reset { .. } | Command::Join(_)),
                    "{name} {key:?}: {command:?}"
                );
                if let (Command::Join(join), Outcome::Joined { member, .. }) = (command, outcome) {
                    let replaced = old.members().get(member).is_some_and(|old| old.instance != join.instance);
                    assert!(replaced && was.holder == Some(*member), "touched without need: {name} {key:?}");
                }
            }
        }
    }
}

fn held_alike(old: &busbar_machine::group::Group, new: &busbar_machine::group::Group) -> bool {
    let view = |group: &busbar_machine::group::Group| -> Vec<_> {
        let all = group.partitions().iter().map(|(key, at)| (*key, at.holder, at.claim, at.target));
        all.filter(|(_, holder, _, target)| holder.is_some() || target.is_some()).collect()
    };
    view(old) == view(new)
}

/// The largest number of partitions that any plan must take from members that stay.
fn check_stickiness(before: &GroupShard, after: &GroupShard, command: &Command) {
    let Command::Remove { group, .. } = command else { return };
    let (Some(old), Some(new)) = (before.group(group), after.group(group)) else { return };
    let one_set = new.members().values().map(|member| &member.topics).collect::<BTreeSet<_>>().len() <= 1;
    let was_one = old.members().values().map(|member| &member.topics).collect::<BTreeSet<_>>().len() <= 1;
    if !one_set || !was_one {
        return;
    }
    for (key, was) in old.partitions() {
        let stays = was.target.filter(|target| new.members().contains_key(target));
        if let (Some(stays), Some(is)) = (stays, new.partitions().get(key)) {
            assert_eq!(is.target, Some(stays), "{key:?} had a place and moves because another member went");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn invariants_hold(steps in vec(any_step(), 1..120)) {
        let mut world = World { shard: GroupShard::new(), present: 7, now_ms: 1 };
        let mut member_ids = BTreeSet::new();
        for step in steps {
            world.now_ms += 1;
            let Some(command) = world.command(step) else { continue };
            let before = world.shard.clone();
            let outcome = world.shard.apply(command.clone());
            // A replica that was restarted from a checkpoint just now does the same.
            let mut twin = GroupShard::decode(&before.encode()).unwrap();
            prop_assert_eq!(&twin, &before);
            prop_assert_eq!(twin.apply(Command::decode(&command.encode()).unwrap()), outcome.clone());
            prop_assert_eq!(twin.encode(), world.shard.encode());
            check_step(&before, &world.shard, &command, &outcome);
            check_stickiness(&before, &world.shard, &command);
            check_state(&world.shard);
            check_balance(&world.shard);
            if let (Command::Join(join), Outcome::Joined { member, .. }) = (&command, &outcome) {
                let was_there = before.group(&join.group).is_some_and(|group| group.members().contains_key(member));
                prop_assert!(was_there || member_ids.insert(*member), "a member id is given twice");
            }
        }
        // In the end everyone lets go of what it should not hold: then each holds what it should.
        while let Some((group, member, held)) = held(&world.shard).into_iter().find(|(group, member, held)| {
            world.shard.group(group).unwrap().partitions()[&held.key].target != Some(*member)
        }) {
            let _ = world.shard.apply(Command::Release { group, member, held: vec![held] });
        }
        for (_, group) in world.shard.groups() {
            prop_assert!(group.partitions().values().all(|position| position.holder == position.target));
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_an_error(bytes in vec(any::<u8>(), 0..80), kind in 0..10_u8, at: Index, to: u8) {
        let _ = (Command::decode(&bytes), GroupShard::decode(&bytes));
        let of_kind = [&[1, kind], &bytes[..]].concat();
        if let Ok(command) = Command::decode(&of_kind) {
            prop_assert_eq!(&command.encode()[..], &of_kind[..], "one encoding only");
        }
        let mut world = World { shard: GroupShard::new(), present: 7, now_ms: 1 };
        for name in 0..3 {
            let step = Step::Join { group: 0, name, instance: name, topics: 3, again: None };
            let command = world.command(step).unwrap();
            let _ = world.shard.apply(command);
        }
        let mut damaged = world.shard.encode().to_vec();
        *at.get_mut(&mut damaged) = to;
        if let Ok(read) = GroupShard::decode(&damaged) {
            prop_assert_eq!(GroupShard::decode(&read.encode()), Ok(read));
        }
    }
}

/// A joiner takes its share and no more: the others keep all that they can.
#[test]
fn a_joiner_takes_its_share_and_disturbs_nothing_else() {
    let mut world = World { shard: GroupShard::new(), present: 7, now_ms: 1 };
    for (instance, moved_want) in [(0, 0), (1, 3), (2, 2), (3, 1), (4, 1), (5, 1)] {
        let before = world.shard.clone();
        let command = world.command(Step::Join { group: 0, name: 0, instance, topics: 1, again: None }).unwrap();
        let _ = world.shard.apply(command);
        let unwanted: Vec<_> = held(&world.shard)
            .into_iter()
            .filter(|(group, member, held)| {
                world.shard.group(group).unwrap().partitions()[&held.key].target != Some(*member)
            })
            .collect();
        assert_eq!(unwanted.len(), moved_want, "member {instance}");
        for (group, member, held) in held(&before) {
            let position = &world.shard.group(&group).unwrap().partitions()[&held.key];
            assert_eq!(
                (position.holder, position.claim),
                (Some(member), held.claim),
                "nothing is taken before it is released"
            );
        }
        for (group, member, held) in unwanted {
            let _ = world.shard.apply(Command::Release { group, member, held: vec![held] });
        }
    }
}

#[test]
fn a_shard_takes_no_more_than_travels_in_one_message() {
    let mut world = World { shard: GroupShard::new(), present: 7, now_ms: 1 };
    let mut refused = 0;
    for group in 0..60 {
        let command = world.command(Step::Join { group, name: 0, instance: 0, topics: 1, again: None }).unwrap();
        let _ = world.shard.apply(command);
        for (group, member, held) in held(&world.shard).into_iter().filter(|(name, ..)| *name == group_name(group)) {
            let state = Bytes::from(vec![7; limits::COMMIT_STATE_BYTES_MAX]);
            let committed = Committed { offset: Offset::new(1), state, record_time_ms: 0 };
            let command = Command::Commit { group, member, entries: vec![CommitEntry { held, committed }] };
            let Outcome::Committed(results) = world.shard.apply(command) else { panic!("a commit is answered") };
            refused +=
                results.iter().filter(|result| matches!(result, Err(no) if no.reason == Reason::LimitReached)).count();
        }
    }
    assert!(refused > 0 && world.shard.bytes() <= limits::SHARD_BYTES_MAX);
    assert!(world.shard.encode().len() <= limits::SHARD_BYTES_MAX);
}
