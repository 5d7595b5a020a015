//! Histograms and failure counts.
//!
//! Latencies are recorded in nanoseconds into HDR histograms of one precision, so that those of all workers can
//! be *added*: a percentile of a run is taken from the sum, never averaged from percentiles.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

use super::{
    clock::Nanos,
    schedule::{Phase, Timeline},
};

const LOWEST_NANOS: u64 = 1_000;
const HIGHEST_NANOS: u64 = 600_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;
const DISTINCT_FAILURES_MAX: usize = 8;

/// Latencies of one kind. From 1 µs to 10 minutes at three significant digits; what is beyond counts as the bound.
#[derive(Clone)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub(crate) fn new() -> Self {
        let empty = Histogram::new_with_bounds(LOWEST_NANOS, HIGHEST_NANOS, SIGNIFICANT_DIGITS);
        // The arguments are the constants above.
        Self(empty.expect("the histogram's constants are valid"))
    }

    /// Records the time from `from` to `to`.
    pub(crate) fn record(&mut self, from: Nanos, to: Nanos) {
        self.0.saturating_record(to.since(from));
    }

    /// Adds another worker's.
    pub(crate) fn merge(&mut self, other: &Latencies) {
        // All have the same bounds, so nothing can be out of range.
        let merged = self.0.add(&other.0);
        assert!(merged.is_ok(), "two histograms of one run differ in their bounds");
    }

    /// Moves all into `total` and starts anew.
    fn drain_into(&mut self, total: &mut Latencies) {
        total.merge(self);
        self.0.reset();
    }

    /// The percentiles that are printed; `None` when nothing was recorded.
    pub(crate) fn summary(&self) -> Option<Percentiles> {
        let at = |quantile| millis(self.0.value_at_quantile(quantile));
        (!self.0.is_empty()).then(|| Percentiles {
            p50: at(0.50),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: millis(self.0.max()),
        })
    }
}

/// Milliseconds, to the microsecond.
fn millis(nanos: u64) -> f64 {
    (nanos as f64 / 1_000.0).round() / 1_000.0
}

/// A latency distribution in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    /// Half of the records took at most this.
    pub(crate) p50: f64,
    /// 95 of 100.
    pub(crate) p95: f64,
    /// 99 of 100.
    pub(crate) p99: f64,
    /// 999 of 1,000.
    pub(crate) p999: f64,
    /// The slowest.
    pub(crate) max: f64,
}

/// Deliveries that failed, by what was said. Bounded: later kinds are counted under one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failures {
    count: u64,
    by_message: BTreeMap<String, u64>,
}

impl Failures {
    /// Counts one.
    pub(crate) fn record(&mut self, message: String) {
        self.add(message, 1);
    }

    fn add(&mut self, message: String, times: u64) {
        self.count += times;
        let known = self.by_message.contains_key(&message);
        let message =
            if known || self.by_message.len() < DISTINCT_FAILURES_MAX { message } else { "others".to_owned() };
        *self.by_message.entry(message).or_default() += times;
    }

    /// Adds another worker's.
    pub(crate) fn merge(&mut self, other: &Failures) {
        for (message, &times) in &other.by_message {
            self.add(message.clone(), times);
        }
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// What was said and how often, at most nine kinds.
    pub(crate) fn by_message(&self) -> &BTreeMap<String, u64> {
        &self.by_message
    }
}

/// What became of one record, as a lane saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settled {
    /// When it was due.
    pub(crate) scheduled: Nanos,
    /// When its acknowledgement was seen.
    pub(crate) acknowledged: Nanos,
}

/// Counts and latencies of one producer's acknowledgements; its lanes write, the reporter reads.
pub(crate) struct AckMeter {
    timeline: Timeline,
    readings: Mutex<Readings>,
}

/// What an [`AckMeter`] has gathered.
#[derive(Clone)]
pub(crate) struct Readings {
    /// Since the last [`AckMeter::take_interval`], whatever the phase.
    interval: Latencies,
    /// Of records that were due in the measured period.
    pub(crate) measured: Latencies,
    /// Acknowledgements that arrived in the measured period, whenever the record was due: the publish rate.
    pub(crate) acknowledged_in_time: u64,
    /// Deliveries that failed, in any phase.
    pub(crate) failures: Failures,
    /// Scheduled records that were never sent: the rate was not reached.
    pub(crate) unsent: u64,
    /// Sequences that were issued and whose send was given up when the measured period ended.
    pub(crate) withdrawn: u64,
}

