//! Key compaction, the pure half: which batches of a log may go, decided on the digests beside them.
//!
//! ```text
//!  log start                                horizon (sealed, durable here)      high watermark
//!   |── candidates: their keys in memory ──|── newer records of these keys ──|── not looked at ──|
//!                     one pass: as many candidates as there is memory for, then the next ones
//! ```
//! A batch goes as a whole: when each of its records is followed by another one of its key, or is a tombstone that is
//! settled (see [`Settled`]) and was readable long enough. Its bytes go; its summary stays, so that offsets, producers
//! and raft know of no difference.
//!
//! Invariants:
//! * The newest record of a key at or below the horizon never goes, unless it is a tombstone that is settled.
//! * What a pass reports as not blocked is true whatever is removed later: of a tombstone's key there is no older record,
//!   but for those in the tombstone's own batch, which go with it.
//! * A batch whose keys are not known never goes, and with one around no tombstone is reported at all.

use std::collections::{BTreeMap, BTreeSet};

use busbar_proto::{
    Offset,
    compaction::{KeyDigest, KeyHash, Keyed},
    limits,
};
use bytes::{Bytes, BytesMut};

use super::{
    entry::{BatchSummary, EntryHead},
    settled::Settled,
};

/// Memory that a key takes: 32 bytes in a node of eleven, which is two thirds full as a rule.
const KEY_BYTES: usize = 56;

/// The newest record of a key.
#[derive(Clone, Copy, Debug)]
struct Newest {
    offset: Offset,
    tombstone: bool,
}

/// Keys of the candidates, each with its newest record up to the horizon.
#[derive(Debug)]
pub struct NewestKeys {
    newest: BTreeMap<KeyHash, Newest>,
    keys_max: usize,
}

impl NewestKeys {
    /// None so far, in about that many bytes at most.
    pub fn within(bytes: usize) -> Self {
        Self { newest: BTreeMap::new(), keys_max: (bytes / KEY_BYTES).max(1) }
    }

    /// Whether no further candidate should be noted.
    pub fn is_full(&self) -> bool {
        self.newest.len() >= self.keys_max
    }

    /// Keys noted.
    pub fn len(&self) -> usize {
        self.newest.len()
    }

    /// Whether none was noted.
    pub fn is_empty(&self) -> bool {
        self.newest.is_empty()
    }

    /// Notes the keys of a candidate. In the order of the log.
    pub fn note(&mut self, entry: &KeyedEntry<'_>) {
        for (offset, Keyed { hash, tombstone }) in entry.records() {
            self.newest.insert(hash, Newest { offset, tombstone });
        }
    }

    /// Takes note of newer records of keys that are known, behind the candidates. In the order of the log.
    pub fn follow(&mut self, entry: &KeyedEntry<'_>) {
        for (offset, Keyed { hash, tombstone }) in entry.records() {
            if let Some(newest) = self.newest.get_mut(&hash) {
                *newest = Newest { offset, tombstone };
            }
        }
    }
}

/// An entry's batches and what was told of their keys.
#[derive(Clone, Debug)]
pub struct KeyedEntry<'a> {
    batches: &'a [BatchSummary],
    keys: &'a [u8],
}

impl<'a> KeyedEntry<'a> {
    /// Of these summaries and this body; `None` when they don't fit each other.
    pub fn new(batches: &'a [BatchSummary], body: &'a [u8]) -> Option<Self> {
        let length = |of: fn(&BatchSummary) -> u32| batches.iter().map(|batch| of(batch) as usize).sum::<usize>();
        let keys_at = length(|batch| batch.bytes) + length(|batch| batch.digest_bytes);
        let keys = body.get(keys_at..)?;
        (keys.len() == length(|batch| batch.key_bytes)).then_some(Self { batches, keys })
    }

    /// Its batches that are not hollow, each with its keys, if those can be read.
    pub fn batches(&self) -> impl Iterator<Item = (&'a BatchSummary, Option<KeyDigest<'a>>)> {
        let mut rest = self.keys;
        self.batches.iter().filter_map(move |batch| {
            let (own, others) = rest.split_at_checked(batch.key_bytes as usize)?;
            rest = others;
            let digest = KeyDigest::decode(own).ok().filter(|digest| digest.len() == batch.record_count as usize);
            (!batch.is_hollow()).then_some((batch, digest))
        })
    }

    fn records(&self) -> impl Iterator<Item = (Offset, Keyed)> {
        self.batches().flat_map(|(batch, digest)| {
            let offsets = (0..).map(|delta| batch.base_offset.advance(delta));
            offsets.zip(digest.into_iter().flat_map(|digest| digest.iter()))
        })
    }
}

/// What a replica found out about its tombstones when it went over its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    blocked: BTreeSet<Offset>,
    /// A batch's keys are not known.
    unknown: bool,
    /// Tombstones that could be settled and are not: the first ones.
    unsettled: BTreeSet<Offset>,
    /// A batch can go once what is settled is mature.
    pending: bool,
}

impl Findings {
    /// What to tell the leader of a log that was gone over up to `examined`, as far as it may be relied on.
    pub fn report(&self, examined: Offset) -> Option<Settled> {
        let blocked = self.blocked.iter().copied().filter(|&offset| offset < examined).collect();
        (!self.unknown).then(|| Settled { offset: examined, stamped_ms: 0, blocked }.bounded())
    }

