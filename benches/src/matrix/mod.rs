//! `busbar-bench matrix`: the same load over a grid of partitions, record sizes and durabilities. Owns the order of things;
//! what a load is, and whether its records arrived once and in order, is [`load`](crate::load)'s to say.
//!
//! ```text
//!   grid ─▶ cell ─▶ topic of its own ─▶ load run ─▶ topic deleted ─▶ pause ─▶ next
//!                          gauge: counters of brokers and disk ▲ at both ends of the measured period
//!   all cells ─▶ medians of the rounds ─▶ matrix.md, matrix.json, plots
//! ```
//! Invariants: a cell that fails never ends the matrix, it is a row that says why; each cell's topic is deleted, however
//! the cell ended; what was measured so far is on disk after each cell.

mod brokers;
mod counters;
mod figures;
mod gauge;
mod grid;
mod options;
mod outcome;
mod plot;
mod table;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Context as _;
use tokio::{task::spawn_blocking, time::timeout};
use tokio_util::sync::CancellationToken;

pub(crate) use self::options::Options;
use self::{
    brokers::Brokers,
    figures::Figures,
    gauge::{Reading, Usage},
    grid::Cell,
    outcome::{Round, Row},
    table::Results,
};
use crate::{
    disk::Yardstick,
    load::{
        clock::Clock,
        options::Options as Load,
        payload::RunId,
        report::{Report, name},
        run::{Audience, Mark, run as run_load},
        session::{Session, connected},
        target::Target,
    },
};

/// How long a cell may take besides its own times: making thousands of partitions, opening clients, ending them.
const OVERHEAD_LIMIT: Duration = Duration::from_secs(300);
const DELETE_LIMIT: Duration = Duration::from_secs(180);
/// How long the disk is measured.
const YARDSTICK_TIME: Duration = Duration::from_secs(3);
/// Copies of a record unless told otherwise.
const REPLICAS_DEFAULT: usize = 3;

/// Runs the grid of `options`; `print` is given each cell as it ends. Returns why the matrix counts as failed, if it does.
///
/// # Errors
/// When the brokers to watch are not there, or the results can't be written.
pub(crate) async fn run(options: &Options, print: &mut (dyn FnMut(&str) + Send)) -> anyhow::Result<Option<String>> {
    let brokers = Brokers::find(options)?;
    fs::create_dir_all(&options.out).with_context(|| format!("make the folder {}", options.out.display()))?;
    print(&Results::setup(options));
    let yardstick = match &brokers {
        Some(brokers) if options.dir.is_some() => Some(measure_disk(options, brokers).await?),
        _ => None,
    };
    if let Some(yardstick) = &yardstick {
        print(&yardstick.line());
    }
    let servers = options.servers(brokers.as_ref().and_then(|brokers| brokers.servers.clone()));
    let mut matrix = Matrix {
        options,
        servers,
        id: RunId::random(),
        peaks_are_of_cells: brokers.as_ref().is_some_and(gauge::forget_peaks),
        brokers,
        yardstick,
        stop: CancellationToken::new(),
    };
    let stop = matrix.stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    let rows = matrix.cells(print).await?;
    for line in table::flatness(&rows) {
        print(&format!("flatness: {line}"));
    }
    print(&format!("written to {}", options.out.display()));
    let interrupted = matrix.stop.is_cancelled().then(|| "interrupted before all cells were run".to_owned());
    Ok(outcome::failure(&rows).or(interrupted))
}

/// As many writers as a record has copies, beside the data folders.
async fn measure_disk(options: &Options, brokers: &Brokers) -> anyhow::Result<Yardstick> {
    let beside = brokers.data.iter().map(|data| data.parent().unwrap_or(data).to_path_buf());
    let writers = options.replicas.map_or(REPLICAS_DEFAULT.min(brokers.data.len()), |replicas| replicas as usize);
    let folders: Vec<PathBuf> = beside.collect::<Vec<_>>().into_iter().cycle().take(writers).collect();
    spawn_blocking(move || Yardstick::measure(&folders, YARDSTICK_TIME)).await?
}

/// A matrix under way.
struct Matrix<'a> {
    options: &'a Options,
    servers: String,
    /// In the topics' names, so that no other matrix has them.
    id: RunId,
    brokers: Option<Brokers>,
    peaks_are_of_cells: bool,
    yardstick: Option<Yardstick>,
    /// Cancelled by Ctrl-C: the cell under way is given up, its topic deleted.
    stop: CancellationToken,
}

