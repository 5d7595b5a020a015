//! What the demo prints at the end: the verdict, and how fast it was.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    check::Verdict,
    traffic::{Load, Published, Read},
};

/// The demo's result, as `-o json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    verdict: Verdict,
    read: u64,
    retries: u64,
    /// Acknowledged as already stored: the producer had to ask again, and nothing was stored twice.
    duplicates: u64,
    record_bytes: usize,
    records_per_second: f64,
    /// Of the first half, before anything is killed.
    ack_undisturbed_ms: Percentiles,
    ack_ms: Percentiles,
    end_to_end_ms: Percentiles,
    longest_write_pause_ms: f64,
    fault: Option<String>,
}

impl Report {
    pub(super) fn new(load: Load, published: &Published, read: &Read) -> Self {
        let verdict = Verdict::of(&published.acknowledged, published.failed, &read.records);
        Self {
            read: read.records.len() as u64,
            retries: published.retries,
            duplicates: published.duplicates,
            record_bytes: load.bytes,
            records_per_second: verdict.acknowledged as f64 / published.took.as_secs_f64(),
            ack_undisturbed_ms: Percentiles::of(&published.ack_undisturbed),
            ack_ms: Percentiles::of(&published.ack),
            end_to_end_ms: Percentiles::of(&read.end_to_end),
            longest_write_pause_ms: published.longest_pause.as_secs_f64() * 1e3,
            fault: read.fault.clone(),
            verdict,
        }
    }

    /// Whether everything that was to be shown was seen.
    pub(super) fn holds(&self) -> bool {
        self.verdict.holds() && self.fault.is_none()
    }
}

#[derive(Debug, Serialize)]
struct Percentiles {
    p50: f64,
    p95: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Percentiles {
    fn of(latencies: &Histogram<u64>) -> Self {
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99), p999: at(0.999), max: latencies.max() as f64 / 1e3 }
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p95, p99, p999, max } = self;
        write!(f, "p50 {p50:.2}  p95 {p95:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.2} ms")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { acknowledged, failed, lost, misplaced, repeated, out_of_order } = self.verdict;
        let megabytes = self.records_per_second * self.record_bytes as f64 / 1e6;
        writeln!(f, "acknowledged   {acknowledged} records, {failed} failed")?;
        writeln!(f, "sent again     {} batches; {} records had been stored already", self.retries, self.duplicates)?;
        writeln!(
            f,
            "read           {} records: {lost} lost, {repeated} twice, {misplaced} misplaced, {out_of_order} out of order",
            self.read
        )?;
        writeln!(f, "rate           {:.0} records/s, {megabytes:.2} MB/s, as asked for", self.records_per_second)?;
        writeln!(f, "first half     acknowledged after {}", self.ack_undisturbed_ms)?;
        writeln!(f, "with the crash acknowledged after {}", self.ack_ms)?;
        writeln!(f, "               read after         {}", self.end_to_end_ms)?;
        writeln!(
            f,
            "longest pause  {:.0} ms without an acknowledgement: the leader's death",
            self.longest_write_pause_ms
        )?;
        if let Some(fault) = &self.fault {
            writeln!(f, "FAULT          {fault}")?;
        }
        match self.holds() {
            true => write!(f, "OK: every acknowledged record was read exactly once, in order"),
            false => write!(f, "FAILED: the promise was not kept; please report this"),
        }
    }
}
