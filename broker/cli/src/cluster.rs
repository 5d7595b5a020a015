//! `busbar cluster status | move | drain | remove`. A move or drain is done by the cluster once recorded; `--wait` only
//! watches it, so that ending the command never ends the move.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use busbar_client::Admin;
use busbar_proto::{TopicName, v1};
use clap::Subcommand;
use serde::Serialize;

use crate::{
    connection::ServerArgs,
    output::{OutputArgs, Table, list},
    view::{PartitionView, leader_text, some_unless_zero},
};

/// More partitions than this are not printed for people unless something is wrong with them.
const PARTITIONS_SHOWN_MAX: usize = 64;
/// How often `--wait` asks how far a move is.
const WAIT_POLL: Duration = Duration::from_millis(250);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Nodes, leaders per node, partitions in trouble, lag per replica
    Status(CommonArgs),
    /// Move a partition's replicas to other nodes
    Move(MoveArgs),
    /// Move every replica off a node and give it no new ones
    Drain(DrainArgs),
    /// Forget a node that holds no replica; its id is never used again
    Remove(NodeArgs),
}

#[derive(clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args)]
struct WaitArgs {
    /// Return when it is done, not when it is recorded
    #[arg(long)]
    wait: bool,
    /// Stop waiting after this long
    #[arg(long, default_value = "10m", requires = "wait", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,
}

#[derive(clap::Args)]
struct MoveArgs {
    /// The partition, such as orders/3
    #[arg(value_name = "TOPIC/PARTITION", value_parser = topic_partition)]
    partition: (TopicName, u32),
    /// Nodes that hold it afterwards
    #[arg(long, value_name = "NODE,..", value_delimiter = ',', required = true)]
    to: Vec<u64>,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(clap::Args)]
struct NodeArgs {
    /// The node's id
    node: u64,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(clap::Args)]
