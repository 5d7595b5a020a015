//! What is printed: the first line, one line a second, the summary, the JSON object. Pure: values in, text out.
//!
//! The JSON keys are public (docs/BENCH.md) and only ever added to. 1 MB is 1,000,000 bytes of record values,
//! without keys, headers, framing or replication.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::Serialize;

use super::{
    meter::Percentiles,
    options::{Compression, Durability, Options, TargetKind},
    target::TopicFacts,
};

const BYTES_PER_MEGABYTE: f64 = 1e6;

/// What was run: the head of the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Setup {
    /// Whose cluster.
    pub(crate) target: TargetKind,
    /// Durability of the topic as it is.
    pub(crate) durability: Durability,
    /// Copies of each partition, as the topic is.
    pub(crate) replicas: u32,
    /// Name of the topic.
    pub(crate) topic: String,
    /// Partitions of the topic as it is.
    pub(crate) partitions: u32,
    /// Bytes of each value.
    pub(crate) size: u32,
    /// Largest batch that the client gathers.
    pub(crate) batch_bytes: u32,
    /// Longest that the client waits to fill one.
    pub(crate) linger_ms: u64,
    /// Of batches, by the client.
    pub(crate) compression: Compression,
    /// Unanswered batches a partition.
    pub(crate) in_flight: u32,
    /// Records that a producer holds until their fate is known.
    pub(crate) buffer_bytes: u32,
    /// Whether records had keys.
    pub(crate) keyed: bool,
    /// Whether records went to partition after partition.
    pub(crate) even: bool,
    /// Producers.
    pub(crate) producers: u16,
    /// Consumers that had a partition to read.
    pub(crate) consumers: u32,
    /// Records a second that were asked for; `None` = full load.
    pub(crate) rate: Option<u32>,
    /// Before measuring.
    pub(crate) warmup_seconds: f64,
    /// Measured.
    pub(crate) duration_seconds: f64,
}

impl Setup {
    /// The setup of these options on this topic.
    pub(crate) fn new(options: &Options, facts: &TopicFacts) -> Self {
        Self {
            target: options.target,
            durability: facts.durability,
            replicas: facts.replicas,
            topic: options.topic.clone(),
            partitions: facts.partitions,
            size: options.size,
            batch_bytes: options.batch_bytes,
            linger_ms: options.linger,
            compression: options.compression,
            in_flight: options.in_flight,
            buffer_bytes: options.buffer_bytes,
            keyed: options.keyed,
            even: options.even,
            producers: options.producers.get(),
            consumers: facts.partitions.min(u32::from(options.consumers)),
            rate: options.rate.map(std::num::NonZeroU32::get),
            warmup_seconds: options.warmup.as_secs_f64(),
            duration_seconds: options.duration.as_secs_f64(),
        }
    }

    /// The first line.
    pub(crate) fn line(&self) -> String {
        let Self { replicas, topic, partitions, size, batch_bytes, linger_ms, .. } = self;
        let load = self.rate.map_or("full load".to_owned(), |rate| format!("{} records/s", grouped(u64::from(rate))));
        format!(
            "{}: durability {}, replicas {replicas}, partitions {partitions}{}, size {size} B, batch {batch_bytes} B, \
             linger {linger_ms} ms, compression {}, topic {topic}, producers {}, consumers {}, {load}",
            name(self.target),
            self.durability(),
            if self.even { " in turn" } else { "" },
            name(self.compression),
            self.producers,
            self.consumers,
        )
    }

    /// When a record counts as acknowledged; of Kafka also by which of its settings, since its default is the weaker one.
    fn durability(&self) -> String {
        let how = match (self.target, self.durability) {
            (TargetKind::Kafka, Durability::Fsync) => " (acks=all, flush.messages=1)",
            (TargetKind::Kafka, Durability::Replicated) => " (acks=all, not synced before it)",
            (TargetKind::Busbar | TargetKind::Nats, _) => "",
        };
        name(self.durability) + how
    }
}

