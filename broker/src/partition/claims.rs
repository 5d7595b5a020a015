//! Named producers on a partition's leader: what it must know of them from the cluster, and what it tells one that
//! begins again.
//!
//! Two guards, and what each is worth: [`Claims`] is asked about every batch and knows what this node has heard of the
//! cluster's names, so an older instance is refused everywhere soon after a claim; the partition's own table and fences
//! ([`busbar_machine::partition`]) are replicated with the records and hold whatever a node has or has not heard.

use busbar_machine::partition::EntryHead;
use busbar_proto::{Offset, ProducerEpoch, ProducerId, Reason, Refusal, Sequence};

use super::{
    Replica,
    sequencer::{not_leader, refusal},
};
use crate::raft::Proposal;

/// What the cluster knows of the names of producers, as far as this node has heard.
pub trait Claims: Send + Sync {
    /// Where batches of this id and epoch are of an instance that was replaced: the epoch that replaced it.
    fn replaced_by(&self, id: ProducerId, epoch: ProducerEpoch) -> Option<ProducerEpoch>;
}

/// A producer's newest record in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastStored {
    /// The epoch that it was written under.
    pub epoch: ProducerEpoch,
    /// Its sequence.
    pub sequence: Sequence,
    /// Its offset.
    pub offset: Offset,
}

impl Replica {
    /// Fences the epochs of a producer below `epoch` on every replica, and returns what is stored of it then: nothing
    /// of those epochs is stored later, whoever leads.
    ///
    /// # Errors
    /// [`Reason::NotLeader`], [`Reason::NoLeader`]; [`Reason::ProducerFenced`] when a newer epoch was here first;
    /// [`Reason::DiskFull`]; [`Reason::OutcomeUnknown`]: ask again.
    pub async fn fence(
        &self,
        producer: ProducerId,
        epoch: ProducerEpoch,
        now_ms: i64,
    ) -> Result<Option<LastStored>, Refusal> {
        let leadership = self.group().leadership();
        if !leadership.is_self {
            return Err(not_leader(leadership));
        }
        self.check_disk()?;
        let head = EntryHead::Fence { producer, epoch, stamped_ms: now_ms }.encode();
        let head_len = u32::try_from(head.len()).unwrap_or(u32::MAX);
        let proposal = Proposal { mark: self.group().mark(), time_ms: now_ms, head_len, payload: head };
        let proposed = self.group().propose(proposal).await;
        proposed.map_err(|error| refusal(&error, self.group().leadership()))?;
        let machine = self.group().shared().read();
        if let Some(newer) = machine.oldest_epoch(producer).filter(|&oldest| oldest > epoch) {
            let message = format!("epoch {newer} of producer {producer} has begun, so {epoch} is over: close it");
            return Err(Refusal::new(Reason::ProducerFenced, message));
        }
        Ok(machine.producer(producer).map(|known| {
            let last = known.last();
            let behind = last.record_count.saturating_sub(1);
            let (sequence, offset) = (last.base_sequence.advance(behind), last.base_offset.advance(behind.into()));
            LastStored { epoch: known.epoch(), sequence, offset }
        }))
    }
}
