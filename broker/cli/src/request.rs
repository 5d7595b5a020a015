//! `busbar request`: publishes one request and prints its reply.

use std::{process::ExitCode, time::Duration};

use busbar_client::{Record, RequestError};
use busbar_proto::TopicName;
use bytes::Bytes;

use crate::{
    connection::ServerArgs,
    output::{self, Format, OutputArgs},
    publish,
    record::RecordView,
    signals::EndSignals,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The topic
    topic: TopicName,
    /// The request
    message: String,
    /// How long to wait for the reply
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Key of the request; equal keys go to one partition, in order
    #[arg(long, short = 'k', value_name = "KEY")]
    key: Option<String>,
    /// Header of the request; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = publish::header)]
    headers: Vec<(String, String)>,
    /// Partition of the request [default: by key, else any]
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Topic of the reply, which must be there [default: TOPIC.replies, made if it is missing]
    #[arg(long, value_name = "TOPIC")]
    reply_topic: Option<TopicName>,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut signals = EndSignals::listen()?;
    tokio::select! {
        biased;
        () = signals.next() => Ok(ExitCode::FAILURE),
        asked = ask(args) => asked,
    }
}

async fn ask(args: Args) -> anyhow::Result<ExitCode> {
    let Args { topic, message, timeout, key, headers, partition, reply_topic, server, output } = args;
    let client = server.connect().await?;
    let mut builder = client.requester(topic.as_str());
    if let Some(reply_topic) = reply_topic {
        builder = builder.reply_topic(reply_topic.as_str());
    }
    let requester = builder.build().await?;
    let record = Record {
        partition,
        key: key.map(Bytes::from),
        value: message.into(),
        headers: headers.into_iter().map(|(name, value)| (name, Bytes::from(value))).collect(),
        ..Record::default()
    };
    let reply = match requester.request(record, timeout).await {
        Ok(reply) => reply,
        Err(RequestError::Failed { message, .. }) => {
            output::diagnose(format_args!("error: the responder failed: {message}"));
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error.into()),
    };
    let view = RecordView::of(&reply);
    match output.format {
        Format::Text => output::line(view.line())?,
        Format::Json => output::json(&view)?,
    }
    Ok(ExitCode::SUCCESS)
}
