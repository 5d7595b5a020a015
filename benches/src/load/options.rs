//! The command line of `busbar-bench`. Owns parsing and ranges; knows nothing of how a run works.

use std::{
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use clap::{Parser, ValueEnum};
use serde::Serialize;

use super::payload::HEADER_BYTES;

/// Upper bound of `--size`: the largest batch that a topic can be made to take.
pub(crate) const SIZE_MAX: i64 = busbar_proto::limits::BATCH_BYTES_MAX as i64;
pub(crate) const PARTITIONS_MAX: i64 = busbar_proto::limits::PARTITIONS_PER_TOPIC_MAX as i64;
pub(crate) const REPLICAS_MAX: i64 = busbar_proto::limits::REPLICAS_MAX as i64;
/// Producers, and consumers: each holds histograms of some 0.4 MiB.
pub(crate) const WORKERS_MAX: u16 = 256;
/// What Busbar's client holds unless told otherwise.
pub(crate) const BUFFER_BYTES_DEFAULT: u32 = 32 << 20;
/// The client's own bounds, but for the upper one: a tool with more would measure its queue.
pub(crate) const BUFFER_BYTES_MIN: i64 = 64 << 10;
pub(crate) const BUFFER_BYTES_MAX: i64 = 1 << 30;
const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Busbar's load tool: publishes at full load or at a constant rate, reads everything back, checks that each
/// acknowledged record arrives once and in order, and prints rates and latencies.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "busbar-bench",
    version,
    after_help = "Exit codes: 0 done; 1 failed, or a record was lost, doubled \
    or out of order; 2 usage.\nEvery option and figure: docs/BENCH.md"
)]
pub(crate) struct Options {
    /// Brokers to ask first, comma separated
    #[arg(long, env = "BUSBAR_SERVER", default_value = "127.0.0.1:7400", value_name = "HOST:PORT,...")]
    pub(crate) server: String,

    /// Broker under test, through its own client; others than busbar must be compiled in (--features nats,kafka)
    #[arg(long, default_value = "busbar", value_name = "BROKER")]
    pub(crate) target: TargetKind,

    /// Topic to write and read; made when missing, used as it is when it exists
    #[arg(long, default_value = "bench")]
    pub(crate) topic: String,

    /// Bytes of a record's value, 32 of them the tool's header
    #[arg(long, default_value_t = 1024, value_name = "BYTES",
          value_parser = clap::value_parser!(u32).range(HEADER_BYTES as i64..=SIZE_MAX))]
    pub(crate) size: u32,

    /// Producers, each with its own sequence
    #[arg(long, default_value = "1", value_name = "N", value_parser = producers)]
    pub(crate) producers: NonZeroU16,

    /// Readers; partition p goes to reader p % N. 0 = publish only, nothing is checked
    #[arg(long, default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u16).range(0..=i64::from(WORKERS_MAX)))]
    pub(crate) consumers: u16,

    /// Measured time, in seconds or as 500ms, 2m, ...
    #[arg(long, default_value = "10", value_name = "TIME", value_parser = positive_duration)]
    pub(crate) duration: Duration,

    /// Load before measuring that is in no figure
    #[arg(long, default_value = "2", value_name = "TIME", value_parser = duration)]
    pub(crate) warmup: Duration,

    /// Longest wait afterwards for acknowledgements and for consumers to catch up
    #[arg(long, default_value = "10", value_name = "TIME", value_parser = positive_duration)]
    pub(crate) drain: Duration,

    /// Records a second of all producers together, on a fixed schedule; without it, full load
    #[arg(long, value_name = "RECORDS")]
    pub(crate) rate: Option<NonZeroU32>,

    /// Output; json prints one object on stdout and progress on stderr
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Output,

    /// Partitions of a topic that has to be made [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=PARTITIONS_MAX))]
    pub(crate) partitions: Option<u32>,

    /// Replicas of a topic that has to be made [default: 3, or fewer on a smaller cluster]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=REPLICAS_MAX))]
    pub(crate) replicas: Option<u32>,

    /// Durability of a topic that has to be made [default: fsync]
    #[arg(long, value_name = "KIND")]
    pub(crate) durability: Option<Durability>,

    /// Largest batch that the client gathers
    #[arg(long, default_value_t = 256 << 10, value_name = "BYTES",
          value_parser = clap::value_parser!(u32).range(1_024..=SIZE_MAX))]
    pub(crate) batch_bytes: u32,

    /// Longest that the client holds a record back to fill a batch
    #[arg(long, default_value_t = 0, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub(crate) linger: u64,

    /// Records that a producer holds until their fate is known, in bytes; not of NATS
    #[arg(long, default_value_t = BUFFER_BYTES_DEFAULT, value_name = "BYTES",
          value_parser = clap::value_parser!(u32).range(BUFFER_BYTES_MIN..=BUFFER_BYTES_MAX))]
    pub(crate) buffer_bytes: u32,

    /// Compression of batches, done by the client
    #[arg(long, default_value = "none", value_name = "CODEC")]
    pub(crate) compression: Compression,

    /// Unanswered batches a partition, 1 to 5
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=5))]
    pub(crate) in_flight: u32,

    /// Of NATS: unacknowledged records of a producer
    #[arg(long, default_value_t = 5_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) nats_unacknowledged: u32,

    /// Give each record one of 16,384 keys in turn, so that the client's hash picks the partition
    #[arg(long)]
    pub(crate) keyed: bool,

    /// Send record after record to partition after partition, instead of where the client would
    #[arg(long, conflicts_with = "keyed")]
    pub(crate) even: bool,
}

