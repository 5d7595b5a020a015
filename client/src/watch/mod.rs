//! Follows one topic: who leads its partitions, and whether it is still there. Producers and consumers of a topic
//! share one watch; it ends with the last of them.
//!
//! | file | owns |
//! |---|---|
//! | `follower` | a WatchMetadata stream from one node, moved to another when that one breaks or falls silent |
//! | `inquiry` | asking every node at once, when what the stream says is in doubt |

mod follower;
mod inquiry;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use busbar_proto::{NodeId, PartitionId, Reason, Refusal, TopicId, v1};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{follower::Follower, inquiry::Inquiry};
use crate::{
    cluster::{Call, Cluster, Repeat},
    error::ClientError,
    pool,
    retry::{Backoff, BackoffPolicy},
    task::Kind,
    topic::TopicView,
};

/// A topic's view, kept current.
#[derive(Debug)]
pub(crate) struct TopicWatch {
    pub(crate) name: Arc<str>,
    shared: Arc<Shared>,
    _stops_task: DropGuard,
}

/// What the watch's users, its follower and its inquiry share.
#[derive(Debug)]
struct Shared {
    name: String,
    view: watch::Sender<TopicView>,
    doubted: Notify,
    /// A node does not know our topic, or knows another of its name: it lags, or ours is gone.
    suspect: AtomicBool,
}

/// What a node's answer says of our topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// It is there; whether anything about it was news.
    Ours { news: bool },
    /// There is none of its name, or another.
    NotOurs,
}

impl Shared {
    fn hear(&self, metadata: &v1::MetadataResponse) -> Heard {
        match metadata.topics.iter().find(|topic| topic.name == self.name) {
            Some(topic) if self.view.borrow().is_of(topic) => {
                Heard::Ours { news: self.view.send_if_modified(|view| view.merge(topic)) }
            }
            _ => Heard::NotOurs,
        }
    }

    fn suspect(&self) {
        self.suspect.store(true, Ordering::Release);
        self.doubted.notify_one();
    }
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
        if let Some(shared) = shared.filter(|shared| shared.follows(view.id)) {
            return Ok(shared);
        }
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            view: watch::Sender::new(view),
            doubted: Notify::new(),
            suspect: AtomicBool::new(false),
        });
        let stop = CancellationToken::new();
        let follower = Follower { cluster: cluster.clone(), shared: shared.clone() };
        let inquiry = Inquiry { cluster: cluster.clone(), shared: shared.clone() };
        let stopped = stop.clone();
        cluster.tasks.spawn(Kind::TopicWatch, async move {
            tokio::select! { () = stopped.cancelled() => {}, () = follower.run() => {}, () = inquiry.run() => {} }
        });
        let watch = Arc::new(Self { name: name.into(), shared, _stops_task: stop.drop_guard() });
        topics.insert(name.to_owned(), Arc::downgrade(&watch));
        Ok(watch)
    }

    fn follows(&self, id: TopicId) -> bool {
        let view = self.view();
        view.id == id && !view.gone
    }

    /// What is known now. Holds a read lock: look and let go.
    pub(crate) fn view(&self) -> watch::Ref<'_, TopicView> {
        self.shared.view.borrow()
    }

    /// Told of every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<TopicView> {
        self.shared.view.subscribe()
    }

    /// A node refused to be the leader and perhaps named another.
    pub(crate) fn hint(&self, partition: PartitionId, refused_by: NodeId, leader: Option<NodeId>) {
        self.shared.view.send_if_modified(|view| view.hint(partition, refused_by, leader));
        if leader.is_none() {
            self.doubt();
        }
    }

    /// A leader does not lead, does not answer, or is gone: perhaps some node knows better.
    pub(crate) fn doubt(&self) {
        self.shared.doubted.notify_one();
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
