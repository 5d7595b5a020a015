//! The `busbar` command: parses, runs one command, turns its result into an exit code: 0 done, 1 failed, 2 usage.
//! Each command family is a file; what they share is in `connection`, `output` and `signals`.
//!
//! Invariants: every error is one text that says what, where and what to do; nothing prints but through `output`
//! (results, stdout) or as a diagnosis (stderr); a reader that closes our stdout ends us quietly.

mod cluster;
mod config_flags;
mod connection;
mod demo;
mod dev;
mod dlq;
mod exec;
mod group;
mod health;
mod output;
mod publish;
mod record;
mod reply;
mod request;
mod serve;
mod signals;
mod subscribe;
mod topic;
mod view;

use std::{future::Future, io, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};

/// A replicated event log: one binary for the broker, a local cluster and every tool.
///
/// Without a command it starts a local cluster of three nodes, as `busbar dev up -n 3`.
#[derive(Parser)]
#[command(name = "busbar", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run one node in the foreground
    Serve(serve::Args),
    /// Check a node's configuration and print the effective one
    CheckConfig(config_flags::CheckArgs),
    /// A local cluster: one process and one data folder per node
    Dev(dev::Args),
    /// Create, list, describe and delete topics
    Topic(topic::Args),
    /// Publish records: the arguments, a file's lines or the lines of stdin
    Pub(publish::Args),
    /// Print the records of a topic
    Sub(subscribe::Args),
    /// Publish a request and print its reply
    Request(request::Args),
    /// Answer requests with what a command prints
    Reply(reply::Args),
    /// The state of the cluster, and moving things in it
    Cluster(cluster::Args),
    /// Consumer groups: list, describe (members, lag), reset, delete
    Group(group::Args),
    /// Dead letters: what groups have given up; list, show, replay
    Dlq(dlq::Args),
    /// Exit 0 if a node answers
    Health(health::Args),
    /// Show it at work: a local cluster, a killed leader, every acknowledged record checked
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let command = Cli::parse().command.unwrap_or_else(|| Command::Dev(dev::Args::default()));
    let outcome = match command {
        Command::Serve(args) => serve::run(args),
        Command::CheckConfig(args) => config_flags::check(&args),
        Command::Dev(args) => block_on(dev::run(args)),
        Command::Topic(args) => block_on(topic::run(args)),
        Command::Pub(args) => block_on(publish::run(args)),
        Command::Sub(args) => block_on(subscribe::run(args)),
        Command::Request(args) => block_on(request::run(args)),
        Command::Reply(args) => block_on(reply::run(args)),
        Command::Cluster(args) => block_on(cluster::run(args)),
        Command::Group(args) => block_on(group::run(args)),
        Command::Dlq(args) => block_on(dlq::run(args)),
        Command::Health(args) => block_on(health::run(args)),
        Command::Demo(args) => block_on(demo::run(args)),
    };
    outcome.unwrap_or_else(|error| {
        if output::is_closed(&error) {
            return ExitCode::SUCCESS;
        }
        output::diagnose(format_args!("error: {}", output::explain(&error)));
        if error.is::<busbar_broker::config::ConfigErrors>() { ExitCode::from(2) } else { ExitCode::FAILURE }
    })
}

/// Runs a client command. A read of stdin that never returns must not keep the process alive, so what still blocks
/// when the command is over is left behind.
fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = runtime().context("can't start: threads or memory are short")?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("busbar").build()
}
