//! Random histories of a partition against a list of its records: elections that lose or keep what was proposed,
//! retries, fenced producers, and entries that raft would never bring (reordered, repeated, forged).
//!
//! What must hold: offsets are dense; no record is stored twice; each producer's records follow one another; what a
//! client is told of a duplicate is true; a machine that goes through checkpoints, and gets its entries as compaction has
//! hollowed them, is the machine that does not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use busbar_machine::partition::{
    Admission, Applied, BatchSummary, Beside, EntryHead, PartitionMachine, ProducerLimits, Sequencer,
};
use busbar_proto::{LogIndex, Offset, ProducerEpoch, ProducerId, Term};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::support::{Log, Sent};

#[derive(Clone, Debug)]
enum What {
    Next,
    Retry(Index),
    Skip,
    NewEpoch,
    OldEpoch,
    Anonymous,
}

#[derive(Clone, Debug)]
enum Step {
    Send {
        producer: i64,
        what: What,
        count: u32,
    },
    Seal {
        later_ms: i64,
    },
    Apply,
    /// A new leader; of what was proposed, this part is in its log.
    Elect {
        kept: Index,
    },
    Trim {
        at: Index,
    },
    Checkpoint,
    /// A producer begins again, and says so before it writes.
    Fence {
        producer: i64,
    },
    // What raft never does:
    Swap,
    Repeat,
    Forge {
        batches: Vec<(Sent, i64)>,
        old_term: bool,
    },
}

