//! Who is missing, who came twice, who came out of order: two bits for each record of a run.
//!
//! Each producer has an account. It issues the sequences, and holds two bitmaps over them, `acknowledged` and
//! `consumed`, in pages:
//!
//! ```text
//!   sequence   0 ........ 32767 | 32768 ..... 65535 | 65536 ......
//!   page          Settled       |   Open (8 KiB)    |  Open
//! ```
//! A page whose records are all acknowledged *and* consumed is dropped and leaves one word, so a run that keeps
//! up holds a few pages whatever its length, and one that does not holds two bits for each record under way.
//!
//! Invariants: `verified` counts the sequences with both bits; `backlog = acknowledged - verified`, so a record
//! that a consumer sees before its acknowledgement arrives is no negative backlog. A sequence that was never
//! issued is not booked, however well its header reads.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

const PAGE_RECORDS: u64 = 32_768;
const WORD_BITS: u64 = 64;
const PAGE_WORDS: usize = (PAGE_RECORDS / WORD_BITS) as usize;

/// One record that a consumer received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    /// From the record's header.
    pub(crate) producer: u32,
    /// From the record's header.
    pub(crate) sequence: u64,
    /// Where it was read.
    pub(crate) partition: u32,
}

/// What the books say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Sequences handed to producers.
    pub(crate) issued: u64,
    /// Acknowledged by the broker.
    pub(crate) acknowledged: u64,
    /// Acknowledged and consumed.
    pub(crate) verified: u64,
    /// Consumed, each counted once.
    pub(crate) consumed: u64,
    /// Consumed again.
    pub(crate) duplicates: u64,
    /// Consumed after a later record of the same producer in the same partition.
    pub(crate) reordered: u64,
    /// Headers of this run that name a producer, sequence or partition that does not exist.
    pub(crate) corrupt: u64,
}

impl Tally {
    /// Acknowledged and not yet consumed.
    pub(crate) fn backlog(&self) -> u64 {
        self.acknowledged - self.verified
    }

    fn add(&mut self, other: &Tally) {
        self.issued += other.issued;
        self.acknowledged += other.acknowledged;
        self.verified += other.verified;
        self.consumed += other.consumed;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
    }
}

/// The books of one run, shared by its workers.
pub(crate) struct Ledger {
    accounts: Box<[Account]>,
    corrupt: AtomicU64,
    /// Told after each booking of a consumer; the drain waits on it.
    progress: Notify,
}

struct Account {
    /// The next sequence. Outside the lock: the producer's hot loop touches nothing else.
    issued: AtomicU64,
    books: Mutex<Books>,
}

impl Ledger {
    /// Books for this many producers writing to this many partitions.
    pub(crate) fn new(producers: u32, partitions: u32) -> Self {
        let account = || Account { issued: AtomicU64::new(0), books: Mutex::new(Books::new(partitions)) };
        Self {
            accounts: (0..producers).map(|_| account()).collect(),
            corrupt: AtomicU64::new(0),
            progress: Notify::new(),
        }
    }

    /// The next sequence of a producer.
    ///
    /// # Panics
    /// When there is no such producer.
    pub(crate) fn issue(&self, producer: u32) -> u64 {
        self.accounts[producer as usize].issued.fetch_add(1, Ordering::AcqRel)
    }

    /// Books acknowledgements of a producer.
    ///
    /// # Panics
    /// When the producer does not exist, a sequence was not issued, or one is acknowledged a second time: those
    /// would be faults of this tool.
    pub(crate) fn acknowledge(&self, producer: u32, sequences: &[u64]) {
        let account = &self.accounts[producer as usize];
        let issued = account.issued.load(Ordering::Acquire);
        let mut books = account.books.lock();
        for &sequence in sequences {
            assert!(sequence < issued, "acknowledged {sequence} of {issued} issued");
            books.acknowledge(sequence);
        }
    }

    /// Books what a consumer received, in the order it was received.
    pub(crate) fn observe(&self, observed: &[Observed]) {
        for run in observed.chunk_by(|a, b| a.producer == b.producer) {
            let account = run.first().and_then(|first| self.accounts.get(first.producer as usize));
            let Some(account) = account else {
                self.corrupt.fetch_add(run.len() as u64, Ordering::Relaxed);
                continue;
            };
            let issued = account.issued.load(Ordering::Acquire);
            let mut books = account.books.lock();
            for seen in run {
                books.observe(seen, issued);
            }
        }
        self.progress.notify_one();
    }

