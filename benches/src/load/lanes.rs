//! Where sent records wait for their acknowledgements.
//!
//! ```text
//!   sent ─┬─ partition known ──▶ one FIFO lane a partition ─▶ awaited in order ─┬─▶ ledger + meter
//!         └─ unknown ──────────▶ one open lane ─────────────▶ as they come ─────┘
//! ```
//! Acknowledgements come in order within a partition and only there. Where the client tells the partition, each
//! lane awaits its records in turn, far cheaper than a task or a waker a record; where it does not, one lane awaits
//! all at once, so that a slow partition is not charged to the records of a fast one.
//!
//! Invariants: what is known is booked before a lane waits; a lane holds a bounded number of records, and a full
//! one holds the producer back, which at a constant rate counts in the latency like any other wait.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    clock::{Clock, Nanos},
    ledger::Ledger,
    meter::{AckMeter, Settled},
    target::Sent,
};

/// Records under way in one lane. The client's own buffer is the bound that is met first, but for tiny records.
const LANE_RECORDS_MAX: usize = 64 << 10;
/// Acknowledgements that a lane books under one lock.
const BOOKED_AT_ONCE: usize = 256;

/// What a record's acknowledgement says: stored, or why not.
type Fate = Result<(), String>;

/// What lanes book into.
#[derive(Clone)]
pub(crate) struct Books {
    /// Whose records they are.
    pub(crate) producer: u32,
    /// The run's clock.
    pub(crate) clock: Clock,
    /// Takes the acknowledgements.
    pub(crate) ledger: Arc<Ledger>,
    /// Takes latencies and failures.
    pub(crate) meter: Arc<AckMeter>,
}

/// The lanes of one producer, opened as records come.
pub(crate) struct Lanes<A> {
    books: Books,
    open: HashMap<Option<u32>, mpsc::Sender<Pending<A>>>,
    /// The lane of the last record: clients stay with one partition for a batch.
    last: Option<(Option<u32>, mpsc::Sender<Pending<A>>)>,
    tasks: JoinSet<()>,
}

impl<A: Future<Output = Fate> + Send + Unpin + 'static> Lanes<A> {
    /// No lane yet.
    pub(crate) fn new(books: Books) -> Self {
        Self { books, open: HashMap::new(), last: None, tasks: JoinSet::new() }
    }

    /// Puts a sent record into its lane; waits while that is full.
    pub(crate) async fn push(&mut self, sent: Sent<A>, sequence: u64, scheduled: Nanos) {
        let pending = Pending { sequence, scheduled, ack: sent.ack };
        if self.last.as_ref().is_none_or(|(lane, _)| *lane != sent.partition) {
            self.last = Some((sent.partition, self.lane(sent.partition)));
        }
        if let Some((_, lane)) = &self.last {
            // Err: the lane has panicked, which `finish` reports.
            let _ = lane.send(pending).await;
        }
    }

    fn lane(&mut self, partition: Option<u32>) -> mpsc::Sender<Pending<A>> {
        let open = self.open.entry(partition).or_insert_with(|| {
            let (sender, records) = mpsc::channel(LANE_RECORDS_MAX);
            let page = Page::new(self.books.clone());
            match partition {
                Some(_) => self.tasks.spawn(await_in_order(records, page)),
                None => self.tasks.spawn(await_as_they_come(records, page)),
            };
            sender
        });
        open.clone()
    }

    /// Waits until the fate of every record is booked.
    ///
    /// # Errors
    /// When a lane panicked.
    pub(crate) async fn finish(mut self) -> anyhow::Result<()> {
        self.open.clear();
        self.last = None;
        while let Some(ended) = self.tasks.join_next().await {
            ended?;
        }
        Ok(())
    }
}

/// A record whose fate is open; resolves to itself and its fate.
struct Pending<A> {
    sequence: u64,
    scheduled: Nanos,
    ack: A,
}

impl<A: Future<Output = Fate> + Unpin> Future for Pending<A> {
    type Output = (u64, Nanos, Fate);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (sequence, scheduled) = (self.sequence, self.scheduled);
        Pin::new(&mut self.ack).poll(context).map(|fate| (sequence, scheduled, fate))
    }
}

async fn await_in_order<A>(mut records: mpsc::Receiver<Pending<A>>, mut page: Page)
where
    A: Future<Output = Fate> + Unpin,
{
    let mut gathered = Vec::with_capacity(BOOKED_AT_ONCE);
    while records.recv_many(&mut gathered, BOOKED_AT_ONCE).await > 0 {
        for mut record in gathered.drain(..) {
            let settled = match futures::poll!(&mut record) {
                Poll::Ready(settled) => settled,
                Poll::Pending => {
                    page.book();
                    record.await
                }
            };
            page.add(settled);
        }
        page.book();
    }
}

async fn await_as_they_come<A>(mut records: mpsc::Receiver<Pending<A>>, mut page: Page)
where
    A: Future<Output = Fate> + Unpin,
{
    let mut gathered = Vec::with_capacity(BOOKED_AT_ONCE);
    let mut waiting = FuturesUnordered::new();
    let mut open = true;
    while open || !waiting.is_empty() {
        while let Poll::Ready(Some(settled)) = futures::poll!(waiting.next()) {
            page.add(settled);
        }
        page.book();
        tokio::select! {
            Some(settled) = waiting.next(), if !waiting.is_empty() => page.add(settled),
            received = records.recv_many(&mut gathered, BOOKED_AT_ONCE), if open && waiting.len() < LANE_RECORDS_MAX => {
                open = received > 0;
                waiting.extend(gathered.drain(..));
            }
            // The last one was booked just above.
            else => {}
        }
    }
    page.book();
}

/// Outcomes that are booked together.
struct Page {
    books: Books,
    sequences: Vec<u64>,
    settled: Vec<Settled>,
}

impl Page {
    fn new(books: Books) -> Self {
        let sequences = Vec::with_capacity(BOOKED_AT_ONCE);
        Self { books, sequences, settled: Vec::with_capacity(BOOKED_AT_ONCE) }
    }

    fn add(&mut self, (sequence, scheduled, fate): (u64, Nanos, Fate)) {
        match fate {
            Ok(()) => {
                self.sequences.push(sequence);
                self.settled.push(Settled { scheduled, acknowledged: self.books.clock.now() });
            }
            Err(message) => self.books.meter.record_failure(message),
        }
        if self.sequences.len() >= BOOKED_AT_ONCE {
            self.book();
        }
    }

    fn book(&mut self) {
        if !self.sequences.is_empty() {
            self.books.ledger.acknowledge(self.books.producer, &self.sequences);
            self.books.meter.record(&self.settled);
            self.sequences.clear();
            self.settled.clear();
        }
    }
}
