//! Room for records: bytes of buffer for all that is unfinished, and how much of it records of stuck partitions may take.
//! A partition is stuck while it gets nothing done: held back by a guard, without a leader, between two attempts, or
//! unanswered for long. Without that second bound the records of one sick broker would fill the buffer, and nothing
//! could be published to the healthy ones.
//!
//! ```text
//!  |<------------------------ buffer ------------------------>|
//!  [ of stuck partitions ........ <= parked max ]
//!  [ of all others ....................... whatever is free   ]
//! ```
//! Invariants: a reservation for a stuck partition never takes their sum above the maximum, unless it is the only one;
//! what a partition already had when it became stuck may; those who wait for one partition go in the order in which they
//! came, and nobody who comes later goes before them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use busbar_proto::PartitionId;
use tokio::sync::{Mutex, MutexGuard, Notify, Semaphore, futures::Notified};

#[derive(Debug)]
pub(super) struct Room {
    /// A permit for each byte of the buffer.
    pub(super) space: Semaphore,
    buffer_bytes: usize,
    parked_max: u64,
    /// Bytes of stuck partitions.
    parked: AtomicU64,
    /// There are fewer of them, or a partition is stuck no more, or nothing is taken any more.
    changed: Notify,
    /// One for each partition, and the last for records that may go to any.
    lines: Box<[Line]>,
}

/// Those who wait for one partition, or for any.
#[derive(Debug, Default)]
pub(super) struct Line {
    stuck: AtomicBool,
    waiting: AtomicUsize,
    /// Whoever has it is the first; given on in the order of asking.
    first: Mutex<()>,
}

/// A place in a line; given up when dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    line: &'a Line,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.line.waiting.fetch_sub(1, Ordering::Release);
    }
}

impl Line {
    /// Whether somebody waits, so that whoever comes now must wait, too.
    pub(super) fn is_used(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// A place at the end, from now on.
    pub(super) fn join(&self) -> Place<'_> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Place { line: self }
    }
}

impl<'a> Place<'a> {
    /// Waits until nobody is before us. Cancel safe: dropped, the place is given up.
    pub(super) async fn first(&self) -> MutexGuard<'a, ()> {
        self.line.first.lock().await
    }
}

impl Room {
    /// `parked_max` = bytes that records of stuck partitions may take; no matter with one partition, which has no
    /// other to spare.
    pub(super) fn new(partitions: u32, buffer_bytes: usize, parked_max: usize) -> Self {
        let parked_max = if partitions == 1 { buffer_bytes } else { parked_max };
        Self {
            space: Semaphore::new(buffer_bytes),
            buffer_bytes,
            parked_max: parked_max as u64,
            parked: AtomicU64::new(0),
            changed: Notify::new(),
            lines: (0..=partitions).map(|_| Line::default()).collect(),
        }
    }

    /// Bytes that unfinished records hold.
    pub(super) fn used(&self) -> u64 {
        self.buffer_bytes.saturating_sub(self.space.available_permits()) as u64
    }

    /// Of these: of stuck partitions.
    pub(super) fn parked(&self) -> u64 {
        self.parked.load(Ordering::Relaxed)
    }

    /// Where those wait who want to go to a partition, or to any.
    pub(super) fn line(&self, partition: Option<PartitionId>) -> &Line {
        let last = self.lines.len() - 1;
        &self.lines[partition.map_or(last, |partition| (partition.get() as usize).min(last))]
    }

    /// Whether so many bytes might be taken now, for a partition or for any; only [`Self::reserve`] is certain.
    pub(super) fn seems_open(&self, partition: Option<PartitionId>, bytes: usize) -> bool {
        let stuck = |line: &Line| line.stuck.load(Ordering::Acquire);
        let all_stuck = match partition {
            Some(_) => stuck(self.line(partition)),
            None => self.lines.split_last().is_some_and(|(_, lines)| lines.iter().all(stuck)),
        };
        !all_stuck || self.fits(self.parked.load(Ordering::Acquire), bytes)
    }

