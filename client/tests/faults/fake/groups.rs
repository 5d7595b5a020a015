//! Consumer groups of the fake cluster: one coordinator for all of them, with the broker's rules for claims. Members
//! expire only when a test says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use busbar_client::{Reason, Refusal};
use busbar_proto::{
    NodeId,
    v1::{
        self, Claim, Committed,
        groups_server::Groups,
        member_request::{Action, Join},
        member_response::{Alive, Assigned, Assignment, Event, Joined},
    },
};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Shared, State,
    service::{Answers, Service},
};

type Place = (String, u32);

pub(crate) struct Coordinator {
    pub(crate) node: u64,
    pub(crate) groups: BTreeMap<String, Group>,
    next_member: u64,
    /// Every commit is refused with this while set.
    pub(crate) sick: Option<Reason>,
    /// Commits of these partitions are refused with LIMIT_REACHED, and how often that was.
    pub(crate) full: BTreeSet<u32>,
    pub(crate) refusals: usize,
    /// Joins are refused with this while set.
    pub(crate) closed: Option<Reason>,
    pub(crate) commits: usize,
    pub(crate) session_timeout_ms: u64,
}

impl Default for Coordinator {
    fn default() -> Self {
        let groups = BTreeMap::new();
        Self {
            node: 1,
            groups,
            next_member: 0,
            sick: None,
            full: BTreeSet::new(),
            refusals: 0,
            closed: None,
            commits: 0,
            session_timeout_ms: 10_000,
        }
    }
}

#[derive(Default)]
pub(crate) struct Group {
    generation: u64,
    claims: u64,
    pub(crate) members: BTreeMap<u64, Member>,
    /// Who holds what, under which claim.
    pub(crate) held: BTreeMap<Place, (u64, u64)>,
    targets: BTreeMap<Place, u64>,
    pub(crate) committed: BTreeMap<Place, Committed>,
}

pub(crate) struct Member {
    name: String,
    instance: Bytes,
    topics: Vec<String>,
    fenced: BTreeSet<Bytes>,
}

impl Group {
    /// Balanced within one; who has something keeps it as far as that allows.
    fn rebalance(&mut self, places: &BTreeSet<Place>) {
        self.generation += 1;
        self.held.retain(|place, (member, _)| places.contains(place) && self.members.contains_key(member));
        let quota = places.len().div_ceil(self.members.len().max(1));
        let mut load: BTreeMap<u64, usize> = self.members.keys().map(|&member| (member, 0)).collect();
        let mut targets = BTreeMap::new();
        for (place, (member, _)) in &self.held {
            let count = load.get_mut(member).expect("a member");
            if *count < quota {
                *count += 1;
                targets.insert(place.clone(), *member);
            }
        }
        for place in places {
            if !targets.contains_key(place) {
                let Some((&member, _)) = load.iter().min_by_key(|(_, count)| **count) else { break };
                *load.get_mut(&member).expect("a member") += 1;
                targets.insert(place.clone(), member);
            }
        }
        self.targets = targets;
        for (place, &member) in &self.targets {
            if !self.held.contains_key(place) {
                self.claims += 1;
                self.held.insert(place.clone(), (member, self.claims));
            }
        }
    }

    fn assignment(&self, member: u64, topic_id: impl Fn(&str) -> Bytes) -> Assignment {
        let of_member = self
            .held
            .iter()
            .filter(|(place, (holder, _))| *holder == member && self.targets.get(*place) == Some(&member));
        let assigned = |(place, (_, claim)): (&Place, &(u64, u64))| Assigned {
            claim: Some(Claim { topic_id: topic_id(&place.0), partition: place.1, claim: *claim }),
            topic: place.0.clone(),
            committed: self.committed.get(place).cloned(),
        };
        let owed = self.held.iter().filter(|(place, (holder, _))| {
            *holder == member && self.targets.get(*place).is_some_and(|target| *target != member)
        });
        let claim = |(place, (_, claim)): (&Place, &(u64, u64))| Claim {
            topic_id: topic_id(&place.0),
            partition: place.1,
            claim: *claim,
        };
        let to_release = owed.map(claim).collect();
        Assignment { generation: self.generation, partitions: of_member.map(assigned).collect(), to_release }
    }

    /// Gives a place to its holder anew, and means it for another before the holder can hear of it; the new claim.
    pub(crate) fn give_and_take_back(&mut self, place: &Place) -> u64 {
        self.generation += 1;
        self.claims += 1;
        let (holder, claim) = self.held.get_mut(place).expect("held");
        *claim = self.claims;
        let other = self.members.keys().copied().find(|member| member != holder).expect("another member");
        self.targets.insert(place.clone(), other);
        self.claims
    }
}