    /// The first tombstone that could be settled and is not.
    pub fn unsettled(&self) -> Option<Offset> {
        self.unsettled.first().copied()
    }

    /// Whether a tombstone here could go that can't go by what was agreed on before, were this agreed on.
    pub fn gain_by(&self, agreed: &Settled, before: &Settled) -> bool {
        self.unsettled.iter().any(|&tombstone| agreed.covers(tombstone) && !before.covers(tombstone))
    }

    /// Whether a tombstone that was not settled when it was found is by now.
    pub fn is_freed_by(&self, settled: &Settled) -> bool {
        self.unsettled.iter().any(|&tombstone| settled.covers(tombstone))
    }

    /// Whether a batch can go once what is settled is mature.
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    fn block(&mut self, tombstone: Offset) {
        put_first(&mut self.blocked, tombstone);
    }
}

/// Decides on the candidates of a pass, one after the other in the order of the log.
#[derive(Debug)]
pub struct Judge {
    keys: NewestKeys,
    settled: Settled,
    /// What is settled may go.
    mature: bool,
    findings: Findings,
}

impl Judge {
    /// Over the candidates whose keys these are. `findings` are those of the passes before, over older candidates.
    pub fn new(keys: NewestKeys, settled: Settled, mature: bool, findings: Findings) -> Self {
        Self { keys, settled, mature, findings }
    }

    /// Over no candidate.
    pub fn idle() -> Self {
        Self::new(NewestKeys::within(0), Settled::default(), false, Findings::default())
    }

    /// Takes note of a candidate that makes no sense: its keys are not known.
    pub fn meet_unknown(&mut self) {
        self.findings.unknown = true;
    }

    /// What was found out, and the keys are forgotten.
    pub fn into_findings(self) -> Findings {
        self.findings
    }

    /// The same entry without the batches that may go; `None` when all stay. Not for void entries: what they hold counts
    /// for nothing, and is left as it is.
    pub fn hollow(&mut self, head: &EntryHead, body: &[u8]) -> Option<(EntryHead, Bytes)> {
        let EntryHead::Batches { epoch, stamped_ms, batches } = head else { return None };
        let Some(entry) = KeyedEntry::new(batches, body) else {
            self.findings.unknown = true;
            return None;
        };
        let mut dead = BTreeSet::new();
        for (batch, digest) in entry.batches() {
            match digest {
                Some(digest) if self.may_go(batch, digest) => drop(dead.insert(batch.base_offset)),
                Some(digest) => self.keep(batch, digest),
                None => self.findings.unknown = true,
            }
        }
        if dead.is_empty() {
            return None;
        }
        let is_dead = |batch: &BatchSummary| dead.contains(&batch.base_offset);
        let left = batches.iter().map(|batch| if is_dead(batch) { batch.hollowed() } else { *batch }).collect();
        let head = EntryHead::Batches { epoch: *epoch, stamped_ms: *stamped_ms, batches: left };
        Some((head, without(batches, body, is_dead)))
    }

    fn may_go(&mut self, batch: &BatchSummary, digest: KeyDigest<'_>) -> bool {
        let mut immature = false;
        for (delta, Keyed { hash, .. }) in (0..).zip(digest.iter()) {
            let offset = batch.base_offset.advance(delta);
            match self.keys.newest.get(&hash) {
                Some(newest) if newest.offset > offset => {}
                // Whatever was agreed on: not while an older record of the key was just met here.
                Some(newest)
                    if newest.offset == offset
                        && newest.tombstone
                        && self.settled.covers(offset)
                        && !self.findings.blocked.contains(&offset) =>
                {
                    immature |= !self.mature;
                }
                _ => return false,
            }
        }
        self.findings.pending |= immature;
        !immature
    }

    /// Its old records are in the way of the tombstones that follow them.
    fn keep(&mut self, batch: &BatchSummary, digest: KeyDigest<'_>) {
        for (delta, Keyed { hash, .. }) in (0..).zip(digest.iter()) {
            let offset = batch.base_offset.advance(delta);
            let Some(&Newest { offset: newest, tombstone: true }) = self.keys.newest.get(&hash) else { continue };
            if newest >= batch.next_offset() {
                self.findings.block(newest);
            } else if newest == offset && !self.settled.covers(offset) && !self.findings.blocked.contains(&offset) {
                put_first(&mut self.findings.unsettled, offset);
            }
        }
    }
}

/// Of tombstones only the first ones are kept, one more than can be told: a report ends below that.
fn put_first(tombstones: &mut BTreeSet<Offset>, tombstone: Offset) {
    tombstones.insert(tombstone);
    if tombstones.len() > limits::BLOCKED_TOMBSTONES_MAX + 1 {
        tombstones.pop_last();
    }
}

/// The body without what it holds of dead batches; all else byte for byte.
fn without(batches: &[BatchSummary], body: &[u8], is_dead: impl Fn(&BatchSummary) -> bool) -> Bytes {
    let mut left = BytesMut::with_capacity(body.len());
    let mut at = 0;
    let parts: [fn(&BatchSummary) -> u32; 3] =
        [|batch| batch.bytes, |batch| batch.digest_bytes, |batch| batch.key_bytes];
    for part in parts {
        for batch in batches {
            let next = at + part(batch) as usize;
            if !is_dead(batch) {
                left.extend_from_slice(&body[at..next]);
            }
            at = next;
        }
    }
    left.freeze()
}
