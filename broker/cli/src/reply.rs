//! `busbar reply`: answers the requests of a topic with what a command prints, until `--count` are answered or a signal
//! ends it.
//!
//! Invariants: so many commands run at a time as `--jobs` says; a request that was taken is answered, also when a signal
//! comes meanwhile; one of a group is acknowledged once its reply is stored.

use std::{process::ExitCode, time::Duration};

use busbar_client::{Client, Reason, Record, ReplyError, Request, Responder, ResponderError, StartAt};
use busbar_proto::{GroupName, TopicName};
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};

use crate::{
    connection::ServerArgs,
    exec::{Ended, Exec},
    output,
    signals::EndSignals,
    subscribe,
};

/// Between two attempts to read what can't be read now.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Time for the reply to be stored, beside that of the command.
const LEASE_SPARE: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The topic
    topic: TopicName,
    /// Run this (`sh -c CMD`) for each request: the value is its stdin, BUSBAR_KEY, BUSBAR_OFFSET, BUSBAR_HEADER_NAME
    /// and the like are set; stdout without its last newline is the reply, an exit code other than 0 a reply of failure
    #[arg(long, value_name = "CMD")]
    exec: String,
    /// Kill a command that takes longer
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Commands at a time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Where to begin: earliest, latest or an offset
    #[arg(long, default_value = "latest", value_name = "WHERE", value_parser = subscribe::start_at)]
    from: StartAt,
    /// Share the requests with every other `busbar reply` and responder of this consumer group: each is answered by one of
    /// them, and by another should that one fail [default: each answers every request it reads]
    #[arg(long, value_name = "NAME", conflicts_with = "partition")]
    group: Option<GroupName>,
    /// Only this partition [default: all]
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Exit 0 after so many requests [default: until Ctrl-C]
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut signals = EndSignals::listen()?;
    let mut responder = tokio::select! {
        biased;
        () = signals.next() => return Ok(ExitCode::SUCCESS),
        built = build(&args) => built?,
    };
    output::diagnose(format_args!("ready: answering the requests of {}", args.topic));
    let served = serve(&mut responder, &args, &mut signals).await;
    if let Err(error) = responder.close().await {
        output::diagnose(format_args!("error: a reply was not delivered: {error}"));
    }
    served?;
    Ok(ExitCode::SUCCESS)
}

async fn build(args: &Args) -> anyhow::Result<Responder> {
    let client: Client = args.server.connect().await?;
    let mut builder = client.responder(args.topic.as_str()).from(args.from);
    if let Some(partition) = args.partition {
        builder = builder.partitions([partition]);
    }
    if let Some(group) = &args.group {
        // Longer than the command may take, so that nobody else runs it meanwhile.
        builder = builder.group_with(group.as_str(), |options| options.lease(args.timeout + LEASE_SPARE));
    }
    Ok(builder.build().await?)
}

async fn serve(responder: &mut Responder, args: &Args, signals: &mut EndSignals) -> Result<(), ResponderError> {
    let exec = Exec::with_result(args.exec.clone(), args.timeout);
    let mut running = FuturesUnordered::new();
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let next = tokio::select! {
            biased;
            () = signals.next() => break,
            Some(()) = running.next() => continue,
            next = responder.next(), if running.len() < usize::from(args.jobs) => next,
        };
        match next {
            Ok(Some(request)) => {
                left -= 1;
                let exec = exec.clone();
                running.push(async move { answer(&exec, &request).await });
            }
            Ok(None) => break,
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => {
                output::diagnose(format_args!("error: {error}; trying again"));
                tokio::select! { () = signals.next() => break, () = tokio::time::sleep(READ_AGAIN_AFTER) => {} }
            }
        }
    }
    while running.next().await.is_some() {}
    Ok(())
}

async fn answer(exec: &Exec, request: &Request) {
    let place = || format!("the request at {}/{}, offset {}", request.topic(), request.partition(), request.offset());
    let sent = match result(exec.run(request, None).await) {
        Ok(reply) => request.reply(reply).await,
        Err(failure) => {
            output::diagnose(format_args!("{}: {failure}", place()));
            request.fail(&failure).await
        }
    };
    let told = match sent {
        Ok(delivery) => delivery.await.map(drop).map_err(|error| error.to_string()),
        Err(ReplyError::Closed) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = told {
        output::diagnose(format_args!("error: {}: {error}", place()));
    }
}

/// The reply, or why there is none.
fn result(ended: anyhow::Result<Ended>) -> Result<Record, String> {
    let Ended { status, stdout } = ended.map_err(|error| output::explain(&error))?;
    let printed = without_newline(stdout);
    if status.success() {
        return Ok(Record::new(printed));
    }
    let how = match status.code() {
        Some(code) => format!("exit code {code}"),
        None => format!("ended by {status}"),
    };
    match printed.is_empty() {
        true => Err(how),
        false => Err(format!("{how}: {}", String::from_utf8_lossy(&printed))),
    }
}

fn without_newline(mut text: Bytes) -> Bytes {
    if text.last() == Some(&b'\n') {
        text.truncate(text.len() - 1);
    }
    text
}

fn is_final(error: &ResponderError) -> bool {
    matches!(error, ResponderError::Group(_))
        || matches!(error.reason(), Some(Reason::UnknownTopic | Reason::OffsetOutOfRange))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    use super::*;

    #[test]
    fn what_a_command_leaves_is_a_reply_or_a_failure() {
        for (raw, stdout, want) in [
            (0, "12.50\n", Ok("12.50")),
            (0, "two\nlines\n\n", Ok("two\nlines\n")),
            (0, "", Ok("")),
            (3 << 8, "", Err("exit code 3")),
            (1 << 8, "no such share\n", Err("exit code 1: no such share")),
        ] {
            let ended = Ended { status: ExitStatus::from_raw(raw), stdout: Bytes::from(stdout) };
            let want = want.map(Record::new).map_err(str::to_owned);
            assert_eq!(result(Ok(ended)), want, "{raw} {stdout:?}");
        }
        let killed = Ended { status: ExitStatus::from_raw(9), stdout: Bytes::new() };
        assert!(result(Ok(killed)).is_err_and(|text| text.contains("signal: 9")));
        assert_eq!(result(Err(anyhow::anyhow!("not started"))), Err("not started".to_owned()));
    }
}
