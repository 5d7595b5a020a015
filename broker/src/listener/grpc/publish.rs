//! A publish stream: requests in, answers out, pipelined. One task reads requests in order and waits while the byte
//! budgets are spent, so a client that sends too fast is slowed by its own stream's flow control.
//!
//! Bound: at most [`UNANSWERED_MAX`] requests are between being read and their answer being taken by the client's
//! connection, and the answer queue has room for as many: giving an answer never waits.

use std::sync::Arc;

use busbar_proto::{
    PartitionId, Reason, Refusal,
    compaction::KeyDigest,
    filter::Digest,
    v1::{
        Envelope, PublishRequest, PublishResponse,
        publish_response::{Acknowledged, Outcome},
    },
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::data::topic_id;
use crate::{
    partition::{Offered, PublishResult},
    service::Broker,
};

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
    let PublishRequest { correlation: _, topic_id: id, partition, batch, envelope, deadline_unix_ms } = request;
    let sound = topic_id(&id).and_then(|topic| Ok((topic, beside(envelope)?)));
    let (topic, (digest, keys)) = match sound {
        Ok(sound) => sound,
        Err(refusal) => return answer(Err(refusal)),
    };
    let deadline_unix_ms = i64::try_from(deadline_unix_ms).ok().filter(|deadline| *deadline > 0);
    let offered = Offered { batch, digest, keys, deadline_unix_ms };
    broker.publish(topic, PartitionId::new(partition), offered, answer).await;
}

/// The digests of an envelope, if they are sound: what is stored must make sense to every reader of this version.
fn beside(envelope: Option<Envelope>) -> Result<(Bytes, Bytes), Refusal> {
    let Envelope { digest, keys } = envelope.unwrap_or_default();
    let unsound = |text: String| Refusal::new(Reason::InvalidArgument, text);
    if !digest.is_empty() {
        Digest::decode(&digest).map_err(|fault| unsound(format!("the envelope's digest: {fault}")))?;
    }
    if !keys.is_empty() {
        KeyDigest::decode(&keys).map_err(|fault| unsound(format!("the envelope's key digest: {fault}")))?;
    }
    Ok((digest, keys))
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
