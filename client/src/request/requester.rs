//! Asking: [`Requester`] publishes requests and hands each caller the reply to its own.
//!
//! ```text
//!  request(): place --> pending --> producer --> wait: reply | certain failure | deadline
//!  reading:   reply topic --> correlation --> pending --> the one who waits
//! ```
//! Invariants:
//! - a request is sent only once the reply topic is read, from its end: no reply can be missed;
//! - every call ends by its deadline, with a reply or an error that says how far the request came;
//! - what waits is bounded: a call that is dropped takes its place back, and no more wait than there are places.

use std::{
    future::pending,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use busbar_proto::Reason;
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, SemaphorePermit, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    error::RequestError,
    headers::{self, Correlation},
    pending::Pending,
    report::{RequestFate, RequestReport},
};
use crate::{
    cluster::Cluster,
    consumer::ConsumedRecord,
    error::{ConsumeError, DeliveryError, SendError},
    producer::{Delivered, Delivery, Producer, ProducerStats},
    record::Record,
    task::Tasks,
};

/// Nobody waits longer for a reply.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// A request that has not left by so long before its deadline does not leave any more: its report is known in time.
const LAST_MOMENT: Duration = Duration::from_millis(10);

/// Publishes requests to one topic and receives their replies. Cheap to clone; clones share streams and places.
///
/// A request is a record with headers that say where its reply goes; whoever reads the topic may reply, most easily a
/// [`Responder`](super::Responder). Many may be under way at a time. A reply that comes after its deadline, twice,
/// or for somebody else is counted ([`Requester::stats`]) and handed to nobody.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use busbar_client::{Record, RequestError};
///
/// let prices = client.requester("prices").build().await?;
/// match prices.request(Record::new("ACME"), Duration::from_secs(2)).await {
///     Ok(reply) => println!("{:?}", reply.value()),
///     Err(RequestError::Failed { message, .. }) => println!("it says: {message}"),
///     Err(error) => println!("{error}"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Requester {
    handle: Arc<Handle>,
}

/// Ends the requester with its last clone. Apart from [`Core`], which its task holds too.
#[derive(Debug)]
struct Handle {
    core: Arc<Core>,
    producer: Producer,
    /// Whether the producer ends with the requester.
    owned: bool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.end();
    }
}

/// What a requester's calls and its task share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) cluster: Arc<Cluster>,
    pub(super) tasks: Tasks,
    topic: Arc<str>,
    reply_topic: Arc<str>,
    reply_partition: u32,
    /// Who waits. The places bound it.
    pub(super) pending: Mutex<Pending<oneshot::Sender<ConsumedRecord>>>,
    places: Semaphore,
    pub(super) counters: Counters,
    /// Why replies can't be read any more.
    pub(super) lost: OnceLock<ConsumeError>,
}

/// What a requester has done so far.
///
/// ```no_run
/// # fn example(prices: busbar_client::Requester) {
/// let stats = prices.stats();
/// println!("{} of {} answered, {} too late", stats.replies, stats.requests, stats.late);
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequesterStats {
    /// Calls of [`Requester::request`].
    pub requests: u64,
    /// Replies handed to their callers, those of failure included.
    pub replies: u64,
    /// Of those: replies of failure.
    pub failures: u64,
    /// Requests without a reply before their deadline.
    pub deadlines: u64,
    /// Replies to requests of ours that nobody waits for any more: too late, or repeated.
    pub late: u64,
    /// Records on the reply topic that are no reply to a request of ours.
    pub foreign: u64,
    /// Times that the reply topic could not be read for a while.
    pub read_errors: u64,
    /// Requests that wait for a reply now.
    pub waiting: u64,
}

/// Counters that only grow.
#[derive(Debug, Default)]
pub(super) struct Counters {
    requests: AtomicU64,
    replies: AtomicU64,
    failures: AtomicU64,
    deadlines: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) foreign: AtomicU64,
    pub(super) read_errors: AtomicU64,
}

/// What a requester is made of.
pub(super) struct Parts {
    pub(super) cluster: Arc<Cluster>,
    pub(super) producer: Producer,
    pub(super) owned: bool,
    pub(super) reply_topic: Arc<str>,
    pub(super) reply_partition: u32,
    pub(super) places: usize,
}

