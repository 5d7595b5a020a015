//! One thing at a time: what each call promises.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::sim::{Loss, SimVfs};
use crate::*;

pub(super) const DIR: &str = "/node";

pub(super) fn options() -> LogOptions {
    LogOptions {
        file_bytes: 64 << 10,
        files_min: 2,
        files_max: 6,
        segment_bytes: 64 << 10,
        index_interval_bytes: 1024,
        tail_cache_bytes: 4 << 10,
        retire_step_bytes: 8 << 10,
        drive: Drive::Manual,
        ..LogOptions::default()
    }
}

pub(super) fn open(vfs: &SimVfs) -> (LogEngine, RecoveryReport) {
    LogEngine::open(Arc::new(vfs.clone()), Path::new(DIR), options()).unwrap()
}

pub(super) fn entry(index: u64, term: u64, len: usize) -> Entry {
    let fill = (index as u8) ^ (term as u8).wrapping_mul(31);
    let head_len = len.min(8) as u32;
    let payload = Bytes::from(vec![fill; len]);
    Entry { term, index, kind: 1, mark: index * 10, time_ms: index as i64 * 100, head_len, payload }
}

/// Results of callbacks, in the order of the calls.
#[derive(Clone, Default)]
pub(super) struct Calls(Arc<Mutex<Vec<(u64, bool)>>>);

impl Calls {
    pub(super) fn expect(&self, n: u64) -> FlushCallback {
        let calls = Arc::clone(&self.0);
        Box::new(move |result| calls.lock().push((n, result.is_ok())))
    }

    pub(super) fn seen(&self) -> Vec<(u64, bool)> {
        self.0.lock().clone()
    }
}

pub(super) fn read_all(log: &GroupLog) -> Vec<Entry> {
    let state = log.state();
    let (Some(first), Some(last)) = (state.first, state.last) else { return Vec::new() };
    let mut entries = Vec::new();
    let mut from = first;
    while from <= last.index {
        let part = block(log.read(from, last.index + 1, 3000, ReadMode::Full)).unwrap();
        assert!(!part.is_empty());
        from += part.len() as u64;
        entries.extend(part);
    }
    entries
}

/// Manual engines never really wait.
pub(super) fn block<F: std::future::Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn append_is_readable_at_once_and_durable_after_the_sync() {
    let vfs = SimVfs::new();
    let (engine, report) = open(&vfs);
    assert_eq!((report.groups, report.torn), (0, None));
    let log = engine.group(GroupId(7)).unwrap();
    let calls = Calls::default();
    log.append(vec![entry(1, 1, 100), entry(2, 1, 50)], calls.expect(1)).unwrap();
    assert_eq!((read_all(&log).len(), log.durable_index(), calls.seen()), (2, None, vec![]));
    engine.drive();
    assert_eq!((log.durable_index(), calls.seen()), (Some(2), vec![(1, true)]));
    assert_eq!(log.state().last, Some(Position { term: 1, index: 2 }));
    assert_eq!(log.state().last_mark, Some(20));
    drop((engine, log));

    let (engine, report) = open(&vfs);
    assert!(report.clean);
    let log = engine.group(GroupId(7)).unwrap();
    assert_eq!(read_all(&log), [entry(1, 1, 100), entry(2, 1, 50)]);
    assert_eq!(log.durable_index(), Some(2));
}

#[test]
fn vote_committed_truncate_and_purge_survive() {
    let vfs = SimVfs::new();
    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    let calls = Calls::default();
    log.append((1..=10).map(|i| entry(i, 1, 20)).collect(), calls.expect(1)).unwrap();
    log.save_vote(Vote { term: 3, node: 2, committed: true }, calls.expect(2)).unwrap();
    log.save_committed(Some(Position { term: 1, index: 6 }));
    log.truncate_after(Some(7)).unwrap();
    log.append(vec![entry(8, 3, 30)], calls.expect(3)).unwrap();
    log.purge(Position { term: 1, index: 4 });
    assert_eq!(
        log.truncate_after(Some(5)),
        Err(AppendError::BelowCommitted { group: GroupId(1), after: Some(5), committed: 6 })
    );
    engine.drive();
    assert_eq!(calls.seen(), [(1, true), (2, true), (3, true)]);
    let want: Vec<Entry> = vec![entry(5, 1, 20), entry(6, 1, 20), entry(7, 1, 20), entry(8, 3, 30)];
    assert_eq!(read_all(&log), want);
    drop((engine, log));

    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    assert_eq!(read_all(&log), want);
    assert_eq!(log.read_vote(), Some(Vote { term: 3, node: 2, committed: true }));
    assert_eq!(log.read_committed(), Some(Position { term: 1, index: 6 }));
    assert_eq!(log.state().purged, Some(Position { term: 1, index: 4 }));
}

#[test]
fn unsynced_entries_may_be_lost_and_synced_ones_not() {
    let vfs = SimVfs::new();
    vfs.record();
    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    let calls = Calls::default();
    log.append(vec![entry(1, 1, 20)], calls.expect(1)).unwrap();
    engine.drive();
    let synced = vfs.trace_len();
    log.append_lazy(vec![entry(2, 1, 20)], calls.expect(2)).unwrap();
    assert_eq!(calls.seen(), [(1, true), (2, true)]);
    let (after, _) = open(&vfs.crashed_at(synced, Loss::All));
    assert_eq!(read_all(&after.group(GroupId(1)).unwrap()), [entry(1, 1, 20)]);
}

#[test]
fn ring_turns_and_history_is_read_from_segments() {
    let vfs = SimVfs::new();
    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    let calls = Calls::default();
    for i in 1..=600 {
        log.append(vec![entry(i, 1, 1000)], calls.expect(i)).unwrap();
        log.save_committed(Some(Position { term: 1, index: i }));
        engine.drive();
    }
    assert_eq!(calls.seen().len(), 600);
    assert!(engine.stats().retired_bytes > 300_000, "{:?}", engine.stats());
    assert!(engine.stats().files <= 6);
    let want: Vec<Entry> = (1..=600).map(|i| entry(i, 1, 1000)).collect();
    assert!(read_all(&log) == want);
    drop((engine, log));
    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    assert!(read_all(&log) == want);
    let segments = log.oldest_segments();
    assert!(segments.len() > 3);
    for pair in segments.windows(2) {
        assert_eq!(pair[0].last_index + 1, pair[1].first_index);
        assert!(pair[0].sealed);
    }
    for i in [1, 2, 63, 64, 65, 300, 599, 600] {
        assert_eq!(block(log.find_mark(i * 10 - 1)).unwrap(), Some(i));
        assert_eq!(block(log.find_time(i as i64 * 100)).unwrap(), Some(i));
        assert_eq!(block(log.read(i, i + 1, 1, ReadMode::Full)).unwrap(), [entry(i, 1, 1000)]);
    }
    assert_eq!(block(log.find_mark(6000)).unwrap(), None);
}
