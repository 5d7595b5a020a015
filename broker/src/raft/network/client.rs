//! openraft's network traits over a link: one client per group, peer and purpose.
//!
//! Appends are pipelined: requests go out while earlier ones are unanswered, up to a window in bytes and requests;
//! answers are yielded in request order. A stream whose oldest request is unanswered for the reply deadline fails:
//! openraft then backs off, and retention on this leader is not held up by a peer that swallows everything.

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use busbar_proto::{
    GroupId, NodeId,
    peer::{self as wire, append_reply, frame::Body},
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use openraft::{
    OptionalSend,
    base::{BoxFuture, BoxStream},
    entry::RaftEntry as _,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    impls::EmptyNode,
    network::{
        Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory,
    },
    raft::{
        AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use tokio::time::Instant;

use super::{
    Links, WINDOW_BYTES, WINDOW_REQUESTS,
    link::{Lane, Link, LinkError, Reply},
};
use crate::env::clock::deadline_after;
use crate::raft::{
    checkpoint::Checkpoint,
    convert::{self, Malformed},
    types::{LogId, RaftVote, Snapshot, TypeConfig},
};

type Request = AppendEntriesRequest<TypeConfig>;
type AppendResult = StreamAppendResult<TypeConfig>;
type Failure = RPCError<TypeConfig>;

fn failure(error: &LinkError) -> Failure {
    match error {
        LinkError::Down { .. } | LinkError::Refused { .. } => RPCError::Unreachable(Unreachable::new(error)),
        LinkError::Broken { .. } | LinkError::Late { .. } => RPCError::Network(NetworkError::new(error)),
    }
}

fn unexpected() -> Failure {
    RPCError::Network(NetworkError::from_string("the peer answered with another kind of frame"))
}

fn malformed(error: &Malformed) -> Failure {
    RPCError::Network(NetworkError::new(error))
}

/// Makes the clients of one group.
pub(crate) struct NetworkFactory {
    pub(crate) group: GroupId,
    pub(crate) links: Arc<Links>,
}

impl NetworkFactory {
    fn client(&self, target: u64, lane: Lane) -> Network {
        Network { group: self.group, link: self.links.get(NodeId::new(target), lane) }
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Network {
        self.client(target, Lane::Bulk)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &EmptyNode) -> Network {
        self.client(target, Lane::Control)
    }
}

/// One group's way to one peer.
pub(crate) struct Network {
    group: GroupId,
    link: Link,
}

impl Network {
    async fn ask(&self, body: Body, limit: Duration) -> Result<Body, Failure> {
        self.link.call(self.group, body, limit).await.map_err(|error| failure(&error))
    }

    async fn ask_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
        limit: Duration,
    ) -> Result<VoteResponse<TypeConfig>, Failure> {
        let message = wire::Vote {
            vote: Some(convert::vote_to_wire(&request.vote)),
            last: request.last_log_id.as_ref().map(convert::id_to_wire),
            pre_vote,
            transfer: request.leadership_transfer,
        };
        let Body::VoteReply(reply) = self.ask(Body::Vote(message), limit).await? else { return Err(unexpected()) };
        let vote = convert::vote_from_wire(reply.vote).map_err(|error| malformed(&error))?;
        Ok(VoteResponse::new(vote, reply.last.map(convert::id_from_wire), reply.granted))
    }
}

impl NetBackoff<TypeConfig> for Network {
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(100))))
    }
}

impl NetVote<TypeConfig> for Network {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Failure> {
        self.ask_vote(rpc, false, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Failure> {
        self.ask_vote(rpc, true, option.hard_ttl()).await
    }
}

impl NetTransferLeader<TypeConfig> for Network {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Failure> {
        let message = wire::TransferLeader {
            from: Some(convert::vote_to_wire(request.from_leader())),
            to: *request.to_node_id(),
            last: request.last_log_id().map(convert::id_to_wire),
        };
        match self.ask(Body::TransferLeader(message), option.hard_ttl()).await? {
            Body::Done(_) => Ok(Ok(())),
            _ => Err(unexpected()),
        }
    }
}

impl NetSnapshot<TypeConfig> for Network {
    type SnapshotData = Bytes;

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let Some(at) = snapshot.meta.last_log_id else {
            return Err(StreamingError::Network(NetworkError::from_string("a checkpoint without a position")));
        };
        let row =
            Checkpoint { at, membership: snapshot.meta.last_membership, state: snapshot.snapshot, installed: true };
        let mut message = row.to_wire();
        message.vote = Some(convert::vote_to_wire(&vote));
        let answered = self.link.call(self.group, Body::Checkpoint(message), option.hard_ttl());
        let reply = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            reply = answered => reply,
        };
        match reply {
            Ok(Body::CheckpointReply(reply)) => match convert::vote_from_wire(reply.vote) {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error) => Err(StreamingError::Network(NetworkError::new(&error))),
            },
            Ok(_) => Err(StreamingError::Network(NetworkError::from_string("unexpected frame"))),
            Err(error @ LinkError::Down { .. }) => Err(StreamingError::Unreachable(Unreachable::new(&error))),
            Err(error) => Err(StreamingError::Network(NetworkError::new(&error))),
        }
    }
}

