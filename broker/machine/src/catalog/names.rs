//! Finding topics by names that people typed.

use busbar_proto::{PartitionId, Reason, Refusal};

use super::{Catalog, Partition, Topic, TopicKind, refusal};

impl Catalog {
    /// The name of the topic that was probably meant: at most a third of the characters differ.
    pub fn closest_topic_name(&self, name: &str) -> Option<&str> {
        let differences_max = (name.chars().count() / 3).max(1);
        let names = self.topics().filter(|topic| topic.kind == TopicKind::Records).map(|topic| topic.name.as_str());
        let near = names.filter(|known| {
            // Cheap to see: the difference in length alone is too much.
            known.len().abs_diff(name.len()) <= differences_max * 4
        });
        near.map(|known| (strsim::osa_distance(&known.to_lowercase(), &name.to_lowercase()), known))
            .filter(|&(differences, _)| differences <= differences_max)
            .min()
            .map(|(_, known)| known)
    }

    /// The refusal of a request for a topic that is not there.
    pub fn unknown_topic(&self, name: &str) -> Refusal {
        let shown: String = name.chars().take(busbar_proto::limits::TOPIC_NAME_BYTES_MAX).collect();
        let advice = match self.closest_topic_name(&shown) {
            Some(closest) => format!("did you mean '{closest}'?"),
            None => "list the topics, or create it".to_owned(),
        };
        refusal(Reason::UnknownTopic, format!("there is no topic '{shown}': {advice}"))
    }

    /// The refusal of a request for a partition that the topic does not have.
    pub fn unknown_partition(topic: &Topic, partition: PartitionId) -> Refusal {
        let last = topic.partitions.len().saturating_sub(1);
        let message = format!("topic '{}' has no partition {partition}: its partitions are 0 to {last}", topic.name);
        refusal(Reason::UnknownPartition, message)
    }

    /// The topic of that name, or the refusal that helps to find it.
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`].
    pub fn require_topic(&self, name: &str) -> Result<&Topic, Refusal> {
        self.topic_by_name(name).ok_or_else(|| self.unknown_topic(name))
    }

    /// The same for a topic that holds records: the cluster's own are none that a client may use.
    ///
    /// # Errors
    /// [`Reason::UnknownTopic`].
    pub fn require_records_topic(&self, name: &str) -> Result<&Topic, Refusal> {
        let found = self.topic_by_name(name).filter(|topic| topic.kind == TopicKind::Records);
        found.ok_or_else(|| self.unknown_topic(name))
    }

    /// `topic/partition`, for messages.
    pub fn partition_name(&self, partition: &Partition) -> String {
        match self.topics.get(&partition.topic) {
            Some(topic) => format!("{}/{}", topic.name, partition.partition),
            None => format!("{}/{}", partition.topic, partition.partition),
        }
    }
}
