//! `busbar-bench disk`: what the disk can do by itself, the yardstick of a cluster on it: as many sequential writers as a record has copies, each writing 1 MiB and syncing it, over
//! and over, in files that were filled before.
//!
//! A cluster whose replicas share one disk writes each record once a replica, so what it can acknowledge at most is what
//! *one* of the writers gets.

use std::{
    fs::{self, File},
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use crate::load::{
    clock::Clock,
    options::{Output, positive_duration},
    payload::{Filler, RunId},
};

/// Measures what the disk below a folder can do: writers at once, each writing 1 MiB and syncing it, over and over
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Folder to write in, on the disk of the brokers' data folders
    dir: PathBuf,
    /// Writers at once: as many as copies of a record share the disk
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    writers: u8,
    /// Measured time, in seconds or as 500ms, 2m, ...
    #[arg(long, default_value = "3", value_name = "TIME", value_parser = positive_duration)]
    duration: Duration,
    /// Output; json prints one object
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// Measures and returns what is to be printed.
///
/// # Errors
/// When a file can't be written.
pub(crate) fn run(options: &Options) -> anyhow::Result<String> {
    let Options { dir, writers, duration, output } = options;
    let yardstick = Yardstick::measure(&vec![dir.clone(); usize::from(*writers)], *duration)?;
    Ok(match output {
        Output::Text => yardstick.line() + "\n",
        Output::Json => serde_json::to_string(&yardstick).context("write the results as JSON")? + "\n",
    })
}

/// Written and synced at once.
const WRITE_BYTES: usize = 1 << 20;
/// Of each writer; it begins again at the end.
const FILE_BYTES: u64 = 64 << 20;

/// The result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Yardstick {
    /// Writers at once.
    pub(crate) writers: usize,
    /// What they wrote and synced, all together, in millions of bytes a second.
    pub(crate) megabytes_per_second: f64,
    /// Writes that were synced, all together, a second.
    pub(crate) syncs_per_second: f64,
}

impl Yardstick {
    /// What each writer got: the most that a cluster on this disk can acknowledge.
    pub(crate) fn each(&self) -> f64 {
        self.megabytes_per_second / self.writers.max(1) as f64
    }

    /// For people.
    pub(crate) fn line(&self) -> String {
        format!(
            "disk: {} sequential writers at once, 1 MiB and fdatasync each: {:.1} MB/s together, {:.1} MB/s each, \
             {:.0} syncs/s",
            self.writers,
            self.megabytes_per_second,
            self.each(),
            self.syncs_per_second
        )
    }

    /// Measures in these folders, a writer in each; takes a little longer than `time`. Blocks.
    ///
    /// # Errors
    /// When a file can't be written.
    pub(crate) fn measure(folders: &[PathBuf], time: Duration) -> anyhow::Result<Self> {
        let pattern = Filler::new(RunId::random().0, 0).bytes();
        let mut files = Vec::new();
        for (index, folder) in folders.iter().enumerate() {
            files.push(Scratch::filled(folder, index)?);
        }
        let clock = Clock::start();
        let results = std::thread::scope(|scope| {
            let write = |scratch| scope.spawn(|| write_until(scratch, &pattern, clock, time));
            let threads: Vec<_> = files.iter_mut().map(write).collect();
            threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        let mut rates = Vec::new();
        for result in results {
            let written = result.map_err(|_| anyhow::Error::msg("a writer of the disk's yardstick panicked"))?;
            rates.push(written.context("measure the disk")?);
        }
        let syncs_per_second: f64 = rates.iter().sum();
        Ok(Self {
            writers: rates.len(),
            megabytes_per_second: syncs_per_second * WRITE_BYTES as f64 / 1e6,
            syncs_per_second,
        })
    }
}

/// Synced writes a second, over the time that they really took.
fn write_until(scratch: &mut Scratch, pattern: &[u8], clock: Clock, time: Duration) -> std::io::Result<f64> {
    let begin = clock.now();
    let end = begin.after(time);
    let mut writes = 0u64;
    loop {
        let at = (writes * WRITE_BYTES as u64) % FILE_BYTES;
        scratch.file.seek(SeekFrom::Start(at))?;
        // Another part of the pattern each time, so that nothing on the way finds the same block again.
        let from = (writes as usize * 4_099) % (pattern.len() - WRITE_BYTES);
        scratch.file.write_all(&pattern[from..from + WRITE_BYTES])?;
        scratch.file.sync_data()?;
        writes += 1;
        let now = clock.now();
        if now >= end {
            return Ok(writes as f64 / Duration::from_nanos(now.since(begin)).as_secs_f64());
        }
    }
}

/// A file that goes away.
struct Scratch {
    file: File,
    path: PathBuf,
}

impl Scratch {
    /// A file of zeros, synced: its blocks are the file's before the clock runs.
    fn filled(folder: &Path, index: usize) -> anyhow::Result<Self> {
        let path = folder.join(format!(".busbar-bench-{}-{index}", std::process::id()));
        let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        let mut scratch = Self { file, path };
        let zeros = vec![0u8; WRITE_BYTES];
        for _ in 0..FILE_BYTES / WRITE_BYTES as u64 {
            scratch.file.write_all(&zeros).with_context(|| format!("fill {}", scratch.path.display()))?;
        }
        scratch.file.sync_all().with_context(|| format!("sync {}", scratch.path.display()))?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whoever took it away before us did what we would.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_measured_and_left_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let both = [folder.path().to_path_buf(), folder.path().to_path_buf()];
        let result = Yardstick::measure(&both, Duration::from_millis(20)).expect("measured");
        assert_eq!(result.writers, 2);
        assert!(result.megabytes_per_second > 0.0 && result.each() * 2.0 <= result.megabytes_per_second * 1.001);
        assert_eq!(fs::read_dir(folder.path()).expect("still there").count(), 0);
        let missing = folder.path().join("missing");
        assert!(Yardstick::measure(&[missing], Duration::ZERO).is_err(), "no such folder");
    }

    #[test]
    fn the_line_names_both_figures() {
        let yardstick = Yardstick { writers: 3, megabytes_per_second: 300.0, syncs_per_second: 286.1 };
        let want = "disk: 3 sequential writers at once, 1 MiB and fdatasync each: 300.0 MB/s together, 100.0 MB/s each, \
                    286 syncs/s";
        assert_eq!(yardstick.line(), want);
    }
}
