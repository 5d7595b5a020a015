//! What a member does on its own: commits what changed, a moment after it did or at once where somebody waits for it,
//! and lets go of partitions that are finished with.
//!
//! Invariants: one commit at a time; a partition is released only after its last commit is on record.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use busbar_proto::{
    Reason, Refusal, limits,
    v1::{self, commit_request::Entry},
};
use tokio::time::Instant;

use super::{
    error::GroupError,
    holding::{Due, Holding},
    member::Member,
    window::Snapshot,
};
use crate::{
    address::Address,
    error::TransportError,
    pool,
    retry::{Backoff, BackoffPolicy},
};

/// Time for a commit's answer before the coordinator is asked again, or another one.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of state in one request, unless a single one is larger.
const REQUEST_BYTES_TARGET: usize = 1 << 20;
const ENTRY_OVERHEAD_BYTES: usize = 100;

const _: () = assert!(REQUEST_BYTES_TARGET + limits::COMMIT_STATE_BYTES_MAX < limits::COMMIT_BYTES_MAX);

/// What a commit is about.
struct Planned {
    holding: Arc<Holding>,
    snapshot: Snapshot,
    last: bool,
}

/// Why a commit was not answered.
struct Unanswered {
    why: String,
    wait: Option<Duration>,
}

impl Member {
    /// For as long as the member lives.
    pub(super) async fn keep_up(self: Arc<Self>) {
        let mut committed_at = self.cluster.env.now();
        let mut backoff =
            Backoff::new(BackoffPolicy { base: Duration::from_millis(10), cap: Duration::from_millis(500) });
        loop {
            self.wait_for_work(committed_at).await;
            self.urgent.store(false, Ordering::Release);
            self.dirty.store(false, Ordering::Release);
            committed_at = self.cluster.env.now();
            match self.commit_all(committed_at).await {
                Ok(()) => backoff.succeeded(),
                Err(Unanswered { why, wait }) => {
                    tracing::debug!(group = self.options.group, why, "commit not answered; tried again");
                    self.dirty.store(true, Ordering::Release);
                    self.urgent.store(true, Ordering::Release);
                    tokio::time::sleep(backoff.failed(self.cluster.env.random(), wait)).await;
                }
            }
        }
    }

    /// Returns when there is something to commit and its time has come, or a partition is to be given up.
    async fn wait_for_work(&self, committed_at: Instant) {
        loop {
            if self.urgent.load(Ordering::Acquire) {
                return;
            }
            let now = self.cluster.env.now();
            let commit_at = self.dirty.load(Ordering::Acquire).then(|| committed_at + self.options.commit_interval);
            let holdings = self.holdings();
            let wake_at = holdings.iter().filter_map(|holding| holding.attend_at(now)).chain(commit_at).min();
            match wake_at {
                Some(at) if at <= now => return,
                Some(at) => {
                    tokio::select! { () = self.upkeep.notified() => {}, () = tokio::time::sleep_until(at) => {} }
                }
                None => self.upkeep.notified().await,
            }
        }
    }

    /// Commits what there is, and lets go of what is finished with.
    async fn commit_all(&self, now: Instant) -> Result<(), Unanswered> {
        let (mut planned, mut bytes) = (Vec::new(), 0);
        for holding in self.holdings() {
            match holding.due(now) {
                None => {}
                Some(Due { snapshot: None, .. }) => self.release(&holding),
                Some(Due { snapshot: Some(snapshot), last }) => {
                    bytes += snapshot.state.len() + ENTRY_OVERHEAD_BYTES;
                    planned.push(Planned { holding, snapshot, last });
                }
            }
            if bytes >= REQUEST_BYTES_TARGET {
                self.commit(std::mem::take(&mut planned)).await?;
                bytes = 0;
            }
        }
        match planned.is_empty() {
            true => Ok(()),
            false => self.commit(planned).await,
        }
    }

