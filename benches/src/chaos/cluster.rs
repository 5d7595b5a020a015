//! A local cluster of real processes, through the `busbar` command that lies beside this tool. Owns nothing but the
//! process of `dev up`; stopping it stops the nodes.

use std::{
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

const READY_LIMIT: Duration = Duration::from_secs(90);
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// A running cluster in a temporary folder.
pub(super) struct LocalCluster {
    up: Child,
    ready: Ready,
}

/// What `dev up -o json` prints.
#[derive(Deserialize)]
struct Ready {
    dir: PathBuf,
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    address: String,
    pid: Option<u32>,
}

fn busbar() -> anyhow::Result<Command> {
    let own = std::env::current_exe().context("find this program's own file")?;
    let busbar = own.with_file_name("busbar");
    ensure!(busbar.exists(), "{} is missing: build both with `make build`", busbar.display());
    Ok(Command::new(busbar))
}

impl LocalCluster {
    /// Starts `nodes` nodes and waits until they have formed a cluster.
    pub(super) async fn start(nodes: u16, base_port: u16) -> anyhow::Result<Self> {
        let mut command = busbar()?;
        command.args(["dev", "up", "--ephemeral", "-o", "json", "-n", &nodes.to_string()]);
        command.args(["--base-port", &base_port.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut up = command.spawn().context("run `busbar dev up`")?;
        let stdout = up.stdout.take().context("`busbar dev up` has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(READY_LIMIT, lines.next_line()).await.context("the cluster does not get ready")??;
        let Some(line) = line else { bail!("`busbar dev up` ended before the cluster was ready") };
        let ready =
            serde_json::from_str(&line).with_context(|| format!("read what `busbar dev up` printed: {line}"))?;
        Ok(Self { up, ready })
    }

    /// The nodes' client addresses, comma-separated.
    pub(super) fn servers(&self) -> String {
        self.ready.nodes.iter().map(|node| node.address.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The nodes' processes, as they were started first.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.ready.nodes.iter().filter_map(|node| node.pid)
    }

    /// kill -9 of a node.
    pub(super) async fn kill(&self, node: u64) -> anyhow::Result<()> {
        self.dev(&["stop", &node.to_string(), "--kill"]).await
    }

    /// Starts a killed node and waits until it answers.
    pub(super) async fn restart(&self, node: u64) -> anyhow::Result<()> {
        self.dev(&["start", &node.to_string()]).await
    }

    /// Stops the nodes and removes the folder.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.dev(&["down"]).await?;
        let ended: ExitStatus =
            timeout(COMMAND_LIMIT, self.up.wait()).await.context("`busbar dev up` does not end")??;
        ensure!(ended.success(), "`busbar dev up` ended with {ended}");
        Ok(())
    }

    async fn dev(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = busbar()?;
        command.arg("dev").args(arguments).arg("--dir").arg(&self.ready.dir).kill_on_drop(true);
        let output = timeout(COMMAND_LIMIT, command.output()).await;
        let output = output.with_context(|| format!("`busbar dev {}` does not end", arguments.join(" ")))??;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`busbar dev {}`: {}", arguments.join(" "), errors.trim());
        Ok(())
    }
}
