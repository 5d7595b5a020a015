//! The command line of `busbar-bench matrix`.

use std::{
    num::{NonZeroU16, NonZeroU32},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, ValueEnum};

use super::grid::{Cell, Size};
use crate::load::{
    options::{
        BUFFER_BYTES_DEFAULT, BUFFER_BYTES_MAX, BUFFER_BYTES_MIN, Compression, Durability, Options as Load, Output,
        PARTITIONS_MAX, REPLICAS_MAX, SIZE_MAX, TargetKind, WORKERS_MAX, duration, positive_duration, producers,
    },
    payload::HEADER_BYTES,
};

/// What the clients ask unless --server or --dir says otherwise.
const SERVER_DEFAULT: &str = "127.0.0.1:7400";

/// Runs the same load over a grid of partitions, record sizes and durabilities, each cell briefly on a topic of its own,
/// and writes a table, JSON and plots.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Exit codes: 0 done; 1 a cell failed, or a record was lost, doubled or out of order; 2 usage.\n\
                        Every option and figure: docs/BENCH.md"
)]
pub(crate) struct Options {
    /// Brokers to ask first, comma separated [default: those of --dir, or 127.0.0.1:7400]
    #[arg(long, env = "BUSBAR_SERVER", value_name = "HOST:PORT,...")]
    pub(super) server: Option<String>,
    /// Broker under test, through its own client; others than busbar must be compiled in (--features nats,kafka)
    #[arg(long, default_value = "busbar", value_name = "BROKER")]
    pub(super) target: TargetKind,
    /// Partitions of a topic
    #[arg(long, value_delimiter = ',', default_value = "1,16,256,1024,4096", value_name = "N,...",
          value_parser = clap::value_parser!(u32).range(1..=PARTITIONS_MAX))]
    pub(super) partitions: Vec<u32>,
    /// Bytes of a record's value: 100, 1KiB, 1MiB, ...
    #[arg(long, value_delimiter = ',', default_value = "100,1KiB,16KiB,256KiB", value_name = "SIZE,...", value_parser = size)]
    pub(super) sizes: Vec<Size>,
    /// When a record counts as acknowledged
    #[arg(long, value_delimiter = ',', default_value = "fsync,replicated", value_name = "KIND,...")]
    pub(super) durability: Vec<Durability>,
    /// Replicas of a topic [default: 3, or fewer on a smaller cluster]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=REPLICAS_MAX))]
    pub(super) replicas: Option<u32>,
    /// Measured time of a cell, in seconds or as 500ms, 2m, ...
    #[arg(long, default_value = "5", value_name = "TIME", value_parser = positive_duration)]
    pub(super) duration: Duration,
    /// Load before measuring that is in no figure
    #[arg(long, alias = "warmup", default_value = "2", value_name = "TIME", value_parser = duration)]
    pub(super) warm_up: Duration,
    /// Longest wait afterwards for acknowledgements and for consumers to catch up
    #[arg(long, default_value = "30", value_name = "TIME", value_parser = positive_duration)]
    pub(super) drain: Duration,
    /// Rest between two cells, while the brokers clear away the topic before
    #[arg(long, default_value = "1", value_name = "TIME", value_parser = duration)]
    pub(super) pause: Duration,
    /// Times the whole grid is run; the figures are medians
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// Producers, each with its own sequence
    #[arg(long, default_value = "1", value_name = "N", value_parser = producers)]
    pub(super) producers: NonZeroU16,
    /// Readers; 0 = publish only, nothing is checked
    #[arg(long, default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u16).range(0..=i64::from(WORKERS_MAX)))]
    pub(super) consumers: u16,
    /// Records a second of all producers together, on a fixed schedule; without it, full load
    #[arg(long, value_name = "RECORDS")]
    pub(super) rate: Option<NonZeroU32>,
    /// Which partition a record without a key goes to
    #[arg(long, default_value = "even", value_name = "HOW")]
    pub(super) spread: Spread,
    /// Records under way of all producers together, in bytes: the same load whatever the partitions
    #[arg(long, default_value_t = BUFFER_BYTES_DEFAULT, value_name = "BYTES",
          value_parser = clap::value_parser!(u32).range(BUFFER_BYTES_MIN..=BUFFER_BYTES_MAX))]
    pub(super) buffer_bytes: u32,
    /// Largest batch that the client gathers
    #[arg(long, default_value_t = 256 << 10, value_name = "BYTES",
          value_parser = clap::value_parser!(u32).range(1_024..=SIZE_MAX))]
    pub(super) batch_bytes: u32,
    /// Longest that the client holds a record back to fill a batch
    #[arg(long, default_value_t = 0, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub(super) linger: u64,
    /// Folder of a local cluster (`busbar dev up --dir`): its processes and its disk are watched, too
    #[arg(long, value_name = "DIR", conflicts_with_all = ["pids", "data"])]
    pub(super) dir: Option<PathBuf>,
    /// Processes of the brokers on this machine, to be watched
    #[arg(long, value_delimiter = ',', value_name = "PID,...")]
    pub(super) pids: Vec<u32>,
    /// Data folders of the brokers of --pids, for their disk
    #[arg(long, value_delimiter = ',', value_name = "DIR,...", requires = "pids")]
    pub(super) data: Vec<PathBuf>,
    /// Folder for matrix.md, matrix.json and the plots; made when missing
    #[arg(long, default_value = "matrix", value_name = "DIR")]
    pub(super) out: PathBuf,
}

