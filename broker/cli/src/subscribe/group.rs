//! `busbar sub --group`: a member of a consumer group. A record is acknowledged once it is printed, or once its command
//! has succeeded; a signal lets the record in hand be finished, commits and leaves the group.

use std::{pin::pin, process::ExitCode, time::Duration};

use anyhow::Context;
use busbar_client::{DeadLetter, GroupBuilder, GroupConsumer, Received};
use busbar_proto::TopicName;

use super::{Args, print, silence::Silence};
use crate::{exec::Exec, output::OutputArgs, signals::EndSignals};

/// Lease of a record in our hands; renewed while its command runs.
const LEASE: Duration = Duration::from_secs(30);

/// What is only of use with `--group`.
#[derive(clap::Args)]
pub(super) struct GroupArgs {
    /// Read as a member of this consumer group: acknowledge each record once it is printed, and go on from there next
    /// time. `--from` counts where the group has not begun
    #[arg(long, value_name = "GROUP")]
    pub(super) group: Option<TopicName>,
    /// A name that is the same after a restart, so that the member gets back the partitions it had
    #[arg(long, value_name = "NAME", requires = "group")]
    member: Option<TopicName>,
    /// Deliveries of a record until it is a dead letter [default: 5 with --exec, else any number]
    #[arg(long, value_name = "N", requires = "group")]
    max_deliveries: Option<u32>,
    /// The topic for dead letters [default: TOPIC.dlq, created if missing, where there may be some]
    #[arg(long, value_name = "TOPIC", requires = "group")]
    dead_letter: Option<TopicName>,
    /// Run this shell command for each record in place of printing it: the value on stdin, the rest in BUSBAR_*; exit 0
    /// acknowledges the record, anything else has it delivered again
    #[arg(long, value_name = "COMMAND", requires = "group")]
    exec: Option<String>,
}

impl GroupArgs {
    fn apply(&self, builder: GroupBuilder) -> GroupBuilder {
        let may_fail = self.exec.is_some() || self.max_deliveries.is_some();
        let dead_letter = match &self.dead_letter {
            Some(topic) => DeadLetter::Topic(topic.to_string()),
            None if may_fail => DeadLetter::Default,
            // A record that is only printed is never given up.
            None => DeadLetter::Off,
        };
        let deliveries = self.max_deliveries.unwrap_or(if self.exec.is_some() { 5 } else { 0 });
        let builder = builder.lease(LEASE).dead_letter(dead_letter).max_deliveries(deliveries);
        match &self.member {
            Some(name) => builder.member_name(name.as_str()),
            None => builder,
        }
    }
}

pub(super) async fn run(args: Args, mut signals: EndSignals) -> anyhow::Result<ExitCode> {
    let group = args.group.group.as_ref().context("--group is missing")?;
    let client = args.server.connect().await?;
    let builder = client.group(group.as_str()).topics([args.topic.as_str()]).from(args.from).read_from(args.read_from);
    let builder = match &args.filter {
        Some(filter) => builder.filter(filter.as_str()),
        None => builder,
    };
    let mut consumer = tokio::select! {
        biased;
        () = signals.next() => return Ok(ExitCode::SUCCESS),
        consumer = args.group.apply(builder).build() => consumer?,
    };
    let worked = work(&args, &mut consumer, &mut signals, Silence::new(&client, &args.topic)).await;
    let closed = consumer.close().await;
    worked?;
    closed?;
    Ok(ExitCode::SUCCESS)
}

async fn work(
    args: &Args,
    consumer: &mut GroupConsumer,
    signals: &mut EndSignals,
    mut silence: Silence<'_>,
) -> anyhow::Result<()> {
    let exec = args.group.exec.clone().map(Exec::new);
    let mut done = 0;
    while args.count.is_none_or(|count| done < count) {
        let record = tokio::select! {
            biased;
            () = signals.next() => return Ok(()),
            record = consumer.next() => record?,
            () = silence.look() => continue,
        };
        let Some(record) = record else { return Ok(()) };
        match &exec {
            Some(exec) => {
                let mut told_to_end = false;
                let settling = execute(exec, record);
                tokio::pin!(settling);
                let acknowledged = loop {
                    tokio::select! {
                        acknowledged = &mut settling => break acknowledged?,
                        () = signals.next(), if !told_to_end => told_to_end = true,
                    }
                };
                done += u64::from(acknowledged);
                if told_to_end {
                    return Ok(());
                }
            }
            None => {
                acknowledge(record, args.output)?;
                done += 1;
            }
        }
    }
    Ok(())
}

/// Prints a record, then acknowledges it. Too late is no failure: it is printed again, here or elsewhere.
fn acknowledge(record: Received, output: OutputArgs) -> anyhow::Result<()> {
    print(&record, output)?;
    if let Err(late) = record.ack() {
        crate::output::diagnose(format_args!("{late}"));
    }
    Ok(())
}

/// Runs the command for a record, and says what became of it; whether it was acknowledged. A command that can't be
/// started is an error of ours: no record would fare better.
async fn execute(exec: &Exec, record: Received) -> anyhow::Result<bool> {
    let status = {
        let mut run = pin!(exec.run(&record, Some(record.attempt())));
        loop {
            match tokio::time::timeout(LEASE / 3, &mut run).await {
                Ok(ended) => break ended?.status,
                // Renewed in vain, it is somebody else's: the command is still waited for.
                Err(_) => drop(record.extend(LEASE)),
            }
        }
    };
    let settled = match status.success() {
        true => record.ack(),
        false => record.nack_because(None, format!("its command ended with {status}")),
    };
    if let Err(late) = settled {
        crate::output::diagnose(format_args!("{late}"));
        return Ok(false);
    }
    Ok(status.success())
}
