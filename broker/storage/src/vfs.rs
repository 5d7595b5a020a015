//! The seam to the disk: everything the engine does to files goes through [`Vfs`] and [`VfsFile`].
//!
//! The contract is POSIX at its least helpful: a write is durable only after `sync_data` returned, a created, renamed
//! or removed name only after `sync_dir` of its folder. [`real::RealVfs`] maps it to the operating system,
//! [`crate::sim::SimVfs`] keeps it in memory and can lose exactly what the contract allows to be lost.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

pub mod real;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It must exist.
    Existing,
    /// Created when missing, emptied when not.
    Fresh,
}

/// Held as long as the folder must not be opened by anyone else; released when dropped.
pub trait VfsLock: Send + Sync {}

/// A file system.
pub trait Vfs: Send + Sync + std::fmt::Debug {
    /// Opens a file for reading and writing.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn VfsFile>>;
    /// Opens an existing file so that writes bypass the page cache and, if `durable`, are durable when they return.
    /// `None` where that is not possible.
    fn open_direct(&self, path: &Path, durable: bool) -> Option<Arc<dyn VfsFile>>;
    /// Creates a folder and its parents; existing ones are fine.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Names in a folder, in no particular order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Length of a file in bytes, without opening it.
    fn file_len(&self, path: &Path) -> io::Result<u64>;
    /// Renames a file, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Open handles stay usable.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes created, renamed and removed names of a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes everything on the file system of `dir` durable, content and names, in one go: cheaper than syncing many
    /// files one by one.
    fn sync_all(&self, dir: &Path) -> io::Result<()>;
    /// Bytes an unprivileged process can still write on the file system of `dir`.
    fn available_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// Takes an exclusive lock on a lock file, creating it; `None` when someone else holds it.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>>;
}

/// An open file. All positions are absolute; handles carry no cursor and may be shared between threads.
pub trait VfsFile: Send + Sync + std::fmt::Debug {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize>;
    /// Writes all buffers, one after the other, at `pos`.
    fn write_at(&self, bufs: &[IoSlice<'_>], pos: u64) -> io::Result<()>;
    /// Makes the content durable (not the name).
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts or extends with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// True when the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Reads `len` bytes at `pos`; fewer only at the end of the file.
pub(crate) fn read_vec(file: &dyn VfsFile, pos: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; len];
    let got = file.read_at(&mut buf, pos)?;
    buf.truncate(got);
    Ok(buf)
}
