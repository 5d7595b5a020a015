//! Rewriting sealed segments: what is replaced and what stays, at each moment of a crash, with readers, on bad disks.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::basic::{DIR, block, entry, open, options, read_all};
use crate::segment::file::log_name;
use crate::segment::reader::{Want, read};
use crate::sim::{Loss, SimVfs};
use crate::*;

const COUNT: u64 = 250;

/// Three sealed segments at least, of entries of about 900 bytes.
fn filled(vfs: &SimVfs) -> (LogEngine, GroupLog) {
    let (engine, _) = open(vfs);
    fill(engine)
}

fn fill(engine: LogEngine) -> (LogEngine, GroupLog) {
    let log = engine.group(GroupId(1)).unwrap();
    for i in 1..=COUNT {
        log.append(vec![entry(i, 1, 904)], Box::new(|_| ())).unwrap();
        log.save_committed(Some(Position { term: 1, index: i }));
        engine.drive();
    }
    assert!(sealed(&log).len() >= 2);
    (engine, log)
}

fn sealed(log: &GroupLog) -> Vec<SegmentInfo> {
    log.oldest_segments().into_iter().filter(|segment| segment.sealed).collect()
}

/// Every third entry loses its body and gets a shorter head.
fn hollowed(entry: &Entry) -> Option<NewPayload> {
    entry.index.is_multiple_of(3).then(|| NewPayload { head_len: 5, payload: Bytes::from(vec![entry.index as u8; 5]) })
}

fn after(entry: Entry) -> Entry {
    match hollowed(&entry) {
        Some(NewPayload { head_len, payload }) => Entry { head_len, payload, ..entry },
        None => entry,
    }
}

/// The log when the segments that begin at `firsts` were rewritten.
fn want(segments: &[SegmentInfo], firsts: &[u64]) -> Vec<Entry> {
    let is_new = |index| {
        let segment = segments.iter().find(|segment| (segment.first_index..=segment.last_index).contains(&index));
        segment.is_some_and(|segment| firsts.contains(&segment.first_index))
    };
    (1..=COUNT).map(|i| entry(i, 1, 904)).map(|e| if is_new(e.index) { after(e) } else { e }).collect()
}

fn rewrite(engine: &LogEngine, log: &GroupLog, first: u64, decide: Decide) -> Result<Rewritten, RewriteError> {
    block(async { tokio::join!(log.rewrite_segment(first, decide), async { engine.drive() }).0 })
}

fn segment_path(first: u64) -> PathBuf {
    Path::new(DIR).join("groups").join(GroupId(1).to_string()).join(log_name(first))
}

fn unfinished(vfs: &SimVfs) -> Vec<PathBuf> {
    vfs.paths().into_iter().filter(|path| path.extension().is_some_and(|e| e == "new")).collect()
}

fn searches_agree(log: &GroupLog) {
    for i in [1, 2, 3, 63, 64, 65, 66, 130, COUNT] {
        assert_eq!(block(log.find_mark(i * 10 - 1)).unwrap(), Some(i));
        assert_eq!(block(log.find_time(i as i64 * 100)).unwrap(), Some(i));
    }
}

#[test]
fn entries_keep_everything_but_their_payload() {
    let vfs = SimVfs::new();
    let (engine, log) = filled(&vfs);
    let segments = sealed(&log);
    let before = log.size_bytes();
    let mut freed = 0;
    for segment in &segments {
        let done = rewrite(&engine, &log, segment.first_index, Box::new(hollowed)).unwrap();
        let count = (segment.first_index..=segment.last_index).filter(|i| i % 3 == 0).count() as u64;
        assert_eq!((done.entries, done.bytes_before), (count, segment.bytes));
        assert!(done.bytes_after < done.bytes_before * 3 / 4, "{done:?}");
        freed += done.bytes_before - done.bytes_after;
    }
    assert_eq!(log.size_bytes(), before - freed);
    let now = sealed(&log);
    for (old, new) in segments.iter().zip(&now) {
        assert_eq!(SegmentInfo { bytes: new.bytes, ..*old }, *new);
    }
    let firsts: Vec<u64> = segments.iter().map(|segment| segment.first_index).collect();
    assert_eq!(read_all(&log), want(&segments, &firsts));
    searches_agree(&log);
    engine.close();
    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    assert_eq!(read_all(&log), want(&segments, &firsts));
    searches_agree(&log);
    assert_eq!((unfinished(&vfs), sealed(&log)), (vec![], now));
    // Again, and larger than ever.
    let grow = |entry: &Entry| (entry.index == 3).then(|| NewPayload { head_len: 0, payload: vec![7; 20_000].into() });
    assert_eq!(rewrite(&engine, &log, 1, Box::new(grow)).unwrap().entries, 1);
    assert_eq!(block(log.read(3, 4, 1, ReadMode::Full)).unwrap()[0].payload.len(), 20_000);
    searches_agree(&log);
}

