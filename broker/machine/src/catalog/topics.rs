//! Creating and deleting topics.

use std::collections::BTreeSet;

use busbar_proto::{GroupId, NodeId, PartitionId, Reason, Refusal, TopicId, TopicName, limits};

use super::{
    Catalog, GROUPS_TOPIC, Outcome, PARTITIONS_MAX, Partition, RESERVED_PREFIX, Topic, TopicConfig, TopicKind,
    placement::Load, refusal,
};

/// Replicas of a topic that does not say how many, where there are nodes enough.
const REPLICAS_DEFAULT: usize = 3;

/// What a topic is to be.
pub(super) struct NewTopic {
    pub(super) id: TopicId,
    pub(super) partitions: u32,
    pub(super) config: TopicConfig,
    /// Replicas that a node may have, on average; `None` = any number.
    pub(super) node_replicas_max: Option<u32>,
}

impl Catalog {
    pub(super) fn create_topic(
        &mut self,
        name: &str,
        wanted: NewTopic,
        unreachable: &[NodeId],
    ) -> Result<Outcome, Refusal> {
        let NewTopic { id, partitions, config, node_replicas_max } = wanted;
        let name: TopicName =
            name.parse().map_err(|error| refusal(Reason::InvalidName, format!("topic name refused: {error}")))?;
        check_free_for_users(&name)?;
        if let Some(&known) = self.topic_ids.get(&name) {
            return match known == id {
                true => Ok(Outcome::TopicCreated { id }),
                false => Err(refusal(Reason::TopicExists, format!("topic '{name}' exists: choose another name"))),
            };
        }
        self.check_room(&name, id, partitions)?;
        config.validate()?;
        let eligible = self.eligible_nodes(unreachable);
        let replicas = self.replicas_of(&name, &config, &eligible, unreachable)?;
        if let Some(max) = node_replicas_max {
            self.check_load(&name, partitions as usize * replicas, &eligible, max)?;
        }
        self.place_topic(
            Topic {
                id,
                name,
                kind: TopicKind::Records,
                config: TopicConfig { replicas: replicas.try_into().unwrap_or(limits::REPLICAS_MAX), ..config },
                partitions: Vec::new(),
            },
            partitions,
            replicas,
            eligible,
        );
        self.version += 1;
        Ok(Outcome::TopicCreated { id })
    }

    /// Repeating it changes nothing: the shards that are there stay as they are.
    pub(super) fn create_group_shards(
        &mut self,
        id: TopicId,
        shards: u32,
        unreachable: &[NodeId],
    ) -> Result<Outcome, Refusal> {
        if let Some(known) = self.groups_topic() {
            return Ok(Outcome::TopicCreated { id: known.id });
        }
        let name: TopicName = GROUPS_TOPIC
            .parse()
            .map_err(|error| refusal(Reason::InvalidName, format!("topic name refused: {error}")))?;
        if self.topic_ids.contains_key(&name) {
            let message = format!("topic '{name}' was made by a user, and the cluster needs the name: delete it");
            return Err(refusal(Reason::TopicExists, message));
        }
        self.check_room(&name, id, shards)?;
        // The shards live as long as the cluster: a node that is down for a moment is better than a replica less.
        let mut eligible = self.eligible_nodes(unreachable);
        if eligible.len() < REPLICAS_DEFAULT {
            eligible = self.eligible_nodes(&[]);
        }
        let replicas = self.replicas_of(&name, &TopicConfig::default(), &eligible, &[])?;
        let config =
            TopicConfig { replicas: replicas.try_into().unwrap_or(limits::REPLICAS_MAX), ..Default::default() };
        let topic = Topic { id, name, kind: TopicKind::Groups, config, partitions: Vec::new() };
        self.place_topic(topic, shards, replicas, eligible);
        self.version += 1;
        Ok(Outcome::TopicCreated { id })
    }

    pub(super) fn delete_topic(&mut self, name: &str) -> Result<Outcome, Refusal> {
        let topic = self.require_topic(name)?;
        if topic.kind != TopicKind::Records {
            let message = format!("topic '{name}' is the cluster's own: it holds the consumer groups, and stays");
            return Err(refusal(Reason::InvalidName, message));
        }
        let id = topic.id;
        if let Some(topic) = self.topics.remove(&id) {
            self.topic_ids.remove(&topic.name);
            for group in &topic.partitions {
                self.partitions.remove(group);
            }
        }
        self.version += 1;
        Ok(Outcome::TopicDeleted { id })
    }

