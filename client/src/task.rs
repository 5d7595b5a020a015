//! The only place of the client that starts tasks. A task ends when it is done or, at its next await, when its
//! [`Tasks`] are stopped; none outlives the client, producer or consumer that started it.

use std::future::Future;

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What a task is for. All kinds are cut short at their next await when stopped: none holds what must be saved.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Follows one topic's leaders.
    TopicWatch,
    /// One Publish stream to one node.
    PublishLink,
    /// A producer's timers.
    ProducerUpkeep,
    /// Asks for a producer id.
    Identify,
    /// One Subscribe stream to one node.
    SubscribeFeed,
    /// A consumer's timers.
    ConsumerUpkeep,
    /// Asks for the bounds of a partition.
    Bounds,
    /// A group member's stream to its coordinator.
    GroupSession,
    /// A group member's commits and revocations.
    GroupUpkeep,
    /// Begins with partitions that a group member was given.
    GroupOpening,
    /// Stores a group's dead letters.
    Undertaker,
    /// Reads a requester's replies.
    Replies,
    /// Settles a group's request once the fate of its reply is known.
    SettleRequest,
    /// Delivers the last replies of a producer that makes room for another.
    ReplyProducerEnd,
}

/// The tasks of one owner. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    runtime: Handle,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// For the runtime of the caller, which must be inside one.
    pub(crate) fn new() -> Self {
        Self { runtime: Handle::current(), tracker: TaskTracker::new(), stop: CancellationToken::new() }
    }

    /// Tasks that stop with these, or earlier on their own.
    pub(crate) fn child(&self) -> Self {
        Self { runtime: self.runtime.clone(), tracker: TaskTracker::new(), stop: self.stop.child_token() }
    }

    /// Starts a task; it may be called from any thread.
    pub(crate) fn spawn(&self, kind: Kind, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let until_stopped = async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => tracing::trace!(?kind, "task stopped"),
                () = task => tracing::trace!(?kind, "task done"),
            }
        };
        self.tracker.spawn_on(until_stopped, &self.runtime);
    }

    /// Tells every task to end.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
        self.tracker.close();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits, after [`Self::stop`], until every task has ended. Cancel safe.
    pub(crate) async fn ended(&self) {
        self.tracker.wait().await;
    }
}
