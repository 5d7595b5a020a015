//! Puts groups to sleep in which nothing happens. Owns the decision when; what sleeping means is the
//! `pulse`'s.
//!
//! On each leader: once a group has been quiet for long enough, its followers are asked to sleep; when all of them do, the
//! leader does. One that does not (it lags, its node is away) keeps the group awake.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use busbar_proto::{
    GroupId,
    peer::{self as wire, frame::Body},
};
use futures::{StreamExt as _, future, stream};

use super::{
    convert,
    network::{Links, link::Lane},
    pulse::{Pulse, Quiet},
    registry::Registry,
};
use crate::env::Clock;

/// How often groups are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Groups put to sleep at the same time, and in one look: the rest has the next one.
const AT_ONCE: usize = 16;
const EACH_LOOK: usize = 256;
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// What a [`Hibernation`] needs.
pub struct HibernationOptions {
    /// The groups.
    pub registry: Arc<Registry>,
    /// The way to the followers.
    pub links: Arc<Links>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// How long a group must have been quiet.
    pub after: Duration,
}

/// See the module.
pub struct Hibernation {
    options: HibernationOptions,
    /// Since when each group that is led here is as it is now.
    quiet: BTreeMap<GroupId, (Quiet, Instant)>,
}

impl Hibernation {
    /// Ready to run.
    pub fn new(options: HibernationOptions) -> Self {
        Self { options, quiet: BTreeMap::new() }
    }

    /// For as long as the node lives.
    pub async fn run(mut self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let sleepy = self.look();
            let links = &self.options.links;
            let ask = |(group, pulse, quiet)| put_to_sleep(links, group, pulse, quiet);
            stream::iter(sleepy).for_each_concurrent(AT_ONCE, ask).await;
        }
    }

    /// The groups whose time has come.
    fn look(&mut self) -> Vec<(GroupId, Arc<Pulse>, Quiet)> {
        let now = self.options.clock.now();
        let mut before = std::mem::take(&mut self.quiet);
        let mut sleepy = Vec::new();
        for (group, pulse) in self.options.registry.all() {
            pulse.wake_if_grown();
            // The catalog is one group, and every node's news.
            let Some(quiet) = pulse.quiet().filter(|_| group != GroupId::CATALOG) else { continue };
            let since = match before.remove(&group) {
                Some((known, since)) if known == quiet => since,
                _ => now,
            };
            if now.saturating_duration_since(since) >= self.options.after && sleepy.len() < EACH_LOOK {
                sleepy.push((group, pulse, quiet.clone()));
            }
            self.quiet.insert(group, (quiet, since));
        }
        sleepy
    }
}

async fn put_to_sleep(links: &Links, group: GroupId, pulse: Arc<Pulse>, quiet: Quiet) {
    let message = wire::Hibernate {
        vote: Some(convert::vote_to_wire(&quiet.vote)),
        last: Some(convert::id_to_wire(&quiet.last)),
    };
    let ask = |follower| {
        let link = links.get(follower, Lane::Control);
        async move { link.call(group, Body::Hibernate(message), ANSWER_MAX).await }
    };
    let answers = future::join_all(quiet.followers.iter().copied().map(ask)).await;
    let all_sleep = answers.iter().all(|answer| matches!(answer, Ok(Body::Done(_))));
    // Unless something has happened meanwhile.
    if all_sleep && pulse.quiet().as_ref() == Some(&quiet) {
        pulse.sleep(&quiet.last);
    }
}
