//! What the shard knows of topics: names and partition counts, as its leader saw them in the catalog. A view of an older
//! catalog is refused, so that a new leader that lags behind can't make a topic vanish and its offsets with it.

use busbar_proto::{GroupName, Reason, Refusal, TopicId, TopicName};

use super::{GroupShard, Outcome, command::SeenTopics, refusal};

/// A topic as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: TopicName,
    /// How many partitions it has.
    pub partitions: u32,
}

/// What a topic takes besides its name.
const TOPIC_BYTES: usize = 32;

impl Topic {
    pub(super) fn bytes(&self) -> usize {
        TOPIC_BYTES + self.name.as_str().len()
    }
}

impl GroupShard {
    pub(super) fn see_topics(&mut self, seen: &SeenTopics) -> Result<Outcome, Refusal> {
        self.check_view(seen)?;
        self.take_view(seen);
        self.forget_unused_topics();
        Ok(Outcome::TopicsSeen)
    }

    pub(super) fn check_view(&self, seen: &SeenTopics) -> Result<(), Refusal> {
        if seen.catalog_version >= self.catalog_version {
            return Ok(());
        }
        let message = format!(
            "the shard's topics are of catalog {}, and this view is of {}: the leader's catalog lags behind",
            self.catalog_version, seen.catalog_version
        );
        Err(refusal(Reason::NoLeader, message))
    }

    /// Takes over a view that was checked, and balances the groups that it matters to.
    pub(super) fn take_view(&mut self, seen: &SeenTopics) {
        self.catalog_version = seen.catalog_version;
        let mut touched: Vec<(TopicId, TopicName)> = Vec::new();
        // Whoever has a name now is its only topic: an older one was deleted.
        let namesakes: Vec<TopicId> = seen
            .known
            .iter()
            .flat_map(|new| self.topics.iter().filter(|(id, old)| old.name == new.name && **id != new.id))
            .map(|(id, _)| *id)
            .collect();
        for id in seen.gone.iter().chain(&namesakes) {
            if let Some(topic) = self.topics.remove(id) {
                self.bytes -= topic.bytes();
                let groups: Vec<GroupName> = self.groups.keys().cloned().collect();
                for group in &groups {
                    self.change(group, |group, _| group.forget_topic(*id));
                }
                touched.push((*id, topic.name));
            }
        }
        for new in &seen.known {
            let topic = Topic { name: new.name.clone(), partitions: new.partitions };
            if self.topics.get(&new.id) != Some(&topic) {
                self.bytes += topic.bytes();
                touched.push((new.id, topic.name.clone()));
                if let Some(before) = self.topics.insert(new.id, topic) {
                    self.bytes -= before.bytes();
                }
            }
        }
        if touched.is_empty() {
            return;
        }
        let matters =
            self.groups.iter().filter(|(_, group)| touched.iter().any(|(id, name)| group.refers_to(*id, name)));
        let groups: Vec<GroupName> = matters.map(|(name, _)| name.clone()).collect();
        for group in &groups {
            self.rebalance(group);
        }
    }

    fn forget_unused_topics(&mut self) {
        let unused = self
            .topics
            .iter()
            .filter(|(id, topic)| !self.groups.values().any(|group| group.refers_to(**id, &topic.name)));
        let unused: Vec<TopicId> = unused.map(|(id, _)| *id).collect();
        for id in unused {
            if let Some(topic) = self.topics.remove(&id) {
                self.bytes -= topic.bytes();
            }
        }
    }
}
