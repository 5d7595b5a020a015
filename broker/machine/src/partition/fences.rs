//! Epochs that a partition refuses although the newer incarnation of the producer has not written there yet. A named
//! producer that begins again puts one up, before it asks what of it is stored: from then on the answer can't change.
//!
//! Invariants: `by_age` holds each fence exactly once; the fences are as many as
//! [`limits::FENCES_PER_PARTITION_MAX`] at most. The oldest go first; then the producer's older epochs are refused only
//! by what the cluster knows of its name.

use std::collections::{BTreeMap, BTreeSet};

use busbar_proto::{ProducerEpoch, ProducerId, limits};

/// One producer's fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fence {
    /// The oldest epoch that may write.
    pub(super) epoch: ProducerEpoch,
    /// The log time when it was put up.
    pub(super) since_ms: i64,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fences {
    by_id: BTreeMap<ProducerId, Fence>,
    by_age: BTreeSet<(i64, ProducerId)>,
}

impl Fences {
    /// Every fence, by producer.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (ProducerId, Fence)> {
        self.by_id.iter().map(|(&id, &fence)| (id, fence))
    }

    /// The oldest epoch that may write, where there is a fence.
    pub(super) fn epoch(&self, id: ProducerId) -> Option<ProducerEpoch> {
        self.by_id.get(&id).map(|fence| fence.epoch)
    }

    /// Puts up a fence in place of the one that there may be.
    pub(super) fn put_up(&mut self, id: ProducerId, fence: Fence) {
        self.take_down(id);
        self.by_age.insert((fence.since_ms, id));
        self.by_id.insert(id, fence);
    }

    /// The producer has written under its new epoch, which fences by itself.
    pub(super) fn take_down(&mut self, id: ProducerId) {
        if let Some(fence) = self.by_id.remove(&id) {
            self.by_age.remove(&(fence.since_ms, id));
        }
    }

    /// Forgets those put up before `before_ms`, and the oldest that are too many.
    pub(super) fn forget(&mut self, before_ms: i64) {
        while let Some(&(since_ms, id)) = self.by_age.first() {
            if since_ms >= before_ms && self.by_id.len() <= limits::FENCES_PER_PARTITION_MAX {
                break;
            }
            self.take_down(id);
        }
        assert_eq!(self.by_age.len(), self.by_id.len(), "each fence has one age");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let fence = |since_ms| Fence { epoch: ProducerEpoch::new(1), since_ms };
        let mut fences = Fences::default();
        for id in 0..=limits::FENCES_PER_PARTITION_MAX as i64 {
            fences.put_up(ProducerId::new(id), fence(id));
        }
        fences.put_up(ProducerId::new(0), fence(20_000));
        fences.forget(i64::MIN);
        assert_eq!(fences.iter().len(), limits::FENCES_PER_PARTITION_MAX);
        assert_eq!(fences.epoch(ProducerId::new(1)), None, "the oldest, as that of 0 was renewed");
        fences.forget(20_000);
        assert_eq!(fences.iter().map(|(id, _)| id.get()).collect::<Vec<_>>(), [0]);
        fences.take_down(ProducerId::new(0));
        fences.forget(i64::MAX);
        assert_eq!(fences, Fences::default());
    }
}
