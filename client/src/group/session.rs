//! A member's stream to its coordinator: found, opened, opened anew when it breaks, until the member leaves, is fenced
//! or refused. It runs on the news connection, whose pings tell a frozen node within a second.
//!
//! Invariants: one stream at a time; each begins with Join, under the member id of the one before; a member that the
//! coordinator does not know any more drops everything before it joins anew.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use busbar_proto::{
    NodeId, Reason, Refusal,
    v1::{
        self,
        member_request::{Action, Heartbeat, Join, Leave, Released},
        member_response::{Event, Joined},
    },
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    error::GroupError,
    member::Member,
    roster::{Assigned, Claim},
};
use crate::{
    address::Address,
    cluster::{Call, Repeat},
    error::{ClientError, TransportError},
    pool,
    retry::{Backoff, BackoffPolicy},
};

/// Requests that wait for the stream: a join, releases, heartbeats.
const REQUESTS: usize = 64;
/// Time for the answer to a join, which the shard must replicate first.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
const FIND_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the coordinator to take note of a farewell.
pub(super) const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
/// Heartbeats without an answer until the stream is given up.
const HEARTBEATS_UNANSWERED: u32 = 3;
/// Refusals in a row that only patience may heal.
const STRIKES_MAX: u32 = 20;

/// Why a stream is over.
enum Ended {
    /// It broke, or the coordinator is not ready.
    Lost { why: String, wait: Option<Duration>, strike: bool },
    /// Another node coordinates the group.
    Moved(Option<NodeId>),
    /// The coordinator knows the member no more.
    Unknown,
    /// There is no way to go on.
    Over(GroupError),
    /// The member has left.
    Left,
}

/// An open stream.
struct Stream {
    /// `None` once there is nothing more to say.
    requests: Option<mpsc::Sender<v1::MemberRequest>>,
    events: Streaming<v1::MemberResponse>,
    beat_every: Duration,
    heard_at: Instant,
    /// When the join or the oldest unanswered heartbeat was sent.
    asked_at: Option<Instant>,
    joined: bool,
}

impl Member {
    /// Keeps the member in its group until it ends.
    pub(super) async fn attend(self: Arc<Self>) {
        let mut backoff = Backoff::new(BackoffPolicy { base: Duration::from_millis(20), cap: Duration::from_secs(1) });
        let (mut hint, mut strikes) = (None, 0);
        loop {
            let (ended, joined) = match self.find(hint.take()).await {
                Ok(address) => self.stream(&address).await,
                Err(ClientError::Refused(refusal)) => (self.word(refusal), false),
                Err(error) => (Ended::of_error(error), false),
            };
            self.unseat();
            if joined {
                backoff.succeeded();
                strikes = 0;
            }
            let wait = match ended {
                Ended::Left => {
                    self.has_left.store(true, Ordering::Release);
                    self.changed.notify_waiters();
                    return;
                }
                Ended::Over(error) => return self.fail(error),
                Ended::Unknown => {
                    tracing::debug!(group = self.options.group, "the member is not known any more: joining anew");
                    self.forget_seat();
                    None
                }
                Ended::Moved(leader) => {
                    hint = leader.filter(|_| backoff.failures() < 3);
                    None
                }
                Ended::Lost { why, wait, strike } => {
                    tracing::debug!(group = self.options.group, why, "member stream ended");
                    self.last_word.lock().clone_from(&why);
                    strikes += u32::from(strike);
                    if strikes > STRIKES_MAX {
                        let refusal = Refusal::new(Reason::UnknownTopic, why);
                        return self.fail(GroupError::Refused { group: self.options.group.clone(), refusal });
                    }
                    wait
                }
            };
            let pause = backoff.failed(self.cluster.env.random(), wait);
            if hint.is_none() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Where the coordinator is.
    async fn find(&self, hint: Option<NodeId>) -> Result<Address, ClientError> {
        if let Some(address) = hint.and_then(|node| self.cluster.address_of(node)) {
            return Ok(address);
        }
        let call = Call { what: "find the group's coordinator", repeat: Repeat::Safe, timeout: FIND_TIMEOUT };
        let request = || v1::FindGroupRequest { group: self.options.group.clone() };
        let ask = |channel| {
            let request = request();
            async move { pool::groups(channel).find_group(request).await }
        };
        let found = self.cluster.call(call, ask).await?;
        let unknown = || Refusal::new(Reason::NoLeader, "the group's shard has no leader now");
        let leader = Some(NodeId::new(found.leader)).filter(|leader| leader.get() > 0).ok_or_else(unknown)?;
        match self.cluster.address_of(leader) {
            Some(address) => Ok(address),
            None => {
                let call = Call { what: "read metadata", repeat: Repeat::Safe, timeout: FIND_TIMEOUT };
                let topics = self.options.topics.clone();
                let ask = |channel| {
                    let request = v1::MetadataRequest { topics: topics.clone() };
                    async move { pool::broker(channel).metadata(request).await }
                };
                self.cluster.learn(&self.cluster.call(call, ask).await?.nodes);
                let text = format!("the address of node {leader}, which coordinates the group, is not known");
                self.cluster.address_of(leader).ok_or_else(|| Refusal::new(Reason::NoLeader, text).into())
            }
        }
    }

    /// One stream, until it ends; and whether the member was let in.
    async fn stream(self: &Arc<Self>, address: &Address) -> (Ended, bool) {
        let opened = tokio::time::timeout(JOIN_TIMEOUT, self.open_stream(address)).await;
        let mut stream = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(ended)) => return (ended, false),
            Err(_) => return (Ended::lost(format!("{address} did not answer within {JOIN_TIMEOUT:?}")), false),
        };
        let ended = self.serve(&mut stream, address).await;
        (ended, stream.joined)
    }

