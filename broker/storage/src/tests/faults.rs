//! Disks that fail, fill up, rot, or hand back old blocks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::basic::{Calls, DIR, block, entry, open, options, read_all};
use crate::sim::{Loss, SimVfs};
use crate::*;

fn journal(slot: u32) -> PathBuf {
    Path::new(DIR).join("journal").join(format!("{slot:04}.journal"))
}

fn try_open(vfs: &SimVfs) -> Result<(LogEngine, RecoveryReport), OpenError> {
    LogEngine::open(Arc::new(vfs.clone()), Path::new(DIR), options())
}

/// Two groups with entries, a vote and a truncation, closed in order.
fn sample() -> (SimVfs, Vec<Entry>, Vec<Entry>) {
    let vfs = SimVfs::new();
    let (engine, _) = open(&vfs);
    let calls = Calls::default();
    let (a, b) = (engine.group(GroupId(1)).unwrap(), engine.group(GroupId(2)).unwrap());
    for i in 1..=5 {
        a.append(vec![entry(i, 1, 40)], calls.expect(i)).unwrap();
        b.append(vec![entry(i, 2, 25)], calls.expect(i)).unwrap();
        engine.drive();
    }
    a.save_vote(Vote { term: 3, node: 1, committed: false }, calls.expect(9)).unwrap();
    b.truncate_after(Some(4)).unwrap();
    engine.close();
    (vfs, (1..=5).map(|i| entry(i, 1, 40)).collect(), (1..=4).map(|i| entry(i, 2, 25)).collect())
}

/// What a reader gets; damaged entries are errors.
fn read_each(log: &GroupLog) -> Vec<Result<Entry, ReadError>> {
    let (Some(first), Some(last)) = (log.state().first, log.state().last) else { return Vec::new() };
    let one = |i| block(log.read(i, i + 1, 1, ReadMode::Full)).map(|mut entries| entries.remove(0));
    (first..=last.index).map(one).collect()
}

/// Every bit of the journal's used part, one at a time: never served, never silently gone.
#[test]
fn every_flipped_bit_in_the_journal_is_noticed() {
    let (vfs, a, b) = sample();
    let used = vfs.content(&journal(0)).unwrap().iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let (mut refused, mut damaged, mut torn, mut harmless) = (0, 0, 0, BTreeSet::new());
    for byte in 0..used as u64 {
        let vfs = vfs.fork();
        vfs.flip_bit(&journal(0), byte, (byte % 8) as u8);
        let (engine, report) = match try_open(&vfs) {
            Ok(opened) => opened,
            Err(OpenError::Corrupt { .. } | OpenError::Version { .. }) => {
                refused += 1;
                continue;
            }
            Err(other) => panic!("byte {byte}: {other}"),
        };
        let got = [1, 2].map(|id| read_each(&engine.group(GroupId(id)).unwrap()));
        for (got, want) in got.iter().zip([&a, &b]) {
            for (got, want) in got.iter().zip(want) {
                if let Ok(got) = got {
                    assert_eq!(got, want, "byte {byte}");
                }
            }
        }
        let whole =
            got.iter().zip([&a, &b]).all(|(got, want)| got.len() == want.len() && got.iter().all(Result::is_ok));
        if !report.damaged.is_empty() {
            damaged += 1;
            assert!(!whole, "byte {byte}");
            let bad: Vec<_> = report.damaged.iter().map(|d| (d.group.0, d.index)).collect();
            for (id, got) in [1, 2].iter().zip(&got) {
                for (index, got) in (1..).zip(got) {
                    assert_eq!(got.is_err(), bad.contains(&(*id, index)), "byte {byte}, entry {index}");
                }
            }
        } else if report.torn.is_some() {
            torn += 1;
            assert!(whole, "byte {byte}: only the closing frame may be cut");
        } else {
            assert!(whole, "byte {byte}");
            harmless.insert(byte / 4096);
        }
    }
    assert!(refused > 500 && damaged > 200 && torn > 0, "{refused} refused, {damaged} damaged, {torn} torn");
    // Only one of the two header copies, and zeros between header, snapshot and frames, may rot unseen.
    assert!(harmless.iter().all(|block| *block <= 3), "{harmless:?}");
}

