//! Which processes and disks of this machine are the cluster's. Owns finding them; reading their counters is the
//! `gauge`'s.
//!
//! Never: watch a process on the word of a pid alone. A cluster's file may be old and the pid another's by now.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use super::options::Options;

/// What a broker's process is called.
const PROCESS_NAME: &str = "busbar";

/// The brokers on this machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Brokers {
    /// Their processes.
    pub(super) pids: Vec<u32>,
    /// Their data folders; empty when they were not told.
    pub(super) data: Vec<PathBuf>,
    /// The disks below those folders.
    pub(super) disks: Vec<Disk>,
    /// Their client addresses, if the cluster's folder tells them.
    pub(super) servers: Option<String>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Disk {
    /// Its name: `vda`.
    pub(super) name: String,
    /// Its counters.
    pub(super) stat: PathBuf,
    /// Whether it has a cache that needs flushing: `write back`; with `write through` it never sees a flush.
    pub(super) cache: Option<String>,
}

/// Of `cluster.json`, what is needed here.
#[derive(Deserialize)]
struct ClusterFile {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    pid: Option<u32>,
    address: String,
    data: PathBuf,
    #[serde(default)]
    removed: bool,
}

impl Brokers {
    /// Those that the options name; `None` when they name none: a cluster elsewhere.
    ///
    /// # Errors
    /// When the folder holds no running cluster, or a process is not there.
    pub(super) fn find(options: &Options) -> anyhow::Result<Option<Self>> {
        let mut brokers = match &options.dir {
            Some(dir) => Self::of_cluster(dir)?,
            None if options.pids.is_empty() => return Ok(None),
            None => Self { pids: options.pids.clone(), data: options.data.clone(), ..Self::default() },
        };
        for pid in &brokers.pids {
            ensure!(Path::new(&format!("/proc/{pid}/stat")).exists(), "no process {pid} to watch on this machine");
        }
        let disks: BTreeSet<Disk> = brokers.data.iter().filter_map(|folder| disk_of(folder)).collect();
        brokers.disks = disks.into_iter().collect();
        Ok(Some(brokers))
    }

    fn of_cluster(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("cluster.json");
        let text = fs::read_to_string(&path).with_context(|| {
            format!("read {}: name the folder of a cluster that `busbar dev up --dir` has started", path.display())
        })?;
        let brokers = Self::from_cluster_file(&text).with_context(|| format!("read {}", path.display()))?;
        ensure!(!brokers.pids.is_empty(), "no broker of {} runs: start them with `busbar dev up`", dir.display());
        for pid in &brokers.pids {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            ensure!(name.trim() == PROCESS_NAME, "{}: process {pid} is no broker any more", path.display());
        }
        Ok(brokers)
    }

    fn from_cluster_file(text: &str) -> serde_json::Result<Self> {
        let file: ClusterFile = serde_json::from_str(text)?;
        let running: Vec<Node> = file.nodes.into_iter().filter(|node| !node.removed && node.pid.is_some()).collect();
        let servers = running.iter().map(|node| node.address.as_str()).collect::<Vec<_>>().join(",");
        Ok(Self {
            pids: running.iter().filter_map(|node| node.pid).collect(),
            servers: Some(servers).filter(|servers| !servers.is_empty()),
            data: running.into_iter().map(|node| node.data).collect(),
            disks: Vec::new(),
        })
    }
}

/// The disk that a folder lies on; `None` where it is no block device (a memory file system, another machine's).
#[cfg(target_os = "linux")]
fn disk_of(folder: &Path) -> Option<Disk> {
    use std::os::linux::fs::MetadataExt as _;
    // A data folder that is about to be made lies where its parent does.
    let device = folder.ancestors().find_map(|folder| fs::metadata(folder).ok())?.st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let entry = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    // Flushes are counted for the whole disk only.
    let disk = if entry.join("partition").exists() { entry.parent()?.to_path_buf() } else { entry };
    let cache = fs::read_to_string(disk.join("queue/write_cache")).ok().map(|text| text.trim().to_owned());
    Some(Disk { name: disk.file_name()?.to_string_lossy().into_owned(), stat: disk.join("stat"), cache })
}

#[cfg(not(target_os = "linux"))]
fn disk_of(_: &Path) -> Option<Disk> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_file_names_the_running_nodes() {
        let node = |id: u32, pid: &str, more: &str| {
            format!(
                r#"{{"id":{id},"pid":{pid},"address":"127.0.0.1:740{id}","peer_address":"-","data":"/d/node-{id}/data"{more}}}"#
            )
        };
        let nodes = [node(1, "11", ""), node(2, "null", ""), node(3, "33", ""), node(4, "44", r#","removed":true"#)];
        let text = format!(r#"{{"nodes":[{}],"supervisor":9,"base_port":7400,"ephemeral":false}}"#, nodes.join(","));
        let brokers = Brokers::from_cluster_file(&text).expect("valid");
        assert_eq!(brokers.pids, [11, 33]);
        assert_eq!(brokers.servers.as_deref(), Some("127.0.0.1:7401,127.0.0.1:7403"));
        assert_eq!(brokers.data, [Path::new("/d/node-1/data"), Path::new("/d/node-3/data")]);
    }

    #[test]
    fn a_damaged_cluster_file_is_an_error() {
        for text in ["", "{", "{}", r#"{"nodes":[{"id":1}]}"#, r#"{"nodes":[{"pid":-1,"address":"a","data":"d"}]}"#] {
            assert!(Brokers::from_cluster_file(text).is_err(), "{text}");
        }
        let none = Brokers::from_cluster_file(r#"{"nodes":[]}"#).expect("valid");
        assert!(none.pids.is_empty() && none.servers.is_none());
    }
}
