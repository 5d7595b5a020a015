//! What is known of one topic: its id, its limits and who leads each partition. Pure: news are merged as they
//! arrive from nodes that may lag behind one another.
//!
//! Invariant: a partition's known epoch never falls, so news from a lagging node never undo newer ones.

use busbar_proto::{NodeId, PartitionId, TopicId, limits, v1};

/// One topic as last heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicView {
    pub(crate) id: TopicId,
    pub(crate) batch_bytes_max: usize,
    /// Superseded records go: each needs a key.
    pub(crate) compacted: bool,
    /// By partition number.
    leaders: Vec<Leader>,
    /// By partition number: who has a copy, as last heard.
    replicas: Vec<Vec<NodeId>>,
    /// Deleted, whether or not another topic has its name by now.
    pub(crate) gone: bool,
}

/// Whom to ask about a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) leader: NodeId,
    /// Of the metadata that named it; a larger one is a later election.
    pub(crate) epoch: u64,
    /// Named by a node that refused, not by the metadata. Two nodes that name one another must not make us run
    /// between them: hearsay cuts a backoff short only a few times in a row.
    pub(crate) hinted: bool,
}

impl Route {
    /// Failures in a row after which hearsay does not cut a backoff short any more.
    const HINTS_AT_ONCE: u32 = 3;

