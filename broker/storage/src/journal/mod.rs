//! The node-wide journal: the recent log of all groups, in a ring of recycled files, made durable by one sync for
//! everything that waits.
//!
//! `writer` turns queued operations into frames of the `active` file; `output` takes them to the disk, `direct` past the
//! page cache when they are few; `ring` says which file is next; `header` is what a file begins with; `scan` walks
//! frames; `recovery` rebuilds everything from what the files hold.

pub(crate) mod active;
pub(crate) mod batch;
pub(crate) mod direct;
pub(crate) mod header;
pub(crate) mod output;
pub(crate) mod recovery;
pub(crate) mod replay;
pub(crate) mod ring;
pub(crate) mod scan;
pub(crate) mod writer;
