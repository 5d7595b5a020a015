//! The figures of a cell: what each is, how it is made from a run's report and the brokers' usage, and medians of them.
//! Pure. A figure that was not measured is absent.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{gauge::Usage, grid::Cell};
use crate::load::{options::Durability, report::Report};

const BYTES_PER_GIGABYTE: f64 = 1e9;
const BYTES_PER_MEGABYTE: f64 = 1e6;
/// Records below this size are bound by their number, not by the disk's bandwidth.
const DISK_BOUND_BYTES: u32 = 16 << 10;

/// One kind of figure; the order is that of the table's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Figure {
    /// Acknowledged records a second.
    RecordsPerSecond,
    /// Their values, in millions of bytes a second.
    MegabytesPerSecond,
    /// Half of the records were acknowledged within this.
    AckP50Ms,
    /// 99 of 100.
    AckP99Ms,
    /// What a gigabyte costs all brokers together.
    BrokerCpuSecondsPerGb,
    /// What it costs this tool: clients and checks.
    ClientCpuSecondsPerGb,
    /// Flushes of the disk's cache: what fsync comes to once the kernel has merged what it could.
    DiskFlushesPerSecond,
    /// Write requests of the disk.
    DiskWritesPerSecond,
    /// Bytes that the disk wrote, for each byte acknowledged.
    DiskBytesPerByte,
    /// Bytes that the brokers had written, for each byte acknowledged.
    BrokerBytesPerByte,
    /// Of all brokers' threads.
    ContextSwitchesPerSecond,
    /// The most memory that any broker had resident, in millions of bytes.
    BrokerPeakMb,
    /// Of what one of the yardstick's writers gets.
    DiskPercent,
}

impl Figure {
    /// All, in order.
    pub(super) const ALL: [Figure; 13] = [
        Self::RecordsPerSecond,
        Self::MegabytesPerSecond,
        Self::AckP50Ms,
        Self::AckP99Ms,
        Self::BrokerCpuSecondsPerGb,
        Self::ClientCpuSecondsPerGb,
        Self::DiskFlushesPerSecond,
        Self::DiskWritesPerSecond,
        Self::DiskBytesPerByte,
        Self::BrokerBytesPerByte,
        Self::ContextSwitchesPerSecond,
        Self::BrokerPeakMb,
        Self::DiskPercent,
    ];

    /// The head of its column, and the digits behind the point.
    pub(super) const fn column(self) -> (&'static str, usize) {
        match self {
            Self::RecordsPerSecond => ("records/s", 0),
            Self::MegabytesPerSecond => ("MB/s", 2),
            Self::AckP50Ms => ("ack p50 ms", 2),
            Self::AckP99Ms => ("ack p99 ms", 2),
            Self::BrokerCpuSecondsPerGb => ("brokers CPU s/GB", 2),
            Self::ClientCpuSecondsPerGb => ("client CPU s/GB", 2),
            Self::DiskFlushesPerSecond => ("flushes/s", 0),
            Self::DiskWritesPerSecond => ("disk writes/s", 0),
            Self::DiskBytesPerByte => ("disk bytes/byte", 2),
            Self::BrokerBytesPerByte => ("brokers' bytes/byte", 2),
            Self::ContextSwitchesPerSecond => ("switches/s", 0),
            Self::BrokerPeakMb => ("peak RSS MB", 0),
            Self::DiskPercent => ("% of disk", 0),
        }
    }
}

/// Some or all figures of a cell.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct Figures(BTreeMap<Figure, Option<f64>>);

impl Figures {
    /// Of one run; `disk` is what one of the yardstick's writers gets, in MB/s.
    pub(super) fn of(cell: Cell, report: &Report, usage: Option<&Usage>, disk: Option<f64>) -> Self {
        let rate = report.publish.megabytes_per_second;
        let per_gigabyte = |cpu: f64, over: f64| ratio(cpu * BYTES_PER_GIGABYTE, rate * BYTES_PER_MEGABYTE * over);
        let per_second =
            |count: fn(&Usage) -> Option<u64>| usage.and_then(|usage| ratio(count(usage)? as f64, usage.seconds));
        let per_byte = |bytes: fn(&Usage) -> Option<u64>| ratio(per_second(bytes)?, rate * BYTES_PER_MEGABYTE);
        let is_disk_bound = cell.durability == Durability::Fsync && cell.size.bytes() >= DISK_BOUND_BYTES;
        let value = |figure| match figure {
            Figure::RecordsPerSecond => Some(report.publish.records_per_second),
            Figure::MegabytesPerSecond => Some(rate),
            Figure::AckP50Ms => report.ack_ms.map(|ack| ack.p50),
            Figure::AckP99Ms => report.ack_ms.map(|ack| ack.p99),
            Figure::BrokerCpuSecondsPerGb => usage.and_then(|usage| per_gigabyte(usage.cpu_seconds, usage.seconds)),
            Figure::ClientCpuSecondsPerGb => per_gigabyte(report.client_cpu_seconds, report.setup.duration_seconds),
            Figure::DiskFlushesPerSecond => per_second(|usage| usage.disk_flushes),
            Figure::DiskWritesPerSecond => per_second(|usage| usage.disk_writes),
            Figure::DiskBytesPerByte => per_byte(|usage| usage.disk_written_bytes),
            Figure::BrokerBytesPerByte => per_byte(|usage| usage.process_written_bytes),
            Figure::ContextSwitchesPerSecond => per_second(|usage| usage.context_switches),
            Figure::BrokerPeakMb => {
                let peaks = usage.and_then(|usage| usage.peak_bytes.as_ref()?.iter().max());
                peaks.map(|&bytes| bytes as f64 / BYTES_PER_MEGABYTE)
            }
            Figure::DiskPercent => disk.filter(|_| is_disk_bound).and_then(|disk| ratio(rate * 100.0, disk)),
        };
        Self(Figure::ALL.into_iter().map(|figure| (figure, value(figure))).collect())
    }

    /// One of them.
    pub(super) fn get(&self, figure: Figure) -> Option<f64> {
        self.0.get(&figure).copied().flatten()
    }

    /// As in the table: `-` when it was not measured.
    pub(super) fn text(&self, figure: Figure) -> String {
        let (_, digits) = figure.column();
        self.get(figure).map_or("-".to_owned(), |value| number(value, digits))
    }

    /// The median of each, over the rounds that have it.
    pub(super) fn median(rounds: &[Figures]) -> Self {
        let of = |figure| median(rounds.iter().filter_map(|round| round.get(figure)).collect());
        Self(Figure::ALL.into_iter().map(|figure| (figure, of(figure))).collect())
    }
}

/// `None` rather than an infinity.
fn ratio(part: f64, of: f64) -> Option<f64> {
    (of > 0.0).then(|| part / of).filter(|ratio| ratio.is_finite())
}

/// The middle value, or the mean of the two in the middle.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    match values.len() % 2 {
        1 => Some(upper),
        _ => values.get(values.len() / 2 - 1).map(|lower| (lower + upper) / 2.0),
    }
}

/// With thousands set apart: 1,234.5.
pub(super) fn number(value: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", value.abs());
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let sign = if value < 0.0 { "-" } else { "" };
    let whole = whole.parse::<u64>().map_or(whole.to_owned(), crate::load::report::grouped);
    format!("{sign}{whole}{fraction}")
}

#[cfg(test)]
#[path = "figures_test.rs"]
mod tests;
