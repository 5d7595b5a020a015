//! What nodes say, and that they fell silent: each answer goes to its batch, to the topic's watch (who leads), and to
//! the node's circuit breaker and retry budget. Never decides what becomes of a batch; its window does.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use busbar_proto::{
    NodeId, Offset, Reason, Refusal,
    v1::{self, publish_response::Outcome as Answer},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    breaker::Failure,
    destinations::{Word, word_on_broker},
    producer::{
        core::Core,
        link::Correlation,
        shard::{Finished, Shard},
        window::{AttemptId, Deadlines, LinkId},
    },
};

/// A broker that calls a deadline passed while we have this much time left has another clock.
const CLOCK_SKEW: Duration = Duration::from_secs(1);

impl Core {
    /// A node answered an attempt.
    pub(crate) fn answered(self: &Arc<Self>, node: NodeId, answer: v1::PublishResponse) {
        let Correlation { partition, attempt } = Correlation::unpack(answer.correlation);
        let Some(shard) = self.shards.get(partition.get() as usize) else {
            tracing::warn!(%node, %partition, "a broker answered for a partition that was not asked; answer ignored");
            return;
        };
        let now = self.cluster.env.now();
        let finished = match answer.outcome {
            Some(Answer::Acknowledged(stored)) => {
                self.destinations.succeeded(node, now);
                let mut shard = shard.lock();
                let base = Offset::new(stored.base_offset);
                let finished = shard.acknowledged(attempt, base, stored.duplicate, self.clock(now));
                if finished.as_ref().is_some_and(|finished| finished.retried) {
                    self.destinations.refund(node, 1, now);
                }
                self.pump(&mut shard, now);
                finished
            }
            Some(Answer::Error(error)) => self.refused(shard, node, attempt, Refusal::from_wire(error), now),
            None => {
                let nonsense = Refusal::new(Reason::Internal, format!("node {node} answered without an outcome"));
                self.refused(shard, node, attempt, nonsense, now)
            }
        };
        self.announce(finished);
    }

    fn refused(
        self: &Arc<Self>,
        shard: &Mutex<Shard>,
        node: NodeId,
        attempt: AttemptId,
        refusal: Refusal,
        now: Instant,
    ) -> Option<Finished> {
        let mut shard = shard.lock();
        tracing::debug!(%node, partition = %shard.partition, reason = refusal.reason.as_str(), "publish refused");
        match refusal.reason {
            Reason::NotLeader => self.topic.hint(shard.partition, node, refusal.leader),
            Reason::NoLeader => self.topic.doubt(),
            Reason::DeadlineExceeded => self.compare_clocks(&shard, attempt, now),
            _ => {}
        }
        match word_on_broker(refusal.reason) {
            Word::Works => self.destinations.succeeded(node, now),
            Word::Fails(failure) if failure == Failure::Soft || shard.is_first_failure() => {
                self.broker_failed(node, failure, now);
            }
            Word::Fails(_) | Word::Nothing => {}
        }
        let fenced = (refusal.reason == Reason::ProducerFenced && self.named.is_some()).then(|| refusal.clone());
        let finished = shard.refused(attempt, refusal, self.clock(now));
        // Not for an attempt that was given up: under another epoch it may be as good as ever.
        if let Some(refusal) = fenced.filter(|_| finished.is_some()) {
            self.fence(refusal);
        }
        self.pump(&mut shard, now);
        finished
    }

    fn broker_failed(&self, node: NodeId, failure: Failure, now: Instant) {
        if self.destinations.failed(node, failure, now, self.cluster.env.random()) {
            tracing::debug!(%node, "circuit breaker opened");
            self.counters.breaker_opened();
        }
    }

    /// A broker calls a deadline passed. If it is not, by our clock, the next attempt tells a later one, which still is
    /// no later than the window reckons with; a broker that refuses even that has another clock.
    fn compare_clocks(&self, shard: &Shard, attempt: AttemptId, now: Instant) {
        let refused = shard.window.flights().find(|flight| flight.attempt_id() == attempt);
        let Some(flight) = refused.filter(|flight| flight.deadlines.earliest() > now) else { return };
        let left = self.told(flight.deadlines, flight.attempts).saturating_duration_since(now);
        if left <= CLOCK_SKEW {
            self.doubted.store(true, Ordering::Relaxed);
        } else if !self.skewed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                ?left,
                "a broker calls a deadline passed that is not: clocks differ, deadlines are not sent any more"
            );
        }
    }

    /// The deadline that a broker is told of an attempt of a batch.
    pub(super) fn told(&self, deadlines: Deadlines, attempts: u32) -> Instant {
        match attempts > 1 && self.doubted.load(Ordering::Relaxed) {
            false => deadlines.earliest(),
            true => deadlines.copies_until(),
        }
    }

    /// A link ended; `cause` says how, for those whose batches fail in the end.
    pub(crate) fn link_lost(self: &Arc<Self>, id: LinkId, node: NodeId, cause: Refusal) {
        tracing::debug!(%node, %cause, "publish stream ended");
        {
            let mut links = self.links.lock();
            if links.get(&node).is_some_and(|link| link.id == id) {
                links.remove(&node);
            }
        }
        let now = self.cluster.env.now();
        // Once, before anything is sent again: however many partitions it carried, it is one failure.
        let (mut lost, mut unsent_retries) = (Vec::new(), 0);
        for shard in &self.shards {
            if let Some(unsent) = shard.lock().link_lost(id, &cause, self.clock(now)) {
                unsent_retries += unsent;
                lost.push(shard);
            }
        }
        if !lost.is_empty() {
            self.topic.doubt();
            self.broker_failed(node, Failure::Hard, now);
            self.destinations.refund(node, unsent_retries, now);
        }
        for shard in lost {
            self.pump(&mut shard.lock(), now);
        }
    }
}
