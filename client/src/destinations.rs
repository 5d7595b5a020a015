//! The brokers that producers send to: how each has fared, and whether it may be sent more. A broker's circuit breaker
//! and retry budget live here, shared by all partitions that it leads and by all producers of a client: a broker that
//! struggles gets a bounded extra load from the whole client, however many producers it has. A partition's own breaker
//! comes along from its shard, so that both say yes or nothing is sent.
//!
//! ```text
//!  producer A --sent, failed, succeeded--> [ node 1: breaker, budget ] --news--> every producer that waits
//!  producer B --sent, failed, succeeded--> [ node 2: breaker, budget ]
//! ```
//! Invariants: the lock is taken under a shard's, never around one, and nothing waits under it; whatever may let a parked
//! batch go on earlier than it was told is news.

use std::collections::BTreeMap;

use busbar_proto::{NodeId, Reason};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use crate::{
    breaker::{Breaker, BreakerState, CircuitBreaker, Failure},
    budget::{Budget, RetryBudget},
};

/// How a broker fares, as all producers see it that share its guards.
///
/// ```no_run
/// # fn example(producer: busbar_client::Producer) {
/// for broker in producer.brokers() {
///     println!("node {}: {:?}, {:?} retries left", broker.node, broker.breaker, broker.retries_left);
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerStats {
    /// Its node id.
    pub node: u64,
    /// Its circuit breaker.
    pub breaker: BreakerState,
    /// Batches that may be sent to it again now; `None` without a retry budget.
    pub retries_left: Option<u64>,
}

/// What brokers and partitions are guarded by; `None` = not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Guards {
    pub(crate) retry_budget: Option<RetryBudget>,
    pub(crate) circuit_breaker: Option<CircuitBreaker>,
}

impl Default for Guards {
    fn default() -> Self {
        Self { retry_budget: Some(RetryBudget::default()), circuit_breaker: Some(CircuitBreaker::default()) }
    }
}

/// What keeps a batch from being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    PartitionBreaker,
    BrokerBreaker(NodeId),
    RetryBudget(NodeId),
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PartitionBreaker => f.write_str("the partition's circuit breaker is open"),
            Self::BrokerBreaker(node) => write!(f, "the circuit breaker of node {node} is open"),
            Self::RetryBudget(node) => write!(f, "the retry budget of node {node} is spent"),
        }
    }
}

/// Not now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    pub(crate) obstacle: Obstacle,
    /// Ask again then.
    pub(crate) until: Instant,
}

#[derive(Debug)]
struct Destination {
    budget: Option<Budget>,
    breaker: Option<Breaker>,
}

#[derive(Debug)]
pub(crate) struct Destinations {
    guards: Guards,
    /// Grows with the nodes of the cluster only.
    nodes: Mutex<BTreeMap<NodeId, Destination>>,
    /// Counts what may matter to batches that are held back.
    news: watch::Sender<u64>,
}

impl Destinations {
    pub(crate) fn new(guards: Guards) -> Self {
        Self { guards, nodes: Mutex::default(), news: watch::Sender::new(0) }
    }

    pub(crate) fn guards(&self) -> Guards {
        self.guards
    }

    /// Changes when what is held back should be looked at again: a breaker opened or closed, a spent budget got
    /// something back.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn tell(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    fn with<T>(&self, node: NodeId, now: Instant, look: impl FnOnce(&mut Destination) -> T) -> T {
        let mut nodes = self.nodes.lock();
        let Guards { retry_budget, circuit_breaker } = self.guards;
        let fresh = || Destination {
            budget: retry_budget.map(|policy| Budget::new(policy, now)),
            breaker: circuit_breaker.map(|policy| Breaker::new(policy, now)),
        };
        look(nodes.entry(node).or_insert_with(fresh))
    }

    /// Whether a batch may be sent to a node now; if so it counts as sent. `again` = that node has had it before.
    pub(crate) fn admit(
        &self,
        node: NodeId,
        partition: Option<&mut Breaker>,
        again: bool,
        now: Instant,
    ) -> Result<(), Hold> {
        let held_by = |obstacle| move |until| Hold { obstacle, until };
        let mut partition = partition;
        if let Some(breaker) = &mut partition {
            breaker.check(now).map_err(held_by(Obstacle::PartitionBreaker))?;
        }
        self.with(node, now, |destination| {
            let Destination { budget, breaker } = destination;
            if let Some(breaker) = breaker {
                breaker.check(now).map_err(held_by(Obstacle::BrokerBreaker(node)))?;
            }
            match budget {
                Some(budget) if again => {
                    budget.check(now).map_err(held_by(Obstacle::RetryBudget(node)))?;
                    budget.withdraw(now);
                }
                Some(budget) => budget.deposit(now),
                None => {}
            }
            breaker.iter_mut().chain(partition).for_each(|breaker| breaker.sent(now));
            Ok(())
        })
    }

    /// So many retries at a node did no harm.
    pub(crate) fn refund(&self, node: NodeId, retries: usize, now: Instant) {
        let had_none = self.with(node, now, |destination| {
            let Some(budget) = destination.budget.as_mut() else { return false };
            let was_spent = budget.left(now) == 0;
            (0..retries).for_each(|_| budget.refund(now));
            was_spent && retries > 0
        });
        if had_none {
            self.tell();
        }
    }

    /// A node did what it was asked.
    pub(crate) fn succeeded(&self, node: NodeId, now: Instant) {
        let breaker_closed = self
            .with(node, now, |destination| destination.breaker.as_mut().is_some_and(|breaker| breaker.succeeded(now)));
        if breaker_closed {
            self.tell();
        }
    }

    /// A node failed. Whether that opened its breaker.
    pub(crate) fn failed(&self, node: NodeId, failure: Failure, now: Instant, random: u64) -> bool {
        let opened = self.with(node, now, |destination| {
            destination.breaker.as_mut().is_some_and(|breaker| breaker.failed(failure, now, random))
        });
        if opened {
            // Others may wait for the verdict on a probe that was not theirs.
            self.tell();
        }
        opened
    }

    /// How each node fares.
    pub(crate) fn stats(&self, now: Instant) -> Vec<BrokerStats> {
        let stats = |(node, destination): (&NodeId, &mut Destination)| BrokerStats {
            node: node.get(),
            breaker: destination.breaker.as_ref().map_or(BreakerState::Closed, Breaker::state),
            retries_left: destination.budget.as_mut().map(|budget| budget.left(now)),
        };
        self.nodes.lock().iter_mut().map(stats).collect()
    }
}

