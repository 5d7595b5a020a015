//! Members of consumer groups spoken by hand: what a member says and what it is told, with nothing done by itself, so that
//! a test can be silent, late or rude.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, bail, ensure};
use busbar_proto::v1::{
    self, Claim,
    groups_client::GroupsClient,
    member_request::{Action, Heartbeat, Join, Leave, Released},
    member_response::{Assignment, Event, Joined},
};
use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{
    process::ProcessCluster,
    wait::{eventually, within},
};

/// Until a shard has a leader, and until a member is told something.
const LIMIT: Duration = Duration::from_secs(30);

/// The service of consumer groups at one node.
///
/// # Errors
/// It does not answer.
pub async fn connect(address: &str) -> anyhow::Result<GroupsClient<Channel>> {
    let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
    Ok(GroupsClient::new(channel).max_decoding_message_size(busbar_proto::limits::MESSAGE_BYTES_MAX))
}

/// The shard of a group and its leader, asked of the nodes that run.
///
/// # Errors
/// None is known in time.
pub async fn find(cluster: &ProcessCluster, group: &str) -> anyhow::Result<v1::FindGroupResponse> {
    eventually(LIMIT, &format!("group {group} has a coordinator"), || async {
        let mut last = anyhow::anyhow!("no node runs");
        for id in cluster.ids().into_iter().filter(|id| cluster.node(*id).is_ok_and(|node| node.is_running())) {
            let asked = async {
                let request = v1::FindGroupRequest { group: group.to_owned() };
                Ok(connect(&cluster.node(id)?.address).await?.find_group(request).await?.into_inner())
            };
            match asked.await {
                Ok(found) if found.leader != 0 && cluster.node(found.leader)?.is_running() => return Ok(found),
                Ok(found) => last = anyhow::anyhow!("node {id} knows of leader {}", found.leader),
                Err(error) => last = error,
            }
        }
        Err(last)
    })
    .await
}

/// A join of an instance without a name; change what the test is about.
pub fn join(group: &str, topics: &[&str], instance: &str) -> Join {
    Join {
        group: group.to_owned(),
        topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
        session_timeout_ms: 5_000,
        instance: Bytes::copy_from_slice(instance.as_bytes()),
        ..Join::default()
    }
}

/// A member on its stream, which says that it lives by itself until it is dropped or [`Member::silence`]d.
#[derive(Debug)]
pub struct Member {
    /// What it was told when it joined.
    pub joined: Joined,
    /// What it was last told to hold.
    pub assignment: Assignment,
    join: Join,
    address: String,
    requests: mpsc::Sender<v1::MemberRequest>,
    events: Streaming<v1::MemberResponse>,
    heartbeats: JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.heartbeats.abort();
    }
}

impl Member {
    /// Joins at the group's coordinator, asking again while that changes.
    ///
    /// # Errors
    /// It is refused for good, or not taken in in time.
    pub async fn join(cluster: &ProcessCluster, join: Join) -> anyhow::Result<Self> {
        eventually(LIMIT, "a member joins", || async {
            let leader = find(cluster, &join.group).await?.leader;
            Self::join_at(&cluster.node(leader)?.address, join.clone()).await
        })
        .await
    }

    /// Joins at one node, once.
    ///
    /// # Errors
    /// It is refused: the text begins with the reason.
    pub async fn join_at(address: &str, join: Join) -> anyhow::Result<Self> {
        let (requests, sent) = mpsc::channel(16);
        requests.send(v1::MemberRequest { action: Some(Action::Join(join.clone())) }).await?;
        let mut events = connect(address).await?.member(ReceiverStream::new(sent)).await?.into_inner();
        let joined = match next(&mut events).await? {
            Event::Joined(joined) => joined,
            Event::Ended(error) => bail!("{}: {}", error.reason, error.message),
            other => bail!("a join was answered by {other:?}"),
        };
        let (beats, every) = (requests.clone(), Duration::from_millis(joined.heartbeat_interval_ms));
        let heartbeats = tokio::spawn(async move {
            let beat = || v1::MemberRequest { action: Some(Action::Heartbeat(Heartbeat {})) };
            while beats.send(beat()).await.is_ok() {
                tokio::time::sleep(every).await;
            }
        });
        let (address, assignment) = (address.to_owned(), Assignment::default());
        Ok(Self { joined, assignment, join, address, requests, events, heartbeats })
    }

    /// From now on it says nothing by itself.
    pub fn silence(&self) {
        self.heartbeats.abort();
    }

    /// The join to come back with, as the same instance.
    pub fn rejoin(&self) -> Join {
        Join { member_id: self.joined.member_id, ..self.join.clone() }
    }

