//! A publish stream: requests in, answers out, pipelined. One task reads requests in order and waits while the byte
//! budgets are spent, so a client that sends too fast is slowed by its own stream's flow control.
//!
//! Bound: at most [`UNANSWERED_MAX`] requests are between being read and their answer being taken by the client's
//! connection, and the answer queue has room for as many: giving an answer never waits.

use std::sync::Arc;

use busbar_proto::{
    PartitionId, Reason, Refusal, limits,
    v1::{
        Envelope, PublishRequest, PublishResponse,
        publish_response::{Acknowledged, Outcome},
    },
};
use futures::{Stream, StreamExt as _};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::data::topic_id;
use crate::{partition::PublishResult, service::Broker};

const UNANSWERED_MAX: usize = 4096;

pub(super) fn run(
    broker: Arc<Broker>,
    mut requests: Streaming<PublishRequest>,
) -> impl Stream<Item = Result<PublishResponse, Status>> + Send {
    let (answers, answered) = mpsc::channel(UNANSWERED_MAX + 1);
    let places = Arc::new(Semaphore::new(UNANSWERED_MAX));
    broker.tasks().clone().spawn("publish stream", async move {
        loop {
            let request = match requests.message().await {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(status) => {
                    drop(answers.try_send((Err(status), None)));
                    return;
                }
            };
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let answers = answers.clone();
            let correlation = request.correlation;
            let answer = Box::new(move |result: PublishResult| {
                // Fails only when the client is gone (there is a place for each): nobody is left to tell.
                drop(answers.try_send((Ok(response(correlation, result)), Some(place))));
            });
            handle(&broker, request, answer).await;
        }
    });
    ReceiverStream::new(answered).map(|(response, _place)| response)
}

async fn handle(broker: &Broker, request: PublishRequest, answer: Box<dyn FnOnce(PublishResult) + Send>) {
    let topic = match topic_id(&request.topic_id).and_then(|id| check(request.envelope.as_ref()).map(|()| id)) {
        Ok(topic) => topic,
        Err(refusal) => return answer(Err(refusal)),
    };
    let deadline = i64::try_from(request.deadline_unix_ms).ok().filter(|deadline| *deadline > 0);
    broker.publish(topic, PartitionId::new(request.partition), request.batch, deadline, answer).await;
}

fn check(envelope: Option<&Envelope>) -> Result<(), Refusal> {
    let Some(envelope) = envelope else { return Ok(()) };
    let attributes: usize = envelope.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    let bytes = attributes + envelope.traceparent.len() + envelope.tracestate.len();
    if bytes > limits::ENVELOPE_BYTES_MAX {
        let message = format!("the envelope has {bytes} bytes, at most {} are allowed", limits::ENVELOPE_BYTES_MAX);
        return Err(Refusal::new(Reason::InvalidArgument, message));
    }
    Ok(())
}

fn response(correlation: u64, result: PublishResult) -> PublishResponse {
    let outcome = match result {
        Ok(stored) => {
            Outcome::Acknowledged(Acknowledged { base_offset: stored.base_offset.get(), duplicate: stored.duplicate })
        }
        Err(refusal) => Outcome::Error(refusal.to_wire()),
    };
    PublishResponse { correlation, outcome: Some(outcome) }
}