/// Every byte of the newest segment and of its index.
#[test]
fn flipped_bits_in_segments_are_never_served() {
    let vfs = SimVfs::new();
    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    for i in 1..=300 {
        // A size without padding: every byte counts.
        log.append(vec![entry(i, 1, 904)], Box::new(|_| ())).unwrap();
        log.save_committed(Some(Position { term: 1, index: i }));
        engine.drive();
    }
    let segments = log.oldest_segments();
    assert!(segments.len() >= 2 && segments[0].sealed);
    let last = segments[0].last_index;
    engine.close();
    let path = Path::new(DIR).join("groups").join(GroupId(1).to_string()).join("00000000000000000001.log");
    let bytes = vfs.content(&path).unwrap().len() as u64;
    let index = path.with_extension("index");
    assert!(!vfs.content(&index).unwrap().is_empty());
    let places = (0..bytes).step_by(131).map(|byte| (&path, byte)).chain((0..120).map(|byte| (&index, byte)));
    for (file, byte) in places {
        let vfs = vfs.fork();
        vfs.flip_bit(file, byte, (byte % 8) as u8);
        let (engine, _) = open(&vfs);
        let log = engine.group(GroupId(1)).unwrap();
        let mut errors = 0;
        for (index, got) in (1..=last).zip(read_each(&log)) {
            match got {
                Ok(got) => assert_eq!(got, entry(index, 1, 904), "byte {byte}"),
                Err(ReadError::Corrupt { .. }) => errors += 1,
                Err(other) => panic!("byte {byte}: {other}"),
            }
        }
        assert_eq!(errors > 0, file == &path, "byte {byte} of {}", file.display());
        assert_eq!(block(log.find_mark(last * 10)).unwrap_or(Some(last + 1)), Some(last + 1));
    }
}

#[test]
fn a_torn_tail_is_cut_kept_aside_and_reported() {
    let vfs = SimVfs::new();
    vfs.record();
    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    log.append(vec![entry(1, 1, 100)], Box::new(|_| ())).unwrap();
    engine.drive();
    let before = vfs.trace_len();
    log.append(vec![entry(2, 1, 100)], Box::new(|_| ())).unwrap();
    engine.drive();
    let torn = vfs.crashed_at(before + 1, Loss::TornLast(120));
    let (engine, report) = open(&torn);
    let tail = report.torn.clone().expect("reported");
    let kept = tail.kept_as.expect("kept");
    assert!(torn.content(&kept).unwrap().len() > 100 && kept.to_string_lossy().contains("torn-1-"));
    let log = engine.group(GroupId(1)).unwrap();
    assert_eq!(read_all(&log), [entry(1, 1, 100)]);
    log.append(vec![entry(2, 5, 60)], Box::new(|_| ())).unwrap();
    drop((engine, log));
    let (engine, report) = open(&torn);
    assert_eq!(report.torn, None);
    assert_eq!(read_all(&engine.group(GroupId(1)).unwrap()), [entry(1, 1, 100), entry(2, 5, 60)]);
}

/// A block of an earlier use of the file, or of another file, is not taken for the journal's continuation.
#[test]
fn recycled_and_misplaced_blocks_are_refused() {
    let (vfs, a, _) = sample();
    let whole = vfs.content(&journal(0)).unwrap();
    let start = 12288;
    for shift in [8usize, 72, 4096] {
        let mut bytes = whole.clone();
        bytes.copy_within(start..start + 300, start + shift);
        let vfs = vfs.fork();
        vfs.set_content(&journal(0), bytes);
        match try_open(&vfs) {
            Err(OpenError::Corrupt { .. }) => {}
            Ok((engine, _)) => assert_eq!(read_all(&engine.group(GroupId(1)).unwrap()), a, "shift {shift}"),
            Err(other) => panic!("{other}"),
        }
    }
    let vfs = vfs.fork();
    vfs.set_content(&journal(1), whole); // slot 0's content in slot 1
    let (engine, _) = open(&vfs);
    assert_eq!(read_all(&engine.group(GroupId(1)).unwrap()), a);
}