impl State {
    fn places(&self, group: &str) -> BTreeSet<Place> {
        let members = self.coordinator.groups[group].members.values();
        let topics: BTreeSet<_> = members.flat_map(|member| member.topics.clone()).collect();
        let partitions = |topic: String| {
            let count = self.topics.get(&topic).map_or(0, |topic| topic.partitions.len() as u32);
            (0..count).map(move |partition| (topic.clone(), partition))
        };
        topics.into_iter().flat_map(partitions).collect()
    }

    pub(crate) fn rebalance(&mut self, group: &str) {
        let places = self.places(group);
        self.group(group).rebalance(&places);
    }

    pub(crate) fn group(&mut self, group: &str) -> &mut Group {
        self.coordinator.groups.entry(group.to_owned()).or_default()
    }

    /// The members of a group that are gone by now.
    pub(crate) fn expel(&mut self, group: &str, members: &[u64]) {
        self.group(group).members.retain(|id, _| !members.contains(id));
        self.rebalance(group);
    }

    /// The place of a claim that holds.
    fn place_of(&self, group: &str, member: u64, claim: &Claim) -> Option<Place> {
        let (name, _) = self.topics.iter().find(|(_, topic)| topic.id[..] == claim.topic_id[..])?;
        let place = (name.clone(), claim.partition);
        let held = self.coordinator.groups.get(group)?.held.get(&place)?;
        (*held == (member, claim.claim)).then_some(place)
    }

    fn join(&mut self, join: &Join) -> Result<u64, Refusal> {
        if let Some(reason) = self.coordinator.closed {
            return Err(Refusal::new(reason, "scripted"));
        }
        let named = !join.member_name.is_empty();
        let group = self.group(&join.group);
        let known = group
            .members
            .iter_mut()
            .find(|(id, member)| **id == join.member_id || (named && member.name == join.member_name));
        if let Some((&id, member)) = known {
            if member.fenced.contains(&join.instance) {
                return Err(Refusal::new(Reason::FencedMember, "another instance took over"));
            }
            if member.instance != join.instance {
                let former = std::mem::replace(&mut member.instance, join.instance.clone());
                member.fenced.insert(former);
                group.held.retain(|_, (holder, _)| *holder != id);
                self.rebalance(&join.group);
            }
            return Ok(id);
        }
        if join.member_id > 0 {
            return Err(Refusal::new(Reason::UnknownMember, "join again"));
        }
        self.coordinator.next_member += 1;
        let id = self.coordinator.next_member;
        let (name, instance) = (join.member_name.clone(), join.instance.clone());
        let member = Member { name, instance, topics: join.topics.clone(), fenced: BTreeSet::new() };
        self.group(&join.group).members.insert(id, member);
        self.rebalance(&join.group);
        Ok(id)
    }

    fn commit(&mut self, group: &str, member: u64, entry: v1::commit_request::Entry) -> Option<Refusal> {
        let (claim, committed) = (entry.claim?, entry.committed?);
        let Some(place) = self.place_of(group, member, &claim) else {
            return Some(Refusal::new(Reason::StaleClaim, "in other hands"));
        };
        if self.coordinator.full.contains(&place.1) {
            self.coordinator.refusals += 1;
            return Some(Refusal::new(Reason::LimitReached, "the shard is full"));
        }
        let former = self.group(group).committed.insert(place, committed.clone());
        let back = former.is_some_and(|former| former.offset > committed.offset);
        assert!(!back, "a commit goes back");
        assert!(committed.state.len() <= 64 << 10);
        None
    }
}

/// What a member's stream has to say next.
enum News {
    Assignment(Assignment),
    Over(Refusal),
}

/// One member's stream, from its join on.
struct Seat {
    node: u64,
    group: String,
    member: u64,
    instance: Bytes,
    told: Option<Assignment>,
}

impl Seat {
    fn news(&self, state: &mut State) -> Option<News> {
        if state.coordinator.node != self.node {
            let leader = Some(NodeId::new(state.coordinator.node)).filter(|leader| leader.get() > 0);
            return Some(News::Over(Refusal::new(Reason::NotLeader, "not here").led_by(leader)));
        }
        let topics: BTreeMap<_, _> = state.topics.iter().map(|(name, topic)| (name.clone(), topic.id)).collect();
        let group = state.group(&self.group);
        match group.members.get(&self.member) {
            None => return Some(News::Over(Refusal::new(Reason::UnknownMember, "expired"))),
            Some(member) if member.instance != self.instance => {
                return Some(News::Over(Refusal::new(Reason::FencedMember, "another instance took over")));
            }
            Some(_) => {}
        }
        let now = group.assignment(self.member, |name| Bytes::copy_from_slice(&topics[name]));
        (self.told.as_ref() != Some(&now)).then_some(News::Assignment(now))
    }
}

