//! Who should hold which partition: sticky first, then balanced. Pure and deterministic.
//!
//! ```text
//!   1  a partition stays with its target, else with its holder, where that member still asks for the topic
//!   2  the others go to whoever has least of those who ask, scarce topics first
//!   3  while a member has two more than another who asks for one of its topics, one partition moves
//! ```
//! Invariants: every partition that somebody asks for has a target who asks for it; of two members that ask for a topic
//! neither has two partitions more than the other while it could give one of that topic; a partition moves only in
//! step 3, or because its member is gone or does not ask any more.

use std::collections::{BTreeMap, BTreeSet};

use busbar_proto::{MemberId, PartitionId, TopicId, limits};

use super::state::PartitionKey;

/// A topic that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) topic: TopicId,
    pub(super) partitions: u32,
    /// Who asks, by id; not empty.
    pub(super) members: Vec<MemberId>,
}

/// Who should hold what; `current` tells a partition's target and holder. At most
/// [`limits::GROUP_PARTITIONS_MAX`] partitions are planned.
pub(super) fn plan(
    wishes: &[Wish],
    current: impl Fn(PartitionKey) -> (Option<MemberId>, Option<MemberId>),
) -> BTreeMap<PartitionKey, MemberId> {
    let mut plan = Plan::new(wishes);
    let mut left = limits::GROUP_PARTITIONS_MAX;
    let mut open = Vec::new();
    for (number, wish) in wishes.iter().enumerate() {
        for partition in (0..wish.partitions).map(PartitionId::new) {
            if left == 0 {
                break;
            }
            left -= 1;
            let (target, holder) = current(PartitionKey { topic: wish.topic, partition });
            let asks = |member: &MemberId| wish.members.binary_search(member).is_ok();
            match target.filter(asks).or(holder.filter(asks)) {
                // One that was on its way to somebody who is gone has no place yet, though it is still held.
                Some(member) => plan.give(number, partition, member, holder == target && target == Some(member)),
                None => open.push((wish.members.len(), number, partition)),
            }
        }
    }
    open.sort_unstable();
    for (_, number, partition) in open {
        if let Some(member) = plan.least_loaded(number) {
            plan.give(number, partition, member, false);
        }
    }
    while plan.improve() {}
    plan.into_targets()
}

struct Plan<'a> {
    wishes: &'a [Wish],
    loads: BTreeMap<MemberId, usize>,
    /// By topic and member: whether the member holds the partition and is to keep it, and which it is. Others move first, as
    /// nobody's work is disturbed, or is disturbed already.
    given: BTreeMap<(usize, MemberId), BTreeSet<(bool, PartitionId)>>,
}

impl<'a> Plan<'a> {
    fn new(wishes: &'a [Wish]) -> Self {
        let loads = wishes.iter().flat_map(|wish| &wish.members).map(|member| (*member, 0)).collect();
        Self { wishes, loads, given: BTreeMap::new() }
    }

    fn load(&self, member: MemberId) -> usize {
        self.loads.get(&member).copied().unwrap_or(0)
    }

    fn give(&mut self, number: usize, partition: PartitionId, member: MemberId, is_settled: bool) {
        *self.loads.entry(member).or_default() += 1;
        self.given.entry((number, member)).or_default().insert((!is_settled, partition));
    }

    fn least_loaded(&self, number: usize) -> Option<MemberId> {
        let members = self.wishes.get(number)?.members.iter().copied();
        members.min_by_key(|member| (self.load(*member), *member))
    }

    fn most_loaded(&self, number: usize) -> Option<MemberId> {
        let members = self.wishes.get(number)?.members.iter().copied();
        let can_give = members.filter(|member| self.given.get(&(number, *member)).is_some_and(|own| !own.is_empty()));
        can_give.max_by_key(|member| (self.load(*member), std::cmp::Reverse(*member)))
    }

    /// Moves one partition where that evens out most; false when nothing is left to do. Ends, because the sum of the
    /// squared loads falls with each move.
    fn improve(&mut self) -> bool {
        let gaps = (0..self.wishes.len()).filter_map(|number| {
            let (from, to) = (self.most_loaded(number)?, self.least_loaded(number)?);
            let gap = self.load(from).saturating_sub(self.load(to));
            (gap > 1).then_some((gap, number, from, to))
        });
        let Some((_, number, from, to)) = gaps.max_by_key(|(gap, number, ..)| (*gap, std::cmp::Reverse(*number)))
        else {
            return false;
        };
        let Some((_, partition)) = self.given.get_mut(&(number, from)).and_then(BTreeSet::pop_last) else {
            return false;
        };
        if let Some(load) = self.loads.get_mut(&from) {
            *load -= 1;
        }
        self.give(number, partition, to, false);
        true
    }

    fn into_targets(self) -> BTreeMap<PartitionKey, MemberId> {
        let mut targets = BTreeMap::new();
        for ((number, member), partitions) in self.given {
            let Some(wish) = self.wishes.get(number) else { continue };
            targets.extend(
                partitions.into_iter().map(|(_, partition)| (PartitionKey { topic: wish.topic, partition }, member)),
            );
        }
        targets
    }
}
