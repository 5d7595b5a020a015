//! `busbar serve`: one node in the foreground. Prints `ready node=N address=.. peer=..` on stdout once it serves; ends
//! gracefully on the first signal, at once on the second, and with 1 when the node says that it can't go on.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use anyhow::Context;
use busbar_broker::{config::Config, node::Node};
use tracing_subscriber::{EnvFilter, fmt};

use crate::{config_flags::ConfigArgs, output, signals::EndSignals};

/// Filter of what is logged, such as `info,busbar_broker::raft=debug`.
const LOG_VARIABLE: &str = "BUSBAR_LOG";
/// Openraft tells each step of each group at `info`, and what is no fault at `warn`; what matters of it the broker
/// logs itself.
const LOG_DEFAULT: &str = "info,openraft=error";
/// How long leftover tasks may take to end after the node has shut down.
const LEFTOVERS_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// How to log (to stderr); BUSBAR_LOG says what, such as `debug` or `info,busbar_broker::raft=debug`
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

/// How a node's life ended.
enum End {
    Asked,
    Forced,
    Fatal(String),
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    abort_on_panic();
    start_logging(args.log_format)?;
    let runtime = crate::runtime().context("can't start: threads or memory are short")?;
    match runtime.block_on(serve(config))? {
        End::Asked => {
            runtime.shutdown_timeout(LEFTOVERS_TIMEOUT);
            Ok(ExitCode::SUCCESS)
        }
        End::Forced => {
            output::diagnose("stopped at once, as the second signal asked");
            runtime.shutdown_background();
            Ok(ExitCode::FAILURE)
        }
        End::Fatal(reason) => {
            output::diagnose(format_args!("error: the node can't go on: {reason}"));
            runtime.shutdown_background();
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<End> {
    let mut signals = EndSignals::listen().context("can't listen for signals")?;
    let node = tokio::select! {
        biased;
        () = signals.next() => return Ok(End::Asked),
        started = Node::start(config) => started?,
    };
    output::line(format_args!("ready node={} address={} peer={}", node.id(), node.address(), node.peer_address()))?;
    tokio::select! {
        biased;
        reason = node.wait_fatal() => return Ok(End::Fatal(reason)),
        () = signals.next() => {}
    }
    tracing::info!("stopping; a second signal stops at once");
    tokio::select! {
        biased;
        () = node.shutdown() => Ok(End::Asked),
        () = signals.next() => Ok(End::Forced),
    }
}

/// A panic is a broken invariant: the node must not live on with one of its tasks gone. The journal is safe as it is
/// after a kill, and the other replicas take over.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn start_logging(format: LogFormat) -> anyhow::Result<()> {
    let wanted = std::env::var(LOG_VARIABLE).ok().filter(|text| !text.is_empty());
    let wanted = wanted.as_deref().unwrap_or(LOG_DEFAULT);
    let filter = EnvFilter::builder().parse(wanted).with_context(|| {
        format!("{LOG_VARIABLE}={wanted:?} is no log filter: write `info` or `busbar_broker=debug`")
    })?;
    let layer = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => layer.init(),
        LogFormat::Json => layer.json().init(),
    }
    Ok(())
}
