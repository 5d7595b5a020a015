//! A subscribe stream: any number of subscriptions, each a task with its own reader and its own credit.
//!
//! The broker sends while credit is positive; a batch is never cut, so the last one may overdraw, and credit must then
//! grow above zero again. A slow consumer costs its own credit and at most [`EVENTS_QUEUED`] events of its stream.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use busbar_proto::{
    Offset, PartitionId, Reason, Refusal,
    filter::FilterError,
    limits,
    v1::{
        SubscribeRequest, SubscribeResponse,
        subscribe_request::{Action, Open, open::From},
        subscribe_response::{Batches, CaughtUp, Event, Opened, Passed},
    },
};
use futures::Stream;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::data::topic_id;
use crate::{
    partition::{
        Replica,
        reader::{Reader, Run},
        sequencer::{no_leader, not_leader},
    },
    raft::group::Leadership,
    service::{Broker, broker::StartAt},
};

/// Events between the subscriptions of a stream and its connection.
const EVENTS_QUEUED: usize = 8;
/// Bytes read at once for one subscription.
const READ_BYTES: usize = 1 << 20;
/// How long a replica that does not lead may take to get to where a reader comes from.
const LAG_PATIENCE: Duration = Duration::from_secs(1);
/// How often a reader of another replica than the leader's is told whether that still hears of new records.
const FOLLOWER_PATIENCE: Duration = Duration::from_secs(2);
/// Credit does not grow beyond this; more means nothing.
const CREDIT_MAX: i64 = 1 << 40;

type Events = mpsc::Sender<Result<SubscribeResponse, Status>>;

/// Bytes that may still be sent.
#[derive(Default)]
struct Credit {
    bytes: AtomicI64,
    grown: Notify,
}

impl Credit {
    fn add(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(CREDIT_MAX).min(CREDIT_MAX);
        let grow = |now: i64| Some(now.saturating_add(bytes).min(CREDIT_MAX));
        // The closure always returns a value, so the update can't fail.
        let _ = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow);
        self.grown.notify_one();
    }

    fn spend(&self, bytes: usize) {
        self.bytes.fetch_sub(i64::try_from(bytes).unwrap_or(CREDIT_MAX), Ordering::AcqRel);
    }

    /// Waits until there is credit. Cancel safe.
    async fn available(&self) -> usize {
        loop {
            let now = self.bytes.load(Ordering::Acquire);
            if now > 0 {
                return usize::try_from(now).unwrap_or(usize::MAX);
            }
            self.grown.notified().await;
        }
    }
}

