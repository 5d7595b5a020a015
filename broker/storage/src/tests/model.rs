//! The engine against a naive model: random calls, and a power loss at any point of any of them.
//!
//! The journal is one ordered stream, so whatever survives a crash must be the model's state after some number of
//! steps: at least those that were acknowledged, at most those that were asked for. An append of n entries is n steps.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::basic::{DIR, block, entry, open, options, read_all};
use crate::sim::{Loss, SimVfs};
use crate::*;

/// One call.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Append {
        group: u64,
        sizes: Vec<usize>,
        lazy: bool,
    },
    /// How many of the entries above committed are kept, in 256ths; a new term begins.
    Truncate {
        group: u64,
        keep: u8,
    },
    Vote {
        group: u64,
    },
    /// How far committed advances, in 256ths of what is left.
    Commit {
        group: u64,
        part: u8,
    },
    /// How far the start moves towards committed, in 256ths.
    Purge {
        group: u64,
        part: u8,
    },
    /// The start moves beyond the end.
    Install {
        group: u64,
        beyond: u64,
    },
    Remove {
        group: u64,
    },
    Drive,
    Reopen,
}

/// What a group must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModelGroup {
    /// Index, term, payload length.
    entries: Vec<(u64, u64, usize)>,
    purged: Option<Position>,
    vote: Option<Vote>,
}

type Model = BTreeMap<u64, ModelGroup>;

/// The model, its history, and the engine that must follow.
pub(super) struct World {
    pub(super) vfs: SimVfs,
    engine: Option<LogEngine>,
    /// The state after each step, and how long the trace was when it was asked for.
    steps: Vec<(Model, usize)>,
    /// Length of the trace when a step was acknowledged, and that step.
    acks: Arc<Mutex<Vec<(usize, usize)>>>,
    model: Model,
    next: BTreeMap<u64, (u64, u64)>,
    committed: BTreeMap<u64, Position>,
    generation: BTreeMap<u64, u64>,
    options: LogOptions,
}

impl World {
    pub(super) fn new(options: LogOptions) -> World {
        let vfs = SimVfs::new();
        vfs.record();
        let mut world = World {
            vfs,
            engine: None,
            steps: vec![(Model::new(), 0)],
            acks: Arc::default(),
            model: Model::new(),
            next: BTreeMap::new(),
            committed: BTreeMap::new(),
            generation: BTreeMap::new(),
            options,
        };
        world.reopen();
        world
    }

    fn reopen(&mut self) {
        self.engine = None;
        let opened = LogEngine::open(Arc::new(self.vfs.clone()), Path::new(DIR), self.options.clone());
        self.engine = Some(opened.unwrap().0);
        self.check(&self.model, self.engine.as_ref().unwrap());
    }

    fn engine(&self) -> &LogEngine {
        self.engine.as_ref().unwrap()
    }

    /// An id begins again when its removal is complete at once, else a new one takes its place.
    fn id(&self, group: u64) -> u64 {
        group + 100 * self.generation.get(&group).copied().unwrap_or(0)
    }

    fn log(&self, id: u64) -> GroupLog {
        self.engine().group(GroupId(id)).unwrap()
    }

    fn step(&mut self) {
        self.steps.push((self.model.clone(), self.vfs.trace_len()));
    }

    fn ack(&self) -> FlushCallback {
        let (acks, vfs, step) = (Arc::clone(&self.acks), self.vfs.clone(), self.steps.len() - 1);
        Box::new(move |result| {
            // Fails only when the engine is closed while it is stuck.
            if result.is_ok() {
                acks.lock().push((vfs.trace_len(), step));
            }
        })
    }

