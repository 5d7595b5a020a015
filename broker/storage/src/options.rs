//! The engine's knobs: sizes in bytes, times as `Duration`, each with its default and its bounds.

use std::time::Duration;

use crate::error::OpenError;

/// Who runs the journal writer and the background work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// Two threads of the engine's own; disk reads go to tokio's blocking pool.
    Threads,
    /// Nobody: the caller calls [`crate::LogEngine::drive`], and everything happens inside that call, in a fixed
    /// order. For tests and simulation. Reads run inline.
    Manual,
}

/// Sizes and paces of a [`crate::LogEngine`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Size of one journal file. Default 32 MiB, at least 64 KiB, a multiple of 4 KiB. An entry may take
    /// three quarters; the rest is for the groups' states at the file's head.
    pub file_bytes: u64,
    /// Journal files the ring starts with. Default 2, at least 1.
    pub files_min: usize,
    /// Journal files the ring may grow to. Default 16, at least 4 and at least `files_min`.
    pub files_max: usize,
    /// A segment is closed once it holds this much. Default 128 MiB, at least 64 KiB.
    pub segment_bytes: u64,
    /// Bytes of log between two points of a segment's sparse index. Default 64 KiB.
    pub index_interval_bytes: u64,
    /// Node-wide budget of the tail cache. Default 64 MiB. Entries not yet written to the journal come on top,
    /// bounded by `queue_bytes`.
    pub tail_cache_bytes: usize,
    /// Hard cap on bytes queued for the journal. Default 64 MiB. See [`crate::GroupLog::append`].
    pub queue_bytes: usize,
    /// How long an append may wait at the hard cap before it fails as overloaded. Default 10 s.
    pub append_wait: Duration,
    /// Most bytes written before a sync. Default 8 MiB.
    pub batch_bytes: usize,
    /// Below this much free disk [`crate::LogEngine::is_disk_low`] says so. Default 256 MiB.
    pub reserve_disk_bytes: u64,
    /// Write small batches with `O_DIRECT | O_DSYNC` where the file system allows it. Default false.
    pub direct_io: bool,
    /// Runs of at least this many bytes go into a segment past the page cache, if `direct_io`. Default 128 KiB.
    pub bulk_bytes: u64,
    /// What is not waited for (lazy appends, purges) becomes durable within this. Default 50 ms.
    pub flush_interval: Duration,
    /// Bytes moved into a segment between two syncs. Default 4 MiB, at least 64 KiB.
    pub retire_step_bytes: usize,
    /// Share of the time the retiring may keep the disk busy while the ring is not short of files. Default 30 %.
    pub retire_duty_percent: u32,
    /// Segments kept open for reading and writing history, one file each. Default 256, at least 1.
    pub open_segments_max: usize,
    /// Who runs the work. Default [`Drive::Threads`].
    pub drive: Drive,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            file_bytes: 32 << 20,
            files_min: 2,
            files_max: 16,
            segment_bytes: 128 << 20,
            index_interval_bytes: 64 << 10,
            tail_cache_bytes: 64 << 20,
            queue_bytes: 64 << 20,
            append_wait: Duration::from_secs(10),
            batch_bytes: 8 << 20,
            reserve_disk_bytes: 256 << 20,
            direct_io: false,
            bulk_bytes: 128 << 10,
            flush_interval: Duration::from_millis(50),
            retire_step_bytes: 4 << 20,
            retire_duty_percent: 30,
            open_segments_max: 256,
            drive: Drive::Threads,
        }
    }
}

impl LogOptions {
    /// Checks every bound and reports all faults at once.
    pub fn validate(&self) -> Result<(), OpenError> {
        let rules = [
            (self.file_bytes >= 64 << 10 && self.file_bytes <= 4 << 30, "file_bytes must be 64 KiB to 4 GiB"),
            (self.file_bytes.is_multiple_of(4096), "file_bytes must be a multiple of 4096"),
            (self.files_min >= 1, "files_min must be at least 1"),
            (self.files_max >= 4 && self.files_max <= 1024, "files_max must be 4 to 1024"),
            (self.files_max >= self.files_min, "files_max must not be below files_min"),
            (self.segment_bytes >= 64 << 10 && self.segment_bytes <= 4 << 30, "segment_bytes must be 64 KiB to 4 GiB"),
            (self.index_interval_bytes >= 1024, "index_interval_bytes must be at least 1024"),
            (self.queue_bytes >= 64 << 10, "queue_bytes must be at least 64 KiB"),
            (self.batch_bytes >= 4096, "batch_bytes must be at least 4096"),
            (self.retire_step_bytes >= 4096, "retire_step_bytes must be at least 4096"),
            (self.open_segments_max >= 1, "open_segments_max must be at least 1"),
            ((1..=100).contains(&self.retire_duty_percent), "retire_duty_percent must be 1 to 100"),
        ];
        let faults: Vec<&str> = rules.iter().filter(|(holds, _)| !holds).map(|(_, text)| *text).collect();
        if faults.is_empty() { Ok(()) } else { Err(OpenError::Options(faults.join("; "))) }
    }

    /// Free files the background strives for: the cushion a burst is written into while older files are emptied.
    pub(crate) fn spares_wanted(&self) -> usize {
        (self.files_max / 4).max(2)
    }

    /// Largest payload of one entry, in bytes.
    pub fn max_payload_bytes(&self) -> usize {
        usize::try_from(self.file_bytes / 4 * 3).unwrap_or(usize::MAX)
    }
}
