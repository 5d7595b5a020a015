//! `busbar group list | describe | reset | delete`.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::bail;
use busbar_client::{Admin, v1};
use clap::Subcommand;
use serde::Serialize;

use crate::{
    connection::ServerArgs,
    output::{OutputArgs, Table, list},
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
    /// Show a group: members, who reads what, how far it is behind
    Describe(GroupArgs),
    /// Set where a group goes on
    Reset(ResetArgs),
    /// Forget a group and its offsets
    Delete(GroupArgs),
}

#[derive(clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args)]
struct GroupArgs {
    /// The group
    group: String,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(clap::Args)]
struct ResetArgs {
    /// The group
    group: String,
    /// Where to: earliest, latest, an offset, a time (2026-11-20T12:00:00Z) or how long ago (90m)
    #[arg(long, value_name = "WHERE", value_parser = Goal::parse)]
    to: Goal,
    /// Only this topic or partition; may be given again [default: everything that the group has read]
    #[arg(long = "topic", value_name = "TOPIC[/P]")]
    topics: Vec<String>,
    /// Also while the group has members: they lose what they hold and begin there
    #[arg(long)]
    force: bool,
    /// Only print what would be set
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// Where a group is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Earliest,
    Latest,
    Offset(u64),
    /// Milliseconds since the Unix epoch.
    Time(i64),
    Ago(Duration),
}

impl Goal {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        if let Ok(offset) = text.parse() {
            return Ok(Self::Offset(offset));
        }
        if let Ok(time) = humantime::parse_rfc3339_weak(text) {
            let since = time.duration_since(UNIX_EPOCH).map_err(|_| "the time is before 1970".to_owned())?;
            return i64::try_from(since.as_millis()).map(Self::Time).map_err(|error| error.to_string());
        }
        humantime::parse_duration(text)
            .map(Self::Ago)
            .map_err(|_| "write earliest, latest, an offset, a time like 2026-11-20T12:00:00Z, or 90m".to_owned())
    }

    fn time_ms(self, now_ms: i64) -> Option<i64> {
        match self {
            Self::Time(at) => Some(at),
            Self::Ago(ago) => Some(now_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX))),
            Self::Earliest | Self::Latest | Self::Offset(_) => None,
        }
    }

    /// The offset to set, given a partition's bounds.
    fn offset(self, bounds: &v1::OffsetsResponse) -> u64 {
        match self {
            Self::Earliest => bounds.log_start,
            Self::Latest => bounds.high_watermark,
            Self::Offset(offset) => offset,
            Self::Time(_) | Self::Ago(_) => bounds.offset_at_time.unwrap_or(bounds.high_watermark),
        }
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
    let listed = args.server.connect().await?.admin().list_groups().await?;
    let summary = |found: v1::list_groups_response::Summary| Summary {
        group: found.group,
        shard: found.shard,
        members: found.members,
        generation: found.generation,
        topics: found.topics,
    };
    let groups = Groups {
        groups: listed.groups.into_iter().map(summary).collect(),
        unanswered_shards: listed.unanswered_shards,
    };
    args.output.print(&groups, |all| {
        let mut table = Table::new(["group", "members", "generation", "topics"]);
        for group in &all.groups {
            let (members, generation) = (group.members.to_string(), group.generation.to_string());
            table.row([group.group.clone(), members, generation, group.topics.join(", ")]);
        }
        match all.unanswered_shards.as_slice() {
            [] => table.to_string(),
            missing => format!("{table}shards without an answer, whose groups are missing: {}", list(missing)),
        }
    })?;
    Ok(())
}

#[derive(Serialize)]
struct Description {
    group: String,
    shard: u32,
    /// `null` while the shard has none.
    leader: Option<u64>,
    generation: u64,
    members: Vec<Member>,
    partitions: Vec<Partition>,
}

#[derive(Serialize)]
struct Member {
    id: u64,
    name: Option<String>,
    topics: Vec<String>,
    session_timeout_ms: u64,
    silent_ms: u64,
}

