//! `--exec`: one shell command for each record, told of it by stdin and environment. Its output is ours.

use std::{ffi::OsString, io, os::unix::ffi::OsStringExt, process::Stdio};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use busbar_client::Received;
use tokio::{io::AsyncWriteExt, process::Command};

/// Runs `command` for a record; why it failed, where it did. A command that can't be started is an error of ours.
pub(super) async fn run(command: &str, record: &Received) -> anyhow::Result<Result<(), String>> {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).envs(environment(record)).stdin(Stdio::piped()).kill_on_drop(true);
    let mut child = match shell.spawn() {
        Err(error) if error.kind() == io::ErrorKind::ArgumentListTooLong => {
            return Ok(Err("its key and headers are too long for an environment".to_owned()));
        }
        spawned => spawned.context("can't start a shell for --exec")?,
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its stdin is told of the record all the same.
        let _ = stdin.write_all(record.value()).await;
    }
    let status = child.wait().await.context("can't wait for the command of --exec")?;
    Ok(if status.success() { Ok(()) } else { Err(format!("its command ended with {status}")) })
}

/// What is told beside the value. What an environment can't hold is there as base64.
fn environment(record: &Received) -> Vec<(String, OsString)> {
    let mut variables = vec![
        ("BUSBAR_TOPIC".to_owned(), record.topic().into()),
        ("BUSBAR_PARTITION".to_owned(), record.partition().to_string().into()),
        ("BUSBAR_OFFSET".to_owned(), record.offset().to_string().into()),
        ("BUSBAR_TIMESTAMP".to_owned(), record.timestamp_ms().to_string().into()),
        ("BUSBAR_ATTEMPT".to_owned(), record.attempt().to_string().into()),
    ];
    variables.extend(record.key().map(|key| variable("BUSBAR_KEY".to_owned(), key)));
    let headers = record.headers().map(|(name, value)| variable(format!("BUSBAR_HEADER_{}", shouted(name)), value));
    variables.extend(headers);
    variables
}

fn variable(name: String, value: &[u8]) -> (String, OsString) {
    match value.contains(&0) {
        true => (format!("{name}_BASE64"), STANDARD.encode(value).into()),
        false => (name, OsString::from_vec(value.to_vec())),
    }
}

/// As names of variables are written.
fn shouted(name: &str) -> String {
    let shout = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    name.chars().map(shout).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_hold_what_an_environment_can() {
        assert_eq!(variable("A".into(), b"x\xff"), ("A".into(), OsString::from_vec(b"x\xff".to_vec())));
        assert_eq!(variable("A".into(), b"x\0"), ("A_BASE64".into(), "eAA=".into()));
        assert_eq!(shouted("trace-id.ü"), "TRACE_ID__");
    }
}
