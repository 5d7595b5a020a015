//! Consumer groups for callers: any node finds the shard of a group and asks its leader, here or elsewhere.
//!
//! | file | owns |
//! |---|---|
//! | this | which shard, who leads it; list, describe, reset, delete |
//! | [`member`] | one member's stream, and commits: at the shard's leader only |
//! | [`coordinate`] | on the leader: silent members, changed topics, idle groups |

pub mod coordinate;
pub mod member;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use busbar_machine::{
    catalog::{Catalog, Command as CatalogCommand, TopicKind},
    group::{Command, GroupShard, PartitionKey, ResetEntry, SeenTopic, SeenTopics},
};
use busbar_proto::{
    GroupId, GroupName, MemberId, NodeId, Offset, PartitionId, Reason, Refusal, Term, TopicId, TopicName, limits,
    partition_of_key, v1,
};
use bytes::Bytes;
use futures::future::join_all;

use super::{broker::Broker, hosted::Hosted};
use crate::groups::{
    Shard,
    shard::{no_leader, not_leader},
};

/// How long a call may look for a shard's leader.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const LIST_TIMEOUT: Duration = Duration::from_secs(2);
/// With more topics than this one question for all of them is cheaper than one for each.
const TOPICS_ASKED_SINGLY_MAX: usize = 4;

pub(super) fn group_name(text: &str) -> Result<GroupName, Refusal> {
    let shown: String = text.chars().take(limits::TOPIC_NAME_BYTES_MAX).collect();
    text.parse().map_err(|error| Refusal::new(Reason::InvalidName, format!("group {shown:?}: {error}")))
}

/// A topic's id from the wire.
pub(super) fn topic_id(bytes: &[u8]) -> Result<TopicId, Refusal> {
    TopicId::from_slice(bytes).ok_or_else(|| {
        Refusal::new(Reason::InvalidArgument, format!("a topic id has 16 bytes, this one {}", bytes.len()))
    })
}

/// The shard of a group, once there are shards.
fn shard_of(catalog: &Catalog, name: &GroupName) -> Option<(PartitionId, GroupId)> {
    let topic = catalog.groups_topic()?;
    let shard = partition_of_key(name.as_str().as_bytes(), u32::try_from(topic.partitions.len()).ok()?);
    Some((shard, *topic.partitions.get(usize::try_from(shard.get()).ok()?)?))
}

/// What a shard has to learn of these topics, and of those that it knows. `None` while the catalog here lags behind what
/// the shard was told before.
pub(super) fn news_for<'a>(
    catalog: &Catalog,
    shard: &GroupShard,
    names: impl IntoIterator<Item = &'a TopicName>,
    ids: impl IntoIterator<Item = TopicId>,
) -> Option<SeenTopics> {
    if catalog.version() < shard.catalog_version() {
        return None;
    }
    let mut seen = SeenTopics { catalog_version: catalog.version(), ..SeenTopics::default() };
    let known = shard.topics();
    let named = names.into_iter().filter_map(|name| catalog.topic_by_name(name.as_str())).map(|topic| topic.id);
    let wanted: BTreeSet<TopicId> = known.keys().copied().chain(named).chain(ids).collect();
    for id in wanted {
        let found = catalog.topic_by_id(id).filter(|topic| topic.kind == TopicKind::Records);
        let partitions = found.and_then(|topic| u32::try_from(topic.partitions.len()).ok());
        match (found, partitions) {
            (Some(topic), Some(partitions)) => {
                let same = known.get(&id).is_some_and(|old| old.name == topic.name && old.partitions == partitions);
                if !same {
                    seen.known.push(SeenTopic { id, name: topic.name.clone(), partitions });
                }
            }
            _ if known.contains_key(&id) => seen.gone.push(id),
            _ => {}
        }
    }
    Some(seen)
}

