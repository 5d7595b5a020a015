//! The service of consumer groups: translates and hands on. A member's stream is one task that reads what the member says
//! and pushes what it should hold; while the member does not take what is pushed, nothing more of it is read, and its
//! session ends by and by.

use std::{pin::Pin, sync::Arc, time::Duration};

use busbar_proto::{
    Reason, Refusal,
    v1::{
        CommitRequest, CommitResponse, DeleteGroupRequest, DeleteGroupResponse, DescribeGroupRequest,
        DescribeGroupResponse, FindGroupRequest, FindGroupResponse, ListGroupsRequest, ListGroupsResponse,
        MemberRequest, MemberResponse, ResetGroupRequest, ResetGroupResponse,
        groups_server::Groups,
        member_request::Action,
        member_response::{Alive, Event},
    },
};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::service::{Broker, groups::member::Membership};

/// Events between a member and its connection.
const EVENTS_QUEUED: usize = 4;
/// How long a new stream may take to say who it is.
const JOIN_WAIT: Duration = Duration::from_secs(10);

type Events = mpsc::Sender<Result<MemberResponse, Status>>;

pub(super) struct GroupsService {
    broker: Arc<Broker>,
}

impl GroupsService {
    pub(super) fn new(broker: Arc<Broker>) -> Self {
        Self { broker }
    }
}

#[tonic::async_trait]
impl Groups for GroupsService {
    type MemberStream = Pin<Box<dyn Stream<Item = Result<MemberResponse, Status>> + Send>>;

    async fn find_group(&self, request: Request<FindGroupRequest>) -> Result<Response<FindGroupResponse>, Status> {
        Ok(Response::new(self.broker.find_group(&request.into_inner().group).await?))
    }

    async fn member(&self, request: Request<Streaming<MemberRequest>>) -> Result<Response<Self::MemberStream>, Status> {
        let (events, stream) = mpsc::channel(EVENTS_QUEUED);
        let (broker, requests) = (self.broker.clone(), request.into_inner());
        self.broker.tasks().spawn("member stream", async move {
            if let Err(refusal) = serve(&broker, requests, &events).await {
                send(&events, Event::Ended(refusal.to_wire())).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        Ok(Response::new(self.broker.commit_group(request.into_inner()).await?))
    }

    async fn list_groups(&self, request: Request<ListGroupsRequest>) -> Result<Response<ListGroupsResponse>, Status> {
        Ok(Response::new(self.broker.list_groups(request.into_inner().direct).await))
    }

    async fn describe_group(
        &self,
        request: Request<DescribeGroupRequest>,
    ) -> Result<Response<DescribeGroupResponse>, Status> {
        let DescribeGroupRequest { group, direct } = request.into_inner();
        Ok(Response::new(self.broker.describe_group(&group, direct).await?))
    }

    async fn reset_group(&self, request: Request<ResetGroupRequest>) -> Result<Response<ResetGroupResponse>, Status> {
        self.broker.reset_group(request.into_inner()).await?;
        Ok(Response::new(ResetGroupResponse {}))
    }

    async fn delete_group(
        &self,
        request: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        let DeleteGroupRequest { group, direct } = request.into_inner();
        self.broker.delete_group(&group, direct).await?;
        Ok(Response::new(DeleteGroupResponse {}))
    }
}

/// False when the member is gone.
async fn send(events: &Events, event: Event) -> bool {
    events.send(Ok(MemberResponse { event: Some(event) })).await.is_ok()
}

/// The next thing that a member says; `None` when its stream has ended.
async fn next(requests: &mut Streaming<MemberRequest>) -> Result<Option<Action>, Refusal> {
    let Ok(Some(request)) = requests.message().await else { return Ok(None) };
    let empty = || Refusal::new(Reason::InvalidArgument, "a member's request without an action");
    request.action.ok_or_else(empty).map(Some)
}

async fn serve(broker: &Broker, mut requests: Streaming<MemberRequest>, events: &Events) -> Result<(), Refusal> {
    let late = || Refusal::new(Reason::DeadlineExceeded, "a member's stream opens with Join");
    let join = match tokio::time::timeout(JOIN_WAIT, next(&mut requests)).await.map_err(|_| late())?? {
        Some(Action::Join(join)) => join,
        Some(_) => return Err(Refusal::new(Reason::InvalidArgument, "a member's stream opens with Join")),
        None => return Ok(()),
    };
    let mut membership = broker.join_group(join).await?;
    let mut leadership = membership.leadership();
    if !send(events, Event::Joined(membership.joined(broker.clock().unix_ms()))).await {
        return Ok(());
    }
    loop {
        if let Some(assignment) = membership.assignment()?
            && !send(events, Event::Assignment(assignment)).await
        {
            return Ok(());
        }
        tokio::select! {
            action = next(&mut requests) => match action? {
                Some(action) => if !handle(broker, &membership, action, events).await? { return Ok(()) },
                None => return Ok(()), // no farewell: it may come back
            },
            () = membership.changed() => {}
            alive = leadership.changed() => if !alive {
                return Err(Refusal::new(Reason::ShuttingDown, "the shard left this node: find it again"));
            },
            () = events.closed() => return Ok(()),
        }
    }
}

/// False when the stream is over.
async fn handle(broker: &Broker, membership: &Membership, action: Action, events: &Events) -> Result<bool, Refusal> {
    match action {
        Action::Heartbeat(_) => {
            membership.heard()?;
            Ok(send(events, Event::Alive(Alive { time_ms: broker.clock().unix_ms() })).await)
        }
        Action::Released(released) => membership.release(&released.claims).await.map(|()| true),
        Action::Leave(_) => membership.leave(broker.clock().unix_ms()).await.map(|()| false),
        Action::Join(_) => Err(Refusal::new(Reason::InvalidArgument, "a member's stream joins once")),
    }
}
