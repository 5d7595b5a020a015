//! The demo's load: records at a steady rate, whatever the cluster does, and a reader beside it. Latency counts from
//! the time at which a record was *due*, so that a pause of the cluster shows in every record it delayed.
//!
//! ```text
//! value: | number u64 LE | due, microseconds since the start u64 LE | filler |
//! ```

use std::time::{Duration, Instant};

use anyhow::Context;
use busbar_client::{Consumer, Delivery, Producer, Record};
use hdrhistogram::Histogram;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::check::{Acknowledged, ReadRecord};

/// How often due records are sent.
const TICK: Duration = Duration::from_millis(1);
/// Records sent and not yet answered; at the default rate more than the longest pause allowed.
const UNANSWERED_MAX: usize = 64 << 10;
/// Latencies above are counted as this.
const LATENCY_US_MAX: u64 = 120_000_000;
const NUMBER_BYTES: usize = 8;
const HEAD_BYTES: usize = 2 * NUMBER_BYTES;

/// What to publish.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) rate: u32,
    pub(super) records: u64,
    pub(super) bytes: usize,
}

impl Load {
    /// When half of it is published, from the start.
    pub(super) fn half(self) -> Duration {
        self.due(self.records / 2)
    }

    /// When record `number` is due, from the start.
    fn due(self, number: u64) -> Duration {
        Duration::from_micros(number * 1_000_000 / u64::from(self.rate))
    }

    fn value(self, number: u64) -> Vec<u8> {
        let due_us = self.due(number).as_micros() as u64;
        let mut value = [number.to_le_bytes(), due_us.to_le_bytes()].concat();
        value.resize(self.bytes.max(HEAD_BYTES), b'.');
        value
    }
}

/// Latencies in microseconds.
pub(super) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).unwrap_or_else(|error| unreachable!("fixed bounds: {error}"))
}

fn note(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(latency.as_micros().try_into().unwrap_or(LATENCY_US_MAX));
}

/// What became of what was published.
pub(super) struct Published {
    pub(super) acknowledged: Vec<Acknowledged>,
    pub(super) failed: u64,
    pub(super) duplicates: u64,
    pub(super) retries: u64,
    /// Of the records due in the first half, before anything is killed.
    pub(super) ack_undisturbed: Histogram<u64>,
    /// Of all.
    pub(super) ack: Histogram<u64>,
    /// Longest time without an acknowledgement.
    pub(super) longest_pause: Duration,
    pub(super) took: Duration,
}

impl Published {
    /// The offset after the last acknowledged record.
    pub(super) fn end_offset(&self) -> u64 {
        self.acknowledged.iter().map(|record| record.offset + 1).max().unwrap_or(0)
    }
}

/// Publishes the whole load and waits for every answer.
pub(super) async fn publish(producer: Producer, load: Load, started: Instant) -> anyhow::Result<Published> {
    let (sent, answers) = mpsc::channel(UNANSWERED_MAX);
    let collector = tokio::spawn(collect(answers, load, started));
    let mut clock = tokio::time::interval(TICK);
    let mut number = 0;
    while number < load.records {
        clock.tick().await;
        let now = started.elapsed();
        while number < load.records && load.due(number) <= now {
            let delivery = producer.send(Record::new(load.value(number))).await.context("can't publish")?;
            sent.send((number, delivery)).await.context("the answers are not collected any more")?;
            number += 1;
        }
    }
    drop(sent);
    let mut published = collector.await.context("collecting answers failed")?;
    published.took = started.elapsed();
    published.retries = producer.stats().retries;
    producer.close().await.context("can't close the producer")?;
    Ok(published)
}

