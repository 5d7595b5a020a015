//! A shard's whole state as bytes: what a checkpoint holds.
//!
//! ```text
//!   version(1) catalog-version changes next-member
//!   topics  [ id(16) name partitions ]
//!   groups  [ name generation last-claim idle-since
//!             members    [ id name instance topics session-timeout joins ]
//!             partitions [ id(16) partition holder claim target committed?(1) [ offset state record-time claim ] ] ]
//! ```
//! Invariant: what decodes obeys every invariant of a shard that the bytes alone can break, and encodes to the same bytes.

use busbar_proto::{ClaimId, Generation, GroupName, MemberId, TopicId, limits};
use bytes::{BufMut as _, Bytes, BytesMut};

use super::{
    Group, GroupShard, Member, Position, Topic,
    command::{NAME_BYTES_MAX, committed, key, names, put_committed, put_key, put_names},
};
use crate::codec::{DecodeError, Reader, put_bytes, put_signed, put_unsigned};

const WHAT: &str = "a checkpoint of consumer groups";
const VERSION: u8 = 1;

impl GroupShard {
    /// Its whole state.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.bytes + 64);
        out.put_u8(VERSION);
        put_unsigned(&mut out, self.catalog_version);
        put_unsigned(&mut out, self.changes);
        put_unsigned(&mut out, self.next_member.get());
        put_unsigned(&mut out, self.topics.len() as u64);
        for (id, topic) in &self.topics {
            out.put_slice(id.as_bytes());
            put_bytes(&mut out, topic.name.as_str().as_bytes());
            put_unsigned(&mut out, topic.partitions.into());
        }
        put_unsigned(&mut out, self.groups.len() as u64);
        for (name, group) in &self.groups {
            put_bytes(&mut out, name.as_str().as_bytes());
            put_group(&mut out, group);
        }
        out.freeze()
    }

    /// The shard that these bytes are.
    ///
    /// # Errors
    /// When they are no possible shard of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes);
        reader.version(VERSION)?;
        let mut shard = Self {
            catalog_version: reader.unsigned("catalog version")?,
            changes: reader.unsigned("changes")?,
            next_member: MemberId::new(reader.unsigned("next member")?),
            ..Self::new()
        };
        for _ in 0..reader.count("topics", 19)? {
            let id = TopicId::from_bytes(reader.array("topic id")?);
            let topic = Topic { name: reader.text("topic", NAME_BYTES_MAX)?, partitions: reader.narrow("partitions")? };
            ascending(&reader, "topic id", shard.topics.last_key_value().map(|(last, _)| last), &id)?;
            shard.bytes += topic.bytes();
            shard.topics.insert(id, topic);
        }
        for _ in 0..reader.count("groups", 7)? {
            let name: GroupName = reader.text("group", NAME_BYTES_MAX)?;
            ascending(&reader, "group", shard.groups.last_key_value().map(|(last, _)| last), &name)?;
            let group = read_group(&mut reader, &name, shard.next_member)?;
            shard.bytes += group.bytes();
            shard.groups.insert(name, group);
        }
        reader.finish()?;
        Ok(shard)
    }
}

fn put_group(out: &mut BytesMut, group: &Group) {
    let Group { generation, last_claim, idle_since_ms, members, partitions, bytes: _ } = group;
    put_unsigned(out, generation.get());
    put_unsigned(out, last_claim.get());
    put_signed(out, *idle_since_ms);
    put_unsigned(out, members.len() as u64);
    for (id, Member { name, instance, topics, session_timeout_ms, joins }) in members {
        put_unsigned(out, id.get());
        put_bytes(out, name.as_bytes());
        put_bytes(out, instance);
        put_names(out, topics);
        put_unsigned(out, *session_timeout_ms);
        put_unsigned(out, *joins);
    }
    put_unsigned(out, partitions.len() as u64);
    for (key, Position { holder, claim, target, committed, committed_claim }) in partitions {
        put_key(out, key);
        put_unsigned(out, holder.map_or(0, MemberId::get));
        put_unsigned(out, claim.get());
        put_unsigned(out, target.map_or(0, MemberId::get));
        out.put_u8(u8::from(committed.is_some()));
        if let Some(committed) = committed {
            put_committed(out, committed);
            put_unsigned(out, committed_claim.get());
        }
    }
}

fn read_group(reader: &mut Reader<'_>, name: &GroupName, next_member: MemberId) -> Result<Group, DecodeError> {
    let mut group = Group::new(name.as_str().len());
    let generation = Generation::new(reader.unsigned("generation")?);
    group.last_claim = ClaimId::new(reader.unsigned("last claim")?);
    group.idle_since_ms = reader.signed("idle since")?;
    for _ in 0..reader.count("members", 6)? {
        let id = MemberId::new(reader.unsigned("member")?);
        ascending(reader, "member", group.members.last_key_value().map(|(last, _)| last), &id)?;
        if id.get() == 0 || id >= next_member {
            return Err(reader.invalid("member", id));
        }
        let member = Member {
            name: reader.text("member name", NAME_BYTES_MAX)?,
            instance: Bytes::copy_from_slice(reader.bytes("instance", limits::MEMBER_INSTANCE_BYTES_MAX)?),
            topics: names(reader)?,
            session_timeout_ms: reader.unsigned("session timeout")?,
            joins: reader.unsigned("joins")?,
        };
        group.insert_member(id, member);
    }
    for _ in 0..reader.count("partitions", 21)? {
        let key = key(reader)?;
        ascending(reader, "partition", group.partitions.last_key_value().map(|(last, _)| last), &key)?;
        let position = read_position(reader, &group)?;
        group.bytes += position.bytes();
        group.partitions.insert(key, position);
    }
    group.generation = generation;
    Ok(group)
}

fn read_position(reader: &mut Reader<'_>, group: &Group) -> Result<Position, DecodeError> {
    let mut position = Position {
        holder: read_member(reader, group, "holder")?,
        claim: ClaimId::new(reader.unsigned("claim")?),
        target: read_member(reader, group, "target")?,
        ..Position::default()
    };
    if reader.flag("committed")? {
        position.committed = Some(committed(reader)?);
        position.committed_claim = ClaimId::new(reader.unsigned("committed claim")?);
    }
    let newest = position.claim.max(position.committed_claim);
    if newest > group.last_claim || (position.holder.is_some() && position.claim.get() == 0) {
        return Err(reader.invalid("claim", newest));
    }
    Ok(position)
}

fn read_member(reader: &mut Reader<'_>, group: &Group, field: &'static str) -> Result<Option<MemberId>, DecodeError> {
    match MemberId::new(reader.unsigned(field)?) {
        none if none.get() == 0 => Ok(None),
        member if group.members.contains_key(&member) => Ok(Some(member)),
        stranger => Err(reader.invalid(field, stranger)),
    }
}

/// Keys are written in their order, each once.
fn ascending<K: Ord>(reader: &Reader<'_>, field: &'static str, last: Option<&K>, next: &K) -> Result<(), DecodeError> {
    match last.is_none_or(|last| last < next) {
        true => Ok(()),
        false => Err(reader.invalid(field, "out of order")),
    }
}
