//! One member at the leader of its shard: joining, what it should hold, what it gives back, how far it is.
//!
//! Invariant: a membership ends on its stream when another stream has joined under its id, when its session has ended, or
//! when this node leads the shard no more; the member learns which.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use busbar_machine::group::{Command, CommitEntry, Committed, Held, Join, Outcome, PartitionKey};
use busbar_proto::{
    ClaimId, GroupName, MemberId, Offset, PartitionId, Reason, Refusal, TopicName, limits, v1,
    v1::member_response::{Assigned, Assignment, Joined},
};
use bytes::Bytes;
use tokio::sync::watch;

use super::{group_name, news_for, topic_id};
use crate::{
    groups::{Shard, shard::no_leader},
    service::Broker,
};

/// How long a topic that a member asks for may take to be known here: it may have been created a moment ago.
const TOPIC_WAIT: Duration = Duration::from_secs(1);
/// How long a partition led here may take to apply what a member has read elsewhere.
const MARK_WAIT: Duration = Duration::from_millis(500);
/// Heartbeats that fit into a session timeout.
const HEARTBEATS_PER_SESSION: u64 = 4;

/// A member on its stream.
pub struct Membership {
    shard: Arc<Shard>,
    group: GroupName,
    member: MemberId,
    joins: u64,
    instance: Bytes,
    is_named: bool,
    session_timeout_ms: u64,
    changes: watch::Receiver<u64>,
    /// What was sent last.
    told: Option<Told>,
}

/// What a member should hold, and what it should release.
#[derive(PartialEq)]
struct Told {
    assigned: Vec<(PartitionKey, ClaimId)>,
    to_release: Vec<(PartitionKey, ClaimId)>,
}

impl Membership {
    /// What the member is told first, at this time.
    pub fn joined(&self, time_ms: i64) -> Joined {
        Joined {
            member_id: self.member.get(),
            session_timeout_ms: self.session_timeout_ms,
            heartbeat_interval_ms: (self.session_timeout_ms / HEARTBEATS_PER_SESSION).max(1),
            time_ms,
        }
    }

    /// Waits until some assignment of the shard has changed. Cancel safe.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending().await // the shard lives as long as we hold it
        }
    }

    /// Follows who leads the shard.
    pub fn leadership(&self) -> crate::raft::group::LeadershipWatch {
        self.shard.group().watch_leadership()
    }

    /// The member was heard of.
    ///
    /// # Errors
    /// The membership is over.
    pub fn heard(&self) -> Result<(), Refusal> {
        self.check()?;
        self.shard.touch(&self.group, self.member);
        Ok(())
    }

    fn check(&self) -> Result<(), Refusal> {
        self.shard.require_leading()?;
        let machine = self.shard.read();
        let member = machine.group(&self.group).and_then(|group| group.members().get(&self.member));
        let (reason, message) = match member {
            Some(member) if member.joins == self.joins => return Ok(()),
            Some(member) if member.instance != self.instance => {
                let message = format!(
                    "another instance has joined group '{}' as '{}' and took the place of this one: stop it",
                    self.group, member.name
                );
                (Reason::FencedMember, message)
            }
            Some(_) => (Reason::FailedPrecondition, "the member has opened another stream".to_owned()),
            None => {
                let message =
                    format!("group '{}' has no member {}: its session has ended, join again", self.group, self.member);
                (Reason::UnknownMember, message)
            }
        };
        Err(Refusal::new(reason, message))
    }

    /// What the member should hold now, if that is not what it was told last.
    ///
    /// # Errors
    /// The membership is over.
    pub fn assignment(&mut self) -> Result<Option<Assignment>, Refusal> {
        self.changes.borrow_and_update();
        self.check()?;
        let machine = self.shard.read();
        let Some(group) = machine.group(&self.group) else { return Ok(None) };
        let told = Told {
            assigned: group.assignment(self.member).map(|(key, position)| (key, position.claim)).collect(),
            // Also what it was never told of: given to it and meant for another before it heard of it. Nobody else can
            // say that it is free.
            to_release: group.to_release(self.member).collect(),
        };
        if self.told.as_ref() == Some(&told) {
            return Ok(None);
        }
        let partitions = group.assignment(self.member).map(|(key, position)| Assigned {
            claim: Some(claim(key, position.claim)),
            topic: machine.topics().get(&key.topic).map_or_else(String::new, |topic| topic.name.as_str().to_owned()),
            committed: position.committed.as_ref().map(|committed| v1::Committed {
                offset: committed.offset.get(),
                state: committed.state.clone(),
                record_time_ms: committed.record_time_ms,
            }),
        });
        let assignment = Assignment {
            generation: group.generation().get(),
            partitions: partitions.collect(),
            to_release: told.to_release.iter().map(|(key, number)| claim(*key, *number)).collect(),
        };
        drop(machine);
        self.told = Some(told);
        Ok(Some(assignment))
    }

    /// The member has stopped working on these.
    ///
    /// # Errors
    /// The membership is over, or a claim is malformed.
    pub async fn release(&self, claims: &[v1::Claim]) -> Result<(), Refusal> {
        self.heard()?;
        if claims.len() > limits::GROUP_PARTITIONS_MAX {
            let message = format!("{} claims at once are more than a group has partitions", claims.len());
            return Err(Refusal::new(Reason::InvalidArgument, message));
        }
        let held = claims.iter().map(held).collect::<Result<Vec<_>, _>>()?;
        if held.is_empty() {
            return Ok(());
        }
        let command = Command::Release { group: self.group.clone(), member: self.member, held };
        self.shard.propose(&command).await.map(drop)
    }

    /// The member goes. One with a name keeps its place until its session ends.
    ///
    /// # Errors
    /// The shard is led elsewhere now.
    pub async fn leave(&self, now_ms: i64) -> Result<(), Refusal> {
        if self.is_named {
            return Ok(());
        }
        let (group, member, joins) = (self.group.clone(), self.member, self.joins);
        self.shard.propose(&Command::Remove { group, member, joins, now_ms }).await.map(drop)
    }
}