fn honest_step() -> impl Strategy<Value = Step> {
    let what = prop_oneof![
        6 => Just(What::Next),
        3 => any::<Index>().prop_map(What::Retry),
        1 => Just(What::Skip),
        1 => Just(What::NewEpoch),
        1 => Just(What::OldEpoch),
        1 => Just(What::Anonymous),
    ];
    prop_oneof![
        12 => (0..3_i64, what, 1..4_u32).prop_map(|(producer, what, count)| Step::Send { producer, what, count }),
        5 => (-20..60_i64).prop_map(|later_ms| Step::Seal { later_ms }),
        5 => Just(Step::Apply),
        1 => any::<Index>().prop_map(|kept| Step::Elect { kept }),
        1 => any::<Index>().prop_map(|at| Step::Trim { at }),
        1 => Just(Step::Checkpoint),
        1 => (0..3_i64).prop_map(|producer| Step::Fence { producer }),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let sent = (-1..3_i64, 0..3_i16, 0..6_i32, 1..4_u32).prop_map(|(p, e, s, count)| Sent::new(p, e, s, count));
    let forged = (vec((sent, -1..2_i64), 1..3), prop::bool::weighted(0.1));
    prop_oneof![
        20 => honest_step(),
        1 => Just(Step::Swap),
        1 => Just(Step::Repeat),
        1 => forged.prop_map(|(batches, old_term)| Step::Forge { batches, old_term }),
    ]
}

/// A producer's view of itself.
#[derive(Default)]
struct Client {
    epoch: i16,
    next_sequence: i32,
    sent: Vec<Sent>,
}

type RecordId = (i64, i16, i32);

struct World {
    log: Log,
    term: u64,
    now_ms: i64,
    machine: PartitionMachine,
    /// The same machine, but read back from its bytes now and then.
    twin: PartitionMachine,
    /// None after what it proposed came to nothing, until everything proposed is settled.
    sequencer: Option<Sequencer>,
    proposed: VecDeque<EntryHead>,
    last_applied: Option<EntryHead>,
    clients: BTreeMap<i64, Client>,
    /// What the cluster knows of new epochs, at once.
    claimed: BTreeMap<i64, i16>,
    /// What the partition was told of them.
    fenced: BTreeMap<i64, i16>,
    /// What is stored, by offset.
    stored: Vec<Option<RecordId>>,
    voided: usize,
    /// Whether what is forgotten may be stored again: where the table is too small to remember all.
    forgetful: bool,
}

impl World {
    fn new(limits: Option<ProducerLimits>) -> Self {
        let machine = PartitionMachine::with_limits(limits.unwrap_or_default());
        let mut world = Self {
            log: Log::default(),
            term: 0,
            now_ms: 0,
            twin: machine.clone(),
            machine,
            sequencer: None,
            proposed: VecDeque::new(),
            last_applied: None,
            clients: BTreeMap::new(),
            claimed: BTreeMap::new(),
            fenced: BTreeMap::new(),
            stored: Vec::new(),
            voided: 0,
            forgetful: limits.is_some(),
        };
        world.begin_term();
        world
    }

    fn begin_term(&mut self) {
        self.term += 1;
        let at = self.log.next(self.term);
        self.machine.advance(at);
        self.twin.advance(at);
        self.sequencer = Some(Sequencer::new(&self.machine, Term::new(self.term)));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send { producer, what, count } => self.send(producer, what, count),
            Step::Seal { later_ms } => self.seal(later_ms),
            Step::Fence { producer } => self.fence(producer),
            Step::Apply => {
                if let Some(head) = self.proposed.pop_front() {
                    self.apply(head, true);
                }
                self.settle();
            }
            Step::Elect { kept } => {
                let kept = kept.index(self.proposed.len() + 1);
                self.proposed.truncate(kept);
                while let Some(head) = self.proposed.pop_front() {
                    self.apply(head, true);
                }
                self.begin_term();
            }
            Step::Trim { at } => {
                let log_start = Offset::new(at.index(self.stored.len() + 2) as u64);
                self.apply(EntryHead::Trim { log_start }, true);
                let below = LogIndex::new(at.index(self.voided + 1) as u64);
                self.machine.forget_below(below);
                self.twin.forget_below(below);
            }
            Step::Checkpoint => self.twin = PartitionMachine::decode(&self.twin.encode()).unwrap(),
            Step::Swap if self.proposed.len() > 1 => self.proposed.swap(0, 1),
            Step::Repeat => {
                if let Some(head) = self.last_applied.clone() {
                    self.apply(head, false);
                }
            }
            Step::Forge { batches, old_term } => self.forge(&batches, old_term),
            Step::Swap => (),
        }
        assert_eq!(self.machine, self.twin);
        assert_eq!(self.machine.encode(), self.twin.encode());
    }

    fn seal(&mut self, later_ms: i64) {
        self.now_ms += later_ms;
        let now_ms = self.now_ms;
        self.proposed.extend(self.sequencer.as_mut().and_then(|sequencer| sequencer.seal(now_ms)));
    }

    /// What was accepted before goes before.
    fn fence(&mut self, producer: i64) {
        self.seal(0);
        let client = self.clients.entry(producer).or_default();
        client.epoch += 1;
        client.next_sequence = 0;
        self.claimed.insert(producer, client.epoch);
        let epoch = ProducerEpoch::new(client.epoch);
        let stamped_ms = self.now_ms;
        self.proposed.push_back(EntryHead::Fence { producer: ProducerId::new(producer), epoch, stamped_ms });
    }

    /// What a leader does when its speculation came to nothing: it waits for what is proposed, and begins anew.
    fn settle(&mut self) {
        if self.sequencer.is_none() && self.proposed.is_empty() {
            self.sequencer = Some(Sequencer::new(&self.machine, Term::new(self.term)));
        }
    }

    fn send(&mut self, producer: i64, what: What, count: u32) {
        let client = self.clients.entry(producer).or_default();
        let next = |client: &mut Client, sequence| {
            client.next_sequence = sequence + count as i32;
            Sent::new(producer, client.epoch, sequence, count)
        };
        let sent = match what {
            What::Anonymous => Sent::anonymous(count),
            What::Retry(which) if !client.sent.is_empty() => *which.get(&client.sent),
            What::Next | What::Retry(_) => next(client, client.next_sequence),
            // The client believes that it sent something in between; it did not.
            What::Skip => Sent::new(producer, client.epoch, client.next_sequence + 2, count),
            What::NewEpoch => {
                client.epoch += 1;
                next(client, 0)
            }
            What::OldEpoch => Sent::new(producer, client.epoch - 1, client.next_sequence, count),
        };
        let Some(sequencer) = self.sequencer.as_mut() else { return };
        let next_offset = sequencer.next_offset();
        let claimed = self.claimed.get(&sent.producer).filter(|&&claimed| sent.epoch < claimed);
        match sequencer.admit_unless(&sent.header(), Beside::default(), claimed.map(|&epoch| ProducerEpoch::new(epoch)))
        {
            Admission::Accept { base_offset } => {
                assert_eq!(base_offset, next_offset);
                assert_eq!(sequencer.open_batches().last(), Some(&sent.at(base_offset.get())));
            }
            Admission::DuplicateStored { base_offset } => {
                let base = base_offset.get() as usize;
                assert_eq!(self.stored[base..base + sent.count as usize], ids(&sent)[..], "told of {sent:?}");
            }
            Admission::DuplicateInFlight { base_offset } => {
                assert!(base_offset.get() as usize >= self.stored.len(), "{base_offset} is stored already");
                let open = sequencer.open_batches().iter();
                let mut on_the_way = self.proposed.iter().flat_map(batches).chain(open);
                assert!(on_the_way.any(|batch| *batch == sent.at(base_offset.get())), "{sent:?} is not on its way");
            }
            Admission::Reject(_) => assert_eq!(sequencer.next_offset(), next_offset),
        }
        if sent.producer >= 0 {
            self.clients.entry(producer).or_default().sent.push(sent);
        }
    }

    fn forge(&mut self, forged: &[(Sent, i64)], old_term: bool) {
        let mut next = self.machine.next_offset().get();
        let mut batches = Vec::new();
        for (sent, off_by) in forged {
            // Mostly where it belongs, so that some forgeries are as good as the real thing.
            let base_offset = if *off_by == 1 { next + 1 } else { next };
            batches.push(sent.at(base_offset));
            next = base_offset + u64::from(sent.count);
        }
        let epoch = Term::new(self.term - u64::from(old_term));
        self.apply(EntryHead::Batches { epoch, stamped_ms: self.now_ms, batches }, false);
    }

    /// `as_proposed`: this is what the sequencer, if there still is one, expects next.
    fn apply(&mut self, head: EntryHead, as_proposed: bool) {
        let at = self.log.next(self.term);
        let before = self.machine.clone();
        let applied = self.machine.apply(at, &head);
        assert_eq!(self.twin.apply(at, &hollowed(&head)), applied);
        assert_eq!(self.machine.is_void(at.index), matches!(applied, Applied::Voided(_)));
        match applied {
            Applied::Stored { base_offset, next_offset, .. } => {
                assert_eq!(base_offset.get() as usize, self.stored.len(), "offsets are dense");
                batches(&head).for_each(|batch| self.note(batch));
                assert_eq!(next_offset.get() as usize, self.stored.len(), "offsets are dense");
                match self.sequencer.as_mut() {
                    Some(sequencer) if as_proposed => sequencer.committed(at, next_offset),
                    _ => self.sequencer = None,
                }
            }
            Applied::Voided(_) => {
                self.voided += 1;
                self.sequencer = None;
                assert_eq!(self.machine.next_offset(), before.next_offset());
                assert!(self.machine.producers().eq(before.producers()));
            }
            Applied::Fenced { producer, epoch } => {
                self.fenced.insert(producer.get(), epoch.get());
            }
            Applied::Trimmed { log_start } => assert!(log_start > before.log_start()),
            Applied::Settled { .. } => unreachable!("none was proposed"),
            Applied::Nothing => assert_eq!(self.machine.log_start(), before.log_start()),
        }
        assert!(self.machine.log_start() <= self.machine.next_offset());
        self.last_applied = Some(head);
    }

    fn note(&mut self, batch: &BatchSummary) {
        assert_eq!(batch.base_offset.get() as usize, self.stored.len(), "offsets are dense");
        let sent = Sent::new(
            batch.producer_id.get(),
            batch.producer_epoch.get(),
            batch.base_sequence.get(),
            batch.record_count,
        );
        let fenced = self.fenced.get(&sent.producer).is_some_and(|&epoch| sent.epoch < epoch);
        assert!(!fenced || self.forgetful, "{sent:?} is stored behind the fence");
        self.stored.extend(ids(&sent));
    }

    /// Each producer's records, in the order of offsets, count from 0 in each epoch; epochs only grow.
    fn check_stored(&self) {
        let mut last: BTreeMap<i64, (i16, i32)> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (producer, epoch, sequence) in self.stored.iter().copied().flatten() {
            assert!(seen.insert((producer, epoch, sequence)), "{producer}/{epoch}/{sequence} is stored twice");
            let follows = match last.insert(producer, (epoch, sequence)) {
                Some((last_epoch, last_sequence)) if last_epoch == epoch => sequence == last_sequence + 1,
                Some((last_epoch, _)) => epoch > last_epoch && sequence == 0,
                None => sequence == 0,
            };
            assert!(follows, "{producer}/{epoch}/{sequence} does not follow");
        }
    }
}

