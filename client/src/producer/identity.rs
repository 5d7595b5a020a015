//! Who the producer is to the brokers: asks the cluster for an id, for the shards that have none or must take another.
//! Never decides when one is needed; the window does.

use std::sync::{Arc, atomic::Ordering};

use busbar_proto::{ProducerEpoch, ProducerId, Reason, Refusal, v1};
use parking_lot::Mutex;

use crate::{
    cluster::{Call, Repeat},
    pool,
    producer::{core::Core, window::Identity},
    retry::{Backoff, BackoffPolicy},
    task::Kind,
};

impl Core {
    /// Asks the cluster for a producer id, for every shard that wants one.
    pub(super) fn identify(self: &Arc<Self>) {
        if self.identifying.swap(true, Ordering::AcqRel) {
            return;
        }
        let core = self.clone();
        self.tasks.spawn(Kind::Identify, async move {
            let identity = core.allocate().await;
            // Before the round: a shard that comes to want one behind us starts another task.
            core.identifying.store(false, Ordering::Release);
            let now = core.cluster.env.now();
            for shard in &core.shards {
                let mut shard = shard.lock();
                if shard.window.needs_identity() {
                    shard.window.identify(identity);
                    core.pump(&mut shard, now);
                }
            }
        });
    }

    async fn allocate(&self) -> Identity {
        let timeout = self.cluster.request_timeout;
        let call = Call { what: "allocate a producer id", repeat: Repeat::Safe, timeout };
        let mut backoff = Backoff::new(BackoffPolicy::default());
        loop {
            let ask = |channel| async { pool::broker(channel).allocate_producer(v1::AllocateProducerRequest {}).await };
            let error = match self.cluster.call(call, ask).await {
                Ok(answer) => match i16::try_from(answer.producer_epoch) {
                    Ok(epoch) if answer.producer_id >= 0 && epoch >= 0 => {
                        let id = ProducerId::new(answer.producer_id);
                        return Identity { id, epoch: ProducerEpoch::new(epoch) };
                    }
                    _ => "a broker gave a negative producer id or an epoch out of range".to_owned(),
                },
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
}