    pub(crate) fn is_worth_hurrying(self, failures: u32) -> bool {
        !self.hinted || failures <= Self::HINTS_AT_ONCE
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Leader {
    node: Option<NodeId>,
    epoch: u64,
    /// Named by the node that no longer leads, ahead of the metadata: news of the same epoch don't undo it.
    hinted: bool,
}

impl TopicView {
    /// From a first answer; `None` when it has no legal id or no partition.
    pub(crate) fn new(topic: &v1::Topic) -> Option<Self> {
        let id = TopicId::from_slice(&topic.id)?;
        if topic.partitions.is_empty() || topic.partitions.len() > limits::PARTITIONS_PER_TOPIC_MAX as usize {
            return None;
        }
        let leaders = vec![Leader::default(); topic.partitions.len()];
        let replicas = vec![Vec::new(); topic.partitions.len()];
        let batch_bytes_max = limits::BATCH_BYTES_DEFAULT as usize;
        let mut view = Self { id, batch_bytes_max, compacted: false, leaders, replicas, gone: false };
        view.merge(topic);
        Some(view)
    }

    pub(crate) fn partitions(&self) -> u32 {
        self.leaders.len() as u32
    }

    pub(crate) fn leader(&self, partition: PartitionId) -> Option<NodeId> {
        self.route(partition).map(|route| route.leader)
    }

    /// Whom to ask, and whether that is hearsay.
    pub(crate) fn route(&self, partition: PartitionId) -> Option<Route> {
        let known = self.leaders.get(partition.get() as usize).filter(|_| !self.gone)?;
        known.node.map(|leader| Route { leader, epoch: known.epoch, hinted: known.hinted })
    }

    /// Who has a copy of a partition, as last heard; a node that has none any more says so.
    pub(crate) fn replicas(&self, partition: PartitionId) -> &[NodeId] {
        self.replicas.get(partition.get() as usize).map_or(&[], Vec::as_slice)
    }

    /// Whether this is news of our topic, not of a namesake.
    pub(crate) fn is_of(&self, topic: &v1::Topic) -> bool {
        TopicId::from_slice(&topic.id) == Some(self.id)
    }

    /// The topic is gone for good; whether that was news.
    pub(crate) fn lose(&mut self) -> bool {
        !std::mem::replace(&mut self.gone, true)
    }

    /// Takes over what is newer; whether anything was. A namesake tells nothing.
    pub(crate) fn merge(&mut self, topic: &v1::Topic) -> bool {
        let before = self.clone();
        if !self.is_of(topic) {
            return false;
        }
        if let Some(config) = topic.config.as_ref().filter(|config| config.max_batch_bytes > 0) {
            self.batch_bytes_max = config.max_batch_bytes.min(limits::BATCH_BYTES_MAX) as usize;
        }
        if let Some(config) = &topic.config {
            self.compacted = matches!(config.cleanup(), v1::Cleanup::Compact | v1::Cleanup::Both);
        }
        for news in &topic.partitions {
            let Some(known) = self.leaders.get_mut(news.partition as usize) else { continue };
            if let Some(replicas) = self.replicas.get_mut(news.partition as usize) {
                let named = news.replicas.iter().take(limits::REPLICAS_MAX as usize);
                *replicas = named.map(|&node| NodeId::new(node)).collect();
            }
            // A leader unknown to the answering node may still lead: what is known stays, an attempt will tell.
            let names_one = news.leader > 0;
            let newer = news.epoch > known.epoch || (news.epoch == known.epoch && !known.hinted);
            if names_one && newer {
                *known = Leader { node: Some(NodeId::new(news.leader)), epoch: news.epoch, hinted: false };
            }
        }
        *self != before
    }

    /// A node refused to be the leader and perhaps named another; whether that was news.
    pub(crate) fn hint(&mut self, partition: PartitionId, refused_by: NodeId, leader: Option<NodeId>) -> bool {
        let Some(known) = self.leaders.get_mut(partition.get() as usize) else { return false };
        match leader {
            Some(leader) if known.node == Some(refused_by) && leader != refused_by => {
                known.node = Some(leader);
                known.hinted = true;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P0: PartitionId = PartitionId::new(0);

    fn topic(leader: u64, epoch: u64) -> v1::Topic {
        let partition = v1::Partition { partition: 0, leader, epoch, replicas: vec![] };
        v1::Topic { name: "t".into(), id: vec![7; 16].into(), partitions: vec![partition], config: None }
    }

    fn node(id: u64) -> Option<NodeId> {
        Some(NodeId::new(id))
    }

    #[test]
    fn lagging_news_do_not_undo_newer_ones() {
        let mut view = TopicView::new(&topic(1, 5)).expect("a view");
        for (leader, epoch, want) in [(2, 4, 1), (2, 5, 2), (3, 7, 3), (1, 6, 3), (0, 7, 3), (0, 9, 3), (2, 8, 2)] {
            view.merge(&topic(leader, epoch));
            assert_eq!(view.leader(P0), node(want), "after leader {leader} epoch {epoch}");
        }
    }

    #[test]
    fn a_hint_holds_until_a_newer_epoch() {
        let mut view = TopicView::new(&topic(1, 5)).expect("a view");
        assert!(!view.hint(P0, NodeId::new(2), node(3)), "not from a node that we don't take for the leader");
        assert!(!view.hint(P0, NodeId::new(1), None));
        assert!(view.hint(P0, NodeId::new(1), node(2)));
        assert!(!view.merge(&topic(1, 5)), "the old leader of the same epoch is no news");
        assert_eq!(view.leader(P0), node(2));
        assert!(view.merge(&topic(3, 6)));
        assert_eq!(view.leader(P0), node(3));
    }

    #[test]
    fn a_namesake_is_another_topic() {
        let mut view = TopicView::new(&topic(1, 5)).expect("a view");
        assert!(!view.merge(&v1::Topic { id: vec![8; 16].into(), ..topic(2, 9) }));
        assert_eq!(view.leader(P0), node(1));
        assert!(view.lose() && !view.lose());
        assert_eq!(view.leader(P0), None);
    }

    #[test]
    fn answers_without_sense_are_refused() {
        assert_eq!(TopicView::new(&v1::Topic { id: vec![7; 3].into(), ..topic(1, 1) }), None);
        assert_eq!(TopicView::new(&v1::Topic { partitions: vec![], ..topic(1, 1) }), None);
    }
}
