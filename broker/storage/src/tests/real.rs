//! The engine with its own threads: on a real folder, and on a simulated disk that loses power in the middle.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use parking_lot::Mutex;

use super::basic::{DIR, block, entry, options};
use crate::sim::{Loss, SimVfs};
use crate::vfs::real::RealVfs;
use crate::*;

fn threaded() -> LogOptions {
    LogOptions { drive: Drive::Threads, ..options() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Appends and waits until it is durable.
async fn append(log: &GroupLog, entries: Vec<Entry>) {
    let last = entries.last().map_or(0, |e| e.index);
    log.append(entries, Box::new(|_| ())).unwrap();
    log.wait_durable(last).await.unwrap();
}

#[test]
fn a_real_folder_keeps_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node");
    let options = LogOptions { direct_io: true, ..threaded() };
    runtime().block_on(async {
        let (engine, _) = LogEngine::open(Arc::new(RealVfs), &path, options.clone()).unwrap();
        let tasks: Vec<_> = (0..8u64)
            .map(|id| {
                let log = engine.group(GroupId(id)).unwrap();
                tokio::spawn(async move {
                    for i in (1..=200).step_by(2) {
                        append(&log, vec![entry(i, 1, 700), entry(i + 1, 1, 5000)]).await;
                        log.save_committed(Some(Position { term: 1, index: i + 1 }));
                        let read = log.read(i / 2 + 1, i + 2, 20_000, ReadMode::Full).await.unwrap();
                        assert_eq!(read[0].index, i / 2 + 1);
                    }
                    log.save_vote(Vote { term: id, node: 1, committed: true }, Box::new(|_| ())).unwrap();
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(engine.stats().retired_bytes > 0);
        engine.close();
        assert!(engine.group(GroupId(1)).is_err(), "closed");
    });
    runtime().block_on(async {
        let (engine, report) = LogEngine::open(Arc::new(RealVfs), &path, options).unwrap();
        assert!(report.clean && report.torn.is_none() && report.damaged.is_empty(), "{report:?}");
        for id in 0..8u64 {
            let log = engine.group(GroupId(id)).unwrap();
            assert_eq!(log.read_vote(), Some(Vote { term: id, node: 1, committed: true }));
            let all = log.read(1, 201, usize::MAX, ReadMode::Full).await.unwrap();
            let want: Vec<Entry> = (1..=200).map(|i| entry(i, 1, if i % 2 == 1 { 700 } else { 5000 })).collect();
            assert!(all == want, "group {id}");
            assert!(log.size_bytes() > 500_000);
        }
        engine.remove_group(GroupId(3)).unwrap();
        assert!(!engine.groups().contains(&GroupId(3)));
    });
    assert!(path.join("groups").exists());
}

/// Entry point of the second process of the test below; does nothing on its own.
#[test]
fn second_process() {
    let Ok(dir) = std::env::var("BUSBAR_STORAGE_TEST_SECOND") else { return };
    match LogEngine::open(Arc::new(RealVfs), Path::new(&dir), threaded()) {
        Err(error @ OpenError::Locked(_)) => assert!(error.to_string().contains("in use by another process")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = LogEngine::open(Arc::new(RealVfs), dir.path(), threaded()).unwrap();
    assert!(matches!(LogEngine::open(Arc::new(RealVfs), dir.path(), threaded()), Err(OpenError::Locked(_))));
    let second = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::real::second_process"])
        .env("BUSBAR_STORAGE_TEST_SECOND", dir.path())
        .output()
        .unwrap();
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stdout));
    engine.close();
    LogEngine::open(Arc::new(RealVfs), dir.path(), threaded()).unwrap();
}

#[test]
fn callbacks_may_append() {
    let vfs = SimVfs::new();
    let (engine, _) = LogEngine::open(Arc::new(vfs), Path::new(DIR), threaded()).unwrap();
    let log = engine.group(GroupId(1)).unwrap();
    let (sender, receiver) = channel();
    let again = log.clone();
    let first = move |result: std::io::Result<()>| {
        result.unwrap();
        let done = Box::new(move |result| sender.send(result).unwrap());
        again.append(vec![entry(2, 1, 10)], done).unwrap();
    };
    log.append(vec![entry(1, 1, 10)], Box::new(first)).unwrap();
    receiver.recv().unwrap().unwrap();
    assert_eq!(log.durable_index(), Some(2));
}

#[test]
fn waiting_ends_when_the_entry_is_cut_or_the_engine_closes() {
    let vfs = SimVfs::new();
    let (engine, _) = LogEngine::open(Arc::new(vfs), Path::new(DIR), options()).unwrap();
    let log = engine.group(GroupId(1)).unwrap();
    log.append(vec![entry(1, 1, 10), entry(2, 1, 10)], Box::new(|_| ())).unwrap();
    runtime().block_on(async {
        let waits = [1, 2].map(|index| {
            let log = log.clone();
            tokio::spawn(async move { log.wait_durable(index).await })
        });
        tokio::task::yield_now().await;
        log.truncate_after(Some(1)).unwrap();
        engine.drive();
        let [first, second] = waits;
        assert!(first.await.unwrap().is_ok());
        assert!(second.await.unwrap().is_err());
    });
    engine.close();
    assert!(block(log.wait_durable(1)).is_ok());
}

/// Length of the trace at the acknowledgement, group, last index.
type Acks = Arc<Mutex<Vec<(usize, u64, u64)>>>;

/// Three writers, the journal and the upkeep race; power is lost at random places of the trace. What was acknowledged by then is
/// there, what is there was asked for.
#[test]
fn power_loss_under_racing_threads() {
    for round in 0..6u64 {
        let vfs = SimVfs::new();
        vfs.record();
        let (engine, _) = LogEngine::open(Arc::new(vfs.clone()), Path::new(DIR), threaded()).unwrap();
        let acks = Acks::default();
        let tasks: Vec<_> = (0..3u64)
            .map(|id| {
                let (log, vfs, acks) = (engine.group(GroupId(id)).unwrap(), vfs.clone(), Arc::clone(&acks));
                std::thread::spawn(move || drive_one(&log, &vfs, &acks, id, round))
            })
            .collect();
        tasks.into_iter().for_each(|task| task.join().unwrap());
        drop(engine);
        let len = vfs.trace_len();
        for crash in 0..150u64 {
            let changes = (crash * 7919 + round * 31) as usize % (len + 1);
            let loss = match crash % 3 {
                0 => Loss::All,
                1 => Loss::None,
                _ => Loss::Some(crash * 17 + round),
            };
            let found = Arc::new(vfs.crashed_at(changes, loss));
            let (engine, report) = LogEngine::open(found, Path::new(DIR), options()).unwrap();
            assert!(report.damaged.is_empty());
            for id in 0..3u64 {
                let log = engine.group(GroupId(id)).unwrap();
                let acked = acks.lock().iter().filter(|a| a.0 <= changes && a.1 == id).map(|a| a.2).max().unwrap_or(0);
                let last = log.state().last.map_or(0, |at| at.index);
                assert!(
                    last >= acked,
                    "round {round}, {changes} of {len}, {loss:?}: group {id} ends at {last} < {acked}"
                );
                super::basic::read_all(&log);
            }
        }
    }
}

/// Appends a sliding window, commits and purges behind it; entries above what was acknowledged are cut now and then.
fn drive_one(log: &GroupLog, vfs: &SimVfs, acks: &Acks, id: u64, round: u64) {
    let (mut next, mut term) = (1u64, 1u64);
    for step in 0..120u64 {
        let entries: Vec<Entry> = (next..next + 3).map(|i| entry(i, term, 200 + (i * 97 % 900) as usize)).collect();
        next += 3;
        let (sender, receiver) = channel();
        let (acks, vfs, last) = (Arc::clone(acks), vfs.clone(), next - 1);
        let done = move |result: std::io::Result<()>| {
            result.unwrap();
            acks.lock().push((vfs.trace_len(), id, last));
            let _ = sender.send(());
        };
        if (step + round) % 9 == 8 {
            // Never acknowledged, soon cut.
            log.append_lazy(entries, Box::new(|_| ())).unwrap();
            log.truncate_after(Some(next - 4)).unwrap();
            (next, term) = (next - 3, term + 1);
            continue;
        }
        log.append(entries, Box::new(done)).unwrap();
        if step % 4 != 3 {
            receiver.recv().unwrap();
            log.save_committed(Some(Position { term, index: next - 1 }));
            if step % 10 == 5 && next > 40 {
                log.purge(Position { term, index: next - 40 });
            }
        } else {
            receiver.recv().unwrap();
        }
    }
}