#[test]
fn a_lost_journal_file_is_damage() {
    let vfs = SimVfs::new();
    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    for i in 1..=180 {
        log.append(vec![entry(i, 1, 900)], Box::new(|_| ())).unwrap();
        engine.drive();
    }
    engine.close();
    let journal = |path: &PathBuf| path.extension().is_some_and(|e| e == "journal");
    let names: Vec<PathBuf> = vfs.paths().into_iter().filter(journal).collect();
    let mut refused = 0;
    for name in &names {
        let vfs = vfs.fork();
        vfs::Vfs::remove_file(&vfs, name).unwrap();
        match try_open(&vfs) {
            Err(OpenError::Corrupt { .. }) => refused += 1,
            // A spare; or the newest file, whose loss as a whole looks like a power loss right before its first use.
            Ok((engine, _)) => assert!(engine.group(GroupId(1)).unwrap().state().last.is_some_and(|at| at.index > 120)),
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused >= 2, "of {names:?}");
    names.iter().for_each(|name| vfs::Vfs::remove_file(&vfs, name).unwrap());
    vfs::Vfs::create_dir_all(&vfs, &Path::new(DIR).join("groups").join(GroupId(1).to_string())).unwrap();
    assert!(matches!(try_open(&vfs), Err(OpenError::Corrupt { .. })), "history without a journal");
}

#[test]
fn a_stuck_group_does_not_pin_the_ring() {
    let vfs = SimVfs::new();
    let (engine, _) = open(&vfs);
    let (stuck, busy) = (engine.group(GroupId(1)).unwrap(), engine.group(GroupId(2)).unwrap());
    stuck.append((1..=5).map(|i| entry(i, 1, 800)).collect(), Box::new(|_| ())).unwrap();
    let calls = Calls::default();
    for i in 1..=1500 {
        busy.append(vec![entry(i, 1, 900)], calls.expect(i)).unwrap();
        busy.save_committed(Some(Position { term: 1, index: i }));
        engine.drive();
        assert_eq!(calls.seen().len() as u64, i);
    }
    let stats = engine.stats();
    assert!(stats.carried_bytes > 5 * 800 * 10 && stats.files <= 6, "{stats:?}");
    assert_eq!(read_all(&stuck), (1..=5).map(|i| entry(i, 1, 800)).collect::<Vec<_>>());
    drop((engine, stuck, busy));
    let (engine, _) = open(&vfs);
    let stuck = engine.group(GroupId(1)).unwrap();
    assert_eq!(read_all(&stuck), (1..=5).map(|i| entry(i, 1, 800)).collect::<Vec<_>>());
    stuck.truncate_after(Some(3)).unwrap();
    stuck.append(vec![entry(4, 2, 10)], Box::new(|_| ())).unwrap();
    assert_eq!(read_all(&stuck).len(), 4);
}

/// More uncommitted data than the ring holds: appends wait, nothing is lost, and committing sets them free.
#[test]
fn a_full_ring_waits_for_commit() {
    let vfs = SimVfs::new();
    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    let calls = Calls::default();
    let count = 500u64;
    for i in 1..=count {
        log.append(vec![entry(i, 1, 1000)], calls.expect(i)).unwrap();
        engine.drive();
    }
    let acked = calls.seen().len() as u64;
    assert!(acked > 100 && acked < count, "{acked} of {count}");
    assert!(engine.stats().queue_bytes > 0 && engine.stats().stalls == 1);
    assert_eq!(log.durable_index(), Some(acked));
    assert_eq!(read_all(&log).len() as u64, count);
    log.save_committed(Some(Position { term: 1, index: acked }));
    for _ in 0..10 {
        engine.drive();
        log.save_committed(log.durable_index().map(|index| Position { term: 1, index }));
    }
    assert_eq!(calls.seen().len() as u64, count);
    assert_eq!(read_all(&log), (1..=count).map(|i| entry(i, 1, 1000)).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_stops_retiring_and_nothing_else() {
    let vfs = SimVfs::new();
    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    let calls = Calls::default();
    let mut next = 1;
    let append = |upto: u64, next: &mut u64| {
        while *next <= upto {
            log.append(vec![entry(*next, 1, 1000)], calls.expect(*next)).unwrap();
            log.save_committed(Some(Position { term: 1, index: *next }));
            engine.drive();
            *next += 1;
        }
    };
    append(120, &mut next);
    vfs.set_capacity(Some(0));
    assert!(engine.is_disk_low() && engine.free_disk_bytes() == 0);
    append(400, &mut next);
    assert!(calls.seen().len() < 400 && calls.seen().iter().all(|call| call.1), "waiting, not failed");
    assert_eq!(read_all(&log).len(), 400);
    vfs.set_capacity(None);
    engine.drive();
    assert_eq!(calls.seen().len(), 400);
    engine.close();
    let (engine, _) = open(&vfs);
    assert_eq!(read_all(&engine.group(GroupId(1)).unwrap()).len(), 400);
}

#[test]
fn a_failed_sync_or_write_is_final() {
    for part in ["sync", "write", "segment sync"] {
        let vfs = SimVfs::new();
        let (engine, _) = open(&vfs);
        let fatal = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&fatal);
        engine.on_fatal(move |text| {
            assert!(text.contains("injected"), "{text}");
            seen.fetch_add(1, Ordering::SeqCst);
        });
        let log = engine.group(GroupId(1)).unwrap();
        let calls = Calls::default();
        log.append(vec![entry(1, 1, 10)], calls.expect(1)).unwrap();
        engine.drive();
        match part {
            "sync" => vfs.fail_syncs(Some("journal")),
            "write" => vfs.fail_writes(Some("journal")),
            _ => vfs.fail_syncs(Some("groups")),
        }
        let mut refused = None;
        for i in 2..=400 {
            log.save_committed(log.durable_index().map(|index| Position { term: 1, index }));
            if let Err(error) = log.append(vec![entry(i, 1, 1000)], calls.expect(i)) {
                refused = Some((i, error));
                break;
            }
            engine.drive();
        }
        let (at, error) = refused.expect("the engine stopped");
        assert!(matches!(error, AppendError::Stopped(_)), "{error}");
        assert_eq!(fatal.load(Ordering::SeqCst), 1, "{part}");
        assert_eq!(calls.seen().len() as u64, at - 1, "{part}: every callback was called");
        assert_eq!(calls.seen().last().unwrap().1, part == "segment sync", "{part}");
        assert!(block(log.wait_durable(at - 1)).is_err() || part == "segment sync");
        vfs.fail_syncs(None);
        vfs.fail_writes(None);
        assert!(log.save_vote(Vote::default(), Box::new(|_| ())).is_err(), "it stays stopped");
        assert!(engine.group(GroupId(2)).is_err());
    }
}

#[test]
fn a_failed_read_is_an_error_of_that_read() {
    let vfs = SimVfs::new();
    let (engine, _) = open(&vfs);
    let log = engine.group(GroupId(1)).unwrap();
    for i in 1..=20 {
        log.append(vec![entry(i, 1, 1000)], Box::new(|_| ())).unwrap();
        engine.drive();
    }
    vfs.fail_reads(Some("journal"));
    assert!(matches!(block(log.read(1, 2, 1, ReadMode::Full)), Err(ReadError::Io { .. })));
    assert_eq!(block(log.read(20, 21, 1, ReadMode::Full)).unwrap(), [entry(20, 1, 1000)], "cached");
    vfs.fail_reads(None);
    assert_eq!(read_all(&log).len(), 20);
}

#[test]
fn damaged_entries_survive_the_recycling_of_their_file_as_damaged() {
    let vfs = SimVfs::new();
    let (engine, _) = open(&vfs);
    let (a, b) = (engine.group(GroupId(1)).unwrap(), engine.group(GroupId(2)).unwrap());
    a.append((1..=6).map(|i| entry(i, 1, 900)).collect(), Box::new(|_| ())).unwrap();
    a.save_committed(Some(Position { term: 1, index: 6 }));
    engine.drive();
    let bytes = vfs.content(&journal(0)).unwrap();
    let body = entry(3, 1, 900).payload;
    let at = bytes.windows(900).position(|window| window == &body[..]).unwrap();
    vfs.flip_bit(&journal(0), at as u64 + 450, 1);
    for i in 1..=1000 {
        b.append(vec![entry(i, 1, 900)], Box::new(|_| ())).unwrap();
        b.save_committed(Some(Position { term: 1, index: i }));
        engine.drive();
    }
    let check = |log: &GroupLog| {
        let got = read_each(log);
        assert_eq!(got.len(), 6);
        for (index, got) in (1..).zip(got) {
            match got {
                Ok(got) => assert!(index != 3 && got == entry(index, 1, 900)),
                Err(ReadError::Corrupt { index: at, .. }) => assert_eq!((index, at), (3, 3)),
                Err(other) => panic!("{other}"),
            }
        }
    };
    check(&a);
    engine.close();
    let (engine, report) = open(&vfs);
    assert_eq!(report.damaged.iter().map(|d| (d.group, d.index)).collect::<Vec<_>>(), [(GroupId(1), 3)]);
    check(&engine.group(GroupId(1)).unwrap());
}