    async fn open_stream(&self, address: &Address) -> Result<Stream, Ended> {
        let channel = self.cluster.pool.news_channel(address).map_err(Ended::of_error)?;
        let asked_at = Some(self.cluster.env.now());
        let (requests, queue) = mpsc::channel(REQUESTS);
        let stuck = |_| Ended::lost("the request queue of a new stream is full".to_owned());
        requests.try_send(request(Action::Join(self.join()))).map_err(stuck)?;
        let answer = pool::groups(channel).member(ReceiverStream::new(queue)).await;
        let events = answer.map_err(|status| self.refused(&status))?.into_inner();
        let heard_at = self.cluster.env.now();
        Ok(Stream { requests: Some(requests), events, beat_every: JOIN_TIMEOUT, heard_at, asked_at, joined: false })
    }

    fn join(&self) -> Join {
        let options = &self.options;
        Join {
            group: options.group.clone(),
            topics: options.topics.clone(),
            member_name: options.member_name.clone(),
            session_timeout_ms: options.session_timeout.map_or(0, |timeout| timeout.as_millis() as u64),
            member_id: self.seat.lock().member_id,
            instance: self.instance.clone(),
        }
    }

    async fn serve(self: &Arc<Self>, stream: &mut Stream, address: &Address) -> Ended {
        let mut beat_at = stream.heard_at + stream.beat_every;
        loop {
            let patience = match stream.joined {
                true => stream.beat_every * HEARTBEATS_UNANSWERED,
                false => JOIN_TIMEOUT,
            };
            tokio::select! {
                event = stream.events.message() => {
                    let event = match event {
                        Ok(Some(event)) => event.event,
                        Ok(None) => return Ended::lost("the coordinator closed the stream".to_owned()),
                        Err(status) => return self.refused(&status),
                    };
                    let was_joined = stream.joined;
                    if let Some(ended) = event.and_then(|event| self.heard(stream, address, event)) {
                        return ended;
                    }
                    if stream.joined && !was_joined {
                        beat_at = stream.heard_at + stream.beat_every;
                        self.tell.notify_one();
                    }
                }
                () = tokio::time::sleep_until(beat_at) => {
                    let now = self.cluster.env.now();
                    if now.saturating_duration_since(stream.heard_at) >= patience {
                        return Ended::lost(format!("{address} has not answered for {patience:?}"));
                    }
                    if stream.joined && stream.put(Action::Heartbeat(Heartbeat {})) {
                        stream.asked_at.get_or_insert(now);
                    }
                    beat_at = now + stream.beat_every;
                }
                () = self.tell.notified(), if stream.joined => {
                    if self.expelled.load(Ordering::Acquire) == self.seat.lock().member_id {
                        return Ended::Unknown;
                    }
                    if self.closing.load(Ordering::Acquire) && self.is_empty_handed() {
                        return self.leave(stream).await;
                    }
                    self.tell_released(stream);
                }
            }
        }
    }

    /// The coordinator says something.
    fn heard(self: &Arc<Self>, stream: &mut Stream, address: &Address, event: Event) -> Option<Ended> {
        stream.heard_at = self.cluster.env.now();
        match event {
            Event::Joined(joined) => {
                self.told(stream, joined.time_ms);
                self.seated(stream, address, &joined);
            }
            Event::Alive(alive) => self.told(stream, alive.time_ms),
            Event::Assignment(assignment) => {
                let to_release = assignment.to_release.iter().filter_map(Claim::from_wire).collect();
                self.assigned(Assigned::from_wire(assignment));
                self.disown(to_release);
            }
            Event::Ended(error) => return Some(self.word(Refusal::from_wire(error))),
        }
        let mut seat = self.seat.lock();
        if stream.joined && !seat.session_timeout.is_zero() {
            let lapsed = seat.lapses_at.is_some_and(|at| at <= stream.heard_at);
            seat.lapses_at = Some(stream.heard_at + seat.session_timeout);
            if lapsed {
                self.inbox.wake();
            }
        }
        None
    }