    /// The next assignment; what is taken away is released at once, as a member would that has nothing in hand.
    ///
    /// # Errors
    /// The membership ends (the text begins with the reason), or nothing is told.
    pub async fn reassigned(&mut self) -> anyhow::Result<()> {
        let assignment = self.told().await?;
        let kept: Vec<&Claim> = assignment.partitions.iter().filter_map(|given| given.claim.as_ref()).collect();
        let given_up: Vec<Claim> = self.claims().into_iter().filter(|held| !kept.contains(&held)).collect();
        self.assignment = assignment;
        if !given_up.is_empty() {
            self.say(Action::Released(Released { claims: given_up })).await?;
        }
        Ok(())
    }

    /// The next assignment, with nothing done about it.
    ///
    /// # Errors
    /// As [`Self::reassigned`].
    pub async fn told(&mut self) -> anyhow::Result<Assignment> {
        loop {
            match next(&mut self.events).await? {
                Event::Assignment(assignment) => return Ok(assignment),
                Event::Alive(_) => {}
                Event::Ended(error) => bail!("{}: {}", error.reason, error.message),
                Event::Joined(_) => bail!("it has joined already"),
            }
        }
    }

    /// Follows assignments until it holds `count` partitions.
    ///
    /// # Errors
    /// Not in time, or the membership ends.
    pub async fn holds(&mut self, count: usize) -> anyhow::Result<()> {
        let what = format!("member {} holds {count} partitions", self.joined.member_id);
        within(LIMIT, &what, async {
            while self.assignment.partitions.len() != count {
                self.reassigned().await?;
            }
            Ok(())
        })
        .await
    }

    /// Follows assignments until the membership ends; the reason.
    ///
    /// # Errors
    /// The stream breaks without one.
    pub async fn ended(&mut self) -> anyhow::Result<String> {
        within(LIMIT, "the membership ends", async {
            loop {
                match next(&mut self.events).await? {
                    Event::Ended(error) => return Ok(error.reason),
                    _ => continue,
                }
            }
        })
        .await
    }

    /// What it holds.
    pub fn claims(&self) -> Vec<Claim> {
        self.assignment.partitions.iter().filter_map(|given| given.claim.clone()).collect()
    }

    /// What it holds: partition numbers with their claims.
    pub fn held(&self) -> BTreeMap<u32, u64> {
        self.claims().into_iter().map(|claim| (claim.partition, claim.claim)).collect()
    }

    /// The offset that the group had committed to a partition when this member was given it.
    pub fn committed(&self, partition: u32) -> Option<u64> {
        let is_it = |given: &&v1::member_response::Assigned| {
            given.claim.as_ref().is_some_and(|claim| claim.partition == partition)
        };
        Some(self.assignment.partitions.iter().find(is_it)?.committed.as_ref()?.offset)
    }

    /// Says something.
    ///
    /// # Errors
    /// The stream is gone.
    pub async fn say(&self, action: Action) -> anyhow::Result<()> {
        self.requests.send(v1::MemberRequest { action: Some(action) }).await.context("the member's stream is gone")
    }

    /// Leaves, and waits until the stream has ended.
    ///
    /// # Errors
    /// The stream breaks.
    pub async fn leave(mut self) -> anyhow::Result<()> {
        self.silence();
        self.say(Action::Leave(Leave {})).await?;
        within(LIMIT, "the stream of a member that left ends", async {
            while self.events.message().await?.is_some() {}
            Ok(())
        })
        .await
    }

    /// Commits one offset under a claim; the reason if it is refused.
    ///
    /// # Errors
    /// The call as a whole fails.
    pub async fn commit(&self, claim: &Claim, offset: u64) -> anyhow::Result<Option<String>> {
        commit(&self.address, &self.join.group, self.joined.member_id, claim, offset).await
    }
}

/// Commits one offset at one node; the reason if the entry is refused.
///
/// # Errors
/// The call as a whole fails.
pub async fn commit(
    address: &str,
    group: &str,
    member_id: u64,
    claim: &Claim,
    offset: u64,
) -> anyhow::Result<Option<String>> {
    let committed = v1::Committed { offset, state: Bytes::from_static(b"state"), record_time_ms: 1_000 };
    let entry = v1::commit_request::Entry { claim: Some(claim.clone()), committed: Some(committed) };
    let request = v1::CommitRequest { group: group.to_owned(), member_id, entries: vec![entry] };
    let answer = within(LIMIT, "a commit is answered", async {
        Ok(connect(address).await?.commit(request).await?.into_inner())
    })
    .await?;
    ensure!(answer.results.len() == 1, "{answer:?}");
    Ok(answer.results.into_iter().find_map(|result| result.error).map(|error| error.reason))
}

async fn next(events: &mut Streaming<v1::MemberResponse>) -> anyhow::Result<Event> {
    let event = async { events.message().await?.context("the member's stream ended") };
    within(LIMIT, "an event for a member", event).await?.event.context("no event")
}
