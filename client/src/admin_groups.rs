//! Administration of consumer groups, and where a partition's offsets are. As [`Admin`]'s other changes: one whose
//! connection broke is not repeated here.

use std::time::Duration;

use busbar_proto::{NodeId, PartitionId, v1};
use bytes::Bytes;

use crate::{
    admin::Admin,
    cluster::{Call, Repeat},
    error::ClientError,
    pool,
    topic::TopicView,
};

const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

impl Admin {
    /// Every group, with the shards that did not answer.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn list_groups(&self) -> Result<v1::ListGroupsResponse, ClientError> {
        let call = Call { what: "list groups", repeat: Repeat::Safe, timeout: self.cluster.request_timeout };
        let ask = |channel| async { pool::groups(channel).list_groups(v1::ListGroupsRequest::default()).await };
        let mut listed = self.cluster.call(call, ask).await?;
        listed.groups.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(listed)
    }

    /// A group's members, who reads what, and how far it is.
    ///
    /// # Errors
    /// No such group.
    pub async fn describe_group(&self, group: impl Into<String>) -> Result<v1::DescribeGroupResponse, ClientError> {
        let request = v1::DescribeGroupRequest { group: group.into(), direct: false };
        let call = Call { what: "describe the group", repeat: Repeat::Safe, timeout: self.cluster.request_timeout };
        let ask = |channel| {
            let request = request.clone();
            async move { pool::groups(channel).describe_group(request).await }
        };
        let mut described = self.cluster.call(call, ask).await?;
        described.partitions.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        Ok(described)
    }

    /// Sets where a group goes on, partition by partition.
    ///
    /// # Errors
    /// No such group; it has members, and it was not forced.
    pub async fn reset_group(
        &self,
        group: impl Into<String>,
        entries: Vec<v1::reset_group_request::Entry>,
        force: bool,
    ) -> Result<(), ClientError> {
        let request = v1::ResetGroupRequest { group: group.into(), entries, force, direct: false };
        let call = Call { what: "reset the group", repeat: Repeat::Unsent, timeout: CHANGE_TIMEOUT };
        let ask = |channel| {
            let request = request.clone();
            async move { pool::groups(channel).reset_group(request).await }
        };
        self.cluster.call(call, ask).await.map(drop)
    }

    /// Forgets a group and its offsets.
    ///
    /// # Errors
    /// No such group; it has members.
    pub async fn delete_group(&self, group: impl Into<String>) -> Result<(), ClientError> {
        let request = v1::DeleteGroupRequest { group: group.into(), direct: false };
        let call = Call { what: "delete the group", repeat: Repeat::Unsent, timeout: CHANGE_TIMEOUT };
        let ask = |channel| {
            let request = request.clone();
            async move { pool::groups(channel).delete_group(request).await }
        };
        self.cluster.call(call, ask).await.map(drop)
    }

    /// The bounds of a topic's partitions, by number, from their leaders; with a time (milliseconds since the Unix
    /// epoch) also the first offset at or after it, absent where everything is older.
    ///
    /// # Errors
    /// No such topic; a partition without a leader.
    pub async fn offsets(
        &self,
        topic: impl Into<String>,
        at_time_ms: Option<i64>,
    ) -> Result<Vec<v1::OffsetsResponse>, ClientError> {
        let topic = topic.into();
        let known = self.list_topics().await?.into_iter().find(|known| known.name == topic);
        let view = known.as_ref().and_then(TopicView::new);
        let (Some(known), Some(view)) = (known, view) else {
            // The broker's answer names the closest topic there is.
            self.describe_topic(topic.as_str()).await?;
            return Err(ClientError::Protocol(format!("topic {topic} was told without its partitions")));
        };
        let mut offsets = Vec::new();
        for partition in 0..view.partitions() {
            offsets.push(self.offsets_of(&known.id, &view, PartitionId::new(partition), at_time_ms).await?);
        }
        Ok(offsets)
    }

    async fn offsets_of(
        &self,
        topic_id: &Bytes,
        view: &TopicView,
        partition: PartitionId,
        at_time_ms: Option<i64>,
    ) -> Result<v1::OffsetsResponse, ClientError> {
        let leader = view.leader(partition).and_then(|leader: NodeId| self.cluster.address_of(leader));
        let nobody =
            || ClientError::Protocol(format!("partition {partition} has no leader now; try again in a moment"));
        let request = v1::OffsetsRequest { topic_id: topic_id.clone(), partition: partition.get(), at_time_ms };
        let call = Call { what: "look up offsets", repeat: Repeat::Safe, timeout: self.cluster.request_timeout };
        let ask = |channel| {
            let request = request.clone();
            async move { pool::broker(channel).offsets(request).await }
        };
        self.cluster.call_at(call, &leader.ok_or_else(nobody)?, ask).await
    }
}