fn claim(key: PartitionKey, number: ClaimId) -> v1::Claim {
    let topic_id = Bytes::copy_from_slice(key.topic.as_bytes());
    v1::Claim { topic_id, partition: key.partition.get(), claim: number.get() }
}

fn held(claim: &v1::Claim) -> Result<Held, Refusal> {
    let key = PartitionKey { topic: topic_id(&claim.topic_id)?, partition: PartitionId::new(claim.partition) };
    Ok(Held { key, claim: ClaimId::new(claim.claim) })
}

impl Broker {
    /// Takes a member in, or back on a new stream. Only on the leader of the group's shard.
    pub async fn join_group(&self, join: v1::member_request::Join) -> Result<Membership, Refusal> {
        let group = group_name(&join.group)?;
        let most = limits::MEMBER_TOPICS_MAX;
        if join.topics.len() > most {
            let message = format!("a member asks for at most {most} topics, this one for {}", join.topics.len());
            return Err(Refusal::new(Reason::InvalidArgument, message));
        }
        let topic = |name: &String| {
            name.parse::<TopicName>()
                .map_err(|error| Refusal::new(Reason::InvalidName, format!("topic {name:?}: {error}")))
        };
        let topics = join.topics.iter().map(topic).collect::<Result<BTreeSet<_>, _>>()?;
        self.ensure_shards().await?;
        let shard = self.led_shard(&group)?;
        if join.member_id == 0 {
            self.require_topics(&topics).await?;
        }
        let seen = self.cluster().read(|catalog| news_for(catalog, &shard.read(), &topics, []));
        let session_timeout_ms = match join.session_timeout_ms {
            0 => self.config().groups.session_timeout_ms.get(),
            wanted => wanted.clamp(limits::SESSION_TIMEOUT_MS_MIN, limits::SESSION_TIMEOUT_MS_MAX),
        };
        let (instance, is_named) = (join.instance.clone(), !join.member_name.is_empty());
        let changes = shard.watch_changes();
        let command = Command::Join(Join {
            group: group.clone(),
            member: (join.member_id > 0).then(|| MemberId::new(join.member_id)),
            name: join.member_name,
            instance: join.instance,
            topics,
            session_timeout_ms,
            seen: seen.ok_or_else(no_leader)?,
        });
        let (member, joins) = match shard.propose(&command).await? {
            Outcome::Joined { member, joins } => (member, joins),
            other => return Err(Refusal::new(Reason::Internal, format!("a join was answered by {other:?}"))),
        };
        shard.touch(&group, member);
        Ok(Membership { shard, group, member, joins, instance, is_named, session_timeout_ms, changes, told: None })
    }