/// Which partition a record goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Spread {
    /// Record after record to partition after partition: small batches on many partitions
    Even,
    /// As the client does it: Busbar's fills a batch, then goes on to a partition with less to do
    Client,
}

impl Options {
    /// Who is asked first; `found` are the servers of `--dir`.
    pub(super) fn servers(&self, found: Option<String>) -> String {
        self.server.clone().or(found).unwrap_or_else(|| SERVER_DEFAULT.to_owned())
    }

    /// The load of one cell on this topic.
    pub(super) fn load(&self, cell: Cell, servers: &str, topic: String) -> Load {
        let share = self.buffer_bytes / u32::from(self.producers.get());
        Load {
            server: servers.to_owned(),
            target: self.target,
            topic,
            size: cell.size.bytes(),
            producers: self.producers,
            consumers: self.consumers,
            duration: self.duration,
            warmup: self.warm_up,
            drain: self.drain,
            rate: self.rate,
            output: Output::Text,
            partitions: Some(cell.partitions),
            replicas: self.replicas,
            durability: Some(cell.durability),
            batch_bytes: self.batch_bytes,
            linger: self.linger,
            compression: Compression::None,
            in_flight: 5,
            buffer_bytes: share.max(u32::try_from(BUFFER_BYTES_MIN).unwrap_or(share)),
            nats_unacknowledged: 5_000,
            keyed: false,
            even: self.spread == Spread::Even,
        }
    }
}

fn size(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    let range = HEADER_BYTES as i64..=SIZE_MAX;
    if range.contains(&i64::from(size.bytes())) {
        Ok(size)
    } else {
        Err(format!("give {HEADER_BYTES} bytes to {} MiB", SIZE_MAX >> 20))
    }
}

#[cfg(test)]
pub(in crate::matrix) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    pub(in crate::matrix) fn parse(line: &str) -> Result<Options, clap::Error> {
        let words = ["matrix"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.options)
    }

    #[test]
    fn dimensions_are_repeated_or_comma_separated() {
        let options = parse("--partitions 1,16 --partitions 4 --sizes 100,1KiB --durability fsync").expect("valid");
        assert_eq!(options.partitions, [1, 16, 4]);
        assert_eq!(options.sizes.iter().map(|size| size.bytes()).collect::<Vec<_>>(), [100, 1_024]);
        assert_eq!(options.durability, [Durability::Fsync]);
        let all = parse("").expect("valid");
        assert_eq!(all.partitions.len() * all.sizes.len() * all.durability.len(), 40);
    }

    #[test]
    fn producers_share_one_budget() {
        let options = parse("--producers 4 --buffer-bytes 16777216 --warmup 1 --spread client").expect("valid");
        let cell = Cell { durability: Durability::Fsync, size: options.sizes[0], partitions: 16 };
        let load = options.load(cell, "a:1", "t".to_owned());
        assert_eq!((load.buffer_bytes, load.even, load.warmup), (4 << 20, false, Duration::from_secs(1)));
        assert_eq!((load.partitions, load.size, load.durability), (Some(16), 100, Some(Durability::Fsync)));
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for wrong in [
            "--partitions 0",
            "--partitions 1,x",
            "--sizes 31",
            "--sizes 9MiB",
            "--sizes 1kb",
            "--durability never",
            "--rounds 0",
            "--duration 0",
            "--pids 0x1",
            "--pids 1 --dir /",
            "--data /",
            "--buffer-bytes 1",
        ] {
            assert_eq!(parse(wrong).expect_err(wrong).exit_code(), 2, "{wrong}");
        }
    }
}
