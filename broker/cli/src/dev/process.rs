//! A node's process: starting it, finding it again by its pid, signalling and awaiting it.
//!
//! A pid alone proves nothing: it may be reused. So a process is held by a pidfd, which names it for good, and taken for
//! a node only if its command line names that node's configuration file.

use std::{
    fs::{self, File},
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::layout::Layout;

/// How long a node may take to shut down in order.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a thread may watch for a process that nobody awaits any more.
const WATCH_TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Lines of a node's log that are shown when it does not start.
const LOG_LINES_SHOWN: usize = 12;

/// A process that is known to run, or to have run a moment ago.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// The process `pid`, if it runs and has `argument` on its command line.
    pub(super) fn find(pid: u32, argument: &str) -> Option<Self> {
        let found = Self::open(pid)?;
        // Read after the pidfd is open: what is read is of the process it names, or that one is gone.
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let named = line.split(|&byte| byte == 0).any(|part| part == argument.as_bytes());
        named.then_some(found)
    }

    /// The process that runs node `id`, if it runs.
    pub(super) fn of_node(layout: &Layout, id: u64, pid: Option<u32>) -> Option<Self> {
        Self::find(pid?, &layout.node_config(id).display().to_string())
    }

    /// The `busbar` process `pid`, if it runs.
    pub(super) fn of_busbar(pid: u32) -> Option<Self> {
        let found = Self::open(pid)?;
        let name = |pid: &str| fs::read(format!("/proc/{pid}/comm")).ok();
        (name(&pid.to_string())? == name("self")?).then_some(found)
    }

    fn open(pid: u32) -> Option<Self> {
        let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let fd = pidfd_open(raw, PidfdFlags::empty()).ok()?;
        Some(Self { pid, fd })
    }

    /// Sends a signal; a process that is gone already needs none.
    pub(super) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("can't signal process {}", self.pid)),
        }
    }

    /// Waits until it is gone. Cancel safe.
    pub(super) async fn gone(&self) -> anyhow::Result<()> {
        let fd = self.fd.try_clone().context("can't watch a process")?;
        let (told, gone) = tokio::sync::oneshot::channel();
        // A pidfd becomes readable when its process ends. Tokio's own watching of a descriptor is `unsafe`; a thread
        // that polls it does as well, and notices within a turn that nobody waits any more.
        tokio::task::spawn_blocking(move || {
            while !told.is_closed() {
                match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&WATCH_TURN)) {
                    Ok(0) | Err(rustix::io::Errno::INTR) => {}
                    outcome => {
                        let _ = told.send(outcome);
                        return;
                    }
                }
            }
        });
        gone.await.context("nothing watches the process any more")?.context("can't watch a process")?;
        Ok(())
    }

    /// Signals and waits until it is gone; SIGKILL when it takes too long.
    pub(super) async fn end(&self, signal: Signal) -> anyhow::Result<()> {
        self.signal(signal)?;
        if tokio::time::timeout(STOP_TIMEOUT, self.gone()).await.is_err() {
            crate::output::diagnose(format_args!("process {} did not stop in {STOP_TIMEOUT:?}: killing it", self.pid));
            self.signal(Signal::KILL)?;
            self.gone().await?;
        }
        Ok(())
    }
}

/// Starts node `id` in a process group of its own, so that Ctrl-C in our terminal is not meant for it, and so that it
/// lives on when we end. What it prints is added to its log file.
pub(super) fn spawn_node(layout: &Layout, id: u64) -> anyhow::Result<tokio::process::Child> {
    let program = std::env::current_exe().context("can't find our own program file")?;
    let path = layout.node_log(id);
    let log = File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("can't open {}", path.display()))?;
    let errors = log.try_clone().with_context(|| format!("can't open {} twice", path.display()))?;
    let mut command = Command::new(&program);
    command.arg("serve").arg("--config").arg(layout.node_config(id));
    command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
    tokio::process::Command::from(command)
        .spawn()
        .with_context(|| format!("can't start node {id}: can't run {}", program.display()))
}

/// The last lines that a node printed, to show why it ended.
pub(super) fn log_tail(layout: &Layout, id: u64) -> String {
    let text = fs::read(layout.node_log(id)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
    shown.iter().map(|line| format!("\n  {line}")).collect()
}

/// Fails, with what the node printed, as soon as the process is gone. Cancel safe.
pub(super) async fn fail_when_gone(
    layout: &Layout,
    id: u64,
    process: &Process,
) -> anyhow::Result<std::convert::Infallible> {
    process.gone().await?;
    bail!("node {id} ended; the end of {}:{}", layout.node_log(id).display(), log_tail(layout, id))
}

/// The running process `pid`, just started by us.
pub(super) fn just_started(id: u64, pid: Option<u32>) -> anyhow::Result<Process> {
    pid.and_then(Process::open).with_context(|| format!("node {id} ended at once"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_found_by_what_it_runs_and_awaited() {
        let mut child = tokio::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().unwrap();
        // Until exec the child's command line is still ours.
        while !fs::read(format!("/proc/{pid}/cmdline")).unwrap().starts_with(b"sleep") {
            tokio::task::yield_now().await;
        }
        assert!(Process::find(pid, "another.toml").is_none(), "a reused pid is not ours");
        let process = Process::find(pid, "1000").unwrap();
        process.end(Signal::KILL).await.unwrap();
        assert!(Process::find(pid, "1000").is_none(), "what ended is not found, though nobody has reaped it");
        process.signal(Signal::TERM).unwrap();
        child.wait().await.unwrap();
        process.signal(Signal::TERM).unwrap();
    }
}
