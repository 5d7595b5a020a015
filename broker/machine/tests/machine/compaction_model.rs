//! Replicas of a compacted partition that lag, crash, join and clean on their own, against the plain list of what was
//! written, and readers that go from one replica to another.
//!
//! What must hold: offsets, order and the machine's state never change; whoever reads to the end, within the time that
//! tombstones are kept, ends with the newest value of each key and with no key that was deleted; in the end only what
//! must stay has stayed.

use std::collections::{BTreeMap, BTreeSet};

use busbar_machine::partition::{
    BatchSummary, EntryHead, PartitionMachine, Settled,
    compaction::{Findings, Judge, KeyedEntry, NewestKeys},
};
use busbar_proto::{LogPosition, Offset, Term, compaction::KeyDigestBuilder};
use bytes::Bytes;
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::support::Sent;

const RETENTION_MS: u64 = 1_000;
const TERM: u64 = 1;

type Record = (u8, Option<u32>);
type Table = BTreeMap<u8, u32>;

#[derive(Clone, Debug)]
enum Step {
    /// An entry: batches of records, `false` = a tombstone.
    Write(Vec<Vec<(u8, bool)>>),
    /// A replica fetches so many entries from another one.
    Fetch {
        to: Index,
        from: Index,
        count: usize,
    },
    /// A replica cleans what it holds up to a part of it, in passes over so many keys; a crash ends it after so many
    /// entries, if it comes.
    Clean {
        replica: Index,
        part: u8,
        keys: usize,
        crash: Option<usize>,
    },
    /// A replica that holds all asks all others.
    Settle,
    /// Everybody catches up, cleans and is asked.
    Round,
    /// A new replica, empty.
    Join,
    Wait {
        ms: u64,
    },
    /// A reader begins, or reads some entries of a replica.
    Read {
        replica: Index,
        count: usize,
    },
}

#[derive(Clone)]
struct Entry {
    head: EntryHead,
    body: Bytes,
}

#[derive(Clone, Default)]
struct Replica {
    entries: Vec<Entry>,
    machine: PartitionMachine,
    told: Option<Settled>,
    findings: Findings,
}

struct Reader {
    next: usize,
    table: Table,
    begun_ms: i64,
}

struct World {
    log: Vec<Entry>,
    /// By offset.
    records: Vec<Record>,
    whole: PartitionMachine,
    replicas: Vec<Replica>,
    reader: Option<Reader>,
    now_ms: i64,
    values: u32,
}

impl Replica {
    fn take(&mut self, entry: Entry) {
        let at = LogPosition::new(TERM, self.entries.len() as u64 + 1);
        let _ = self.machine.apply(at, &entry.head);
        self.entries.push(entry);
    }

    /// As the broker's cleaner does it: chunks of candidates, what follows them, then the decisions.
    fn clean(&mut self, end: usize, keys: usize, crash: Option<usize>, now_ms: i64) {
        let settled = self.machine.settled().clone();
        let mature = settled.is_mature(now_ms, RETENTION_MS);
        let mut findings = Findings::default();
        let (mut from, mut left) = (0, crash.unwrap_or(usize::MAX));
        while from < end {
            let mut newest = NewestKeys::within(keys * 56);
            let mut to = from;
            while to < end && !newest.is_full() {
                keyed(&self.entries[to], |entry| newest.note(entry));
                to += 1;
            }
            self.entries[to..end].iter().for_each(|entry| keyed(entry, |entry| newest.follow(entry)));
            let mut judge = Judge::new(newest, settled.clone(), mature, findings);
            for entry in &mut self.entries[from..to] {
                if left == 0 {
                    return;
                }
                left -= 1;
                if let Some((head, body)) = judge.hollow(&entry.head, &entry.body) {
                    assert_eq!(head.body_bytes(), body.len() as u64);
                    *entry = Entry { head, body };
                }
            }
            findings = judge.into_findings();
            from = to;
        }
        let examined = self.entries[..end].iter().filter_map(|entry| entry.head.end_offset()).max();
        self.told = findings.report(examined.unwrap_or_default());
        self.findings = findings;
    }
}

fn batches(head: &EntryHead) -> &[BatchSummary] {
    match head {
        EntryHead::Batches { batches, .. } => batches,
        _ => &[],
    }
}

