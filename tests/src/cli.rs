//! Running the `busbar` command as a user would: arguments and stdin in, exit code and texts out.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
};

use crate::{node::busbar, wait::within};

/// No command that ends by itself takes this long.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// What a command left behind.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed on stdout.
    pub stdout: String,
    /// What it printed on stderr.
    pub stderr: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// It must have exited with 0.
    ///
    /// # Errors
    /// It has not.
    pub fn success(self) -> anyhow::Result<Self> {
        ensure!(self.code == Some(0), "the command failed: {self:#?}");
        Ok(self)
    }

    /// Its stdout, one JSON document.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON: {self:#?}"))
    }

    /// Its stdout, one JSON document a line.
    ///
    /// # Errors
    /// A line is none.
    pub fn json_lines(&self) -> anyhow::Result<Vec<Value>> {
        self.stdout.lines().map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))).collect()
    }
}

/// The command with these arguments, in a clean environment; not started yet.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(busbar());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BUSBAR_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs the command to its end.
///
/// # Errors
/// It can't be run, or does not end.
pub async fn run(arguments: &[&str]) -> anyhow::Result<Ran> {
    end_of(command(arguments).spawn()?, &arguments.join(" ")).await
}

/// Runs the command with `input` on its stdin.
///
/// # Errors
/// As [`run`].
pub async fn run_with_input(arguments: &[&str], input: &str) -> anyhow::Result<Ran> {
    let mut child = command(arguments).stdin(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let input = input.to_owned();
    let writing = tokio::spawn(async move { stdin.write_all(input.as_bytes()).await });
    let ran = end_of(child, &arguments.join(" ")).await?;
    // A command that ended without reading everything is judged by its exit code.
    drop(writing.await?);
    Ok(ran)
}

/// Waits for the end of a started command.
///
/// # Errors
/// It does not end.
pub async fn end_of(child: Child, name: &str) -> anyhow::Result<Ran> {
    within(COMMAND_LIMIT, &format!("busbar {name}"), async { Ok(Ran::new(child.wait_with_output().await?)) }).await
}
