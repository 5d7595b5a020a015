//! `cluster.json`: which nodes a local cluster has and which process each is. Several commands change it at once, so
//! each change reads, modifies and replaces the file under a lock; readers see a whole file, old or new.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::layout::{Layout, Ports};

/// A local cluster, as `cluster.json` holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterFile {
    pub(crate) nodes: Vec<NodeEntry>,
    /// Process of the last `dev up`; whether it still runs is what `up.lock` tells.
    pub(super) supervisor: u32,
    pub(super) base_port: u16,
    /// Whether the folder goes away with the cluster.
    pub(super) ephemeral: bool,
}

/// One node of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeEntry {
    pub(crate) id: u64,
    /// Its process; `null` once it was stopped.
    pub(crate) pid: Option<u32>,
    pub(crate) address: String,
    pub(crate) peer_address: String,
    pub(crate) data: PathBuf,
    /// Whether the cluster has removed it for good: it is not started any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) removed: bool,
}

impl ClusterFile {
    /// A cluster of `count` nodes, none of them running yet.
    pub(super) fn new(layout: &Layout, ports: Ports, count: u16, ephemeral: bool) -> Self {
        let entry = |id| NodeEntry {
            id,
            pid: None,
            address: ports.address(id),
            peer_address: ports.peer_address(id),
            data: layout.node_data(id),
            removed: false,
        };
        let nodes = (1..=u64::from(count)).map(entry).collect();
        Self { nodes, supervisor: std::process::id(), base_port: ports.base(), ephemeral }
    }

    /// The cluster in this folder; `None` if there never was one.
    pub(super) fn find(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let path = layout.cluster_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
        };
        let file = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged: remove it and run `busbar dev up` again", path.display()))?;
        Ok(Some(file))
    }

    /// The cluster in this folder.
    pub(super) fn load(layout: &Layout) -> anyhow::Result<Self> {
        match Self::find(layout)? {
            Some(file) => Ok(file),
            None => bail!(
                "there is no local cluster in {}: start one with `busbar dev up`, or name its folder with --dir",
                layout.dir().display()
            ),
        }
    }

    /// Writes it, replacing what was there.
    pub(super) fn store(&self, layout: &Layout) -> anyhow::Result<()> {
        let _lock = Lock::wait(&layout.cluster_lock())?;
        self.replace(layout)
    }

    /// Notes which process a node is, or that it is none.
    pub(super) fn set_pid(layout: &Layout, id: u64, pid: Option<u32>) -> anyhow::Result<()> {
        let _lock = Lock::wait(&layout.cluster_lock())?;
        let mut file = Self::load(layout)?;
        for node in file.nodes.iter_mut().filter(|node| node.id == id) {
            node.pid = pid;
        }
        file.replace(layout)
    }

    /// Notes that the cluster has removed a node.
    pub(super) fn set_removed(layout: &Layout, id: u64) -> anyhow::Result<()> {
        let _lock = Lock::wait(&layout.cluster_lock())?;
        let mut file = Self::load(layout)?;
        for node in file.nodes.iter_mut().filter(|node| node.id == id) {
            (node.pid, node.removed) = (None, true);
        }
        file.replace(layout)
    }

    /// The nodes that the cluster has not removed.
    pub(super) fn members(&self) -> impl Iterator<Item = &NodeEntry> {
        self.nodes.iter().filter(|node| !node.removed)
    }

    fn replace(&self, layout: &Layout) -> anyhow::Result<()> {
        let path = layout.cluster_file();
        let next = path.with_extension("json.next");
        let text = serde_json::to_string_pretty(self).context("can't write a cluster as JSON")?;
        fs::write(&next, text + "\n")
            .and_then(|()| fs::rename(&next, &path))
            .with_context(|| format!("can't write {}", path.display()))
    }

    /// The node with this id.
    pub(super) fn node(&self, id: u64) -> anyhow::Result<&NodeEntry> {
        self.nodes.iter().find(|node| node.id == id).with_context(|| {
            let known = self.nodes.iter().map(|node| node.id).collect::<Vec<_>>();
            format!("the cluster has no node {id}: its nodes are {}", crate::output::list(&known))
        })
    }

    /// Client addresses of all nodes, comma-separated, as `--server` takes them.
    pub(crate) fn servers(&self) -> String {
        self.members().map(|node| node.address.as_str()).collect::<Vec<_>>().join(",")
    }
}

/// An advisory lock on a file, held until dropped; the kernel drops it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock.
    pub(super) fn wait(path: &Path) -> anyhow::Result<Self> {
        let file = open(path)?;
        flock(&file, FlockOperation::LockExclusive).with_context(|| format!("can't lock {}", path.display()))?;
        Ok(Self { _file: file })
    }

    /// The lock, or `None` if another process holds it.
    pub(super) fn try_now(path: &Path) -> anyhow::Result<Option<Self>> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("can't lock {}", path.display())),
        }
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    // Children must not inherit the lock; Rust's files close on exec.
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("can't open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_many_threads_all_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path()).unwrap();
        let ports = Ports::from_base(7400).unwrap();
        ClusterFile::new(&layout, ports, 32, false).store(&layout).unwrap();
        std::thread::scope(|scope| {
            for id in 1..=32_u32 {
                let layout = &layout;
                scope.spawn(move || ClusterFile::set_pid(layout, u64::from(id), Some(1000 + id)).unwrap());
            }
        });
        let file = ClusterFile::load(&layout).unwrap();
        assert!(file.nodes.iter().all(|node| node.pid == Some(1000 + node.id as u32)), "{file:?}");
    }

    #[test]
    fn a_held_lock_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("up.lock");
        let held = Lock::try_now(&path).unwrap();
        assert!(held.is_some() && Lock::try_now(&path).unwrap().is_none());
        drop(held);
        assert!(Lock::try_now(&path).unwrap().is_some());
    }

    #[test]
    fn nothing_there_and_damage_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path()).unwrap();
        assert!(ClusterFile::load(&layout).unwrap_err().to_string().contains("busbar dev up"));
        fs::write(layout.cluster_file(), "{").unwrap();
        assert!(ClusterFile::load(&layout).unwrap_err().to_string().contains("is damaged"));
    }
}
