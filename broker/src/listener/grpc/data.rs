//! The data plane's service: hands the streams to [`super::publish`] and [`super::subscribe`], answers the rest.

use std::{pin::Pin, sync::Arc};

use busbar_proto::{
    PartitionId, ProducerEpoch, ProducerId, Reason, Refusal, TopicId,
    v1::{
        AllocateProducerRequest, AllocateProducerResponse, MetadataRequest, MetadataResponse, OffsetsRequest,
        OffsetsResponse, ProducerStateRequest, ProducerStateResponse, PublishRequest, PublishResponse,
        SubscribeRequest, SubscribeResponse, broker_server, producer_state_response::Last,
    },
};
use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::{publish, subscribe};
use crate::service::{Broker, producers::Instance};

type Stream_<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) struct DataService {
    broker: Arc<Broker>,
}

impl DataService {
    pub(super) fn new(broker: Arc<Broker>) -> Self {
        Self { broker }
    }
}

/// A topic id from the wire.
pub(super) fn topic_id(bytes: &[u8]) -> Result<TopicId, Refusal> {
    TopicId::from_slice(bytes).ok_or_else(|| {
        Refusal::new(Reason::InvalidArgument, format!("a topic id has 16 bytes, this one {}", bytes.len()))
    })
}

fn producer_epoch(raw: i32) -> Result<ProducerEpoch, Refusal> {
    let epoch = i16::try_from(raw).ok().filter(|&epoch| epoch >= 0);
    let most = i16::MAX;
    let wrong = || Refusal::new(Reason::InvalidArgument, format!("a producer's epoch is 0 to {most}, not {raw}"));
    epoch.map(ProducerEpoch::new).ok_or_else(wrong)
}

#[tonic::async_trait]
impl broker_server::Broker for DataService {
    type PublishStream = Stream_<PublishResponse>;
    type SubscribeStream = Stream_<SubscribeResponse>;
    type WatchMetadataStream = Stream_<MetadataResponse>;

    async fn publish(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let answers = publish::run(self.broker.clone(), request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let events = subscribe::run(self.broker.clone(), request.into_inner());
        Ok(Response::new(Box::pin(events)))
    }

    async fn metadata(&self, request: Request<MetadataRequest>) -> Result<Response<MetadataResponse>, Status> {
        let topics = request.into_inner().topics;
        let answer = self.broker.metadata(&topics);
        // One name asked for and not there: say which one is closest.
        if let [only] = topics.as_slice()
            && answer.topics.is_empty()
        {
            return Err(self.broker.unknown_topic(only).to_status());
        }
        Ok(Response::new(MetadataResponse { time_ms: self.broker.clock().unix_ms(), ..answer }))
    }

    async fn watch_metadata(
        &self,
        request: Request<MetadataRequest>,
    ) -> Result<Response<Self::WatchMetadataStream>, Status> {
        let topics = request.into_inner().topics;
        let broker = self.broker.clone();
        let mut versions = broker.leaders().watch();
        versions.mark_changed();
        let answers = futures::stream::unfold((broker, versions, topics), |(broker, mut versions, topics)| async {
            versions.changed().await.ok()?;
            versions.borrow_and_update();
            let answer = broker.metadata(&topics);
            Some((Ok(answer), (broker, versions, topics)))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn allocate_producer(
        &self,
        request: Request<AllocateProducerRequest>,
    ) -> Result<Response<AllocateProducerResponse>, Status> {
        let AllocateProducerRequest { producer_name: name, instance: number, renews_epoch } = request.into_inner();
        let (id, epoch) = match name.is_empty() {
            true => (self.broker.allocate_producer().await?, ProducerEpoch::new(0)),
            false => {
                let renews = renews_epoch.map(producer_epoch).transpose()?;
                self.broker.claim_producer(Instance { name, number, renews }).await?
            }
        };
        Ok(Response::new(AllocateProducerResponse { producer_id: id.get(), producer_epoch: epoch.get().into() }))
    }

    async fn producer_state(
        &self,
        request: Request<ProducerStateRequest>,
    ) -> Result<Response<ProducerStateResponse>, Status> {
        let request = request.into_inner();
        let (topic, partition) = (topic_id(&request.topic_id)?, PartitionId::new(request.partition));
        let (id, epoch) = (ProducerId::new(request.producer_id), producer_epoch(request.producer_epoch)?);
        let last = self.broker.producer_state(topic, partition, id, epoch).await?;
        let last = last.map(|last| Last {
            producer_epoch: last.epoch.get().into(),
            sequence: last.sequence.get(),
            offset: last.offset.get(),
        });
        Ok(Response::new(ProducerStateResponse { last }))
    }

    async fn offsets(&self, request: Request<OffsetsRequest>) -> Result<Response<OffsetsResponse>, Status> {
        let request = request.into_inner();
        let replica = self.broker.replica(topic_id(&request.topic_id)?, PartitionId::new(request.partition))?;
        let at_time = match request.at_time_ms {
            Some(time_ms) => Some(replica.offset_at(time_ms).await?.get()),
            None => None,
        };
        let (log_start, high_watermark) = replica.bounds();
        Ok(Response::new(OffsetsResponse {
            log_start: log_start.get(),
            high_watermark: high_watermark.get(),
            offset_at_time: at_time,
        }))
    }
}
