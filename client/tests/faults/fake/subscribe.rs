//! A subscribe stream of a node: each subscription is a task that sends while it has credit.

use std::{collections::HashMap, sync::Arc};

use busbar_client::{Reason, Refusal};
use busbar_proto::{
    NodeId,
    v1::{
        SubscribeRequest, SubscribeResponse,
        subscribe_request::{Action, Open, open::From},
        subscribe_response::{Batches, CaughtUp, Event, Opened},
    },
};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{sync::mpsc, task::AbortHandle};
use tonic::{Status, Streaming};

use super::{Shared, State, SubscribeFault};

type Events = mpsc::Sender<Result<SubscribeResponse, Status>>;

struct Subscription {
    node: u64,
    id: u32,
    open: Open,
    credit: Arc<Mutex<i64>>,
    shared: Arc<Shared>,
    events: Events,
}

/// The next thing to do for a subscription.
enum Next {
    Send { batch: Bytes, end: u64, fault: SubscribeFault, high_watermark: u64 },
    CaughtUp { high_watermark: u64 },
    End(Refusal),
}

pub(crate) async fn serve(node: u64, shared: Arc<Shared>, mut requests: Streaming<SubscribeRequest>, events: Events) {
    let mut open: HashMap<u32, (Arc<Mutex<i64>>, AbortHandle)> = HashMap::new();
    while let Ok(Some(request)) = requests.message().await {
        let id = request.subscription;
        match request.action.expect("an action") {
            Action::Open(wanted) => {
                let credit = Arc::new(Mutex::new(wanted.credit as i64));
                let (shared, events) = (shared.clone(), events.clone());
                let subscription = Subscription { node, id, open: wanted, credit: credit.clone(), shared, events };
                open.insert(id, (credit, tokio::spawn(subscription.run()).abort_handle()));
            }
            Action::Credit(bytes) => {
                if let Some((credit, _)) = open.get(&id) {
                    *credit.lock() += bytes as i64;
                    shared.changed();
                }
            }
            Action::Close(_) => {
                if let Some((_, task)) = open.remove(&id) {
                    task.abort();
                }
            }
        }
    }
    open.into_values().for_each(|(_, task)| task.abort());
}

impl Subscription {
    async fn run(self) {
        let mut next = match self.begin() {
            Ok((next, opened)) => {
                self.send(Event::Opened(opened)).await;
                next
            }
            Err(refusal) => return self.send(Event::Ended(refusal.to_wire())).await,
        };
        let mut told = None;
        loop {
            let step = tokio::select! {
                step = self.shared.until(|state| self.look(state, next, told)) => step,
                () = self.events.closed() => return,
            };
            match step {
                Next::CaughtUp { high_watermark } => {
                    told = Some(high_watermark);
                    self.send(Event::CaughtUp(CaughtUp { high_watermark })).await;
                }
                Next::End(refusal) => return self.send(Event::Ended(refusal.to_wire())).await,
                Next::Send { batch, end, fault, high_watermark } => {
                    if !self.deliver(batch, fault, high_watermark).await {
                        return;
                    }
                    next = end;
                }
            }
        }
    }

    fn begin(&self) -> Result<(u64, Opened), Refusal> {
        let mut state = self.shared.state.lock();
        let partition = state.by_id(&self.open.topic_id, self.open.partition)?;
        if partition.leader != self.node {
            let leader = Some(NodeId::new(partition.leader)).filter(|leader| leader.get() > 0);
            return Err(Refusal::new(Reason::NotLeader, "not here").led_by(leader));
        }
        let (log_start, high_watermark) = (partition.log.start, partition.log.end());
        let start_offset = match self.open.from {
            Some(From::Offset(offset)) if offset < log_start || offset > high_watermark => {
                let text = format!("offset {offset} is not within {log_start} to {high_watermark}");
                return Err(Refusal::new(Reason::OffsetOutOfRange, text));
            }
            Some(From::Offset(offset)) => offset,
            Some(From::Latest(_)) => high_watermark,
            Some(From::AtTimeMs(time_ms)) => partition.log.at_time(time_ms).unwrap_or(high_watermark),
            Some(From::Earliest(_)) | None => log_start,
        };
        Ok((start_offset, Opened { start_offset, log_start, high_watermark }))
    }

    fn look(&self, state: &mut State, next: u64, told: Option<u64>) -> Option<Next> {
        let partition = match state.by_id(&self.open.topic_id, self.open.partition) {
            Ok(partition) => partition,
            Err(refusal) => return Some(Next::End(refusal)),
        };
        if partition.leader != self.node {
            let leader = Some(NodeId::new(partition.leader)).filter(|leader| leader.get() > 0);
            return Some(Next::End(Refusal::new(Reason::NotLeader, "not here").led_by(leader)));
        }
        let high_watermark = partition.log.end();
        if next < partition.log.start {
            return Some(Next::End(Refusal::new(Reason::OffsetOutOfRange, "retention moved the log start")));
        }
        let Some((end, batch)) = partition.log.batch_at(next) else {
            return (told != Some(high_watermark)).then_some(Next::CaughtUp { high_watermark });
        };
        if *self.credit.lock() <= 0 {
            return None;
        }
        let mut fault = partition.subscribe_faults.pop_front().unwrap_or(SubscribeFault::None);
        if fault == SubscribeFault::Gap && end == high_watermark {
            // Only what follows can show that something is missing.
            fault = SubscribeFault::None;
        }
        if fault == SubscribeFault::NotLeader {
            partition.leader = partition.leader % 2 + 1;
            partition.epoch += 1;
        }
        partition.sent_bytes += batch.len();
        Some(Next::Send { batch, end, fault, high_watermark })
    }

    /// False when the subscription is over.
    async fn deliver(&self, batch: Bytes, fault: SubscribeFault, high_watermark: u64) -> bool {
        *self.credit.lock() -= batch.len() as i64;
        let send = |batches| self.send(Event::Batches(Batches { batches, high_watermark }));
        let end = |reason| self.send(Event::Ended(Refusal::new(reason, "scripted").to_wire()));
        match fault {
            SubscribeFault::None => send(batch).await,
            SubscribeFault::Gap => {}
            SubscribeFault::Twice => {
                send(batch.clone()).await;
                *self.credit.lock() -= batch.len() as i64;
                send(batch).await;
            }
            SubscribeFault::Corrupt => {
                let mut flipped = BytesMut::from(&batch[..]);
                let last = flipped.len() - 1;
                flipped[last] ^= 1;
                send(flipped.freeze()).await;
            }
            SubscribeFault::NotLeader => {
                end(Reason::NotLeader).await;
                self.shared.changed();
                return false;
            }
            SubscribeFault::End(reason) => {
                end(reason).await;
                return false;
            }
            SubscribeFault::Drop => {
                self.events.send(Err(Status::unavailable("scripted"))).await.ok();
                return false;
            }
            SubscribeFault::Disconnect => {
                self.shared.disconnect.send_modify(|times| *times += 1);
                return false;
            }
        }
        true
    }

    async fn send(&self, event: Event) {
        self.events.send(Ok(SubscribeResponse { subscription: self.id, event: Some(event) })).await.ok();
    }
}