impl Broker {
    /// The shard of a group and who leads it. Makes the shards when there are none.
    pub async fn find_group(&self, name: &str) -> Result<v1::FindGroupResponse, Refusal> {
        let name = group_name(name)?;
        self.ensure_shards().await?;
        let (shard, group) = self.cluster().read(|catalog| shard_of(catalog, &name)).ok_or_else(no_leader)?;
        let led = self.shard_leader(group);
        Ok(v1::FindGroupResponse {
            shard: shard.get(),
            leader: led.map_or(0, |(node, _)| node.get()),
            epoch: led.map_or(0, |(_, term)| term.get()),
        })
    }

    async fn ensure_shards(&self) -> Result<(), Refusal> {
        if self.cluster().read(|catalog| catalog.groups_topic().is_some()) {
            return Ok(());
        }
        let command = CatalogCommand::CreateGroupShards {
            id: TopicId::from_bytes(rand::random()),
            shards: self.config().groups.shards,
            unreachable: self.unreachable_nodes(),
        };
        let _: busbar_machine::catalog::Outcome = self.cluster().submit(command).await?;
        self.cluster().applied(CALL_TIMEOUT, |catalog| catalog.groups_topic().is_some()).await;
        let mut watch = self.leaders().watch();
        let all_led = watch.wait_for(|_| {
            let shards = self.cluster().read(|catalog| catalog.groups_topic().map(|topic| topic.partitions.clone()));
            shards.is_some_and(|shards| shards.iter().all(|group| self.leaders().leader(*group).is_some()))
        });
        // Not in time: the caller asks again.
        let _ = tokio::time::timeout(CALL_TIMEOUT, all_led).await;
        Ok(())
    }

    fn shard_leader(&self, group: GroupId) -> Option<(NodeId, Term)> {
        self.leaders().leader(group)
    }

    fn shard(&self, group: GroupId) -> Option<Arc<Shard>> {
        match self.replicas.read().get(&group) {
            Some(Hosted::Shard(shard)) => Some(shard.clone()),
            Some(Hosted::Partition(_)) | None => None,
        }
    }

    /// The shard of a group, if this node leads it.
    pub(super) fn led_shard(&self, name: &GroupName) -> Result<Arc<Shard>, Refusal> {
        let (_, group) = self.cluster().read(|catalog| shard_of(catalog, name)).ok_or_else(no_leader)?;
        let Some(shard) = self.shard(group) else {
            let leader = self.shard_leader(group).map(|(node, _)| node).filter(|node| *node != self.node());
            return Err(match leader {
                Some(_) => not_leader(crate::raft::group::Leadership { leader, ..Default::default() }),
                None => no_leader(),
            });
        };
        shard.require_leading()?;
        Ok(shard)
    }

