//! Translations at the edges: openraft's types to and from the log engine's entries and the peers' messages.
//! Whatever comes from disk or network is checked here; nothing beyond this file sees an unchecked value.

use std::collections::{BTreeMap, BTreeSet};

use busbar_proto::peer as wire;
use busbar_storage as log;
use bytes::Bytes;
use openraft::{EntryPayload, entry::RaftEntry as _, impls::EmptyNode, vote::RaftLeaderId as _};
use prost::Message as _;

use super::types::{LogId, Proposal, RaftEntry, RaftMembership, RaftVote, StoredMembership};

/// Bytes that are not what they should be; the text names the part.
#[derive(Debug, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

const KIND_BLANK: u8 = 0;
const KIND_NORMAL: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// Whether a stored entry carries application data.
pub(crate) fn is_normal(kind: u8) -> bool {
    kind == KIND_NORMAL
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

pub(crate) fn position(id: &LogId) -> log::Position {
    log::Position { term: id.committed_leader_id().term, index: id.index() }
}

pub(crate) fn from_position(at: log::Position) -> LogId {
    log_id(at.term, at.index)
}

pub(crate) fn vote_to_log(vote: &RaftVote) -> log::Vote {
    log::Vote { term: vote.leader_id().term(), node: *vote.leader_id().node_id(), committed: vote.is_committed() }
}

pub(crate) fn vote_from_log(vote: log::Vote) -> RaftVote {
    vote_from_parts(vote.term, vote.node, vote.committed)
}

fn vote_from_parts(term: u64, node: u64, committed: bool) -> RaftVote {
    if committed { RaftVote::new_committed(term, node) } else { RaftVote::new(term, node) }
}

/// An entry as the log engine stores it. `mark_floor` is the mark of the entry before: entries without records
/// inherit it, so that marks never fall.
pub(crate) fn entry_to_log(entry: RaftEntry, mark_floor: u64, now_ms: i64) -> log::Entry {
    let at = position(&entry.log_id());
    let (kind, mark, time_ms, head_len, payload) = match entry.payload {
        EntryPayload::Blank => (KIND_BLANK, mark_floor, now_ms, 0, Bytes::new()),
        EntryPayload::Normal(proposal) => {
            (KIND_NORMAL, proposal.mark.max(mark_floor), proposal.time_ms, proposal.head_len, proposal.payload)
        }
        EntryPayload::Membership(membership) => {
            let payload = Bytes::from(membership_to_wire(&membership).encode_to_vec());
            (KIND_MEMBERSHIP, mark_floor, now_ms, u32::try_from(payload.len()).unwrap_or(u32::MAX), payload)
        }
    };
    log::Entry { term: at.term, index: at.index, kind, mark, time_ms, head_len, payload }
}

pub(crate) fn entry_from_log(entry: log::Entry) -> Result<RaftEntry, Malformed> {
    let id = log_id(entry.term, entry.index);
    let payload = match entry.kind {
        KIND_BLANK => EntryPayload::Blank,
        KIND_NORMAL => EntryPayload::Normal(Proposal {
            mark: entry.mark,
            time_ms: entry.time_ms,
            head_len: entry.head_len,
            payload: entry.payload,
        }),
        KIND_MEMBERSHIP => {
            let decoded = wire::Membership::decode(entry.payload).map_err(|_| Malformed("membership entry"))?;
            EntryPayload::Membership(membership_from_wire(&decoded)?)
        }
        _ => return Err(Malformed("entry kind")),
    };
    Ok(RaftEntry::new(id, payload))
}

pub(crate) fn entry_to_wire(entry: RaftEntry) -> wire::Entry {
    let stored = entry_to_log(entry, 0, 0);
    wire::Entry {
        term: stored.term,
        index: stored.index,
        kind: u32::from(stored.kind),
        mark: stored.mark,
        time_ms: stored.time_ms,
        head_bytes: stored.head_len,
        payload: stored.payload,
    }
}

pub(crate) fn entry_from_wire(entry: wire::Entry) -> Result<RaftEntry, Malformed> {
    if entry.head_bytes as usize > entry.payload.len() {
        return Err(Malformed("entry head length"));
    }
    entry_from_log(log::Entry {
        term: entry.term,
        index: entry.index,
        kind: u8::try_from(entry.kind).map_err(|_| Malformed("entry kind"))?,
        mark: entry.mark,
        time_ms: entry.time_ms,
        head_len: entry.head_bytes,
        payload: entry.payload,
    })
}

pub(crate) fn membership_to_wire(membership: &RaftMembership) -> wire::Membership {
    wire::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| wire::membership::Config { voters: voters.iter().copied().collect() })
            .collect(),
        learners: membership.learner_ids().collect(),
    }
}

pub(crate) fn membership_from_wire(membership: &wire::Membership) -> Result<RaftMembership, Malformed> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.iter().map(|config| config.voters.iter().copied().collect()).collect();
    let nodes: BTreeMap<u64, EmptyNode> =
        configs.iter().flatten().chain(&membership.learners).map(|&id| (id, EmptyNode {})).collect();
    // The state before any membership is known has no configuration at all; openraft's constructor would refuse it.
    if configs.iter().all(BTreeSet::is_empty) {
        return Ok(RaftMembership::new_with_defaults(configs, nodes.into_keys()));
    }
    RaftMembership::new(configs, nodes).map_err(|_| Malformed("membership"))
}

pub(crate) fn stored_membership_from_wire(
    at: Option<LogId>,
    membership: &wire::Membership,
) -> Result<StoredMembership, Malformed> {
    Ok(StoredMembership::new(at, membership_from_wire(membership)?))
}

pub(crate) fn id_to_wire(id: &LogId) -> wire::LogId {
    wire::LogId { term: id.committed_leader_id().term, index: id.index() }
}

pub(crate) fn id_from_wire(id: wire::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(crate) fn vote_to_wire(vote: &RaftVote) -> wire::RaftVote {
    let stored = vote_to_log(vote);
    wire::RaftVote { term: stored.term, node: stored.node, committed: stored.committed }
}

pub(crate) fn vote_from_wire(vote: Option<wire::RaftVote>) -> Result<RaftVote, Malformed> {
    let vote = vote.ok_or(Malformed("message without a vote"))?;
    Ok(vote_from_parts(vote.term, vote.node, vote.committed))
}