#[derive(Serialize)]
struct Partition {
    topic: String,
    partition: u32,
    /// `null` while nobody holds it.
    member: Option<u64>,
    /// The next offset to read; `null` if nothing was committed.
    committed: Option<u64>,
    log_start: Option<u64>,
    high_watermark: Option<u64>,
    /// Records that are not done; `null` when the partition's leader did not answer.
    lag: Option<u64>,
    /// Since the newest record that is done was made; 0 when nothing is left to do, `null` when unknown.
    lag_seconds: Option<f64>,
}

impl Partition {
    fn new(told: v1::describe_group_response::Partition, now_ms: i64) -> Self {
        let committed = told.committed.as_ref().map(|committed| committed.offset);
        let place = committed.or(told.log_start);
        let lag = told.high_watermark.and_then(|end| Some(end.saturating_sub(place?.max(told.log_start?))));
        let done_at = told.committed.map(|committed| committed.record_time_ms).filter(|time| *time > 0);
        let behind = |time: i64| now_ms.saturating_sub(time).max(0) as f64 / 1e3;
        Self {
            topic: told.topic,
            partition: told.partition,
            member: (told.member_id > 0).then_some(told.member_id),
            committed,
            log_start: told.log_start,
            high_watermark: told.high_watermark,
            lag,
            lag_seconds: if lag == Some(0) { Some(0.0) } else { done_at.map(behind) },
        }
    }
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

async fn describe(args: GroupArgs) -> anyhow::Result<()> {
    let told = args.common.server.connect().await?.admin().describe_group(args.group).await?;
    let now_ms = now_ms();
    let member = |told: v1::describe_group_response::Member| Member {
        id: told.member_id,
        name: Some(told.member_name).filter(|name| !name.is_empty()),
        topics: told.topics,
        session_timeout_ms: told.session_timeout_ms,
        silent_ms: told.silent_ms,
    };
    let description = Description {
        group: told.group,
        shard: told.shard,
        leader: (told.leader > 0).then_some(told.leader),
        generation: told.generation,
        members: told.members.into_iter().map(member).collect(),
        partitions: told.partitions.into_iter().map(|told| Partition::new(told, now_ms)).collect(),
    };
    args.common.output.print(&description, text)?;
    Ok(())
}

fn text(group: &Description) -> String {
    let mut members = Table::new(["member", "name", "topics", "silent"]);
    for member in &group.members {
        let silent = format!("{:.1} s", member.silent_ms as f64 / 1e3);
        members.row([member.id.to_string(), or_dash(member.name.clone()), member.topics.join(", "), silent]);
    }
    let mut partitions = Table::new(["partition", "member", "committed", "end", "lag", "lag in time"]);
    for partition in &group.partitions {
        partitions.row([
            format!("{}/{}", partition.topic, partition.partition),
            or_dash(partition.member),
            or_dash(partition.committed),
            or_dash(partition.high_watermark),
            or_dash(partition.lag),
            or_dash(partition.lag_seconds.map(|seconds| format!("{seconds:.1} s"))),
        ]);
    }
    let Description { group, shard, generation, leader, .. } = group;
    let leader = or_dash(*leader);
    format!("{group}: generation {generation}, shard {shard} on node {leader}\n{members}\n{partitions}")
}

#[derive(Serialize)]
struct Reset {
    group: String,
    /// False with `--dry-run`.
    done: bool,
    partitions: Vec<Change>,
}

#[derive(Serialize)]
struct Change {
    topic: String,
    partition: u32,
    from: Option<u64>,
    to: u64,
    #[serde(skip)]
    topic_id: bytes::Bytes,
}

async fn reset(args: ResetArgs) -> anyhow::Result<()> {
    let admin = args.common.server.connect().await?.admin();
    let group = admin.describe_group(args.group.as_str()).await?;
    let partitions = changes(&admin, &group, &args).await?;
    if !args.dry_run {
        let entry = |change: &Change| v1::reset_group_request::Entry {
            topic_id: change.topic_id.clone(),
            partition: change.partition,
            offset: change.to,
        };
        admin.reset_group(args.group.as_str(), partitions.iter().map(entry).collect(), args.force).await?;
    }
    let reset = Reset { group: args.group, done: !args.dry_run, partitions };
    args.common.output.print(&reset, |reset| {
        let mut table = Table::new(["partition", "was at", "goes on at"]);
        for change in &reset.partitions {
            let name = format!("{}/{}", change.topic, change.partition);
            table.row([name, or_dash(change.from), change.to.to_string()]);
        }
        table.to_string()
    })?;
    Ok(())
}

/// What is to be set: the named partitions, or all that the group knows.
async fn changes(admin: &Admin, group: &v1::DescribeGroupResponse, args: &ResetArgs) -> anyhow::Result<Vec<Change>> {
    let known: BTreeMap<(&str, u32), Option<u64>> = group
        .partitions
        .iter()
        .map(|told| ((told.topic.as_str(), told.partition), told.committed.as_ref().map(|committed| committed.offset)))
        .collect();
    let mut wanted: Vec<(&str, Option<u32>)> = Vec::new();
    for name in &args.topics {
        wanted.push(match name.rsplit_once('/') {
            Some((topic, partition)) => match partition.parse() {
                Ok(partition) => (topic, Some(partition)),
                Err(_) => bail!("{name:?} names no partition: write TOPIC or TOPIC/P"),
            },
            None => (name, None),
        });
    }
    if wanted.is_empty() {
        wanted.extend(known.keys().map(|(topic, _)| (*topic, None)));
        wanted.dedup();
    }
    if wanted.is_empty() {
        bail!("the group has read nothing yet: name what it is to read with --topic");
    }
    let mut changes = Vec::new();
    for (topic, only) in wanted {
        let id = admin.describe_topic(topic).await?.id;
        let bounds = admin.offsets(topic, args.to.time_ms(now_ms())).await?;
        if let Some(partition) = only.filter(|partition| *partition as usize >= bounds.len()) {
            bail!("topic {topic} has no partition {partition}: its partitions are 0 to {}", bounds.len() - 1);
        }
        for (partition, bounds) in
            (0..).zip(&bounds).filter(|(partition, _)| only.is_none_or(|only| only == *partition))
        {
            let to = args.to.offset(bounds);
            if !(bounds.log_start..=bounds.high_watermark).contains(&to) {
                let (start, end) = (bounds.log_start, bounds.high_watermark);
                bail!("{topic}/{partition} does not have offset {to}: it holds {start} to {end} (exclusive)");
            }
            let from = known.get(&(topic, partition)).copied().flatten();
            changes.push(Change { topic: topic.to_owned(), partition, from, to, topic_id: id.clone() });
        }
    }
    Ok(changes)
}

#[derive(Serialize)]
struct Deleted<'a> {
    deleted: &'a str,
}