    /// Has a call carried out where the group's shard is led: `here`, or `there` at another node's client address.
    /// Retries while there is no leader, up to a deadline.
    async fn at_leader<T, H, E>(
        &self,
        name: &GroupName,
        direct: bool,
        here: impl Fn(Arc<Shard>) -> H,
        there: impl Fn(String) -> E,
    ) -> Result<T, Refusal>
    where
        H: Future<Output = Result<T, Refusal>>,
        E: Future<Output = Result<T, Refusal>>,
    {
        let unknown = || Refusal::new(Reason::UnknownGroup, format!("there is no consumer group '{name}'"));
        let (_, group) = self.cluster().read(|catalog| shard_of(catalog, name)).ok_or_else(unknown)?;
        let deadline = self.clock().now() + CALL_TIMEOUT;
        loop {
            let refusal = match self.led_shard(name) {
                Ok(shard) => match here(shard).await {
                    Err(refusal) if refusal.reason.is_retryable() => refusal,
                    done => return done,
                },
                Err(refusal) if direct => return Err(refusal),
                Err(refusal) => {
                    let leader = refusal.leader.or(self.shard_leader(group).map(|(node, _)| node));
                    let leader = leader.filter(|node| *node != self.node());
                    let address = leader
                        .and_then(|node| self.cluster().read(|catalog| Some(catalog.node(node)?.address.clone())));
                    match address {
                        Some(address) => match there(address).await {
                            Err(refusal) if refusal.reason.is_retryable() => refusal,
                            done => return done,
                        },
                        None => refusal,
                    }
                }
            };
            if direct || self.clock().now() + RETRY_PAUSE >= deadline {
                return Err(refusal);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// The groups of all shards; with `direct` of those that this node leads.
    pub async fn list_groups(&self, direct: bool) -> v1::ListGroupsResponse {
        let shards = self.cluster().read(|catalog| catalog.groups_topic().map(|topic| topic.partitions.clone()));
        let shards = shards.unwrap_or_default();
        let mut groups = Vec::new();
        let mut missing: BTreeMap<u32, GroupId> = (0..).zip(shards).collect();
        missing.retain(|number, group| {
            let Some(shard) = self.shard(*group).filter(|shard| shard.require_leading().is_ok()) else { return true };
            groups.extend(summaries(*number, &shard));
            false
        });
        if !direct {
            let leaders: BTreeSet<NodeId> =
                missing.values().filter_map(|group| Some(self.shard_leader(*group)?.0)).collect();
            let addresses: Vec<String> = self
                .cluster()
                .read(|catalog| leaders.iter().filter_map(|node| Some(catalog.node(*node)?.address.clone())).collect());
            let asked = addresses.iter().map(|address| self.parts.calls.list_groups(address, LIST_TIMEOUT));
            for (address, answer) in addresses.iter().zip(join_all(asked).await) {
                match answer {
                    Ok(answer) => {
                        let answered = |shard: &u32| !answer.unanswered_shards.contains(shard);
                        let news = answer.groups.into_iter().filter(|group| missing.contains_key(&group.shard));
                        groups.extend(news);
                        missing.retain(|shard, _| !answered(shard));
                    }
                    Err(refusal) => tracing::debug!(%address, %refusal, "a node did not list its groups"),
                }
            }
        }
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        v1::ListGroupsResponse { groups, unanswered_shards: missing.into_keys().collect() }
    }

    /// A group: its members, who holds what, and how far it is.
    pub async fn describe_group(&self, name: &str, direct: bool) -> Result<v1::DescribeGroupResponse, Refusal> {
        let group = &group_name(name)?;
        let there =
            |address: String| async move { self.parts.calls.describe_group(&address, group.as_str().to_owned()).await };
        self.at_leader(group, direct, |shard| self.describe_here(shard, group), there).await
    }

    async fn describe_here(&self, shard: Arc<Shard>, name: &GroupName) -> Result<v1::DescribeGroupResponse, Refusal> {
        let mut answer = self.describe_applied(&shard, name)?;
        let topics: BTreeSet<TopicId> =
            answer.partitions.iter().filter_map(|partition| TopicId::from_slice(&partition.topic_id)).collect();
        let asked: Vec<Option<TopicId>> = match topics.len() {
            0 => Vec::new(),
            few if few <= TOPICS_ASKED_SINGLY_MAX => topics.into_iter().map(Some).collect(),
            _ => vec![None],
        };
        let mut states = BTreeMap::new();
        for gathered in join_all(asked.into_iter().map(|topic| self.gather(topic))).await {
            states.extend(gathered.states);
        }
        for partition in &mut answer.partitions {
            let Some(id) = TopicId::from_slice(&partition.topic_id) else { continue };
            if let Some(state) = states.get(&(id, partition.partition)).filter(|state| state.is_leader) {
                partition.log_start = Some(state.log_start);
                partition.high_watermark = Some(state.high_watermark);
            }
        }
        Ok(answer)
    }

    fn describe_applied(&self, shard: &Shard, name: &GroupName) -> Result<v1::DescribeGroupResponse, Refusal> {
        let now = self.clock().now();
        let machine = shard.read();
        let unknown = || Refusal::new(Reason::UnknownGroup, format!("there is no consumer group '{name}'"));
        let group = machine.group(name).ok_or_else(unknown)?;
        let sessions = shard.sessions().lock();
        let members = group.members().iter().map(|(id, member)| {
            let heard = sessions.get(name, *id).map(|session| now.saturating_duration_since(session.heard));
            v1::describe_group_response::Member {
                member_id: id.get(),
                member_name: member.name.clone(),
                topics: member.topics.iter().map(|topic| topic.as_str().to_owned()).collect(),
                session_timeout_ms: member.session_timeout_ms,
                silent_ms: heard.map_or(0, |silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
            }
        });
        let partitions = group.partitions().iter().map(|(key, position)| v1::describe_group_response::Partition {
            topic_id: Bytes::copy_from_slice(key.topic.as_bytes()),
            topic: machine.topics().get(&key.topic).map_or_else(String::new, |topic| topic.name.as_str().to_owned()),
            partition: key.partition.get(),
            member_id: position.holder.map_or(0, MemberId::get),
            claim: position.claim.get(),
            committed: position.committed.as_ref().map(|committed| v1::Committed {
                offset: committed.offset.get(),
                state: Bytes::new(),
                record_time_ms: committed.record_time_ms,
            }),
            log_start: None,
            high_watermark: None,
        });
        Ok(v1::DescribeGroupResponse {
            group: name.as_str().to_owned(),
            shard: shard.partition().get(),
            leader: self.node().get(),
            generation: group.generation().get(),
            members: members.collect(),
            partitions: partitions.collect(),
        })
    }

    /// Sets a group's offsets by hand. Repeating it is harmless.
    pub async fn reset_group(&self, request: v1::ResetGroupRequest) -> Result<(), Refusal> {
        let group = &group_name(&request.group)?;
        let most = limits::GROUP_PARTITIONS_MAX;
        if !(1..=most).contains(&request.entries.len()) {
            let message = format!("name 1 to {most} partitions to reset, not {}", request.entries.len());
            return Err(Refusal::new(Reason::InvalidArgument, message));
        }
        let entry = |entry: &v1::reset_group_request::Entry| {
            let key = PartitionKey { topic: topic_id(&entry.topic_id)?, partition: PartitionId::new(entry.partition) };
            Ok(ResetEntry { key, offset: Offset::new(entry.offset) })
        };
        let entries: &Vec<ResetEntry> = &request.entries.iter().map(entry).collect::<Result<_, Refusal>>()?;
        let force = request.force;
        let here = |shard: Arc<Shard>| async move {
            let ids: BTreeSet<TopicId> = entries.iter().map(|entry| entry.key.topic).collect();
            let topics = self.cluster().read(|catalog| news_for(catalog, &shard.read(), [], ids));
            let topics = topics.ok_or_else(no_leader)?;
            let command = Command::Reset { group: group.clone(), entries: entries.clone(), force, topics };
            shard.propose(&command).await.map(drop)
        };
        let there = |address: String| {
            let request = request.clone();
            async move { self.parts.calls.reset_group(&address, request).await }
        };
        self.at_leader(group, request.direct, here, there).await
    }

    /// Forgets a group without members.
    pub async fn delete_group(&self, name: &str, direct: bool) -> Result<(), Refusal> {
        let group = &group_name(name)?;
        let here =
            |shard: Arc<Shard>| async move { shard.propose(&Command::Delete { group: group.clone() }).await.map(drop) };
        let there =
            |address: String| async move { self.parts.calls.delete_group(&address, group.as_str().to_owned()).await };
        self.at_leader(group, direct, here, there).await
    }
}

fn summaries(number: u32, shard: &Shard) -> Vec<v1::list_groups_response::Summary> {
    let machine = shard.read();
    let topics_of = |group: &busbar_machine::group::Group| {
        let asked = group.members().values().flat_map(|member| &member.topics).map(|topic| topic.as_str().to_owned());
        let names = group.partitions().keys().filter_map(|key| machine.topics().get(&key.topic));
        let topics: BTreeSet<String> = asked.chain(names.map(|topic| topic.name.as_str().to_owned())).collect();
        topics.into_iter().collect()
    };
    let summary = |(name, group): (&GroupName, &busbar_machine::group::Group)| v1::list_groups_response::Summary {
        group: name.as_str().to_owned(),
        shard: number,
        members: u32::try_from(group.members().len()).unwrap_or(u32::MAX),
        generation: group.generation().get(),
        topics: topics_of(group),
    };
    machine.groups().map(summary).collect()
}
