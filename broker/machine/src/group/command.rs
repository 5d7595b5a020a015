//! What can be asked of a shard, and its encoding: what becomes a raft entry.
//!
//! ```text
//!   version(1) kind(1) fields in their order; integers of variable length, texts and bytes behind their length
//! ```
//! Invariant: a command of a version or kind that this build doesn't know is an error, never half understood; equal
//! commands are equal bytes.

use std::collections::BTreeSet;

use busbar_proto::{ClaimId, GroupName, MemberId, Offset, PartitionId, TopicId, TopicName, limits};
use bytes::{BufMut as _, Bytes, BytesMut};

use super::{Committed, PartitionKey};
use crate::codec::{DecodeError, Reader, put_bytes, put_signed, put_unsigned};

const WHAT: &str = "a command for consumer groups";
const VERSION: u8 = 1;
/// A topic id, a partition and one more integer.
const HELD_BYTES_MIN: usize = 18;
pub(super) const NAME_BYTES_MAX: usize = limits::TOPIC_NAME_BYTES_MAX;

/// A member joins, or is back on a new stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// The group.
    pub group: GroupName,
    /// The id that it has; `None` = none yet.
    pub member: Option<MemberId>,
    /// Empty, or its name.
    pub name: String,
    /// Tells this instance from others.
    pub instance: Bytes,
    /// What it asks for.
    pub topics: BTreeSet<TopicName>,
    /// How long it may be silent, in milliseconds.
    pub session_timeout_ms: u64,
    /// Its topics as the proposer sees them.
    pub seen: SeenTopics,
}

/// Topics as the proposer sees them in the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenTopics {
    /// The catalog's version.
    pub catalog_version: u64,
    /// New, or changed.
    pub known: Vec<SeenTopic>,
    /// Deleted.
    pub gone: Vec<TopicId>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenTopic {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: TopicName,
    /// How many partitions it has.
    pub partitions: u32,
}

/// A partition in a member's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The partition.
    pub key: PartitionKey,
    /// The right to it.
    pub claim: ClaimId,
}

/// How far a member is in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitEntry {
    /// The partition, and the right to it.
    pub held: Held,
    /// How far.
    pub committed: Committed,
}

/// An offset set by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetEntry {
    /// The partition.
    pub key: PartitionKey,
    /// The next offset to read.
    pub offset: Offset,
}

/// A change of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A member joins.
    Join(Join),
    /// A member has left, or was silent for too long.
    Remove {
        /// The group.
        group: GroupName,
        /// The member.
        member: MemberId,
        /// Of its memberships, the one that ended.
        joins: u64,
        /// Now, in milliseconds since the Unix epoch.
        now_ms: i64,
    },
    /// A member has stopped working on partitions.
    Release {
        /// The group.
        group: GroupName,
        /// The member.
        member: MemberId,
        /// The partitions.
        held: Vec<Held>,
    },
    /// A member tells how far it is.
    Commit {
        /// The group.
        group: GroupName,
        /// The member.
        member: MemberId,
        /// Each is accepted or refused alone.
        entries: Vec<CommitEntry>,
    },
    /// Offsets are set by hand.
    Reset {
        /// The group.
        group: GroupName,
        /// All or none of them.
        entries: Vec<ResetEntry>,
        /// Also while the group has members: they lose their claims.
        force: bool,
        /// Their topics as the proposer sees them.
        topics: SeenTopics,
    },
    /// A group is forgotten.
    Delete {
        /// The group.
        group: GroupName,
    },
    /// Topics have changed.
    SeeTopics(SeenTopics),
    /// Groups that have had no member for long are forgotten.
    RemoveIdle {
        /// Since before this, in milliseconds since the Unix epoch.
        before_ms: i64,
    },
}

