//! One run, from the topic to the report: opens everything, starts all workers on one timeline, watches, drains,
//! adds up.
//!
//! Invariants: consumers are positioned before the first record is sent; a worker's failure ends the run at once
//! and is the run's failure; nothing is waited for without a bound.

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    clock::{Clock, Nanos, process_cpu_time},
    ledger::{Ledger, Tally},
    meter::{AckMeter, Failures, Latencies},
    options::Options,
    payload::{Filler, Keys, PayloadBuilder, RunId},
    report::{Publish, Report, Setup, Tick},
    schedule::{Schedule, Timeline},
    target::{Producer, Target, TopicFacts, TopicRequest},
    worker_consumer::{ConsumerJob, consume},
    worker_producer::{Pace, ProducerJob, produce},
};

/// From the last preparation to the first record: every worker is waiting by then.
const LEAD: Duration = Duration::from_millis(20);
/// Once everything has arrived, the consumers listen until it has been quiet this long: a batch that was stored
/// twice at the very end comes after everything is accounted for.
const QUIET: Duration = Duration::from_millis(200);

/// An end of the measured period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The first.
    Begin,
    /// The last.
    End,
}

/// Whom a run tells of its progress, in between its work: both must be quick.
pub(crate) struct Audience<'a> {
    /// Is given each line as it is known.
    pub(crate) print: &'a mut (dyn FnMut(&str) + Send),
    /// Is called at both ends of the measured period.
    pub(crate) mark: &'a mut (dyn FnMut(Mark) + Send),
}

/// Runs the workload of `options` against `target`.
///
/// # Errors
/// When the topic cannot be had, a client cannot be opened, or a worker fails. A record that is lost or out of
/// order is no error here: see [`Report::failure`].
pub(crate) async fn run<T: Target>(target: &T, options: &Options, audience: Audience<'_>) -> anyhow::Result<Report> {
    let Audience { print, mark } = audience;
    let &Options { partitions, replicas, durability, .. } = options;
    let facts = target.prepare(TopicRequest { partitions, replicas, durability }).await?;
    let setup = Setup::new(options, &facts);
    print(&setup.line());
    if let Some(note) = differences(options, &facts) {
        print(&note);
    }
    let mut run = Run::start(target, options, setup).await?;
    run.watch(run.timeline.measure_from(), print).await?;
    mark(Mark::Begin);
    let cpu_before = process_cpu_time();
    run.watch(run.timeline.measure_until(), print).await?;
    let cpu = process_cpu_time().saturating_sub(cpu_before);
    mark(Mark::End);

    let backlog_at_end = run.ledger.tally().backlog();
    run.stop_producers.cancel();
    let drained = run.drain(options.drain).await?;
    let end_to_end = run.stop_consumers().await?;
    Ok(run.report(Totals { cpu, backlog_at_end, drained, end_to_end }))
}

/// Says where an existing topic is not what was asked for.
fn differences(options: &Options, facts: &TopicFacts) -> Option<String> {
    let differs = options.partitions.is_some_and(|wanted| wanted != facts.partitions)
        || options.replicas.is_some_and(|wanted| wanted != facts.replicas)
        || options.durability.is_some_and(|wanted| wanted != facts.durability);
    differs.then(|| {
        format!(
            "note: topic {0} exists and is used as it is; delete it first (busbar topic delete {0}) or name another \
             to get what was asked for",
            options.topic
        )
    })
}

/// How a worker ended.
enum Ended {
    Producer,
    Consumer(Latencies),
}

/// How the drain ended.
#[derive(Clone, Copy)]
struct Drained {
    took: Duration,
    /// No record was consumed in the second half of the time allowed.
    at_a_stand: bool,
}

/// What the phases found out, for the report.
struct Totals {
    cpu: Duration,
    backlog_at_end: u64,
    drained: Drained,
    end_to_end: Latencies,
}

/// A run under way.
struct Run<P> {
    setup: Setup,
    clock: Clock,
    timeline: Timeline,
    ledger: Arc<Ledger>,
    producers: Vec<Arc<P>>,
    meters: Vec<Arc<AckMeter>>,
    workers: JoinSet<anyhow::Result<Ended>>,
    producers_left: usize,
    consumers_left: usize,
    end_to_end: Latencies,
    stop_producers: CancellationToken,
    stop_consumers: CancellationToken,
    /// At the last printed line.
    printed: (Instant, Tally),
}

