//! The gRPC services of a node: metadata and the little administration that tests use; streams are elsewhere.

use std::{pin::Pin, sync::Arc};

use busbar_client::{Reason, Refusal};
use busbar_proto::v1::{self, admin_server::Admin, broker_server::Broker};
use bytes::Bytes;
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Shared, State, publish, subscribe};

#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) node: u64,
    pub(crate) shared: Arc<Shared>,
}

pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn metadata_of(&self, state: &State, names: &[String]) -> Result<v1::MetadataResponse, Refusal> {
        let wanted: Vec<_> = match names {
            [] => state.topics.keys().cloned().collect(),
            names => names.to_vec(),
        };
        let lags = state.lagging == Some(self.node);
        let topic = |name: String| {
            let unknown = || format!("there is no topic {name:?}; did you mean {:?}?", state.topics.keys().next());
            state.topic(&name).filter(|_| !lags).ok_or_else(|| Refusal::new(Reason::UnknownTopic, unknown()))
        };
        let nodes = state.addresses.iter().zip(1..).map(|(address, id)| v1::Node {
            id,
            address: address.clone(),
            alive: true,
            draining: false,
        });
        Ok(v1::MetadataResponse {
            cluster: "fake".to_owned(),
            version: 1,
            nodes: nodes.collect(),
            topics: wanted.into_iter().map(topic).collect::<Result<_, _>>()?,
            answered_by: self.node,
            time_ms: 0,
        })
    }
}

#[tonic::async_trait]
impl Broker for Service {
    type PublishStream = Answers<v1::PublishResponse>;
    type SubscribeStream = Answers<v1::SubscribeResponse>;
    type WatchMetadataStream = Answers<v1::MetadataResponse>;