impl Command {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        match self {
            Self::Join(join) => put_join(&mut out, join),
            Self::Remove { group, member, joins, now_ms } => {
                begin(&mut out, 2, group);
                put_unsigned(&mut out, member.get());
                put_unsigned(&mut out, *joins);
                put_signed(&mut out, *now_ms);
            }
            Self::Release { group, member, held } => {
                begin(&mut out, 3, group);
                put_unsigned(&mut out, member.get());
                put_unsigned(&mut out, held.len() as u64);
                held.iter().for_each(|held| put_held(&mut out, held));
            }
            Self::Commit { group, member, entries } => {
                begin(&mut out, 4, group);
                put_unsigned(&mut out, member.get());
                put_unsigned(&mut out, entries.len() as u64);
                for CommitEntry { held, committed } in entries {
                    put_held(&mut out, held);
                    put_committed(&mut out, committed);
                }
            }
            Self::Reset { group, entries, force, topics } => {
                begin(&mut out, 5, group);
                put_unsigned(&mut out, entries.len() as u64);
                for ResetEntry { key, offset } in entries {
                    put_key(&mut out, key);
                    put_unsigned(&mut out, offset.get());
                }
                out.put_u8(u8::from(*force));
                put_seen(&mut out, topics);
            }
            Self::Delete { group } => begin(&mut out, 6, group),
            Self::SeeTopics(seen) => {
                out.put_u8(7);
                put_seen(&mut out, seen);
            }
            Self::RemoveIdle { before_ms } => {
                out.put_u8(8);
                put_signed(&mut out, *before_ms);
            }
        }
        out.freeze()
    }

    /// The command that these bytes are.
    ///
    /// # Errors
    /// When they are no command of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes);
        reader.version(VERSION)?;
        let command = match reader.byte("kind")? {
            1 => Self::Join(join(&mut reader)?),
            2 => Self::Remove {
                group: group(&mut reader)?,
                member: MemberId::new(reader.unsigned("member")?),
                joins: reader.unsigned("joins")?,
                now_ms: reader.signed("time")?,
            },
            3 => {
                let (group, member) = (group(&mut reader)?, MemberId::new(reader.unsigned("member")?));
                let count = reader.count("claims", HELD_BYTES_MIN)?;
                Self::Release { group, member, held: (0..count).map(|_| held(&mut reader)).collect::<Result<_, _>>()? }
            }
            4 => {
                let (group, member) = (group(&mut reader)?, MemberId::new(reader.unsigned("member")?));
                let count = reader.count("entries", HELD_BYTES_MIN)?;
                let entry = |_| Ok(CommitEntry { held: held(&mut reader)?, committed: committed(&mut reader)? });
                Self::Commit { group, member, entries: (0..count).map(entry).collect::<Result<_, DecodeError>>()? }
            }
            5 => {
                let group = group(&mut reader)?;
                let count = reader.count("entries", HELD_BYTES_MIN)?;
                let entry =
                    |_| Ok(ResetEntry { key: key(&mut reader)?, offset: Offset::new(reader.unsigned("offset")?) });
                let entries = (0..count).map(entry).collect::<Result<_, DecodeError>>()?;
                Self::Reset { group, entries, force: reader.flag("force")?, topics: seen(&mut reader)? }
            }
            6 => Self::Delete { group: group(&mut reader)? },
            7 => Self::SeeTopics(seen(&mut reader)?),
            8 => Self::RemoveIdle { before_ms: reader.signed("time")? },
            other => return Err(reader.invalid("kind", other)),
        };
        reader.finish()?;
        Ok(command)
    }
}

fn begin(out: &mut BytesMut, kind: u8, group: &GroupName) {
    out.put_u8(kind);
    put_bytes(out, group.as_str().as_bytes());
}

fn group(reader: &mut Reader<'_>) -> Result<GroupName, DecodeError> {
    reader.text("group", NAME_BYTES_MAX)
}

fn put_join(out: &mut BytesMut, join: &Join) {
    let Join { group, member, name, instance, topics, session_timeout_ms, seen } = join;
    begin(out, 1, group);
    put_unsigned(out, member.map_or(0, MemberId::get));
    put_bytes(out, name.as_bytes());
    put_bytes(out, instance);
    put_names(out, topics);
    put_unsigned(out, *session_timeout_ms);
    put_seen(out, seen);
}

