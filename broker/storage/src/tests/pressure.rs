//! Disks that fill up at the worst moment, devices that refuse direct writes, more groups than a file's head has room for.

use std::path::Path;
use std::sync::Arc;

use super::basic::{Calls, DIR, entry, open, options, read_all};
use crate::sim::SimVfs;
use crate::*;

fn open_with(vfs: &SimVfs, options: &LogOptions) -> Result<(LogEngine, RecoveryReport), OpenError> {
    LogEngine::open(Arc::new(vfs.clone()), Path::new(DIR), options.clone())
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }
}

/// The disk is full now and then, whatever is going on; once there is room everything goes on, and nothing is lost.
#[test]
fn a_disk_that_fills_up_at_any_moment_loses_and_stops_nothing() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let vfs = SimVfs::new();
        let options = LogOptions { files_max: 4, retire_step_bytes: 4 << 10, ..options() };
        let (engine, _) = open_with(&vfs, &options).unwrap();
        let calls = Calls::default();
        let mut ids: Vec<u64> = (1..=4).collect();
        let mut next = [1u64; 5];
        let mut asked = 0;
        for step in 0..120 {
            let at = random.below(4) as usize;
            let log =
                engine.group(GroupId(ids[at])).unwrap_or_else(|error| panic!("seed {seed}, step {step}: {error}"));
            match random.below(16) {
                0 => {
                    let used: u64 =
                        vfs.paths().iter().map(|path| vfs.content(path).map_or(0, |c| c.len() as u64)).sum();
                    vfs.set_capacity(Some(used + random.below(3) * 700));
                }
                1 | 2 => vfs.set_capacity(None),
                3 if step % 5 == 0 => {
                    drop(engine.remove_group(GroupId(ids[at])));
                    (ids[at], next[at]) = (ids[at] + 10, 1);
                }
                4..=7 => log.save_committed(log.durable_index().map(|index| Position { term: 1, index })),
                _ => {
                    let size = 200 + random.below(14_000) as usize;
                    asked += 1;
                    log.append(vec![entry(next[at], 1, size)], calls.expect(asked)).unwrap();
                    next[at] += 1;
                }
            }
            engine.drive();
        }
        vfs.set_capacity(None);
        for _ in 0..20 {
            for id in &ids {
                let log = engine.group(GroupId(*id)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                log.save_committed(log.durable_index().map(|index| Position { term: 1, index }));
            }
            engine.drive();
        }
        assert_eq!(calls.seen().len() as u64, asked, "seed {seed}");
        assert!(calls.seen().iter().all(|call| call.1), "seed {seed}");
        let held = |engine: &LogEngine| -> Vec<u64> {
            ids.iter().map(|id| read_all(&engine.group(GroupId(*id)).unwrap()).len() as u64).collect()
        };
        let want: Vec<u64> = next[..4].iter().map(|next| next - 1).collect();
        assert_eq!(held(&engine), want, "seed {seed}");
        engine.close();
        let (engine, _) = open_with(&vfs, &options).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(held(&engine), want, "seed {seed}");
    }
}

/// A device that opens a file for direct writes and then refuses them is written through the page cache.
#[test]
fn refused_direct_writes_fall_back_to_the_page_cache() {
    let vfs = SimVfs::new();
    vfs.refuse_direct_writes();
    let direct = LogOptions { direct_io: true, ..options() };
    let (engine, _) = open_with(&vfs, &direct).unwrap();
    let log = engine.group(GroupId(1)).unwrap();
    let calls = Calls::default();
    for i in 1..=200 {
        log.append(vec![entry(i, 1, 900)], calls.expect(i)).unwrap();
        log.save_committed(Some(Position { term: 1, index: i }));
        engine.drive();
    }
    assert!(calls.seen().len() == 200 && calls.seen().iter().all(|call| call.1));
    assert_eq!(engine.stats().direct_writes, 0);
    engine.close();
    let (engine, report) = open(&vfs);
    assert!(report.clean && report.torn.is_none(), "{report:?}");
    assert_eq!(read_all(&engine.group(GroupId(1)).unwrap()).len(), 200);
}

