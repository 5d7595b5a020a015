//! The relay itself: fetches rows, hands them to the desk, marks them done, waits for more.
//!
//! Invariant: a row is marked done only when it and all before it are stored.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    desk::{Desk, Doubt, Relayed},
    error::RelayError,
    store::{OutboxRow, OutboxStore},
};
use crate::{
    cluster::Cluster,
    retry::{Backoff, BackoffPolicy},
};

/// How a relay works.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) name: String,
    pub(super) poll_interval: Duration,
    pub(super) rows_max: usize,
    pub(super) stop_timeout: Duration,
    pub(super) store_timeout: Duration,
}

/// Relays the rows of an outbox: each is stored once, and those of one key (and so of one partition) in their order,
/// whatever crashes in between. One relay of a name works at a time: a newer one fences the older, which ends with
/// [`RelayError::Fenced`] at its next row.
///
/// It works inside [`Relay::run`] and keeps no task of its own. Backpressure is the outbox itself: no more than one fetch
/// of rows is in memory, and what the brokers can't take yet waits in the database.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::{MemoryOutbox, Record};
///
/// let outbox = MemoryOutbox::new();
/// let mut relay = client.outbox_relay("shop", outbox.clone()).build()?;
/// let handle = relay.handle();
/// let relaying = tokio::spawn(async move { relay.run().await });
///
/// outbox.push("orders", Record::new("paid").key("order-17"))?; // here: inside the transaction that marks it paid
/// handle.notify();
///
/// handle.stop();
/// relaying.await??;
/// # Ok(()) }
/// ```
pub struct Relay<S> {
    cluster: Arc<Cluster>,
    store: S,
    options: Options,
    shared: Arc<Shared>,
}

/// What a relay and its handles share.
#[derive(Debug, Default)]
struct Shared {
    news: Notify,
    stop: CancellationToken,
    sent: AtomicU64,
    stored_before: AtomicU64,
    done_up_to: AtomicU64,
}

/// Tells a relay of new rows, or to stop. Cheap to clone, and works from anywhere.
///
/// ```no_run
/// # fn example<S: busbar_client::OutboxStore>(relay: &busbar_client::Relay<S>) {
/// let handle = relay.handle();
/// handle.notify(); // after a transaction that added rows
/// println!("{:?}", handle.stats());
/// handle.stop();
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RelayHandle {
    shared: Arc<Shared>,
}

/// What a relay has done so far.
///
/// ```no_run
/// # fn example(handle: busbar_client::RelayHandle) {
/// let busbar_client::RelayStats { sent, stored_before, done_up_to, .. } = handle.stats();
/// println!("{sent} rows sent, {stored_before} found stored, all up to {done_up_to} done");
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayStats {
    /// Rows sent and acknowledged.
    pub sent: u64,
    /// Rows that an earlier relay had stored without coming to mark them done: they were not sent again.
    pub stored_before: u64,
    /// Every row up to this sequence is marked done.
    pub done_up_to: u64,
}

impl RelayHandle {
    /// There are new rows: the relay need not wait for its poll interval. Rows must be committed before.
    pub fn notify(&self) {
        self.shared.news.notify_one();
    }

    /// The relay finishes what is under way and ends, for good: [`Relay::run`] returns `Ok`.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// What the relay has done so far.
    pub fn stats(&self) -> RelayStats {
        let Shared { sent, stored_before, done_up_to, .. } = &*self.shared;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RelayStats { sent: read(sent), stored_before: read(stored_before), done_up_to: read(done_up_to) }
    }
}

impl<S> fmt::Debug for Relay<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("options", &self.options).field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl<S: OutboxStore> Relay<S> {
    pub(super) fn new(cluster: Arc<Cluster>, store: S, options: Options) -> Self {
        Self { cluster, store, options, shared: Arc::default() }
    }

    /// For telling it of rows, and to stop.
    pub fn handle(&self) -> RelayHandle {
        RelayHandle { shared: self.shared.clone() }
    }

    /// Relays rows until [`RelayHandle::stop`]. Brokers that are away are waited for; failures of the store are tried
    /// again for the store timeout.
    ///
    /// Dropping the future is as a crash: what was under way may be stored, and the next `run`, of this relay or another,
    /// finds out.
    ///
    /// # Errors
    /// [`RelayError`]; every row that is not done is there for the next relay.
    pub fn run(&mut self) -> impl Future<Output = Result<(), RelayError>> + Send {
        let (stop, patience) = (self.shared.stop.clone(), self.options.stop_timeout);
        async move {
            let out_of_patience = async {
                stop.cancelled().await;
                tokio::time::sleep(patience).await;
            };
            tokio::select! {
                biased;
                ended = self.work() => ended,
                // What is under way is left to the next relay.
                () = out_of_patience => Ok(()),
            }
        }
    }

