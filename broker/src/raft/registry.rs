//! The groups that this node takes part in, by id: where the peer server finds whom a frame is for, and whoever watches
//! over all of them finds them all.

use std::{collections::BTreeMap, sync::Arc};

use busbar_proto::GroupId;
use parking_lot::RwLock;

use super::pulse::Pulse;

/// All groups on this node.
#[derive(Default)]
pub struct Registry(RwLock<BTreeMap<GroupId, Arc<Pulse>>>);

impl Registry {
    pub(crate) fn insert(&self, group: GroupId, pulse: Arc<Pulse>) {
        self.0.write().insert(group, pulse);
    }

    pub(crate) fn remove(&self, group: GroupId) {
        self.0.write().remove(&group);
    }

    pub(crate) fn pulse(&self, group: GroupId) -> Option<Arc<Pulse>> {
        self.0.read().get(&group).cloned()
    }

    /// All of them, as of now.
    pub(crate) fn all(&self) -> Vec<(GroupId, Arc<Pulse>)> {
        self.0.read().iter().map(|(group, pulse)| (*group, pulse.clone())).collect()
    }

    /// How many sleep, of how many.
    pub fn asleep(&self) -> (usize, usize) {
        let groups = self.0.read();
        (groups.values().filter(|pulse| pulse.is_asleep()).count(), groups.len())
    }
}