    async fn commit(&self, planned: Vec<Planned>) -> Result<(), Unanswered> {
        let entry = |planned: &Planned| Entry {
            claim: Some(planned.holding.claim.to_wire()),
            committed: Some(v1::Committed {
                offset: planned.snapshot.offset.get(),
                state: planned.snapshot.state.clone(),
                record_time_ms: planned.snapshot.record_time_ms,
            }),
        };
        let (address, member_id) = self.coordinator().await;
        let entries = planned.iter().map(entry).collect();
        let request = v1::CommitRequest { group: self.options.group.clone(), member_id, entries };
        let results = match self.send_commit(&address, request).await {
            Ok(response) => response.results,
            Err(Ok(refusal)) if refusal.reason == Reason::LimitReached => {
                planned.iter().for_each(|planned| self.no_room(&planned.holding, &refusal));
                return Ok(());
            }
            Err(Ok(refusal)) => {
                self.commit_refused(member_id, &refusal);
                return Err(Unanswered { why: refusal.to_string(), wait: refusal.retry_after });
            }
            Err(Err(why)) => return Err(Unanswered { why, wait: None }),
        };
        self.counters.commits.add(1);
        if results.len() != planned.len() {
            let why = format!("{} results came for {} commits", results.len(), planned.len());
            return Err(Unanswered { why, wait: None });
        }
        let mut again = Ok(());
        for (planned, result) in planned.into_iter().zip(results) {
            match result.error.map(Refusal::from_wire) {
                None => self.on_record(&planned),
                Some(refusal) => again = self.entry_refused(&planned, member_id, refusal).and(again),
            }
        }
        self.inbox.wake();
        again
    }

    /// Waits until there is a coordinator that has let the member in.
    async fn coordinator(&self) -> (Address, u64) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let seat = self.seat.lock();
                if let Some(address) = seat.coordinator.clone() {
                    return (address, seat.member_id);
                }
            }
            changed.await;
        }
    }

    /// The answer, a refusal, or why there is neither.
    async fn send_commit(
        &self,
        address: &Address,
        request: v1::CommitRequest,
    ) -> Result<v1::CommitResponse, Result<Refusal, String>> {
        let channel = self.cluster.pool.news_channel(address).map_err(|error| Err(error.to_string()))?;
        let mut groups = pool::groups(channel);
        match tokio::time::timeout(COMMIT_TIMEOUT, groups.commit(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => {
                Err(Refusal::from_status(&status).ok_or_else(|| TransportError::of(&status).to_string()))
            }
            Err(_) => Err(Err(format!("{address} did not answer within {COMMIT_TIMEOUT:?}"))),
        }
    }

    fn on_record(&self, planned: &Planned) {
        let (news, was_refused) = planned.holding.committed(&planned.snapshot);
        if was_refused {
            let (topic, partition) = (&planned.holding.topic, planned.holding.claim.partition);
            tracing::info!(%topic, %partition, "commits are taken again");
        }
        self.heed(news);
        if planned.last {
            self.release(&planned.holding);
        }
        self.changed.notify_waiters();
    }

    /// A whole commit was refused. The session finds out for itself what that means for the member.
    fn commit_refused(&self, member_id: u64, refusal: &Refusal) {
        match refusal.reason {
            Reason::UnknownMember => self.expelled(member_id),
            Reason::FencedMember => self.fenced(),
            _ => {}
        }
    }

    /// The coordinator knows the member no more: the session joins anew.
    fn expelled(&self, member_id: u64) {
        self.expelled.store(member_id, Ordering::Release);
        self.tell.notify_one();
    }

    fn fenced(&self) {
        let group = self.options.group.clone();
        self.fail(GroupError::Fenced { group, member_name: self.options.member_name.clone() });
    }

    /// One partition's commit was refused.
    fn entry_refused(&self, planned: &Planned, member_id: u64, refusal: Refusal) -> Result<(), Unanswered> {
        let Planned { holding, .. } = planned;
        match refusal.reason {
            // Who holds it now, if anybody does, is news that the session brings.
            Reason::StaleClaim | Reason::UnknownTopic | Reason::UnknownPartition => {
                self.lose(holding.tenure);
                Ok(())
            }
            Reason::UnknownMember => {
                self.expelled(member_id);
                Ok(())
            }
            Reason::FencedMember => {
                self.fenced();
                Ok(())
            }
            reason if reason.is_retryable() => Err(Unanswered { why: refusal.to_string(), wait: refusal.retry_after }),
            _ => {
                // It is still ours: what could be done about it, somebody else must do (a limit, a bug).
                self.no_room(holding, &refusal);
                Ok(())
            }
        }
    }

    /// A commit is refused, and will be until somebody does something: told once, and tried later and later.
    fn no_room(&self, holding: &Holding, refusal: &Refusal) {
        self.counters.commits_refused.add(1);
        let (now, random) = (self.cluster.env.now(), self.cluster.env.random());
        let times = holding.commit_refused(now, random, refusal.retry_after);
        let (topic, partition) = (&holding.topic, holding.claim.partition);
        if times == 1 {
            tracing::warn!(%topic, %partition, %refusal, "a commit is refused; tried again, later and later");
        } else {
            tracing::debug!(%topic, %partition, %refusal, times, "a commit is refused");
        }
    }
}
