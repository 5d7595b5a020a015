//! A cluster of real processes on the loopback interface, each with its own data folder in one temporary folder. Small
//! journals, so that many clusters fit on a small disk; all else is configured as by default.
//!
//! A test ends with [`ProcessCluster::finish`]. A cluster dropped before that belongs to a failed test: the nodes' logs
//! are printed, and with `BUSBAR_TESTS_KEEP=1` the folder stays.

use std::{collections::BTreeMap, process::ExitStatus, time::Duration};

use anyhow::{Context, bail, ensure};
use busbar_client::Client;
use busbar_proto::v1;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    node::{ServerNode, free_addresses},
    wait::eventually,
};

/// Until all nodes know each other.
const FORM_LIMIT: Duration = Duration::from_secs(60);
/// Until a partition has a leader.
const LEADER_LIMIT: Duration = Duration::from_secs(30);
/// What a panic of any of a node's tasks leaves in its log.
const PANIC_MARK: &str = "panicked at";

/// The nodes of a cluster, running or not.
#[derive(Debug)]
pub struct ProcessCluster {
    folder: Option<TempDir>,
    nodes: Vec<ServerNode>,
    settings: BTreeMap<String, String>,
    finished: bool,
}

impl ProcessCluster {
    /// `count` nodes with the ids 1 to `count`, formed into a cluster.
    ///
    /// # Errors
    /// A node does not start, or they don't find each other.
    pub async fn start(count: u64) -> anyhow::Result<Self> {
        Self::start_with(count, &[]).await
    }

