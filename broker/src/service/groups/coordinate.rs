//! What the leader of a shard does by itself: it watches over its members' sessions, tells the shard of topics that have
//! changed, forgets groups that nobody has used for long, and wakes the members' streams when an assignment has changed.
//! All of it is a look at what is applied, and a proposal where that is not as it should be: a new leader goes on from
//! there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use busbar_machine::group::Command;
use busbar_proto::{Refusal, Term, TopicName};

use super::news_for;
use crate::{groups::Shard, service::Broker};

/// The state is looked at this often even without news.
const TICK: Duration = Duration::from_secs(1);
/// After a proposal that failed.
const PAUSE: Duration = Duration::from_millis(100);

impl Broker {
    /// Coordinates a shard whenever this node leads it, until the shard's group stops.
    pub(in crate::service) async fn coordinate(self: Arc<Self>, shard: Arc<Shard>) {
        let mut leadership = shard.group().watch_leadership();
        let mut applied = shard.group().shared().watch();
        loop {
            if let Ok(term) = shard.require_leading() {
                self.coordinate_term(&shard, term).await;
                shard.sessions().lock().clear();
            }
            tokio::select! {
                alive = leadership.changed() => if !alive { return },
                seen = applied.changed() => if seen.is_err() { return },
            }
        }
    }

    async fn coordinate_term(&self, shard: &Shard, term: Term) {
        let mut leadership = shard.group().watch_leadership();
        let mut applied = shard.group().shared().watch();
        let mut catalog = self.cluster().group().shared().watch();
        let mut topics_of = None;
        shard.watch_members(self.clock().now());
        while shard.require_leading() == Ok(term) {
            if shard.publish_changes() {
                topics_of = None;
                shard.watch_members(self.clock().now());
            }
            if let Err(refusal) = self.look_after(shard, &mut topics_of).await {
                tracing::debug!(shard = %shard.partition(), %refusal, "coordination is held up; trying again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let now = self.clock().now();
            let next = shard.sessions().lock().next_end();
            let wait = next.map_or(TICK, |end| end.saturating_duration_since(now).min(TICK));
            tokio::select! {
                alive = leadership.changed() => if !alive { return },
                seen = applied.changed() => if seen.is_err() { return },
                seen = catalog.changed() => if seen.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One look. `topics_of`: the catalog whose topics the shard knows.
    async fn look_after(&self, shard: &Shard, topics_of: &mut Option<u64>) -> Result<(), Refusal> {
        let version = self.cluster().read(|catalog| catalog.version());
        if *topics_of != Some(version) {
            let seen = self.cluster().read(|catalog| {
                let machine = shard.read();
                let asked = machine.groups().flat_map(|(_, group)| group.members().values());
                let names: BTreeSet<&TopicName> = asked.flat_map(|member| &member.topics).collect();
                news_for(catalog, &machine, names, [])
            });
            if let Some(seen) = seen.filter(|seen| !seen.known.is_empty() || !seen.gone.is_empty()) {
                shard.propose(&Command::SeeTopics(seen)).await.map(drop)?;
            }
            *topics_of = Some(version);
        }
        let due = shard.sessions().lock().due(self.clock().now());
        for (group, member, joins) in due {
            tracing::info!(%group, %member, "a member was silent for too long: its partitions go to others");
            let now_ms = self.clock().unix_ms();
            shard.propose(&Command::Remove { group, member, joins, now_ms }).await.map(drop)?;
        }
        let retention_ms = i64::try_from(self.config().groups.offsets_retention_ms.get()).unwrap_or(i64::MAX);
        if retention_ms > 0 {
            let idle = shard.read().idle_before(self.clock().unix_ms().saturating_sub(retention_ms));
            if let Some(command) = idle {
                shard.propose(&command).await.map(drop)?;
            }
        }
        Ok(())
    }
}