impl Matrix<'_> {
    /// Runs all cells, round after round, so that what changes with time falls on all of them alike.
    async fn cells(&mut self, print: &mut (dyn FnMut(&str) + Send)) -> anyhow::Result<Vec<Row>> {
        let Options { durability, sizes, partitions, rounds, .. } = self.options;
        let grid = grid::cells(durability, sizes, partitions);
        let mut done: Vec<(Cell, Vec<Round>)> = grid.into_iter().map(|cell| (cell, Vec::new())).collect();
        let total = done.len() * *rounds as usize;
        let mut nth = 0;
        for round in 1..=*rounds {
            for index in 0..done.len() {
                if self.stop.is_cancelled() {
                    break;
                }
                nth += 1;
                let Some((cell, outcomes)) = done.get_mut(index) else { continue };
                let outcome = self.cell(*cell, round, print).await;
                print(&table::line(nth, total, &Row::new(*cell, vec![outcome.clone()])));
                outcomes.push(outcome);
                self.store(&rows(&done))?;
                if nth < total {
                    // Ends early on Ctrl-C.
                    let _ = timeout(self.options.pause, self.stop.cancelled()).await;
                }
            }
        }
        Ok(rows(&done))
    }

    /// One run of one cell.
    async fn cell(&mut self, cell: Cell, round: u32, print: &mut (dyn FnMut(&str) + Send)) -> Round {
        let Cell { durability, size, partitions } = cell;
        let (id, size, durability) = (self.id.0, size.bytes(), name(durability));
        let topic = format!("matrix-{id:016x}-{durability}-{size}-{partitions}-{round}");
        let load = self.options.load(cell, &self.servers, topic);
        let mut watch = Watch::new(self.brokers.as_ref());
        let visit = Visit { load: &load, watch: &mut watch, stop: self.stop.clone(), print: &mut *print };
        let outcome = connected(&load, visit).await;
        let usage = watch.usage.transpose().unwrap_or_else(|error| {
            print(&format!("note: the brokers could not be watched: {error:#}"));
            None
        });
        match outcome {
            Ok(report) => {
                let disk = self.yardstick.map(|yardstick| yardstick.each());
                let figures = Figures::of(cell, &report, usage.as_ref(), disk);
                Round::Ran { report: Box::new(report), usage, figures }
            }
            Err(error) => Round::Failed { reason: crate::told(&error) },
        }
    }

    /// Writes everything so far.
    fn store(&self, rows: &[Row]) -> anyhow::Result<()> {
        let Self { options, brokers, peaks_are_of_cells, yardstick, .. } = self;
        let (brokers, peaks_are_of_cells) = (brokers.as_ref(), *peaks_are_of_cells);
        let results = Results { options, brokers, peaks_are_of_cells, yardstick: *yardstick, rows };
        let plots = plot::all(rows)?;
        let files: Vec<String> = plots.iter().map(|plot| plot.file.clone()).collect();
        let json = results.json().context("write the results as JSON")? + "\n";
        let mut contents = vec![("matrix.md".to_owned(), results.markdown(&files)), ("matrix.json".to_owned(), json)];
        contents.extend(plots.into_iter().map(|plot| (plot.file, plot.svg)));
        for (file, text) in contents {
            let path = options.out.join(file);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Of the cells that were run at all.
fn rows(done: &[(Cell, Vec<Round>)]) -> Vec<Row> {
    let run = done.iter().filter(|(_, rounds)| !rounds.is_empty());
    run.map(|(cell, rounds)| Row::new(*cell, rounds.clone())).collect()
}

/// Reads the brokers' counters at both ends of the measured period.
struct Watch<'a> {
    brokers: Option<&'a Brokers>,
    clock: Clock,
    begin: Option<anyhow::Result<Reading>>,
    usage: Option<anyhow::Result<Usage>>,
}

impl<'a> Watch<'a> {
    fn new(brokers: Option<&'a Brokers>) -> Self {
        Self { brokers, clock: Clock::start(), begin: None, usage: None }
    }

    fn mark(&mut self, mark: Mark) {
        let Some(brokers) = self.brokers else { return };
        match mark {
            Mark::Begin => {
                // Where it is not permitted, the table says that peaks are of the process's life.
                gauge::forget_peaks(brokers);
                self.begin = Some(Reading::take(brokers, &self.clock));
            }
            Mark::End => {
                let end = Reading::take(brokers, &self.clock);
                self.usage = self.begin.take().map(|begin| Ok(end?.since(&begin?)));
            }
        }
    }
}

/// A cell's time with a connected broker.
struct Visit<'a, 'b> {
    load: &'a Load,
    watch: &'a mut Watch<'b>,
    stop: CancellationToken,
    print: &'a mut (dyn FnMut(&str) + Send),
}

impl Session for Visit<'_, '_> {
    type Outcome = Report;

    async fn with<T: Target>(self, target: &T) -> anyhow::Result<Report> {
        let Self { load, watch, stop, print } = self;
        let limit = OVERHEAD_LIMIT + load.warmup + load.duration + load.drain;
        // A line a second of each cell would bury the results.
        let audience = Audience { print: &mut |_| {}, mark: &mut |mark| watch.mark(mark) };
        let ran = tokio::select! {
            ran = timeout(limit, run_load(target, load, audience)) => {
                ran.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {} s", limit.as_secs())))
            }
            () = stop.cancelled() => Err(anyhow::anyhow!("interrupted")),
        };
        let deleted = timeout(DELETE_LIMIT, target.discard()).await;
        if let Err(error) = deleted.context("it takes too long").flatten() {
            print(&format!("note: topic {} is left behind: {error:#}", load.topic));
        }
        ran
    }
}
