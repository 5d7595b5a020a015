//! The node-wide journal: the recent log of all groups, in a ring of recycled files, made durable by one sync for
//! everything that waits.
//!
//! `writer` turns queued operations into frames and syncs, into the `active` file; `ring` says which file is next;
//! `header` is what a file begins with; `direct` writes small batches past the page cache; `scan` walks frames;
//! `recovery` rebuilds everything from what the files hold.

pub(crate) mod active;
pub(crate) mod batch;
pub(crate) mod direct;
pub(crate) mod header;
pub(crate) mod recovery;
pub(crate) mod replay;
pub(crate) mod ring;
pub(crate) mod scan;
pub(crate) mod writer;