    pub(super) fn call(&mut self, call: &Call) {
        match call {
            Call::Append { group, sizes, lazy } => self.append(self.id(*group), sizes, *lazy),
            Call::Truncate { group, keep } => self.truncate(self.id(*group), *keep),
            Call::Vote { group } => {
                let id = self.id(*group);
                let vote =
                    Vote { term: self.steps.len() as u64, node: id, committed: self.steps.len().is_multiple_of(2) };
                self.model.entry(id).or_default().vote = Some(vote);
                self.step();
                self.log(id).save_vote(vote, self.ack()).unwrap();
            }
            Call::Commit { group, part } => self.commit(self.id(*group), *part),
            Call::Purge { group, part } => self.purge(self.id(*group), *part),
            Call::Install { group, beyond } => {
                let id = self.id(*group);
                let (next, term) = self.next.get(&id).copied().unwrap_or((1, 1));
                let upto = Position { term, index: next + beyond };
                self.log(id).purge(upto);
                self.next.insert(id, (upto.index + 1, term));
                self.committed.insert(id, upto);
                let model = self.model.entry(id).or_default();
                (model.entries, model.purged) = (Vec::new(), Some(upto));
                self.step();
            }
            Call::Remove { group } => {
                let id = self.id(*group);
                self.model.remove(&id);
                let known = self.engine().groups().contains(&GroupId(id));
                self.step();
                if let Err(error) = self.engine().remove_group(GroupId(id)) {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                }
                match self.engine().group(GroupId(id)) {
                    // Its files are not gone yet: go on with a new one.
                    Err(OpenError::Removed(_)) if known => *self.generation.entry(*group).or_default() += 1,
                    again => assert_eq!(again.unwrap().state(), LogState::default()),
                }
                self.next.remove(&id);
                self.committed.remove(&id);
            }
            Call::Drive => {
                self.engine().drive();
                if !self.is_stuck() {
                    self.acks.lock().push((self.vfs.trace_len(), self.steps.len() - 1));
                }
            }
            Call::Reopen if self.is_stuck() => {} // closing would fail what waits
            Call::Reopen => self.reopen(),
        }
        if matches!(call, Call::Drive | Call::Reopen) {
            self.check(&self.model, self.engine());
        }
    }

    /// So much is uncommitted that the ring has no room for what is queued.
    fn is_stuck(&self) -> bool {
        self.engine().drive();
        self.engine().stats().queue_bytes > 0
    }

    fn append(&mut self, id: u64, sizes: &[usize], lazy: bool) {
        let (mut next, term) = self.next.get(&id).copied().unwrap_or((1, 1));
        let mut entries = Vec::new();
        for size in sizes {
            entries.push(entry(next, term, *size));
            self.model.entry(id).or_default().entries.push((next, term, *size));
            self.step();
            next += 1;
        }
        self.next.insert(id, (next, term));
        let log = self.log(id);
        if lazy {
            log.append_lazy(entries, Box::new(|result| result.unwrap())).unwrap();
        } else {
            log.append(entries, self.ack()).unwrap();
        }
    }

    fn truncate(&mut self, id: u64, keep: u8) {
        let Some(model) = self.model.get_mut(&id) else { return };
        let committed = self.committed.get(&id).map_or(0, |at| at.index);
        let open = model.entries.iter().filter(|e| e.0 > committed).count();
        let drop = open - open * keep as usize / 256;
        if drop == 0 {
            return;
        }
        model.entries.truncate(model.entries.len() - drop);
        let (next, term) = self.next[&id];
        let after = (next - drop as u64).checked_sub(1);
        self.next.insert(id, (next - drop as u64, term + 1));
        self.step();
        self.log(id).truncate_after(after).unwrap();
    }

    fn commit(&mut self, id: u64, part: u8) {
        let Some(model) = self.model.get(&id) else { return };
        let committed = self.committed.get(&id).map_or(0, |at| at.index);
        let open: Vec<_> = model.entries.iter().filter(|e| e.0 > committed).collect();
        let Some(last) = open.get(open.len() * part as usize / 256) else { return };
        let at = Position { term: last.1, index: last.0 };
        self.log(id).save_committed(Some(at));
        self.committed.insert(id, at);
    }

    fn purge(&mut self, id: u64, part: u8) {
        let (Some(model), Some(committed)) = (self.model.get_mut(&id), self.committed.get(&id)) else { return };
        let below: Vec<_> = model.entries.iter().filter(|e| e.0 <= committed.index).copied().collect();
        let Some(upto) = below.get(below.len() * part as usize / 256) else { return };
        model.entries.retain(|e| e.0 > upto.0);
        let upto = Position { term: upto.1, index: upto.0 };
        model.purged = Some(upto);
        self.step();
        self.log(id).purge(upto);
    }

    /// The engine holds exactly this.
    fn check(&self, want: &Model, engine: &LogEngine) {
        assert_eq!(observe(engine), normal(want));
    }

