//! `busbar group list | describe | reset | delete`.

use std::{
    process::ExitCode,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail, ensure};
use busbar_client::Admin;
use busbar_proto::{GroupName, TopicId, TopicName, v1};
use clap::Subcommand;
use serde::Serialize;

use crate::{
    connection::ServerArgs,
    output::{OutputArgs, Table, diagnose, list},
    view::{some_unless_zero, topic_id_text},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the consumer groups
    List(CommonArgs),
    /// Show a group's members, who holds which partition, and how far behind it is
    Describe(NameArgs),
    /// Set a group's offsets by hand
    Reset(ResetArgs),
    /// Forget a group and its offsets, for good; it must have no members
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
    /// The group
    group: GroupName,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(clap::Args)]
struct ResetArgs {
    /// The group
    group: GroupName,
    /// Where it goes on: earliest, latest, an offset, a time (2026-11-24T12:00:00Z), or how long ago (90m, 2days)
    #[arg(long, value_name = "POSITION")]
    to: Target,
    /// Only this topic; may be repeated [default: all topics of the group]
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<TopicName>,
    /// Only this partition
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Also while the group has members: they begin anew there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// Where a group is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Earliest,
    Latest,
    Offset(u64),
    Time(SystemTime),
    Ago(Duration),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        if let Ok(offset) = text.parse() {
            return Ok(Self::Offset(offset));
        }
        if let Ok(time) = humantime::parse_rfc3339_weak(text) {
            return Ok(Self::Time(time));
        }
        let wrong = |_| {
            format!(
                "{text:?} is no position: write earliest, latest, an offset, 2026-11-24T12:00:00Z, or 90m for 90 minutes ago"
            )
        };
        humantime::parse_duration(text).map(Self::Ago).map_err(wrong)
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::List(args) => list_groups(args).await?,
        Command::Describe(args) => describe(args).await?,
        Command::Reset(args) => reset(args).await?,
        Command::Delete(args) => delete(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Groups {
    groups: Vec<Summary>,
    unanswered_shards: Vec<u32>,
}

#[derive(Serialize)]
struct Summary {
    group: String,
    shard: u32,
    members: u32,
    generation: u64,
    topics: Vec<String>,
}

async fn list_groups(args: CommonArgs) -> anyhow::Result<()> {
    let answer = args.server.connect().await?.admin().list_groups().await?;
    let summary = |group: v1::list_groups_response::Summary| {
        let v1::list_groups_response::Summary { group, shard, members, generation, topics } = group;
        Summary { group, shard, members, generation, topics }
    };
    let groups = answer.groups.into_iter().map(summary).collect();
    let groups = Groups { groups, unanswered_shards: answer.unanswered_shards };
    args.output.print(&groups, |all| {
        let mut table = Table::new(["group", "members", "topics", "shard"]);
        for group in &all.groups {
            table.row([group.group.clone(), group.members.to_string(), list(&group.topics), group.shard.to_string()]);
        }
        table.to_string()
    })?;
    if !groups.unanswered_shards.is_empty() {
        let shards = list(&groups.unanswered_shards);
        diagnose(format_args!("groups of shards {shards} are missing: nobody answered for them"));
    }
    Ok(())
}

#[derive(Serialize)]
struct Description {
    group: String,
    shard: u32,
    leader: Option<u64>,
    generation: u64,
    members: Vec<MemberView>,
    partitions: Vec<PartitionView>,
    lag: Option<u64>,
}

#[derive(Serialize)]
struct MemberView {
    id: u64,
    name: Option<String>,
    topics: Vec<String>,
    session_timeout_ms: u64,
    silent_ms: u64,
    partitions: usize,
}

#[derive(Serialize)]
struct PartitionView {
    topic: String,
    topic_id: String,
    partition: u32,
    member: Option<u64>,
    committed: Option<u64>,
    log_start: Option<u64>,
    high_watermark: Option<u64>,
    lag: Option<u64>,
    lag_seconds: Option<f64>,
}

impl PartitionView {
    fn new(wire: v1::describe_group_response::Partition, now_ms: i64) -> Self {
        let committed = wire.committed.as_ref().map(|committed| committed.offset);
        // What a new member would begin with counts as unread.
        let next = committed.max(wire.log_start);
        let lag = wire.high_watermark.zip(next).map(|(end, next)| end.saturating_sub(next));
        let done_ms = wire.committed.map(|committed| committed.record_time_ms).filter(|time| *time > 0);
        let lag_seconds = match lag {
            Some(0) => Some(0.0),
            Some(_) => done_ms.map(|time| now_ms.saturating_sub(time).max(0) as f64 / 1e3),
            None => None,
        };
        Self {
            topic: wire.topic,
            topic_id: topic_id_text(&wire.topic_id),
            partition: wire.partition,
            member: some_unless_zero(wire.member_id),
            committed,
            log_start: wire.log_start,
            high_watermark: wire.high_watermark,
            lag,
            lag_seconds,
        }
    }
}

impl Description {
    fn new(wire: v1::DescribeGroupResponse, now_ms: i64) -> Self {
        let partitions: Vec<_> =
            wire.partitions.into_iter().map(|partition| PartitionView::new(partition, now_ms)).collect();
        let member = |member: v1::describe_group_response::Member| MemberView {
            partitions: partitions.iter().filter(|held| held.member == Some(member.member_id)).count(),
            id: member.member_id,
            name: Some(member.member_name).filter(|name| !name.is_empty()),
            topics: member.topics,
            session_timeout_ms: member.session_timeout_ms,
            silent_ms: member.silent_ms,
        };
        Self {
            members: wire.members.into_iter().map(member).collect(),
            lag: partitions.iter().map(|partition| partition.lag).sum(),
            group: wire.group,
            shard: wire.shard,
            leader: some_unless_zero(wire.leader),
            generation: wire.generation,
            partitions,
        }
    }
}

async fn describe(args: NameArgs) -> anyhow::Result<()> {
    let admin = args.common.server.connect().await?.admin();
    let description = Description::new(admin.describe_group(args.group.as_str()).await?, now_ms());
    args.common.output.print(&description, description_text)?;
    Ok(())
}

fn description_text(group: &Description) -> String {
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let mut members = Table::new(["member", "name", "partitions", "topics", "silent", "session timeout"]);
    for member in &group.members {
        members.row([
            member.id.to_string(),
            member.name.clone().unwrap_or_else(|| "-".to_owned()),
            member.partitions.to_string(),
            list(&member.topics),
            format!("{} ms", member.silent_ms),
            format!("{} ms", member.session_timeout_ms),
        ]);
    }
    let mut partitions = Table::new(["partition", "member", "committed", "high watermark", "lag", "lag in time"]);
    for partition in &group.partitions {
        partitions.row([
            format!("{}/{}", partition.topic, partition.partition),
            number(partition.member),
            number(partition.committed),
            number(partition.high_watermark),
            number(partition.lag),
            partition.lag_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s")),
        ]);
    }
    let (name, generation, lag) = (&group.group, group.generation, number(group.lag));
    let (count, shard, leader) = (group.members.len(), group.shard, number(group.leader));
    let head = format!("{name}: {count} members, generation {generation}, lag {lag}; shard {shard} on node {leader}");
    format!("{head}\n\n{members}\n\n{partitions}")
}

#[derive(Serialize)]
struct Reset {
    group: String,
    offsets: Vec<ResetOffset>,
}

#[derive(Serialize)]
struct ResetOffset {
    topic: String,
    partition: u32,
    offset: u64,
}

async fn reset(args: ResetArgs) -> anyhow::Result<()> {
    let admin = args.common.server.connect().await?.admin();
    let described = admin.describe_group(args.group.as_str()).await?;
    let mut offsets = Vec::new();
    let mut entries = Vec::new();
    for partition in described.partitions {
        let is_meant = args.topic.is_empty() || args.topic.iter().any(|topic| topic.as_str() == partition.topic);
        if !is_meant || args.partition.is_some_and(|only| only != partition.partition) {
            continue;
        }
        let offset = resolve(&admin, args.to, &partition).await?;
        let v1::describe_group_response::Partition { topic_id, topic, partition, .. } = partition;
        entries.push(v1::reset_group_request::Entry { topic_id, partition, offset });
        offsets.push(ResetOffset { topic, partition, offset });
    }
    ensure!(!entries.is_empty(), "group {} reads no such partition; `busbar group describe` lists them", args.group);
    admin.reset_group(args.group.as_str(), entries, args.force).await?;
    let done = Reset { group: args.group.to_string(), offsets };
    args.common.output.print(&done, |reset| {
        let mut table = Table::new(["partition", "offset"]);
        for to in &reset.offsets {
            table.row([format!("{}/{}", to.topic, to.partition), to.offset.to_string()]);
        }
        format!("reset {}\n{table}", reset.group)
    })?;
    Ok(())
}

/// The offset in one partition that a target means.
async fn resolve(
    admin: &Admin,
    target: Target,
    partition: &v1::describe_group_response::Partition,
) -> anyhow::Result<u64> {
    let name = format!("{}/{}", partition.topic, partition.partition);
    let bounds = partition.log_start.zip(partition.high_watermark);
    let (start, end) = bounds.with_context(|| format!("the leader of {name} does not answer: try again"))?;
    let time_ms = match target {
        Target::Earliest => return Ok(start),
        Target::Latest => return Ok(end),
        Target::Offset(offset) if (start..=end).contains(&offset) => return Ok(offset),
        Target::Offset(offset) => bail!(
            "{name} has no offset {offset}: it holds {start} to {end}; name a partition with --topic and --partition"
        ),
        Target::Time(time) => unix_ms(time),
        Target::Ago(ago) => now_ms().saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)),
    };
    let topic = TopicId::from_slice(&partition.topic_id).context("the answer names no topic")?;
    Ok(admin.offset_at(topic, partition.partition, time_ms).await?.clamp(start, end))
}