fn join(reader: &mut Reader<'_>) -> Result<Join, DecodeError> {
    Ok(Join {
        group: group(reader)?,
        member: Some(reader.unsigned("member")?).filter(|id| *id > 0).map(MemberId::new),
        name: reader.text("name", NAME_BYTES_MAX)?,
        instance: Bytes::copy_from_slice(reader.bytes("instance", limits::MEMBER_INSTANCE_BYTES_MAX)?),
        topics: names(reader)?,
        session_timeout_ms: reader.unsigned("session timeout")?,
        seen: seen(reader)?,
    })
}

pub(super) fn put_names(out: &mut BytesMut, names: &BTreeSet<TopicName>) {
    put_unsigned(out, names.len() as u64);
    names.iter().for_each(|name| put_bytes(out, name.as_str().as_bytes()));
}

/// Names in their order, each once: a set has one encoding.
pub(super) fn names(reader: &mut Reader<'_>) -> Result<BTreeSet<TopicName>, DecodeError> {
    let count = reader.count("topics", 2)?;
    let mut names = BTreeSet::new();
    for _ in 0..count {
        let name: TopicName = reader.text("topic", NAME_BYTES_MAX)?;
        if names.last().is_some_and(|last| *last >= name) {
            return Err(reader.invalid("topic", "names out of order"));
        }
        names.insert(name);
    }
    Ok(names)
}

fn put_seen(out: &mut BytesMut, seen: &SeenTopics) {
    put_unsigned(out, seen.catalog_version);
    put_unsigned(out, seen.known.len() as u64);
    for SeenTopic { id, name, partitions } in &seen.known {
        out.put_slice(id.as_bytes());
        put_bytes(out, name.as_str().as_bytes());
        put_unsigned(out, (*partitions).into());
    }
    put_unsigned(out, seen.gone.len() as u64);
    seen.gone.iter().for_each(|id| out.put_slice(id.as_bytes()));
}

fn seen(reader: &mut Reader<'_>) -> Result<SeenTopics, DecodeError> {
    let catalog_version = reader.unsigned("catalog version")?;
    let count = reader.count("topics", 19)?;
    let topic = |_| {
        Ok(SeenTopic {
            id: TopicId::from_bytes(reader.array("topic id")?),
            name: reader.text("topic", NAME_BYTES_MAX)?,
            partitions: reader.narrow("partitions")?,
        })
    };
    let known = (0..count).map(topic).collect::<Result<_, DecodeError>>()?;
    let count = reader.count("deleted topics", 16)?;
    let gone = (0..count).map(|_| reader.array("topic id").map(TopicId::from_bytes)).collect::<Result<_, _>>()?;
    Ok(SeenTopics { catalog_version, known, gone })
}

pub(super) fn put_key(out: &mut BytesMut, key: &PartitionKey) {
    out.put_slice(key.topic.as_bytes());
    put_unsigned(out, key.partition.get().into());
}

pub(super) fn key(reader: &mut Reader<'_>) -> Result<PartitionKey, DecodeError> {
    let topic = TopicId::from_bytes(reader.array("topic id")?);
    Ok(PartitionKey { topic, partition: PartitionId::new(reader.narrow("partition")?) })
}

fn put_held(out: &mut BytesMut, held: &Held) {
    put_key(out, &held.key);
    put_unsigned(out, held.claim.get());
}

fn held(reader: &mut Reader<'_>) -> Result<Held, DecodeError> {
    Ok(Held { key: key(reader)?, claim: ClaimId::new(reader.unsigned("claim")?) })
}

pub(super) fn put_committed(out: &mut BytesMut, committed: &Committed) {
    put_unsigned(out, committed.offset.get());
    put_bytes(out, &committed.state);
    put_signed(out, committed.record_time_ms);
}

pub(super) fn committed(reader: &mut Reader<'_>) -> Result<Committed, DecodeError> {
    Ok(Committed {
        offset: Offset::new(reader.unsigned("offset")?),
        state: Bytes::copy_from_slice(reader.bytes("state", limits::COMMIT_STATE_BYTES_MAX)?),
        record_time_ms: reader.signed("record time")?,
    })
}
