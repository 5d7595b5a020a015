//! Reads the counters of the brokers' processes and disks at both ends of a measured period, and what lies between.
//!
//! Invariant: a counter that can't be read is absent in the difference; it never counts as 0.

use std::{collections::BTreeMap, ffi::OsString, fs, time::Duration};

use anyhow::Context as _;
use serde::Serialize;

use super::{
    brokers::{Brokers, Disk},
    counters::{self, DiskCounters},
};
use crate::load::clock::{Clock, Nanos};

/// Written to `/proc/PID/clear_refs`, makes the peak begin anew.
const CLEAR_PEAK: &str = "5";

/// All counters at one time.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    at: Nanos,
    processes: Vec<Process>,
    disks: Option<DiskCounters>,
}

/// Of one process.
#[derive(Clone, Debug)]
struct Process {
    cpu_ticks: u64,
    written_bytes: Option<u64>,
    /// By thread: those of one that has ended are gone with it, and must not be taken from those of the others.
    context_switches: Option<BTreeMap<OsString, u64>>,
    peak_bytes: Option<u64>,
}

impl Reading {
    /// Reads everything; some milliseconds.
    ///
    /// # Errors
    /// When a broker's process has ended.
    pub(super) fn take(brokers: &Brokers, clock: &Clock) -> anyhow::Result<Self> {
        let processes = brokers.pids.iter().map(|&pid| Process::read(pid)).collect::<anyhow::Result<_>>()?;
        let disks = brokers.disks.iter().map(read_disk).collect::<Option<Vec<_>>>();
        Ok(Self { at: clock.now(), processes, disks: disks.and_then(|all| all.into_iter().reduce(DiskCounters::and)) })
    }

    /// From `earlier` to this.
    pub(super) fn since(&self, earlier: &Self) -> Usage {
        let pairs = || self.processes.iter().zip(&earlier.processes);
        let written = |(now, then): (&Process, &Process)| Some(now.written_bytes?.saturating_sub(then.written_bytes?));
        let ticks: u64 = pairs().map(|(now, then)| now.cpu_ticks.saturating_sub(then.cpu_ticks)).sum();
        let disks = self.disks.zip(earlier.disks).map(|(now, then)| now.since(then));
        Usage {
            seconds: Duration::from_nanos(self.at.since(earlier.at)).as_secs_f64(),
            cpu_seconds: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            process_written_bytes: pairs().map(written).sum(),
            context_switches: pairs().map(|(now, then)| now.switches_since(then)).sum(),
            peak_bytes: self.processes.iter().map(|process| process.peak_bytes).collect(),
            disk_flushes: disks.and_then(|disks| disks.flushes),
            disk_writes: disks.map(|disks| disks.writes),
            disk_written_bytes: disks.map(|disks| disks.written_bytes),
        }
    }
}

impl Process {
    fn read(pid: u32) -> anyhow::Result<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let stat = read("stat").with_context(|| format!("watch process {pid}"))?;
        let cpu_ticks = counters::cpu_ticks(&stat).with_context(|| format!("/proc/{pid}/stat is not as expected"))?;
        Ok(Self {
            cpu_ticks,
            written_bytes: read("io").ok().as_deref().and_then(counters::write_bytes),
            context_switches: context_switches(pid),
            peak_bytes: read("status").ok().as_deref().and_then(counters::peak_bytes),
        })
    }

    fn switches_since(&self, earlier: &Self) -> Option<u64> {
        let (now, then) = (self.context_switches.as_ref()?, earlier.context_switches.as_ref()?);
        // A thread that is new began at 0.
        let of = |(thread, count): (&OsString, &u64)| count.saturating_sub(then.get(thread).copied().unwrap_or(0));
        Some(now.iter().map(of).sum())
    }
}

/// Of all threads that live now.
fn context_switches(pid: u32) -> Option<BTreeMap<OsString, u64>> {
    let mut threads = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let thread = thread.ok()?;
        // It may end between being listed and being read.
        let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
        threads.insert(thread.file_name(), counters::context_switches(&status)?);
    }
    Some(threads)
}