    async fn publish(
        &self,
        request: Request<Streaming<v1::PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let (answers, stream) = mpsc::channel(1024);
        tokio::spawn(publish::serve(self.node, self.shared.clone(), request.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (events, stream) = mpsc::channel(8);
        tokio::spawn(subscribe::serve(self.node, self.shared.clone(), request.into_inner(), events));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn metadata(&self, request: Request<v1::MetadataRequest>) -> Result<Response<v1::MetadataResponse>, Status> {
        let state = self.shared.state.lock();
        let metadata = self.metadata_of(&state, &request.into_inner().topics)?;
        Ok(Response::new(v1::MetadataResponse { time_ms: state.time_ms(), ..metadata }))
    }

    async fn watch_metadata(
        &self,
        request: Request<v1::MetadataRequest>,
    ) -> Result<Response<Self::WatchMetadataStream>, Status> {
        let names = request.into_inner().topics;
        let (answers, stream) = mpsc::channel(8);
        let service = self.clone();
        tokio::spawn(async move {
            let mut last = None;
            loop {
                let news = |state: &mut State| {
                    let now = service.metadata_of(state, &names);
                    (last.as_ref() != Some(&now)).then_some(now)
                };
                let now = tokio::select! {
                    now = service.shared.until(news) => now,
                    () = answers.closed() => return,
                };
                last = Some(now.clone());
                if answers.send(now.map_err(Status::from)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn allocate_producer(
        &self,
        request: Request<v1::AllocateProducerRequest>,
    ) -> Result<Response<v1::AllocateProducerResponse>, Status> {
        let mut state = self.shared.state.lock();
        if state.no_producer_ids {
            return Err(Refusal::new(Reason::NoLeader, "the catalog has no leader").into());
        }
        let request = request.into_inner();
        if !request.producer_name.is_empty() {
            let (producer_id, epoch) = state.claim(&request)?;
            return Ok(Response::new(v1::AllocateProducerResponse { producer_id, producer_epoch: epoch.into() }));
        }
        state.next_producer += 1;
        Ok(Response::new(v1::AllocateProducerResponse { producer_id: state.next_producer, producer_epoch: 0 }))
    }

    async fn producer_state(
        &self,
        request: Request<v1::ProducerStateRequest>,
    ) -> Result<Response<v1::ProducerStateResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.shared.state.lock();
        let partition = state.by_id(&request.topic_id, request.partition)?;
        if partition.leader != self.node {
            return Err(Refusal::new(Reason::NotLeader, "not here").into());
        }
        let epoch = i16::try_from(request.producer_epoch).expect("an epoch");
        let last = partition.log.fence(request.producer_id, epoch)?;
        let last = last.map(|(epoch, sequence, offset)| v1::producer_state_response::Last {
            producer_epoch: epoch.into(),
            sequence,
            offset,
        });
        Ok(Response::new(v1::ProducerStateResponse { last }))
    }

    async fn offsets(&self, request: Request<v1::OffsetsRequest>) -> Result<Response<v1::OffsetsResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.shared.state.lock();
        let partition = state.by_id(&request.topic_id, request.partition)?;
        if partition.leader != self.node {
            return Err(Refusal::new(Reason::NotLeader, "ask the leader").into());
        }
        let (log_start, high_watermark) = (partition.log.start, partition.log.end());
        let at_time = |time_ms| partition.log.at_time(time_ms).unwrap_or(high_watermark);
        let offset_at_time = request.at_time_ms.map(at_time);
        Ok(Response::new(v1::OffsetsResponse { log_start, high_watermark, offset_at_time }))
    }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn create_topic(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.shared.state.lock();
        if state.topics.contains_key(&request.name) {
            return Err(Refusal::new(Reason::TopicExists, format!("topic {:?} exists", request.name)).into());
        }
        let topic = v1::Topic {
            id: Bytes::from(vec![9; 16]),
            partitions: vec![v1::Partition::default(); request.partitions as usize],
            name: request.name.clone(),
            config: request.config,
        };
        let partitions =
            topic.partitions.iter().map(|_| super::Partition { leader: 1, epoch: 1, ..Default::default() });
        let stored = super::Topic { id: [9; 16], max_batch_bytes: 1 << 20, partitions: partitions.collect() };
        state.topics.insert(request.name, stored);
        Ok(Response::new(v1::CreateTopicResponse { topic: Some(topic) }))
    }

    async fn delete_topic(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        let name = request.into_inner().name;
        let removed = self.shared.state.lock().topics.remove(&name);
        let unknown = || Refusal::new(Reason::UnknownTopic, format!("there is no topic {name:?}"));
        removed.map(|_| Response::new(v1::DeleteTopicResponse {})).ok_or_else(|| unknown().into())
    }

    async fn list_topics(&self, _: Request<v1::ListTopicsRequest>) -> Result<Response<v1::ListTopicsResponse>, Status> {
        let state = self.shared.state.lock();
        let topics = state.topics.keys().filter_map(|name| state.topic(name)).collect();
        Ok(Response::new(v1::ListTopicsResponse { topics }))
    }

    async fn describe_topic(
        &self,
        _: Request<v1::DescribeTopicRequest>,
    ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn describe_cluster(
        &self,
        _: Request<v1::DescribeClusterRequest>,
    ) -> Result<Response<v1::DescribeClusterResponse>, Status> {
        Ok(Response::new(v1::DescribeClusterResponse { cluster: "fake".to_owned(), ..Default::default() }))
    }

    async fn describe_replicas(
        &self,
        _: Request<v1::DescribeReplicasRequest>,
    ) -> Result<Response<v1::DescribeReplicasResponse>, Status> {
        let replica = v1::ReplicaState { leader: self.node, ..Default::default() };
        Ok(Response::new(v1::DescribeReplicasResponse { replicas: vec![replica] }))
    }

    async fn move_partition(
        &self,
        _: Request<v1::MovePartitionRequest>,
    ) -> Result<Response<v1::MovePartitionResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn drain_node(&self, _: Request<v1::DrainNodeRequest>) -> Result<Response<v1::DrainNodeResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn remove_node(&self, _: Request<v1::RemoveNodeRequest>) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}
