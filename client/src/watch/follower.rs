//! The stream behind a watch: WatchMetadata from one node, then from another when it breaks, falls silent or is not
//! answered. It runs on the news connection, whose pings tell a quiet cluster from a frozen node within a second.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use busbar_proto::{Reason, Refusal, v1};
use tonic::Status;

use super::{Heard, Shared};
use crate::{
    address::Address,
    cluster::Cluster,
    pool,
    retry::{Backoff, BackoffPolicy},
};

/// Time for the first answer of a stream; later ones come when there are news. Every round over all nodes in vain
/// doubles it: nodes may be slow together.
const FIRST_ANSWER_MIN: Duration = Duration::from_secs(1);
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(8);

pub(super) struct Follower {
    pub(super) cluster: Arc<Cluster>,
    pub(super) shared: Arc<Shared>,
}

/// How it went so far.
struct Course {
    backoff: Backoff,
    first_answer_timeout: Duration,
}

impl Follower {
    pub(super) async fn run(self) {
        let mut course =
            Course { backoff: Backoff::new(BackoffPolicy::default()), first_answer_timeout: FIRST_ANSWER_MIN };
        loop {
            for address in self.cluster.candidates() {
                if let Err(cause) = self.follow(&address, &mut course).await {
                    tracing::debug!(topic = self.shared.name, %address, %cause, "metadata stream ended");
                }
                self.cluster.avoid(&address);
                tokio::time::sleep(course.backoff.failed(self.cluster.env.random(), None)).await;
            }
            course.first_answer_timeout = (course.first_answer_timeout * 2).min(FIRST_ANSWER_MAX);
        }
    }

    /// One stream from one node, until it ends.
    async fn follow(
        &self,
        address: &Address,
        course: &mut Course,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let request = v1::MetadataRequest { topics: vec![self.shared.name.clone()] };
        let mut broker = pool::broker(self.cluster.pool.news_channel(address)?);
        let patience = course.first_answer_timeout;
        let opened = tokio::time::timeout(patience, broker.watch_metadata(request)).await?;
        let mut news = opened.map_err(|status| self.refused(status))?.into_inner();
        let mut answer =
            tokio::time::timeout(patience, news.message()).await?.map_err(|status| self.refused(status))?;
        while let Some(metadata) = answer {
            course.backoff.succeeded();
            course.first_answer_timeout = FIRST_ANSWER_MIN;
            self.cluster.prefer(address);
            self.cluster.learn(&metadata.nodes);
            match self.shared.hear(&metadata) {
                Heard::Ours { .. } => self.shared.suspect.store(false, Ordering::Release),
                Heard::NotOurs => self.shared.suspect(),
            }
            answer = news.message().await.map_err(|status| self.refused(status))?;
        }
        Ok(())
    }

    /// A node that knows no topic of our name says so by ending the stream.
    fn refused(&self, status: Status) -> Status {
        if Refusal::from_status(&status).is_some_and(|refusal| refusal.reason == Reason::UnknownTopic) {
            self.shared.suspect();
        }
        status
    }
}
