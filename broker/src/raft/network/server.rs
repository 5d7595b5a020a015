//! The receiving end of peer links: hands frames to the groups and their answers back.
//!
//! Frames of one append stream are handled in order by one task; streams, groups and lanes do not wait for each
//! other. The reader never blocks on a group: a stream's queue holds as many requests as the sender's window, and a
//! peer that overruns it is cut off.

use std::{collections::HashMap, sync::Arc};

use busbar_proto::{
    GroupId, NodeId,
    peer::{self as wire, Frame, append_reply, frame::Body},
};
use futures::StreamExt as _;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, TransferLeaderRequest, VoteRequest};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{Identity, NODE_REMOVED, PROTOCOL, WINDOW_REQUESTS, grpc::PeerHooks};
use crate::{
    channel::{Receiver, Sender, Unsent, channel},
    env::{Clock, Tasks},
    raft::{
        checkpoint::Checkpoint,
        convert::{self, Malformed},
        liveness::{Boot, Greeting, Liveness},
        pulse::Pulse,
        registry::Registry,
        succession::News,
        types::{SnapshotMeta, TypeConfig},
    },
};

/// Append streams that one link may have open.
const STREAMS_MAX: usize = 100_000;

type Request = AppendEntriesRequest<TypeConfig>;

/// Accepts peers' links.
pub struct PeerServer<H> {
    identity: Arc<Identity>,
    registry: Arc<Registry>,
    watch: PeerWatch,
    tasks: Tasks,
    hooks: Arc<H>,
}

/// Who is told of what peers say by being there.
#[derive(Clone)]
pub struct PeerWatch {
    /// Of every word.
    pub liveness: Arc<Liveness>,
    /// Of new processes, and of groups that are given away.
    pub news: News,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl PeerWatch {
    /// Whether the leader of a group is not there any more, as far as this node can tell.
    fn is_lost(&self, pulse: &Pulse, leader: NodeId) -> bool {
        !pulse.is_node(leader) && self.liveness.is_suspect(leader, self.clock.now())
    }
}

impl<H> Clone for PeerServer<H> {
    fn clone(&self) -> Self {
        let Self { identity, registry, watch, tasks, hooks } = self;
        Self {
            identity: identity.clone(),
            registry: registry.clone(),
            watch: watch.clone(),
            tasks: tasks.clone(),
            hooks: hooks.clone(),
        }
    }
}

impl<H: PeerHooks> PeerServer<H> {
    /// Serves the groups of `registry`.
    pub fn new(
        identity: Arc<Identity>,
        registry: Arc<Registry>,
        watch: PeerWatch,
        tasks: Tasks,
        hooks: Arc<H>,
    ) -> Self {
        Self { identity, registry, watch, tasks, hooks }
    }

    pub(super) fn hooks(&self) -> &H {
        &self.hooks
    }

    /// Checks a peer's hello; the refusal names a reason, and says what is wrong and what to do.
    pub fn check_hello(&self, hello: &wire::Hello) -> Result<wire::Hello, wire::Failed> {
        let ours = &self.identity;
        let incarnation = ours.incarnation.read().clone();
        let refused = |reason: &str, message| Err(wire::Failed { reason: reason.to_owned(), message });
        if hello.protocol != PROTOCOL {
            let message = format!(
                "node {} speaks peer protocol {}, this node {PROTOCOL}: run one version on all nodes",
                hello.node, hello.protocol
            );
            return refused("WRONG_PROTOCOL", message);
        }
        if hello.cluster != ours.cluster {
            let message = format!(
                "node {} belongs to cluster {:?}, this node to {:?}: check cluster.name and the addresses",
                hello.node, hello.cluster, ours.cluster
            );
            return refused("WRONG_CLUSTER", message);
        }
        let both_known = !hello.incarnation.is_empty() && !incarnation.is_empty();
        if both_known && hello.incarnation != incarnation {
            let message = format!(
                "node {} holds the data of another cluster of the same name ({:?}): start it with an empty data folder",
                hello.node, hello.cluster
            );
            return refused("WRONG_CLUSTER", message);
        }
        ours.lost_data(hello)?;
        // Only a node that surely is of this cluster: a new one that was pointed at a stranger's must not end for that.
        if both_known && self.hooks.is_removed(NodeId::new(hello.node)) {
            let message = format!(
                "node {} was removed from the cluster, and its id is not used again: let it join with an empty data \
                 folder, as a new node",
                hello.node
            );
            return refused(NODE_REMOVED, message);
        }
        let (node, boot) = (ours.node.get(), ours.boot.get());
        Ok(wire::Hello { cluster: ours.cluster.clone(), incarnation, node, protocol: PROTOCOL, boot })
    }

