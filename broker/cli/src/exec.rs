//! Running a command for one record: the value on its stdin, the rest in `BUSBAR_*` variables.
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

/// Most bytes of stdout: no record could carry more.
const STDOUT_BYTES_MAX: u64 = limits::BATCH_BYTES_MAX as u64;
/// Longer values are left out of the environment: systems refuse to start a command with very long ones.
const VARIABLE_BYTES_MAX: usize = 32 << 10;
/// All variables together.
const VARIABLES_BYTES_MAX: usize = 256 << 10;

/// What is run, and how long it may take.
#[derive(Clone, Debug)]
pub(crate) struct Exec {
    command: String,
    timeout: Duration,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
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
    /// A command line for `sh -c`.
    pub(crate) fn new(command: String, timeout: Duration) -> Self {
        Self { command, timeout }
    }

    /// Runs the command for a record and waits for its end. Cancelled, the command is killed.
    pub(crate) async fn run(&self, record: &ConsumedRecord) -> anyhow::Result<Ended> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.command).envs(variables(record));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).process_group(0);
        let child = command.spawn().context("the command can't be started")?;
        let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
        let Ok(ended) = tokio::time::timeout(self.timeout, end_of(child, record.value())).await else {
            bail!("the command took longer than {}: killed", humantime::format_duration(self.timeout));
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

/// `BUSBAR_TOPIC`, `_PARTITION`, `_OFFSET`, `_TIMESTAMP`, `_KEY` where there is one, and `_HEADER_NAME` for each header.
/// A value with zero bytes, which no environment can hold, is base64 under `.._BASE64`; what is too long is left out.
fn variables(record: &ConsumedRecord) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> = [
        ("TOPIC", record.topic().to_owned()),
        ("PARTITION", record.partition().to_string()),
        ("OFFSET", record.offset().to_string()),
        ("TIMESTAMP", record.timestamp_ms().to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (format!("BUSBAR_{name}").into(), value.into()))
    .collect();
    let mut room = VARIABLES_BYTES_MAX;
    let mut put = |name: String, value: &[u8]| {
        let (name, value) = match value.contains(&0) {
            true => (format!("{name}_BASE64"), OsString::from(STANDARD.encode(value))),
            false => (name, OsStr::from_bytes(value).to_owned()),
        };
        let bytes = name.len() + value.len();
        if bytes <= room.min(VARIABLE_BYTES_MAX) {
            room -= bytes;
            variables.push((name.into(), value));
        }
    };
    if let Some(key) = record.key() {
        put("BUSBAR_KEY".to_owned(), key);
    }
    for (name, value) in record.headers() {
        put(header_variable(name), value);
    }
    variables
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
}
