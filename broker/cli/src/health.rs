//! `busbar health`: whether a node answers, for health checks of containers and service managers.

use std::{process::ExitCode, time::Duration};

use serde::Serialize;

use crate::{
    connection::{self, ServerArgs},
    output::OutputArgs,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,
    /// How long to wait for the answer
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Health<'a> {
    healthy: bool,
    server: &'a str,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    connection::probe(&args.server.server, args.timeout).await?;
    args.output
        .print(&Health { healthy: true, server: &args.server.server }, |health| format!("{} answers", health.server))?;
    Ok(ExitCode::SUCCESS)
}
