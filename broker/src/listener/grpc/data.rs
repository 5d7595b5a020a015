//! The data plane's service: hands the streams to [`super::publish`] and [`super::subscribe`], answers the rest.

use std::{pin::Pin, sync::Arc};

use busbar_proto::{
    PartitionId, Reason, Refusal, TopicId,
    v1::{
        AllocateProducerRequest, AllocateProducerResponse, MetadataRequest, MetadataResponse, OffsetsRequest,
        OffsetsResponse, PublishRequest, PublishResponse, SubscribeRequest, SubscribeResponse, broker_server,
    },
};
use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::{publish, subscribe};
use crate::service::Broker;

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
        Ok(Response::new(answer))
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
        _request: Request<AllocateProducerRequest>,
    ) -> Result<Response<AllocateProducerResponse>, Status> {
        let id = self.broker.allocate_producer().await?;
        Ok(Response::new(AllocateProducerResponse { producer_id: id.get(), producer_epoch: 0 }))
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
