//! The results as text: a line a cell, the summary, Markdown, JSON. Pure: values in, text out.
//!
//! The JSON keys are public (docs/BENCH.md) and only ever added to.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    brokers::{Brokers, Disk},
    figures::{Figure, number},
    grid::partitions,
    options::{Options, Spread},
    outcome::Row,
};
use crate::{
    disk::Yardstick,
    load::report::{grouped, name},
};

/// Everything that a matrix came to.
pub(super) struct Results<'a> {
    /// What was asked for.
    pub(super) options: &'a Options,
    /// Whom it ran against, if they could be watched.
    pub(super) brokers: Option<&'a Brokers>,
    /// Whether each broker's peak of memory is that of a cell, and not of its whole life.
    pub(super) peaks_are_of_cells: bool,
    /// What the disk can do.
    pub(super) yardstick: Option<Yardstick>,
    /// Cell by cell, in the grid's order.
    pub(super) rows: &'a [Row],
}

/// The object of `matrix.json`.
#[derive(Serialize)]
struct Json<'a> {
    target: String,
    producers: u16,
    consumers: u16,
    rate: Option<u32>,
    spread: String,
    buffer_bytes: u32,
    batch_bytes: u32,
    linger_ms: u64,
    warmup_seconds: f64,
    duration_seconds: f64,
    rounds: u32,
    brokers: Option<usize>,
    disks: Vec<&'a str>,
    disk: Option<Yardstick>,
    cells: &'a [Row],
}

impl Results<'_> {
    /// The first line: what every figure depends on.
    pub(super) fn setup(options: &Options) -> String {
        let load =
            options.rate.map_or("full load".to_owned(), |rate| format!("{} records/s", grouped(rate.get().into())));
        format!(
            "{}: {load}, producers {}, consumers {}, records to {}, {} bytes under way at most, batch {} B, linger {} ms; \
             each cell {} s after {} s of warm-up, rounds {}",
            name(options.target),
            options.producers,
            options.consumers,
            match options.spread {
                Spread::Even => "all partitions in turn",
                Spread::Client => "partitions as the client picks them",
            },
            grouped(options.buffer_bytes.into()),
            options.batch_bytes,
            options.linger,
            options.duration.as_secs_f64(),
            options.warm_up.as_secs_f64(),
            options.rounds,
        )
    }

    /// `matrix.json`.
    ///
    /// # Errors
    /// When a figure is not a number, which none is.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        let Self { options, brokers, yardstick, rows, .. } = self;
        let disks = brokers.map(|brokers| brokers.disks.iter().map(|disk| disk.name.as_str()).collect());
        let json = Json {
            target: name(options.target),
            producers: options.producers.get(),
            consumers: options.consumers,
            rate: options.rate.map(std::num::NonZeroU32::get),
            spread: name(options.spread),
            buffer_bytes: options.buffer_bytes,
            batch_bytes: options.batch_bytes,
            linger_ms: options.linger,
            warmup_seconds: options.warm_up.as_secs_f64(),
            duration_seconds: options.duration.as_secs_f64(),
            rounds: options.rounds,
            brokers: brokers.map(|brokers| brokers.pids.len()),
            disks: disks.unwrap_or_default(),
            disk: *yardstick,
            cells: rows,
        };
        serde_json::to_string_pretty(&json)
    }

    /// `matrix.md`, with these plots.
    pub(super) fn markdown(&self, plots: &[String]) -> String {
        let mut out = format!("# Matrix\n\n{}\n\n", Self::setup(self.options));
        for line in self.facts() {
            let _ = writeln!(out, "- {line}");
        }
        let heads = Figure::ALL.map(|figure| figure.column().0).join(" | ");
        let _ = writeln!(out, "\n| durability | size | partitions | {heads} | outcome |");
        let _ = writeln!(out, "|---|---:|---:|{}---|", "---:|".repeat(Figure::ALL.len()));
        for row in self.rows {
            let figures = Figure::ALL.map(|figure| row.figures.text(figure)).join(" | ");
            let (cell, verdict) = (row.cell, escaped(&row.verdict));
            let partitions = grouped(cell.partitions.into());
            let _ =
                writeln!(out, "| {} | {} | {partitions} | {figures} | {verdict} |", name(cell.durability), cell.size);
        }
        out.push_str("\n## How flat\n\nThroughput relative to the fewest partitions:\n\n");
        for line in flatness(self.rows) {
            let _ = writeln!(out, "- {line}");
        }
        if !plots.is_empty() {
            out.push_str("\n## Plots\n\n");
        }
        for plot in plots {
            let _ = writeln!(out, "![{plot}]({plot})");
        }
        out
    }

    /// What else a reader must know.
    fn facts(&self) -> Vec<String> {
        let mut facts = vec![
            "1 MB is 1,000,000 bytes of record values, 1 GB a thousand of them; a byte acknowledged is written once a \
             replica"
                .to_owned(),
        ];
        match self.brokers {
            None => facts.push("the brokers' processes were not watched: give --dir or --pids".to_owned()),
            Some(brokers) => {
                facts.push(format!("{} brokers watched; figures of brokers are of all together", brokers.pids.len()));
                facts.extend(brokers.disks.iter().map(disk_fact));
                let peak = if self.peaks_are_of_cells { "within the cell" } else { "since it was started" };
                facts.push(format!("peak RSS is the largest broker's, {peak}"));
            }
        }
        facts.extend(self.yardstick.map(|yardstick| {
            format!(
                "{}; \"% of disk\" is MB/s of what each got, of synced records of 16 KiB and more",
                yardstick.line()
            )
        }));
        facts
    }
}

fn disk_fact(disk: &Disk) -> String {
    let cache = disk.cache.as_deref().map_or(String::new(), |cache| format!(" (cache: {cache})"));
    format!("disk {}{cache}: its flushes and writes are those of everything on it", disk.name)
}

/// A cell of a Markdown table ends at a bar.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// What is printed when a cell is done.
pub(super) fn line(nth: usize, of: usize, row: &Row) -> String {
    let mut line = format!("[{nth}/{of}] {}:", row.cell);
    for figure in Figure::ALL {
        if row.figures.get(figure).is_some() {
            let _ = write!(line, " {} {}, ", figure.column().0, row.figures.text(figure));
        }
    }
    let _ = write!(line, " {}", row.verdict);
    line
}

/// One line for each durability and size: what more partitions do to the throughput.
pub(super) fn flatness(rows: &[Row]) -> Vec<String> {
    let is_like =
        |one: &Row, other: &Row| (one.cell.durability, one.cell.size) == (other.cell.durability, other.cell.size);
    let lines = rows.chunk_by(is_like).filter_map(|alike| {
        let mut known = alike.iter().filter_map(|row| Some((row, row.figures.get(Figure::RecordsPerSecond)?)));
        let (first, base) = known.by_ref().find(|(_, rate)| *rate > 0.0)?;
        let mut line = format!(
            "{}, {}: {} {} records/s",
            name(first.cell.durability),
            first.cell.size,
            partitions(first.cell.partitions),
            number(base, 0)
        );
        for (row, rate) in known {
            let _ = write!(line, "; {} {:.2}x", partitions(row.cell.partitions), rate / base);
        }
        Some(line)
    });
    lines.collect()
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
