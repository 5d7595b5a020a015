//! Moving a partition: recorded when it starts, and when whoever moved it says that it is done.

use std::collections::BTreeSet;

use busbar_proto::{GroupId, NodeId, PartitionId, Reason, Refusal, limits};

use super::{Catalog, Outcome, Partition, list, refusal};

impl Catalog {
    pub(super) fn move_partition(
        &mut self,
        topic: &str,
        partition: PartitionId,
        to: Vec<NodeId>,
    ) -> Result<Outcome, Refusal> {
        let found = self.require_topic(topic)?;
        let known = self.partition_of_topic(found.id, partition);
        let known = known.ok_or_else(|| Self::unknown_partition(found, partition))?;
        let (group, move_id) = (known.group, known.move_id);
        match &known.moving_to {
            Some(target) if *target == to => return Ok(Outcome::MoveStarted { group, move_id }),
            Some(target) => {
                let message = format!(
                    "{topic}/{partition} is moving to nodes {}: wait until it is there",
                    list(target.iter().copied())
                );
                return Err(refusal(Reason::FailedPrecondition, message));
            }
            None if known.replicas == to => return Ok(Outcome::MoveStarted { group, move_id }),
            None => self.check_target(known, &to)?,
        }
        self.version += 1;
        let move_id = self.start_move(group, to);
        Ok(Outcome::MoveStarted { group, move_id })
    }

    /// Repeating it is harmless: a move that is over, and any but the one under way, is left alone.
    pub(super) fn finish_move(
        &mut self,
        group: GroupId,
        move_id: u64,
        replicas: &[NodeId],
    ) -> Result<Outcome, Refusal> {
        let Some(partition) = self.partitions.get_mut(&group) else {
            let message = format!("there is no partition of raft group {group}: its topic was deleted");
            return Err(refusal(Reason::UnknownPartition, message));
        };
        if move_id < partition.move_id || (move_id == partition.move_id && partition.moving_to.is_none()) {
            return Ok(Outcome::MoveFinished { group });
        }
        match partition.moving_to.take_if(|target| move_id == partition.move_id && target == replicas) {
            Some(target) => {
                partition.replicas = target;
                self.version += 1;
                Ok(Outcome::MoveFinished { group })
            }
            None => {
                let message = format!(
                    "raft group {group} has no move {move_id} to nodes {}: its last is move {}",
                    list(replicas.iter().copied()),
                    partition.move_id
                );
                Err(refusal(Reason::FailedPrecondition, message))
            }
        }
    }

    /// Notes a move that was checked, and returns its number.
    pub(super) fn start_move(&mut self, group: GroupId, to: Vec<NodeId>) -> u64 {
        let Some(partition) = self.partitions.get_mut(&group) else { unreachable!("only known groups are moved") };
        assert!(partition.moving_to.is_none() && !to.is_empty(), "group {group} can't move to {to:?}");
        partition.moving_to = Some(to);
        partition.move_id += 1;
        partition.move_id
    }

    fn check_target(&self, partition: &Partition, to: &[NodeId]) -> Result<(), Refusal> {
        let what = self.partition_name(partition);
        let count = to.len();
        if count == 0 || count > limits::REPLICAS_MAX as usize {
            let message = format!("can't move {what} to {count} nodes: name 1 to {}", limits::REPLICAS_MAX);
            return Err(refusal(Reason::InvalidArgument, message));
        }
        if to.iter().collect::<BTreeSet<_>>().len() < count {
            let message = format!("can't move {what} to nodes {}: name each once", list(to.iter().copied()));
            return Err(refusal(Reason::InvalidArgument, message));
        }
        for &node in to {
            let Some(known) = self.nodes.get(&node) else { return Err(self.unknown_node(node)) };
            if known.draining && !partition.replicas.contains(&node) {
                let message = format!("can't move {what} to node {node}, which is draining: name another");
                return Err(refusal(Reason::FailedPrecondition, message));
            }
        }
        Ok(())
    }
}
