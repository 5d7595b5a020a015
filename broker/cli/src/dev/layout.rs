//! Where things are in a local cluster's folder, which ports its nodes use, and their configuration files.
//!
//! ```text
//! DIR/cluster.json       nodes and their processes         DIR/up.lock       held while `dev up` runs
//! DIR/node-1/node.toml   configuration                     DIR/cluster.lock  held while cluster.json changes
//! DIR/node-1/data/       data folder
//! DIR/node-1/log.txt     what the process printed
//! ```

use std::{
    fs, io,
    net::TcpListener,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

/// First client port unless told otherwise; node N gets the N-th.
pub(crate) const BASE_PORT_DEFAULT: u16 = 7400;
/// From a node's client port to its peer port.
const PEER_PORT_OFFSET: u16 = 100;
/// Nodes of a local cluster.
pub(super) const NODES_MAX: u16 = 32;
const _: () = assert!(NODES_MAX < PEER_PORT_OFFSET, "client and peer ports would overlap");
/// Name of the cluster; each folder's data folders are tied together by more than it.
const CLUSTER_NAME: &str = "dev";

/// A local cluster's folder.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout of `dir`, which need not exist; relative to where we are now.
    pub(crate) fn at(dir: &Path) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir).with_context(|| format!("{} is no folder name", dir.display()))?;
        Ok(Self { dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command to type that means this cluster: "`busbar dev start 2 --dir DIR`".
    pub(super) fn hint(&self, command: &str) -> String {
        match std::path::absolute(super::DIR_DEFAULT) {
            Ok(default) if default == self.dir => format!("`busbar dev {command}`"),
            _ => format!("`busbar dev {command} --dir {}`", self.dir.display()),
        }
    }

    pub(super) fn cluster_file(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    pub(super) fn cluster_lock(&self) -> PathBuf {
        self.dir.join("cluster.lock")
    }

    pub(super) fn up_lock(&self) -> PathBuf {
        self.dir.join("up.lock")
    }

    fn node_dir(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node-{id}"))
    }

    pub(super) fn node_config(&self, id: u64) -> PathBuf {
        self.node_dir(id).join("node.toml")
    }

    pub(super) fn node_data(&self, id: u64) -> PathBuf {
        self.node_dir(id).join("data")
    }

    pub(super) fn node_log(&self, id: u64) -> PathBuf {
        self.node_dir(id).join("log.txt")
    }

    /// Writes the configuration files of a cluster of `count` nodes and makes their folders.
    pub(super) fn write_configs(&self, ports: Ports, count: u16) -> anyhow::Result<()> {
        for id in 1..=u64::from(count) {
            let dir = self.node_dir(id);
            fs::create_dir_all(&dir).with_context(|| format!("can't make the folder {}", dir.display()))?;
            let path = self.node_config(id);
            fs::write(&path, self.config_text(id, ports, count))
                .with_context(|| format!("can't write {}", path.display()))?;
        }
        Ok(())
    }

    fn config_text(&self, id: u64, ports: Ports, count: u16) -> String {
        // A path may hold quotes and backslashes: TOML's own writer knows how to escape them.
        let data = toml::Value::String(self.node_data(id).display().to_string());
        let (address, peer) = (ports.address(id), ports.peer_address(id));
        let mut text = format!(
            "# Written by `busbar dev up`.\n[node]\nid = {id}\ndata_dir = {data}\n\n\
             [listen]\naddress = \"{address}\"\npeer_address = \"{peer}\"\n\n[cluster]\nname = \"{CLUSTER_NAME}\"\n"
        );
        for id in 1..=u64::from(count) {
            let (address, peer) = (ports.address(id), ports.peer_address(id));
            text.push_str(&format!(
                "\n[[cluster.initial_nodes]]\nid = {id}\naddress = \"{address}\"\npeer_address = \"{peer}\"\n"
            ));
        }
        text
    }
}

/// The ports of a local cluster: clients from the base on, peers 100 above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    base: u16,
}

impl Ports {
    pub(crate) fn from_base(base: u16) -> anyhow::Result<Self> {
        match base.checked_add(PEER_PORT_OFFSET + NODES_MAX) {
            Some(_) if base > 0 => Ok(Self { base }),
            _ => bail!(
                "base port {base} leaves no room for the nodes' ports: use 1 to {}",
                u16::MAX - PEER_PORT_OFFSET - NODES_MAX
            ),
        }
    }

    /// The first ports from `base` on that `count` nodes can listen on.
    pub(crate) fn first_free(base: u16, count: u16) -> anyhow::Result<Self> {
        let mut next = base;
        loop {
            let ports = Self::from_base(next).context("no free ports for a local cluster")?;
            if ports.check_free(count).is_ok() {
                return Ok(ports);
            }
            next += NODES_MAX;
        }
    }

    pub(super) fn base(self) -> u16 {
        self.base
    }

    pub(super) fn address(self, id: u64) -> String {
        format!("127.0.0.1:{}", self.client_port(id))
    }

    pub(super) fn peer_address(self, id: u64) -> String {
        format!("127.0.0.1:{}", self.client_port(id) + PEER_PORT_OFFSET)
    }

    fn client_port(self, id: u64) -> u16 {
        assert!((1..=u64::from(NODES_MAX)).contains(&id), "a local cluster has nodes 1 to {NODES_MAX}");
        self.base + (id as u16 - 1)
    }

    /// Fails, naming the port and the way out, if a node could not listen.
    pub(super) fn check_free(self, count: u16) -> anyhow::Result<()> {
        for id in 1..=u64::from(count) {
            for address in [self.address(id), self.peer_address(id)] {
                match TcpListener::bind(&address) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => bail!(
                        "{address}, which node {id} needs, is in use: stop what listens there (another `busbar dev up`? \
                         then `busbar dev down` in its folder), or choose other ports with --base-port"
                    ),
                    Err(error) => {
                        return Err(error).with_context(|| {
                            format!("node {id} can't listen on {address}: choose other ports with --base-port")
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use busbar_broker::config::Config;

    use super::*;

    #[test]
    fn the_written_configuration_is_valid() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(&dir.path().join("a \"quoted\" folder")).unwrap();
        let ports = Ports::from_base(17_400).unwrap();
        layout.write_configs(ports, 3).unwrap();
        for id in 1..=3 {
            let config = Config::load(Some(&layout.node_config(id)), std::iter::empty(), &[]).unwrap();
            assert_eq!(config.node.id, Some(id));
            assert_eq!(config.node.data_dir, layout.node_data(id));
            assert_eq!(config.listen.address.to_string(), ports.address(id));
            assert_eq!(config.cluster.initial_nodes.len(), 3);
        }
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let Ok(ports) = Ports::from_base(port) else { return };
        let error = ports.check_free(1).unwrap_err().to_string();
        assert!(error.contains(&format!("127.0.0.1:{port}, which node 1 needs, is in use")), "{error}");
    }

    #[test]
    fn ports_stay_in_range() {
        assert!(Ports::from_base(0).is_err() && Ports::from_base(65_500).is_err());
        assert_eq!(Ports::from_base(7400).unwrap().peer_address(3), "127.0.0.1:7502");
    }
}
