//! Tasks. The only place that spawns: every task has a name and ends before [`Tasks::shutdown`] returns.
//! Cancel by token: a task that must finish something first watches the token, the others are dropped at an await.

use std::{future::Future, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Spawns and tracks the tasks of one node or of one part of it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// A fresh, empty set of tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// A set that is cancelled with this one but can be shut down alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { tracker: TaskTracker::new(), token: self.token.child_token() }
    }

    /// Runs `future` until it ends or the set is cancelled (it is then dropped at its next await).
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        drop(self.tracker.spawn(async move {
            if token.run_until_cancelled(future).await.is_none() {
                tracing::trace!(task = name, "cancelled");
            }
        }));
    }

    /// Runs `future` to its end even when the set is cancelled: it must watch [`Tasks::cancelled`] itself.
    pub fn spawn_until_done(&self, future: impl Future<Output = ()> + Send + 'static) {
        drop(self.tracker.spawn(future));
    }

    /// Runs blocking work on the runtime's blocking threads.
    pub fn spawn_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn_blocking(work)
    }

    /// Resolves once the set is cancelled. Cancel safe.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Whether the set has been cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Cancels the tasks without waiting for them.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Cancels every task and waits, at most `limit`, until they have ended; false if some had not.
    pub async fn shutdown(&self, limit: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}
