//! A broker in memory with faults on order, so that the tool itself can be tested: a checker that was never seen
//! to fail checks nothing.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Consumer, Message, Producer, Received, Sent, Target, TopicFacts, TopicRequest};
use crate::load::options::Durability;

/// What goes wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Acknowledged and not stored.
    Lose,
    /// Stored twice.
    Double,
    /// Stored, and once more this much later, as by a retry that was in the network for long.
    DoubleLate(Duration),
    /// Stored after the record that follows it.
    Swap,
    /// Stored with another length.
    Cut,
    /// Not stored, and the producer is told.
    Refuse,
    /// Stored, and the producer is never told.
    Silence,
    /// Stored, and the producer is told this much later; partitions are not told to the producer.
    AckLate(Duration),
    /// The whole broker stands still for this long.
    Stall(Duration),
    /// The consumers' subscriptions end.
    EndSubscriptions,
}

/// The broker; clones share it.
#[derive(Clone)]
pub(crate) struct Loopback(Arc<Inner>);

struct Inner {
    partitions: Vec<Mutex<Vec<Bytes>>>,
    held: Mutex<Option<(usize, Bytes)>>,
    appended: Notify,
    sent: AtomicU64,
    /// The n-th record of the run (from 0) meets the fault.
    fault: Option<(u64, Fault)>,
    ended: AtomicU64,
}

impl Loopback {
    /// An empty topic where record `fault.0` meets `fault.1`.
    pub(crate) fn new(partitions: usize, fault: Option<(u64, Fault)>) -> Self {
        Self(Arc::new(Inner {
            partitions: (0..partitions).map(|_| Mutex::default()).collect(),
            held: Mutex::new(None),
            appended: Notify::new(),
            sent: AtomicU64::new(0),
            fault,
            ended: AtomicU64::new(0),
        }))
    }

    /// Puts a record there that no run has sent.
    pub(crate) fn store(&self, partition: usize, value: Bytes) {
        self.0.partitions[partition].lock().push(value);
        self.0.appended.notify_waiters();
    }
}

impl Target for Loopback {
    type Producer = Loopback;
    type Consumer = Reader;

    async fn prepare(&self, _: TopicRequest) -> anyhow::Result<TopicFacts> {
        let partitions = u32::try_from(self.0.partitions.len())?;
        Ok(TopicFacts { durability: Durability::Replicated, replicas: 1, partitions })
    }

    async fn producer(&self) -> anyhow::Result<Loopback> {
        Ok(self.clone())
    }

    async fn consumer(&self, partitions: &[u32]) -> anyhow::Result<Reader> {
        let at = |&partition: &u32| (partition, self.0.partitions[partition as usize].lock().len());
        Ok(Reader { broker: self.clone(), positions: partitions.iter().map(at).collect() })
    }

    async fn discard(&self) -> anyhow::Result<()> {
        Ok(())
    }
}

impl Producer for Loopback {
    type Ack = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

    async fn send(&self, message: Message) -> anyhow::Result<Sent<Self::Ack>> {
        let nth = self.0.sent.fetch_add(1, Ordering::Relaxed);
        let partition = match (message.partition, &message.key) {
            (Some(partition), _) => partition as usize,
            (None, Some(key)) => key.iter().map(|&byte| usize::from(byte)).sum::<usize>() % self.0.partitions.len(),
            // Like a client that fills one batch after another.
            (None, None) => (nth / 10) as usize % self.0.partitions.len(),
        };
        let fault = self.0.fault.filter(|(at, _)| *at == nth).map(|(_, fault)| fault);
        let mut fate = Ok(());
        match fault {
            Some(Fault::Lose) => {}
            Some(Fault::Double) => {
                self.store(partition, message.value.clone());
                self.store(partition, message.value);
            }
            Some(Fault::DoubleLate(time)) => {
                self.store(partition, message.value.clone());
                let broker = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    broker.store(partition, message.value);
                });
            }
            Some(Fault::Swap) => *self.0.held.lock() = Some((partition, message.value)),
            Some(Fault::Cut) => self.store(partition, message.value.slice(..message.value.len() - 1)),
            Some(Fault::Refuse) => fate = Err("refused by the loopback".to_owned()),
            Some(Fault::Stall(time)) => {
                tokio::time::sleep(time).await;
                self.store(partition, message.value);
            }
            Some(Fault::EndSubscriptions) => {
                self.0.ended.store(1, Ordering::Relaxed);
                self.store(partition, message.value);
            }
            Some(Fault::Silence | Fault::AckLate(_)) | None => {
                self.store(partition, message.value);
                let held = self.0.held.lock().take_if(|(held, _)| *held == partition);
                if let Some((partition, value)) = held {
                    self.store(partition, value);
                }
            }
        }
        let ack: Self::Ack = match fault {
            Some(Fault::Silence) => Box::pin(std::future::pending()),
            Some(Fault::AckLate(time)) => Box::pin(async move {
                tokio::time::sleep(time).await;
                fate
            }),
            _ => Box::pin(async move {
                tokio::task::yield_now().await;
                fate
            }),
        };
        let known = !matches!(self.0.fault, Some((_, Fault::AckLate(_))));
        Ok(Sent { partition: known.then_some(u32::try_from(partition)?), ack })
    }

    async fn flush(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn retries(&self) -> u64 {
        3
    }
}

/// Reads its partitions in turn.
pub(crate) struct Reader {
    broker: Loopback,
    positions: Vec<(u32, usize)>,
}

impl Consumer for Reader {
    async fn next(&mut self) -> anyhow::Result<Option<Received>> {
        loop {
            let appended = self.broker.0.appended.notified();
            if self.broker.0.ended.load(Ordering::Relaxed) > 0 {
                return Ok(None);
            }
            for (partition, position) in &mut self.positions {
                if let Some(value) = self.broker.0.partitions[*partition as usize].lock().get(*position) {
                    *position += 1;
                    return Ok(Some(Received { partition: *partition, value: value.clone() }));
                }
            }
            appended.await;
        }
    }
}