    /// A power loss behind the first `changes` changes; returns the file system found after it.
    pub(super) fn crash(&self, changes: usize, loss: Loss) -> SimVfs {
        let vfs = self.vfs.crashed_at(changes, loss);
        let what = format!("after {changes} changes, {loss:?}");
        let opened = LogEngine::open(Arc::new(vfs.clone()), Path::new(DIR), self.options.clone());
        let (engine, report) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(report.damaged.is_empty(), "{what}: {:?}", report.damaged);
        let found = observe(&engine);
        let least = self.acks.lock().iter().filter(|ack| ack.0 <= changes).map(|ack| ack.1).max().unwrap_or(0);
        let most = self.steps.iter().rposition(|step| step.1 <= changes).unwrap_or(0);
        let legal = (least..=most).any(|step| normal(&self.steps[step].0) == found);
        assert!(
            legal,
            "{what}: no state from step {least} to {most}\nfound {found:?}\nleast {:?}",
            self.steps[least].0
        );
        for (id, _) in found {
            let log = engine.group(GroupId(id)).unwrap();
            let (state, committed) = (log.state(), log.read_committed());
            assert!(committed <= state.last || committed.map(|c| c.index) <= state.last.map(|l| l.index), "{what}");
            assert!(committed.map(|c| c.index) >= state.purged.map(|p| p.index), "{what}");
        }
        vfs
    }

    pub(super) fn crash_everywhere(&self, seeds: u64) {
        for changes in 0..=self.vfs.trace_len() {
            let losses = [Loss::All, Loss::None, Loss::TornLast(changes * 37 % 700)];
            for loss in losses.into_iter().chain((0..seeds).map(|n| Loss::Some(changes as u64 * 31 + n))) {
                self.crash(changes, loss);
            }
        }
    }
}

/// Groups that hold nothing are as good as unknown ones.
fn normal(model: &Model) -> Model {
    model.iter().filter(|(_, g)| **g != ModelGroup::default()).map(|(id, g)| (*id, g.clone())).collect()
}

/// What the engine holds; checks every entry's content on the way.
fn observe(engine: &LogEngine) -> Model {
    let mut found = Model::new();
    for id in engine.groups() {
        let log = engine.group(id).unwrap();
        let mut entries = Vec::new();
        for read in read_all(&log) {
            assert_eq!(read, entry(read.index, read.term, read.payload.len()));
            entries.push((read.index, read.term, read.payload.len()));
        }
        if let Some(last) = entries.last() {
            assert_eq!(log.state().last.map(|at| (at.index, at.term)), Some((last.0, last.1)));
            assert_eq!(block(log.find_mark(last.0 * 10 - 1)).unwrap(), Some(last.0));
            let first = entries[0].0;
            assert_eq!(block(log.find_time(first as i64 * 100)).unwrap(), Some(first));
            let heads = block(log.read(first, first + 1, 1, ReadMode::HeadOnly)).unwrap();
            assert_eq!(heads[0].payload.len(), entries[0].2.min(8));
        }
        found.insert(id.0, ModelGroup { entries, purged: log.state().purged, vote: log.read_vote() });
    }
    normal(&found)
}

pub(super) fn calls(groups: u64, largest: usize) -> impl Strategy<Value = Call> {
    let group = 0..groups;
    let sizes = proptest::collection::vec(1..largest, 1..6);
    prop_oneof![
        8 => (group.clone(), sizes, any::<bool>()).prop_map(|(group, sizes, lazy)| Call::Append { group, sizes, lazy }),
        2 => (group.clone(), any::<u8>()).prop_map(|(group, keep)| Call::Truncate { group, keep }),
        1 => group.clone().prop_map(|group| Call::Vote { group }),
        4 => (group.clone(), any::<u8>()).prop_map(|(group, part)| Call::Commit { group, part }),
        2 => (group.clone(), any::<u8>()).prop_map(|(group, part)| Call::Purge { group, part }),
        1 => (group.clone(), 0u64..20).prop_map(|(group, beyond)| Call::Install { group, beyond }),
        1 => group.prop_map(|group| Call::Remove { group }),
        6 => Just(Call::Drive),
        1 => Just(Call::Reopen),
    ]
}

