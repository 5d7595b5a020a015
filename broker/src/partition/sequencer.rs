//! The partition's only writer: one task that turns publishes into raft entries, in order.
//!
//! It coalesces what is waiting into one entry of up to [`limits::ENTRY_BYTES_TARGET`]. While few entries are under way
//! it proposes at once (no added latency); while many are, publishes gather (large entries when busy). The pure half,
//! which decides offsets and duplicates, is [`busbar_machine::partition::Sequencer`].
//!
//! Invariants:
//! * A publish is answered exactly once, in the order of the entries.
//! * Proposals carry the term whose first entry has been applied: base offsets are stamped on nothing speculative but
//!   this leader's own proposals. When one of them fails, the rest are settled first, then the state is made anew.

use std::{collections::VecDeque, sync::Arc};

use busbar_machine::partition::{Admission, Applied as PartitionApplied, Beside, PartitionMachine, Sequencer};
use busbar_proto::{
    Offset, ProducerEpoch, Reason, Refusal,
    batch::{self, BatchHeader},
    limits,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;

use super::Claims;
use crate::{
    channel::Receiver,
    env::Clock,
    raft::{
        Applied, Group, Proposal, ProposeError, Proposed,
        group::{Leadership, LeadershipWatch},
    },
};

/// Entries under way beyond which publishes gather.
const IN_FLIGHT_ENTRIES: usize = 8;

/// Where a batch is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Offset of its first record.
    pub base_offset: Offset,
    /// It was stored before, by an earlier attempt.
    pub duplicate: bool,
}

/// The answer to a publish.
pub type PublishResult = Result<Stored, Refusal>;

/// A verified batch on its way in, with the bytes it was admitted for.
pub struct Publish {
    /// The verified header.
    pub header: BatchHeader,
    /// The whole batch.
    pub batch: Bytes,
    /// What its producer told of its records' headers; stored beside it. Sound, or empty.
    pub digest: Bytes,
    /// What it told of their keys; stored behind that. Sound, or empty.
    pub keys: Bytes,
    /// Refuse instead of store after this time, milliseconds since the Unix epoch.
    pub deadline_unix_ms: Option<i64>,
    /// Called once with the outcome.
    pub answer: Box<dyn FnOnce(PublishResult) + Send>,
    /// Bytes of the node's and the partition's budget, given back when dropped.
    pub permits: [OwnedSemaphorePermit; 2],
}

struct Waiter {
    stored: Stored,
    answer: Box<dyn FnOnce(PublishResult) + Send>,
    _permits: [OwnedSemaphorePermit; 2],
}

/// A batch of the entry that is gathered.
struct Accepted {
    base_offset: Offset,
    batch: Bytes,
    digest: Bytes,
    keys: Bytes,
}

/// One entry under way.
struct InFlight {
    proposed: Proposed,
    next_offset: Offset,
    waiters: Vec<Waiter>,
}

/// What the task may do now.
enum Role {
    /// Another node leads, or none.
    Following,
    /// Elected, but this term's first entry is not applied yet: publishes wait in the queue.
    Preparing,
    Leading(Sequencer),
    /// A proposal failed: settle what is under way, then make the state anew.
    Settling,
}

pub(crate) struct SequencerTask {
    pub(crate) group: Arc<Group<PartitionMachine>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) claims: Arc<dyn Claims>,
    pub(crate) publishes: Receiver<Publish>,
}

impl SequencerTask {
    /// Runs until the publish queue is closed or the group has stopped; then refuses what is left.
    pub(crate) async fn run(mut self) {
        let mut leadership = self.group.watch_leadership();
        let mut applied = self.group.shared().watch();
        let mut in_flight: VecDeque<InFlight> = VecDeque::new();
        let mut role = Role::Following;
        // A publish taken from the queue that did not fit into the last entry.
        let mut carried: Option<Publish> = None;
        loop {
            self.update_role(&mut role, &leadership, &in_flight);
            let may_take = match &role {
                Role::Following => true,
                Role::Leading(_) => in_flight.len() < IN_FLIGHT_ENTRIES,
                Role::Preparing | Role::Settling => false,
            };
            if may_take && let Some(publish) = carried.take() {
                carried = self.take(publish, &mut role, &mut in_flight, &leadership).await;
                continue;
            }
            tokio::select! {
                biased;
                outcome = settled(&mut in_flight), if !in_flight.is_empty() => {
                    self.on_settled(outcome, &mut role, &mut in_flight, &leadership);
                }
                alive = leadership.changed() => if !alive { break },
                changed = applied.changed(), if matches!(role, Role::Preparing) => if changed.is_err() { break },
                publish = self.publishes.recv(), if may_take => match publish {
                    Some(publish) => carried = self.take(publish, &mut role, &mut in_flight, &leadership).await,
                    None => break,
                },
            }
        }
        self.close(carried, in_flight).await;
    }

