//! Checkpoints: the state of a group's machine as of one log position, kept in the state store. They bound what a
//! restart replays, and the one at the log start is what a new or lagging replica gets instead of trimmed entries.
//!
//! Key: `"cp" group(8, big-endian) index(8, big-endian)`. Value: `crc32(4) version(1) installed(1)` and a
//! `peer.Checkpoint` message.
//!
//! Invariant: a row that this replica made itself is written only after the log is durable up to its index, so only
//! an *installed* row may lie beyond the log's end. That rule is what `load` checks (openraft would otherwise
//! "clean the hole" by purging every retained message of the replica).

use std::ops::RangeInclusive;

use busbar_proto::{GroupId, peer as wire};
use bytes::Bytes;
use prost::Message as _;

use super::{
    convert::{self, Malformed},
    types::{LogId, StoredMembership},
};
use crate::env::{StateError, StateStore};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 6;

/// A machine's state as of `at`, with the membership in force there.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) at: LogId,
    pub(crate) membership: StoredMembership,
    pub(crate) state: Bytes,
    /// Whether it came from the leader instead of from applying the log here.
    pub(crate) installed: bool,
}

impl Checkpoint {
    pub(crate) fn to_wire(&self) -> wire::Checkpoint {
        wire::Checkpoint {
            vote: None,
            last: Some(convert::id_to_wire(&self.at)),
            membership_at: self.membership.log_id().as_ref().map(convert::id_to_wire),
            membership: Some(convert::membership_to_wire(self.membership.membership())),
            data: self.state.clone(),
        }
    }

    pub(crate) fn from_wire(message: wire::Checkpoint, installed: bool) -> Result<Self, Malformed> {
        let at = message.last.map(convert::id_from_wire).ok_or(Malformed("checkpoint without a position"))?;
        let membership = message.membership.unwrap_or_default();
        let membership_at = message.membership_at.map(convert::id_from_wire);
        let membership = convert::stored_membership_from_wire(membership_at, &membership)?;
        Ok(Self { at, membership, state: message.data, installed })
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4] = VERSION;
        bytes[5] = u8::from(self.installed);
        bytes.extend_from_slice(&self.to_wire().encode_to_vec());
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (header, message) = bytes.split_at_checked(HEADER_BYTES).ok_or(Malformed("checkpoint header"))?;
        let crc = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        if crc != crc32fast::hash(&bytes[4..]) {
            return Err(Malformed("checkpoint checksum"));
        }
        if header[4] != VERSION {
            return Err(Malformed("checkpoint version"));
        }
        let message = wire::Checkpoint::decode(message).map_err(|_| Malformed("checkpoint message"))?;
        Self::from_wire(message, header[5] == 1)
    }
}

fn key(group: GroupId, index: u64) -> Vec<u8> {
    let mut key = b"cp".to_vec();
    key.extend_from_slice(&group.get().to_be_bytes());
    key.extend_from_slice(&index.to_be_bytes());
    key
}

fn all(group: GroupId) -> RangeInclusive<Vec<u8>> {
    key(group, 0)..=key(group, u64::MAX)
}

/// Stores and syncs a checkpoint.
pub(crate) fn save(store: &dyn StateStore, group: GroupId, checkpoint: &Checkpoint) -> Result<(), StateError> {
    store.put(&key(group, checkpoint.at.index()), &checkpoint.encode())
}

/// Every usable checkpoint of a group, oldest first, given the last index that its log holds durably. A row that
/// fails its checksum is skipped with a warning: an older one or the log itself stands in for it.
pub(crate) fn load(
    store: &dyn StateStore,
    group: GroupId,
    durable_end: Option<u64>,
) -> Result<Vec<Checkpoint>, StateError> {
    let mut usable = Vec::new();
    for (_, value) in store.scan(all(group))? {
        match Checkpoint::decode(&value) {
            Ok(row) if row.installed || Some(row.at.index()) <= durable_end => usable.push(row),
            Ok(row) => {
                tracing::warn!(%group, at = %row.at, ?durable_end, "ignoring a checkpoint beyond the durable log")
            }
            Err(error) => tracing::warn!(%group, %error, "ignoring a damaged checkpoint"),
        }
    }
    Ok(usable)
}

/// Deletes the checkpoints below `index`.
pub(crate) fn forget_below(store: &dyn StateStore, group: GroupId, index: u64) -> Result<(), StateError> {
    match index.checked_sub(1) {
        Some(last) => store.delete_range(key(group, 0)..=key(group, last)),
        None => Ok(()),
    }
}

/// Deletes the checkpoint at `index`.
pub(crate) fn forget(store: &dyn StateStore, group: GroupId, index: u64) -> Result<(), StateError> {
    store.delete_range(key(group, index)..=key(group, index))
}

/// Deletes every checkpoint of a group.
pub(crate) fn forget_all(store: &dyn StateStore, group: GroupId) -> Result<(), StateError> {
    store.delete_range(all(group))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::state::MemoryState;

    fn row(index: u64, installed: bool) -> Checkpoint {
        let at = convert::log_id(1, index);
        Checkpoint { at, membership: StoredMembership::default(), state: Bytes::from_static(b"state"), installed }
    }

    /// OPENRAFT.md hazard 4.1: a checkpoint past the durable log must not be loaded unless it was installed.
    #[test]
    fn only_installed_rows_may_lie_beyond_the_durable_log() {
        let store = MemoryState::default();
        let group = GroupId::new(7);
        for (index, installed) in [(10, false), (20, false), (30, false)] {
            save(&store, group, &row(index, installed)).unwrap();
        }
        save(&store, GroupId::new(8), &row(5, false)).unwrap();
        let indexes = |end| load(&store, group, end).unwrap().iter().map(|row| row.at.index()).collect::<Vec<_>>();
        assert_eq!(indexes(Some(25)), [10, 20]);
        assert_eq!(indexes(None), [0; 0]);
        save(&store, group, &row(40, true)).unwrap();
        assert_eq!(indexes(Some(25)), [10, 20, 40]);
        forget_below(&store, group, 40).unwrap();
        assert_eq!(indexes(Some(25)), [40]);
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let encoded = row(3, false).encode();
        assert!(Checkpoint::decode(&encoded).is_ok());
        for position in 0..encoded.len() {
            let mut damaged = encoded.clone();
            damaged[position] ^= 1;
            assert!(Checkpoint::decode(&damaged).is_err(), "byte {position}");
        }
    }
}