    /// Runs one accepted link until its input ends. `output` carries the answers; the first is ours to the hello.
    pub async fn run<S, E>(self, mut input: S, output: mpsc::Sender<Frame>)
    where
        S: futures::Stream<Item = Result<Frame, E>> + Unpin,
    {
        let Some(Ok(Frame { body: Some(Body::Hello(hello)), .. })) = input.next().await else { return };
        let answer = match self.check_hello(&hello) {
            Ok(ours) => Body::Hello(ours),
            Err(failed) => {
                tracing::error!(peer = hello.node, reason = failed.message, "refusing a peer");
                let body = Some(Body::Failed(failed));
                drop(output.send(Frame { body, ..Frame::default() }).await);
                return;
            }
        };
        if output.send(Frame { body: Some(answer), ..Frame::default() }).await.is_err() {
            return;
        }
        self.greeted(&hello);
        let peer = NodeId::new(hello.node);
        let mut streams: HashMap<u64, Sender<(u64, Request)>> = HashMap::new();
        while let Some(Ok(frame)) = input.next().await {
            self.watch.liveness.heard(peer, self.watch.clock.now());
            match frame.body {
                Some(Body::Append(append)) => {
                    let (group, sequence, stream) = (GroupId::new(frame.group), frame.sequence, frame.stream);
                    let request = match append_from_wire(append) {
                        Ok(request) => request,
                        Err(error) => {
                            tracing::error!(peer = hello.node, %group, %error, "cutting off a peer");
                            return;
                        }
                    };
                    if streams.len() >= STREAMS_MAX {
                        tracing::error!(peer = hello.node, "cutting off a peer with too many append streams");
                        return;
                    }
                    let queue = streams.entry(stream).or_insert_with(|| self.open_stream(group, &output));
                    if let Err(Unsent::Full(_)) = queue.try_send((sequence, request)) {
                        tracing::error!(peer = hello.node, %group, "cutting off a peer that overran its append window");
                        return;
                    }
                    if queue.is_closed() {
                        let failed = Body::Failed(wire::Failed {
                            reason: "STREAM_ENDED".to_owned(),
                            message: "this append stream has ended".to_owned(),
                        });
                        drop(output.try_send(Frame { group: frame.group, sequence, stream, body: Some(failed) }));
                    }
                }
                Some(Body::Beat(_)) => {}
                Some(Body::CloseStream(_)) => drop(streams.remove(&frame.stream)),
                // It went on after it was removed: its next hello will tell it.
                Some(Body::Leaders(_)) if self.hooks.is_removed(NodeId::new(hello.node)) => return,
                Some(Body::Leaders(report)) => self.hooks.leaders(NodeId::new(hello.node), report),
                Some(Body::Cleaned(told)) => {
                    self.hooks.cleaned(NodeId::new(hello.node), GroupId::new(frame.group), told)
                }
                Some(body) => self.answer(frame.group, frame.sequence, body, output.clone()),
                None => return,
            }
        }
    }

    /// A peer has connected. One whose process is new leads nothing any more, and has heard of no leader yet: those here
    /// that sleep tell it.
    fn greeted(&self, hello: &wire::Hello) {
        let PeerWatch { liveness, news, clock } = &self.watch;
        let node = NodeId::new(hello.node);
        match liveness.greeted(node, Boot::new(hello.boot), clock.now()) {
            Greeting::Again => return,
            Greeting::First => {}
            Greeting::Restarted => news.restarted(node),
        }
        let registry = self.registry.clone();
        self.tasks.spawn("wake groups", async move {
            for (_, pulse) in registry.all() {
                pulse.wake_if_leading().await;
            }
        });
    }