    /// Takes bytes for a stuck partition, if its share has them.
    pub(super) fn reserve(&self, bytes: usize) -> bool {
        let more = |parked: u64| self.fits(parked, bytes).then(|| parked + bytes as u64);
        self.parked.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    fn fits(&self, parked: u64, bytes: usize) -> bool {
        // A record may be larger than the share.
        parked == 0 || parked + bytes as u64 <= self.parked_max
    }

    /// A partition, whose records counted for `counted` bytes, is stuck with so many now, or is not stuck.
    pub(super) fn recount(&self, partition: PartitionId, counted: &mut u64, stuck_with: Option<u64>) {
        let now = stuck_with.unwrap_or(0);
        let before = std::mem::replace(counted, now);
        if now > before {
            self.parked.fetch_add(now - before, Ordering::AcqRel);
        } else if before > now {
            self.parked.fetch_sub(before - now, Ordering::AcqRel);
        }
        let was_stuck = self.line(Some(partition)).stuck.swap(stuck_with.is_some(), Ordering::AcqRel);
        if before > now || (was_stuck && stuck_with.is_none()) {
            self.changed.notify_waiters();
        }
    }

    /// Resolves at the next change from now on, also before it is awaited, once it is enabled.
    pub(super) fn change(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Nothing is taken any more: whoever waits is to look why.
    pub(super) fn close(&self) {
        self.space.close();
        self.wake();
    }

    /// Whoever waits for a partition is to look again.
    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const P0: PartitionId = PartitionId::new(0);
    const P1: PartitionId = PartitionId::new(1);

    #[test]
    fn stuck_partitions_share_a_bound_and_others_have_none() {
        let room = Room::new(3, 1000, 500);
        let (mut first, mut second) = (0, 0);
        room.recount(P0, &mut first, Some(300));
        assert!(room.seems_open(Some(P0), 200) && !room.seems_open(Some(P0), 201));
        assert!(room.seems_open(Some(P1), 900) && room.seems_open(None, 900));
        room.recount(P1, &mut second, Some(0));
        assert!(!room.seems_open(Some(P1), 201), "together");
        assert!(room.reserve(200) && !room.reserve(1));
        second += 200;
        assert_eq!(room.parked(), 500);
        room.recount(P1, &mut second, None);
        assert!(room.seems_open(Some(P1), 900) && room.reserve(200) && room.parked() == 500);
    }

    #[test]
    fn a_record_above_the_share_passes_alone_and_one_partition_has_it_all() {
        let room = Room::new(2, 1000, 100);
        assert!(room.reserve(700) && !room.reserve(1));
        let single = Room::new(1, 1000, 100);
        assert!(single.reserve(700) && single.reserve(300));
    }

    #[test]
    fn keyless_records_wait_only_when_every_partition_is_stuck() {
        let room = Room::new(2, 1000, 100);
        let (mut first, mut second) = (0, 0);
        room.recount(P0, &mut first, Some(100));
        assert!(room.seems_open(None, 1));
        room.recount(P1, &mut second, Some(0));
        assert!(!room.seems_open(None, 1));
    }

    #[tokio::test]
    async fn a_line_goes_on_in_order_and_a_place_is_given_up_when_dropped() {
        let line = Line::default();
        let (first, second, third) = (line.join(), line.join(), line.join());
        let turn = first.first().await;
        let (mut dropped, mut waits) = (Box::pin(second.first()), Box::pin(third.first()));
        assert!(futures::poll!(&mut dropped).is_pending() && futures::poll!(&mut waits).is_pending());
        drop(turn);
        assert!(futures::poll!(&mut waits).is_pending(), "the second is before it");
        drop(dropped);
        assert!(futures::poll!(&mut waits).is_ready() && line.is_used());
        drop(waits);
        drop((first, second, third));
        assert!(!line.is_used());
    }

    proptest! {
        /// Reservations never go above the bound, and what is counted is always the sum of what is stuck.
        #[test]
        fn the_sum_is_that_of_the_stuck_partitions(
            steps in prop::collection::vec((0_u32..3, prop::option::of(0_u64..400), 1_usize..200), 1..200),
        ) {
            let room = Room::new(3, 10_000, 500);
            let mut counted = [0_u64; 3];
            let mut stuck = [false; 3];
            for (partition, stuck_with, bytes) in steps {
                let at = partition as usize;
                room.recount(PartitionId::new(partition), &mut counted[at], stuck_with);
                stuck[at] = stuck_with.is_some();
                let before = room.parked();
                if stuck[at] && room.reserve(bytes) {
                    counted[at] += bytes as u64;
                    prop_assert!(before == 0 || room.parked() <= 500);
                }
                prop_assert_eq!(room.parked(), counted.iter().sum::<u64>());
            }
        }
    }
}
