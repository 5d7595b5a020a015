//! Follows one topic: a WatchMetadata stream from any node, moved to another node when it breaks. Producers and
//! consumers of a topic share one watch; it ends with the last of them.

use std::{sync::Arc, time::Duration};

use busbar_proto::{NodeId, PartitionId, Reason, Refusal, TopicId, v1};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    address::Address,
    cluster::{Call, Cluster, Repeat},
    error::ClientError,
    pool,
    retry::{Backoff, BackoffPolicy},
    task::Kind,
    topic::TopicView,
};

/// Time for the first answer of a watch stream; later ones come when there are news.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A topic's view, kept current.
#[derive(Debug)]
pub(crate) struct TopicWatch {
    pub(crate) name: Arc<str>,
    view: Arc<watch::Sender<TopicView>>,
    _stops_task: DropGuard,
}

impl TopicWatch {
    /// The watch of a topic, started if nobody has one.
    ///
    /// # Errors
    /// No such topic (the broker names the closest), or nobody answers.
    pub(crate) async fn open(cluster: &Arc<Cluster>, name: &str) -> Result<Arc<Self>, ClientError> {
        let view = first_view(cluster, name).await?;
        let mut topics = cluster.topics.lock();
        topics.retain(|_, watch| watch.strong_count() > 0);
        // A watch of an earlier topic of that name lives on with those that use it; nobody new may.
        let shared = topics.get(name).and_then(std::sync::Weak::upgrade);
        if let Some(shared) = shared.filter(|shared| shared.is_of(view.id)) {
            return Ok(shared);
        }
        let view = Arc::new(watch::Sender::new(view));
        let stop = CancellationToken::new();
        let follower = Follower { cluster: cluster.clone(), name: name.to_owned(), view: view.clone() };
        let stopped = stop.clone();
        cluster.tasks.spawn(Kind::TopicWatch, async move {
            tokio::select! { () = stopped.cancelled() => {}, () = follower.run() => {} }
        });
        let watch = Arc::new(Self { name: name.into(), view, _stops_task: stop.drop_guard() });
        topics.insert(name.to_owned(), Arc::downgrade(&watch));
        Ok(watch)
    }

    fn is_of(&self, id: TopicId) -> bool {
        let view = self.view();
        view.id == id && !view.replaced
    }

    /// What is known now. Holds a read lock: look and let go.
    pub(crate) fn view(&self) -> watch::Ref<'_, TopicView> {
        self.view.borrow()
    }

    /// Told of every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<TopicView> {
        self.view.subscribe()
    }

    /// A node refused to be the leader and perhaps named another.
    pub(crate) fn hint(&self, partition: PartitionId, refused_by: NodeId, leader: Option<NodeId>) {
        self.view.send_if_modified(|view| view.hint(partition, refused_by, leader));
    }
}

/// The topic from the first node that knows it. A node that does not may lag behind: the others are asked too.
async fn first_view(cluster: &Arc<Cluster>, name: &str) -> Result<TopicView, ClientError> {
    let call = Call { what: "read the topic's metadata", repeat: Repeat::Safe, timeout: cluster.request_timeout };
    let request = || v1::MetadataRequest { topics: vec![name.to_owned()] };
    let mut unknown = None;
    let mut backoff = Backoff::new(BackoffPolicy::default());
    for attempt in 0..cluster.candidates().len().max(2) {
        if attempt > 0 {
            tokio::time::sleep(backoff.failed(cluster.env.random(), None)).await;
        }
        let asked = cluster.call(call, |channel| async move { pool::broker(channel).metadata(request()).await }).await;
        let answer = match asked {
            Err(ClientError::Refused(refusal)) if refusal.reason == Reason::UnknownTopic => {
                unknown = Some(refusal);
                cluster.prefer_another();
                continue;
            }
            answer => answer?,
        };
        cluster.learn(&answer.nodes);
        if let Some(topic) = answer.topics.iter().find(|topic| topic.name == name) {
            let nonsense =
                || ClientError::Protocol(format!("the metadata of topic {name:?} has no legal id or partition"));
            return TopicView::new(topic).ok_or_else(nonsense);
        }
        cluster.prefer_another();
    }
    let plain =
        || Refusal::new(Reason::UnknownTopic, format!("there is no topic {name:?}; `busbar topic list` shows them"));
    Err(ClientError::Refused(unknown.unwrap_or_else(plain)))
}

/// The task behind a watch.
struct Follower {
    cluster: Arc<Cluster>,
    name: String,
    view: Arc<watch::Sender<TopicView>>,
}

impl Follower {
    async fn run(self) {
        let mut backoff = Backoff::new(BackoffPolicy::default());
        loop {
            for address in self.cluster.candidates() {
                if let Err(cause) = self.follow(&address, &mut backoff).await {
                    tracing::debug!(topic = self.name, %address, %cause, "metadata stream ended");
                }
                tokio::time::sleep(backoff.failed(self.cluster.env.random(), None)).await;
            }
        }
    }

    /// One stream from one node, until it ends.
    async fn follow(
        &self,
        address: &Address,
        backoff: &mut Backoff,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let request = v1::MetadataRequest { topics: vec![self.name.clone()] };
        let mut broker = pool::broker(self.cluster.pool.channel(address)?);
        let mut news = tokio::time::timeout(FIRST_ANSWER_TIMEOUT, broker.watch_metadata(request)).await??.into_inner();
        let mut answer = tokio::time::timeout(FIRST_ANSWER_TIMEOUT, news.message()).await??;
        while let Some(metadata) = answer {
            backoff.succeeded();
            self.cluster.prefer(address);
            self.cluster.learn(&metadata.nodes);
            if let Some(topic) = metadata.topics.iter().find(|topic| topic.name == self.name) {
                self.view.send_if_modified(|view| view.merge(topic));
            }
            answer = news.message().await?;
        }
        Ok(())
    }
}