    /// The same, with keys set on every node: `("log.segment_bytes", "1MiB")`. Values are TOML strings.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(count: u64, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("busbar-test-").tempdir()?;
        let defaults = [
            ("cluster.name", "test"),
            ("log.journal_file_bytes", "16MiB"),
            ("log.journal_files_max", "4"),
            ("log.tail_cache_bytes", "16MiB"),
            ("log.reserve_disk_bytes", "64MiB"),
        ];
        let settings = defaults.iter().chain(settings).map(|&(key, value)| (key.to_owned(), value.to_owned()));
        let mut cluster = Self { folder: None, nodes: Vec::new(), settings: settings.collect(), finished: false };
        for id in 1..=count {
            let addresses = free_addresses()?;
            cluster.nodes.push(ServerNode::new(id, folder.path().join(format!("node-{id}")), addresses)?);
        }
        cluster.folder = Some(folder);
        let first: Vec<String> = cluster.nodes.iter().map(initial_node).collect();
        for node in &cluster.nodes {
            let founders = if count > 1 { first.concat() } else { String::new() };
            node.configure(&cluster.config_of(node, true, &founders))?;
        }
        for node in &mut cluster.nodes {
            node.spawn()?;
        }
        for node in &mut cluster.nodes {
            node.ready().await?;
        }
        cluster.formed().await?;
        Ok(cluster)
    }

    /// A node that joins the running cluster; its id.
    ///
    /// # Errors
    /// It is not taken in.
    pub async fn add_node(&mut self) -> anyhow::Result<u64> {
        let running = self.nodes.iter().filter(|node| node.is_running());
        let peers: Vec<String> = running.map(|node| format!("{:?}", node.peer_address)).collect();
        let folder = self.folder.as_ref().context("the cluster has no folder")?;
        let place = folder.path().join(format!("joiner-{}", self.nodes.len() + 1));
        let mut node = ServerNode::new(0, place, free_addresses()?)?;
        let text = self.config_of(&node, false, "");
        node.configure(&text.replace("[cluster]\n", &format!("[cluster]\njoin = [{}]\n", peers.join(", "))))?;
        node.spawn()?;
        node.ready().await?;
        let id = node.id;
        ensure!(self.nodes.iter().all(|known| known.id != id), "node id {id} was given out twice");
        self.nodes.push(node);
        self.formed().await?;
        Ok(id)
    }

    /// A client that knows every node's address.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.servers()).await?)
    }

    /// The addresses of all nodes, comma-separated.
    pub fn servers(&self) -> String {
        self.nodes.iter().map(|node| node.address.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The nodes' ids.
    pub fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// A node.
    ///
    /// # Errors
    /// There is none of that id.
    pub fn node(&self, id: u64) -> anyhow::Result<&ServerNode> {
        self.nodes.iter().find(|node| node.id == id).with_context(|| format!("there is no node {id}"))
    }

    fn node_mut(&mut self, id: u64) -> anyhow::Result<&mut ServerNode> {
        self.nodes.iter_mut().find(|node| node.id == id).with_context(|| format!("there is no node {id}"))
    }

    /// Kills a node as a crash would: SIGKILL, and gone on return.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill(&mut self, id: u64) -> anyhow::Result<()> {
        let node = self.node_mut(id)?;
        node.signal(Signal::KILL)?;
        node.wait().await.map(drop)
    }

    /// Kills all running nodes in the same moment.
    ///
    /// # Errors
    /// None runs.
    pub async fn kill_all(&mut self) -> anyhow::Result<()> {
        let running = || self.nodes.iter().filter(|node| node.is_running());
        running().try_for_each(|node| node.signal(Signal::KILL))?;
        for node in self.nodes.iter_mut().filter(|node| node.is_running()) {
            node.wait().await?;
        }
        Ok(())
    }

    /// Asks a node to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub async fn stop(&mut self, id: u64) -> anyhow::Result<ExitStatus> {
        let node = self.node_mut(id)?;
        node.signal(Signal::TERM)?;
        node.wait().await
    }

    /// Starts a node that was stopped or killed, and waits until it is ready.
    ///
    /// # Errors
    /// It runs, or does not get ready.
    pub async fn restart(&mut self, id: u64) -> anyhow::Result<()> {
        let node = self.node_mut(id)?;
        node.spawn()?;
        node.ready().await
    }

    /// Starts a node that must not run: waits until it has ended by itself. How it ended, and the end of its log.
    ///
    /// # Errors
    /// It runs already, or goes on running.
    pub async fn restart_in_vain(&mut self, id: u64) -> anyhow::Result<(ExitStatus, String)> {
        self.node_mut(id)?.spawn()?;
        self.ends(id).await
    }

    /// Waits until a node has ended by itself. How it ended, and the end of its log.
    ///
    /// # Errors
    /// It does not run, or goes on running.
    pub async fn ends(&mut self, id: u64) -> anyhow::Result<(ExitStatus, String)> {
        let node = self.node_mut(id)?;
        let status = node.wait().await?;
        Ok((status, node.log_tail()))
    }

    /// Starts all nodes that don't run, together: none may be ready before a majority of them is there.
    ///
    /// # Errors
    /// One does not get ready.
    pub async fn restart_all(&mut self) -> anyhow::Result<()> {
        self.restart_together(&self.ids()).await
    }

    /// Starts those of these nodes that don't run, together.
    ///
    /// # Errors
    /// One does not get ready.
    pub async fn restart_together(&mut self, ids: &[u64]) -> anyhow::Result<()> {
        let mut started = Vec::new();
        for node in self.nodes.iter_mut().filter(|node| !node.is_running() && ids.contains(&node.id)) {
            node.spawn()?;
            started.push(node);
        }
        for node in started {
            node.ready().await?;
        }
        self.formed().await
    }

    /// Freezes a node's process (SIGSTOP).
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self, id: u64) -> anyhow::Result<()> {
        self.node(id)?.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self, id: u64) -> anyhow::Result<()> {
        self.node(id)?.signal(Signal::CONT)
    }

    /// The leader of a partition, once there is one.
    ///
    /// # Errors
    /// There is none in time.
    pub async fn leader_of(&self, client: &Client, topic: &str, partition: u32) -> anyhow::Result<u64> {
        let what = format!("{topic}/{partition} has a leader");
        eventually(LEADER_LIMIT, &what, || async {
            let state = partition_state(client, topic, partition).await?;
            ensure!(state.leader != 0, "it has none");
            Ok(state.leader)
        })
        .await
    }

    /// Waits until every replica of the topic is in sync and nothing moves. Under load something is always under way:
    /// the last entries may be missing.
    ///
    /// # Errors
    /// Not in time.
    pub async fn in_sync(&self, client: &Client, topic: &str) -> anyhow::Result<()> {
        self.reaches(client, topic, false).await
    }

    /// Waits until every replica of the topic has everything, which it can only without load.
    ///
    /// # Errors
    /// Not in time.
    pub async fn caught_up(&self, client: &Client, topic: &str) -> anyhow::Result<()> {
        self.reaches(client, topic, true).await
    }

    async fn reaches(&self, client: &Client, topic: &str, everything: bool) -> anyhow::Result<()> {
        eventually(FORM_LIMIT, &format!("all replicas of {topic} are in sync"), || async {
            for state in client.admin().describe_topic(topic).await?.partitions {
                let has_all = !everything || state.lag.iter().all(|lag| lag.entries == 0);
                let complete = state.leader != 0 && state.in_sync.len() == state.replicas.len();
                ensure!(has_all && complete && state.moving_to.is_empty(), "{state:?}");
            }
            Ok(())
        })
        .await
    }

    /// Waits until every running node answers and sees every other running one.
    async fn formed(&self) -> anyhow::Result<()> {
        let running: Vec<u64> = self.nodes.iter().filter(|node| node.is_running()).map(|node| node.id).collect();
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            eventually(FORM_LIMIT, &format!("node {} sees the cluster", node.id), || async {
                let state = Client::connect(node.address.clone()).await?.admin().describe_cluster().await?;
                ensure!(state.catalog_leader != 0, "the catalog has no leader");
                let answering = state.nodes.iter().filter(|node| node.answered);
                let seen: Vec<u64> = answering.filter_map(|state| Some(state.node.as_ref()?.id)).collect();
                let missing: Vec<_> = running.iter().filter(|id| !seen.contains(id)).collect();
                ensure!(missing.is_empty(), "it does not see {missing:?}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Ends a test that has passed: every node that runs stops in order, and none has ever panicked.
    ///
    /// # Errors
    /// A node did not stop in order, or its log tells of a panic.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        let running = || self.nodes.iter().filter(|node| node.is_running());
        running().try_for_each(|node| node.signal(Signal::TERM))?;
        for node in self.nodes.iter_mut().filter(|node| node.is_running()) {
            let status = node.wait().await?;
            ensure!(status.success(), "node {} ended with {status}", node.id);
        }
        for node in &self.nodes {
            if let Some(line) = node.log().lines().find(|line| line.contains(PANIC_MARK)) {
                bail!("node {} panicked: {line}", node.id);
            }
        }
        self.finished = true;
        Ok(())
    }

    fn config_of(&self, node: &ServerNode, with_id: bool, tail: &str) -> String {
        let mut sections: BTreeMap<&str, String> = BTreeMap::new();
        let mut set = |section, key: &str, value: String| {
            sections.entry(section).or_default().push_str(&format!("{key} = {value}\n"));
        };
        if with_id {
            set("node", "id", node.id.to_string());
        }
        set("node", "data_dir", format!("{:?}", node.data()));
        set("listen", "address", format!("{:?}", node.address));
        set("listen", "peer_address", format!("{:?}", node.peer_address));
        for (key, value) in &self.settings {
            let (section, key) = key.split_once('.').unwrap_or(("", key));
            let number_or_text = if value.parse::<u64>().is_ok() { value.clone() } else { format!("{value:?}") };
            set(section, key, number_or_text);
        }
        let text: Vec<String> = sections.iter().map(|(section, keys)| format!("[{section}]\n{keys}")).collect();
        format!("{}\n{tail}", text.join("\n"))
    }
}

impl Drop for ProcessCluster {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        for node in &self.nodes {
            eprintln!("---- node {} at {} ----\n{}", node.id, node.address, node.log_tail());
        }
        if std::env::var_os("BUSBAR_TESTS_KEEP").is_some()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("the nodes' folders stay in {}", folder.keep().display());
        }
    }
}

fn initial_node(node: &ServerNode) -> String {
    let ServerNode { id, address, peer_address, .. } = node;
    format!("[[cluster.initial_nodes]]\nid = {id}\naddress = {address:?}\npeer_address = {peer_address:?}\n\n")
}

/// The state of one partition.
///
/// # Errors
/// Nobody answers, or there is no such partition.
pub async fn partition_state(client: &Client, topic: &str, partition: u32) -> anyhow::Result<v1::PartitionState> {
    let described = client.admin().describe_topic(topic).await?;
    let found = described.partitions.into_iter().find(|state| state.partition == partition);
    found.with_context(|| format!("{topic} has no partition {partition}"))
}
