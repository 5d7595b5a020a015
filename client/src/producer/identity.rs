//! Who the producer is to the brokers: asks the cluster for an id, for the shards that have none or must take another.
//! Never decides when one is needed; the window does.
//!
//! A producer with a name claims it once, when it is built, and its older instance is fenced by that. From then on it
//! asks for further epochs only as the instance that it is: once another one has the name, it is told so and ends.

use std::sync::{Arc, atomic::Ordering};

use busbar_proto::{PartitionId, ProducerEpoch, ProducerId, Reason, Refusal, v1};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    cluster::{Call, Cluster, Repeat},
    error::{ClientError, SendError},
    pool,
    producer::{core::Core, window::Identity},
    retry::{Backoff, BackoffPolicy},
    task::Kind,
};

/// One instance of a named producer.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) name: Arc<str>,
    /// What tells it from others of its name; never 0, which means "none".
    number: u64,
}

/// A producer's newest record in a partition.
///
/// ```no_run
/// # async fn example(relay: busbar_client::Producer) -> Result<(), busbar_client::ClientError> {
/// if let Some(last) = relay.last_stored(0).await? {
///     println!("epoch {}, sequence {} at offset {}", last.epoch, last.sequence, last.offset);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastStored {
    /// Its offset.
    pub offset: u64,
    /// The producer's epoch that it was written under.
    pub epoch: i16,
    /// Its place, from 0, among what was written to the partition under that epoch; wraps after `i32::MAX`.
    pub sequence: i32,
}

impl Named {
    /// A new instance.
    pub(crate) fn new(name: String, random: u64) -> Self {
        Self { name: name.into(), number: random.max(1) }
    }

    /// Takes the name, or an epoch after `renews` while it is ours.
    pub(crate) async fn claim(
        &self,
        cluster: &Cluster,
        renews: Option<ProducerEpoch>,
    ) -> Result<Identity, ClientError> {
        let request = v1::AllocateProducerRequest {
            producer_name: self.name.to_string(),
            instance: self.number,
            renews_epoch: renews.map(|epoch| epoch.get().into()),
        };
        ask(cluster, "claim the producer's name", &request).await
    }
}

impl Core {
    /// Asks the cluster for a producer id or epoch, for every shard that wants one.
    pub(super) fn identify(self: &Arc<Self>) {
        if self.identifying.swap(true, Ordering::AcqRel) {
            return;
        }
        let core = self.clone();
        self.tasks.spawn(Kind::Identify, async move {
            let identity = core.allocate().await;
            // Before the round: a shard that comes to want one behind us starts another task.
            core.identifying.store(false, Ordering::Release);
            let Some(identity) = identity else { return };
            let now = core.cluster.env.now();
            for shard in &core.shards {
                let mut shard = shard.lock();
                // One that came to want another epoch meanwhile may have this one already.
                let is_new = shard.window.identity().is_none_or(|ours| ours != identity);
                if shard.window.needs_identity() && is_new {
                    shard.window.identify(identity);
                }
                core.pump(&mut shard, now);
            }
        });
    }

    /// `None` once another instance has our name, or none of its epochs is left.
    async fn allocate(&self) -> Option<Identity> {
        let mut backoff = Backoff::new(BackoffPolicy::default());
        loop {
            let asked = match &self.named {
                Some(named) => named.claim(&self.cluster, self.newest_epoch()).await,
                None => ask(&self.cluster, "allocate a producer id", &v1::AllocateProducerRequest::default()).await,
            };
            let error = match asked {
                Ok(identity) => return Some(identity),
                Err(ClientError::Refused(refusal)) if self.named.is_some() && !refusal.reason.is_retryable() => {
                    self.fence(refusal);
                    return None;
                }
                Err(error) => error.to_string(),
            };
            tracing::debug!(error, "no producer id yet");
            let last = Refusal::new(Reason::NoLeader, format!("no producer id could be had: {error}"));
            self.shards.iter().map(Mutex::lock).filter(|shard| shard.window.needs_identity()).for_each(|mut shard| {
                shard.last = Some(last.clone());
            });
            tokio::time::sleep(backoff.failed(self.cluster.env.random(), None)).await;
        }
    }

    /// Of the shards that want another.
    fn newest_epoch(&self) -> Option<ProducerEpoch> {
        let shards = self.shards.iter().map(Mutex::lock).filter(|shard| shard.window.needs_identity());
        shards.filter_map(|shard| shard.window.identity()).map(|identity| identity.epoch).max()
    }

    /// Another instance has our name: nothing is sent any more. What is under way is waited for, as it may be stored;
    /// then all that is left is told.
    pub(super) fn fence(&self, refusal: Refusal) {
        if self.fenced.set(refusal).is_ok() {
            tracing::warn!(producer = ?self.named.as_ref().map(|named| &named.name), "another instance took over");
            self.room.close();
            self.alarm.ring();
        }
    }

    /// Why no record is taken any more.
    pub(crate) fn closed(&self) -> SendError {
        match self.fenced.get() {
            Some(refusal) => SendError::Fenced { refusal: refusal.clone() },
            None => SendError::Closed,
        }
    }

    /// What a partition has stored of us last.
    pub(crate) async fn last_stored(&self, partition: PartitionId) -> Result<Option<LastStored>, ClientError> {
        let shard = self.shards.get(partition.get() as usize).filter(|_| self.named.is_some());
        let Some(identity) = shard.and_then(|shard| shard.lock().window.identity()) else {
            let found = format!("partition {partition}");
            let rule = "last_stored() is for the partitions of a producer that has a name";
            return Err(ClientError::InvalidOption { option: "partition", found, rule });
        };
        let request = v1::ProducerStateRequest {
            topic_id: Bytes::copy_from_slice(self.topic.view().id.as_bytes()),
            partition: partition.get(),
            producer_id: identity.id.get(),
            producer_epoch: identity.epoch.get().into(),
        };
        let timeout = self.cluster.request_timeout;
        let call = Call { what: "read a producer's state", repeat: Repeat::Safe, timeout };
        let ask = |channel| {
            let request = request.clone();
            async { pool::broker(channel).producer_state(request).await }
        };
        let Some(last) = self.cluster.call(call, ask).await?.last else { return Ok(None) };
        let Ok(epoch) = i16::try_from(last.producer_epoch) else { return Err(nonsense()) };
        Ok(Some(LastStored { offset: last.offset, epoch, sequence: last.sequence }))
    }
}

async fn ask(
    cluster: &Cluster,
    what: &'static str,
    request: &v1::AllocateProducerRequest,
) -> Result<Identity, ClientError> {
    let call = Call { what, repeat: Repeat::Safe, timeout: cluster.request_timeout };
    let ask = |channel| {
        let request = request.clone();
        async { pool::broker(channel).allocate_producer(request).await }
    };
    let answer = cluster.call(call, ask).await?;
    match i16::try_from(answer.producer_epoch) {
        Ok(epoch) if answer.producer_id >= 0 && epoch >= 0 => {
            let id = ProducerId::new(answer.producer_id);
            Ok(Identity { id, epoch: ProducerEpoch::new(epoch) })
        }
        _ => Err(nonsense()),
    }
}

fn nonsense() -> ClientError {
    ClientError::Protocol("a broker gave a negative producer id or an epoch out of range".to_owned())
}