impl<P: Producer> Run<P> {
    /// Opens consumers, then producers, then fixes the timeline and starts all of them.
    async fn start<T: Target<Producer = P>>(target: &T, options: &Options, setup: Setup) -> anyhow::Result<Self> {
        let mut consumers = Vec::new();
        for index in 0..setup.consumers {
            let share: Vec<u32> = (index..setup.partitions).step_by(setup.consumers as usize).collect();
            consumers.push(target.consumer(&share).await.with_context(|| format!("open consumer {index}"))?);
        }
        let mut producers = Vec::new();
        for index in 0..setup.producers {
            producers.push(Arc::new(target.producer().await.with_context(|| format!("open producer {index}"))?));
        }
        let (id, size) = (RunId::random(), options.size as usize);
        let filler = Filler::new(id.0, size);
        let keys = options.keyed.then(|| Arc::new(Keys::new()));

        let clock = Clock::start();
        let timeline = Timeline::new(Nanos::default().after(LEAD), options.warmup, options.duration);
        let ledger = Arc::new(Ledger::new(setup.producers.into(), setup.partitions));
        let mut run = Self {
            clock,
            timeline,
            meters: producers.iter().map(|_| Arc::new(AckMeter::new(timeline))).collect(),
            workers: JoinSet::new(),
            producers_left: producers.len(),
            consumers_left: consumers.len(),
            end_to_end: Latencies::new(),
            stop_producers: CancellationToken::new(),
            stop_consumers: CancellationToken::new(),
            printed: (clock.instant(timeline.start()), Tally::default()),
            setup,
            ledger,
            producers,
        };
        for (index, consumer) in (0..).zip(consumers) {
            let (ledger, stop) = (Arc::clone(&run.ledger), run.stop_consumers.clone());
            let job = ConsumerJob { index, consumer, timeline, clock, run: id, size, ledger, stop };
            run.workers.spawn(async move { consume(job).await.map(Ended::Consumer) });
        }
        for (index, producer) in (0u32..).zip(&run.producers) {
            let schedule = |rate| Schedule::new(&timeline, rate, index, NonZeroU32::from(options.producers));
            let job = ProducerJob {
                index,
                producer: Arc::clone(producer),
                pace: options.rate.map_or(Pace::FullLoad, |rate| Pace::Scheduled(schedule(rate))),
                timeline,
                clock,
                run: id,
                payload: PayloadBuilder::new(filler.clone(), size, index),
                keys: keys.clone(),
                partitions: NonZeroU32::new(run.setup.partitions).filter(|_| options.even),
                ledger: Arc::clone(&run.ledger),
                meter: Arc::clone(&run.meters[index as usize]),
                stop: run.stop_producers.clone(),
            };
            run.workers.spawn(async move {
                produce(job).await.with_context(|| format!("producer {index} failed"))?;
                Ok(Ended::Producer)
            });
        }
        Ok(run)
    }

