//! The control plane's service: translates and hands on.

use std::sync::Arc;

use busbar_proto::v1::{
    CreateTopicRequest, CreateTopicResponse, DeleteTopicRequest, DeleteTopicResponse, DescribeClusterRequest,
    DescribeClusterResponse, DescribeReplicasRequest, DescribeReplicasResponse, DescribeTopicRequest,
    DescribeTopicResponse, DrainNodeRequest, DrainNodeResponse, ListTopicsRequest, ListTopicsResponse,
    MovePartitionRequest, MovePartitionResponse, RemoveNodeRequest, RemoveNodeResponse, admin_server::Admin,
};
use tonic::{Request, Response, Status};

use super::data::topic_id;
use crate::service::Broker;

pub(super) struct AdminService {
    broker: Arc<Broker>,
}

impl AdminService {
    pub(super) fn new(broker: Arc<Broker>) -> Self {
        Self { broker }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_topic(
        &self,
        request: Request<CreateTopicRequest>,
    ) -> Result<Response<CreateTopicResponse>, Status> {
        let topic = self.broker.create_topic(request.into_inner()).await?;
        Ok(Response::new(CreateTopicResponse { topic: Some(topic) }))
    }

    async fn delete_topic(
        &self,
        request: Request<DeleteTopicRequest>,
    ) -> Result<Response<DeleteTopicResponse>, Status> {
        self.broker.delete_topic(request.into_inner().name).await?;
        Ok(Response::new(DeleteTopicResponse {}))
    }

    async fn describe_topic(
        &self,
        request: Request<DescribeTopicRequest>,
    ) -> Result<Response<DescribeTopicResponse>, Status> {
        Ok(Response::new(self.broker.describe_topic(&request.into_inner().name).await?))
    }

    async fn list_topics(&self, _request: Request<ListTopicsRequest>) -> Result<Response<ListTopicsResponse>, Status> {
        Ok(Response::new(self.broker.list_topics()))
    }

    async fn describe_cluster(
        &self,
        _request: Request<DescribeClusterRequest>,
    ) -> Result<Response<DescribeClusterResponse>, Status> {
        Ok(Response::new(self.broker.describe_cluster().await))
    }

    async fn describe_replicas(
        &self,
        request: Request<DescribeReplicasRequest>,
    ) -> Result<Response<DescribeReplicasResponse>, Status> {
        let id = request.into_inner().topic_id;
        let topic = if id.is_empty() { None } else { Some(topic_id(&id)?) };
        Ok(Response::new(DescribeReplicasResponse { replicas: self.broker.describe_replicas(topic) }))
    }

    async fn move_partition(
        &self,
        request: Request<MovePartitionRequest>,
    ) -> Result<Response<MovePartitionResponse>, Status> {
        let MovePartitionRequest { topic, partition, to } = request.into_inner();
        self.broker.move_partition(topic, partition, to).await?;
        Ok(Response::new(MovePartitionResponse {}))
    }

    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        let moves = self.broker.drain_node(request.into_inner().node).await?;
        Ok(Response::new(DrainNodeResponse { moves }))
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Result<Response<RemoveNodeResponse>, Status> {
        self.broker.remove_node(request.into_inner().node).await?;
        Ok(Response::new(RemoveNodeResponse {}))
    }
}