async fn delete(args: GroupArgs) -> anyhow::Result<()> {
    args.common.server.connect().await?.admin().delete_group(args.group.as_str()).await?;
    args.common
        .output
        .print(&Deleted { deleted: args.group.as_str() }, |group| format!("deleted {}", group.deleted))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_understood() {
        assert_eq!(Goal::parse("earliest"), Ok(Goal::Earliest));
        assert_eq!(Goal::parse("17"), Ok(Goal::Offset(17)));
        assert_eq!(Goal::parse("1970-01-01T00:00:01Z"), Ok(Goal::Time(1_000)));
        assert_eq!(Goal::parse("90m"), Ok(Goal::Ago(Duration::from_secs(5_400))));
        assert!(Goal::parse("yesterday").is_err());
        assert_eq!(Goal::Ago(Duration::from_secs(1)).time_ms(5_000), Some(4_000));
    }

    #[test]
    fn lag_counts_what_is_there() {
        let told = |offset, start, end| v1::describe_group_response::Partition {
            committed: Some(v1::Committed { offset, record_time_ms: 9_000, ..v1::Committed::default() }),
            log_start: Some(start),
            high_watermark: Some(end),
            ..v1::describe_group_response::Partition::default()
        };
        let done = Partition::new(told(7, 0, 7), 10_000);
        assert_eq!((done.lag, done.lag_seconds), (Some(0), Some(0.0)));
        let behind = Partition::new(told(3, 5, 7), 10_000);
        assert_eq!((behind.lag, behind.lag_seconds), (Some(2), Some(1.0)), "what retention took is no lag");
        let silent = Partition::new(v1::describe_group_response::Partition::default(), 10_000);
        assert_eq!((silent.lag, silent.lag_seconds), (None, None));
    }
}
