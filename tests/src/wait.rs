//! Deadlines. They are generous: a healthy cluster on a busy machine is far from them, so reaching one is a finding.

use std::{future::Future, time::Duration};

use anyhow::{Context, bail};

/// Between two questions about something that nobody tells us of.
const ASK_EVERY: Duration = Duration::from_millis(25);

/// The future's result, or an error that names what did not happen in time.
///
/// # Errors
/// The future's own, or the deadline.
pub async fn within<T>(
    limit: Duration,
    what: &str,
    future: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(limit, future).await {
        Ok(outcome) => outcome.with_context(|| what.to_owned()),
        Err(_) => bail!("{what}: not within {limit:?}"),
    }
}

/// Asks until the answer is `Ok`; for what can only be asked, not awaited.
///
/// # Errors
/// The last answer, when the time is over.
pub async fn eventually<T, F>(limit: Duration, what: &str, mut ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let mut last = anyhow::anyhow!("never answered");
    let asking = async {
        loop {
            match ask().await {
                Ok(found) => return found,
                Err(error) => last = error,
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    match tokio::time::timeout(limit, asking).await {
        Ok(found) => Ok(found),
        Err(_) => Err(last.context(format!("{what}: not within {limit:?}; the last answer"))),
    }
}