impl AckMeter {
    /// A meter for these phases.
    pub(crate) fn new(timeline: Timeline) -> Self {
        let readings = Readings {
            interval: Latencies::new(),
            measured: Latencies::new(),
            acknowledged_in_time: 0,
            failures: Failures::default(),
            unsent: 0,
            withdrawn: 0,
        };
        Self { timeline, readings: Mutex::new(readings) }
    }

    /// Counts acknowledgements.
    pub(crate) fn record(&self, settled: &[Settled]) {
        let mut readings = self.readings.lock();
        for record in settled {
            readings.interval.record(record.scheduled, record.acknowledged);
            if self.timeline.phase(record.scheduled) == Phase::Measured {
                readings.measured.record(record.scheduled, record.acknowledged);
            }
            if self.timeline.phase(record.acknowledged) == Phase::Measured {
                readings.acknowledged_in_time += 1;
            }
        }
    }

    /// Counts a delivery that failed.
    pub(crate) fn record_failure(&self, message: String) {
        self.readings.lock().failures.record(message);
    }

    /// Counts scheduled records that will not be sent.
    pub(crate) fn record_unsent(&self, records: u64) {
        self.readings.lock().unsent += records;
    }

    /// Counts a record whose send was given up.
    pub(crate) fn record_withdrawn(&self) {
        self.readings.lock().withdrawn += 1;
    }

    /// Failed deliveries so far.
    pub(crate) fn failed(&self) -> u64 {
        self.readings.lock().failures.count()
    }

    /// Adds the latencies since the last call to `into`.
    pub(crate) fn take_interval(&self, into: &mut Latencies) {
        self.readings.lock().interval.drain_into(into);
    }

    /// A copy of everything so far.
    pub(crate) fn readings(&self) -> Readings {
        self.readings.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn recorded(micros: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::new();
        for value in micros {
            latencies.record(Nanos::new(0), Nanos::new(value * 1_000));
        }
        latencies
    }

    #[test]
    fn percentiles_come_from_the_sum_and_not_from_an_average() {
        let mut all = recorded(1..=900);
        let slow = recorded((0..100).map(|_| 50_000));
        all.merge(&slow);
        let summary = all.summary().expect("recorded");
        for (got, want) in
            [(summary.p50, 0.5), (summary.p95, 50.0), (summary.p99, 50.0), (summary.p999, 50.0), (summary.max, 50.0)]
        {
            assert!((got - want).abs() <= want * 0.002, "{got} is not {want}");
        }
    }

    #[test]
    fn nothing_recorded_has_no_percentiles() {
        assert_eq!(Latencies::new().summary(), None);
    }

    #[test]
    fn what_is_beyond_the_bounds_counts_as_the_bound() {
        let mut latencies = Latencies::new();
        latencies.record(Nanos::new(0), Nanos::new(u64::MAX));
        assert!(latencies.summary().expect("recorded").max >= 600_000.0);
    }

    #[test]
    fn latency_goes_by_when_it_was_due_and_the_rate_by_when_it_was_acknowledged() {
        let timeline = Timeline::new(Nanos::new(0), Duration::from_secs(1), Duration::from_secs(1));
        let meter = AckMeter::new(timeline);
        let at = |millis: u64| Nanos::new(millis * 1_000_000);
        let settled = |scheduled, acknowledged| Settled { scheduled: at(scheduled), acknowledged: at(acknowledged) };
        meter.record(&[settled(10, 20), settled(900, 1_100), settled(950, 1_100)]);
        meter.record(&[settled(1_500, 1_510), settled(1_990, 2_990)]);
        let readings = meter.readings();
        assert_eq!(readings.acknowledged_in_time, 3, "two of the warm-up and one of the measured period");
        assert_eq!(readings.measured.0.len(), 2);
        assert!((readings.measured.summary().expect("recorded").max - 1_000.0).abs() < 2.0);

        let mut interval = Latencies::new();
        meter.take_interval(&mut interval);
        meter.take_interval(&mut interval);
        assert_eq!(interval.0.len(), 5, "an interval is handed out once");
    }

    #[test]
    fn failures_stay_bounded_and_complete() {
        let mut failures = Failures::default();
        for n in 0..100 {
            failures.record(format!("kind {n}"));
        }
        failures.record("kind 0".to_owned());
        let mut sum = Failures::default();
        sum.merge(&failures);
        sum.merge(&failures);
        assert_eq!(sum.count(), 202);
        assert_eq!(sum.by_message().len(), DISTINCT_FAILURES_MAX + 1);
        assert_eq!(sum.by_message().values().sum::<u64>(), 202);
        assert_eq!(sum.by_message().get("kind 0"), Some(&4));
    }
}
