//! The task of a requester that reads its replies and hands each to the one who waits for it.
//!
//! Invariant: while replies can be read again one day, it goes on; once they can't (their topic is gone), everybody
//! who waits is told, and whoever asks later.

use std::sync::{Arc, atomic::Ordering};

use busbar_proto::Reason;

use super::{headers, pending::Owner, requester::Core};
use crate::{
    consumer::{ConsumedRecord, Consumer},
    error::ConsumeError,
    retry::{Backoff, BackoffPolicy},
};

pub(super) async fn run(core: Arc<Core>, mut consumer: Consumer) {
    let mut backoff = Backoff::new(BackoffPolicy::default());
    loop {
        match consumer.next().await {
            Ok(Some(reply)) => {
                backoff.succeeded();
                hand_out(&core, reply);
            }
            Ok(None) => return,
            Err(error) if is_final(&error) => {
                tracing::warn!(%error, "replies can't be read any more");
                core.lost.get_or_init(|| error);
                return core.end();
            }
            Err(error) => {
                core.counters.read_errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "replies can't be read now");
                tokio::time::sleep(backoff.failed(core.cluster.env.random(), None)).await;
            }
        }
    }
}

fn hand_out(core: &Core, reply: ConsumedRecord) {
    let owner = core.pending.lock().answer(headers::correlation(&reply));
    let counter = match owner {
        // Its call may have ended this very moment.
        Owner::Waiting(waiter) => match waiter.send(reply) {
            Ok(()) => return,
            Err(_) => &core.counters.late,
        },
        Owner::Late => &core.counters.late,
        Owner::Foreign => &core.counters.foreign,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The topic of the replies is gone, and another of its name is another.
fn is_final(error: &ConsumeError) -> bool {
    matches!(error, ConsumeError::Refused { refusal, .. } if refusal.reason == Reason::UnknownTopic)
}
