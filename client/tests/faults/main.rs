//! The client against a fake cluster over loopback, one fault at a time and many at once: nothing acknowledged
//! is lost, nothing is stored or read twice, nothing is reordered, and every failure is told truthfully.

mod chaos;
mod client;
mod consumer;
mod deadlines;
mod delivery;
mod fake;
mod group_chaos;
mod group_records;
mod group_times;
mod groups;
mod guards;
mod named;
mod outbox;
mod parked;
mod producer;
mod requests;
mod responders;
mod sick;

use std::{future::Future, time::Duration};

/// A test that hangs fails, with what it was doing.
async fn soon<T>(what: &str, doing: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), doing).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not done within 20 s"),
    }
}
