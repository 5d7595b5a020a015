//! One Subscribe stream to one node, carrying every partition that the node leads for this consumer. A feed that
//! broke is never mended: the consumer opens another.

use std::sync::Arc;

use busbar_proto::v1::{
    SubscribeRequest,
    subscribe_request::{Action, Close, Open, open::From},
};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    consumer::{
        core::Core,
        opening::{FeedId, Opening, SubscriptionId},
        selection::{ReadFrom, Selection},
        subscription::StartAt,
    },
    error::TransportError,
    pool,
    task::Kind,
};

/// The consumer's end of a feed.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) id: FeedId,
    requests: mpsc::Sender<SubscribeRequest>,
}

impl Feed {
    /// Starts connecting; requests may be put at once.
    pub(crate) fn open(core: &Arc<Core>, id: FeedId, capacity: usize) -> Arc<Self> {
        let (requests, queue) = mpsc::channel(capacity);
        let core = core.clone();
        core.tasks.clone().spawn(Kind::SubscribeFeed, async move {
            let cause = run(&core, id, queue).await;
            tracing::debug!(node = %id.node, cause, "subscribe stream ended");
            core.feed_lost(id);
        });
        Arc::new(Self { id, requests })
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.requests.is_closed()
    }

    /// Asks for a partition; `false` when the stream is broken or stuck.
    pub(crate) fn subscribe(&self, topic_id: Bytes, opening: Opening, selection: &Selection) -> bool {
        let Opening { id, from, credit } = opening;
        let from = match from {
            StartAt::Earliest => From::Earliest(true),
            StartAt::Latest => From::Latest(true),
            StartAt::Offset(offset) => From::Offset(offset),
            StartAt::Time(time) => From::AtTimeMs(time),
        };
        let partition = id.partition().get();
        let filter = selection.filter.as_ref().map(|filter| filter.as_str().to_owned()).unwrap_or_default();
        let any_replica = selection.read_from == ReadFrom::Any;
        let open = Open { topic_id, partition, from: Some(from), credit, any_replica, filter };
        self.put(id, Action::Open(open))
    }

    /// Grants more bytes; `false` when the request queue is full or the stream is broken.
    pub(crate) fn grant(&self, id: SubscriptionId, credit: u64) -> bool {
        self.put(id, Action::Credit(credit))
    }

    /// Ends a subscription. One that does not get through is ended by its stale id: what comes is ignored.
    pub(crate) fn close(&self, id: SubscriptionId) {
        self.put(id, Action::Close(Close {}));
    }

    fn put(&self, id: SubscriptionId, action: Action) -> bool {
        self.requests.try_send(SubscribeRequest { subscription: id.get(), action: Some(action) }).is_ok()
    }
}

/// Serves the stream until it ends; returns why.
async fn run(core: &Arc<Core>, id: FeedId, queue: mpsc::Receiver<SubscribeRequest>) -> String {
    let Some(address) = core.cluster.address_of(id.node) else { return "its address is not known".to_owned() };
    let channel = match core.cluster.pool.channel(&address) {
        Ok(channel) => channel,
        Err(error) => return error.to_string(),
    };
    let mut events = match pool::broker(channel).subscribe(ReceiverStream::new(queue)).await {
        Ok(events) => events.into_inner(),
        Err(status) => return TransportError::of(&status).to_string(),
    };
    loop {
        match events.message().await {
            Ok(Some(event)) => core.heard(id, event),
            Ok(None) => return "it closed the stream".to_owned(),
            Err(status) => return TransportError::of(&status).to_string(),
        }
    }
}