#[derive(Serialize)]
struct Deleted<'a> {
    deleted: &'a str,
}

async fn delete(args: NameArgs) -> anyhow::Result<()> {
    let admin = args.common.server.connect().await?.admin();
    admin.delete_group(args.group.as_str()).await?;
    args.common
        .output
        .print(&Deleted { deleted: args.group.as_str() }, |group| format!("deleted {}", group.deleted))?;
    Ok(())
}

fn now_ms() -> i64 {
    unix_ms(SystemTime::now())
}

fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read() {
        for (text, want) in [
            ("earliest", Target::Earliest),
            ("latest", Target::Latest),
            ("17", Target::Offset(17)),
            ("1970-01-01T00:00:05Z", Target::Time(UNIX_EPOCH + Duration::from_secs(5))),
            ("1970-01-01 00:00:05", Target::Time(UNIX_EPOCH + Duration::from_secs(5))),
            ("90m", Target::Ago(Duration::from_secs(5_400))),
        ] {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for wrong in ["", "yesterday", "-1", "12 o'clock"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn lag_is_what_a_member_would_still_read() {
        let at = |committed: Option<(u64, i64)>, log_start, high_watermark| {
            let committed = committed.map(|(offset, record_time_ms)| v1::Committed {
                offset,
                record_time_ms,
                ..Default::default()
            });
            let wire =
                v1::describe_group_response::Partition { committed, log_start, high_watermark, ..Default::default() };
            let view = PartitionView::new(wire, 10_000);
            (view.lag, view.lag_seconds)
        };
        assert_eq!(at(Some((7, 4_000)), Some(0), Some(10)), (Some(3), Some(6.0)));
        assert_eq!(at(Some((10, 4_000)), Some(0), Some(10)), (Some(0), Some(0.0)), "nothing is left");
        assert_eq!(at(None, Some(4), Some(10)), (Some(6), None), "nothing is done yet");
        assert_eq!(at(Some((2, 4_000)), Some(4), Some(10)), (Some(6), Some(6.0)), "retention was faster");
        assert_eq!(at(Some((2, 4_000)), None, None), (None, None), "its leader does not answer");
    }
}