/// Memory is asked before the disk: what the new file does not have must be gone there, too.
#[test]
fn what_was_replaced_is_not_read_from_memory() {
    let vfs = SimVfs::new();
    let options = LogOptions { tail_cache_bytes: 8 << 20, ..options() };
    let (engine, _) = LogEngine::open(std::sync::Arc::new(vfs), Path::new(DIR), options).unwrap();
    let (engine, log) = fill(engine);
    let segments = sealed(&log);
    let cached = engine.stats().cache_bytes;
    assert!(cached > COUNT * 904, "all of it is in memory");
    let firsts: Vec<u64> = segments.iter().map(|segment| segment.first_index).collect();
    for first in &firsts {
        rewrite(&engine, &log, *first, Box::new(hollowed)).unwrap();
    }
    assert_eq!(read_all(&log), want(&segments, &firsts));
    assert!(engine.stats().cache_bytes < cached);
}

#[test]
fn nothing_is_written_when_nothing_changes() {
    let vfs = SimVfs::new();
    let (engine, log) = filled(&vfs);
    vfs.record();
    let first = sealed(&log)[0];
    let done = rewrite(&engine, &log, first.first_index, Box::new(|_| None)).unwrap();
    assert_eq!(done, Rewritten { entries: 0, bytes_before: first.bytes, bytes_after: first.bytes });
    assert_eq!(vfs.trace_len(), 0);
}

/// Whatever a power loss leaves: each segment is the old one or the new one as a whole, and it can be rewritten again.
#[test]
fn a_power_loss_at_any_moment_leaves_one_of_the_two() {
    let vfs = SimVfs::new();
    let (engine, log) = filled(&vfs);
    let segments = sealed(&log);
    vfs.record();
    let mut done_at = Vec::new();
    for segment in &segments[..2] {
        rewrite(&engine, &log, segment.first_index, Box::new(hollowed)).unwrap();
        done_at.push(vfs.trace_len());
    }
    let firsts = [segments[0].first_index, segments[1].first_index];
    let states = [want(&segments, &[]), want(&segments, &firsts[..1]), want(&segments, &firsts)];
    let (mut seen, mut leftovers) = ([0; 3], 0);
    for changes in 0..=vfs.trace_len() {
        let losses =
            [Loss::All, Loss::None, Loss::TornLast(100), Loss::Some(changes as u64), Loss::Some(!(changes as u64))];
        for loss in losses {
            let crashed = vfs.crashed_at(changes, loss);
            leftovers += unfinished(&crashed).len();
            let (engine, _) = open(&crashed);
            let log = engine.group(GroupId(1)).unwrap();
            let found = read_all(&log);
            let state = states.iter().position(|state| *state == found);
            let state = state.unwrap_or_else(|| panic!("neither old nor new after {changes} changes, {loss:?}"));
            assert!(state >= done_at.iter().filter(|at| **at <= changes).count(), "{changes} changes, {loss:?}");
            seen[state] += 1;
            searches_agree(&log);
            assert_eq!(unfinished(&crashed), Vec::<PathBuf>::new());
            if changes % 7 == 0 {
                for first in firsts {
                    rewrite(&engine, &log, first, Box::new(hollowed)).unwrap();
                }
                assert_eq!(read_all(&log), states[2], "{changes} changes, {loss:?}");
            }
        }
    }
    assert!(seen.iter().all(|count| *count > 0) && leftovers > 0, "{seen:?}, {leftovers}");
}

#[test]
fn who_reads_the_old_file_goes_on_with_it() {
    let vfs = SimVfs::new();
    let (engine, log) = filled(&vfs);
    let old = log.group.history.segments(&log.core, &log.group).unwrap()[0].clone();
    let last = old.end(&log.core).unwrap().last.index;
    // Not open when it is replaced, and its end is not known to anybody else.
    old.close();
    rewrite(&engine, &log, old.first, Box::new(hollowed)).unwrap();
    old.close();
    let mut from = old.first;
    while from <= last {
        let entries = read(&log.core, &old, Want { from, to: last + 1, bytes: 5000, mode: ReadMode::Full }).unwrap();
        for found in entries {
            assert_eq!(found, entry(from, 1, 904));
            from += 1;
        }
    }
    assert_eq!(block(log.read(3, 4, 1, ReadMode::Full)).unwrap(), [after(entry(3, 1, 904))]);
}

