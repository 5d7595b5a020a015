//! What is done when the watch's word is in doubt: every node is asked at once and all answers are merged, which is
//! safe because a newer epoch always wins. It also decides that a topic is gone: one node that does not know it may
//! lag behind, but a majority of the nodes answering, none of which knows it, can't.
//!
//! Rounds are paced, so that doubts of a busy producer cost a broker a few calls a second at most.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use busbar_proto::{Reason, Refusal, v1};
use futures::{StreamExt, stream::FuturesUnordered};

use super::{Heard, Shared};
use crate::{address::Address, cluster::Cluster, pool};

/// Time for a node's answer. One that is late is missed in this round only.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two rounds; doubled by each that brought nothing.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(2);

pub(super) struct Inquiry {
    pub(super) cluster: Arc<Cluster>,
    pub(super) shared: Arc<Shared>,
}

impl Inquiry {
    pub(super) async fn run(self) {
        let mut pause = PAUSE_MIN;
        loop {
            self.shared.doubted.notified().await;
            pause = match self.ask_everybody().await {
                true => PAUSE_MIN,
                false => (pause * 2).min(PAUSE_MAX),
            };
            if self.shared.suspect.load(Ordering::Acquire) {
                self.shared.doubted.notify_one();
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// One round; whether it brought news.
    async fn ask_everybody(&self) -> bool {
        let addresses = self.cluster.members();
        let mut asked: FuturesUnordered<_> = addresses.iter().map(|address| self.ask(address)).collect();
        let (mut answered, mut known, mut any_news) = (0, 0, false);
        while let Some(answer) = asked.next().await {
            let Some(heard) = answer else { continue };
            answered += 1;
            if let Heard::Ours { news } = heard {
                known += 1;
                any_news |= news;
            }
        }
        let suspect = self.shared.suspect.load(Ordering::Acquire);
        let unanimous = known == 0 && answered * 2 > addresses.len();
        if suspect && unanimous {
            tracing::debug!(topic = self.shared.name, answered, "no node knows the topic any more");
            self.shared.suspect.store(false, Ordering::Release);
            any_news |= self.shared.view.send_if_modified(|view| view.lose());
        }
        any_news
    }

    /// What one node says; `None` when it says nothing of use.
    async fn ask(&self, address: &Address) -> Option<Heard> {
        let request = v1::MetadataRequest { topics: vec![self.shared.name.clone()] };
        let mut broker = pool::broker(self.cluster.pool.news_channel(address).ok()?);
        match tokio::time::timeout(ANSWER_TIMEOUT, broker.metadata(request)).await.ok()? {
            Ok(metadata) => Some(self.shared.hear(metadata.get_ref())),
            Err(status) => {
                let refusal = Refusal::from_status(&status)?;
                (refusal.reason == Reason::UnknownTopic).then_some(Heard::NotOurs)
            }
        }
    }
}