/// Awaits the answers in order: one partition acknowledges in order, so none waits behind a later one.
async fn collect(mut answers: mpsc::Receiver<(u64, Delivery)>, load: Load, started: Instant) -> Published {
    let mut published = Published {
        acknowledged: Vec::with_capacity(usize::try_from(load.records).unwrap_or(0)),
        failed: 0,
        duplicates: 0,
        retries: 0,
        ack_undisturbed: latencies(),
        ack: latencies(),
        longest_pause: Duration::ZERO,
        took: Duration::ZERO,
    };
    let mut last = Instant::now();
    while let Some((number, delivery)) = answers.recv().await {
        match delivery.await {
            Ok(delivered) => {
                published.acknowledged.push(Acknowledged { number, offset: delivered.offset });
                published.duplicates += u64::from(delivered.duplicate);
                let now = Instant::now();
                let latency = now.duration_since(started).saturating_sub(load.due(number));
                note(&mut published.ack, latency);
                if number < load.records / 2 {
                    note(&mut published.ack_undisturbed, latency);
                }
                published.longest_pause = published.longest_pause.max(now - last);
                last = now;
            }
            Err(error) => {
                published.failed += 1;
                if published.failed == 1 {
                    crate::output::diagnose(format_args!("error: record {number} was not published: {error}"));
                }
            }
        }
    }
    published
}

/// What was read.
pub(super) struct Read {
    pub(super) records: Vec<ReadRecord>,
    pub(super) end_to_end: Histogram<u64>,
    /// Why reading ended before its end was reached.
    pub(super) fault: Option<String>,
}

/// Up to where to read, and until when at most.
#[derive(Clone, Copy)]
struct Target {
    end_offset: u64,
    deadline: tokio::time::Instant,
}

/// Reads along on a task of its own until it is told where the end is.
pub(super) struct Reader {
    target: watch::Sender<Option<Target>>,
    task: JoinHandle<Read>,
}

impl Reader {
    /// Starts reading; due times count from `started`.
    pub(super) fn start(consumer: Consumer, started: Instant) -> Self {
        let (target, told) = watch::channel(None);
        Self { target, task: tokio::spawn(read(consumer, started, told)) }
    }

    /// What was read up to this offset, or until the time is over.
    pub(super) async fn read_up_to(self, end_offset: u64, timeout: Duration) -> anyhow::Result<Read> {
        let deadline = tokio::time::Instant::now() + timeout;
        self.target.send_replace(Some(Target { end_offset, deadline }));
        self.task.await.context("the reader failed")
    }
}

async fn read(mut consumer: Consumer, started: Instant, mut told: watch::Receiver<Option<Target>>) -> Read {
    let mut read = Read { records: Vec::new(), end_to_end: latencies(), fault: None };
    let mut target: Option<Target> = None;
    let mut next_offset = 0;
    while target.is_none_or(|target| next_offset < target.end_offset) {
        let deadline = async {
            match target {
                Some(target) => tokio::time::sleep_until(target.deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = told.changed(), if target.is_none() => match changed {
                Ok(()) => target = *told.borrow_and_update(),
                Err(_) => break,
            },
            record = consumer.next() => match record {
                Ok(Some(record)) => {
                    next_offset = record.offset() + 1;
                    read.note(record.offset(), record.value(), started.elapsed());
                }
                Ok(None) => break,
                Err(error) => {
                    read.fault = Some(error.to_string());
                    break;
                }
            },
            () = deadline => {
                read.fault = Some(format!("nothing more came after offset {next_offset}"));
                break;
            }
        }
    }
    read
}

impl Read {
    fn note(&mut self, offset: u64, value: &[u8], now: Duration) {
        let number_at = |at: usize| value.get(at..at + NUMBER_BYTES)?.try_into().ok().map(u64::from_le_bytes);
        let (Some(number), Some(due_us)) = (number_at(0), number_at(NUMBER_BYTES)) else {
            self.fault.get_or_insert_with(|| format!("the record at offset {offset} is none of ours"));
            return;
        };
        note(&mut self.end_to_end, now.saturating_sub(Duration::from_micros(due_us)));
        self.records.push(ReadRecord { number, offset });
    }
}
