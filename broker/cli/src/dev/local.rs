//! The supervisor's cluster: started, watched and stopped as a whole by `dev up` and `demo`. Each node is a real process;
//! one that ends is reported and left to the user, who may be testing just that.

use std::process::ExitStatus;

use anyhow::{Context, bail};
use rustix::process::Signal;
use tokio::task::JoinSet;

use super::{
    cluster_file::{ClusterFile, Lock, NodeEntry},
    layout::{Layout, Ports},
    process::{self, Process},
    ready,
};

/// What to start.
pub(crate) struct Options {
    pub(crate) nodes: u16,
    pub(crate) ports: Ports,
    /// Whether the folder is removed at the end; only noted here, for `dev down`.
    pub(crate) ephemeral: bool,
}

/// A node's process that ended.
pub(crate) struct Ended {
    pub(crate) node: u64,
    pub(crate) status: ExitStatus,
}

/// A running local cluster. Dropping it leaves the nodes running; [`LocalCluster::stop`] stops them.
pub(crate) struct LocalCluster {
    layout: Layout,
    file: ClusterFile,
    children: JoinSet<std::io::Result<Ended>>,
    _up: Lock,
}

impl LocalCluster {
    /// Takes the folder for us; fails if another `dev up` has it or nodes of an earlier one still run.
    pub(crate) fn claim(layout: &Layout) -> anyhow::Result<Claim> {
        let dir = layout.dir().display();
        std::fs::create_dir_all(layout.dir()).with_context(|| format!("can't make the folder {dir}"))?;
        let Some(lock) = Lock::try_now(&layout.up_lock())? else {
            bail!("a cluster runs in {dir} already: stop it with {}, or use another --dir", layout.hint("down"));
        };
        let earlier = ClusterFile::find(layout)?;
        for node in earlier.iter().flat_map(|file| &file.nodes) {
            if Process::of_node(layout, node.id, node.pid).is_some() {
                bail!("node {} of an earlier run is still running: stop it with {}", node.id, layout.hint("down"));
            }
        }
        Ok(Claim { layout: layout.clone(), lock, earlier })
    }

    /// The nodes.
    pub(crate) fn file(&self) -> &ClusterFile {
        &self.file
    }

    /// Waits until the cluster is formed; fails, with what the node printed, when one ends before.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        loop {
            let Self { layout, file, children, .. } = self;
            let Ended { node, status } = tokio::select! {
                formed = ready::cluster_formed(file) => return formed,
                Some(ended) = children.join_next() => ended.context("can't watch a node")?.context("can't await a node")?,
            };
            let (log, tail) = (layout.node_log(node), process::log_tail(layout, node));
            if !self.forget_if_removed(node).await? {
                bail!("node {node} ended ({status}) before the cluster was ready; the end of {}:{tail}", log.display());
            }
            crate::output::diagnose(format_args!("node {node} was removed from the cluster: going on without it"));
        }
    }

    /// Notes that a node which has ended is no part of the cluster any more, if that is why; false if it is one.
    pub(crate) async fn forget_if_removed(&mut self, node: u64) -> anyhow::Result<bool> {
        if !ready::was_removed(&self.file, node).await {
            return Ok(false);
        }
        ClusterFile::set_removed(&self.layout, node)?;
        self.file = ClusterFile::load(&self.layout)?;
        Ok(true)
    }

    /// The next node whose process ends; never, when all of ours have. Cancel safe.
    pub(crate) async fn next_ended(&mut self) -> anyhow::Result<Ended> {
        match self.children.join_next().await {
            Some(ended) => Ok(ended.context("can't watch a node")?.context("can't await a node")?),
            None => std::future::pending().await,
        }
    }

    /// Stops every node of the cluster, also those that `dev start` started, and waits until they are gone.
    pub(crate) async fn stop(&mut self, signal: Signal) -> anyhow::Result<()> {
        stop_nodes(&self.layout, signal).await?;
        // Reap ours; all are gone.
        while self.children.join_next().await.is_some() {}
        Ok(())
    }
}

/// A folder that is ours, before anything is started in it.
pub(crate) struct Claim {
    layout: Layout,
    lock: Lock,
    earlier: Option<ClusterFile>,
}

impl Claim {
    /// Ports and number of nodes of the cluster that was in this folder before.
    pub(crate) fn earlier(&self) -> anyhow::Result<Option<(Ports, u16)>> {
        let Some(file) = &self.earlier else { return Ok(None) };
        Ok(Some((Ports::from_base(file.base_port)?, u16::try_from(file.nodes.len())?)))
    }

    /// Starts the nodes; they run, but need not answer yet. On failure those started are killed.
    pub(crate) async fn start(self, options: Options) -> anyhow::Result<LocalCluster> {
        let Self { layout, lock, earlier } = self;
        let Options { nodes, ports, ephemeral } = options;
        ports.check_free(nodes)?;
        layout.write_configs(ports, nodes)?;
        let mut file = ClusterFile::new(&layout, ports, nodes, ephemeral);
        let removed = |id| earlier.iter().flat_map(|file| &file.nodes).any(|node| node.id == id && node.removed);
        file.nodes.iter_mut().for_each(|node| node.removed = removed(node.id));
        file.store(&layout)?;
        let mut children = JoinSet::new();
        let started = start_all(&layout, &mut file.nodes, &mut children);
        file.store(&layout)?;
        if let Err(error) = started {
            stop_nodes(&layout, Signal::KILL).await?;
            return Err(error);
        }
        Ok(LocalCluster { layout, file, children, _up: lock })
    }
}

fn start_all(
    layout: &Layout,
    nodes: &mut [NodeEntry],
    children: &mut JoinSet<std::io::Result<Ended>>,
) -> anyhow::Result<()> {
    for entry in nodes.iter_mut().filter(|entry| !entry.removed) {
        let mut child = process::spawn_node(layout, entry.id)?;
        entry.pid = child.id();
        let node = entry.id;
        children.spawn(async move { child.wait().await.map(|status| Ended { node, status }) });
    }
    Ok(())
}

/// Stops every running node that `cluster.json` names, all at once, and waits until they are gone.
pub(super) async fn stop_nodes(layout: &Layout, signal: Signal) -> anyhow::Result<()> {
    let file = ClusterFile::load(layout)?;
    let running = file.nodes.iter().filter_map(|node| Some((node.id, Process::of_node(layout, node.id, node.pid)?)));
    let stopped = running.map(|(id, process)| async move {
        process.end(signal).await?;
        ClusterFile::set_pid(layout, id, None)
    });
    futures::future::try_join_all(stopped).await?;
    Ok(())
}