#[test]
fn a_damaged_segment_is_left_alone() {
    let vfs = SimVfs::new();
    let (engine, log) = filled(&vfs);
    let (first, last) = (sealed(&log)[0].first_index, sealed(&log)[0].last_index);
    engine.close();
    let path = segment_path(first);
    let bytes = vfs.content(&path).unwrap().len() as u64;
    for byte in (64..bytes - 136).step_by(997) {
        let vfs = vfs.fork();
        vfs.flip_bit(&path, byte, (byte % 8) as u8);
        let before = vfs.content(&path);
        let (engine, _) = open(&vfs);
        let log = engine.group(GroupId(1)).unwrap();
        // Also behind entries that are to be replaced: what was written of them by then is thrown away.
        let result = rewrite(&engine, &log, first, Box::new(hollowed));
        assert!(matches!(&result, Err(RewriteError::Damaged { .. })), "byte {byte}: {result:?}");
        assert_eq!((vfs.content(&path), unfinished(&vfs)), (before, vec![]), "byte {byte}");
        let sound = (first..=last).filter(|i| block(log.read(*i, i + 1, 1, ReadMode::Full)).is_ok()).count() as u64;
        // One entry is damaged, and those up to the next point of the index can't be found any more.
        assert!((last - first - 2..=last - first).contains(&sound), "byte {byte}: {sound} of {first} to {last}");
    }
}

#[test]
fn a_full_disk_leaves_the_old_one() {
    let vfs = SimVfs::new();
    let (engine, log) = filled(&vfs);
    let segments = sealed(&log);
    let used: u64 = vfs.paths().iter().map(|path| vfs.content(path).map_or(0, |c| c.len() as u64)).sum();
    for room in [0, 100, 20_000, 40_000] {
        vfs.set_capacity(Some(used + room));
        let result = rewrite(&engine, &log, segments[0].first_index, Box::new(hollowed));
        assert!(matches!(&result, Err(RewriteError::Io { .. })), "{room}: {result:?}");
        assert_eq!((unfinished(&vfs), read_all(&log)), (vec![], want(&segments, &[])));
    }
    vfs.set_capacity(None);
    rewrite(&engine, &log, segments[0].first_index, Box::new(hollowed)).unwrap();
    assert_eq!(read_all(&log), want(&segments, &[segments[0].first_index]));
}

#[test]
fn what_is_no_sealed_segment_any_more_is_not_rewritten() {
    let vfs = SimVfs::new();
    let (engine, log) = filled(&vfs);
    let segments = log.oldest_segments();
    let newest = segments.last().unwrap();
    assert!(!newest.sealed);
    for first in [newest.first_index, 2, COUNT + 1] {
        let result = rewrite(&engine, &log, first, Box::new(hollowed));
        assert!(matches!(&result, Err(RewriteError::Missing { .. })), "{first}: {result:?}");
    }
    let bad = |_: &Entry| Some(NewPayload { head_len: 6, payload: Bytes::from_static(b"short") });
    assert!(matches!(rewrite(&engine, &log, 1, Box::new(bad)), Err(RewriteError::BadPayload { index: 1, .. })));
    // Retention was here first.
    log.purge(Position { term: 1, index: segments[0].last_index });
    engine.drive();
    assert!(matches!(rewrite(&engine, &log, 1, Box::new(hollowed)), Err(RewriteError::Missing { .. })));
    let second = segments[1].first_index;
    let result = block(async {
        let both = async {
            engine.remove_group(GroupId(1)).unwrap();
            engine.drive();
        };
        tokio::join!(log.rewrite_segment(second, Box::new(hollowed)), both).0
    });
    assert!(matches!(&result, Err(RewriteError::Gone(_))), "{result:?}");
    let result =
        block(async { tokio::join!(log.rewrite_segment(second, Box::new(hollowed)), async { engine.close() }).0 });
    assert!(matches!(&result, Err(RewriteError::Gone(_))), "{result:?}");
    assert!(matches!(block(log.rewrite_segment(second, Box::new(hollowed))), Err(RewriteError::Gone(_))));
}

#[test]
fn a_failed_sync_is_final() {
    let vfs = SimVfs::new();
    let (engine, log) = filled(&vfs);
    let segments = sealed(&log);
    vfs.fail_syncs(Some(".new"));
    assert!(matches!(rewrite(&engine, &log, 1, Box::new(hollowed)), Err(RewriteError::Io { .. })));
    assert!(matches!(log.append(vec![], Box::new(|_| ())), Ok(())));
    assert!(matches!(log.append(vec![entry(COUNT + 1, 1, 5)], Box::new(|_| ())), Err(AppendError::Stopped(_))));
    drop((engine, log));
    vfs.fail_syncs(None);
    let (engine, _) = open(&vfs);
    assert_eq!(read_all(&engine.group(GroupId(1)).unwrap()), want(&segments, &[]));
}
