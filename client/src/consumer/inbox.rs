//! What the feeds have received and the application has not read yet: batches in the order of arrival, one
//! reader. Not bounded by itself: the credit granted to brokers bounds it, and a broker that exceeds its credit
//! is cut off before its bytes get here.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
};

use busbar_proto::{Offset, PartitionId, limits};
use bytes::Bytes;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

use crate::{consumer::opening::Tenure, error::ConsumeError};

/// One checked batch, or word of what the broker's filter passed over.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) partition: PartitionId,
    pub(crate) tenure: Tenure,
    /// `None`: there is nothing that is wanted below `from`, and it costs [`limits::PASSED_CREDIT_BYTES`].
    pub(crate) batch: Option<Bytes>,
    /// Records below this were handed out before, or are not wanted.
    pub(crate) from: Offset,
}

impl Parcel {
    /// Bytes of credit that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.batch.as_ref().map_or(limits::PASSED_CREDIT_BYTES, Bytes::len)
    }
}

/// What the reader gets.
#[derive(Debug)]
pub(crate) enum Item {
    Batch(Parcel),
    Fault(PartitionId, Tenure, ConsumeError),
}

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    items: Mutex<VecDeque<Item>>,
    reader: AtomicWaker,
    /// Records that retention removed before they could come.
    missed: AtomicU64,
}

impl Inbox {
    pub(crate) fn put(&self, items: impl IntoIterator<Item = Item>) {
        self.items.lock().extend(items);
        self.reader.wake();
    }

    /// So many records will never come: retention has removed them.
    pub(crate) fn miss(&self, records: u64) {
        self.missed.fetch_add(records, Ordering::Relaxed);
    }

    /// How many will never come.
    pub(crate) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Makes the reader look again, at whatever it looks at besides.
    pub(crate) fn wake(&self) {
        self.reader.wake();
    }

    /// Whom to wake from now on: for a reader that looks at more than this inbox.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.reader.register(cx.waker());
    }

    /// Swaps everything there is into `into`, which is empty; waits while there is nothing. Cancel safe.
    pub(crate) fn poll_take(&self, into: &mut VecDeque<Item>, cx: &mut Context<'_>) -> Poll<()> {
        if self.take(into) {
            return Poll::Ready(());
        }
        self.reader.register(cx.waker());
        // Put between the look above and the registration: looked for again.
        if self.take(into) { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(crate) fn take(&self, into: &mut VecDeque<Item>) -> bool {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *self.items.lock(), into);
        !into.is_empty()
    }
}
