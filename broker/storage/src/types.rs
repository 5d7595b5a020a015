//! The words of the log engine: group, position, entry, vote, and what a log looks like from outside.
//!
//! Plain data, no behaviour beyond conversions. Nothing here knows of files, of raft, or of topics: a group is a
//! number, an entry is bytes with a place in that group's log.

use bytes::Bytes;

/// One replicated log on this node. Ids are chosen by the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

impl std::fmt::Display for GroupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Where an entry stands: the term that wrote it and its index. Ordered by term, then index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Term of the leader that created the entry.
    pub term: u64,
    /// Index in the group's log.
    pub index: u64,
}

/// One log entry. The engine never looks into `payload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Term of the leader that created the entry.
    pub term: u64,
    /// Index in the group's log.
    pub index: u64,
    /// The caller's own tag; stored and returned, never interpreted.
    pub kind: u8,
    /// A number the log can be searched by; never decreases along a group's log.
    pub mark: u64,
    /// Milliseconds since the Unix epoch, by the caller's clock; the log can be searched by it.
    pub time_ms: i64,
    /// How many leading bytes of `payload` a [`ReadMode::HeadOnly`] read returns.
    pub head_len: u32,
    /// The head, then the body.
    pub payload: Bytes,
}

impl Entry {
    /// Term and index together.
    pub fn position(&self) -> Position {
        Position { term: self.term, index: self.index }
    }

    /// Memory charged for holding this entry: the payload plus a flat amount for the bookkeeping around it.
    pub(crate) fn cost(&self) -> usize {
        self.payload.len() + 160
    }

    /// The same entry with the body dropped and the head copied out, so that a large buffer is not kept alive by it.
    pub(crate) fn head_only(&self) -> Entry {
        let head = self.payload.get(..self.head_len as usize).unwrap_or(&self.payload);
        Entry { payload: Bytes::copy_from_slice(head), ..self.clone() }
    }
}

/// A raft vote, as stored: the highest term seen, whom it went to, and whether a quorum confirmed that leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vote {
    /// Term voted in.
    pub term: u64,
    /// Node voted for.
    pub node: u64,
    /// True once a quorum granted it.
    pub committed: bool,
}

/// What a log holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// First readable index; `None` when the log holds no entry.
    pub first: Option<u64>,
    /// Last entry; when the log holds none, the same as `purged`.
    pub last: Option<Position>,
    /// Everything up to here was purged.
    pub purged: Option<Position>,
    /// Mark of the last entry; `None` when the log holds no entry.
    pub last_mark: Option<u64>,
}

/// How much of each entry a read returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// The whole payload.
    Full,
    /// Only the first `head_len` bytes of the payload.
    HeadOnly,
}

/// One segment file of a group's history, for retention decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Index of its first entry.
    pub first_index: u64,
    /// Index of its last entry.
    pub last_index: u64,
    /// Term of its last entry.
    pub last_term: u64,
    /// Mark of its first entry.
    pub first_mark: u64,
    /// Mark of its last entry.
    pub last_mark: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// The largest `time_ms` of its entries.
    pub last_time_ms: i64,
    /// True when nothing will be added to it.
    pub sealed: bool,
}

/// What takes the place of an entry's payload when its segment is rewritten; all else of the entry stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPayload {
    /// How many leading bytes make the head.
    pub head_len: u32,
    /// The head, then the body.
    pub payload: Bytes,
}

/// Decides on each entry of a segment, once and in order; `None` = it stays as it is. Called on the background thread: it
/// must not wait for anything.
pub type Decide = Box<dyn FnMut(&Entry) -> Option<NewPayload> + Send>;

/// What came of rewriting a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// Entries with a new payload; with none the segment was left alone.
    pub entries: u64,
    /// Bytes on disk before.
    pub bytes_before: u64,
    /// Bytes on disk now.
    pub bytes_after: u64,
}

/// Called exactly once, on the journal's thread, when what it was handed in with is durable, or failed for good.
/// It must be short and must not block: every group's next write waits for it.
pub type FlushCallback = Box<dyn FnOnce(Result<(), std::io::Error>) + Send>;

/// Counters of one engine since it was opened. Bytes and counts, times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Durable flushes of the journal.
    pub syncs: u64,
    /// Those of them that went past the page cache: one trip to the disk instead of a write and a sync.
    pub direct_writes: u64,
    /// Bytes written to the journal.
    pub journal_bytes: u64,
    /// Frames written to the journal.
    pub frames: u64,
    /// Journal files in the ring, spares included.
    pub files: u64,
    /// Bytes moved from the journal into segments.
    pub retired_bytes: u64,
    /// Bytes written into segments that took the place of older ones.
    pub rewritten_bytes: u64,
    /// Bytes of uncommitted entries written again at the journal's head so that an old file could be recycled.
    pub carried_bytes: u64,
    /// Bytes held by the tail cache.
    pub cache_bytes: u64,
    /// Bytes waiting for the journal's writer.
    pub queue_bytes: u64,
    /// Longest flush, in microseconds.
    pub sync_us_max: u64,
    /// All flushes together, in microseconds; divide by `syncs` for the mean.
    pub sync_us_total: u64,
    /// Times the writer had to wait for a free journal file.
    pub stalls: u64,
}
