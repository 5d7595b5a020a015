//! `busbar pub`: publishes the arguments, a file's lines or the lines of stdin, and says what became of them.
//!
//! Invariants: memory is bounded whatever the input (the producer's buffer, so many unanswered records, one line); a
//! record counts as published only when it is acknowledged; the command fails if any was not.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use busbar_client::{Compression, Delivery, Moment, Producer, Record};
use busbar_proto::{TopicName, limits};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
    connection::ServerArgs,
    output::{self, Format, OutputArgs},
    signals::EndSignals,
};

/// Records sent and not yet answered, at most.
const UNANSWERED_MAX: usize = 16 << 10;
/// Lines read ahead of the producer.
const LINES_AHEAD: usize = 1 << 10;
/// Failures told one by one; the rest is only counted.
const FAILURES_TOLD_MAX: u64 = 5;
/// Longest line: a record must fit into a batch.
const LINE_BYTES_MAX: u64 = limits::BATCH_BYTES_MAX as u64;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The topic
    topic: TopicName,
    /// One record each; stdin's lines when there are none
    #[arg(value_name = "MESSAGE", conflicts_with = "file")]
    messages: Vec<String>,
    /// Publish a file's lines, one record each
    #[arg(long, short = 'f', value_name = "FILE")]
    file: Option<PathBuf>,
    /// Key of every record; equal keys go to one partition, in order
    #[arg(long, short = 'k', value_name = "KEY")]
    key: Option<String>,
    /// Publish one record without a value, which deletes its key in a compacted topic
    #[arg(long, requires = "key", conflicts_with_all = ["messages", "file"])]
    tombstone: bool,
    /// Header of every record; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Tell brokers the values of this header, so that filters by it spare them sending; may be repeated [default:
    /// ce_type, ce_source, ce_subject]
    #[arg(long, value_name = "NAME")]
    digest: Vec<String>,
    /// Partition of every record [default: by key, else in turns]
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Consumer groups deliver the records so long after they were sent at the earliest, such as 10s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    deliver_after: Option<Duration>,
    /// Consumer groups do not deliver the records any more so long after they were sent, such as 1m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Compress batches: none, lz4 or zstd
    #[arg(long, default_value = "none", value_name = "CODEC")]
    compression: Compression,
    /// Publish under a name: one instance at a time may have it, an earlier one is fenced and fails from then on
    #[arg(long, value_name = "NAME", value_parser = producer_name)]
    producer_name: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What became of the records; printed at the end.