/// An open subscription; closed when dropped.
struct Subscription {
    credit: Arc<Credit>,
    closed: CancellationToken,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

pub(super) fn run(
    broker: Arc<Broker>,
    mut requests: Streaming<SubscribeRequest>,
) -> impl Stream<Item = Result<SubscribeResponse, Status>> + Send {
    let (events, stream) = mpsc::channel(EVENTS_QUEUED);
    broker.tasks().clone().spawn("subscribe stream", async move {
        let limit = broker.config().limits.subscriptions_per_stream_max as usize;
        let mut open: HashMap<u32, Subscription> = HashMap::new();
        while let Ok(Some(request)) = requests.message().await {
            let id = request.subscription;
            open.retain(|_, subscription| !subscription.closed.is_cancelled());
            match request.action {
                Some(Action::Open(wanted)) => {
                    let refused = if open.contains_key(&id) {
                        Some(Refusal::new(Reason::InvalidArgument, format!("subscription {id} is open already")))
                    } else if open.len() >= limit {
                        let message = format!("a stream has at most {limit} subscriptions: open another stream");
                        Some(Refusal::new(Reason::LimitReached, message))
                    } else {
                        None
                    };
                    match refused {
                        Some(refusal) => end(&events, id, &refusal).await,
                        None => drop(open.insert(id, start(&broker, id, wanted, &events))),
                    }
                }
                Some(Action::Credit(bytes)) => {
                    if let Some(subscription) = open.get(&id) {
                        subscription.credit.add(bytes);
                    }
                }
                Some(Action::Close(_)) => drop(open.remove(&id)),
                None => {
                    let message = "a subscribe request without an action";
                    end(&events, id, &Refusal::new(Reason::InvalidArgument, message)).await;
                }
            }
        }
    });
    ReceiverStream::new(stream)
}

fn start(broker: &Arc<Broker>, id: u32, wanted: Open, events: &Events) -> Subscription {
    let subscription = Subscription { credit: Arc::default(), closed: CancellationToken::new() };
    subscription.credit.add(wanted.credit);
    let (broker, events) = (broker.clone(), events.clone());
    let (credit, closed) = (subscription.credit.clone(), subscription.closed.clone());
    broker.tasks().clone().spawn("subscription", async move {
        let served = closed.run_until_cancelled(serve(&broker, id, &wanted, &credit, &events)).await;
        if let Some(Err(refusal)) = served {
            end(&events, id, &refusal).await;
        }
        closed.cancel();
    });
    subscription
}

async fn end(events: &Events, id: u32, refusal: &Refusal) {
    send(events, id, Event::Ended(refusal.to_wire())).await;
}

/// False when the client is gone.
async fn send(events: &Events, id: u32, event: Event) -> bool {
    events.send(Ok(SubscribeResponse { subscription: id, event: Some(event) })).await.is_ok()
}

async fn serve(broker: &Broker, id: u32, wanted: &Open, credit: &Credit, events: &Events) -> Result<(), Refusal> {
    let (mut reader, replica) = open(broker, wanted).await?;
    let (log_start, high_watermark) = replica.bounds();
    let opened = Opened {
        start_offset: reader.next_offset().get(),
        log_start: log_start.get(),
        high_watermark: high_watermark.get(),
    };
    if !send(events, id, Event::Opened(opened)).await {
        return Ok(());
    }
    let mut leadership = replica.group().watch_leadership();
    let mut caught_up = false;
    loop {
        let now = leadership.current();
        if !wanted.any_replica && !now.is_self {
            return Err(not_leader(now));
        }
        let bytes = tokio::select! {
            bytes = credit.available() => bytes,
            alive = leadership.changed() => if alive { continue } else { return Err(gone()) },
            () = events.closed() => return Ok(()),
        };
        let before = reader.next_offset();
        let runs = reader.next(bytes.min(READ_BYTES)).await?;
        if reader.next_offset() > before {
            caught_up = false;
            if !deliver(&reader, id, before, runs, credit, events).await {
                return Ok(());
            }
            continue;
        }
        let high_watermark = reader.high_watermark().get();
        if !caught_up && !send(events, id, Event::CaughtUp(CaughtUp { high_watermark })).await {
            return Ok(());
        }
        caught_up = true;
        tokio::select! {
            readable = reader.readable() => readable?,
            alive = leadership.changed() => if !alive { return Err(gone()) },
            () = events.closed() => return Ok(()),
            () = tokio::time::sleep(FOLLOWER_PATIENCE) => require_contact(broker, leadership.current())?,
        }
    }
}

async fn open(broker: &Broker, wanted: &Open) -> Result<(Reader, Arc<Replica>), Refusal> {
    let from = match wanted.from {
        Some(From::Offset(offset)) => StartAt::Offset(Offset::new(offset)),
        Some(From::Latest(_)) => StartAt::Latest,
        Some(From::AtTimeMs(time_ms)) => StartAt::Time(time_ms),
        Some(From::Earliest(_)) | None => StartAt::Earliest,
    };
    let filter = match wanted.filter.as_str() {
        "" => None,
        text => {
            Some(text.parse().map_err(|fault: FilterError| Refusal::new(Reason::InvalidArgument, fault.to_string()))?)
        }
    };
    let topic = topic_id(&wanted.topic_id)?;
    let partition = PartitionId::new(wanted.partition);
    if let (true, StartAt::Offset(offset)) = (wanted.any_replica, from) {
        let replica = broker.replica(topic, partition)?;
        if !replica.group().leadership().is_self {
            replica.reaches(offset, LAG_PATIENCE).await;
        }
    }
    let (reader, replica) = broker.reader(topic, partition, from, wanted.any_replica).await?;
    Ok((reader.filtered(filter), replica))
}

/// A replica that hears of no leader does not hear of new records either: its readers are better served elsewhere.
fn require_contact(broker: &Broker, now: Leadership) -> Result<(), Refusal> {
    let is_alive = |leader| broker.leaders().is_alive(leader, broker.clock().now());
    let in_contact = now.is_self || now.leader.is_some_and(is_alive);
    if in_contact { Ok(()) } else { Err(no_leader()) }
}

/// Sends what was read from `position` on, and says what was passed over. False when the client is gone.
async fn deliver(
    reader: &Reader,
    id: u32,
    mut position: Offset,
    runs: Vec<Run>,
    credit: &Credit,
    events: &Events,
) -> bool {
    let high_watermark = reader.high_watermark().get();
    let passed = |next: Offset| {
        credit.spend(limits::PASSED_CREDIT_BYTES);
        Event::Passed(Passed { next_offset: next.get(), high_watermark })
    };
    for Run { first_offset, next_offset, batches } in runs {
        if first_offset > position && !send(events, id, passed(first_offset)).await {
            return false;
        }
        position = next_offset;
        credit.spend(batches.len());
        let high_watermark = reader.high_watermark().get();
        if !send(events, id, Event::Batches(Batches { batches, high_watermark })).await {
            return false;
        }
    }
    reader.next_offset() <= position || send(events, id, passed(reader.next_offset())).await
}

fn gone() -> Refusal {
    Refusal::new(Reason::NotLeader, "the partition left this node: look it up again")
}
