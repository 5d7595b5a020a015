//! `busbar-bench`, Busbar's load tool. This file parses, runs and prints; `load` does the work.

mod chaos;
mod disk;
mod load;
mod matrix;

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::load::{
    options::{Options, Output},
    report::Report,
    run::Audience,
    session::{Measured, connected},
};

/// Threads of the tool: enough to drive a cluster from a second machine, few enough to leave a shared one to the
/// brokers.
const THREADS: usize = 2;

/// Busbar's load tool: publishes at full load or at a constant rate, reads everything back, checks that each
/// acknowledged record arrives once and in order, and prints rates and latencies.
#[derive(Parser)]
#[command(
    name = "busbar-bench",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Exit codes: 0 done; 1 failed, or a record was lost, doubled \
    or out of order; 2 usage.\nEvery option and figure: docs/BENCH.md"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    load: Options,
}

#[derive(Subcommand)]
enum Command {
    /// A consumer group at work while brokers are killed, members come and go, or another group holds on to everything
    Chaos(chaos::Options),
    /// The same load over a grid of partitions, record sizes and durabilities: a table, JSON and plots
    Matrix(Box<matrix::Options>),
    /// What the disk can do by itself: sequential synced writers
    Disk(disk::Options),
}

fn main() -> ExitCode {
    let Cli { command, load } = Cli::parse();
    let outcome = match command {
        None => measure(&load).and_then(|report| conclude(&report, load.output)),
        Some(Command::Chaos(options)) => provoke(&options),
        Some(Command::Matrix(options)) => compare(&options),
        Some(Command::Disk(options)) => disk::run(&options).and_then(|results| show(&results)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("busbar-bench: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, but for those that the text above them tells already.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        so_far if so_far.contains(&cause) => told,
        so_far => format!("{so_far}: {cause}"),
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("start the tool's threads; raise the limit on processes (ulimit -u)")
}

fn show(results: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(results.as_bytes()).context("write the results to stdout")
}

fn measure(options: &Options) -> anyhow::Result<Report> {
    let runtime = runtime()?;
    let output = options.output;
    let mut tell = |line: &str| print(output, line);
    let audience = Audience { print: &mut tell, mark: &mut |_| {} };
    let report = runtime.block_on(connected(options, Measured { options, audience }));
    // Producers that never heard from the broker may still be waiting: they are not waited for.
    runtime.shutdown_background();
    report
}

fn provoke(options: &chaos::Options) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let output = options.output;
    let report = runtime.block_on(chaos::run(options, &mut |line| print(output, line)));
    runtime.shutdown_background();
    let report = report?;
    let results = match output {
        Output::Text => report.text(),
        Output::Json => report.json().context("write the results as JSON")? + "\n",
    };
    show(&results)?;
    report.failure().map_or(Ok(()), |failure| Err(anyhow::Error::msg(failure)))
}

fn compare(options: &matrix::Options) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(matrix::run(options, &mut |line| print(Output::Text, line)));
    runtime.shutdown_background();
    outcome?.map_or(Ok(()), |failure| Err(anyhow::Error::msg(failure)))
}

/// Progress: with the results for people, apart from them for programs.
fn print(output: Output, line: &str) {
    // A reader that has gone away must not end a run half-way.
    let _ = match output {
        Output::Text => writeln!(std::io::stdout(), "{line}"),
        Output::Json => writeln!(std::io::stderr(), "{line}"),
    };
}

/// Prints the results; an error when the run counts as failed.
fn conclude(report: &Report, output: Output) -> anyhow::Result<()> {
    let results = match output {
        Output::Text => report.text(),
        Output::Json => report.json().context("write the results as JSON")? + "\n",
    };
    show(&results)?;
    report.failure().map_or(Ok(()), |failure| Err(anyhow::Error::msg(failure)))
}
