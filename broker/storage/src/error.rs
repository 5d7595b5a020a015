//! What can go wrong, one enum per operation. Corruption, a torn tail and an I/O failure are three different things:
//! a torn tail is not an error at all (see [`crate::RecoveryReport`]), corruption is never repaired by dropping bytes,
//! and an I/O failure on the write path is final for the process.

use std::io;
use std::path::PathBuf;

use crate::types::GroupId;

/// Why a log folder could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another engine in this one, holds the folder.
    #[error("{} is in use by another process: stop it, or give this node its own data folder", .0.display())]
    Locked(PathBuf),
    /// Bytes that were durable once no longer say what they said. Nothing was changed on disk.
    #[error("{place} is damaged: {detail}; keep the folder for inspection and let the node rebuild from its peers")]
    Corrupt {
        /// File and position.
        place: String,
        /// What was expected there.
        detail: String,
    },
    /// A file was written by a version this one does not know.
    #[error(
        "{place} has format version {found}, this binary reads {known}: use the binary that wrote it, or a newer one"
    )]
    Version {
        /// File.
        place: String,
        /// Version found.
        found: u32,
        /// Version known.
        known: u32,
    },
    /// Options outside their bounds; names every fault.
    #[error("log options: {0}")]
    Options(String),
    /// The group was removed, and its files are not gone yet: try again later.
    #[error("group {0} was removed from this node, and its files are not gone yet")]
    Removed(GroupId),
    /// No room left for another group at a journal file's head.
    #[error("{groups} groups do not fit into one journal file: raise the journal's file size")]
    TooManyGroups {
        /// Groups known.
        groups: usize,
    },
    /// The engine failed earlier, or was closed.
    #[error("the log engine is stopped: {0}")]
    Stopped(String),
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Verb.
        action: &'static str,
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> OpenError {
        let path = path.into();
        move |source| OpenError::Io { action, path, source }
    }
}

/// Why something was not taken into the log. Nothing was changed, and the callback will not be called.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AppendError {
    /// Entries do not follow on the log's end, or on each other.
    #[error("group {group}: entry {found} does not follow the log, which continues at {expected}")]
    NotContiguous {
        /// Group.
        group: GroupId,
        /// Index that was due.
        expected: u64,
        /// Index given.
        found: u64,
    },
    /// A mark below the one before it.
    #[error("group {group}: the mark of entry {index} goes back from {before} to {found}")]
    MarkWentBack {
        /// Group.
        group: GroupId,
        /// Entry.
        index: u64,
        /// Mark before it.
        before: u64,
        /// Its mark.
        found: u64,
    },
    /// A cut at or below what is committed.
    #[error("group {group}: refused to cut after {after:?}, everything up to {committed} is committed")]
    BelowCommitted {
        /// Group.
        group: GroupId,
        /// Last index to keep.
        after: Option<u64>,
        /// Committed index.
        committed: u64,
    },
    /// One entry is larger than the journal takes, or its head is longer than its payload.
    #[error("group {group}: entry {index} has {bytes} bytes, at most {limit} are possible")]
    TooLarge {
        /// Group.
        group: GroupId,
        /// Entry.
        index: u64,
        /// Its size.
        bytes: usize,
        /// Largest allowed.
        limit: usize,
    },
    /// The journal's queue stayed at its hard cap for `append_wait`.
    #[error("the journal has {queued} bytes queued and takes no more: the disk is too slow or has no room left")]
    Overloaded {
        /// Bytes queued.
        queued: usize,
    },
    /// The group was removed.
    #[error("group {0} was removed from this node")]
    Removed(GroupId),
    /// The engine failed earlier, or was closed.
    #[error("the log engine is stopped: {0}")]
    Stopped(String),
}

impl From<AppendError> for io::Error {
    fn from(error: AppendError) -> io::Error {
        let kind = match error {
            AppendError::Overloaded { .. } => io::ErrorKind::WouldBlock,
            AppendError::Stopped(_) | AppendError::Removed(_) => io::ErrorKind::BrokenPipe,
            _ => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}

/// Why entries could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Below the log's start.
    #[error("the log begins at {first}")]
    Purged {
        /// First readable index.
        first: u64,
    },
    /// At or above the log's end.
    #[error("the log ends before {next}")]
    BeyondEnd {
        /// Index the next entry will get.
        next: u64,
    },
    /// Stored bytes fail their checksum. The entry is never served; it must come from a peer.
    #[error("group {group}: entry {index} is damaged at {place}; it has to come from another replica")]
    Corrupt {
        /// Group.
        group: GroupId,
        /// First index that cannot be read.
        index: u64,
        /// File and position.
        place: String,
    },
    /// The group was removed, or the engine was stopped.
    #[error("the log of group {group} is gone: {why}")]
    Gone {
        /// Group.
        group: GroupId,
        /// Cause.
        why: String,
    },
    /// The operating system refused.
    #[error("cannot read the log of group {group}: {source}")]
    Io {
        /// Group.
        group: GroupId,
        /// Cause.
        source: io::Error,
    },
}

/// Why a segment was not rewritten. It is as it was, and can be read as before.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// There is no sealed segment that begins there, or it went meanwhile.
    #[error("group {group}: no sealed segment begins at entry {first}")]
    Missing {
        /// Group.
        group: GroupId,
        /// First index wanted.
        first: u64,
    },
    /// Stored bytes fail their checksum: nothing is made of them.
    #[error("group {group}: the segment is damaged at {place} and was left alone")]
    Damaged {
        /// Group.
        group: GroupId,
        /// File and position.
        place: String,
    },
    /// An entry's new payload is longer than the journal takes, or its head is longer than that.
    #[error("group {group}: the new payload of entry {index} has {bytes} bytes, which can't be")]
    BadPayload {
        /// Group.
        group: GroupId,
        /// Entry.
        index: u64,
        /// Its size.
        bytes: usize,
    },
    /// The operating system refused; a full disk, as a rule.
    #[error("cannot rewrite a segment of group {group}: {source}")]
    Io {
        /// Group.
        group: GroupId,
        /// Cause.
        source: io::Error,
    },
    /// The group was removed, or the engine was stopped.
    #[error("the log of group {0} is gone")]
    Gone(GroupId),
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> io::Error {
        match error {
            ReadError::Io { source, .. } => source,
            ReadError::Corrupt { .. } => io::Error::new(io::ErrorKind::InvalidData, error),
            ReadError::Gone { .. } => io::Error::new(io::ErrorKind::BrokenPipe, error),
            ReadError::Purged { .. } | ReadError::BeyondEnd { .. } => io::Error::new(io::ErrorKind::NotFound, error),
        }
    }
}
