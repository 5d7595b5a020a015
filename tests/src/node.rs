//! One `busbar serve` process with a folder of its own: configuration, data, log. The process is ours: it is signalled
//! through the handle that started it, never by name, and is killed when the handle is dropped.

use std::{
    fs::{self, File},
    io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::wait::within;

/// From the start of a process to its `ready` line, with a full journal to read and the machine busy.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// From SIGTERM to the end of the process.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// Below the ports that systems give to outgoing connections: a dead node's port must not be taken by one of them.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Lines of a node's log that are shown when a test fails.
const LOG_LINES_SHOWN: usize = 40;

/// The `busbar` binary that was built beside the tests.
///
/// # Panics
/// When it was not built.
pub fn busbar() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_else(|error| panic!("can't find our own program file: {error}"));
    let found = exe.parent().and_then(Path::parent).map(|folder| folder.join("busbar")).filter(|path| path.exists());
    found.unwrap_or_else(|| panic!("the busbar binary is missing beside {}: run `make test`", exe.display()))
}

/// Two free ports of 127.0.0.1 that this process has not given out before, so that a dead node keeps its own. Nobody else
/// asks for them in the moment until they are used, or so we hope.
///
/// # Errors
/// No port is free.
pub fn free_addresses() -> anyhow::Result<[String; 2]> {
    Ok([free_address()?, free_address()?])
}

fn free_address() -> anyhow::Result<String> {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let next = NEXT.get_or_init(|| AtomicU16::new(rand::random_range(0..PORTS.len() as u16)));
    for _ in PORTS {
        let port = PORTS.start + next.fetch_add(1, Ordering::Relaxed) % PORTS.len() as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(format!("127.0.0.1:{port}"));
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}

/// A node: its folder and addresses, and its process while it runs.
#[derive(Debug)]
pub struct ServerNode {
    /// Its id; of a node that joins, known once it has started.
    pub id: u64,
    /// Where clients connect.
    pub address: String,
    /// Where other nodes connect.
    pub peer_address: String,
    folder: PathBuf,
    child: Option<Child>,
}

impl ServerNode {
    /// A node that does not run yet; `configuration` is the text of its file.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn new(id: u64, folder: PathBuf, [address, peer_address]: [String; 2]) -> anyhow::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self { id, address, peer_address, folder, child: None })
    }

    /// Writes its configuration file.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn configure(&self, text: &str) -> io::Result<()> {
        fs::write(self.config_file(), text)
    }

    /// `node.toml`.
    pub fn config_file(&self) -> PathBuf {
        self.folder.join("node.toml")
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What it printed so far, over all its runs.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("log.txt")).unwrap_or_default()).into_owned()
    }

    /// The end of [`Self::log`].
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }

    /// Whether its process runs (or is paused).
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Starts it without waiting until it is ready; see [`Self::ready`].
    ///
    /// # Errors
    /// It runs already, or the binary can't be run.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "node {} runs already", self.id);
        let log = File::options().create(true).append(true).open(self.folder.join("log.txt"))?;
        let mut command = Command::new(busbar());
        command.arg("serve").arg("--config").arg(self.config_file());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BUSBAR_")) {
            if name != "BUSBAR_LOG" {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        self.child = Some(command.spawn().context("can't run busbar serve")?);
        Ok(())
    }

    /// Waits for the `ready` line of a spawned node and takes its id from it.
    ///
    /// # Errors
    /// It ended before, or the deadline.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let child = self.child.as_mut().context("the node was not started")?;
        let stdout = child.stdout.take().context("the node is ready already")?;
        let line = async {
            let mut lines = BufReader::new(stdout).lines();
            while let Some(line) = lines.next_line().await? {
                if line.starts_with("ready ") {
                    return Ok(Some(line));
                }
            }
            Ok(None)
        };
        let what = format!("node {} gets ready", self.id);
        let Some(line) = within(READY_LIMIT, &what, line).await? else {
            let status = self.wait().await?;
            bail!("node {} ended ({status}) instead of getting ready:\n{}", self.id, self.log_tail());
        };
        let id = line.split_whitespace().find_map(|word| word.strip_prefix("node="));
        self.id = id.and_then(|id| id.parse().ok()).with_context(|| format!("{line:?} names no node"))?;
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        // The child is not reaped before `wait`, so its pid is nobody else's.
        kill_process(self.pid()?, signal).with_context(|| format!("can't signal node {}", self.id))
    }

    /// Waits until its process ends.
    ///
    /// # Errors
    /// It does not run, or the deadline.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let mut child = self.child.take().with_context(|| format!("node {} does not run", self.id))?;
        within(STOP_LIMIT, &format!("node {} ends", self.id), async { Ok(child.wait().await?) }).await
    }

    /// Bytes of memory that it holds now.
    ///
    /// # Errors
    /// It does not run.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?.as_raw_nonzero()))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"));
        Ok(kib.context("no VmRSS in /proc")?.trim().parse::<u64>()? << 10)
    }

    /// Bytes of disk that its data folder takes.
    pub fn disk_bytes(&self) -> u64 {
        disk_bytes(&self.data())
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        let raw = self.child.as_ref().and_then(Child::id).and_then(|id| i32::try_from(id).ok());
        raw.and_then(Pid::from_raw).with_context(|| format!("node {} does not run", self.id))
    }
}

fn disk_bytes(folder: &Path) -> u64 {
    // Files come and go while we look.
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => disk_bytes(&entry.path()),
        _ => entry.metadata().map_or(0, |meta| meta.len()),
    });
    bytes.sum()
}
