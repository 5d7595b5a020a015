//! A second group that takes what it is given and never acknowledges anything, beside the one at work. Owns the members of
//! that group, and what memory and delays were before and meanwhile.
//!
//! ```text
//!   | settle | calm ........ | second group joins, settles | stalled ........ |
//!            ^ memory        ^ delays, memory              ^ memory           ^ delays, memory
//! ```

use std::time::Duration;

use anyhow::Context as _;
use busbar_client::Client;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    TOPIC,
    cluster::LocalCluster,
    ledger::Ledger,
    options::Options,
    report::{Pauses, mebibytes},
};
use crate::load::meter::Percentiles;

const GROUP: &str = "stalled";
/// Longer than any run: no record comes back meanwhile.
const LEASE: Duration = Duration::from_secs(24 * 3_600);
/// Time that the second group has to fill its windows, and the first to get over its joining.
const SETTLE: Duration = Duration::from_secs(5);

/// What was seen before the second group came, and while it held on.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    /// Of the group at work, from sending a record to having it done.
    calm_ms: Option<Percentiles>,
    stalled_ms: Option<Percentiles>,
    /// Records that the second group holds.
    held: u64,
    memory: Vec<Memory>,
}

/// Resident memory at one moment, in bytes.
#[derive(Debug, Serialize)]
struct Memory {
    when: &'static str,
    brokers: Vec<u64>,
    clients: u64,
}

impl Comparison {
    pub(super) fn text(&self) -> String {
        let delays = |delays: Option<Percentiles>| {
            delays.map_or("nothing was done".to_owned(), |of| {
                format!("p50 {:.2} ms  p99 {:.2} ms  max {:.1} ms", of.p50, of.p99, of.max)
            })
        };
        let mut text = format!("delay       before: {}\n", delays(self.calm_ms));
        text += &format!("            beside a group that holds on to {} records: ", self.held);
        text += &delays(self.stalled_ms);
        if let (Some(calm), Some(stalled)) = (self.calm_ms, self.stalled_ms) {
            text += &format!("; p99 {:.2} times as long", stalled.p99 / calm.p99);
        }
        text.push('\n');
        for (row, Memory { when, brokers, clients }) in self.memory.iter().enumerate() {
            let brokers: Vec<_> = brokers.iter().map(|&bytes| mebibytes(bytes)).collect();
            let label = if row == 0 { "memory" } else { "" };
            text +=
                &format!("{label:<11} {when}: brokers {}, clients {} MiB\n", brokers.join(" "), mebibytes(*clients));
        }
        text
    }
}

/// Half of the rounds without the second group, half beside it.
pub(super) async fn run(
    cluster: &LocalCluster,
    client: &Client,
    options: &Options,
    ledger: &Mutex<Ledger>,
    pauses: &mut Pauses,
    print: &mut (dyn FnMut(&str) + Send),
) -> anyhow::Result<Comparison> {
    let mut memory = vec![measure(cluster, "at the start")?];
    ledger.lock().take_delays();
    let half = options.rounds.div_ceil(2);
    watch("calm", half, options, ledger, pauses, print).await;
    let calm_ms = ledger.lock().take_delays().summary();
    memory.push(measure(cluster, "calm, at the end")?);

    let group = StalledGroup::join(client, options.consumers).await?;
    sleep(SETTLE).await;
    ledger.lock().cut();
    ledger.lock().take_delays();
    memory.push(measure(cluster, "second group full")?);
    watch("beside the stalled group", half, options, ledger, pauses, print).await;
    let stalled_ms = ledger.lock().take_delays().summary();
    memory.push(measure(cluster, "beside it, at the end")?);
    let held = group.end().await?;
    Ok(Comparison { calm_ms, stalled_ms, held, memory })
}

async fn watch(
    what: &str,
    rounds: u32,
    options: &Options,
    ledger: &Mutex<Ledger>,
    pauses: &mut Pauses,
    print: &mut (dyn FnMut(&str) + Send),
) {
    for _ in 0..rounds {
        sleep(options.every()).await;
        let seen = ledger.lock().cut();
        print(&format!("{what}: longest pause of a partition {:.3} s", pauses.take(seen)));
    }
}

fn measure(cluster: &LocalCluster, when: &'static str) -> anyhow::Result<Memory> {
    let brokers = cluster.pids().map(resident_bytes).collect::<anyhow::Result<_>>()?;
    Ok(Memory { when, brokers, clients: resident_bytes(std::process::id())? })
}

/// `VmRSS` of a process.
fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kibibytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    let kibibytes: u64 = kibibytes.with_context(|| format!("{path} has no VmRSS"))?;
    Ok(kibibytes << 10)
}

/// Members that keep everything in hand.
struct StalledGroup {
    stop: CancellationToken,
    members: Vec<JoinHandle<anyhow::Result<u64>>>,
}

impl StalledGroup {
    async fn join(client: &Client, members: u16) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let mut joined = Vec::new();
        for _ in 0..members {
            let builder = client.group(GROUP).topics([TOPIC]).lease(LEASE).revoke_timeout(Duration::from_millis(1));
            let mut consumer = builder.build().await?;
            let stop = stop.clone();
            joined.push(tokio::spawn(async move {
                let mut held = Vec::new();
                loop {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => break,
                        next = consumer.next() => match next? {
                            Some(record) => held.push(record),
                            None => break,
                        },
                    }
                }
                // Not given back one by one: the group ends with its member.
                drop(consumer);
                Ok(held.len() as u64)
            }));
        }
        Ok(Self { stop, members: joined })
    }

    /// Ends all; how many records they held.
    async fn end(self) -> anyhow::Result<u64> {
        self.stop.cancel();
        let mut held = 0;
        for member in self.members {
            held += member.await.context("a stalled member's task panicked")??;
        }
        Ok(held)
    }
}
