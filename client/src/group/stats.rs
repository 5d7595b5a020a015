//! A group consumer's counters. They only grow.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What a group consumer has done so far.
///
/// ```no_run
/// # fn example(consumer: busbar_client::GroupConsumer) {
/// let busbar_client::GroupStats { acked, redelivered, dead_lettered, .. } = consumer.stats();
/// println!("{acked} done, {redelivered} delivered again, {dead_lettered} dead letters");
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStats {
    /// Records handed out, each time counted.
    pub delivered: u64,
    /// Of those: not for the first time.
    pub redelivered: u64,
    /// Of those: one by one after an earlier holder vanished, each put on record first.
    pub tried: u64,
    /// Records acknowledged.
    pub acked: u64,
    /// Deliveries given back by `nack`, or by dropping the record.
    pub nacked: u64,
    /// Records rejected.
    pub rejected: u64,
    /// Deliveries whose lease ran out.
    pub expired: u64,
    /// Records stored as dead letters.
    pub dead_lettered: u64,
    /// Records given up without a dead letter, as the policy says.
    pub dropped: u64,
    /// Records received and left out because the filter does not match them.
    pub filtered: u64,
    /// Records left out because the application had acknowledged the same before: see
    /// [`GroupBuilder::dedup`](crate::GroupBuilder::dedup).
    pub duplicates: u64,
    /// Records not delivered (any more) because they have expired: see [`Record::ttl`](crate::Record::ttl).
    pub expired_records: u64,
    /// Times in `busbar-deliver-at` and `busbar-expires-at` headers that can't be read: taken as not there.
    pub malformed: u64,
    /// Records that retention removed before they could be read, counted from where the group had come to.
    pub skipped: u64,
    /// Words on records that did not count any more.
    pub stale: u64,
    /// Partitions gained.
    pub assigned: u64,
    /// Partitions given up or lost.
    pub revoked: u64,
    /// Of those: lost without being asked.
    pub lost: u64,
    /// Commit requests that were answered.
    pub commits: u64,
    /// Commits of a partition that were refused although it is ours, as the coordinator has no room for what is
    /// remembered. They are tried later and later, up to half a minute apart; while that lasts, nothing new is on
    /// record, and what is handed out ends soon.
    pub commits_refused: u64,
    /// Times that the member joined.
    pub joins: u64,
    /// Time from being asked to give up a partition, when nothing more was handed out, until it was free for others:
    /// all of them together, and the longest.
    pub paused: Duration,
    /// The longest of them.
    pub paused_max: Duration,
}

macro_rules! counters {
    ($($name:ident),*) => {
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
            paused_us: Counter,
            paused_max_us: AtomicU64,
        }

        impl Counters {
            /// `skipped` is counted elsewhere.
            pub(super) fn read(&self, skipped: u64) -> GroupStats {
                GroupStats {
                    skipped,
                    $($name: self.$name.get(),)*
                    paused: Duration::from_micros(self.paused_us.get()),
                    paused_max: Duration::from_micros(self.paused_max_us.load(Ordering::Relaxed)),
                }
            }
        }
    };
}
counters!(
    delivered,
    redelivered,
    tried,
    acked,
    nacked,
    rejected,
    expired,
    dead_lettered,
    dropped,
    filtered,
    duplicates,
    expired_records,
    malformed,
    stale,
    assigned,
    revoked,
    lost,
    commits,
    commits_refused,
    joins
);

impl Counters {
    pub(super) fn paused(&self, pause: Duration) {
        let us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        self.paused_us.add(us);
        self.paused_max_us.fetch_max(us, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