    /// Starts the task that feeds one append stream to its group; returns the stream's queue.
    fn open_stream(&self, group: GroupId, output: &mpsc::Sender<Frame>) -> Sender<(u64, Request)> {
        // Twice the window: requests that are answered here may not have been counted as such by the sender yet.
        let (queue, requests) = channel::<(u64, Request)>(WINDOW_REQUESTS * 2);
        let output = output.clone();
        match self.registry.pulse(group) {
            Some(pulse) => self.tasks.spawn("append stream", append_stream(group, pulse, requests, output)),
            None => self.tasks.spawn("append stream", refuse_stream(group, requests, output)),
        }
        queue
    }

    /// Answers one request that stands alone.
    fn answer(&self, group: u64, sequence: u64, body: Body, output: mpsc::Sender<Frame>) {
        let pulse = self.registry.pulse(GroupId::new(group));
        let watch = self.watch.clone();
        self.tasks.spawn("peer request", async move {
            let body = match pulse {
                Some(pulse) => {
                    handle(GroupId::new(group), &pulse, &watch, body).await.unwrap_or_else(|message| failed(&message))
                }
                None => failed("no such group on this node"),
            };
            drop(output.send(Frame { group, sequence, stream: 0, body: Some(body) }).await);
        });
    }
}

fn failed(message: &str) -> Body {
    Body::Failed(wire::Failed { reason: "FAILED".to_owned(), message: message.to_owned() })
}

async fn refuse_stream(group: GroupId, mut requests: Receiver<(u64, Request)>, output: mpsc::Sender<Frame>) {
    if let Some((sequence, _)) = requests.recv().await {
        let body = Some(failed("no such group on this node"));
        drop(output.send(Frame { group: group.get(), sequence, stream: 0, body }).await);
    }
}

/// Pipes requests into the group and its answers, one a request and in order, to the peer.
async fn append_stream(
    group: GroupId,
    pulse: Arc<Pulse>,
    requests: Receiver<(u64, Request)>,
    output: mpsc::Sender<Frame>,
) {
    let sequences = Arc::new(Mutex::new(std::collections::VecDeque::new()));
    let asked = sequences.clone();
    let waker = pulse.clone();
    let input = requests.map(move |(sequence, request): (u64, Request)| {
        // A heartbeat alone wakes nobody: one that was under way when the group fell asleep comes too late.
        if !request.entries.is_empty() {
            waker.wake();
        }
        asked.lock().push_back(sequence);
        request
    });
    let mut answers = Box::pin(pulse.raft().stream_append(input));
    while let Some(answer) = answers.next().await {
        let Some(sequence) = sequences.lock().pop_front() else { return };
        let body = match answer {
            Ok(Ok(matched)) => {
                append_reply::Result::Matched(wire::LogIdOrNone { log_id: matched.as_ref().map(convert::id_to_wire) })
            }
            Ok(Err(StreamAppendError::Conflict(at))) => append_reply::Result::Conflict(convert::id_to_wire(&at)),
            Ok(Err(StreamAppendError::HigherVote(vote))) => {
                append_reply::Result::HigherVote(convert::vote_to_wire(&vote))
            }
            Err(fatal) => {
                let body = Some(failed(&fatal.to_string()));
                drop(output.send(Frame { group: group.get(), sequence, stream: 0, body }).await);
                return;
            }
        };
        let body = Some(Body::AppendReply(wire::AppendReply { result: Some(body) }));
        if output.send(Frame { group: group.get(), sequence, stream: 0, body }).await.is_err() {
            return;
        }
    }
}

fn append_from_wire(append: wire::Append) -> Result<Request, Malformed> {
    let entries = append.entries.into_iter().map(convert::entry_from_wire).collect::<Result<Vec<_>, _>>()?;
    let first = entries.first().map(|entry| entry.log_id.index());
    let expected = append.previous.map_or(0, |previous| previous.index + 1);
    let contiguous = entries.iter().zip(first.unwrap_or(0)..).all(|(entry, index)| entry.log_id.index() == index);
    if !contiguous || first.is_some_and(|first| first != expected) {
        return Err(Malformed("append: entries do not follow each other"));
    }
    Ok(Request {
        vote: convert::vote_from_wire(append.vote)?,
        prev_log_id: append.previous.map(convert::id_from_wire),
        leader_commit: append.committed.map(convert::id_from_wire),
        entries,
    })
}

async fn handle(group: GroupId, pulse: &Pulse, watch: &PeerWatch, body: Body) -> Result<Body, String> {
    let raft = pulse.raft();
    match body {
        Body::Vote(message) => vote(pulse, watch, message).await,
        Body::Hibernate(message) => {
            let vote = convert::vote_from_wire(message.vote).map_err(|error| error.to_string())?;
            let last = message.last.map(convert::id_from_wire).ok_or("a position is missing")?;
            let sleeps = pulse.sleep_beside(&vote, &last);
            if sleeps { Ok(Body::Done(wire::Done {})) } else { Err("not now".to_owned()) }
        }
        Body::Checkpoint(message) => {
            let vote = convert::vote_from_wire(message.vote).map_err(|error| error.to_string())?;
            let row = Checkpoint::from_wire(message, true).map_err(|error| error.to_string())?;
            let meta = SnapshotMeta { last_log_id: Some(row.at), last_membership: row.membership };
            let snapshot = openraft::Snapshot { meta, snapshot: row.state };
            let answer = raft.install_full_snapshot(vote, snapshot).await.map_err(|fatal| fatal.to_string())?;
            Ok(Body::CheckpointReply(wire::CheckpointReply { vote: Some(convert::vote_to_wire(&answer.vote)) }))
        }
        Body::TransferLeader(message) => {
            pulse.wake();
            let from = convert::vote_from_wire(message.from).map_err(|error| error.to_string())?;
            let last = message.last.map(convert::id_from_wire);
            let request = TransferLeaderRequest::new(from, message.to, last);
            match pulse.is_node(NodeId::new(message.to)) {
                // openraft's heir does not wait: it would let the chance pass.
                true => pulse.catch_up(last.as_ref()).await,
                false => watch.news.given_away(group, from),
            }
            let answer = raft.handle_transfer_leader(request).await.map_err(|fatal| fatal.to_string())?;
            answer.map(|()| Body::Done(wire::Done {})).map_err(|error| error.to_string())
        }
        _ => Err("unexpected frame".to_owned()),
    }
}

async fn vote(pulse: &Pulse, watch: &PeerWatch, message: wire::Vote) -> Result<Body, String> {
    let raft = pulse.raft();
    let vote = convert::vote_from_wire(message.vote).map_err(|error| error.to_string())?;
    // The lease of a group that slept is long over, though nobody has missed its leader. Should it be gone all the same,
    // the next request finds the group awake.
    let slept = pulse.wake_and_tell().await;
    if slept && message.pre_vote && pulse.leader().is_some_and(|leader| !watch.is_lost(pulse, leader)) {
        let vote = Some(convert::vote_to_wire(&pulse.vote()));
        return Ok(Body::VoteReply(wire::VoteReply { vote, granted: false, last: None }));
    }
    let request = VoteRequest::<TypeConfig> {
        vote,
        last_log_id: message.last.map(convert::id_from_wire),
        leadership_transfer: message.transfer,
    };
    let answer = if message.pre_vote { raft.pre_vote(request).await } else { raft.vote(request).await };
    let answer = answer.map_err(|error| error.to_string())?;
    Ok(Body::VoteReply(wire::VoteReply {
        vote: Some(convert::vote_to_wire(&answer.vote)),
        granted: answer.vote_granted,
        last: answer.last_log_id.as_ref().map(convert::id_to_wire),
    }))
}
