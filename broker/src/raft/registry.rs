//! The groups that this node takes part in, by id: where the peer server finds whom a frame is for.

use std::collections::BTreeMap;

use busbar_proto::GroupId;
use parking_lot::RwLock;

use super::group::RaftHandle;

/// All groups on this node.
#[derive(Default)]
pub struct Registry(RwLock<BTreeMap<GroupId, RaftHandle>>);

impl Registry {
    pub(crate) fn insert(&self, group: GroupId, raft: RaftHandle) {
        self.0.write().insert(group, raft);
    }

    pub(crate) fn remove(&self, group: GroupId) {
        self.0.write().remove(&group);
    }

    pub(crate) fn raft(&self, group: GroupId) -> Option<RaftHandle> {
        self.0.read().get(&group).cloned()
    }
}
