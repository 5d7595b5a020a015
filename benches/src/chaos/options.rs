//! The command line of `busbar-bench chaos`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::load::options::Output;

/// Kills brokers, or changes a group's members, under load, and checks that nothing acknowledged is lost, doubled or out
/// of order, on a local cluster that it starts itself with the `busbar` beside it.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// What happens: brokers are killed with kill -9 and started again, members come and go, or a second group takes
    /// records and never acknowledges them
    #[arg(value_enum, default_value = "brokers")]
    pub(crate) trouble: Trouble,
    /// How often; of `stalled`, half of them before the second group comes
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rounds: u32,
    /// Time from one to the next [default: 8s for brokers, else 2s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    every: Option<Duration>,
    /// Records a second, all producers together
    #[arg(long, default_value_t = 20_000, value_name = "RECORDS", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) rate: u32,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(16..=65_536))]
    pub(crate) size: u32,
    /// Producers
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) producers: u16,
    /// Members of the group to begin with
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) consumers: u16,
    /// Partitions
    #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) partitions: u32,
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=9))]
    pub(crate) nodes: u16,
    /// First port of the cluster
    #[arg(long, default_value_t = 7_600, value_name = "PORT")]
    pub(crate) base_port: u16,
    /// Output; json prints one object on stdout and progress on stderr
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Output,
}

impl Options {
    /// Time from one trouble to the next.
    pub(crate) fn every(&self) -> Duration {
        self.every.unwrap_or(match self.trouble {
            Trouble::Brokers => Duration::from_secs(8),
            Trouble::Members | Trouble::Stalled => Duration::from_secs(2),
        })
    }
}

/// What happens to the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Trouble {
    /// Brokers are killed and started again.
    Brokers,
    /// Members come and go.
    Members,
    /// Another group reads and never acknowledges.
    Stalled,
}

impl Trouble {
    /// For people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Brokers => "brokers are killed (kill -9) one after the other",
            Self::Members => "members come and go",
            Self::Stalled => "a second group takes records and never acknowledges them",
        }
    }
}
