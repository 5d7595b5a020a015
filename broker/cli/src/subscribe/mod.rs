//! `busbar sub`: prints a topic's records, one a line, until `--count` are printed or a signal ends it. With `--group` as
//! a member of a consumer group, see `group`.

mod group;
mod silence;

use std::{io, process::ExitCode, time::SystemTime};

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
    /// Where to begin: earliest, latest, an offset, a time such as 2026-11-20T12:00Z, or so long ago, such as 15m
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

/// `earliest`, `latest`, an offset, a time or so long ago.
pub(crate) fn start_at(text: &str) -> Result<StartAt, String> {
    start_seen_at(text, SystemTime::now())
}

fn start_seen_at(text: &str, now: SystemTime) -> Result<StartAt, String> {
    let at = |time: SystemTime| match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => Ok(StartAt::Time(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))),
        Err(_) => Err("a time before 1970".to_owned()),
    };
    match text {
        "earliest" => return Ok(StartAt::Earliest),
        "latest" => return Ok(StartAt::Latest),
        _ => {}
    }
    if let Ok(offset) = text.parse() {
        return Ok(StartAt::Offset(offset));
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return now.checked_sub(ago).ok_or_else(|| "longer ago than time goes back".to_owned()).and_then(at);
    }
    // A time without seconds is fine, too.
    let whole = match text.strip_suffix('Z') {
        Some(time) if time.len() == "2026-11-20T12:00".len() => format!("{time}:00Z"),
        _ => text.to_owned(),
    };
    match humantime::parse_rfc3339_weak(&whole) {
        Ok(time) => at(time),
        Err(_) => {
            Err("write earliest, latest, an offset, a time in UTC such as 2026-11-20T12:00Z, or a duration such \
                       as 15m"
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn places_to_begin_at() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let cases = [
            ("earliest", Some(StartAt::Earliest)),
            ("latest", Some(StartAt::Latest)),
            ("0", Some(StartAt::Offset(0))),
            ("18446744073709551615", Some(StartAt::Offset(u64::MAX))),
            ("15m", Some(StartAt::Time(100_000))),
            ("1970-01-01T00:01Z", Some(StartAt::Time(60_000))),
            ("1970-01-01T00:00:02.5Z", Some(StartAt::Time(2_500))),
            ("1970-01-01 00:00:03", Some(StartAt::Time(3_000))),
            ("1h", None),
            ("-1", None),
            ("18446744073709551616", None),
            ("2026-13-01T00:00Z", None),
            ("2026-11-20T12:00+02:00", None),
            ("noon", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(start_seen_at(text, now).ok(), want, "{text:?}");
        }
    }
}