/// What an answer says of who gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Works,
    Fails(Failure),
    /// It is about another batch, or about time.
    Nothing,
}

/// What a refusal says of the node that answered.
pub(crate) fn word_on_broker(reason: Reason) -> Word {
    match reason {
        Reason::DiskFull | Reason::ShuttingDown | Reason::Internal => Word::Fails(Failure::Hard),
        Reason::Overloaded | Reason::OutcomeUnknown | Reason::NoLeader | Reason::StorageCorrupt => {
            Word::Fails(Failure::Soft)
        }
        Reason::SequenceGap | Reason::DeadlineExceeded => Word::Nothing,
        // It looked at the request and had nothing against it but the request, or knew that another leads.
        _ => Word::Works,
    }
}

/// What a refusal says of the partition.
pub(crate) fn word_on_partition(reason: Reason) -> Word {
    match reason {
        Reason::Overloaded => Word::Fails(Failure::Soft),
        Reason::NotLeader | Reason::NoLeader | Reason::OutcomeUnknown | Reason::StorageCorrupt | Reason::Internal => {
            Word::Fails(Failure::Hard)
        }
        Reason::CorruptBatch | Reason::BatchTooLarge | Reason::ProducerFenced => Word::Works,
        _ => Word::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NODE: NodeId = NodeId::new(1);

    fn destinations(retries_per_second: u32) -> Destinations {
        Destinations::new(Guards {
            retry_budget: Some(RetryBudget::new(retries_per_second, 0)),
            circuit_breaker: Some(CircuitBreaker::after(1)),
        })
    }

    fn obstacle(admitted: Result<(), Hold>) -> Option<Obstacle> {
        admitted.err().map(|hold| hold.obstacle)
    }

    #[test]
    fn all_guards_must_agree_and_who_refuses_takes_nothing_from_the_others() {
        let now = Instant::now();
        let destinations = destinations(1);
        let mut partition = Breaker::new(CircuitBreaker::after(1), now);
        assert!(partition.failed(Failure::Hard, now, 0));
        for _ in 0..100 {
            let admitted = destinations.admit(NODE, Some(&mut partition), true, now);
            assert_eq!(obstacle(admitted), Some(Obstacle::PartitionBreaker));
        }
        assert_eq!(destinations.admit(NODE, None, true, now).map_err(|hold| hold.obstacle), Ok(()));
        assert_eq!(destinations.stats(now)[0].retries_left, Some(9));
        assert!(destinations.failed(NODE, Failure::Hard, now, 0));
        assert_eq!(obstacle(destinations.admit(NODE, None, true, now)), Some(Obstacle::BrokerBreaker(NODE)));
        assert_eq!(destinations.stats(now)[0].retries_left, Some(9));
        // Another node has guards of its own.
        assert_eq!(obstacle(destinations.admit(NodeId::new(2), None, true, now)), None);
    }

    #[test]
    fn a_spent_budget_holds_retries_only_and_lets_no_probe_pass_unsent() {
        let now = Instant::now();
        let destinations = destinations(0);
        assert!(destinations.failed(NODE, Failure::Hard, now, 0));
        let later = now + Duration::from_secs(1);
        assert_eq!(obstacle(destinations.admit(NODE, None, true, later)), Some(Obstacle::RetryBudget(NODE)));
        assert_eq!(obstacle(destinations.admit(NODE, None, false, later)), None, "it is the probe");
        assert_eq!(obstacle(destinations.admit(NODE, None, false, later)), Some(Obstacle::BrokerBreaker(NODE)));
        destinations.succeeded(NODE, later);
        assert_eq!(obstacle(destinations.admit(NODE, None, false, later)), None);
    }

    #[test]
    fn whoever_waits_hears_of_what_may_let_it_go_on() {
        let now = Instant::now();
        let destinations = destinations(1);
        let mut news = destinations.subscribe();
        let mut heard = || std::mem::replace(&mut news, destinations.subscribe()).has_changed().expect("a sender");
        destinations.succeeded(NODE, now);
        destinations.refund(NODE, 1, now);
        assert!(!heard(), "nobody was held back");
        assert!(destinations.failed(NODE, Failure::Hard, now, 0));
        assert!(heard(), "it opened");
        assert!(!destinations.failed(NODE, Failure::Hard, now, 0));
        assert!(!heard(), "it is open already");
        let later = now + Duration::from_secs(1);
        assert_eq!(obstacle(destinations.admit(NODE, None, false, later)), None);
        destinations.succeeded(NODE, later);
        assert!(heard(), "it closed");
        while destinations.admit(NODE, None, true, later).is_ok() {}
        destinations.refund(NODE, 1, later);
        assert!(heard(), "the spent budget got something back");
    }
}
