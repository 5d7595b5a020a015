//! The simulated disk's content, and the changes that make it. Knows nothing of what is durable.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use bytes::Bytes;

pub(super) type Inode = u64;

/// One recorded change.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Create(PathBuf, Inode),
    Write(Inode, u64, Bytes),
    SetLen(Inode, u64),
    Sync(Inode),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    MakeDir(PathBuf),
    RemoveDir(PathBuf),
    SyncDir(PathBuf),
    SyncAll,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    pub(super) names: BTreeMap<PathBuf, Inode>,
    pub(super) dirs: BTreeSet<PathBuf>,
    pub(super) files: HashMap<Inode, Vec<u8>>,
}

impl Disk {
    pub(super) fn write(&mut self, inode: Inode, pos: u64, bytes: &[u8]) {
        let file = self.files.entry(inode).or_default();
        let end = pos as usize + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[pos as usize..end].copy_from_slice(bytes);
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Create(path, inode) => {
                self.names.insert(path.clone(), *inode);
                self.files.entry(*inode).or_default();
            }
            Change::Write(inode, pos, bytes) => self.write(*inode, *pos, bytes),
            Change::SetLen(inode, len) => self.files.entry(*inode).or_default().resize(*len as usize, 0),
            Change::Rename(from, to) => {
                if let Some(inode) = self.names.remove(from) {
                    self.names.insert(to.clone(), inode);
                }
            }
            Change::Remove(path) => drop(self.names.remove(path)),
            Change::MakeDir(path) => drop(self.dirs.insert(path.clone())),
            Change::RemoveDir(path) => drop(self.dirs.remove(path)),
            Change::Sync(_) | Change::SyncDir(_) | Change::SyncAll => {}
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.names.values().filter_map(|inode| self.files.get(inode)).map(|file| file.len() as u64).sum()
    }
}