/// The name of a value as `--help` and the JSON have it.
pub(crate) fn name(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// One second of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tick {
    /// Since the run's start.
    pub(crate) elapsed: Duration,
    /// Length of the interval.
    pub(crate) interval: Duration,
    /// Whether any of it was warm-up.
    pub(crate) warmup: bool,
    /// Records sent in it.
    pub(crate) sent: u64,
    /// Records acknowledged in it.
    pub(crate) acknowledged: u64,
    /// Bytes of a record.
    pub(crate) size: u32,
    /// Acknowledgement latency in it.
    pub(crate) ack: Option<Percentiles>,
    /// Acknowledged and not consumed at its end; `None` without consumers.
    pub(crate) backlog: Option<u64>,
    /// Failed deliveries since the start.
    pub(crate) errors: u64,
}

impl Tick {
    /// The line of this second.
    pub(crate) fn line(&self) -> String {
        let seconds = self.interval.as_secs_f64().max(f64::MIN_POSITIVE);
        let acknowledged = self.acknowledged as f64 / seconds;
        let (p50, p99) =
            self.ack.map_or(("-".into(), "-".into()), |ack| (format!("{:.3}", ack.p50), format!("{:.3}", ack.p99)));
        let mut line = format!(
            "{:>5.1} s  sent {:>9}/s  acked {:>9}/s  {:>8.2} MB/s  ack p50 {p50} ms  p99 {p99} ms  backlog {}",
            self.elapsed.as_secs_f64(),
            grouped((self.sent as f64 / seconds).round() as u64),
            grouped(acknowledged.round() as u64),
            acknowledged * f64::from(self.size) / BYTES_PER_MEGABYTE,
            self.backlog.map_or("-".to_owned(), grouped),
        );
        if self.errors > 0 {
            let _ = write!(line, "  errors {}", grouped(self.errors));
        }
        if self.warmup {
            line.push_str("  (warm-up)");
        }
        line
    }
}

/// The publish rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Publish {
    /// Acknowledged records a second.
    pub(crate) records_per_second: f64,
    /// The same in millions of bytes of values.
    pub(crate) megabytes_per_second: f64,
    /// How many there were.
    pub(crate) records: u64,
}

impl Publish {
    /// The rate of this many records of this size acknowledged over this time.
    pub(crate) fn new(records: u64, size: u32, over: Duration) -> Self {
        let per_second = records as f64 / over.as_secs_f64();
        Self {
            records_per_second: tenths(per_second),
            megabytes_per_second: (per_second * f64::from(size) / BYTES_PER_MEGABYTE * 1_000.0).round() / 1_000.0,
            records,
        }
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    /// What was run.
    #[serde(flatten)]
    pub(crate) setup: Setup,
    /// Acknowledged in the measured period.
    pub(crate) publish: Publish,
    /// From a record's scheduled time (full load: from the call of send) to its acknowledgement.
    pub(crate) ack_ms: Option<Percentiles>,
    /// From the same moment to the record in a consumer's hand.
    pub(crate) end_to_end_ms: Option<Percentiles>,
    /// Deliveries that failed, in any phase.
    pub(crate) errors: u64,
    /// What they said, and how often.
    pub(crate) error_messages: BTreeMap<String, u64>,
    /// Sent, and neither acknowledged nor failed when the drain ended.
    pub(crate) unresolved: u64,
    /// Scheduled and never sent: the rate was not reached.
    pub(crate) unsent: u64,
    /// Acknowledged, and never consumed although the consumers had come to a stand.
    pub(crate) lost: u64,
    /// Consumed more than once.
    pub(crate) duplicates: u64,
    /// Consumed after a later record of the same producer and partition.
    pub(crate) reordered: u64,
    /// Consumed, of this run, and not what was sent.
    pub(crate) corrupt: u64,
    /// Whether consumers checked all this; `false` with `--consumers 0`.
    pub(crate) verified: bool,
    /// Batches that the client sent again.
    pub(crate) retries: u64,
    /// Acknowledged and not consumed at the end of the measured period.
    pub(crate) backlog_at_end: u64,
    /// The same after the drain.
    pub(crate) backlog: u64,
    /// How long the drain took.
    pub(crate) drain_seconds: f64,
    /// CPU time of this process, user and system, in the measured period.
    pub(crate) client_cpu_seconds: f64,
}

impl Report {
    /// Why the run counts as failed; `None` when it does not.
    pub(crate) fn failure(&self) -> Option<String> {
        let Self { lost, duplicates, reordered, corrupt, .. } = self;
        let topic = &self.setup.topic;
        if lost + duplicates + reordered + corrupt > 0 {
            return Some(format!(
                "topic {topic}: {lost} records lost, {duplicates} doubled, {reordered} out of order, {corrupt} corrupt; \
                 keep the brokers' data folders and logs and compare the topic with busbar sub {topic}"
            ));
        }
        (self.publish.records == 0).then(|| {
            format!(
                "topic {topic}: no record was acknowledged in {} s; see the errors above and busbar cluster status",
                self.setup.duration_seconds
            )
        })
    }

