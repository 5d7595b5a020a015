//! Partitions on their way: the leader of a partition that the catalog wants elsewhere carries the move out, one step a
//! look, from whatever state it finds; a leader that takes over half-way goes on where the last one stopped. The same
//! loop hands leadership back to the preferred replica, a few at a time.
//!
//! ```text
//!   replicas {1,2,3}, to {2,3,4}:   add learner 4 ▸ voters {2,3,4}+self ▸ self not in to? transfer ▸ voters {2,3,4} ▸ FinishMove
//! ```

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use busbar_machine::catalog::Command;
use busbar_proto::{GroupId, NodeId};
use parking_lot::Mutex;

use super::{broker::Broker, hosted::Hosted};
use crate::raft::group::GroupError;

const TICK: Duration = Duration::from_millis(300);
/// Leaderships handed back in one tick: no storm after a failure.
const HAND_BACKS_PER_TICK: usize = 4;
/// A preferred replica takes over only when it is at most this many entries behind.
const LAG_MAX: u64 = 64;
const CATCH_UP_MAX: Duration = Duration::from_secs(3600);

struct Move {
    group: GroupId,
    move_id: u64,
    to: Vec<NodeId>,
}

impl Broker {
    pub(super) async fn keep_moving(self: Arc<Self>) {
        let under_way = Arc::new(Mutex::new(BTreeSet::new()));
        loop {
            tokio::time::sleep(TICK).await;
            for step in self.moves_led_here() {
                let Some(replica) = self.replicas.read().get(&step.group).cloned() else { continue };
                if !under_way.lock().insert(step.group) {
                    continue;
                }
                let (broker, under_way) = (self.clone(), under_way.clone());
                self.tasks().spawn("move partition", async move {
                    let group = step.group;
                    if let Err(error) = broker.advance_move(&replica, step).await {
                        tracing::warn!(%error, "a move does not get on; trying again");
                    }
                    under_way.lock().remove(&group);
                });
            }
            self.hand_back_leadership().await;
        }
    }

    fn moves_led_here(&self) -> Vec<Move> {
        let led: BTreeSet<GroupId> = self.led_groups().into_iter().map(|(group, _)| group).collect();
        self.cluster().read(|catalog| {
            let mine = catalog.partitions_of_node(self.node()).filter(|partition| led.contains(&partition.group));
            mine.filter_map(|partition| {
                let to = partition.moving_to.clone()?;
                Some(Move { group: partition.group, move_id: partition.move_id, to })
            })
            .collect()
        })
    }

    async fn advance_move(&self, replica: &Hosted, step: Move) -> Result<(), GroupError> {
        let group = replica.group();
        let target: BTreeSet<NodeId> = step.to.iter().copied().collect();
        let (voters, learners) = group.members();
        if voters == target {
            if !learners.is_empty() {
                group.remove_learners(learners).await?;
            }
            let finish = Command::FinishMove { group: step.group, move_id: step.move_id, replicas: step.to };
            if let Err(refusal) = self.cluster().submit(finish).await {
                tracing::warn!(group = %step.group, %refusal, "a finished move is not recorded yet; trying again");
            }
            return Ok(());
        }
        for node in target.difference(&voters) {
            let caught_up = tokio::time::timeout(CATCH_UP_MAX, group.add_learner(*node)).await;
            caught_up.map_err(|_| GroupError {
                group: step.group,
                message: format!("node {node} has not caught up within {CATCH_UP_MAX:?}"),
            })??;
        }
        let stays = target.contains(&self.node());
        let mut next = target.clone();
        if !stays {
            next.insert(self.node()); // until the leadership is elsewhere
        }
        if next != voters {
            group.set_voters(next).await?;
        }
        if !stays && let Some(first) = step.to.first() {
            group.transfer_leader(*first).await?;
        }
        Ok(())
    }

    /// Gives leadership of partitions back to their preferred replica when that has caught up.
    async fn hand_back_leadership(&self) {
        let led: BTreeSet<GroupId> = self.led_groups().into_iter().map(|(group, _)| group).collect();
        let now = self.clock().now();
        let wanted: Vec<(GroupId, NodeId)> = self.cluster().read(|catalog| {
            let mine = catalog.partitions_of_node(self.node()).filter(|partition| led.contains(&partition.group));
            let settled = mine.filter(|partition| partition.moving_to.is_none());
            settled.filter_map(|partition| Some((partition.group, *partition.replicas.first()?))).collect()
        });
        let away = wanted
            .into_iter()
            .filter(|(_, preferred)| *preferred != self.node() && self.leaders().is_alive(*preferred, now))
            .filter(|(_, preferred)| self.parts.links.is_up(*preferred));
        let mut given = 0;
        for (group, preferred) in away {
            if given == HAND_BACKS_PER_TICK {
                return;
            }
            let Some(replica) = self.replicas.read().get(&group).cloned() else { continue };
            let lags = replica.group().lags();
            let ready = lags.iter().any(|lag| lag.node == preferred && lag.entries <= LAG_MAX);
            if ready {
                given += 1;
                if let Err(error) = replica.group().transfer_leader(preferred).await {
                    tracing::debug!(%error, "leadership could not be handed back now");
                }
            }
        }
    }

    /// Gives every leadership to the replica that is least behind; before a stop. Waits shortly for the new leaders.
    pub(super) async fn give_leadership_away(&self, replicas: &[Hosted]) {
        let mut given = Vec::new();
        for replica in replicas.iter().filter(|replica| replica.group().leadership().is_self) {
            let lags = replica.group().lags();
            let up = lags.iter().filter(|lag| self.parts.links.is_up(lag.node));
            let Some(best) = up.min_by_key(|lag| lag.entries) else { continue };
            if replica.group().transfer_leader(best.node).await.is_ok() {
                given.push(replica.clone());
            }
        }
        let gone = given.iter().map(|replica| async {
            let mut watch = replica.group().watch_leadership();
            while watch.current().is_self && watch.changed().await {}
        });
        let _ = tokio::time::timeout(Duration::from_secs(2), futures::future::join_all(gone)).await;
    }
}
