//! `busbar dev status | stop | start | down`: what other terminals do to a local cluster, whether or not its `dev up`
//! still runs.

use std::process::ExitCode;

use anyhow::{Context, bail};
use rustix::process::Signal;
use serde::Serialize;

use super::{
    Layout,
    cluster_file::{ClusterFile, Lock, NodeEntry},
    local,
    process::{self, Process},
    ready,
};
use crate::output::{OutputArgs, Table};

/// The state of a node without a process.
const STOPPED: &str = "stopped";
/// The state of a node that the cluster has removed.
const REMOVED: &str = "removed";

#[derive(Serialize)]
struct Status {
    /// Process of the running `dev up`; `null` if none runs.
    supervisor: Option<u32>,
    nodes: Vec<NodeStatus>,
}

#[derive(Serialize)]
struct NodeStatus {
    #[serde(flatten)]
    entry: NodeEntry,
    /// `running`, `not answering`, `stopped` or `removed`.
    state: &'static str,
}

pub(super) async fn status(layout: &Layout, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let file = ClusterFile::load(layout)?;
    let supervisor = supervisor(layout, &file)?.map(|process| process.pid);
    let nodes = file.nodes.into_iter().map(|entry| async move {
        let state = match Process::of_node(layout, entry.id, entry.pid) {
            None if entry.removed => REMOVED,
            None => STOPPED,
            Some(_) if ready::answers(&entry).await => "running",
            Some(_) => "not answering",
        };
        NodeStatus { entry, state }
    });
    let nodes = futures::future::join_all(nodes).await;
    output.print(&Status { supervisor, nodes }, |status| {
        let mut table = Table::new(["node", "address", "pid", "state"]);
        for NodeStatus { entry, state } in &status.nodes {
            let pid = entry.pid.filter(|_| ![STOPPED, REMOVED].contains(state));
            let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            table.row([entry.id.to_string(), entry.address.clone(), pid, (*state).to_owned()]);
        }
        table.to_string()
    })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Changed<'a> {
    node: u64,
    pid: Option<u32>,
    state: &'a str,
}

pub(super) async fn stop(layout: &Layout, id: u64, kill: bool, output: OutputArgs) -> anyhow::Result<ExitCode> {
    stop_node(layout, id, if kill { Signal::KILL } else { Signal::TERM }).await?;
    let changed = Changed { node: id, pid: None, state: STOPPED };
    output.print(&changed, |_| format!("node {id} {}", if kill { "killed" } else { "stopped" }))?;
    Ok(ExitCode::SUCCESS)
}

/// Stops a node with this signal and waits until its process is gone.
pub(crate) async fn stop_node(layout: &Layout, id: u64, signal: Signal) -> anyhow::Result<()> {
    let file = ClusterFile::load(layout)?;
    let Some(process) = Process::of_node(layout, id, file.node(id)?.pid) else {
        bail!("node {id} is not running: start it with {}", layout.hint(&format!("start {id}")));
    };
    process.end(signal).await?;
    ClusterFile::set_pid(layout, id, None)
}

pub(super) async fn start(layout: &Layout, id: u64, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let pid = start_node(layout, id).await?;
    output.print(&Changed { node: id, pid: Some(pid), state: "running" }, |_| {
        format!("node {id} runs as process {pid}")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Starts a stopped node, detached from us, and waits until it answers; its pid.
pub(crate) async fn start_node(layout: &Layout, id: u64) -> anyhow::Result<u32> {
    let file = ClusterFile::load(layout)?;
    let node = file.node(id)?;
    if node.removed {
        bail!("node {id} was removed from the cluster: a node can't come back under its old id");
    }
    if let Some(process) = Process::of_node(layout, id, node.pid) {
        let stop = layout.hint(&format!("stop {id}"));
        bail!("node {id} runs already, as process {}: stop it with {stop}", process.pid);
    }
    let child = process::spawn_node(layout, id)?;
    ClusterFile::set_pid(layout, id, child.id())?;
    let process = process::just_started(id, child.id())?;
    tokio::select! {
        biased;
        ended = process::fail_when_gone(layout, id, &process) => match ended? {},
        answered = ready::node_answers(node) => answered?,
    }
    Ok(process.pid)
}

#[derive(Serialize)]
struct Down {
    stopped: bool,
}

pub(super) async fn down(layout: &Layout, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let file = ClusterFile::load(layout)?;
    if let Some(process) = supervisor(layout, &file)? {
        // It stops the nodes and, if the folder is temporary, removes it.
        process.signal(Signal::TERM)?;
        process.gone().await?;
    }
    // What a killed supervisor left.
    if layout.cluster_file().exists() {
        local::stop_nodes(layout, Signal::TERM).await?;
        if file.ephemeral {
            std::fs::remove_dir_all(layout.dir())
                .with_context(|| format!("can't remove {}", layout.dir().display()))?;
        }
    }
    output.print(&Down { stopped: true }, |_| "stopped".to_owned())?;
    Ok(ExitCode::SUCCESS)
}

/// The running `dev up` of this folder. Its lock proves that one runs; it may not have noted its own pid yet, so the
/// noted one is looked at too.
fn supervisor(layout: &Layout, file: &ClusterFile) -> anyhow::Result<Option<Process>> {
    match Lock::try_now(&layout.up_lock())? {
        Some(_free) => Ok(None),
        None => Ok(Process::of_busbar(file.supervisor)),
    }
}