/// A request's entry among those that wait; leaves with it.
struct Waiting<'a> {
    core: &'a Core,
    correlation: Correlation,
    reply: oneshot::Receiver<ConsumedRecord>,
    _place: SemaphorePermit<'a>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.core.pending.lock().forget(self.correlation);
    }
}

impl Core {
    pub(super) fn new(parts: &Parts) -> Arc<Self> {
        let Parts { cluster, producer, reply_topic, reply_partition, places, .. } = parts;
        Arc::new(Self {
            tasks: cluster.tasks.child(),
            topic: producer.topic().into(),
            reply_topic: reply_topic.clone(),
            reply_partition: *reply_partition,
            pending: Mutex::new(Pending::new(cluster.env.random(), *places)),
            places: Semaphore::new(*places),
            counters: Counters::default(),
            lost: OnceLock::new(),
            cluster: cluster.clone(),
        })
    }

    /// Nobody waits any more; whoever does is told so.
    pub(super) fn end(&self) {
        self.places.close();
        self.tasks.stop();
        self.pending.lock().clear();
    }

    /// Why it has ended.
    fn ended(&self) -> RequestError {
        self.lost.get().map_or(RequestError::Closed, |error| RequestError::RepliesLost(error.clone()))
    }

    fn begin<'a>(&'a self, place: SemaphorePermit<'a>) -> Result<Waiting<'a>, RequestError> {
        let (answer, reply) = oneshot::channel();
        let begun = {
            let mut pending = self.pending.lock();
            // Under its lock: an end that comes now clears what begins here.
            if self.places.is_closed() { None } else { pending.begin(answer) }
        };
        // There are as many entries as places: none is left over only at the end.
        let correlation = begun.ok_or_else(|| self.ended())?;
        Ok(Waiting { core: self, correlation, reply, _place: place })
    }

    fn report(&self, correlation: Option<Correlation>, begun: Instant, fate: RequestFate) -> Box<RequestReport> {
        let took = self.cluster.env.now() - begun;
        Box::new(RequestReport { topic: self.topic.clone(), correlation, took, fate })
    }

    fn late(&self, correlation: Option<Correlation>, begun: Instant, fate: RequestFate) -> RequestError {
        self.counters.deadlines.fetch_add(1, Ordering::Relaxed);
        RequestError::Deadline(self.report(correlation, begun, fate))
    }

    /// It is certain that nobody will reply.
    fn undelivered(&self, correlation: Correlation, begun: Instant, error: DeliveryError) -> RequestError {
        let too_late =
            matches!(&error, DeliveryError::Rejected { refusal, .. } if refusal.reason == Reason::DeadlineExceeded);
        let fate = RequestFate::Failed(error);
        match too_late {
            true => self.late(Some(correlation), begun, fate),
            false => RequestError::Undelivered(self.report(Some(correlation), begun, fate)),
        }
    }

    fn hand_out(&self, reply: ConsumedRecord) -> Result<ConsumedRecord, RequestError> {
        self.counters.replies.fetch_add(1, Ordering::Relaxed);
        match headers::failure(&reply) {
            None => Ok(reply),
            Some(message) => {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                Err(RequestError::Failed { message, reply: Box::new(reply) })
            }
        }
    }
}

impl Requester {
    pub(super) fn new(core: Arc<Core>, parts: Parts) -> Self {
        let Parts { producer, owned, .. } = parts;
        Self { handle: Arc::new(Handle { core, producer, owned }) }
    }

