//! The peer service over gRPC: carries links to [`PeerServer`] and the few unary calls to whoever handles them.

use std::pin::Pin;

use busbar_proto::{
    GroupId, LogIndex, NodeId, Refusal, limits,
    peer::{
        Checkpoint, Cleaned, FetchCheckpointRequest, FetchCheckpointResponse, ForwardCommandRequest,
        ForwardCommandResponse, Frame, JoinRequest, JoinResponse, Leaders,
        peer_server::{Peer, PeerServer as GrpcServer},
    },
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, future::BoxFuture};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::server::PeerServer;
use crate::env::Tasks;

/// Answers queued towards one peer; a peer that does not read them stops its own requests only.
const ANSWERS_QUEUED: usize = 1024;

/// What peers ask of the node beyond raft.
pub trait PeerHooks: Send + Sync + 'static {
    /// A node reports which groups it leads.
    fn leaders(&self, node: NodeId, report: Leaders);
    /// A node tells what its replica of a compacted partition still holds.
    fn cleaned(&self, node: NodeId, group: GroupId, told: Cleaned);
    /// A node forwards a catalog command.
    fn forward(&self, command: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>>;
    /// Whether a node was removed from the cluster for good, as far as is known here.
    fn is_removed(&self, node: NodeId) -> bool;
    /// A new node wants to join.
    fn join(&self, request: JoinRequest) -> BoxFuture<'static, Result<JoinResponse, Refusal>>;
    /// The oldest checkpoint stored here for a group, from an index on.
    fn checkpoint(&self, group: GroupId, from: LogIndex) -> Result<Option<Checkpoint>, Refusal>;
}

/// The gRPC service.
pub struct PeerService<H> {
    server: PeerServer<H>,
    tasks: Tasks,
}

impl<H: PeerHooks> PeerService<H> {
    /// As a tonic service with its message limits set.
    pub fn new(server: PeerServer<H>, tasks: Tasks) -> GrpcServer<Self> {
        GrpcServer::new(Self { server, tasks })
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl<H: PeerHooks> Peer for PeerService<H> {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn link(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::LinkStream>, Status> {
        let (output, answers) = mpsc::channel(ANSWERS_QUEUED);
        let server = self.server.clone();
        self.tasks.spawn("peer link in", server.run(request.into_inner(), output));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers).map(Ok))))
    }

    async fn forward_command(
        &self,
        request: Request<ForwardCommandRequest>,
    ) -> Result<Response<ForwardCommandResponse>, Status> {
        let outcome = self.server.hooks().forward(request.into_inner().command).await?;
        Ok(Response::new(ForwardCommandResponse { outcome }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Ok(Response::new(self.server.hooks().join(request.into_inner()).await?))
    }

    async fn fetch_checkpoint(
        &self,
        request: Request<FetchCheckpointRequest>,
    ) -> Result<Response<FetchCheckpointResponse>, Status> {
        let FetchCheckpointRequest { group, from_index } = request.into_inner();
        let checkpoint = self.server.hooks().checkpoint(GroupId::new(group), LogIndex::new(from_index))?;
        Ok(Response::new(FetchCheckpointResponse { checkpoint }))
    }
}
