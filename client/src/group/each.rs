//! Working on many records at once, with the order of each key kept.

use std::{future::Future, sync::atomic::Ordering};

use futures::{StreamExt, stream::FuturesUnordered};

use super::{GroupConsumer, Received, error::GroupError};

impl GroupConsumer {
    /// Runs `handle` on up to `limit` records at once, until the consumer is closed or fails. A record is handed to it
    /// once the one of its key before it (in the same partition) is settled and done; records of other keys, and those
    /// without a key, go on meanwhile, so that a key that fails again and again parks alone. A record that is delayed
    /// takes its place among those of its key when it is due. `handle` settles its record, or drops it: then it is
    /// delivered again.
    ///
    /// All handlers run on the caller's task; spawn in `handle` to use more than one core. Dropping the future gives
    /// back what was not settled.
    ///
    /// ```no_run
    /// # async fn charge(_: &busbar_client::ConsumedRecord) -> Result<(), std::io::Error> { Ok(()) }
    /// # async fn example(mut consumer: busbar_client::GroupConsumer) -> Result<(), Box<dyn std::error::Error>> {
    /// consumer
    ///     .for_each_concurrent(32, |record| async move {
    ///         let settled = match charge(&record).await {
    ///             Ok(()) => record.ack(),
    ///             Err(error) => record.nack_because(None, error.to_string()),
    ///         };
    ///         if let Err(late) = settled {
    ///             eprintln!("{late}");
    ///         }
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Self::next`], after the handlers that run have ended. Calling it again goes on.
    pub async fn for_each_concurrent<F, Fut>(&mut self, limit: usize, handle: F) -> Result<(), GroupError>
    where
        F: Fn(Received) -> Fut,
        Fut: Future<Output = ()>,
    {
        self.keep_keys_in_order();
        let limit = limit.max(1);
        let mut running = FuturesUnordered::new();
        let ended = loop {
            let next = tokio::select! {
                biased;
                Some(()) = running.next() => continue,
                next = self.next(), if running.len() < limit => next,
            };
            match next {
                Ok(Some(record)) => running.push(handle(record)),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        while running.next().await.is_some() {}
        ended
    }

    /// From now on a record waits until the one of its key before it is done.
    fn keep_keys_in_order(&self) {
        self.member.by_key.store(true, Ordering::Release);
        for holding in self.member.holdings() {
            holding.with_window(|window| window.keep_keys_in_order());
        }
    }
}