fn small() -> LogOptions {
    LogOptions { retire_step_bytes: 4 << 10, bulk_bytes: 1, ..options() }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_calls_with_a_crash_anywhere(
        calls in proptest::collection::vec(calls(4, 9000), 1..120),
        crashes in proptest::collection::vec((any::<u16>(), any::<u64>()), 12),
        direct_io: bool,
    ) {
        let mut world = World::new(LogOptions { direct_io, ..small() });
        calls.iter().for_each(|call| world.call(call));
        for (at, seed) in crashes {
            let changes = at as usize % (world.vfs.trace_len() + 1);
            let loss = match seed % 4 {
                0 => Loss::All,
                1 => Loss::None,
                2 => Loss::TornLast((seed >> 8) as usize % 9000),
                _ => Loss::Some(seed),
            };
            world.crash(changes, loss);
        }
        world.call(&Call::Drive);
        world.call(&Call::Reopen);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Entries of up to the limit, so that a file holds hardly more than one.
    #[test]
    fn the_largest_entries_with_a_crash_anywhere(
        calls in proptest::collection::vec(calls(3, small().max_payload_bytes() + 1), 1..60),
        crashes in proptest::collection::vec((any::<u16>(), any::<u64>()), 6),
        direct_io: bool,
    ) {
        let mut world = World::new(LogOptions { direct_io, ..small() });
        calls.iter().for_each(|call| world.call(call));
        for (at, seed) in crashes {
            world.crash(at as usize % (world.vfs.trace_len() + 1), Loss::Some(seed));
        }
        world.call(&Call::Reopen);
    }
}

/// Every prefix of the file operations of a run that appends, votes, cuts, purges, rolls, retires, carries, removes.
#[test]
fn a_crash_behind_every_single_change() {
    [false, true].into_iter().for_each(crash_behind_every_single_change);
}

fn crash_behind_every_single_change(direct_io: bool) {
    let mut world = World::new(LogOptions { direct_io, ..small() });
    for round in 0..90u64 {
        let group = round % 3;
        world.call(&Call::Append { group, sizes: vec![3000, 500, 1], lazy: round % 5 == 0 });
        if round % 7 == 3 {
            world.call(&Call::Truncate { group, keep: 100 });
        }
        if group != 2 {
            world.call(&Call::Commit { group, part: 200 });
        }
        if round % 11 == 5 {
            world.call(&Call::Vote { group });
        }
        if round % 13 == 6 {
            world.call(&Call::Purge { group, part: 120 });
        }
        if round == 40 {
            world.call(&Call::Install { group: 1, beyond: 5 });
        }
        if round == 60 {
            world.call(&Call::Remove { group: 0 });
        }
        if round % 2 == 0 {
            world.call(&Call::Drive);
        }
        if round == 50 {
            world.call(&Call::Reopen);
        }
    }
    let stats = world.engine().stats();
    assert!(stats.retired_bytes > 0 && stats.carried_bytes > 0, "{stats:?}");
    assert_eq!(stats.direct_writes > 0, direct_io, "{stats:?}");
    world.crash_everywhere(2);
}

/// The ring is full of uncommitted entries, more are queued; then what is there is dropped, in each possible way.
#[test]
fn a_crash_while_a_full_ring_is_set_free() {
    let frees = [
        Call::Truncate { group: 0, keep: 3 },
        Call::Truncate { group: 0, keep: 200 },
        Call::Install { group: 0, beyond: 2 },
        Call::Remove { group: 0 },
    ];
    for free in frees {
        let mut world = World::new(small());
        world.call(&Call::Append { group: 1, sizes: vec![100; 3], lazy: false });
        for _ in 0..60 {
            world.call(&Call::Append { group: 0, sizes: vec![3000; 3], lazy: false });
            world.call(&Call::Drive);
        }
        assert!(world.is_stuck());
        let from = world.vfs.trace_len();
        world.call(&free);
        world.call(&Call::Append { group: 1, sizes: vec![500; 4], lazy: false });
        world.call(&Call::Drive);
        assert!(!world.is_stuck() || matches!(free, Call::Truncate { keep: 200, .. }), "{free:?}");
        for changes in from..=world.vfs.trace_len() {
            for loss in [Loss::All, Loss::None, Loss::Some(changes as u64)] {
                world.crash(changes, loss);
            }
        }
    }
}

/// A crash, more work on what was found, another crash: nothing of the first run's lost tail comes back.
#[test]
fn crashes_on_top_of_crashes() {
    for seed in 0..40u64 {
        let mut world = World::new(small());
        for round in 0..10 {
            world.call(&Call::Append { group: round % 2, sizes: vec![700, 900], lazy: round % 3 == 0 });
        }
        let vfs = world.crash(world.vfs.trace_len(), Loss::Some(seed));
        vfs.record();
        let (engine, _) = open(&vfs);
        let before = observe(&engine);
        let log = engine.group(GroupId(0)).unwrap();
        let next = log.state().last.map_or(1, |at| at.index + 1);
        log.append_lazy(vec![entry(next, 9, 700)], Box::new(|_| ())).unwrap();
        engine.drive();
        for changes in 0..=vfs.trace_len() {
            for loss in [Loss::All, Loss::None, Loss::Some(seed + changes as u64)] {
                let (again, _) = open(&vfs.crashed_at(changes, loss));
                let mut found = observe(&again);
                if let Some(group) = found.get_mut(&0) {
                    group.entries.retain(|e| e.1 != 9);
                    if *group == ModelGroup::default() {
                        found.remove(&0);
                    }
                }
                assert_eq!(found, before, "seed {seed}, {changes} changes, {loss:?}");
            }
        }
    }
}
