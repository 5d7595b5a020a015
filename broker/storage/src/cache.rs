//! The budget of the tail cache: the newest entries of all groups stay in memory until it is used up.
//!
//! The entries themselves hang in their group ([`crate::group::Inner::cache`]); this only counts bytes and remembers
//! in which order entries reached the journal, which is the order in which they are evicted.
//!
//! Invariant: only entries that have a place on disk are ever evicted, so the memory in use is at most the budget plus
//! what the journal's queue holds. A payload that is a slice of a larger buffer keeps that buffer alive: callers who
//! care hand in payloads of their own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::shared::Group;

/// See the module.
pub(crate) struct TailCache {
    budget: usize,
    bytes: AtomicUsize,
    order: Mutex<VecDeque<(Arc<Group>, u64)>>,
}

impl TailCache {
    pub(crate) fn new(budget: usize) -> TailCache {
        TailCache { budget, bytes: AtomicUsize::new(0), order: Mutex::default() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Entries were put into a group's cache.
    pub(crate) fn added(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Entries were taken out of a group's cache.
    pub(crate) fn dropped(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Relaxed);
    }

    /// The group's entries up to `last` may be evicted from now on.
    pub(crate) fn note(&self, group: Arc<Group>, last: u64, cost: usize) {
        if cost > 0 {
            self.order.lock().push_back((group, last));
        }
    }

    /// Evicts, oldest first, until the budget is met. Call without any group locked.
    pub(crate) fn trim(&self) {
        loop {
            let (group, last) = {
                let mut order = self.order.lock();
                // Entries dropped by truncation and purging leave notes behind; those must not pile up.
                if self.bytes() <= self.budget && order.len() <= 1024 + self.budget / 160 {
                    return;
                }
                let Some(oldest) = order.pop_front() else { return };
                oldest
            };
            let freed = group.inner.lock().evict(last);
            self.dropped(freed);
        }
    }
}