    /// Counts a record of this run that is not what was sent.
    pub(crate) fn found_corrupt(&self) {
        self.corrupt.fetch_add(1, Ordering::Relaxed);
    }

    /// The sum over all producers.
    pub(crate) fn tally(&self) -> Tally {
        let mut sum = Tally { corrupt: self.corrupt.load(Ordering::Relaxed), ..Tally::default() };
        for account in &self.accounts {
            sum.add(&account.books.lock().tally);
            sum.issued += account.issued.load(Ordering::Acquire);
        }
        sum
    }

    /// Returns once a consumer has booked something since the last call. Cancel safe.
    pub(crate) async fn progress(&self) {
        self.progress.notified().await;
    }
}

struct Books {
    pages: Vec<Page>,
    /// For each partition, one more than the highest sequence consumed from it; 0 = none yet.
    beyond_highest: Box<[u64]>,
    tally: Tally,
}

enum Page {
    Open(Box<Marks>),
    /// Every record acknowledged and consumed.
    Settled,
}

struct Marks {
    acknowledged: [u64; PAGE_WORDS],
    consumed: [u64; PAGE_WORDS],
    verified: u64,
}

impl Books {
    fn new(partitions: u32) -> Self {
        Self {
            pages: Vec::new(),
            beyond_highest: vec![0; partitions as usize].into_boxed_slice(),
            tally: Tally::default(),
        }
    }

    fn acknowledge(&mut self, sequence: u64) {
        let (page, word, bit) = place(sequence);
        let Page::Open(marks) = self.page(page) else {
            panic!("sequence {sequence} acknowledged twice");
        };
        assert!(marks.acknowledged[word] & bit == 0, "sequence {sequence} acknowledged twice");
        marks.acknowledged[word] |= bit;
        let verified = marks.consumed[word] & bit != 0;
        self.tally.acknowledged += 1;
        if verified {
            self.verify(page);
        }
    }

    fn observe(&mut self, seen: &Observed, issued: u64) {
        let Some(beyond) = self.beyond_highest.get_mut(seen.partition as usize).filter(|_| seen.sequence < issued)
        else {
            self.tally.corrupt += 1;
            return;
        };
        let behind = seen.sequence < *beyond;
        *beyond = (*beyond).max(seen.sequence + 1);

        let (page, word, bit) = place(seen.sequence);
        let first_time = match self.page(page) {
            Page::Settled => None,
            Page::Open(marks) if marks.consumed[word] & bit != 0 => None,
            Page::Open(marks) => {
                marks.consumed[word] |= bit;
                Some(marks.acknowledged[word] & bit != 0)
            }
        };
        match first_time {
            None => self.tally.duplicates += 1,
            Some(acknowledged) => {
                self.tally.consumed += 1;
                self.tally.reordered += u64::from(behind);
                if acknowledged {
                    self.verify(page);
                }
            }
        }
    }

    /// Counts a record of `page` that has both marks now, and drops the page when it was the last one.
    fn verify(&mut self, page: usize) {
        self.tally.verified += 1;
        if let Page::Open(marks) = &mut self.pages[page] {
            marks.verified += 1;
            if marks.verified == PAGE_RECORDS {
                self.pages[page] = Page::Settled;
            }
        }
    }

    /// Callers have checked that the sequence was issued, which bounds the number of pages.
    fn page(&mut self, page: usize) -> &mut Page {
        while self.pages.len() <= page {
            self.pages.push(Page::Open(Box::new(Marks {
                acknowledged: [0; PAGE_WORDS],
                consumed: [0; PAGE_WORDS],
                verified: 0,
            })));
        }
        &mut self.pages[page]
    }
}

