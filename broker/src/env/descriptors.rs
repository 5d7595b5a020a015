//! File descriptors: what this process may have, and how they are shared out. Too few of them is nobody's fault in the
//! middle of a write, so each kind of use gets its part at the start, and the caps that follow from it are told.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Files of the state store, at most.
const STATE_FILES: u64 = 64 + 16;
/// Listeners, peers' links, pipes, the runtime's own, files that are open for a moment.
const OTHERS: u64 = 160;
/// A segment's index, read while its log is opened.
const SEGMENTS_MIN: u64 = 16;
const SEGMENTS_MAX: u64 = 256;
const CONNECTIONS_MIN: u64 = 16;

/// Raises the process's soft limit to its hard one, as a server may; returns the limit then in force, `None` = none.
pub fn raise_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let before = limit.current;
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "can't raise the limit of open files to what is allowed");
            limit.current = before;
        }
    }
    limit.current
}

/// What each kind of use may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Client connections.
    pub connections: usize,
    /// Segments kept open.
    pub segments: usize,
}

/// The limit does not even do for a node without clients.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} open files are too few, a node needs {needed}: raise the limit (ulimit -n, LimitNOFILE of systemd)")]
pub struct TooFew {
    /// What the process may have.
    pub limit: u64,
    /// What it can begin with.
    pub needed: u64,
}

/// Shares `limit` out between a journal of `journal_files` files, the state store, segments and connections.
///
/// # Errors
/// [`TooFew`].
pub fn share_out(limit: Option<u64>, journal_files: u64, connections_wanted: usize) -> Result<Shares, TooFew> {
    // A journal file is open twice when it is written directly.
    let fixed = 2 * (journal_files + 1) + STATE_FILES + OTHERS;
    let needed = fixed + SEGMENTS_MIN + CONNECTIONS_MIN;
    let limit = limit.unwrap_or(u64::MAX);
    if limit < needed {
        return Err(TooFew { limit, needed });
    }
    let rest = limit - fixed;
    let segments = (rest / 4).clamp(SEGMENTS_MIN, SEGMENTS_MAX);
    let connections = connections_wanted.min(usize::try_from(rest - segments).unwrap_or(usize::MAX));
    Ok(Shares { connections, segments: segments as usize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_use_gets_its_part() {
        let shares = |limit| share_out(limit, 8, 4096);
        assert_eq!(shares(None), Ok(Shares { connections: 4096, segments: 256 }));
        assert_eq!(shares(Some(1 << 20)), Ok(Shares { connections: 4096, segments: 256 }));
        let few = shares(Some(1024)).expect("enough to begin with");
        assert_eq!(few, Shares { connections: 575, segments: 191 });
        assert!(2 * 9 + STATE_FILES + OTHERS + few.connections as u64 + few.segments as u64 <= 1024);
        assert_eq!(shares(Some(290)), Ok(Shares { connections: 16, segments: 16 }));
        assert_eq!(shares(Some(289)), Err(TooFew { limit: 289, needed: 290 }));
    }
}
