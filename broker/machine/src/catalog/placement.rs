//! Which nodes get a partition's replicas.
//!
//! The leader of each new partition goes to the node that leads fewest of the topic's partitions, then fewest of all,
//! then holds fewest replicas; the other replicas likewise by replicas. So a topic uses every node evenly, also where a
//! node has just joined and is emptier than the rest, and what a topic can't spread evenly evens out over the topics.
//! A tie goes to the lowest id. Nothing here is drawn: equal catalogs place equally.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use busbar_proto::NodeId;

use super::Partition;

/// What a node has to carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    topic_leaders: u32,
    leaders: u32,
    topic_replicas: u32,
    replicas: u32,
}

/// The load of every node that may get a replica, as it will be when the moves under way are done.
#[derive(Clone, Debug)]
pub(super) struct Load {
    shares: BTreeMap<NodeId, Share>,
}

impl Load {
    /// The load of `nodes` under `partitions`, with nothing counted for the topic to place.
    pub(super) fn new<'a>(nodes: BTreeSet<NodeId>, partitions: impl IntoIterator<Item = &'a Partition>) -> Self {
        let mut load = Self { shares: nodes.into_iter().map(|node| (node, Share::default())).collect() };
        for partition in partitions {
            for (rank, node) in partition.target().iter().enumerate() {
                if let Some(share) = load.shares.get_mut(node) {
                    share.replicas += 1;
                    share.leaders += u32::from(rank == 0);
                }
            }
        }
        load
    }

    /// Replicas of all its nodes together.
    pub(super) fn replicas(&self) -> u64 {
        self.shares.values().map(|share| u64::from(share.replicas)).sum()
    }

    /// The replicas of the topic's next partition, leader first. As many as `count`, if there are that many nodes.
    pub(super) fn place(&mut self, count: usize) -> Vec<NodeId> {
        let mut replicas = Vec::with_capacity(count);
        let leader = self
            .shares
            .iter()
            .min_by_key(|(_, share)| (share.topic_leaders, share.leaders, share.topic_replicas, share.replicas));
        replicas.extend(leader.map(|(&node, _)| node));
        while replicas.len() < count {
            let candidates = self.shares.iter().filter(|(node, _)| !replicas.contains(node));
            // Who leads less will lead next, and gets its replica then.
            let next = candidates.min_by_key(|(_, share)| {
                (share.topic_replicas, share.replicas, Reverse(share.topic_leaders), Reverse(share.leaders))
            });
            match next {
                Some((&node, _)) => replicas.push(node),
                None => break,
            }
        }
        for (rank, node) in replicas.iter().enumerate() {
            if let Some(share) = self.shares.get_mut(node) {
                let leads = u32::from(rank == 0);
                share.topic_leaders += leads;
                share.leaders += leads;
                share.topic_replicas += 1;
                share.replicas += 1;
            }
        }
        replicas
    }

    /// `replicas` with another node in place of `leaving`: the least loaded one; `None` when there is none. When the
    /// leaver was the preferred leader, the one of the new replicas that leads least becomes it, so that the leaver's
    /// leaderships spread. The result is counted in.
    pub(super) fn replace(&mut self, replicas: &[NodeId], leaving: NodeId) -> Option<Vec<NodeId>> {
        let candidates = self.shares.iter().filter(|(node, _)| **node != leaving && !replicas.contains(node));
        let (&joining, _) = candidates.min_by_key(|(_, share)| (share.replicas, share.leaders))?;
        let mut planned: Vec<NodeId> = replicas.iter().copied().filter(|&node| node != leaving).collect();
        planned.push(joining);
        if let Some(share) = self.shares.get_mut(&joining) {
            share.replicas += 1;
        }
        if replicas.first() == Some(&leaving) {
            // Nodes that are not candidates for anything (draining, unreachable) have no share and come last.
            let leads = |node: &NodeId| self.shares.get(node).map_or(u32::MAX, |share| share.leaders);
            planned.sort_by_key(leads);
            if let Some(share) = planned.first().and_then(|leader| self.shares.get_mut(leader)) {
                share.leaders += 1;
            }
        }
        Some(planned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u64) -> BTreeSet<NodeId> {
        (1..=count).map(NodeId::new).collect()
    }

    fn spread(load: &Load, of: fn(&Share) -> u32) -> u32 {
        let all: Vec<u32> = load.shares.values().map(of).collect();
        all.iter().max().unwrap() - all.iter().min().unwrap()
    }

    /// A new topic is placed over the loads that others left.
    fn begin_topic(load: &mut Load) {
        for share in load.shares.values_mut() {
            (share.topic_leaders, share.topic_replicas) = (0, 0);
        }
    }

    #[test]
    fn leaders_and_replicas_are_even_after_every_partition() {
        for node_count in 1..=9 {
            for replicas in 1..=node_count.min(7) as usize {
                for partitions_per_topic in [1, 2, 3, 5, 8, 13, 64] {
                    let mut load = Load::new(nodes(node_count), []);
                    for partition in 0..130 {
                        if partition % partitions_per_topic == 0 {
                            begin_topic(&mut load);
                        }
                        assert_eq!(load.place(replicas).len(), replicas);
                        let case = format!(
                            "{node_count} nodes, {replicas} replicas, {partitions_per_topic} a topic, {partition}"
                        );
                        assert!(spread(&load, |share| share.leaders) <= 1, "leaders: {case} {load:?}");
                        assert!(spread(&load, |share| share.topic_leaders) <= 1, "topic leaders: {case} {load:?}");
                        assert!(spread(&load, |share| share.replicas) <= 2, "replicas: {case} {load:?}");
                        assert!(spread(&load, |share| share.topic_replicas) <= 2, "topic replicas: {case} {load:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_drained_node_s_share_spreads_over_the_others() {
        let mut load = Load::new(nodes(4), []);
        let placed: Vec<Vec<NodeId>> = (0..60).map(|_| load.place(3)).collect();
        let leaving = NodeId::new(2);
        let mut rest = nodes(5);
        rest.remove(&leaving);
        load.shares.retain(|node, _| *node != leaving);
        load.shares.insert(NodeId::new(5), Share::default());
        for replicas in placed.iter().filter(|replicas| replicas.contains(&leaving)) {
            let planned = load.replace(replicas, leaving).unwrap();
            assert_eq!(planned.iter().collect::<BTreeSet<_>>().len(), 3);
            assert!(planned.iter().all(|node| rest.contains(node)));
        }
        assert!(spread(&load, |share| share.leaders) <= 1, "{load:?}");
        assert!(spread(&load, |share| share.replicas) <= 1, "{load:?}");
        assert_eq!(Load::new(nodes(3), []).replace(&[1, 2, 3].map(NodeId::new), leaving), None, "no node is left");
    }
}
