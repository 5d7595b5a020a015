//! Who producers are: ids for those without a name, the next epoch for those with one, and what a partition has stored
//! of a named one. Ids and epochs come from the catalog and are handed out once.

use std::{sync::Arc, time::Duration};

use busbar_machine::catalog::{Catalog, Command, Outcome};
use busbar_proto::{PartitionId, ProducerEpoch, ProducerId, Reason, Refusal, TopicId};

use super::{Broker, Cluster};
use crate::{
    partition::{Claims, claims::LastStored},
    raft::shared::Shared,
};

/// Producer ids taken from the catalog at a time.
const PRODUCER_IDS_BLOCK: u32 = 1_000;
/// How long this node may take to hear of a claim that was answered elsewhere.
const CLAIM_HEARD_WITHIN: Duration = Duration::from_secs(5);

/// The names of producers as this node's catalog has them.
pub(super) struct CatalogClaims(Arc<Shared<Catalog>>);

impl CatalogClaims {
    pub(super) fn of(cluster: &Cluster) -> Arc<Self> {
        Arc::new(Self(cluster.group().shared().clone()))
    }
}

impl Claims for CatalogClaims {
    fn replaced_by(&self, id: ProducerId, epoch: ProducerEpoch) -> Option<ProducerEpoch> {
        self.0.read().named_producer(id)?.replaces(id, epoch)
    }
}

/// An instance of a named producer.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The producer's name.
    pub name: String,
    /// What the instance drew; 0 = nothing.
    pub number: u64,
    /// It has the name, and needs an epoch after this one.
    pub renews: Option<ProducerEpoch>,
}

impl Broker {
    /// A producer id nobody else has.
    pub async fn allocate_producer(&self) -> Result<ProducerId, Refusal> {
        loop {
            if let Some(id) = self.producer_ids.lock().next() {
                return Ok(ProducerId::new(id));
            }
            let command = Command::AllocateProducerIds { count: PRODUCER_IDS_BLOCK };
            if let Outcome::ProducerIds { start, count } = self.cluster().submit(command).await? {
                // Two callers may both have fetched a block: the one overwritten is simply never used.
                *self.producer_ids.lock() = start.get()..start.get() + i64::from(count);
            }
        }
    }

    /// The id of a name, and an epoch of it that is this instance's alone. Whoever had the name is fenced.
    pub async fn claim_producer(&self, instance: Instance) -> Result<(ProducerId, ProducerEpoch), Refusal> {
        let Instance { name, number, renews } = instance;
        // Run twice, it changes nothing more: the instance is known by its number. One without a number gets the
        // epoch of the last run, and nobody those before.
        let command = Command::ClaimProducer { name, instance: number, renews, now_ms: self.clock().unix_ms() };
        match self.cluster().submit(command).await? {
            Outcome::ProducerClaimed { id, epoch } => Ok((id, epoch)),
            other => Err(Refusal::new(Reason::Internal, format!("the catalog answered a claim with {other:?}"))),
        }
    }

    /// What a partition has stored of a named producer; older epochs of it are fenced there first, for good.
    ///
    /// # Errors
    /// As [`crate::partition::Replica::fence`]; [`Reason::FailedPrecondition`] when no name has that id.
    pub async fn producer_state(
        &self,
        topic: TopicId,
        partition: PartitionId,
        producer: ProducerId,
        epoch: ProducerEpoch,
    ) -> Result<Option<LastStored>, Refusal> {
        let replica = self.replica(topic, partition)?;
        replica.require_leading()?;
        // From then on what comes under an older epoch is refused before it is ordered, so the fence meets none.
        let is_known = |catalog: &Catalog| {
            let named = catalog.named_producer(producer);
            named.is_some_and(|named| named.id != producer || named.epoch >= epoch)
        };
        if !self.cluster().applied(CLAIM_HEARD_WITHIN, is_known).await {
            let message = format!("no producer's name has id {producer} and epoch {epoch}: claim a name first");
            return Err(Refusal::new(Reason::FailedPrecondition, message));
        }
        let named =
            |catalog: &Catalog| catalog.named_producer(producer).and_then(|named| named.replaces(producer, epoch));
        if let Some(newer) = self.cluster().read(named) {
            let message =
                format!("another instance of producer {producer} took over with epoch {newer}: close this one");
            return Err(Refusal::new(Reason::ProducerFenced, message));
        }
        replica.fence(producer, epoch, self.clock().unix_ms()).await
    }
}
