//! Beginning with partitions that a member was given: the topic's streams, the place to read on from. Tried until it
//! works, or until the partition is somebody else's.

use std::sync::{Arc, atomic::Ordering};

use busbar_proto::{Offset, PartitionId, Reason, Refusal, v1};
use bytes::Bytes;
use futures::{StreamExt, stream};

use super::{
    GroupConsumer,
    holding::Holding,
    member::Member,
    roster::{Assigned, Claim},
    state::State,
    window::{Policy, Window},
};
use crate::{
    cluster::{Call, Repeat},
    consumer::{Core, OnLoss, StartAt, subscription::Subscription},
    error::ClientError,
    pool,
    retry::{Backoff, BackoffPolicy},
    task::Kind,
    watch::TopicWatch,
};

/// Partitions begun with at the same time.
const OPENINGS: usize = 16;

impl Member {
    /// Begins with all of them, each with its share of the credit; the others get theirs anew.
    pub(super) async fn open(self: Arc<Self>, begun: Vec<(Arc<Holding>, Assigned)>, share: u64) {
        for core in self.cores.lock().await.values() {
            core.resize(share.max(core.topic.view().batch_bytes_max as u64));
        }
        let open = |(holding, assigned)| self.open_one(holding, assigned, share);
        stream::iter(begun).for_each_concurrent(OPENINGS, open).await;
    }

    async fn open_one(&self, holding: Arc<Holding>, assigned: Assigned, share: u64) {
        let mut backoff = Backoff::new(BackoffPolicy::default());
        while !holding.is_over() {
            match self.try_open(&holding, &assigned, share).await {
                Ok(()) => return,
                Err(error) => {
                    let (topic, partition) = (&holding.topic, holding.claim.partition);
                    tracing::debug!(%topic, %partition, %error, "can't begin with a partition yet");
                }
            }
            tokio::time::sleep(backoff.failed(self.cluster.env.random(), None)).await;
        }
    }

    async fn try_open(&self, holding: &Arc<Holding>, assigned: &Assigned, share: u64) -> Result<(), ClientError> {
        let Claim { partition, .. } = holding.claim;
        let core = self.core_of(assigned).await?;
        let (offset, state, record_time_ms) = match &assigned.committed {
            Some(committed) => place(holding, committed),
            None => {
                let offset = self.start_of(&core, partition).await?;
                (offset, State::fresh(offset), 0)
            }
        };
        let bytes_max = share.max(core.topic.view().batch_bytes_max as u64);
        let by_key = self.by_key.load(Ordering::Acquire);
        let policy = Policy { bytes_max: bytes_max as usize, by_key, ..self.options.policy };
        let window = Window::new(policy, offset, state, record_time_ms);
        let begin = |core: &Core, from: Offset| {
            let from = StartAt::Offset(from.get());
            core.add(Subscription::new(partition, from, OnLoss::Earliest, bytes_max), holding.tenure);
        };
        if holding.open(core, window, self.options.dedup.clone(), begin) {
            let news = holding.with_window(|window| (window.is_dirty(), window.is_urgent()));
            let (dirty, urgent) = news.unwrap_or_default();
            self.heed(super::holding::News { dirty, urgent, ..Default::default() });
            self.inbox.wake();
            self.changed.notify_waiters();
        }
        Ok(())
    }

    /// The streams of a topic, shared by all its partitions here.
    async fn core_of(&self, assigned: &Assigned) -> Result<Arc<Core>, ClientError> {
        let mut cores = self.cores.lock().await;
        cores.retain(|_, core| !core.topic.view().gone || Arc::strong_count(core) > 2);
        if let Some(core) = cores.get(&assigned.claim.topic) {
            return Ok(core.clone());
        }
        let topic = TopicWatch::open(&self.cluster, &assigned.topic).await?;
        if topic.view().id != assigned.claim.topic {
            let text =
                format!("another topic has the name {:?} by now, or the node that answered lags", assigned.topic);
            return Err(ClientError::Refused(Refusal::new(Reason::UnknownTopic, text)));
        }
        let (tasks, inbox) = (self.tasks.clone(), self.inbox.clone());
        let core = Core::new(self.cluster.clone(), topic, tasks, inbox, self.options.selection.clone(), []);
        self.tasks.spawn(Kind::ConsumerUpkeep, core.clone().upkeep());
        cores.insert(assigned.claim.topic, core.clone());
        Ok(core)
    }

    /// Where a partition begins of which nothing was ever committed.
    async fn start_of(&self, core: &Core, partition: PartitionId) -> Result<Offset, ClientError> {
        if let StartAt::Offset(offset) = self.options.from {
            return Ok(Offset::new(offset));
        }
        let timeout = self.cluster.request_timeout;
        let call = Call { what: "read the bounds of a partition", repeat: Repeat::Safe, timeout };
        let topic_id = Bytes::copy_from_slice(core.topic.view().id.as_bytes());
        let at_time_ms = match self.options.from {
            StartAt::Time(time_ms) => Some(time_ms),
            StartAt::Earliest | StartAt::Latest | StartAt::Offset(_) => None,
        };
        let request = v1::OffsetsRequest { topic_id, partition: partition.get(), at_time_ms };
        let ask = |channel| {
            let request = request.clone();
            async move { pool::broker(channel).offsets(request).await }
        };
        let bounds = self.cluster.call(call, ask).await?;
        Ok(Offset::new(match self.options.from {
            StartAt::Latest => bounds.high_watermark,
            StartAt::Time(_) => bounds.offset_at_time.unwrap_or(bounds.high_watermark),
            StartAt::Earliest | StartAt::Offset(_) => bounds.log_start,
        }))
    }
}

impl GroupConsumer {
    /// Waits until it has begun with all partitions that it was given first: from then on nothing is published there
    /// that it would not read. Cancel safe.
    ///
    /// # Errors
    /// The member is not in its group any more; a partition's leader did not tell where to begin in time.
    pub(crate) async fn begun(&self) -> Result<(), ClientError> {
        let member = &self.member;
        let timeout = member.cluster.request_timeout;
        let has_begun = || {
            let is_open = |holding: &Arc<Holding>| holding.with_window(|_| ()).is_some();
            member.edition.load(Ordering::Acquire) > 0 && member.holdings().iter().all(is_open)
        };
        match tokio::time::timeout(timeout, self.until(has_begun)).await {
            Ok(begun) => Ok(begun?),
            Err(_) => {
                let what = format!("begin with the partitions of group {:?}", member.options.group);
                let last = "a partition's leader did not answer; `busbar cluster status` shows leaders".to_owned();
                Err(ClientError::Timeout { what, waited: timeout, last })
            }
        }
    }
}

/// What was committed. A state that can't be read is as good as none: the offset alone is safe to go on from.
fn place(holding: &Holding, committed: &v1::Committed) -> (Offset, State, i64) {
    let offset = Offset::new(committed.offset);
    let state = State::decode(offset, &committed.state).unwrap_or_else(|error| {
        let (topic, partition) = (&holding.topic, holding.claim.partition);
        tracing::warn!(%topic, %partition, %error, "what was done beyond the committed offset can't be read: it is delivered again");
        State::fresh(offset)
    });
    (offset, state, committed.record_time_ms)
}
