//! Appends from many groups to a real folder and prints MB/s and the time from append to durable.
//!
//! ```text
//! cargo run --release -p busbar-storage --example append_bench -- DIR [SECONDS] [direct] [NUMBER OF ONE RUN]
//! ```
//! Each group keeps a few entries in flight, as a pipelined raft leader would. Committed follows durable, so retiring
//! runs as it does in production. The folder is removed afterwards.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use busbar_storage::vfs::real::RealVfs;
use busbar_storage::{Entry, GroupId, GroupLog, LogEngine, LogOptions, Position};
use bytes::Bytes;

/// Groups, payload bytes, entries in flight per group.
const RUNS: [(u64, usize, usize); 8] = [
    (1, 1 << 10, 1),
    (1, 1 << 10, 64),
    (1, 64 << 10, 16),
    (1, 256 << 10, 8),
    (64, 1 << 10, 8),
    (64, 16 << 10, 4),
    (1024, 1 << 10, 4),
    (1024, 16 << 10, 2),
];

struct Run {
    bytes: AtomicU64,
    micros: Mutex<Vec<u32>>,
    stop: Instant,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap_or_else(|| "append-bench".to_owned());
    let seconds: u64 = args.next().and_then(|s| s.parse().ok()).unwrap_or(4);
    let rest: Vec<String> = args.collect();
    let direct_io = rest.iter().any(|word| word == "direct");
    let only: Option<usize> = rest.iter().find_map(|word| word.parse().ok());
    println!("groups    bytes  in flight |    MB/s      entries/s   p50 ms   p99 ms   max ms | syncs/s  files  stalls");
    for (_, (groups, size, in_flight)) in RUNS.into_iter().enumerate().filter(|(n, _)| only.is_none_or(|o| o == *n)) {
        run(Path::new(&dir), groups, size, in_flight, Duration::from_secs(seconds), direct_io);
    }
}

fn run(dir: &Path, groups: u64, size: usize, in_flight: usize, time: Duration, direct_io: bool) {
    let _ = std::fs::remove_dir_all(dir);
    let options = LogOptions { direct_io, ..LogOptions::default() };
    let (engine, _) = LogEngine::open(Arc::new(RealVfs), dir, options).expect("the folder can be used");
    let payload = Bytes::from((0..size).map(|n| (n * 7 % 251) as u8).collect::<Vec<u8>>());
    let began = Instant::now();
    let run = Arc::new(Run { bytes: AtomicU64::new(0), micros: Mutex::default(), stop: began + time });
    for id in 0..groups {
        let log = engine.group(GroupId(id)).expect("the group can be opened");
        for _ in 0..in_flight {
            next(&log, &payload, &run);
        }
    }
    std::thread::park_timeout(time);
    let took = began.elapsed();
    let stats = engine.stats();
    engine.close();
    let mut micros = std::mem::take(&mut *run.micros.lock().expect("no panic"));
    micros.sort_unstable();
    let at = |part: f64| f64::from(micros[((micros.len() - 1) as f64 * part) as usize]) / 1000.0;
    println!(
        "{groups:6} {size:8}  {in_flight:9} | {:7.1} {:14.0} {:8.2} {:8.2} {:8.2} | {:7.0} {:6} {:7}",
        run.bytes.load(Relaxed) as f64 / 1e6 / took.as_secs_f64(),
        micros.len() as f64 / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0),
        stats.syncs as f64 / took.as_secs_f64(),
        stats.files,
        stats.stalls,
    );
    let _ = std::fs::remove_dir_all(dir);
}

/// Appends one entry; when it is durable the next one follows, from the journal's own thread.
fn next(log: &GroupLog, payload: &Bytes, run: &Arc<Run>) {
    let index = log.state().last.map_or(1, |last| last.index + 1);
    let entry = Entry { term: 1, index, kind: 0, mark: index, time_ms: 0, head_len: 0, payload: payload.clone() };
    let (again, copy, shared, asked) = (log.clone(), payload.clone(), Arc::clone(run), Instant::now());
    let appended = log.append(
        vec![entry],
        Box::new(move |result| {
            if result.is_err() || Instant::now() > shared.stop {
                return;
            }
            let micros = u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX);
            shared.micros.lock().expect("no panic").push(micros);
            shared.bytes.fetch_add(copy.len() as u64, Relaxed);
            again.save_committed(Some(Position { term: 1, index }));
            next(&again, &copy, &shared);
        }),
    );
    if let Err(error) = appended {
        eprintln!("append failed: {error}");
    }
}
