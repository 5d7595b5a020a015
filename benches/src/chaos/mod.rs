//! `busbar-bench chaos`: a consumer group at work while brokers are killed, members come and go, or another group holds
//! on to everything. Owns the run; what is right and wrong is the [`ledger`]'s to say.
//!
//! ```text
//!   producers ──▶ topic ──▶ group of members ──▶ ledger ──▶ report
//!       └──────── fates ─────────────────────────▲
//!   every few seconds: kill -9 of a broker (and its restart), or one member more, or one less;
//!   or, half-way, a second group that holds on to what it gets
//! ```
//! Invariants: records carry who they are, so lost, doubled and out of order are told apart from delivered again; the
//! run ends when all that was acknowledged is done, or after a time that is told.

mod cluster;
mod ledger;
mod options;
mod report;
mod stalled;
mod traffic;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use busbar_client::{Client, TopicOptions};
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use self::{
    cluster::LocalCluster,
    ledger::{Ledger, Shape},
    report::{Pauses, Totals},
    traffic::{Members, Producers},
};
pub(crate) use self::{
    options::{Options, Trouble},
    report::Report,
};
use crate::load::clock::Clock;

const TOPIC: &str = "chaos";
const GROUP: &str = "chaos";
/// Before the first trouble: the group settles, the disks warm up.
const SETTLE: Duration = Duration::from_secs(5);
/// How long a killed broker stays down.
const DOWN: Duration = Duration::from_secs(2);
/// How long everything that was acknowledged may take to be done after the last record was sent.
const DRAIN: Duration = Duration::from_secs(60);
/// Once all is done the members listen on: what is delivered again at the very end comes after that.
const QUIET: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Runs the traffic of `options` on a local cluster of its own; `print` is given progress, line by line.
///
/// # Errors
/// The cluster does not start, or the topic or the group can't be had. A record that is lost is no error here: see
/// [`Report::failure`].
pub(crate) async fn run(options: &Options, print: &mut (dyn FnMut(&str) + Send)) -> anyhow::Result<Report> {
    let cluster = LocalCluster::start(options.nodes, options.base_port).await?;
    print(&format!("{} nodes, {} partitions, fsync; {}", options.nodes, options.partitions, options.trouble.text()));
    let report = on(&cluster, options, print).await;
    cluster.stop().await?;
    report
}

async fn on(cluster: &LocalCluster, options: &Options, print: &mut (dyn FnMut(&str) + Send)) -> anyhow::Result<Report> {
    let client = Client::connect(cluster.servers()).await?;
    let topic = TopicOptions { partitions: options.partitions, ..TopicOptions::default() };
    client.admin().create_topic(TOPIC, topic).await?;
    let shape = Shape { producers: options.producers.into(), partitions: options.partitions };
    let ledger = Arc::new(Mutex::new(Ledger::new(Clock::start(), shape)));
    let mut members = Members::new(client.clone(), ledger.clone());
    for _ in 0..options.consumers {
        members.add().await?;
    }
    let producers = Producers::start(&client, &ledger, options).await?;
    sleep(SETTLE).await;
    ledger.lock().cut();
    let mut pauses = Pauses::default();
    let mut comparison = None;
    match options.trouble {
        Trouble::Brokers => kill_brokers(cluster, options, &ledger, &mut pauses, print).await?,
        Trouble::Members => change_members(&mut members, options, &ledger, &mut pauses, print).await?,
        Trouble::Stalled => {
            comparison = Some(stalled::run(cluster, &client, options, &ledger, &mut pauses, print).await?);
        }
    }
    producers.stop().await.context("end the producers")?;
    let drained = timeout(DRAIN, async {
        while ledger.lock().count().missing > 0 {
            sleep(LOOK_EVERY).await;
        }
    });
    let drained = drained.await.is_ok();
    sleep(QUIET).await;
    let stats = members.close().await?;
    let totals = Totals { count: ledger.lock().count(), stats, drained, comparison };
    Ok(Report::new(options, totals, pauses))
}

/// Kills one broker after the other, and starts it again.
async fn kill_brokers(
    cluster: &LocalCluster,
    options: &Options,
    ledger: &Mutex<Ledger>,
    pauses: &mut Pauses,
    print: &mut (dyn FnMut(&str) + Send),
) -> anyhow::Result<()> {
    for round in 0..options.rounds {
        let node = u64::from(round % u32::from(options.nodes)) + 1;
        cluster.kill(node).await?;
        sleep(DOWN).await;
        cluster.restart(node).await?;
        sleep(options.every().saturating_sub(DOWN)).await;
        let seen = ledger.lock().cut();
        print(&format!("killed node {node}: longest pause of a partition {:.3} s", pauses.take(seen)));
    }
    Ok(())
}

/// Adds a member and removes one in turn.
async fn change_members(
    members: &mut Members,
    options: &Options,
    ledger: &Mutex<Ledger>,
    pauses: &mut Pauses,
    print: &mut (dyn FnMut(&str) + Send),
) -> anyhow::Result<()> {
    let mut due = interval(options.every());
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    due.tick().await;
    for round in 0..options.rounds {
        let what = if round % 2 == 0 { "one more member" } else { "one member less" };
        match round % 2 {
            0 => members.add().await?,
            _ => members.remove_last().await?,
        }
        due.tick().await;
        let seen = ledger.lock().cut();
        print(&format!("{what}: longest pause of a partition {:.3} s", pauses.take(seen)));
    }
    Ok(())
}
