//! Running a shell command for one record, for `busbar sub --exec` and `busbar reply --exec` alike: the value on its
//! stdin, the rest in `BUSBAR_*` variables (`docs/CLI.md`, "Commands for records").
//!
//! Invariants: what is kept of its stdout is bounded; a command that takes too long, or that nobody waits for any more,
//! is killed with all that it started. Never here: what its result means.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use busbar_client::ConsumedRecord;
use busbar_proto::limits;
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

/// Most bytes of stdout that are kept: no record could carry more.
const STDOUT_BYTES_MAX: u64 = limits::BATCH_BYTES_MAX as u64;
/// Longer values are left out of the environment: systems refuse to start a command with very long ones.
const VARIABLE_BYTES_MAX: usize = 32 << 10;
/// All variables together.
const VARIABLES_BYTES_MAX: usize = 256 << 10;

/// What is run, and how.
#[derive(Clone, Debug)]
pub(crate) struct Exec {
    command: String,
    timeout: Option<Duration>,
    keeps_stdout: bool,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// What it printed, where that is kept.
    pub(crate) stdout: Bytes,
}

/// The process group of a running command.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // It may have ended this moment; it is not reaped yet, so the group is nobody else's.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Exec {
    /// A command line for `sh -c` whose stdout is ours, and which may take any time.
    pub(crate) fn new(command: String) -> Self {
        Self { command, timeout: None, keeps_stdout: false }
    }

    /// The same, with its stdout kept for [`Ended`], and killed after `timeout`.
    pub(crate) fn with_result(command: String, timeout: Duration) -> Self {
        Self { command, timeout: Some(timeout), keeps_stdout: true }
    }

    /// Runs the command for a record and waits for its end; `attempt` is told where deliveries are counted. Cancelled,
    /// the command is killed.
    ///
    /// # Errors
    /// It can't be started or awaited, took too long, or printed too much.
    pub(crate) async fn run(&self, record: &ConsumedRecord, attempt: Option<u32>) -> anyhow::Result<Ended> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.command).envs(variables(record, attempt));
        command.stdin(Stdio::piped()).kill_on_drop(true).process_group(0);
        if self.keeps_stdout {
            command.stdout(Stdio::piped());
        }
        let child = command.spawn().context("the command can't be started")?;
        let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
        let end = end_of(child, record.value());
        let ended = match self.timeout {
            None => end.await,
            Some(timeout) => match tokio::time::timeout(timeout, end).await {
                Ok(ended) => ended,
                Err(_) => bail!("the command took longer than {}: killed", humantime::format_duration(timeout)),
            },
        };
        group.0 = None;
        ended
    }
}

async fn end_of(mut child: Child, input: &Bytes) -> anyhow::Result<Ended> {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let writing = async {
        if let Some(mut stdin) = stdin {
            // A command may end without reading everything.
            let _ = stdin.write_all(input).await;
        }
    };
    let reading = async {
        let mut bytes = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(STDOUT_BYTES_MAX + 1).read_to_end(&mut bytes).await?;
        }
        anyhow::Ok(bytes)
    };
    let ((), stdout) = tokio::join!(writing, reading);
    let stdout = stdout.context("the command's output can't be read")?;
    let status = child.wait().await.context("the command's end can't be awaited")?;
    if stdout.len() as u64 > STDOUT_BYTES_MAX {
        bail!("the command printed more than {STDOUT_BYTES_MAX} bytes, the most that one record can have");
    }
    Ok(Ended { status, stdout: stdout.into() })
}

/// `BUSBAR_TOPIC`, `_PARTITION`, `_OFFSET`, `_TIMESTAMP`, `_ATTEMPT` and `_KEY` where there is one, and `_HEADER_NAME` for
/// each header. A value with zero bytes, which no environment can hold, is base64 under `.._BASE64`; what is too long is
/// left out.
fn variables(record: &ConsumedRecord, attempt: Option<u32>) -> Vec<(OsString, OsString)> {
    let numbers = [
        ("TOPIC", Some(record.topic().to_owned())),
        ("PARTITION", Some(record.partition().to_string())),
        ("OFFSET", Some(record.offset().to_string())),
        ("TIMESTAMP", Some(record.timestamp_ms().to_string())),
        ("ATTEMPT", attempt.map(|attempt| attempt.to_string())),
    ];
    let numbers =
        numbers.into_iter().filter_map(|(name, value)| Some((format!("BUSBAR_{name}").into(), value?.into())));
    let key = record.key().map(|key| ("BUSBAR_KEY".to_owned(), key));
    let headers = record.headers().map(|(name, value)| (header_variable(name), value));
    numbers.chain(within_bounds(key.into_iter().chain(headers))).collect()
}

/// Bytes as an environment can hold them, as many as it takes.
fn within_bounds<'a>(values: impl Iterator<Item = (String, &'a Bytes)>) -> Vec<(OsString, OsString)> {
    let mut room = VARIABLES_BYTES_MAX;
    let mut held = Vec::new();
    for (name, value) in values {
        let (name, value) = match value.contains(&0) {
            true => (format!("{name}_BASE64"), OsString::from(STANDARD.encode(value))),
            false => (name, OsStr::from_bytes(value).to_owned()),
        };
        let bytes = name.len() + value.len();
        if bytes <= room.min(VARIABLE_BYTES_MAX) {
            room -= bytes;
            held.push((name.into(), value));
        }
    }
    held
}

/// `content-type` is `BUSBAR_HEADER_CONTENT_TYPE`.
fn header_variable(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let name: String = name.chars().map(plain).collect();
    format!("BUSBAR_HEADER_{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_headers_name_becomes_a_variables() {
        for (name, want) in [
            ("traceparent", "BUSBAR_HEADER_TRACEPARENT"),
            ("content-type", "BUSBAR_HEADER_CONTENT_TYPE"),
            ("a=b ä\0", "BUSBAR_HEADER_A_B___"),
            ("", "BUSBAR_HEADER_"),
        ] {
            assert_eq!(header_variable(name), want);
        }
    }

    #[test]
    fn variables_hold_what_an_environment_can() {
        let long = Bytes::from(vec![b'x'; VARIABLE_BYTES_MAX + 1]);
        let fits = Bytes::from(vec![b'x'; VARIABLE_BYTES_MAX - 1]);
        let (text, zero) = (Bytes::from_static(b"x\xff"), Bytes::from_static(b"x\0"));
        let values = [("A", &text), ("B", &zero), ("C", &long), ("D", &fits)];
        let held = within_bounds(values.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let names: Vec<_> = held.iter().map(|(name, value)| (name.to_str(), value.len())).collect();
        assert_eq!(names, [(Some("A"), 2), (Some("B_BASE64"), 4), (Some("D"), VARIABLE_BYTES_MAX - 1)]);
        assert_eq!((held[0].1.as_bytes(), held[1].1.as_bytes()), (&b"x\xff"[..], &b"eAA="[..]));
        let many = within_bounds((0..100).map(|_| ("E".to_owned(), &fits)));
        assert_eq!(many.len(), VARIABLES_BYTES_MAX / VARIABLE_BYTES_MAX, "all together are bounded too");
    }
}