fn batches(head: &EntryHead) -> std::slice::Iter<'_, BatchSummary> {
    match head {
        EntryHead::Batches { batches, .. } => batches.iter(),
        EntryHead::Trim { .. } | EntryHead::Fence { .. } | EntryHead::Settled(_) => [].iter(),
    }
}

/// As a replica may get it that comes later: some batches are hollow.
fn hollowed(head: &EntryHead) -> EntryHead {
    let EntryHead::Batches { epoch, stamped_ms, batches } = head else { return head.clone() };
    let some = |batch: &BatchSummary| match batch.base_offset.get() % 3 {
        0 => *batch,
        _ => batch.hollowed(),
    };
    let head =
        EntryHead::Batches { epoch: *epoch, stamped_ms: *stamped_ms, batches: batches.iter().map(some).collect() };
    EntryHead::decode(&head.encode()).expect("a head that we made")
}

fn ids(sent: &Sent) -> Vec<Option<RecordId>> {
    let sequences = sent.sequence..sent.sequence + sent.count as i32;
    sequences.map(|sequence| (sent.producer >= 0).then_some((sent.producer, sent.epoch, sequence))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_history_stores_a_record_twice(steps in vec(any_step(), 1..150)) {
        let mut world = World::new(None);
        for step in steps {
            world.step(step);
        }
        world.check_stored();
    }

    /// What is proposed in order is never void, also while producers are forgotten; and when all of it is applied, the
    /// sequencer holds what the machine holds.
    #[test]
    fn honest_speculation_comes_true(
        steps in vec(honest_step(), 1..150),
        limits in prop_oneof![
            Just(None),
            (0..3_u32, 0..100_u64).prop_map(|(producers_max, idle_ms_max)| {
                Some(ProducerLimits { producers_max, idle_ms_max })
            }),
        ],
    ) {
        let mut world = World::new(limits);
        for step in steps {
            world.step(step);
            let sequencer = world.sequencer.as_ref().unwrap();
            if world.proposed.is_empty() && sequencer.open_batches().is_empty() {
                prop_assert_eq!(sequencer.next_offset(), world.machine.next_offset());
                prop_assert_eq!(sequencer.in_flight_records(), 0);
                prop_assert!(sequencer.producers().eq(world.machine.producers()));
            }
        }
        prop_assert_eq!(world.voided, 0);
        if !world.forgetful {
            world.check_stored();
        }
    }
}