/// However many groups there may be, the largest entry fits behind their states.
#[test]
fn the_largest_entry_fits_with_as_many_groups_as_are_allowed() {
    let vfs = SimVfs::new();
    let (engine, _) = open(&vfs);
    let calls = Calls::default();
    let mut groups = 0;
    while let Ok(log) = engine.group(GroupId(groups + 1)) {
        groups += 1;
        log.save_vote(Vote { term: 1, node: 1, committed: false }, calls.expect(groups)).unwrap();
    }
    assert!(groups > 10, "{groups}");
    let largest = options().max_payload_bytes();
    let log = engine.group(GroupId(1)).unwrap();
    for i in 1..=10 {
        log.append(vec![entry(i, 1, largest)], calls.expect(groups + i)).unwrap();
        log.save_committed(Some(Position { term: 1, index: i }));
        engine.drive();
    }
    assert_eq!(calls.seen().len() as u64, groups + 10);
    engine.close();
    let (engine, report) = open(&vfs);
    assert!(report.clean && report.torn.is_none(), "{report:?}");
    assert_eq!(read_all(&engine.group(GroupId(1)).unwrap()).len(), 10);
}

/// A replica that moved away may come back under the same id, once nothing is left of it.
#[test]
fn a_removed_group_can_begin_again_when_its_files_are_gone() {
    let vfs = SimVfs::new();
    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    log.append((1..=5).map(|i| entry(i, 1, 100)).collect(), Box::new(|_| ())).unwrap();
    engine.drive();
    engine.remove_group(GroupId(1)).unwrap();
    engine.drive();
    let again = engine.group(GroupId(1)).unwrap();
    assert_eq!(again.state(), LogState::default());
    again.append(vec![entry(70, 3, 50)], Box::new(|_| ())).unwrap();
    engine.close();
    let (engine, _) = open(&vfs);
    assert_eq!(read_all(&engine.group(GroupId(1)).unwrap()), [entry(70, 3, 50)]);
}

/// On a full disk a group's folder is created and nothing in it; then the group is removed, to make room.
#[test]
fn removing_a_group_on_a_full_disk_stops_nothing() {
    for later in (251..600).step_by(3) {
        let vfs = SimVfs::new();
        let (engine, _) = open(&vfs);
        let (gone, log) = (engine.group(GroupId(1)).unwrap(), engine.group(GroupId(2)).unwrap());
        let calls = Calls::default();
        let append = |range: std::ops::RangeInclusive<u64>| {
            for i in range {
                log.append(vec![entry(i, 1, 1000)], calls.expect(i)).unwrap();
                log.save_committed(Some(Position { term: 1, index: i }));
                engine.drive();
            }
        };
        append(1..=250);
        gone.append((1..=5).map(|i| entry(i, 1, 1000)).collect(), Box::new(|_| ())).unwrap();
        gone.save_committed(Some(Position { term: 1, index: 5 }));
        engine.drive();
        append(251..=later);
        let used: u64 = vfs.paths().iter().map(|path| vfs.content(path).map_or(0, |bytes| bytes.len() as u64)).sum();
        vfs.set_capacity(Some(used));
        append(later + 1..=later + 20);
        drop(engine.remove_group(GroupId(1)));
        engine.drive();
        vfs.set_capacity(None);
        append(later + 21..=900);
        assert_eq!(calls.seen().len(), 900, "full behind entry {later}");
        assert!(calls.seen().iter().all(|call| call.1));
    }
}

/// Whoever waits for room holds no thread, is let in one at a time, and is not forgotten when the engine closes.
#[test]
fn waiting_for_room_ends_with_room() {
    let vfs = SimVfs::new();
    let options = LogOptions { queue_bytes: 64 << 10, ..options() };
    let (engine, _) = open_with(&vfs, &options).unwrap();
    let calls = Calls::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let logs: Vec<_> = (1..=3).map(|id| engine.group(GroupId(id)).unwrap()).collect();
        for index in 1..=6u64 {
            logs[0].room().await;
            logs[0].append_in_room(vec![entry(index, 1, 12_000)], false, calls.expect(index)).unwrap();
        }
        let waiting: Vec<_> = logs[1..]
            .iter()
            .map(|log| {
                let (log, done) = (log.clone(), calls.expect(log.id().0 * 10));
                tokio::spawn(async move {
                    log.room().await;
                    log.append_in_room(vec![entry(1, 1, 12_000)], false, done)
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|task| !task.is_finished()), "the queue is at its cap");
        while !waiting.iter().all(|task| task.is_finished()) {
            engine.drive();
            tokio::task::yield_now().await;
        }
        for task in waiting {
            task.await.unwrap().unwrap();
        }
        // The ring grows on the way.
        (0..10).for_each(|_| engine.drive());
        let mut seen: Vec<u64> = calls.seen().into_iter().map(|(call, _)| call).collect();
        seen.sort_unstable();
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 20, 30]);
        for index in 7..=12u64 {
            logs[0].append_in_room(vec![entry(index, 1, 12_000)], false, calls.expect(index)).unwrap();
        }
        let log = logs[1].clone();
        let late = tokio::spawn(async move { log.room().await });
        tokio::task::yield_now().await;
        engine.close();
        late.await.unwrap();
    });
}
