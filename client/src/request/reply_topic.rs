//! The topic that replies come to: found, or made when it is the default one and missing.

use std::{sync::Arc, time::Duration};

use busbar_proto::{Reason, v1};

use crate::{
    admin::{Admin, Durability, TopicOptions},
    cluster::{Call, Cluster, Repeat},
    error::ClientError,
    pool,
    retry::{Backoff, BackoffPolicy},
    watch::TopicWatch,
};

/// What is appended to the request topic's name.
const SUFFIX: &str = ".replies";
/// Partitions of a topic made here. Requesters spread over them; each reads one.
const PARTITIONS_MAX: u32 = 8;
/// How long a topic made here keeps replies: nobody reads one twice.
const RETENTION: Duration = Duration::from_secs(3600);

/// The default name.
pub(super) fn name_for(topic: &str) -> String {
    format!("{topic}{SUFFIX}")
}

/// Finds the topic or makes it; returns the number of its partitions.
pub(super) async fn find_or_make(
    cluster: &Arc<Cluster>,
    name: &str,
    request_topic: &str,
    options: Option<TopicOptions>,
) -> Result<u32, ClientError> {
    match partitions(cluster, name).await {
        Err(error) if error.reason() == Some(Reason::UnknownTopic) => {}
        found => return found,
    }
    let options = match options {
        Some(options) => options,
        None => like(&described(cluster, request_topic).await?),
    };
    match Admin::new(cluster.clone()).create_topic(name, options).await {
        // Another requester was faster.
        Err(error) if error.reason() != Some(Reason::TopicExists) => return Err(error),
        _ => {}
    }
    // Nodes hear of it one after the other.
    let deadline = cluster.env.now() + cluster.request_timeout;
    let mut backoff = Backoff::new(BackoffPolicy::default());
    loop {
        match partitions(cluster, name).await {
            Err(error) if error.reason() == Some(Reason::UnknownTopic) && cluster.env.now() < deadline => {
                tokio::time::sleep(backoff.failed(cluster.env.random(), None)).await;
            }
            found => return found,
        }
    }
}

/// How many partitions a topic has.
///
/// # Errors
/// No such topic; nobody answers.
pub(super) async fn partitions(cluster: &Arc<Cluster>, name: &str) -> Result<u32, ClientError> {
    let topic = TopicWatch::open(cluster, name).await?;
    let partitions = topic.view().partitions();
    Ok(partitions)
}

/// As many replicas as the requests have; in memory of a majority is enough for what is of use for seconds.
fn like(topic: &v1::Topic) -> TopicOptions {
    let partitions = u32::try_from(topic.partitions.len()).unwrap_or(PARTITIONS_MAX);
    let replicas = topic.partitions.iter().map(|partition| partition.replicas.len()).max().unwrap_or(1);
    TopicOptions {
        partitions: partitions.clamp(1, PARTITIONS_MAX),
        replicas: u32::try_from(replicas).unwrap_or(1).max(1),
        durability: Durability::Replicated,
        retention_ms: u64::try_from(RETENTION.as_millis()).ok(),
        max_batch_bytes: topic.config.as_ref().map(|config| config.max_batch_bytes).filter(|&bytes| bytes > 0),
        ..TopicOptions::default()
    }
}

async fn described(cluster: &Arc<Cluster>, name: &str) -> Result<v1::Topic, ClientError> {
    let call = Call { what: "read the topic's metadata", repeat: Repeat::Safe, timeout: cluster.request_timeout };
    let request = || v1::MetadataRequest { topics: vec![name.to_owned()] };
    let ask = |channel| async move { pool::broker(channel).metadata(request()).await };
    let answer = cluster.call(call, ask).await?;
    let missing = || ClientError::Protocol(format!("the metadata of topic {name:?} lacks it"));
    answer.topics.into_iter().find(|topic| topic.name == name).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_topic_is_like_its_requests_but_short_lived() {
        let partition = |replicas: usize| v1::Partition { replicas: vec![1; replicas], ..Default::default() };
        let config = v1::TopicConfig { max_batch_bytes: 1 << 22, ..Default::default() };
        let topic =
            |partitions: Vec<v1::Partition>| v1::Topic { partitions, config: Some(config), ..Default::default() };
        let made = like(&topic(vec![partition(3); 40]));
        assert_eq!((made.partitions, made.replicas, made.max_batch_bytes), (8, 3, Some(1 << 22)));
        assert_eq!((made.durability, made.retention_ms), (Durability::Replicated, Some(3_600_000)));
        let least = like(&topic(vec![]));
        assert_eq!((least.partitions, least.replicas), (1, 1));
    }
}