struct DrainArgs {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Status(args) => status(args).await?,
        Command::Move(args) => move_partition(args).await?,
        Command::Drain(args) => drain(args).await?,
        Command::Remove(args) => remove(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Status {
    cluster: String,
    version: String,
    catalog_leader: Option<u64>,
    nodes: Vec<NodeView>,
    partitions: Vec<TopicPartition>,
    under_replicated: Vec<String>,
    leaderless: Vec<String>,
}

#[derive(Serialize)]
struct NodeView {
    id: u64,
    address: String,
    alive: bool,
    draining: bool,
    leaders: u32,
    replicas: u32,
}

#[derive(Serialize)]
struct TopicPartition {
    topic: String,
    #[serde(flatten)]
    state: PartitionView,
}

impl TopicPartition {
    fn name(&self) -> String {
        format!("{}/{}", self.topic, self.state.partition)
    }

    fn is_in_trouble(&self) -> bool {
        self.state.leader.is_none() || self.state.is_under_replicated() || self.state.is_moving()
    }
}

impl From<v1::DescribeClusterResponse> for Status {
    fn from(answer: v1::DescribeClusterResponse) -> Self {
        let partitions: Vec<_> = answer
            .partitions
            .into_iter()
            .map(|partition| TopicPartition {
                topic: partition.topic,
                state: partition.state.unwrap_or_default().into(),
            })
            .collect();
        let named = |wanted: fn(&PartitionView) -> bool| -> Vec<String> {
            partitions.iter().filter(|partition| wanted(&partition.state)).map(TopicPartition::name).collect()
        };
        Self {
            under_replicated: named(PartitionView::is_under_replicated),
            leaderless: named(|state| state.leader.is_none()),
            cluster: answer.cluster,
            version: answer.version,
            catalog_leader: some_unless_zero(answer.catalog_leader),
            nodes: answer.nodes.into_iter().map(NodeView::from).collect(),
            partitions,
        }
    }
}

impl From<v1::NodeState> for NodeView {
    fn from(state: v1::NodeState) -> Self {
        let node = state.node.unwrap_or_default();
        Self {
            id: node.id,
            address: node.address,
            alive: state.answered,
            draining: node.draining,
            leaders: state.leaders,
            replicas: state.replicas,
        }
    }
}

async fn status(args: CommonArgs) -> anyhow::Result<()> {
    let admin = args.server.connect().await?.admin();
    args.output.print(&Status::from(admin.describe_cluster().await?), status_text)?;
    Ok(())
}

fn status_text(status: &Status) -> String {
    let mut nodes = Table::new(["node", "address", "state", "leaders", "replicas"]);
    for node in &status.nodes {
        let state = match (node.alive, node.draining) {
            (false, _) => "down",
            (true, true) => "draining",
            (true, false) => "up",
        };
        let (leaders, replicas) = (node.leaders.to_string(), node.replicas.to_string());
        nodes.row([node.id.to_string(), node.address.clone(), state.to_owned(), leaders, replicas]);
    }
    let counts = format!(
        "{} partitions, {} under-replicated, {} leaderless",
        status.partitions.len(),
        status.under_replicated.len(),
        status.leaderless.len()
    );
    let all = status.partitions.len() <= PARTITIONS_SHOWN_MAX;
    let mut partitions = Table::new(["partition", "leader", "replicas", "in sync", "moving to"]);
    let shown: Vec<_> = status.partitions.iter().filter(|partition| all || partition.is_in_trouble()).collect();
    for partition in &shown {
        partitions.row([
            partition.name(),
            leader_text(partition.state.leader),
            partition.state.replicas_with_lag(),
            list(&partition.state.in_sync),
            list(&partition.state.moving_to),
        ]);
    }
    let mut text = format!(
        "cluster {}, version {}, catalog led by {}\n\n{nodes}\n\n{counts}",
        status.cluster,
        status.version,
        leader_text(status.catalog_leader)
    );
    if !shown.is_empty() {
        text.push_str(&format!("\n\n{partitions}"));
    }
    if shown.len() < status.partitions.len() {
        text.push_str("\n(healthy partitions are not listed; -o json lists all)");
    }
    text
}

#[derive(Serialize)]
struct Moved {
    topic: String,
    partition: u32,
    to: Vec<u64>,
    done: bool,
}

async fn move_partition(args: MoveArgs) -> anyhow::Result<()> {
    let (topic, partition) = args.partition;
    let admin = args.common.server.connect().await?.admin();
    admin.move_partition(topic.as_str(), partition, args.to.clone()).await?;
    if args.wait.wait {
        let is_done = |status: &Status| {
            status.partitions.iter().any(|found| {
                found.topic == topic.as_str() && found.state.partition == partition && is_at(&found.state, &args.to)
            })
        };
        wait_until(&admin, args.wait.timeout, is_done).await.with_context(|| format!("moving {topic}/{partition}"))?;
    }
    let moved = Moved { topic: topic.to_string(), partition, to: args.to, done: args.wait.wait };
    args.common.output.print(&moved, |moved| {
        let verb = if moved.done { "moved" } else { "moving (see `busbar cluster status`)" };
        format!("{verb} {}/{} to {}", moved.topic, moved.partition, list(&moved.to))
    })?;
    Ok(())
}

fn is_at(state: &PartitionView, nodes: &[u64]) -> bool {
    let sorted = |nodes: &[u64]| {
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable();
        nodes
    };
    !state.is_moving() && state.leader.is_some() && sorted(&state.replicas) == sorted(nodes)
}

#[derive(Serialize)]
struct Drained {
    node: u64,
    moves: u32,
    done: bool,
}

async fn drain(args: DrainArgs) -> anyhow::Result<()> {
    let NodeArgs { node, common } = args.node;
    let admin = common.server.connect().await?.admin();
    let moves = admin.drain_node(node).await?;
    if args.wait.wait {
        let is_done = |status: &Status| {
            status.partitions.iter().all(|found| !found.state.replicas.contains(&node) && !found.state.is_moving())
        };
        wait_until(&admin, args.wait.timeout, is_done).await.with_context(|| format!("draining node {node}"))?;
    }
    common.output.print(&Drained { node, moves, done: args.wait.wait }, |drained| {
        let verb = if drained.done { "drained" } else { "draining (see `busbar cluster status`)" };
        format!("{verb} node {}: {} partitions move", drained.node, drained.moves)
    })?;
    Ok(())
}

#[derive(Serialize)]
struct Removed {
    removed: u64,
}

async fn remove(args: NodeArgs) -> anyhow::Result<()> {
    let admin = args.common.server.connect().await?.admin();
    admin.remove_node(args.node).await?;
    args.common.output.print(&Removed { removed: args.node }, |node| format!("removed node {}", node.removed))?;
    Ok(())
}

/// Asks for the cluster's state until `is_done`; a failed answer (a leader may be changing) only means to ask again.
async fn wait_until(admin: &Admin, timeout: Duration, is_done: impl Fn(&Status) -> bool) -> anyhow::Result<()> {
    let ask = async {
        loop {
            if let Ok(answer) = admin.describe_cluster().await
                && is_done(&Status::from(answer))
            {
                return;
            }
            tokio::time::sleep(WAIT_POLL).await;
        }
    };
    if tokio::time::timeout(timeout, ask).await.is_err() {
        let waited = humantime::format_duration(timeout);
        bail!("not done after {waited}; it goes on, and `busbar cluster status` shows how far it is");
    }
    Ok(())
}

fn topic_partition(text: &str) -> Result<(TopicName, u32), String> {
    let (topic, partition) = text.rsplit_once('/').ok_or("write TOPIC/PARTITION, such as orders/3")?;
    let topic = topic.parse().map_err(|error| format!("{error}"))?;
    let partition = partition.parse().map_err(|_| format!("{partition:?} is no partition number"))?;
    Ok((topic, partition))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_named_topic_slash_number() {
        assert_eq!(topic_partition("a.b/3"), Ok(("a.b".parse().unwrap(), 3)));
        for wrong in ["orders", "orders/", "orders/x", "/3", "a b/3", "orders/-1"] {
            assert!(topic_partition(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn trouble_is_counted_and_shown() {
        let state = |partition, leader, in_sync: &[u64]| v1::TopicPartitionState {
            topic: "t".into(),
            state: Some(v1::PartitionState {
                partition,
                leader,
                replicas: vec![1, 2, 3],
                in_sync: in_sync.to_vec(),
                lag: vec![v1::ReplicaLag { node: 3, entries: 17 }],
                ..Default::default()
            }),
        };
        let answer = v1::DescribeClusterResponse {
            partitions: vec![state(0, 1, &[1, 2, 3]), state(1, 2, &[1, 2]), state(2, 0, &[])],
            ..Default::default()
        };
        let status = Status::from(answer);
        assert_eq!(status.under_replicated, ["t/1", "t/2"]);
        assert_eq!(status.leaderless, ["t/2"]);
        let text = status_text(&status);
        assert!(text.contains("3 partitions, 2 under-replicated, 1 leaderless"), "{text}");
        assert!(text.contains("1,2,3(-17)"), "{text}");
    }
}