    fn update_role(&self, role: &mut Role, leadership: &LeadershipWatch, in_flight: &VecDeque<InFlight>) {
        let now = leadership.current();
        let term = match role {
            _ if !now.is_self => {
                *role = Role::Following;
                return;
            }
            Role::Leading(sequencer) if sequencer.term() == now.term => return,
            _ => now.term,
        };
        // Entries of an earlier reign must be settled before offsets are stamped again.
        let ready = in_flight.is_empty() && self.group.shared().applied().at.term == term;
        *role = if ready {
            Role::Leading(Sequencer::new(&self.group.shared().read(), term))
        } else if in_flight.is_empty() {
            Role::Preparing
        } else {
            Role::Settling
        };
    }

    /// Handles one publish and whatever else waits; returns one that no longer fitted.
    async fn take(
        &mut self,
        first: Publish,
        role: &mut Role,
        in_flight: &mut VecDeque<InFlight>,
        leadership: &LeadershipWatch,
    ) -> Option<Publish> {
        let Role::Leading(sequencer) = role else {
            (first.answer)(Err(not_leader(leadership.current())));
            return None;
        };
        let now_ms = self.clock.unix_ms();
        let mut body = Vec::new();
        let mut body_bytes = 0;
        let mut waiters = Vec::new();
        let mut next = Some(first);
        let mut carried = None;
        while let Some(publish) = next.take() {
            let bytes = publish.batch.len() + publish.digest.len() + publish.keys.len();
            if !waiters.is_empty() && body_bytes + bytes > limits::ENTRY_BYTES_TARGET {
                carried = Some(publish);
                break;
            }
            let BatchHeader { producer_id, producer_epoch, .. } = publish.header;
            let replaced_by = self.claims.replaced_by(producer_id, producer_epoch);
            if let Some(accepted) = admit(sequencer, publish, (now_ms, replaced_by), in_flight, &mut waiters) {
                body_bytes += bytes;
                body.push(accepted);
            }
            next = self.publishes.try_recv().ok();
        }
        let Some(head) = sequencer.seal(now_ms) else { return carried };
        let time_ms = head.max_timestamp_ms().unwrap_or(now_ms);
        let next_offset = head.end_offset().unwrap_or_default();
        let proposal = assemble(&head.encode(), &body, body_bytes, sequencer.leader_epoch(), next_offset, time_ms);
        let term = sequencer.term();
        match self.group.propose_in(proposal, term).await {
            Ok(proposed) => in_flight.push_back(InFlight { proposed, next_offset, waiters }),
            Err(error) => {
                let refusal = refusal(&error, leadership.current());
                waiters.into_iter().for_each(|waiter| (waiter.answer)(Err(refusal.clone())));
                *role = Role::Settling;
            }
        }
        carried
    }

    fn on_settled(
        &self,
        outcome: Result<(busbar_proto::LogPosition, Applied), ProposeError>,
        role: &mut Role,
        in_flight: &mut VecDeque<InFlight>,
        leadership: &LeadershipWatch,
    ) {
        let Some(entry) = in_flight.pop_front() else { return };
        let result = match outcome {
            Ok((at, Applied::Partition(PartitionApplied::Stored { next_offset, .. }))) => {
                assert!(
                    next_offset == entry.next_offset,
                    "entry {at} ended at {next_offset}, not where it was stamped"
                );
                if let Role::Leading(sequencer) = role {
                    sequencer.committed(at, next_offset);
                }
                Ok(())
            }
            Ok((at, other)) => {
                tracing::warn!(group = %self.group.id(), %at, ?other, "an entry was void; its publishes may be retried");
                Err(Refusal::new(Reason::NotLeader, "an earlier publish to this partition failed: retry")
                    .led_by(leadership.current().leader))
            }
            Err(error) => Err(refusal(&error, leadership.current())),
        };
        if result.is_err() && matches!(role, Role::Leading(_)) {
            *role = Role::Settling;
        }
        for waiter in entry.waiters {
            (waiter.answer)(result.clone().map(|()| waiter.stored));
        }
    }