/// Whose cluster is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TargetKind {
    /// Busbar.
    Busbar,
    /// NATS JetStream.
    Nats,
    /// Apache Kafka, or what speaks its protocol.
    Kafka,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// When the broker acknowledges a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Durability {
    /// Fsynced on a majority.
    Fsync,
    /// In memory on a majority.
    Replicated,
}

/// The client's compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compression {
    /// Off.
    None,
    /// LZ4 frames.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// `10`, `0.5` (seconds) or anything `humantime` reads.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?,
        Err(_) => humantime::parse_duration(text)
            .map_err(|error| format!("{error}; give seconds (10, 0.5) or a unit (500ms, 2m)"))?,
    };
    if parsed > DURATION_MAX {
        return Err("more than seven days; give a shorter time".to_owned());
    }
    Ok(parsed)
}

pub(crate) fn producers(text: &str) -> Result<NonZeroU16, String> {
    let parsed = text.parse().ok().filter(|count: &NonZeroU16| count.get() <= WORKERS_MAX);
    parsed.ok_or_else(|| format!("give a number from 1 to {WORKERS_MAX}"))
}

pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|parsed| {
        if parsed.is_zero() { Err("0 leaves nothing to measure; give a time above 0".to_owned()) } else { Ok(parsed) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory as _;
        Options::command().debug_assert();
    }

    #[test]
    fn the_issue_s_command_line_parses() {
        let line = "busbar-bench --topic t --size 1024 --producers 1 --consumers 1 --duration 10 --rate 1000 -o json \
                    --server a:1,b:2 --partitions 4 --replicas 3 --durability replicated --batch-bytes 65536 --linger 5 \
                    --compression zstd --warmup 1.5 --in-flight 4 --keyed";
        let options = Options::try_parse_from(line.split_whitespace()).expect("valid");
        assert_eq!((options.topic.as_str(), options.size, options.consumers), ("t", 1024, 1));
        assert_eq!((options.duration, options.warmup), (Duration::from_secs(10), Duration::from_millis(1_500)));
        assert_eq!(options.rate.map(NonZeroU32::get), Some(1_000));
        assert_eq!((options.durability, options.compression), (Some(Durability::Replicated), Compression::Zstd));
        assert_eq!((options.output, options.keyed, options.in_flight), (Output::Json, true, 4));
        assert_eq!((options.even, options.buffer_bytes), (false, BUFFER_BYTES_DEFAULT));
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for wrong in [
            "--size 31",
            "--size 8388609",
            "--producers 0",
            "--producers 257",
            "--consumers 257",
            "--duration 0",
            "--duration -1",
            "--duration NaN",
            "--duration 8d",
            "--duration soon",
            "--rate 0",
            "--partitions 0",
            "--partitions 10001",
            "--replicas 8",
            "--durability maybe",
            "--batch-bytes 10",
            "--in-flight 0",
            "--in-flight 6",
            "--buffer-bytes 100",
            "--keyed --even",
            "--compression gzip",
            "--nonsense",
        ] {
            let line = format!("busbar-bench {wrong}");
            let error = Options::try_parse_from(line.split_whitespace()).expect_err(wrong);
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn times_read_as_seconds_or_with_a_unit() {
        for (text, millis) in [("10", 10_000), ("0.25", 250), ("500ms", 500), ("2m", 120_000), ("0", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }
}