    /// The object of `-o json`, on one line.
    ///
    /// # Errors
    /// When a figure is not a number, which none is.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// The summary for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let mut row = |label: &str, text: String| {
            let _ = writeln!(out, "{label:<11} {text}");
        };
        row(
            "publish",
            format!(
                "{} records/s  {:.2} MB/s  ({} records acknowledged in {} s)",
                grouped(self.publish.records_per_second.round() as u64),
                self.publish.megabytes_per_second,
                grouped(self.publish.records),
                self.setup.duration_seconds,
            ),
        );
        row("ack", latencies(self.ack_ms));
        row("end to end", latencies(self.end_to_end_ms));
        if self.verified {
            let (at_end, after) = (grouped(self.backlog_at_end), grouped(self.backlog));
            row("backlog", format!("{at_end} at the end, {after} after {:.1} s of drain", self.drain_seconds));
            row(
                "checks",
                format!(
                    "lost {}  duplicates {}  reordered {}  corrupt {}",
                    self.lost, self.duplicates, self.reordered, self.corrupt
                ),
            );
        } else {
            row("checks", "none: no consumer read the records (--consumers 0)".to_owned());
        }
        let Self { errors, retries, unresolved, unsent, .. } = self;
        row("faults", format!("errors {errors}  retries {retries}  unresolved {unresolved}  unsent {unsent}"));
        for (message, times) in &self.error_messages {
            row("", format!("{} x {message}", grouped(*times)));
        }
        let per_record = match self.publish.records {
            0 => String::new(),
            records => format!("  ({:.2} us a record)", self.client_cpu_seconds * 1e6 / records as f64),
        };
        row("client", format!("{:.2} CPU seconds{per_record}", self.client_cpu_seconds));
        if *unsent > 0 {
            row("note", "the rate was not reached: latencies grow with the length of the run".to_owned());
        }
        if self.backlog > self.lost {
            row("note", "the consumers did not catch up within --drain".to_owned());
        }
        row("", "1 MB = 1,000,000 bytes of record values; latencies count from the scheduled time".to_owned());
        out
    }
}

fn latencies(of: Option<Percentiles>) -> String {
    of.map_or("nothing was measured".to_owned(), |of| {
        format!(
            "p50 {:.3} ms  p95 {:.3} ms  p99 {:.3} ms  p99.9 {:.3} ms  max {:.3} ms",
            of.p50, of.p95, of.p99, of.p999, of.max
        )
    })
}

/// A count with thousands set apart: 1,234,567.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
#[path = "report_test.rs"]
pub(crate) mod tests;