fn read_disk(disk: &Disk) -> Option<DiskCounters> {
    DiskCounters::parse(&fs::read_to_string(&disk.stat).ok()?)
}

/// Lets the peak of each broker's memory begin anew. Where that is not permitted, the peak is that of its whole life.
pub(super) fn forget_peaks(brokers: &Brokers) -> bool {
    let forgotten: Vec<bool> =
        brokers.pids.iter().map(|pid| fs::write(format!("/proc/{pid}/clear_refs"), CLEAR_PEAK).is_ok()).collect();
    forgotten.into_iter().all(|forgotten| forgotten)
}

/// What the brokers took in a measured period, all of them together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Usage {
    /// Length of the period.
    pub(super) seconds: f64,
    /// User and system time.
    pub(super) cpu_seconds: f64,
    /// Bytes that the processes had written to a disk.
    pub(super) process_written_bytes: Option<u64>,
    /// Of all their threads.
    pub(super) context_switches: Option<u64>,
    /// The most memory of each that was resident.
    pub(super) peak_bytes: Option<Vec<u64>>,
    /// Flushes of the disks' caches, whoever asked for them.
    pub(super) disk_flushes: Option<u64>,
    /// Write requests that the disks completed.
    pub(super) disk_writes: Option<u64>,
    /// Bytes of them.
    pub(super) disk_written_bytes: Option<u64>,
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn this_process() -> Brokers {
        Brokers { pids: vec![std::process::id()], ..Brokers::default() }
    }

    #[test]
    fn this_process_can_be_watched() {
        let (brokers, clock) = (this_process(), Clock::start());
        let before = Reading::take(&brokers, &clock).expect("it runs");
        (0u64..20_000_000).for_each(|n| {
            std::hint::black_box(n);
        });
        let usage = Reading::take(&brokers, &clock).expect("it runs").since(&before);
        assert!(usage.seconds > 0.0 && usage.cpu_seconds < 60.0, "{usage:?}");
        assert!(usage.context_switches.is_some() && usage.peak_bytes.expect("told")[0] > 1 << 16);
        assert_eq!((usage.disk_flushes, usage.disk_writes), (None, None), "no disk was named");
    }

    #[test]
    fn a_process_that_is_gone_is_told() {
        // No process has this number: the kernel's own limit is 4,194,304.
        let brokers = Brokers { pids: vec![u32::MAX], ..Brokers::default() };
        let error = Reading::take(&brokers, &Clock::start()).expect_err("gone");
        assert!(error.to_string().contains("watch process"), "{error:#}");
    }

    #[test]
    fn what_one_process_does_not_tell_is_absent_for_all() {
        let process = |written_bytes, cpu_ticks| Process {
            cpu_ticks,
            written_bytes,
            context_switches: Some([("1".into(), cpu_ticks * 2), (format!("t{cpu_ticks}").into(), 5)].into()),
            peak_bytes: Some(7),
        };
        let reading = |millis: u64, processes: Vec<Process>| Reading {
            at: Nanos::new(millis * 1_000_000),
            processes,
            disks: Some(DiskCounters { writes: millis, written_bytes: millis * 10, flushes: None }),
        };
        let before = reading(0, vec![process(Some(1), 10), process(None, 0)]);
        let after = reading(500, vec![process(Some(5), 30), process(Some(9), 1)]);
        let usage = after.since(&before);
        // Thread 1 of both, and a new one each; the ones that ended take nothing away.
        assert_eq!((usage.seconds, usage.process_written_bytes, usage.context_switches), (0.5, None, Some(42 + 10)));
        assert_eq!((usage.disk_flushes, usage.disk_writes, usage.disk_written_bytes), (None, Some(500), Some(5_000)));
        assert_eq!(usage.peak_bytes, Some(vec![7, 7]));
    }
}
