//! `busbar dev`: a local cluster for development and tests, one real process and one data folder per node.
//!
//! | module | owns |
//! |---|---|
//! | `layout` | where things are in the cluster's folder, ports, the nodes' configuration files |
//! | `cluster_file` | `cluster.json`: which nodes there are and which process each is |
//! | `process` | starting, finding, signalling and awaiting a node's process |
//! | `ready` | waiting until nodes answer and have formed a cluster |
//! | `local` | the supervisor's cluster: what `dev up` and `demo` run |
//! | `commands` | `status`, `stop`, `start`, `down`, from any other terminal |
//!
//! Invariants: no process is ever signalled on the word of a pid alone (it may be another's by now); nodes outlive
//! whoever started them, so each command works whatever else was killed.

mod cluster_file;
mod commands;
mod layout;
mod local;
mod process;
mod ready;
mod up;

use std::{path::PathBuf, process::ExitCode};

use clap::Subcommand;

pub(crate) use commands::{start_node, stop_node};
pub(crate) use layout::{Layout, Ports};
pub(crate) use local::{LocalCluster, Options};

use crate::output::OutputArgs;

/// Where a cluster is kept unless told otherwise.
const DIR_DEFAULT: &str = ".busbar-dev";

#[derive(Default, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster and stay until Ctrl-C or `busbar dev down`; an existing folder is continued
    Up(up::Args),
    /// Show the nodes and whether they run and answer
    Status(CommonArgs),
    /// Stop a node
    Stop(StopArgs),
    /// Start a stopped node again
    Start(NodeArgs),
    /// Stop the cluster
    Down(CommonArgs),
}

impl Default for Command {
    fn default() -> Self {
        Self::Up(up::Args::default())
    }
}

#[derive(Clone, clap::Args)]
pub(crate) struct DirArgs {
    /// The cluster's folder
    #[arg(long, default_value = DIR_DEFAULT, value_name = "DIR")]
    dir: PathBuf,
}

impl Default for DirArgs {
    fn default() -> Self {
        Self { dir: PathBuf::from(DIR_DEFAULT) }
    }
}

impl DirArgs {
    fn layout(&self) -> anyhow::Result<Layout> {
        Layout::at(&self.dir)
    }
}

#[derive(clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    dir: DirArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args)]
struct NodeArgs {
    /// The node's id
    node: u64,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(clap::Args)]
struct StopArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// With SIGKILL, as a crash would
    #[arg(long)]
    kill: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Up(args) => up::run(args).await,
        Command::Status(CommonArgs { dir, output }) => commands::status(&dir.layout()?, output).await,
        Command::Stop(StopArgs { node: NodeArgs { node, common }, kill }) => {
            commands::stop(&common.dir.layout()?, node, kill, common.output).await
        }
        Command::Start(NodeArgs { node, common }) => commands::start(&common.dir.layout()?, node, common.output).await,
        Command::Down(CommonArgs { dir, output }) => commands::down(&dir.layout()?, output).await,
    }
}
