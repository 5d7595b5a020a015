//! Which tombstones every replica is done with: compaction may remove them once they have been readable long enough
//! after that.
//!
//! ```text
//!   0 ─────────── examined by every replica ───────────▶ offset
//!        t    b    t    t    b    t                          t: no replica holds an older record of the key: settled
//!                                                            b: blocked, some replica does
//! ```
//! A reader may read an old value from one replica and go on at another one, and a replica that was away fetches what it
//! missed from whoever leads. So it is not enough that the replica that removes a tombstone holds no older record of its
//! key: none may, from which somebody could still read or copy one. The leader learns that from each member and says it
//! to all, in the log. What is settled stays so: offsets only grow, and a new replica copies from those that were asked.
//!
//! Invariants: blocked offsets ascend, lie below `offset`, and are at most [`limits::BLOCKED_TOMBSTONES_MAX`].

use busbar_proto::{Offset, limits};
use bytes::BytesMut;

use crate::codec::{DecodeError, Reader, put_signed, put_unsigned};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// What lies below was examined everywhere.
    pub offset: Offset,
    /// The leader's clock when it said so, in milliseconds since the Unix epoch.
    pub stamped_ms: i64,
    /// Tombstones below of whose keys a replica holds an older record, ascending.
    pub blocked: Vec<Offset>,
}

impl Settled {
    /// Whether the tombstone at `offset` is settled, if it is the newest record of its key.
    pub fn covers(&self, offset: Offset) -> bool {
        offset < self.offset && self.blocked.binary_search(&offset).is_err()
    }

    /// Whether it was said so long ago.
    pub fn is_mature(&self, now_ms: i64, delete_retention_ms: u64) -> bool {
        i128::from(now_ms) - i128::from(self.stamped_ms) >= i128::from(delete_retention_ms)
    }

    /// What holds for all of these replicas, each of which told what holds for it; `None` of nobody.
    pub fn agreed<'a>(told: impl IntoIterator<Item = &'a Settled>, stamped_ms: i64) -> Option<Self> {
        let mut told = told.into_iter();
        let mut all = told.next()?.clone();
        for one in told {
            all.offset = all.offset.min(one.offset);
            all.blocked.extend(&one.blocked);
        }
        all.blocked.sort_unstable();
        all.blocked.dedup();
        all.blocked.retain(|&offset| offset < all.offset);
        Some(Self { stamped_ms, ..all }.bounded())
    }

    /// The same with blocked offsets as few as are allowed, and an end below the first one that is left out.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        if let Some(&first) = self.blocked.get(limits::BLOCKED_TOMBSTONES_MAX) {
            self.offset = self.offset.min(first);
            self.blocked.truncate(limits::BLOCKED_TOMBSTONES_MAX);
        }
        self
    }

    pub(super) fn put(&self, out: &mut BytesMut) {
        put_unsigned(out, self.offset.get());
        put_signed(out, self.stamped_ms);
        put_unsigned(out, self.blocked.len() as u64);
        let mut before = 0;
        for offset in &self.blocked {
            put_unsigned(out, offset.get() - before);
            before = offset.get();
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let offset = Offset::new(reader.unsigned("settled offset")?);
        let stamped_ms = reader.signed("stamped time")?;
        let count = reader.count("blocked count", 1)?;
        if count > limits::BLOCKED_TOMBSTONES_MAX {
            return Err(reader.invalid("blocked count", count));
        }
        let mut blocked: Vec<Offset> = Vec::with_capacity(count);
        for _ in 0..count {
            let distance = reader.unsigned("blocked offset")?;
            let before = blocked.last().map_or(0, |last| last.get());
            let next = before.checked_add(distance).map(Offset::new).filter(|&next| next < offset);
            let next = next.filter(|&next| blocked.last().is_none_or(|&last| last < next));
            blocked.push(next.ok_or_else(|| reader.invalid("blocked offset", distance))?);
        }
        Ok(Self { offset, stamped_ms, blocked })
    }
}