fn keyed(entry: &Entry, mut then: impl FnMut(&KeyedEntry<'_>)) {
    then(&KeyedEntry::new(batches(&entry.head), &entry.body).unwrap());
}

impl World {
    fn new() -> Self {
        let replicas = vec![Replica::default(); 3];
        let (whole, log, records) = (PartitionMachine::new(), Vec::new(), Vec::new());
        Self { log, records, whole, replicas, reader: None, now_ms: 10_000, values: 0 }
    }

    fn append(&mut self, entry: Entry) {
        let at = LogPosition::new(TERM, self.log.len() as u64 + 1);
        let _ = self.whole.apply(at, &entry.head);
        self.log.push(entry.clone());
        // Somebody acknowledged it: the first replica always holds all.
        self.replicas[0].take(entry);
    }

    fn write(&mut self, entry: &[Vec<(u8, bool)>]) {
        let (mut summaries, mut body, mut all_keys) = (Vec::new(), Vec::new(), Vec::new());
        for batch in entry {
            let base = self.records.len() as u64;
            let mut keys = KeyDigestBuilder::new();
            for &(key, is_value) in batch {
                self.values += 1;
                keys.push(&[key], !is_value);
                self.records.push((key, is_value.then_some(self.values)));
            }
            let keys = keys.build();
            let summary = Sent::new(-1, -1, -1, batch.len() as u32).at(base);
            let bytes = 70 + base as u32 % 7;
            summaries.push(BatchSummary { bytes, key_bytes: keys.len() as u32, ..summary });
            body.extend(std::iter::repeat_n(base as u8, bytes as usize));
            all_keys.extend_from_slice(&keys);
        }
        body.extend(all_keys);
        let head = EntryHead::Batches { epoch: Term::new(TERM), stamped_ms: self.now_ms, batches: summaries };
        self.append(Entry { head, body: body.into() });
    }

    fn settle(&mut self) {
        let Some(told) = self.replicas.iter().map(|replica| replica.told.as_ref()).collect::<Option<Vec<_>>>() else {
            return;
        };
        let Some(agreed) = Settled::agreed(told, self.now_ms) else { return };
        let leader = &self.replicas[0];
        let before = leader.machine.settled();
        if leader.findings.gain_by(&agreed, before) && before.is_mature(self.now_ms, RETENTION_MS) {
            self.append(Entry { head: EntryHead::Settled(agreed), body: Bytes::new() });
        }
    }

    fn read(&mut self, replica: usize, count: usize) {
        let now_ms = self.now_ms;
        // Slower than is allowed: it has to begin again.
        let fresh = || Reader { next: 0, table: Table::new(), begun_ms: now_ms };
        let mut reader = self.reader.take().filter(|reader| now_ms - reader.begun_ms < RETENTION_MS as i64);
        let reader = reader.get_or_insert_with(fresh);
        let end = self.replicas[replica].entries.len().min(reader.next + count);
        for entry in self.replicas[replica].entries.get(reader.next..end).into_iter().flatten() {
            replay(entry, &self.records, &mut reader.table);
        }
        reader.next = reader.next.max(end);
        if reader.next == self.log.len() {
            assert_eq!(reader.table, self.oracle(), "what a reader ends with");
            return;
        }
        let Reader { next, begun_ms, .. } = *reader;
        self.reader = Some(Reader { next, begun_ms, table: std::mem::take(&mut reader.table) });
    }

    /// The newest value of each key that is not deleted.
    fn oracle(&self) -> Table {
        let mut table = Table::new();
        self.records.iter().for_each(|record| set(record, &mut table));
        table
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(entry) => self.write(entry),
            Step::Fetch { to, from, count } => {
                let to = 1 + to.index(self.replicas.len() - 1);
                let from = from.index(self.replicas.len());
                let held = self.replicas[to].entries.len();
                let more = self.replicas[from].entries.get(held..).unwrap_or_default();
                let more: Vec<Entry> = more.iter().take(*count).cloned().collect();
                more.into_iter().for_each(|entry| self.replicas[to].take(entry));
            }
            Step::Clean { replica, part, keys, crash } => {
                let now_ms = self.now_ms;
                let replica = replica.get_mut(&mut self.replicas);
                let end = replica.entries.len() * usize::from(*part) / 255;
                replica.clean(end, *keys, *crash, now_ms);
            }
            Step::Settle => self.settle(),
            Step::Round => self.round(),
            Step::Join if self.replicas.len() < 5 => self.replicas.push(Replica::default()),
            Step::Join => {}
            Step::Wait { ms } => self.now_ms += *ms as i64,
            Step::Read { replica, count } => self.read(replica.index(self.replicas.len()), *count),
        }
        self.check();
    }

    /// Nothing but bodies differs from what was written, and who holds all holds the newest of all.
    fn check(&self) {
        for replica in &self.replicas {
            for (held, written) in replica.entries.iter().zip(&self.log) {
                let same =
                    |(held, written): (&BatchSummary, &BatchSummary)| held == written || *held == written.hollowed();
                let (held, written) = (batches(&held.head), batches(&written.head));
                assert!(held.len() == written.len() && held.iter().zip(written).all(same), "{held:?} {written:?}");
            }
            if replica.entries.len() == self.log.len() {
                assert_eq!(replica.machine, self.whole);
                let mut table = Table::new();
                replica.entries.iter().for_each(|entry| replay(entry, &self.records, &mut table));
                assert_eq!(table, self.oracle());
            }
        }
    }

    /// Everybody catches up from whoever holds all, and cleans, again and again.
    fn end(&mut self) {
        // A tombstone may wait for another one that shares a batch with its old value, and that for the next.
        for _ in 0..20 {
            self.round();
            self.now_ms += RETENTION_MS as i64;
        }
        self.check_what_stays();
    }

    fn round(&mut self) {
        let source = self.replicas[0].entries.clone();
        for replica in &mut self.replicas {
            let held = replica.entries.len();
            source[held..].iter().for_each(|entry| replica.take(entry.clone()));
        }
        self.check();
        for replica in &mut self.replicas {
            replica.clean(replica.entries.len(), 1000, None, self.now_ms);
        }
        self.check();
        self.settle();
    }

    fn check_what_stays(&self) {
        let newest: BTreeMap<u8, u64> = (0_u64..).zip(&self.records).map(|(offset, (key, _))| (*key, offset)).collect();
        for replica in &self.replicas {
            let kept: BTreeSet<u64> = replica.entries.iter().flat_map(offsets).collect();
            for entry in &replica.entries {
                for batch in batches(&entry.head).iter().filter(|batch| !batch.is_hollow()) {
                    let all: Vec<u64> = (batch.base_offset.get()..batch.next_offset().get()).collect();
                    assert!(all.iter().any(|offset| self.must_stay(*offset, batch, &newest, &kept)), "{batch:?}");
                }
            }
        }
    }

    /// It is a key's newest value, or deletes a key of which something older is left.
    fn must_stay(&self, offset: u64, batch: &BatchSummary, newest: &BTreeMap<u8, u64>, kept: &BTreeSet<u64>) -> bool {
        let (key, value) = self.records[offset as usize];
        let is_blocked = || kept.range(..batch.base_offset.get()).any(|older| self.records[*older as usize].0 == key);
        newest.get(&key) == Some(&offset) && (value.is_some() || is_blocked())
    }
}