fn place(sequence: u64) -> (usize, usize, u64) {
    let within = sequence % PAGE_RECORDS;
    ((sequence / PAGE_RECORDS) as usize, (within / WORD_BITS) as usize, 1 << (within % WORD_BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::*;

    fn seen(producer: u32, partition: u32, sequence: u64) -> Observed {
        Observed { producer, sequence, partition }
    }

    fn issued(ledger: &Ledger, producer: u32, count: u64) {
        for sequence in 0..count {
            assert_eq!(ledger.issue(producer), sequence);
        }
    }

    #[test]
    fn a_clean_run_balances_and_frees_its_pages() {
        let ledger = Ledger::new(1, 1);
        let count = 2 * PAGE_RECORDS + 5;
        issued(&ledger, 0, count);
        let all: Vec<u64> = (0..count).collect();
        let records: Vec<Observed> = all.iter().map(|&sequence| seen(0, 0, sequence)).collect();
        // Half of them are consumed before their acknowledgement is known.
        ledger.observe(&records[..count as usize / 2]);
        ledger.acknowledge(0, &all);
        assert_eq!(ledger.tally().backlog(), count - count / 2);
        ledger.observe(&records[count as usize / 2..]);
        let tally = ledger.tally();
        assert_eq!(
            tally,
            Tally { issued: count, acknowledged: count, verified: count, consumed: count, ..Tally::default() }
        );
        let open = ledger.accounts[0].books.lock().pages.iter().filter(|page| matches!(page, Page::Open(_))).count();
        assert_eq!(open, 1, "only the unfinished page may be kept");
        ledger.observe(&[seen(0, 0, 3)]);
        assert_eq!(ledger.tally().duplicates, 1, "a settled page still knows a duplicate");
    }

    #[test]
    fn faults_are_told_apart() {
        let ledger = Ledger::new(2, 2);
        issued(&ledger, 0, 6);
        issued(&ledger, 1, 1);
        ledger.acknowledge(0, &[0, 1, 2, 3]);
        // Partition 1 has 4 before 1: out of order. Partition 0 is in order although 2 comes after 4 was seen.
        ledger.observe(&[seen(0, 0, 0), seen(0, 1, 4), seen(0, 0, 2), seen(0, 1, 1), seen(0, 1, 1)]);
        // Nobody sent these.
        ledger.observe(&[seen(0, 0, 6), seen(0, 0, u64::MAX), seen(0, 2, 5), seen(9, 0, 0)]);
        let tally = ledger.tally();
        assert_eq!((tally.consumed, tally.duplicates, tally.reordered, tally.corrupt), (4, 1, 1, 4));
        assert_eq!(tally.backlog(), 1, "sequence 3 is acknowledged and was never consumed");
    }

    #[tokio::test]
    async fn progress_is_not_missed_between_two_waits() {
        let ledger = Ledger::new(1, 1);
        issued(&ledger, 0, 1);
        ledger.observe(&[seen(0, 0, 0)]);
        ledger.progress().await;
    }

    #[test]
    #[should_panic(expected = "acknowledged twice")]
    fn two_acknowledgements_of_one_record_are_a_fault_of_the_tool() {
        let ledger = Ledger::new(1, 1);
        issued(&ledger, 0, 1);
        ledger.acknowledge(0, &[0, 0]);
    }

    proptest! {
        /// Against plain sets.
        #[test]
        fn agrees_with_a_naive_model(
            acks in proptest::collection::btree_set(0u64..200, 0..150),
            reads in proptest::collection::vec((0u64..210, 0u32..3), 0..300),
            ack_first in any::<bool>(),
        ) {
            let ledger = Ledger::new(1, 3);
            issued(&ledger, 0, 200);
            let acked: Vec<u64> = acks.iter().copied().collect();
            if ack_first {
                ledger.acknowledge(0, &acked);
            }
            let mut want = Tally { issued: 200, acknowledged: acks.len() as u64, ..Tally::default() };
            let mut consumed = BTreeSet::new();
            let mut highest: HashMap<u32, u64> = HashMap::new();
            for &(sequence, partition) in &reads {
                ledger.observe(&[seen(0, partition, sequence)]);
                if sequence >= 200 {
                    want.corrupt += 1;
                    continue;
                }
                let top = highest.get(&partition).copied();
                if consumed.insert(sequence) {
                    want.reordered += u64::from(top.is_some_and(|top| sequence < top));
                } else {
                    want.duplicates += 1;
                }
                highest.insert(partition, top.map_or(sequence, |top| top.max(sequence)));
            }
            if !ack_first {
                ledger.acknowledge(0, &acked);
            }
            want.consumed = consumed.len() as u64;
            want.verified = consumed.intersection(&acks).count() as u64;
            prop_assert_eq!(ledger.tally(), want);
        }
    }
}