    async fn close(&mut self, carried: Option<Publish>, mut in_flight: VecDeque<InFlight>) {
        self.publishes.close();
        let stopping = || Refusal::new(Reason::ShuttingDown, "this node is stopping or gave the partition away: retry");
        if let Some(publish) = carried {
            (publish.answer)(Err(stopping()));
        }
        while let Ok(publish) = self.publishes.try_recv() {
            (publish.answer)(Err(stopping()));
        }
        // Their outcome may never be known here: that is what the answer says.
        for entry in in_flight.drain(..) {
            for waiter in entry.waiters {
                (waiter.answer)(Err(refusal(&ProposeError::Unknown, Leadership::default())));
            }
        }
    }
}

/// Outcome of the oldest entry under way. Cancel safe.
async fn settled(in_flight: &mut VecDeque<InFlight>) -> Result<(busbar_proto::LogPosition, Applied), ProposeError> {
    match in_flight.front_mut() {
        Some(entry) => entry.proposed.outcome().await,
        None => std::future::pending().await,
    }
}

/// Decides on one publish; the bytes to store if it is accepted, else it has been answered or will be.
fn admit(
    sequencer: &mut Sequencer,
    publish: Publish,
    (now_ms, replaced_by): (i64, Option<ProducerEpoch>),
    in_flight: &mut VecDeque<InFlight>,
    waiters: &mut Vec<Waiter>,
) -> Option<Accepted> {
    let Publish { header, batch, digest, keys, deadline_unix_ms, answer, permits } = publish;
    if deadline_unix_ms.is_some_and(|deadline| deadline < now_ms) {
        answer(Err(Refusal::new(Reason::DeadlineExceeded, "the publish's deadline passed before it was stored")));
        return None;
    }
    let waiter = |base_offset, duplicate, answer| Waiter {
        stored: Stored { base_offset, duplicate },
        answer,
        _permits: permits,
    };
    let length = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let beside = Beside { digest_bytes: length(&digest), key_bytes: length(&keys) };
    match sequencer.admit_unless(&header, beside, replaced_by) {
        Admission::Accept { base_offset } => {
            waiters.push(waiter(base_offset, false, answer));
            Some(Accepted { base_offset, batch, digest, keys })
        }
        Admission::DuplicateStored { base_offset } => {
            answer(Ok(Stored { base_offset, duplicate: true }));
            None
        }
        Admission::DuplicateInFlight { base_offset } => {
            let waiter = waiter(base_offset, true, answer);
            match in_flight.iter_mut().find(|entry| base_offset < entry.next_offset) {
                Some(entry) => entry.waiters.push(waiter),
                None => waiters.push(waiter), // it is in the entry being gathered
            }
            None
        }
        Admission::Reject(refusal) => {
            answer(Err(refusal));
            None
        }
    }
}

/// One payload out of the summary, the stamped batches and what was told of them: the only copy of the records on the leader.
fn assemble(
    head: &[u8],
    body: &[Accepted],
    body_bytes: usize,
    leader_epoch: i32,
    end: Offset,
    time_ms: i64,
) -> Proposal {
    let mut payload = BytesMut::with_capacity(head.len() + body_bytes);
    payload.put_slice(head);
    for Accepted { base_offset, batch, .. } in body {
        let start = payload.len();
        payload.put_slice(batch);
        batch::stamp(&mut payload[start..], *base_offset, leader_epoch);
    }
    body.iter().for_each(|accepted| payload.put_slice(&accepted.digest));
    body.iter().for_each(|accepted| payload.put_slice(&accepted.keys));
    let head_len = u32::try_from(head.len()).unwrap_or(u32::MAX);
    Proposal { mark: end.get(), time_ms, head_len, payload: payload.freeze() }
}

/// What a publisher is told when this node does not lead.
pub(crate) fn not_leader(now: Leadership) -> Refusal {
    match now.leader.filter(|_| !now.is_self) {
        Some(leader) => {
            Refusal::new(Reason::NotLeader, format!("node {leader} leads this partition")).led_by(Some(leader))
        }
        None => no_leader(),
    }
}

/// What a caller is told while nobody leads.
pub(crate) fn no_leader() -> Refusal {
    Refusal::new(Reason::NoLeader, "the partition has no leader now; an election takes about a second: retry")
        .retry_after(std::time::Duration::from_millis(50))
}

pub(super) fn refusal(error: &ProposeError, now: Leadership) -> Refusal {
    match error {
        ProposeError::NotLeader { leader } => not_leader(Leadership { leader: leader.or(now.leader), ..now }),
        ProposeError::NoQuorum => no_leader(),
        ProposeError::Unknown => Refusal::new(
            Reason::OutcomeUnknown,
            "leadership was lost before the outcome was known: an idempotent producer may retry",
        ),
        ProposeError::Stopped(why) => {
            Refusal::new(Reason::OutcomeUnknown, format!("the partition stopped on this node: {why}"))
        }
    }
}
