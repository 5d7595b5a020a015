//! The peer links against a scripted peer on a loopback port: what raft relies on and what it must be protected from.

use std::{pin::Pin, sync::Arc, time::Duration};

use busbar_proto::{
    GroupId, NodeId,
    peer::{
        self as wire, FetchCheckpointRequest, FetchCheckpointResponse, ForwardCommandRequest, ForwardCommandResponse,
        Frame, Hello, JoinRequest, JoinResponse, append_reply,
        frame::Body,
        peer_server::{Peer, PeerServer as GrpcServer},
    },
};
use futures::{Stream, StreamExt as _, stream};
use openraft::{
    errors::RPCError,
    network::{NetStreamAppend as _, NetVote as _, RPCOption, RaftNetworkFactory as _},
    raft::{AppendEntriesRequest, VoteRequest},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{
    AddressBook, Identity, Links, PROTOCOL,
    client::NetworkFactory,
    link::{Lane, LinkError},
};
use crate::{
    env::Tasks,
    raft::{
        convert,
        types::{RaftVote, TypeConfig},
    },
};

/// How the scripted peer answers a request; `None` = not at all.
type Script = fn(&Body) -> Option<Body>;

struct ScriptedPeer(Script);

#[tonic::async_trait]
impl Peer for ScriptedPeer {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn link(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::LinkStream>, Status> {
        let (output, answers) = mpsc::channel(64);
        let (mut input, script) = (request.into_inner(), self.0);
        tokio::spawn(async move {
            while let Ok(Some(frame)) = input.message().await {
                let body = match frame.body {
                    Some(Body::Hello(_)) => Some(Body::Hello(Hello { protocol: PROTOCOL, ..Hello::default() })),
                    Some(body) => script(&body),
                    None => None,
                };
                if body.is_some() && output.send(Ok(Frame { body, ..frame })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn forward_command(
        &self,
        _: Request<ForwardCommandRequest>,
    ) -> Result<Response<ForwardCommandResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn fetch_checkpoint(
        &self,
        _: Request<FetchCheckpointRequest>,
    ) -> Result<Response<FetchCheckpointResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

const PEER: NodeId = NodeId::new(2);

/// Links to a scripted peer, up.
async fn links(script: Script, reply_deadline: Duration) -> Arc<Links> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = Server::builder().add_service(GrpcServer::new(ScriptedPeer(script)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let identity = Identity::new("test".into(), String::new(), NodeId::new(1));
    let addresses = AddressBook::default();
    addresses.insert(PEER, address);
    let links = Arc::new(Links::new(Arc::new(identity), Arc::new(addresses), Tasks::new(), reply_deadline));
    for lane in [Lane::Bulk, Lane::Control] {
        let link = links.get(PEER, lane);
        while !link.is_up() {
            tokio::task::yield_now().await;
        }
    }
    links
}

fn append(previous: Option<u64>) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        vote: RaftVote::new_committed(1, 1),
        prev_log_id: previous.map(|index| convert::log_id(1, index)),
        entries: Vec::new(),
        leader_commit: None,
    }
}

fn matched(index: u64) -> Body {
    let log_id = Some(wire::LogId { term: 1, index });
    Body::AppendReply(wire::AppendReply { result: Some(append_reply::Result::Matched(wire::LogIdOrNone { log_id })) })
}

async fn answers(
    links: Arc<Links>,
    requests: Vec<AppendEntriesRequest<TypeConfig>>,
) -> Vec<Result<openraft::raft::StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>> {
    let mut factory = NetworkFactory { group: GroupId::new(7), links };
    let mut network = factory.new_client(PEER.get(), &openraft::impls::EmptyNode {}).await;
    // Like openraft's replication stream, it stays open after its last request.
    let input = Box::pin(stream::iter(requests).chain(stream::pending()));
    let answers = network.stream_append(input, RPCOption::new(Duration::from_secs(60))).await.unwrap();
    let until_failed = answers.scan(false, |failed, answer| {
        let done = std::mem::replace(failed, !matches!(answer, Ok(Ok(_))));
        futures::future::ready((!done).then_some(answer))
    });
    tokio::time::timeout(Duration::from_secs(20), until_failed.collect::<Vec<_>>()).await.unwrap()
}

/// A peer that swallows every append must not hold up this leader's retention: openraft sets no deadline itself.
#[tokio::test]
async fn an_append_stream_to_a_black_hole_fails_within_the_deadline() {
    let links = links(|_| None, Duration::from_millis(200)).await;
    let got = answers(links, vec![append(Some(3))]).await;
    assert!(matches!(got.as_slice(), [Err(RPCError::Network(_))]), "{got:?}");
}

#[tokio::test]
async fn a_peer_that_claims_more_than_it_was_sent_is_not_believed() {
    let links = links(|_| Some(matched(9)), Duration::from_secs(5)).await;
    let got = answers(links, vec![append(Some(3))]).await;
    assert!(matches!(got.as_slice(), [Err(RPCError::Network(_))]), "{got:?}");
}

#[tokio::test]
async fn answers_come_in_order_until_one_is_missing() {
    let answer_low = |body: &Body| match body {
        Body::Append(append) if append.previous.is_some_and(|at| at.index < 5) => {
            Some(matched(append.previous.map_or(0, |at| at.index)))
        }
        _ => None,
    };
    let links = links(answer_low, Duration::from_millis(300)).await;
    let got = answers(links, vec![append(Some(3)), append(Some(4)), append(Some(5))]).await;
    let indexes: Vec<_> = got.iter().map(|answer| answer.as_ref().ok()?.as_ref().ok()?.map(|id| id.index())).collect();
    assert_eq!(indexes, [Some(3), Some(4), None]);
}

/// openraft's default grants every pre-vote without asking.
#[tokio::test]
async fn a_pre_vote_is_asked_of_the_peer() {
    let deny_pre_votes = |body: &Body| match body {
        Body::Vote(vote) => {
            Some(Body::VoteReply(wire::VoteReply { vote: vote.vote, granted: !vote.pre_vote, last: None }))
        }
        _ => None,
    };
    let links = links(deny_pre_votes, Duration::from_secs(5)).await;
    let mut factory = NetworkFactory { group: GroupId::new(7), links };
    let mut network = factory.new_client(PEER.get(), &openraft::impls::EmptyNode {}).await;
    let request = VoteRequest::<TypeConfig>::new(RaftVote::new(2, 1), None);
    let option = || RPCOption::new(Duration::from_secs(5));
    assert!(!network.pre_vote(request.clone(), option()).await.unwrap().vote_granted);
    assert!(network.vote(request, option()).await.unwrap().vote_granted);
}

#[tokio::test]
async fn a_request_without_an_answer_is_late_and_forgotten() {
    let links = links(|_| None, Duration::from_secs(5)).await;
    let link = links.get(PEER, Lane::Bulk);
    let body = Body::Done(wire::Done {});
    let error = link.call(GroupId::new(1), body, Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, LinkError::Late { .. }), "{error}");
    assert_eq!(link.pending(), 0);
}
