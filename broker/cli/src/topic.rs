//! `busbar topic create | list | describe | delete`.

use std::process::ExitCode;

use busbar_client::{Cleanup, Durability, TopicOptions};
use busbar_proto::{TopicName, v1};
use clap::Subcommand;
use serde::Serialize;

use crate::{
    connection::ServerArgs,
    output::{OutputArgs, Table, list},
    view::{PartitionView, TopicSettings, leader_text, topic_id_text},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create a topic
    Create(CreateArgs),
    /// List the topics
    List(CommonArgs),
    /// Show a topic's partitions: leader, replicas, offsets
    Describe(NameArgs),
    /// Delete a topic and all its records, for good
    Delete(NameArgs),
}

#[derive(clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args)]
struct NameArgs {
    /// The topic
    topic: TopicName,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(clap::Args)]
struct CreateArgs {
    /// Its name: 1 to 249 of a-z A-Z 0-9 . _ -
    topic: TopicName,
    /// Partitions; order holds within one
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// Copies of each partition, on different nodes
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    replicas: u32,
    /// When a record is acknowledged: on stable storage of a majority, or in memory of a majority
    #[arg(long, value_enum, default_value_t)]
    durability: DurabilityArg,
    /// Keep at most so many bytes a partition [default: all]
    #[arg(long, value_name = "BYTES")]
    retention_bytes: Option<u64>,
    /// Keep records for so many milliseconds [default: for ever]
    #[arg(long, value_name = "MS")]
    retention_ms: Option<u64>,
    /// Largest batch that a producer may send [default: 1 MiB]
    #[arg(long, value_name = "BYTES")]
    max_batch_bytes: Option<u32>,
    /// What becomes of old records: retention removes them; only the newest of each key stays; or both
    #[arg(long, value_enum, default_value_t)]
    cleanup: CleanupArg,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum DurabilityArg {
    #[default]
    Fsync,
    Replicated,
}

impl From<DurabilityArg> for Durability {
    fn from(arg: DurabilityArg) -> Self {
        match arg {
            DurabilityArg::Fsync => Self::Fsync,
            DurabilityArg::Replicated => Self::Replicated,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum CleanupArg {
    #[default]
    Delete,
    Compact,
    Both,
}

impl From<CleanupArg> for Cleanup {
    fn from(arg: CleanupArg) -> Self {
        match arg {
            CleanupArg::Delete => Self::Delete,
            CleanupArg::Compact => Self::Compact,
            CleanupArg::Both => Self::Both,
        }
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Create(args) => create(args).await?,
        Command::List(args) => list_topics(args).await?,
        Command::Describe(args) => describe(args).await?,
        Command::Delete(args) => delete(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Summary {
    name: String,
    id: String,
    partitions: usize,
    #[serde(flatten)]
    settings: TopicSettings,
}

impl From<v1::Topic> for Summary {
    fn from(topic: v1::Topic) -> Self {
        Self {
            id: topic_id_text(&topic.id),
            name: topic.name,
            partitions: topic.partitions.len(),
            settings: topic.config.unwrap_or_default().into(),
        }
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let admin = args.common.server.connect().await?.admin();
    let options = TopicOptions {
        partitions: args.partitions,
        replicas: args.replicas,
        durability: args.durability.into(),
        retention_bytes: args.retention_bytes,
        retention_ms: args.retention_ms,
        max_batch_bytes: args.max_batch_bytes,
        cleanup: args.cleanup.into(),
    };
    let created = Summary::from(admin.create_topic(args.topic.as_str(), options).await?);
    args.common.output.print(&created, |topic| {
        format!("created {}: {} partitions, {}", topic.name, topic.partitions, topic.settings.summary())
    })?;
    Ok(())
}

#[derive(Serialize)]
struct Topics {
    topics: Vec<Summary>,
}

async fn list_topics(args: CommonArgs) -> anyhow::Result<()> {
    let admin = args.server.connect().await?.admin();
    let mut topics: Vec<_> = admin.list_topics().await?.into_iter().map(Summary::from).collect();
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    args.output.print(&Topics { topics }, |all| {
        let mut table = Table::new(["topic", "partitions", "replicas", "durability"]);
        for topic in &all.topics {
            let TopicSettings { replicas, durability, .. } = topic.settings;
            table.row([topic.name.clone(), topic.partitions.to_string(), replicas.to_string(), durability.to_owned()]);
        }
        table.to_string()
    })?;
    Ok(())
}

#[derive(Serialize)]
struct Description {
    name: String,
    id: String,
    #[serde(flatten)]
    settings: TopicSettings,
    partitions: Vec<PartitionView>,
}

async fn describe(args: NameArgs) -> anyhow::Result<()> {
    let admin = args.common.server.connect().await?.admin();
    let topic = admin.describe_topic(args.topic.as_str()).await?;
    let description = Description {
        id: topic_id_text(&topic.id),
        name: topic.name,
        settings: topic.config.unwrap_or_default().into(),
        partitions: topic.partitions.into_iter().map(PartitionView::from).collect(),
    };
    args.common.output.print(&description, |topic| {
        let mut table =
            Table::new(["partition", "leader", "replicas", "in sync", "log start", "high watermark", "moving to"]);
        for partition in &topic.partitions {
            table.row([
                partition.partition.to_string(),
                leader_text(partition.leader),
                partition.replicas_with_lag(),
                list(&partition.in_sync),
                partition.log_start.to_string(),
                partition.high_watermark.to_string(),
                list(&partition.moving_to),
            ]);
        }
        format!("{} ({}): {}\n{table}", topic.name, topic.id, topic.settings.summary())
    })?;
    Ok(())
}

#[derive(Serialize)]
struct Deleted<'a> {
    deleted: &'a str,
}

async fn delete(args: NameArgs) -> anyhow::Result<()> {
    let admin = args.common.server.connect().await?.admin();
    admin.delete_topic(args.topic.as_str()).await?;
    args.common
        .output
        .print(&Deleted { deleted: args.topic.as_str() }, |topic| format!("deleted {}", topic.deleted))?;
    Ok(())
}
