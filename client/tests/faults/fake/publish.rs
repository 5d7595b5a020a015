//! A publish stream of a node: requests in order, each with the partition's next scripted fault.

use std::{sync::Arc, time::SystemTime};

use busbar_client::{Reason, Refusal};
use busbar_proto::{
    NodeId,
    batch::verify,
    limits,
    v1::{PublishRequest, PublishResponse, publish_response::Acknowledged, publish_response::Outcome},
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{PublishFault, Shared, State};

type Answers = mpsc::Sender<Result<PublishResponse, Status>>;

/// What to do with the stream.
enum Next {
    Answer(Outcome),
    Hang,
    Break,
    Disconnect,
}

pub(crate) async fn serve(node: u64, shared: Arc<Shared>, mut requests: Streaming<PublishRequest>, answers: Answers) {
    while let Ok(Some(request)) = requests.message().await {
        shared.until(|state| (!state.held).then_some(())).await;
        let fault = next_fault(&shared, &request);
        if let PublishFault::Slow(time) = fault {
            tokio::time::sleep(time).await;
        }
        let next = handle(node, &shared, &request, fault);
        shared.changed();
        match next {
            Next::Answer(outcome) => {
                let answer = PublishResponse { correlation: request.correlation, outcome: Some(outcome) };
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
            Next::Hang => return answers.closed().await,
            Next::Break => return drop(answers.send(Err(Status::unavailable("scripted"))).await),
            Next::Disconnect => return shared.disconnect.send_modify(|times| *times += 1),
        }
    }
}

fn next_fault(shared: &Shared, request: &PublishRequest) -> PublishFault {
    let mut state = shared.state.lock();
    state.publishes += 1;
    if let Some(reason) = state.sick {
        return PublishFault::Refuse(reason);
    }
    let partition = state.by_id(&request.topic_id, request.partition);
    partition.ok().and_then(|partition| partition.publish_faults.pop_front()).unwrap_or(PublishFault::None)
}

fn handle(node: u64, shared: &Shared, request: &PublishRequest, fault: PublishFault) -> Next {
    let mut state = shared.state.lock();
    let other = state.other_node(node);
    let store = |state: &mut State, wanted: bool| wanted.then(|| store(node, state, request));
    match fault {
        PublishFault::None | PublishFault::Slow(_) => Next::Answer(store(&mut state, true).expect("it is wanted")),
        PublishFault::Refuse(reason) => Next::Answer(error(&Refusal::new(reason, "scripted"))),
        PublishFault::NotLeader | PublishFault::NotLeaderNoHint => {
            let hint = (fault == PublishFault::NotLeader).then(|| NodeId::new(other));
            if let Ok(partition) = state.by_id(&request.topic_id, request.partition) {
                partition.leader = other;
                partition.epoch += 1;
            }
            Next::Answer(error(&Refusal::new(Reason::NotLeader, "scripted").led_by(hint)))
        }
        PublishFault::Unknown { stored } => match store(&mut state, stored) {
            // What could not be stored is refused before anything is proposed.
            Some(refused @ Outcome::Error(_)) => Next::Answer(refused),
            _ => Next::Answer(error(&Refusal::new(Reason::OutcomeUnknown, "scripted"))),
        },
        PublishFault::Drop { stored } => {
            store(&mut state, stored);
            Next::Break
        }
        PublishFault::Disconnect { stored } => {
            store(&mut state, stored);
            Next::Disconnect
        }
        PublishFault::Hang { stored } => {
            store(&mut state, stored);
            Next::Hang
        }
    }
}

fn store(node: u64, state: &mut State, request: &PublishRequest) -> Outcome {
    match try_store(node, state, request) {
        Ok((base_offset, duplicate)) => Outcome::Acknowledged(Acknowledged { base_offset, duplicate }),
        Err(refusal) => error(&refusal),
    }
}

fn try_store(node: u64, state: &mut State, request: &PublishRequest) -> Result<(u64, bool), Refusal> {
    let header = verify(&request.batch, limits::BATCH_BYTES_MAX as usize)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let now = now.saturating_add_signed(state.clock_ahead_ms);
    let partition = state.by_id(&request.topic_id, request.partition)?;
    partition.deadlines.push(request.deadline_unix_ms);
    if partition.leader != node {
        let leader = (partition.leader > 0).then(|| NodeId::new(partition.leader));
        return Err(Refusal::new(Reason::NotLeader, "not here").led_by(leader));
    }
    if request.deadline_unix_ms > 0 && request.deadline_unix_ms < now {
        return Err(Refusal::new(Reason::DeadlineExceeded, "too late"));
    }
    let replaced = state.is_replaced(header.producer_id.get(), header.producer_epoch.get());
    let log = &mut state.by_id(&request.topic_id, request.partition)?.log;
    if replaced && !log.holds(&header) {
        return Err(Refusal::new(Reason::ProducerFenced, "another instance has the name"));
    }
    log.append(&header, &request.batch)
}

fn error(refusal: &Refusal) -> Outcome {
    Outcome::Error(refusal.to_wire())
}
