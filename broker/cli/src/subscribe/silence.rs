//! Why nothing is printed: while a topic is silent, now and then a look whether its partitions can be read at all, so that
//! nobody waits for what can't come without being told.

use std::time::Duration;

use busbar_client::Client;
use busbar_proto::TopicName;

use crate::output::{diagnose, list};

/// Silence before a look, and between two.
const SILENCE: Duration = Duration::from_secs(5);

/// What was told last.
pub(super) struct Silence<'a> {
    client: &'a Client,
    topic: &'a TopicName,
    told: Option<String>,
}

impl<'a> Silence<'a> {
    pub(super) fn new(client: &'a Client, topic: &'a TopicName) -> Self {
        Self { client, topic, told: None }
    }

    /// Looks after a silence, and tells what is wrong if that is news. Cancel safe; beginning anew with each record.
    pub(super) async fn look(&mut self) {
        tokio::time::sleep(SILENCE).await;
        let wrong = match self.client.admin().describe_topic(self.topic.as_str()).await {
            Ok(topic) => {
                let states = topic.partitions.iter().filter(|state| state.leader == 0);
                unreadable(&states.map(|state| state.partition).collect::<Vec<_>>())
            }
            Err(error) => Some(error.to_string()),
        };
        if wrong != self.told {
            match &wrong {
                Some(wrong) => diagnose(format_args!("waiting for {}: {wrong}", self.topic)),
                None => diagnose(format_args!("{} can be read again", self.topic)),
            }
            self.told = wrong;
        }
    }
}

fn unreadable(partitions: &[u32]) -> Option<String> {
    let (noun, verb) = if partitions.len() == 1 { ("partition", "has") } else { ("partitions", "have") };
    (!partitions.is_empty()).then(|| {
        let partitions = list(partitions);
        format!("{noun} {partitions} {verb} no leader, as too few replicas are up; `busbar cluster status` shows them")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_not_be_read_is_told() {
        assert_eq!(unreadable(&[]), None);
        assert!(unreadable(&[3]).is_some_and(|text| text.starts_with("partition 3 has no leader")));
        assert!(unreadable(&[0, 3]).is_some_and(|text| text.starts_with("partitions 0,3 have no leader")));
    }
}