    fn check_room(&self, name: &TopicName, id: TopicId, partitions: u32) -> Result<(), Refusal> {
        if let Some(other) = self.topics.get(&id) {
            let message = format!("the id drawn for '{name}' is that of '{}': try again", other.name);
            return Err(refusal(Reason::InvalidArgument, message));
        }
        if !(1..=limits::PARTITIONS_PER_TOPIC_MAX).contains(&partitions) {
            let most = limits::PARTITIONS_PER_TOPIC_MAX;
            let message = format!("topic '{name}' can't have {partitions} partitions: it may have 1 to {most}");
            return Err(refusal(Reason::InvalidArgument, message));
        }
        if self.topics.len() >= limits::TOPICS_MAX {
            let message = format!("there are {} topics, as many as may be: delete one first", self.topics.len());
            return Err(refusal(Reason::LimitReached, message));
        }
        let left = PARTITIONS_MAX.saturating_sub(self.partitions.len());
        if partitions as usize > left {
            let message = format!(
                "topic '{name}' needs {partitions} partitions, but only {left} of the cluster's {PARTITIONS_MAX} are \
                 left: delete topics, or use fewer"
            );
            return Err(refusal(Reason::LimitReached, message));
        }
        Ok(())
    }

    /// Each replica takes memory on its node: there are so many places, on average.
    fn check_load(&self, name: &TopicName, more: usize, eligible: &BTreeSet<NodeId>, max: u32) -> Result<(), Refusal> {
        let places = u64::from(max) * eligible.len() as u64;
        let taken = Load::new(eligible.clone(), self.partitions.values()).replicas();
        if taken + more as u64 <= places {
            return Ok(());
        }
        let message = format!(
            "topic '{name}' needs {more} replicas, but the nodes have {taken} of {places} already \
             (limits.replicas_max is {max} a node): delete topics, use fewer partitions, or add nodes"
        );
        Err(refusal(Reason::LimitReached, message))
    }

    fn replicas_of(
        &self,
        name: &TopicName,
        config: &TopicConfig,
        eligible: &BTreeSet<NodeId>,
        unreachable: &[NodeId],
    ) -> Result<usize, Refusal> {
        let wanted = match config.replicas as usize {
            0 => REPLICAS_DEFAULT.min(eligible.len()).max(1),
            wanted => wanted,
        };
        if wanted <= eligible.len() {
            return Ok(wanted);
        }
        let message = format!(
            "topic '{name}' needs {wanted} nodes for its replicas, but there are {}: add nodes, or use fewer replicas",
            self.describe_eligible(eligible, unreachable)
        );
        Err(refusal(Reason::FailedPrecondition, message))
    }

    fn place_topic(&mut self, mut topic: Topic, partitions: u32, replicas: usize, eligible: BTreeSet<NodeId>) {
        let mut load = Load::new(eligible, self.partitions.values());
        for number in 0..partitions {
            let group = self.next_group_id;
            self.next_group_id = GroupId::new(group.get() + 1);
            let replicas = load.place(replicas);
            let (topic_id, partition) = (topic.id, PartitionId::new(number));
            let placed = Partition { group, topic: topic_id, partition, replicas, moving_to: None, move_id: 0 };
            let before = self.partitions.insert(group, placed);
            assert!(before.is_none(), "group {group} was handed out before");
            topic.partitions.push(group);
        }
        self.topic_ids.insert(topic.name.clone(), topic.id);
        self.topics.insert(topic.id, topic);
    }
}

fn check_free_for_users(name: &TopicName) -> Result<(), Refusal> {
    match name.as_str().starts_with(RESERVED_PREFIX) {
        false => Ok(()),
        true => {
            let message =
                format!("topic name '{name}' refused: names that begin with {RESERVED_PREFIX} are the cluster's own");
            Err(refusal(Reason::InvalidName, message))
        }
    }
}