type Events = mpsc::Sender<Result<v1::MemberResponse, Status>>;

async fn send(events: &Events, event: Event) {
    events.send(Ok(v1::MemberResponse { event: Some(event) })).await.ok();
}

async fn serve(node: u64, shared: Arc<Shared>, mut requests: Streaming<v1::MemberRequest>, events: Events) {
    let Ok(Some(v1::MemberRequest { action: Some(Action::Join(join)) })) = requests.message().await else { return };
    let joined = {
        let mut state = shared.state.lock();
        match state.coordinator.node == node {
            true => state.join(&join),
            false => {
                let leader = Some(NodeId::new(state.coordinator.node)).filter(|leader| leader.get() > 0);
                Err(Refusal::new(Reason::NotLeader, "not here").led_by(leader))
            }
        }
    };
    shared.changed();
    let member = match joined {
        Ok(member) => member,
        Err(refusal) => return send(&events, Event::Ended(refusal.to_wire())).await,
    };
    let (session_timeout_ms, time_ms) = {
        let state = shared.state.lock();
        (state.coordinator.session_timeout_ms, state.time_ms())
    };
    let joined = Joined { member_id: member, session_timeout_ms, heartbeat_interval_ms: 100, time_ms };
    send(&events, Event::Joined(joined)).await;
    let mut seat = Seat { node, group: join.group, member, instance: join.instance, told: None };
    loop {
        tokio::select! {
            news = shared.until(|state| seat.news(state)) => match news {
                News::Over(refusal) => return send(&events, Event::Ended(refusal.to_wire())).await,
                News::Assignment(assignment) => {
                    seat.told = Some(assignment.clone());
                    send(&events, Event::Assignment(assignment)).await;
                }
            },
            request = requests.message() => {
                let Ok(Some(v1::MemberRequest { action: Some(action) })) = request else { return };
                match action {
                    Action::Join(_) => panic!("a second join"),
                    Action::Heartbeat(_) => {
                        let time_ms = shared.state.lock().time_ms();
                        send(&events, Event::Alive(Alive { time_ms })).await;
                    }
                    Action::Released(released) => {
                        let mut state = shared.state.lock();
                        for claim in released.claims {
                            if let Some(place) = state.place_of(&seat.group, member, &claim) {
                                state.group(&seat.group).held.remove(&place);
                            }
                        }
                        state.rebalance(&seat.group);
                    }
                    Action::Leave(_) => {
                        shared.state.lock().expel(&seat.group, &[member]);
                        shared.changed();
                        return;
                    }
                }
                shared.changed();
            }
        }
    }
}

#[tonic::async_trait]
impl Groups for Service {
    type MemberStream = Answers<v1::MemberResponse>;

    async fn find_group(&self, _: Request<v1::FindGroupRequest>) -> Result<Response<v1::FindGroupResponse>, Status> {
        let leader = self.shared.state.lock().coordinator.node;
        Ok(Response::new(v1::FindGroupResponse { shard: 0, leader, epoch: 1 }))
    }

    async fn member(
        &self,
        request: Request<Streaming<v1::MemberRequest>>,
    ) -> Result<Response<Self::MemberStream>, Status> {
        let (events, stream) = mpsc::channel(64);
        tokio::spawn(serve(self.node, self.shared.clone(), request.into_inner(), events));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let v1::CommitRequest { group, member_id, entries } = request.into_inner();
        let mut state = self.shared.state.lock();
        if state.coordinator.node != self.node {
            return Err(Refusal::new(Reason::NotLeader, "not here").into());
        }
        if let Some(reason) = state.coordinator.sick {
            return Err(Refusal::new(reason, "scripted").into());
        }
        if !state.group(&group).members.contains_key(&member_id) {
            return Err(Refusal::new(Reason::UnknownMember, "join again").into());
        }
        state.coordinator.commits += 1;
        let result = |entry| {
            let refusal = state.commit(&group, member_id, entry);
            v1::commit_response::Result { error: refusal.map(|refusal| refusal.to_wire()) }
        };
        let results = entries.into_iter().map(result).collect();
        drop(state);
        self.shared.changed();
        Ok(Response::new(v1::CommitResponse { results }))
    }

    async fn list_groups(&self, _: Request<v1::ListGroupsRequest>) -> Result<Response<v1::ListGroupsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn describe_group(
        &self,
        _: Request<v1::DescribeGroupRequest>,
    ) -> Result<Response<v1::DescribeGroupResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn reset_group(&self, _: Request<v1::ResetGroupRequest>) -> Result<Response<v1::ResetGroupResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn delete_group(
        &self,
        _: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}