/// A request on its way to the follower.
struct InFlight {
    reply: Reply,
    bytes: usize,
    last: Option<LogId>,
    deadline: Instant,
}

/// Sender's half of one append stream.
struct AppendStream<S> {
    group: GroupId,
    link: Link,
    number: u64,
    input: S,
    input_ended: bool,
    in_flight: VecDeque<InFlight>,
    bytes: usize,
    failed: bool,
}

impl<S> Drop for AppendStream<S> {
    fn drop(&mut self) {
        self.link.notify(self.group, self.number, Body::CloseStream(wire::CloseStream {}));
    }
}

impl<S: Stream<Item = Request> + Unpin> AppendStream<S> {
    /// The next answer, sending requests meanwhile; `None` when the input has ended and all is answered.
    async fn next(&mut self) -> Option<Result<AppendResult, Failure>> {
        if self.failed {
            return None;
        }
        let result = self.advance().await?;
        // openraft starts a new stream after any error, so nothing more may be yielded on this one.
        self.failed = !matches!(result, Ok(Ok(_)));
        Some(result)
    }

    async fn advance(&mut self) -> Option<Result<AppendResult, Failure>> {
        loop {
            let room = self.bytes < WINDOW_BYTES && self.in_flight.len() < WINDOW_REQUESTS && !self.input_ended;
            let Some(oldest) = self.in_flight.front_mut() else {
                if self.input_ended {
                    return None;
                }
                match self.input.next().await {
                    Some(request) => match self.send(request).await {
                        Ok(()) => continue,
                        Err(error) => return Some(Err(failure(&error))),
                    },
                    None => return None,
                }
            };
            let deadline = oldest.deadline;
            tokio::select! {
                biased;
                answer = oldest.reply.receive() => return Some(self.answered(answer)),
                request = self.input.next(), if room => match request {
                    Some(request) => if let Err(error) = self.send(request).await {
                        return Some(Err(failure(&error)));
                    },
                    None => self.input_ended = true,
                },
                () = tokio::time::sleep_until(deadline) => {
                    let late = LinkError::Late { peer: self.link.peer(), after: self.link.reply_deadline() };
                    return Some(Err(failure(&late)));
                }
            }
        }
    }

    async fn send(&mut self, request: Request) -> Result<(), LinkError> {
        let last = request.entries.last().map(|entry| entry.log_id()).or(request.prev_log_id);
        let entries: Vec<_> = request.entries.into_iter().map(convert::entry_to_wire).collect();
        let bytes = entries.iter().map(|entry| entry.payload.len() + 64).sum();
        let message = wire::Append {
            vote: Some(convert::vote_to_wire(&request.vote)),
            previous: request.prev_log_id.as_ref().map(convert::id_to_wire),
            committed: request.leader_commit.as_ref().map(convert::id_to_wire),
            entries,
        };
        let deadline = deadline_after(self.link.reply_deadline());
        let reply = self.link.send(self.group, self.number, Body::Append(message)).await?;
        self.bytes += bytes;
        self.in_flight.push_back(InFlight { reply, bytes, last, deadline });
        Ok(())
    }

    fn answered(&mut self, answer: Result<Body, LinkError>) -> Result<AppendResult, Failure> {
        let Some(request) = self.in_flight.pop_front() else { return Err(unexpected()) };
        self.bytes -= request.bytes;
        let reply = match answer {
            Ok(Body::AppendReply(reply)) => reply,
            Ok(_) => return Err(unexpected()),
            Err(error) => return Err(failure(&error)),
        };
        match reply.result {
            Some(append_reply::Result::Matched(matched)) => {
                let matched = matched.log_id.map(convert::id_from_wire);
                // A peer that claims more than it was sent is broken: believing it would count as a commit.
                if matched > request.last { Err(unexpected()) } else { Ok(Ok(matched)) }
            }
            Some(append_reply::Result::Conflict(at)) => Ok(Err(StreamAppendError::Conflict(convert::id_from_wire(at)))),
            Some(append_reply::Result::HigherVote(vote)) => match convert::vote_from_wire(Some(vote)) {
                Ok(vote) => Ok(Err(StreamAppendError::HigherVote(vote))),
                Err(error) => Err(malformed(&error)),
            },
            None => Err(unexpected()),
        }
    }
}

impl NetStreamAppend<TypeConfig> for Network {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<AppendResult, Failure>>, Failure>>
    where
        S: Stream<Item = Request> + OptionalSend + Unpin + 'static,
    {
        let link = self.link.clone();
        let append = AppendStream {
            group: self.group,
            number: link.next_number(),
            link,
            input,
            input_ended: false,
            in_flight: VecDeque::new(),
            bytes: 0,
            failed: false,
        };
        Box::pin(async move {
            let answers = stream::unfold(append, |mut append| async move {
                let next = append.next().await?;
                Some((next, append))
            });
            Ok(Box::pin(answers) as BoxStream<'s, _>)
        })
    }
}
