//! Compaction on one replica: goes over its sealed segments, decides which batches are superseded as a whole, and has the
//! log engine rewrite the segments without them. Off the hot path, at a bounded pace, in bounded memory.
//!
//! ```text
//!   sealed segments ──▶ keys of as many entries as there is memory for (the candidates)
//!                  └──▶ newer records of these keys, up to the end of the sealed segments
//!                          └▶ each segment with candidates is rewritten; then the next candidates
//! ```
//! Each replica does so for itself; what they must agree on is which tombstones may go ([`Settled`]): each tells the
//! leader what it found, and the leader says in the log what holds for all of them.
//!
//! Invariants: only sealed segments are looked at, so committed and durable entries; what is told of a log is told only
//! after all of it was gone over; a segment with a damaged entry is left as it is, and then nothing is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use busbar_machine::partition::{
    EntryHead, Settled,
    compaction::{Findings, Judge, KeyedEntry, NewestKeys},
};
use busbar_proto::{LogIndex, NodeId, Offset, Reason, Refusal, peer};
use busbar_storage::{Entry, NewPayload, ReadError, RewriteError, SegmentInfo};
use bytes::BytesMut;
use parking_lot::Mutex;

use super::Replica;
use crate::raft::{Proposal, convert, group::Logged};

/// Read at once when keys are looked for.
const READ_BYTES: usize = 1 << 20;

/// How a replica is cleaned.
#[derive(Clone, Copy, Debug)]
pub struct CleaningOptions {
    /// Part of the sealed segments that must be new, in percent.
    pub dirty_percent: u32,
    /// Memory for keys.
    pub memory_bytes: usize,
    /// Bytes read a second at most when keys are looked for.
    pub bytes_per_second: u64,
    /// How long a settled tombstone is kept.
    pub delete_retention_ms: u64,
}

/// What is known of the cleaning of a replica since the node was started.
#[derive(Debug, Default)]
pub struct Cleaning {
    /// The last entry that was gone over.
    cleaned_to: Option<u64>,
    /// What holds for this replica; `None` = not known.
    told: Option<Settled>,
    findings: Findings,
    /// What holds for the others, as they said, and when: the log index of the members then. A node that was a member
    /// before and is one again has another copy, of which it has said nothing yet.
    heard: BTreeMap<NodeId, (LogIndex, Settled)>,
}

/// What a cleaning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Bytes of the segments that were gone over, before.
    pub bytes_before: u64,
    /// And now.
    pub bytes_after: u64,
    /// Entries that lost a batch.
    pub entries: u64,
    /// Passes over the log.
    pub passes: u32,
}

/// Why a replica was not cleaned to the end. What was done until then is sound.
#[derive(Debug, thiserror::Error)]
pub enum CleaningError {
    /// The log can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A segment can't be rewritten.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// A stored entry makes no sense.
    #[error("log entry {0} is not what its summary says")]
    Entry(LogIndex),
}

/// The part of a log that is cleaned.
struct Stretch {
    segments: Vec<SegmentInfo>,
    first: u64,
    last: u64,
    voids: Arc<BTreeSet<LogIndex>>,
}

/// What one pass decides on.
struct Candidates {
    keys: NewestKeys,
    /// The entry that the next candidates begin with.
    to: u64,
    /// The offset after the last record of the stretch.
    end: Offset,
}

impl Replica {
    /// Whether there is so much new in the sealed segments, or something else to be done, that cleaning is worth it.
    pub fn needs_cleaning(&self, options: &CleaningOptions, now_ms: i64) -> bool {
        let Some(stretch) = self.stretch() else { return false };
        let cleaning = self.cleaning.lock();
        let sum = |segments: &mut dyn Iterator<Item = &SegmentInfo>| segments.map(|segment| segment.bytes).sum::<u64>();
        let total = sum(&mut stretch.segments.iter());
        let is_new = |segment: &&SegmentInfo| Some(segment.first_index) > cleaning.cleaned_to;
        let dirty = sum(&mut stretch.segments.iter().filter(is_new));
        let is_dirty = dirty > 0 && dirty.saturating_mul(100) >= total.saturating_mul(options.dirty_percent.into());
        let machine = self.group().shared().read();
        let settled = machine.settled();
        let frees = cleaning.findings.is_pending() || cleaning.findings.is_freed_by(settled);
        is_dirty || frees && settled.is_mature(now_ms, options.delete_retention_ms)
    }