    /// The topics that a new member asks for are there, or will be in a moment.
    async fn require_topics(&self, topics: &BTreeSet<TopicName>) -> Result<(), Refusal> {
        let missing = |catalog: &busbar_machine::catalog::Catalog| {
            let missing = topics.iter().find(|name| catalog.require_records_topic(name.as_str()).is_err());
            missing.cloned()
        };
        if self.cluster().applied(TOPIC_WAIT, |catalog| missing(catalog).is_none()).await {
            return Ok(());
        }
        self.cluster().read(|catalog| match missing(catalog) {
            Some(name) => catalog.require_records_topic(name.as_str()).map(drop),
            None => Ok(()),
        })
    }

    /// Records how far a member is. Only on the leader of the group's shard.
    pub async fn commit_group(&self, request: v1::CommitRequest) -> Result<v1::CommitResponse, Refusal> {
        let group = group_name(&request.group)?;
        let member = MemberId::new(request.member_id);
        let shard = self.led_shard(&group)?;
        let entries = commit_entries(request.entries)?;
        let mut results: Vec<Result<(), Refusal>> = Vec::with_capacity(entries.len());
        let mut proposed = Vec::with_capacity(entries.len());
        for entry in entries {
            let checked = self.check_offset(&entry).await;
            if checked.is_ok() {
                proposed.push(entry);
            }
            results.push(checked);
        }
        if !proposed.is_empty() {
            let answered =
                match shard.propose(&Command::Commit { group: group.clone(), member, entries: proposed }).await? {
                    Outcome::Committed(results) => results,
                    other => return Err(Refusal::new(Reason::Internal, format!("a commit was answered by {other:?}"))),
                };
            let mut answered = answered.into_iter();
            for result in results.iter_mut().filter(|result| result.is_ok()) {
                *result = answered.next().unwrap_or(Ok(()));
            }
            shard.touch(&group, member);
        }
        let wire =
            |result: Result<(), Refusal>| v1::commit_response::Result { error: result.err().map(|e| e.to_wire()) };
        Ok(v1::CommitResponse { results: results.into_iter().map(wire).collect() })
    }

    /// Refuses an offset that no member can have been given, where this node leads the partition and so knows.
    async fn check_offset(&self, entry: &CommitEntry) -> Result<(), Refusal> {
        let PartitionKey { topic, partition } = entry.held.key;
        let Ok(replica) = self.replica(topic, partition) else { return Ok(()) };
        let offset = entry.committed.offset;
        if replica.require_leading().is_err() || offset <= replica.bounds().1 {
            return Ok(());
        }
        // A follower may have applied, and shown to a reader, what is not applied here yet.
        let mut applied = replica.group().shared().watch();
        let reached = applied.wait_for(|state| state.mark >= offset.get());
        if tokio::time::timeout(MARK_WAIT, reached).await.is_ok() || replica.require_leading().is_err() {
            return Ok(());
        }
        let message =
            format!("offset {offset} is beyond the high watermark {}: nobody was given it", replica.bounds().1);
        Err(Refusal::new(Reason::OffsetOutOfRange, message))
    }
}

fn commit_entries(entries: Vec<v1::commit_request::Entry>) -> Result<Vec<CommitEntry>, Refusal> {
    let invalid = |message: String| Err(Refusal::new(Reason::InvalidArgument, message));
    if entries.len() > limits::GROUP_PARTITIONS_MAX {
        return invalid(format!("{} entries at once are more than a group has partitions", entries.len()));
    }
    let bytes: usize = entries.iter().filter_map(|entry| Some(entry.committed.as_ref()?.state.len())).sum();
    if bytes > limits::COMMIT_BYTES_MAX {
        return invalid(format!("a commit carries at most {} bytes of state, not {bytes}", limits::COMMIT_BYTES_MAX));
    }
    let missing = |what: &str| Refusal::new(Reason::InvalidArgument, format!("an entry of a commit lacks its {what}"));
    let entry = |entry: v1::commit_request::Entry| {
        let claim = entry.claim.ok_or_else(|| missing("claim"))?;
        let committed = entry.committed.ok_or_else(|| missing("offset"))?;
        let (found, most) = (committed.state.len(), limits::COMMIT_STATE_BYTES_MAX);
        if found > most {
            let message = format!("the state beside an offset has {found} bytes, at most {most} are allowed");
            return Err(Refusal::new(Reason::InvalidArgument, message));
        }
        let v1::Committed { offset, state, record_time_ms } = committed;
        Ok(CommitEntry {
            held: held(&claim)?,
            committed: Committed { offset: Offset::new(offset), state, record_time_ms },
        })
    };
    entries.into_iter().map(entry).collect()
}
