//! `busbar demo`: shows the promise at work. Three real processes, one topic; publishes at a steady rate and reads along;
//! kills the leader half-way with SIGKILL and starts it again; then checks that every acknowledged record was read
//! exactly once, in order, at the offset that the acknowledgement named. Exits 1 if anything of it fails.

mod check;
mod report;
mod traffic;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use busbar_client::{Client, Durability, StartAt, TopicOptions};
use rustix::process::Signal;

use crate::{
    connection,
    dev::{self, Layout, LocalCluster, Options, Ports},
    output::{self, Format, OutputArgs},
    signals::EndSignals,
};
use report::Report;
use traffic::{Load, Reader};

const TOPIC: &str = "demo";
const NODES: u16 = 3;
/// How long the killed node stays dead.
const DEAD_FOR: Duration = Duration::from_secs(2);
/// How long reading may lag behind publishing at the end.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Records a second
    #[arg(long, default_value_t = 4000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200_000))]
    rate: u32,
    /// How long to publish
    #[arg(long, default_value_t = 12, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(4..=600))]
    seconds: u32,
    /// Bytes of a record
    #[arg(long, default_value_t = 256, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(16..=65_536))]
    size: u32,
    /// First port to try; the first free ones are used
    #[arg(long, default_value_t = 17_400, value_name = "PORT")]
    base_port: u16,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut signals = EndSignals::listen()?;
    // Removed when dropped, that is after the nodes are gone.
    let dir = tempfile::Builder::new().prefix("busbar-demo-").tempdir()?;
    let layout = Layout::at(dir.path())?;
    let ports = Ports::first_free(args.base_port, NODES)?;
    let mut cluster = LocalCluster::claim(&layout)?.start(Options { nodes: NODES, ports, ephemeral: true }).await?;
    let format = args.output.format;
    let outcome = tokio::select! {
        biased;
        () = signals.next() => Err(anyhow::anyhow!("interrupted")),
        report = show(&args, &layout, &mut cluster) => report,
    };
    cluster.stop(if outcome.is_ok() { Signal::TERM } else { Signal::KILL }).await?;
    let report = outcome?;
    match format {
        Format::Text => output::line(&report)?,
        Format::Json => output::json(&report)?,
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn show(args: &Args, layout: &Layout, cluster: &mut LocalCluster) -> anyhow::Result<Report> {
    let story = Story::new(args.output.format);
    story.tell(format_args!("started {NODES} brokers, each a process with a data folder of its own"));
    cluster.ready().await?;
    let client = connection::connect(&cluster.file().servers()).await?;
    let options = TopicOptions {
        partitions: 1,
        replicas: u32::from(NODES),
        durability: Durability::Fsync,
        ..TopicOptions::default()
    };
    client.admin().create_topic(TOPIC, options).await.context("can't create the topic")?;
    story.tell(format_args!(
        "the cluster is up; topic {TOPIC}: {NODES} replicas, fsync on a majority before each acknowledgement"
    ));
    let load =
        Load { rate: args.rate, records: u64::from(args.rate) * u64::from(args.seconds), bytes: args.size as usize };
    let consumer = client.consumer(TOPIC).from(StartAt::Earliest).build().await.context("can't subscribe")?;
    let producer = client.producer(TOPIC).build().await.context("can't publish")?;
    story.tell(format_args!("publishing {} records a second of {} bytes, and reading along", load.rate, load.bytes));
    let started = Instant::now();
    let reader = Reader::start(consumer, started);
    let (published, ()) =
        tokio::try_join!(traffic::publish(producer, load, started), crash(&client, layout, load.half(), &story))?;
    story.tell(format_args!("published everything; waiting for the reader"));
    // The log may hold more than what was acknowledged: a record stored twice would be at its end.
    let topic = client.admin().describe_topic(TOPIC).await.context("can't find the end of the log")?;
    let stored = topic.partitions.first().map_or(0, |partition| partition.high_watermark);
    let read = reader.read_up_to(published.end_offset().max(stored), CATCH_UP_TIMEOUT).await?;
    Ok(Report::new(load, &published, &read))
}

/// Half-way through: the leader dies as in a crash, and comes back.
async fn crash(client: &Client, layout: &Layout, half: Duration, story: &Story) -> anyhow::Result<()> {
    tokio::time::sleep(half).await;
    let topic = client.admin().describe_topic(TOPIC).await.context("can't find the leader")?;
    let leader = match topic.partitions.first() {
        Some(partition) if partition.leader != 0 => partition.leader,
        _ => bail!("the topic has no leader to kill"),
    };
    dev::stop_node(layout, leader, Signal::KILL).await?;
    story.tell(format_args!("killed node {leader}, the leader, with kill -9"));
    tokio::time::sleep(DEAD_FOR).await;
    dev::start_node(layout, leader).await?;
    story.tell(format_args!("started node {leader} again"));
    Ok(())
}

/// What happens, told to people as it happens.
struct Story {
    started: Instant,
    format: Format,
}

impl Story {
    fn new(format: Format) -> Self {
        Self { started: Instant::now(), format }
    }

    fn tell(&self, what: std::fmt::Arguments<'_>) {
        if self.format == Format::Text {
            let seconds = self.started.elapsed().as_secs_f64();
            output::diagnose(format_args!("{seconds:5.1} s  {what}"));
        }
    }
}