    async fn work(&mut self) -> Result<(), RelayError> {
        let mut desk = Desk::new(self.cluster.clone(), self.options.name.clone());
        let mut position = 0;
        while !self.shared.stop.is_cancelled() {
            let rows = self.fetch(position, self.options.rows_max).await?;
            if rows.is_empty() {
                wait(&self.shared, self.options.poll_interval).await;
                continue;
            }
            check_order(position, &rows)?;
            let mut rest = &rows[..];
            while !rest.is_empty() && !self.shared.stop.is_cancelled() {
                let load = desk.load(&mut rest).await?;
                for doubt in desk.doubts(&load) {
                    self.settle(doubt).await?;
                }
                let relayed = desk.deliver(load).await?;
                self.mark(relayed).await?;
                position = relayed.up_to;
            }
        }
        Ok(())
    }

    /// Makes sure that what is stored is a row of this outbox.
    async fn settle(&mut self, doubt: Doubt) -> Result<(), RelayError> {
        if doubt.is_settled_by(self.row(doubt.sequence).await?.as_ref()) {
            return Ok(());
        }
        // A relay that was replaced a moment ago may have marked them done, but then all of them, as it marks up to a row.
        match self.row(doubt.sequence).await?.is_none() && self.row(doubt.first).await?.is_none() {
            true => Ok(()),
            false => Err(doubt.error(&self.options.name)),
        }
    }

    /// The row of this sequence, while it is not done.
    async fn row(&mut self, sequence: u64) -> Result<Option<OutboxRow>, RelayError> {
        let rows = self.fetch(sequence.saturating_sub(1), 1).await?;
        Ok(rows.into_iter().next().filter(|row| row.sequence == sequence))
    }

    async fn fetch(&mut self, after: u64, limit: usize) -> Result<Vec<OutboxRow>, RelayError> {
        let mut patience = Patience::new(&self.cluster, self.options.store_timeout);
        loop {
            match erased(self.store.pending(after, limit)).await {
                Ok(rows) => return Ok(rows),
                Err(error) => patience.after("be read", error.into()).await?,
            }
        }
    }

    async fn mark(&mut self, relayed: Relayed) -> Result<(), RelayError> {
        let mut patience = Patience::new(&self.cluster, self.options.store_timeout);
        loop {
            match erased(self.store.done(relayed.up_to)).await {
                Ok(()) => break,
                Err(error) => patience.after("be marked as relayed", error.into()).await?,
            }
        }
        let Shared { sent, stored_before, done_up_to, .. } = &*self.shared;
        sent.fetch_add(relayed.sent, Ordering::Relaxed);
        stored_before.fetch_add(relayed.stored_before, Ordering::Relaxed);
        done_up_to.fetch_max(relayed.up_to, Ordering::Relaxed);
        Ok(())
    }
}

/// A call of the store as a plain object: whatever is inside, the compiler need not look to know that it may be sent to
/// another thread.
fn erased<'a, T>(call: impl Future<Output = T> + Send + 'a) -> Pin<Box<dyn Future<Output = T> + Send + 'a>> {
    Box::pin(call)
}

/// Until there may be new rows. Not a method: a store need not be shared between threads.
async fn wait(shared: &Shared, poll_interval: Duration) {
    tokio::select! {
        () = shared.news.notified() => {}
        () = shared.stop.cancelled() => {}
        () = tokio::time::sleep(poll_interval) => {}
    }
}

/// How long failures of the store are borne.
struct Patience<'a> {
    cluster: &'a Cluster,
    until: tokio::time::Instant,
    backoff: Backoff,
}

impl<'a> Patience<'a> {
    fn new(cluster: &'a Arc<Cluster>, timeout: Duration) -> Self {
        let backoff = Backoff::new(BackoffPolicy { base: Duration::from_millis(50), cap: Duration::from_secs(5) });
        Self { cluster, until: cluster.env.now() + timeout, backoff }
    }

    /// Waits after a failure, or gives up.
    fn after(
        &mut self,
        what: &'static str,
        error: Box<dyn Error + Send + Sync>,
    ) -> impl Future<Output = Result<(), RelayError>> {
        let pause = self.backoff.failed(self.cluster.env.random(), None);
        let is_over = self.cluster.env.now() + pause >= self.until;
        async move {
            if is_over {
                return Err(RelayError::Store { what, source: error.into() });
            }
            tracing::warn!(%error, what, "the outbox fails");
            tokio::time::sleep(pause).await;
            Ok(())
        }
    }
}

/// Rows are the application's: their order is checked, not assumed.
fn check_order(after: u64, rows: &[OutboxRow]) -> Result<(), RelayError> {
    let mut after = after;
    for row in rows {
        if row.sequence <= after {
            return Err(RelayError::Disorder { after, found: row.sequence });
        }
        after = row.sequence;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_out_of_order_are_refused() {
        let rows = |sequences: &[u64]| sequences.iter().map(|&row| OutboxRow::new(row, "t", "")).collect::<Vec<_>>();
        for (after, sequences, wrong) in [
            (0, &[1, 2, 7][..], None),
            (0, &[], None),
            (0, &[0], Some((0, 0))),
            (5, &[6, 6], Some((6, 6))),
            (5, &[7, 6], Some((7, 6))),
            (5, &[5], Some((5, 5))),
        ] {
            let found = match check_order(after, &rows(sequences)) {
                Err(RelayError::Disorder { after, found }) => Some((after, found)),
                _ => None,
            };
            assert_eq!(found, wrong, "{sequences:?} after {after}");
        }
    }
}