fn set((key, value): &Record, table: &mut Table) {
    match value {
        Some(value) => table.insert(*key, *value),
        None => table.remove(key),
    };
}

fn offsets(entry: &Entry) -> Vec<u64> {
    let left = batches(&entry.head).iter().filter(|batch| !batch.is_hollow());
    left.flat_map(|batch| batch.base_offset.get()..batch.next_offset().get()).collect()
}

fn replay(entry: &Entry, records: &[Record], table: &mut Table) {
    offsets(entry).into_iter().for_each(|offset| set(&records[offset as usize], table));
}

fn any_step(batch: usize) -> impl Strategy<Value = Step> {
    let records = vec((0..6_u8, prop::bool::weighted(0.7)), 1..=batch);
    let clean = (any::<Index>(), prop_oneof![Just(255), any::<u8>()], prop_oneof![Just(1000), 1..4_usize]);
    let crash = prop::option::weighted(0.3, 0..6_usize);
    prop_oneof![
        6 => vec(records, 1..4).prop_map(Step::Write),
        5 => (any::<Index>(), any::<Index>(), 1..12_usize).prop_map(|(to, from, count)| Step::Fetch { to, from, count }),
        5 => (clean, crash).prop_map(|((replica, part, keys), crash)| Step::Clean { replica, part, keys, crash }),
        2 => Just(Step::Settle),
        3 => Just(Step::Round),
        1 => Just(Step::Join),
        2 => (0..1_500_u64).prop_map(|ms| Step::Wait { ms }),
        4 => (any::<Index>(), 1..12_usize).prop_map(|(replica, count)| Step::Read { replica, count }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn nothing_newest_is_lost_and_nothing_deleted_comes_back(steps in prop_oneof![
        vec(any_step(1), 1..120),
        vec(any_step(3), 1..120),
    ]) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.end();
    }
}

/// The whole life of a deleted key, so that the random histories are known to get that far.
#[test]
fn a_deleted_key_is_gone_in_the_end() {
    let mut world = World::new();
    for _ in 0..3 {
        world.write(&[vec![(1, true)], vec![(2, true)]]);
    }
    world.write(&[vec![(1, false)]]);
    world.end();
    let kept: Vec<u64> = world.replicas[1].entries.iter().flat_map(offsets).collect();
    assert_eq!(kept, [5], "only the newest value of key 2");
    assert_eq!(world.whole.settled().offset, Offset::new(7));
}