    /// Publishes a request and waits for its reply, at most `within` (a day at most) and not beyond the record's own
    /// deadline ([`Record::deadline`], as inherited from what caused it); then the error says how far the request came.
    /// While too many requests wait, or the producer's buffer is full, it waits for room first; that
    /// counts.
    ///
    /// Cancel safe in this sense: a call that is dropped hands nothing out later. Its request may be stored all the
    /// same, and a reply to it counts as late.
    ///
    /// # Errors
    /// [`RequestError`]: a reply of failure, the deadline, a request that is certainly not stored.
    pub async fn request(&self, record: impl Into<Record>, within: Duration) -> Result<ConsumedRecord, RequestError> {
        let core = &*self.handle.core;
        let begun = core.cluster.env.now();
        let mut record = record.into();
        let env = &core.cluster.env;
        let own = record.deadline_ms().map(|deadline_ms| env.at_unix_ms(deadline_ms).saturating_duration_since(begun));
        let within = own.map_or(within, |own| own.min(within)).min(WAIT_MAX);
        let deadline = begun + within;
        core.counters.requests.fetch_add(1, Ordering::Relaxed);
        let place = match timeout_at(deadline, core.places.acquire()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_closed)) => return Err(core.ended()),
            Err(_) => return Err(core.late(None, begun, RequestFate::NoPlace)),
        };
        let waiting = core.begin(place)?;
        self.address(&mut record, waiting.correlation, deadline, within);
        let delivery = match timeout_at(deadline, self.handle.producer.send_in_time(record)).await {
            Ok(Ok(Some(delivery))) => delivery,
            Ok(Err(SendError::Closed)) => return Err(core.ended()),
            Ok(Err(refused)) => return Err(refused.into()),
            Ok(Ok(None)) | Err(_) => return Err(core.late(Some(waiting.correlation), begun, RequestFate::NoBuffer)),
        };
        wait(waiting, delivery, begun, deadline).await
    }

    fn address(&self, record: &mut Record, correlation: Correlation, deadline: Instant, within: Duration) {
        let core = &*self.handle.core;
        let unix_ms = |at: Instant| i64::try_from(core.cluster.env.unix_ms_at(at)).unwrap_or(i64::MAX);
        let last_moment = unix_ms(deadline - LAST_MOMENT.min(within / 10));
        record.send_before_ms = Some(record.send_before_ms.map_or(last_moment, |own| own.min(last_moment)));
        // The earlier of both counts for sending.
        headers::ask(record, correlation, &core.reply_topic, core.reply_partition, unix_ms(deadline));
    }

    /// What it has done so far.
    pub fn stats(&self) -> RequesterStats {
        let core = &*self.handle.core;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &core.counters;
        RequesterStats {
            requests: read(&counters.requests),
            replies: read(&counters.replies),
            failures: read(&counters.failures),
            deadlines: read(&counters.deadlines),
            late: read(&counters.late),
            foreign: read(&counters.foreign),
            read_errors: read(&counters.read_errors),
            waiting: core.pending.lock().len() as u64,
        }
    }

    /// What the producer of its requests has done.
    pub fn producer_stats(&self) -> ProducerStats {
        self.handle.producer.stats()
    }

    /// The topic of its requests.
    pub fn topic(&self) -> &str {
        &self.handle.core.topic
    }

    /// The topic and partition of its replies.
    pub fn replies_come_to(&self) -> (&str, u32) {
        (&self.handle.core.reply_topic, self.handle.core.reply_partition)
    }

    /// Ends it, for all clones: whoever waits is told [`RequestError::Closed`], and requests that were taken are
    /// delivered (nobody will read the replies). A producer that was handed in at building stays open.
    ///
    /// # Errors
    /// The first request that could not be delivered.
    pub async fn close(&self) -> Result<(), DeliveryError> {
        self.handle.core.end();
        self.handle.core.tasks.ended().await;
        match self.handle.owned {
            true => self.handle.producer.close().await,
            false => Ok(()),
        }
    }
}

/// Waits for what comes first: the reply, the certainty that there will be none, the deadline.
async fn wait(
    mut waiting: Waiting<'_>,
    mut delivery: Delivery,
    begun: Instant,
    deadline: Instant,
) -> Result<ConsumedRecord, RequestError> {
    let (core, correlation) = (waiting.core, waiting.correlation);
    let mut outcome: Option<Result<Delivered, DeliveryError>> = None;
    let waited = timeout_at(deadline, async {
        loop {
            let delivered = async {
                match outcome {
                    None => (&mut delivery).await,
                    Some(_) => pending().await,
                }
            };
            tokio::select! {
                biased;
                reply = &mut waiting.reply => {
                    return reply.map_err(|_| core.ended()).and_then(|reply| core.hand_out(reply));
                }
                told = delivered => match told {
                    Err(error) if error.has_no_side_effects() => return Err(core.undelivered(correlation, begun, error)),
                    // It may be stored: the reply may come still.
                    told => outcome = Some(told),
                },
            }
        }
    })
    .await;
    let Err(_elapsed) = waited else { return waited.unwrap_or_else(|_| Err(core.ended())) };
    let fate = match outcome.or_else(|| delivery.outcome()) {
        None => RequestFate::UnderWay,
        Some(Ok(delivered)) => RequestFate::Stored(delivered),
        Some(Err(error)) => RequestFate::Failed(error),
    };
    Err(core.late(Some(correlation), begun, fate))
}
