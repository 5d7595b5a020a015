//! What a chaos run prints, and whether it failed.

use std::fmt::Write as _;

use busbar_client::GroupStats;
use serde::Serialize;

use super::{
    ledger::{Count, Pause},
    options::{Options, Trouble},
    stalled::Comparison,
};

/// Pauses of all rounds: of partitions that stayed with their member, and of those that moved. Nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    stayed: Vec<u64>,
    moved: Vec<u64>,
}

impl Pauses {
    /// Takes a round's in; the longest of them, in seconds.
    pub(super) fn take(&mut self, round: Vec<Pause>) -> f64 {
        let longest = round.iter().map(|pause| pause.nanos).max().unwrap_or(0);
        for Pause { nanos, moved } in round {
            if moved { &mut self.moved } else { &mut self.stayed }.push(nanos);
        }
        longest as f64 / 1e9
    }
}

/// What the run came to.
pub(super) struct Totals {
    pub(super) count: Count,
    pub(super) stats: Vec<GroupStats>,
    /// All that was acknowledged was done in time.
    pub(super) drained: bool,
    /// Of `stalled`.
    pub(super) comparison: Option<Comparison>,
}

/// Percentiles in milliseconds; one value a partition and round.
#[derive(Debug, Serialize)]
struct Spread {
    count: usize,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Spread {
    fn of(mut nanos: Vec<u64>) -> Self {
        nanos.sort_unstable();
        let at = |part: f64| {
            let last = nanos.len().saturating_sub(1);
            let index = ((nanos.len() as f64 * part).ceil() as usize).saturating_sub(1).min(last);
            nanos.get(index).map_or(0.0, |nanos| *nanos as f64 / 1e6)
        };
        Self { count: nanos.len(), p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }

    fn text(&self) -> String {
        format!(
            "p50 {:.1} ms  p99 {:.1} ms  max {:.1} ms  ({} values)",
            self.p50_ms, self.p99_ms, self.max_ms, self.count
        )
    }
}

/// The results.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    trouble: &'static str,
    rounds: u32,
    records_per_second: u32,
    producers: u16,
    consumers: u16,
    partitions: u32,
    #[serde(flatten)]
    count: Count,
    redelivered: u64,
    stuck: bool,
    pause_stayed: Spread,
    pause_moved: Spread,
    comparison: Option<Comparison>,
}

/// For people.
pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}

impl Report {
    pub(super) fn new(options: &Options, totals: Totals, pauses: Pauses) -> Self {
        Self {
            trouble: match options.trouble {
                Trouble::Brokers => "brokers",
                Trouble::Members => "members",
                Trouble::Stalled => "stalled",
            },
            rounds: options.rounds,
            records_per_second: options.rate,
            producers: options.producers,
            consumers: options.consumers,
            partitions: options.partitions,
            count: totals.count,
            redelivered: totals.stats.iter().map(|stats| stats.redelivered).sum(),
            stuck: !totals.drained,
            pause_stayed: Spread::of(pauses.stayed),
            pause_moved: Spread::of(pauses.moved),
            comparison: totals.comparison,
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let Count { acknowledged, rejected, unknown, missing, .. } = self.count;
        let Count { rejected_yet_stored, stored_twice, delivered_again, reordered, foreign, .. } = self.count;
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "records     acknowledged {acknowledged}  rejected {rejected}  unknown {unknown}");
        let _ = writeln!(
            text,
            "checks      lost {missing}  stored twice {stored_twice}  reordered {reordered}  rejected yet stored \
             {rejected_yet_stored}  foreign {foreign}  stuck {}",
            if self.stuck { "yes" } else { "no" }
        );
        let _ = writeln!(text, "again       delivered again {delivered_again} (redeliveries {})", self.redelivered);
        let _ = writeln!(text, "pause       of partitions that stayed with their member: {}", self.pause_stayed.text());
        let _ = writeln!(text, "            of partitions that moved: {}", self.pause_moved.text());
        text += &self.comparison.as_ref().map(Comparison::text).unwrap_or_default();
        text
    }

    /// For programs.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// Why the run counts as failed.
    pub(crate) fn failure(&self) -> Option<String> {
        let Count { missing, stored_twice, reordered, rejected_yet_stored, foreign, .. } = self.count;
        let wrong = [
            (missing, "acknowledged and lost"),
            (stored_twice, "stored twice"),
            (reordered, "out of order"),
            (rejected_yet_stored, "rejected and yet stored"),
            (foreign, "not of this run"),
        ];
        let wrong: Vec<String> =
            wrong.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        (!wrong.is_empty()).then(|| format!("records were {}", wrong.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let spread = Spread::of((1..=100).map(|ms| ms * 1_000_000).collect());
        assert_eq!((spread.p50_ms, spread.p99_ms, spread.max_ms), (50.0, 99.0, 100.0));
        assert_eq!(Spread::of(Vec::new()).max_ms, 0.0);
    }
}