#[derive(Debug, Default, Serialize)]
struct Summary {
    records: u64,
    acknowledged: u64,
    duplicates: u64,
    retries: u64,
    failed: u64,
    seconds: f64,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let client = args.server.connect().await?;
    let mut builder = client.producer(args.topic.as_str()).compression(args.compression);
    if !args.digest.is_empty() {
        builder = builder.digest(args.digest.iter().cloned());
    }
    if let Some(name) = &args.producer_name {
        builder = builder.name(name);
    }
    let producer = builder.build().await?;
    let mut signals = EndSignals::listen()?;
    let mut publishing = Publishing::new(producer, &args);
    let mut input = match args.tombstone {
        true => Input::Messages(vec![String::new()].into_iter()),
        false => Input::open(args.messages, args.file.as_deref())?,
    };
    let ended = tokio::select! {
        biased;
        // What was taken is still delivered and summed up.
        () = signals.next() => Ok(()),
        ended = publishing.take(&mut input) => ended,
    };
    let mut summary = publishing.finish().await;
    summary.seconds = started.elapsed().as_secs_f64();
    match args.output.format {
        Format::Text => output::diagnose(format_args!(
            "{} records: {} acks, {} duplicates, {} retries, {} failed, in {:.3} s",
            summary.records, summary.acknowledged, summary.duplicates, summary.retries, summary.failed, summary.seconds
        )),
        Format::Json => output::json(&summary)?,
    }
    ended?;
    Ok(if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The records on their way, oldest first.
struct Publishing {
    producer: Producer,
    template: Record,
    unanswered: VecDeque<Delivery>,
    summary: Summary,
}

impl Publishing {
    fn new(producer: Producer, args: &Args) -> Self {
        let template = Record {
            partition: args.partition,
            key: args.key.clone().map(Bytes::from),
            value: Bytes::new(),
            tombstone: args.tombstone,
            headers: args.headers.iter().map(|(name, value)| (name.clone(), Bytes::from(value.clone()))).collect(),
            deliver_at: args.deliver_after.map(Moment::In),
            expires_at: args.ttl.map(Moment::In),
            ..Record::default()
        };
        Self { producer, template, unanswered: VecDeque::new(), summary: Summary::default() }
    }

    /// Sends what the input gives until its end. Cancel safe: a record is either sent or not taken.
    async fn take(&mut self, input: &mut Input) -> anyhow::Result<()> {
        while let Some(value) = input.next().await? {
            if self.unanswered.len() >= UNANSWERED_MAX {
                self.settle_oldest().await;
            }
            let sent = self.producer.send(Record { value, ..self.template.clone() }).await;
            self.summary.records += 1;
            match sent {
                Ok(delivery) => self.unanswered.push_back(delivery),
                Err(error) => self.fail(&error),
            }
        }
        Ok(())
    }

    async fn settle_oldest(&mut self) {
        let Some(delivery) = self.unanswered.front_mut() else { return };
        let outcome = delivery.await;
        self.unanswered.pop_front();
        match outcome {
            Ok(delivered) => {
                self.summary.acknowledged += 1;
                self.summary.duplicates += u64::from(delivered.duplicate);
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &dyn std::error::Error) {
        self.summary.failed += 1;
        match self.summary.failed {
            nr if nr <= FAILURES_TOLD_MAX => {
                output::diagnose(format_args!("error: a record was not published: {error}"))
            }
            nr if nr == FAILURES_TOLD_MAX + 1 => output::diagnose("error: more records were not published"),
            _ => {}
        }
    }

    async fn finish(mut self) -> Summary {
        while !self.unanswered.is_empty() {
            self.settle_oldest().await;
        }
        self.summary.retries = self.producer.stats().retries;
        if let Err(error) = self.producer.close().await {
            output::diagnose(format_args!("error: the producer did not close in order: {error}"));
        }
        self.summary
    }
}

/// Where records come from.
enum Input {
    Messages(std::vec::IntoIter<String>),
    Lines(mpsc::Receiver<anyhow::Result<Bytes>>),
}

impl Input {
    fn open(messages: Vec<String>, file: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(path) = file {
            let opened = File::open(path).with_context(|| format!("can't read {}", path.display()))?;
            return Ok(Self::lines(opened, path.display().to_string()));
        }
        if !messages.is_empty() {
            return Ok(Self::Messages(messages.into_iter()));
        }
        Ok(Self::lines(io::stdin(), "stdin".to_owned()))
    }

    /// Reads on a thread of its own, since a read of stdin can't be cancelled.
    fn lines(source: impl Read + Send + 'static, name: String) -> Self {
        let (sender, receiver) = mpsc::channel(LINES_AHEAD);
        tokio::task::spawn_blocking(move || {
            let mut reader = BufReader::new(source);
            for nr in 1_u64.. {
                let line = read_line(&mut reader).with_context(|| format!("{name}, line {nr}")).transpose();
                let Some(line) = line else { return };
                let is_last = line.is_err();
                if sender.blocking_send(line).is_err() || is_last {
                    return;
                }
            }
        });
        Self::Lines(receiver)
    }

    /// The next record's value; `None` at the end. Cancel safe.
    async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        match self {
            Self::Messages(messages) => Ok(messages.next().map(Bytes::from)),
            Self::Lines(lines) => lines.recv().await.transpose(),
        }
    }
}

/// The next line without its newline; `None` at the end. Never holds more than the longest line allowed.
fn read_line(reader: &mut impl BufRead) -> anyhow::Result<Option<Bytes>> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    if line.len() as u64 > LINE_BYTES_MAX {
        bail!("longer than {LINE_BYTES_MAX} bytes, the most that one record can have: split it");
    }
    Ok(Some(line.into()))
}

/// By the rules for topics' names.
fn producer_name(text: &str) -> Result<String, String> {
    match text.parse::<TopicName>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("a producer's name has 1 to 249 of a-z A-Z 0-9 . _ -, and is neither . nor ..".to_owned()),
    }
}

/// `NAME=VALUE`.
pub(crate) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    if name.is_empty() {
        return Err("a header needs a name: write NAME=VALUE".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> anyhow::Result<Vec<Bytes>> {
        let mut reader = BufReader::new(text);
        std::iter::from_fn(|| read_line(&mut reader).transpose()).collect()
    }

    #[test]
    fn a_line_is_a_record() {
        for (text, want) in [
            (&b""[..], &[][..]),
            (b"a\nb\n", &[&b"a"[..], b"b"]),
            (b"a\n\nb", &[b"a", b"", b"b"]),
            (b"a\r\n", &[b"a\r"]),
            (b"\xff\0\n", &[b"\xff\0"]),
        ] {
            assert_eq!(lines(text).unwrap(), want, "{text:?}");
        }
    }

    #[test]
    fn a_line_over_the_limit_is_refused() {
        let longest = vec![b'x'; LINE_BYTES_MAX as usize];
        assert_eq!(lines(&longest).unwrap().len(), 1);
        let error = lines(&[&longest[..], b"x"].concat()).unwrap_err();
        assert!(error.to_string().contains("8388608"), "{error}");
    }

    #[test]
    fn a_producers_name_has_rules() {
        assert_eq!(producer_name("relay-1"), Ok("relay-1".to_owned()));
        for wrong in ["", ".", "a b", &"x".repeat(250)] {
            assert!(producer_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn headers_are_name_equals_value() {
        assert_eq!(header("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(header("a").is_err() && header("=b").is_err());
    }
}