    /// Prints a line a second until `until`; fails as soon as a worker does.
    async fn watch(&mut self, until: Nanos, print: &mut (dyn FnMut(&str) + Send)) -> anyhow::Result<()> {
        let second = Duration::from_secs(1);
        let mut ticks = interval_at(self.printed.0 + second, second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let end = self.clock.instant(until);
        loop {
            tokio::select! {
                biased;
                Some(ended) = self.workers.join_next() => self.absorb(ended)?,
                () = sleep_until(end) => break,
                _ = ticks.tick() => print(&self.tick().line()),
            }
        }
        // What is left of the last second, unless it ended with the phase.
        if self.printed.0.elapsed() > second / 10 {
            print(&self.tick().line());
        }
        Ok(())
    }

    /// What happened since the last line.
    fn tick(&mut self) -> Tick {
        let (now, tally) = (Instant::now(), self.ledger.tally());
        let (then, before) = std::mem::replace(&mut self.printed, (now, tally));
        let mut latencies = Latencies::new();
        self.meters.iter().for_each(|meter| meter.take_interval(&mut latencies));
        Tick {
            elapsed: now.saturating_duration_since(self.clock.instant(self.timeline.start())),
            interval: now.saturating_duration_since(then),
            warmup: then < self.clock.instant(self.timeline.measure_from()),
            sent: tally.issued - before.issued,
            acknowledged: tally.acknowledged - before.acknowledged,
            size: self.setup.size,
            ack: latencies.summary(),
            backlog: self.verified().then(|| tally.backlog()),
            errors: self.meters.iter().map(|meter| meter.failed()).sum(),
        }
    }

    fn verified(&self) -> bool {
        self.setup.consumers > 0
    }

    fn absorb(&mut self, ended: Result<anyhow::Result<Ended>, tokio::task::JoinError>) -> anyhow::Result<()> {
        match ended.context("a worker of the load tool stopped; this is a fault of the tool, please report it")?? {
            Ended::Producer => self.producers_left -= 1,
            Ended::Consumer(latencies) => {
                self.consumers_left -= 1;
                self.end_to_end.merge(&latencies);
            }
        }
        Ok(())
    }

    /// Waits until every record's fate is known and every acknowledged one is consumed, at most `limit`.
    async fn drain(&mut self, limit: Duration) -> anyhow::Result<Drained> {
        let begin = Instant::now();
        let deadline = begin + limit;
        let mut last_read = begin;
        while self.producers_left > 0 || (self.verified() && self.ledger.tally().backlog() > 0) {
            tokio::select! {
                biased;
                Some(ended) = self.workers.join_next() => self.absorb(ended)?,
                () = sleep_until(deadline) => break,
                () = self.ledger.progress() => last_read = Instant::now(),
            }
        }
        let took = begin.elapsed();
        let at_a_stand = last_read.elapsed() >= limit / 2;
        while self.verified()
            && matches!(timeout_at(deadline, timeout(QUIET, self.ledger.progress())).await, Ok(Ok(())))
        {}
        Ok(Drained { took, at_a_stand })
    }

    /// Stops the consumers and returns their latencies. Producers that are still waiting are left to the drop.
    async fn stop_consumers(&mut self) -> anyhow::Result<Latencies> {
        self.stop_consumers.cancel();
        while self.consumers_left > 0 {
            let Some(ended) = self.workers.join_next().await else { break };
            self.absorb(ended)?;
        }
        Ok(std::mem::replace(&mut self.end_to_end, Latencies::new()))
    }

    fn report(&self, totals: Totals) -> Report {
        let Totals { cpu, backlog_at_end, drained, end_to_end } = totals;
        let (mut ack, mut failures) = (Latencies::new(), Failures::default());
        let (mut acknowledged, mut unsent, mut withdrawn) = (0, 0, 0);
        for meter in &self.meters {
            let readings = meter.readings();
            ack.merge(&readings.measured);
            failures.merge(&readings.failures);
            acknowledged += readings.acknowledged_in_time;
            unsent += readings.unsent;
            withdrawn += readings.withdrawn;
        }
        if self.setup.rate.is_some() {
            unsent += withdrawn;
        }
        let tally = self.ledger.tally();
        let verified = self.verified();
        let backlog = if verified { tally.backlog() } else { 0 };
        let measured = Duration::from_secs_f64(self.setup.duration_seconds);
        Report {
            setup: self.setup.clone(),
            publish: Publish::new(acknowledged, self.setup.size, measured),
            ack_ms: ack.summary(),
            end_to_end_ms: end_to_end.summary(),
            errors: failures.count(),
            error_messages: BTreeMap::clone(failures.by_message()),
            unresolved: tally.issued.saturating_sub(tally.acknowledged + failures.count() + withdrawn),
            unsent,
            lost: if drained.at_a_stand { backlog } else { 0 },
            duplicates: tally.duplicates,
            reordered: tally.reordered,
            corrupt: tally.corrupt,
            verified,
            retries: self.producers.iter().map(|producer| producer.retries()).sum(),
            backlog_at_end: if verified { backlog_at_end } else { 0 },
            backlog,
            drain_seconds: (drained.took.as_secs_f64() * 1e3).round() / 1e3,
            client_cpu_seconds: (cpu.as_secs_f64() * 1e3).round() / 1e3,
        }
    }
}

#[cfg(test)]
#[path = "run_test.rs"]
mod tests;