    /// The coordinator tells what time it is there; one of an older version does not.
    fn told(&self, stream: &mut Stream, time_ms: i64) {
        let round_trip = stream.asked_at.take().map(|at| stream.heard_at.saturating_duration_since(at));
        if time_ms > 0 {
            self.cluster.told_time(time_ms, round_trip.unwrap_or_default());
            self.inbox.wake();
        }
    }

    fn seated(&self, stream: &mut Stream, address: &Address, joined: &Joined) {
        let session_timeout = Duration::from_millis(joined.session_timeout_ms);
        let beat_every = match joined.heartbeat_interval_ms {
            0 => session_timeout / 3,
            ms => Duration::from_millis(ms),
        };
        stream.joined = true;
        stream.beat_every = beat_every.max(HEARTBEAT_MIN);
        let former = {
            let mut seat = self.seat.lock();
            seat.coordinator = Some(address.clone());
            seat.session_timeout = session_timeout;
            seat.told = 0;
            std::mem::replace(&mut seat.member_id, joined.member_id)
        };
        if former != joined.member_id {
            // Another member as far as the coordinator is concerned: nothing of the former one counts.
            self.seat.lock().released.clear();
            self.lose_all();
        }
        self.counters.joins.add(1);
        self.inbox.wake();
        self.changed.notify_waiters();
        self.upkeep.notify_one();
    }

    /// Tells what was let go of, as far as it was not told on this stream.
    fn tell_released(&self, stream: &Stream) {
        let (claims, told): (Vec<_>, _) = {
            let seat = self.seat.lock();
            (seat.released.iter().skip(seat.told).copied().map(Claim::to_wire).collect(), seat.released.len())
        };
        if claims.is_empty() {
            return;
        }
        match stream.put(Action::Released(Released { claims })) {
            true => self.seat.lock().told = told,
            // The queue is full: the stream is stuck, and found so by its heartbeats; the next one is told.
            false => tracing::debug!(group = self.options.group, "the member stream is stuck"),
        }
    }

    /// Says farewell, and waits until the coordinator has taken note: it ends the stream.
    async fn leave(&self, stream: &mut Stream) -> Ended {
        if stream.put(Action::Leave(Leave {})) {
            stream.requests = None;
            let end = async { while let Ok(Some(_)) = stream.events.message().await {} };
            let _ = tokio::time::timeout(LEAVE_TIMEOUT, end).await;
        }
        Ended::Left
    }

    fn unseat(&self) {
        self.seat.lock().coordinator = None;
        self.changed.notify_waiters();
    }

    /// The member is not known any more: what it held is other members' by now.
    pub(super) fn forget_seat(&self) {
        {
            let mut seat = self.seat.lock();
            seat.member_id = 0;
            seat.lapses_at = None;
            seat.released.clear();
        }
        self.lose_all();
    }

    fn refused(&self, status: &Status) -> Ended {
        match Refusal::from_status(status) {
            Some(refusal) => self.word(refusal),
            None => Ended::lost(TransportError::of(status).to_string()),
        }
    }

    /// What a refusal means for the member.
    fn word(&self, refusal: Refusal) -> Ended {
        let group = self.options.group.clone();
        match refusal.reason {
            Reason::NotLeader => Ended::Moved(refusal.leader),
            Reason::UnknownMember => Ended::Unknown,
            Reason::FencedMember => {
                Ended::Over(GroupError::Fenced { group, member_name: self.options.member_name.clone() })
            }
            // A node may not have heard yet of a topic that is new.
            Reason::UnknownTopic => Ended::Lost { why: refusal.message, wait: refusal.retry_after, strike: true },
            reason if reason.is_retryable() => {
                Ended::Lost { why: refusal.message, wait: refusal.retry_after, strike: false }
            }
            _ => Ended::Over(GroupError::Refused { group, refusal }),
        }
    }
}

impl Stream {
    fn put(&self, action: Action) -> bool {
        self.requests.as_ref().is_some_and(|requests| requests.try_send(request(action)).is_ok())
    }
}

fn request(action: Action) -> v1::MemberRequest {
    v1::MemberRequest { action: Some(action) }
}

impl Ended {
    fn lost(why: String) -> Self {
        Self::Lost { why, wait: None, strike: false }
    }

    /// Of a call that failed before there was a stream. Whoever can't be reached now may be later.
    fn of_error(error: ClientError) -> Self {
        Self::lost(error.to_string())
    }
}