    /// Cleans all sealed segments. Cancel safe: what was not done is done the next time.
    ///
    /// # Errors
    /// [`CleaningError`].
    pub async fn clean(&self, options: &CleaningOptions, now_ms: i64) -> Result<Cleaned, CleaningError> {
        let Some(stretch) = self.stretch() else { return Ok(Cleaned::default()) };
        let settled = self.group().shared().read().settled().clone();
        let mature = settled.is_mature(now_ms, options.delete_retention_ms);
        let mut cleaned = Cleaned::default();
        let mut findings = Findings::default();
        let mut damaged = false;
        let mut from = stretch.first;
        let mut examined = Offset::ZERO;
        while from <= stretch.last {
            let Candidates { keys, to, end } = self.candidates(&stretch, from, options).await?;
            examined = examined.max(end);
            let judge = Arc::new(Mutex::new(Judge::new(keys, settled.clone(), mature, findings)));
            for segment in stretch.segments.iter().filter(|s| s.last_index >= from && s.first_index < to) {
                match self.rewrite(segment, from..to, &stretch.voids, &judge).await {
                    Ok(done) => {
                        cleaned.bytes_before += done.bytes_before;
                        cleaned.bytes_after += done.bytes_after;
                        cleaned.entries += done.entries;
                    }
                    Err(error @ RewriteError::Damaged { .. }) => {
                        tracing::error!(%error, "compaction leaves a damaged segment alone; it needs another replica's copy");
                        damaged = true;
                    }
                    // Retention was faster.
                    Err(RewriteError::Missing { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            findings = std::mem::replace(&mut *judge.lock(), Judge::idle()).into_findings();
            cleaned.passes += 1;
            from = to;
        }
        let mut cleaning = self.cleaning.lock();
        cleaning.cleaned_to = Some(stretch.last);
        cleaning.told = findings.report(examined).filter(|_| !damaged);
        cleaning.findings = findings;
        Ok(cleaned)
    }

    /// The sealed segments whose entries are applied here; `None` when there are none.
    fn stretch(&self) -> Option<Stretch> {
        let applied = self.group().shared().applied().at.index.get();
        let is_ready = |segment: &SegmentInfo| segment.sealed && segment.last_index <= applied;
        let segments: Vec<_> = self.group().log().oldest_segments().into_iter().take_while(is_ready).collect();
        let (first, last) = (segments.first()?.first_index, segments.last()?);
        let first = first.max(self.group().log().state().first?);
        let voids = self.group().shared().read().voids().collect();
        Some(Stretch { first, last: last.last_index, voids: Arc::new(voids), segments })
    }

    /// The keys from entry `from` on, as many as there is memory for, each with its newest record in the stretch.
    async fn candidates(
        &self,
        stretch: &Stretch,
        from: u64,
        options: &CleaningOptions,
    ) -> Result<Candidates, CleaningError> {
        let mut keys = NewestKeys::within(options.memory_bytes);
        let mut next_candidate = None;
        // Not the log's mark: void entries leave that too high for a while, and then what comes was not looked at.
        let mut end = Offset::ZERO;
        let mut at = from;
        while at <= stretch.last {
            let (entries, next) = match self.group().read_records(LogIndex::new(at), READ_BYTES).await {
                Ok(read) => read,
                Err(ReadError::Purged { first }) if first > at => {
                    at = first;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let mut bytes = 0;
            for entry in entries.iter().take_while(|entry| entry.index.get() <= stretch.last) {
                bytes += entry.head.len() + entry.body.len();
                if stretch.voids.contains(&entry.index) {
                    continue;
                }
                if next_candidate.is_none() && keys.is_full() {
                    next_candidate = Some(entry.index.get());
                }
                let note = if next_candidate.is_none() { NewestKeys::note } else { NewestKeys::follow };
                let next_offset = keyed(entry, |entry| note(&mut keys, entry))?;
                end = end.max(next_offset.unwrap_or_default());
            }
            at = next.get().max(at + 1);
            let due = Duration::from_secs_f64(bytes as f64 / options.bytes_per_second.max(1) as f64);
            tokio::time::sleep(due).await;
        }
        Ok(Candidates { keys, to: next_candidate.unwrap_or(stretch.last + 1), end })
    }

    async fn rewrite(
        &self,
        segment: &SegmentInfo,
        candidates: std::ops::Range<u64>,
        voids: &Arc<BTreeSet<LogIndex>>,
        judge: &Arc<Mutex<Judge>>,
    ) -> Result<busbar_storage::Rewritten, RewriteError> {
        let (voids, judge) = (voids.clone(), judge.clone());
        let decide = move |entry: &Entry| {
            let counts = candidates.contains(&entry.index) && convert::is_normal(entry.kind);
            if !counts || voids.contains(&LogIndex::new(entry.index)) {
                return None;
            }
            let (head, body) = entry.payload.split_at_checked(entry.head_len as usize)?;
            let Ok(head) = EntryHead::decode(head) else {
                judge.lock().meet_unknown();
                return None;
            };
            let (head, body) = judge.lock().hollow(&head, body)?;
            let head = head.encode();
            let mut payload = BytesMut::with_capacity(head.len() + body.len());
            payload.extend_from_slice(&head);
            payload.extend_from_slice(&body);
            let head_len = u32::try_from(head.len()).unwrap_or(u32::MAX);
            Some(NewPayload { head_len, payload: payload.freeze() })
        };
        self.group().log().rewrite_segment(segment.first_index, Box::new(decide)).await
    }

    /// What this replica's leader is to know, if that is another node: who leads, and what holds here.
    pub fn tells_of_tombstones(&self) -> Option<(NodeId, peer::Cleaned)> {
        let leader = self.group().leadership();
        let leader = leader.leader.filter(|_| !leader.is_self)?;
        let cleaning = self.cleaning.lock();
        let Settled { offset, blocked, .. } = cleaning.told.as_ref()?;
        let told =
            peer::Cleaned { examined: offset.get(), blocked: blocked.iter().map(|offset| offset.get()).collect() };
        Some((leader, told))
    }

    /// Another replica has told what holds for it.
    pub fn hears_of_tombstones(&self, node: NodeId, told: peer::Cleaned) {
        let peer::Cleaned { examined, blocked } = told;
        let blocked = blocked.into_iter().map(Offset::new).collect();
        let told = Settled { offset: Offset::new(examined), stamped_ms: 0, blocked };
        // As one would be agreed on: in order and within its bounds, whatever was sent.
        if let Some(told) = Settled::agreed([&told], 0) {
            let members_at = self.group().members_at();
            self.cleaning.lock().heard.insert(node, (members_at, told));
        }
    }

    /// On the leader: says in the log which tombstones all members are done with, if that is news worth having and what was
    /// said last is done with.
    ///
    /// # Errors
    /// As any proposal.
    pub async fn settle_tombstones(&self, options: &CleaningOptions, now_ms: i64) -> Result<(), Refusal> {
        if !self.group().leadership().is_self {
            self.cleaning.lock().heard.clear();
            return Ok(());
        }
        let Some(agreed) = self.agreed(options, now_ms) else { return Ok(()) };
        let head = EntryHead::Settled(agreed).encode();
        let head_len = u32::try_from(head.len()).unwrap_or(u32::MAX);
        let proposal = Proposal { mark: self.group().mark(), time_ms: now_ms, head_len, payload: head };
        let proposed = self.group().propose(proposal).await;
        proposed.map(drop).map_err(|error| Refusal::new(Reason::NotLeader, error.to_string()))
    }

    fn agreed(&self, options: &CleaningOptions, now_ms: i64) -> Option<Settled> {
        let (voters, learners) = self.group().members();
        let cleaning = self.cleaning.lock();
        let (own, members_at) = (self.group().node(), self.group().members_at());
        let heard = |node: &NodeId| cleaning.heard.get(node).filter(|(at, _)| *at == members_at).map(|(_, told)| told);
        let told_by = |node: &NodeId| if *node == own { cleaning.told.as_ref() } else { heard(node) };
        let told: Vec<&Settled> = voters.iter().chain(&learners).map(told_by).collect::<Option<_>>()?;
        let agreed = Settled::agreed(told, now_ms)?;
        let machine = self.group().shared().read();
        let before = machine.settled();
        let is_news = cleaning.findings.gain_by(&agreed, before);
        let is_done = before.is_mature(now_ms, options.delete_retention_ms) && !cleaning.findings.is_pending();
        (is_news && is_done && agreed.offset >= before.offset && agreed.offset <= machine.next_offset())
            .then_some(agreed)
    }
}

/// The offset after the entry's last record, if it has any.
fn keyed(entry: &Logged, then: impl FnOnce(&KeyedEntry<'_>)) -> Result<Option<Offset>, CleaningError> {
    let senseless = || CleaningError::Entry(entry.index);
    let head = EntryHead::decode(&entry.head).map_err(|_| senseless())?;
    if let EntryHead::Batches { batches, .. } = &head {
        then(&KeyedEntry::new(batches, &entry.body).ok_or_else(senseless)?);
    }
    Ok(head.end_offset())
}
