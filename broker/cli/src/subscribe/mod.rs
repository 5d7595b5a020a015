//! `busbar sub`: prints a topic's records, one a line, until `--count` are printed or a signal ends it. With `--group` as
//! a member of a consumer group, see `group`.

mod group;
mod silence;

use std::{io, process::ExitCode};

use busbar_client::{ConsumedRecord, Filter, FilterError, ReadFrom, StartAt};
use busbar_proto::TopicName;

use self::silence::Silence;
use crate::{
    connection::ServerArgs,
    output::{self, Format, OutputArgs},
    record::RecordView,
    signals::EndSignals,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The topic
    topic: TopicName,
    /// Where to begin: earliest, latest or an offset
    #[arg(long, default_value = "earliest", value_name = "WHERE", value_parser = start_at)]
    from: StartAt,
    /// Only this partition [default: all; order holds within each]
    #[arg(long, value_name = "N", conflicts_with = "group")]
    partition: Option<u32>,
    /// Only records whose headers match, such as "ce_type = 'order.created' and region in ('eu', 'us')": =, !=, ^=
    /// (begins with), in (...), exists(...), and, or, not, parentheses
    #[arg(long, value_name = "EXPRESSION", value_parser = filter)]
    filter: Option<Filter>,
    /// Which replica of each partition is read: its leader, or any
    #[arg(long, default_value = "leader", value_name = "WHICH", value_parser = read_from)]
    read_from: ReadFrom,
    /// Exit 0 after so many records [default: until Ctrl-C]
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    group: group::GroupArgs,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut signals = EndSignals::listen()?;
    if args.group.group.is_some() {
        return group::run(args, signals).await;
    }
    tokio::select! {
        biased;
        () = signals.next() => {}
        printed = print_records(args) => printed?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn print_records(args: Args) -> anyhow::Result<()> {
    let client = args.server.connect().await?;
    let mut builder = client.consumer(args.topic.as_str()).from(args.from).read_from(args.read_from);
    if let Some(filter) = &args.filter {
        builder = builder.filter(filter.as_str());
    }
    if let Some(partition) = args.partition {
        builder = builder.partitions(vec![partition]);
    }
    let mut consumer = builder.build().await?;
    let mut silence = Silence::new(&client, &args.topic);
    let mut printed = 0;
    while args.count.is_none_or(|count| printed < count) {
        let next = tokio::select! {
            biased;
            next = consumer.next() => next?,
            () = silence.look() => continue,
        };
        let Some(record) = next else { break };
        print(&record, args.output)?;
        printed += 1;
    }
    Ok(())
}

fn print(record: &ConsumedRecord, output: OutputArgs) -> io::Result<()> {
    let view = RecordView::of(record);
    match output.format {
        Format::Text => output::line(view.line()),
        Format::Json => output::json(&view),
    }
}

/// Parsed before anything is connected; the error points at the place.
fn filter(text: &str) -> Result<Filter, FilterError> {
    text.parse()
}

fn read_from(text: &str) -> Result<ReadFrom, String> {
    match text {
        "leader" => Ok(ReadFrom::Leader),
        "any" => Ok(ReadFrom::Any),
        _ => Err("write leader or any".to_owned()),
    }
}

/// `earliest`, `latest` or an offset.
pub(crate) fn start_at(text: &str) -> Result<StartAt, String> {
    match text {
        "earliest" => Ok(StartAt::Earliest),
        "latest" => Ok(StartAt::Latest),
        offset => offset.parse().map(StartAt::Offset).map_err(|_| "write earliest, latest or an offset".to_owned()),
    }
}
