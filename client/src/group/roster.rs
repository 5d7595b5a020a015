//! What an assignment means for what a member holds. Pure.
//!
//! | held | assigned | what is done |
//! |---|---|---|
//! | no | yes | begun with |
//! | yes | the same claim | kept; kept again where it was being given up |
//! | yes | another claim | the old one is void already: dropped, and begun with anew |
//! | yes | no | given up in order: finished, committed, released |

use std::collections::BTreeMap;

use busbar_proto::{PartitionId, TopicId, v1};
use bytes::Bytes;

use crate::consumer::opening::Tenure;

/// A partition in a member's hands, as the coordinator names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) topic: TopicId,
    pub(super) partition: PartitionId,
    /// New whenever the partition changes hands.
    pub(super) number: u64,
}

impl Claim {
    pub(super) fn from_wire(claim: &v1::Claim) -> Option<Self> {
        let topic = TopicId::from_slice(&claim.topic_id)?;
        Some(Self { topic, partition: PartitionId::new(claim.partition), number: claim.claim })
    }

    pub(super) fn to_wire(self) -> v1::Claim {
        let topic_id = Bytes::copy_from_slice(self.topic.as_bytes());
        v1::Claim { topic_id, partition: self.partition.get(), claim: self.number }
    }

    fn place(&self) -> (TopicId, PartitionId) {
        (self.topic, self.partition)
    }
}

/// A partition that the member should hold.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Assigned {
    pub(super) claim: Claim,
    pub(super) topic: String,
    pub(super) committed: Option<v1::Committed>,
}

impl Assigned {
    /// What makes no sense is left out: a broker of another version sent it.
    pub(super) fn from_wire(assignment: v1::member_response::Assignment) -> Vec<Self> {
        let one = |assigned: v1::member_response::Assigned| {
            let v1::member_response::Assigned { claim, topic, committed } = assigned;
            Some(Self { claim: Claim::from_wire(&claim?)?, topic, committed })
        };
        assignment.partitions.into_iter().filter_map(one).collect()
    }
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes {
    pub(super) begin: Vec<Assigned>,
    pub(super) keep: Vec<Tenure>,
    pub(super) give_up: Vec<Tenure>,
    pub(super) drop: Vec<Tenure>,
}

/// Compares what is held with what is assigned.
pub(super) fn compare(held: &[(Tenure, Claim)], assigned: Vec<Assigned>) -> Changes {
    let mut changes = Changes::default();
    let mut wanted: BTreeMap<_, _> = assigned.into_iter().map(|assigned| (assigned.claim.place(), assigned)).collect();
    for &(tenure, claim) in held {
        match wanted.get(&claim.place()).map(|assigned| assigned.claim.number) {
            Some(number) if number == claim.number => {
                wanted.remove(&claim.place());
                changes.keep.push(tenure);
            }
            Some(_) => changes.drop.push(tenure),
            None => changes.give_up.push(tenure),
        }
    }
    changes.begin = wanted.into_values().collect();
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(topic: u8, partition: u32, number: u64) -> Claim {
        Claim { topic: TopicId::from_bytes([topic; 16]), partition: PartitionId::new(partition), number }
    }

    fn assigned(claim: Claim) -> Assigned {
        Assigned { claim, topic: "t".to_owned(), committed: None }
    }

    #[test]
    fn each_case_of_the_table() {
        let tenures: Vec<_> = (1..=4).map(Tenure::new).collect();
        let held = [claim(1, 0, 5), claim(1, 1, 6), claim(1, 2, 7), claim(2, 0, 8)];
        let held: Vec<_> = tenures.iter().copied().zip(held).collect();
        let wanted = vec![claim(1, 0, 5), claim(1, 1, 9), claim(2, 0, 8), claim(2, 1, 10)];
        let changes = compare(&held, wanted.into_iter().map(assigned).collect());
        let want = Changes {
            begin: vec![assigned(claim(1, 1, 9)), assigned(claim(2, 1, 10))],
            keep: vec![tenures[0], tenures[3]],
            give_up: vec![tenures[2]],
            drop: vec![tenures[1]],
        };
        assert_eq!(changes, want);
        assert_eq!(compare(&[], vec![]), Changes::default());
    }

    #[test]
    fn claims_survive_the_wire() {
        let wire = claim(3, 4, 5).to_wire();
        assert_eq!(Claim::from_wire(&wire), Some(claim(3, 4, 5)));
        assert_eq!(Claim::from_wire(&v1::Claim { topic_id: vec![1; 3].into(), ..wire }), None);
    }
}
