//! A service that answers, and one that asks it. Start a cluster with `busbar dev up`, then
//! `cargo run --release -p busbar-client --example request_reply [SERVERS] [REQUESTS]`.

use std::time::{Duration, Instant};

use anyhow::Context;
use busbar_client::{Client, Reason, Request, RequestError, TopicOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let client = Client::connect(arguments.next().unwrap_or("127.0.0.1:7400".to_owned())).await?;
    let requests = arguments.next().map_or(Ok(100), |number| number.parse())?;
    match client.admin().create_topic("squares", TopicOptions { partitions: 4, ..TopicOptions::default() }).await {
        Err(error) if error.reason() != Some(Reason::TopicExists) => return Err(error.into()),
        _ => {} // it is there: made now, or by an earlier run
    }

    // The service: up to 64 requests at a time. What it returns is the reply, an error is a reply of failure.
    let mut responder = client.responder("squares").build().await?;
    let serving = tokio::spawn(async move { responder.serve(64, square).await });

    // Whoever asks: builds a requester once, and asks from any number of tasks.
    let squares = client.requester("squares").build().await?;
    let mut took = Vec::new();
    for number in 1..=requests {
        let begun = Instant::now();
        let reply = squares.request(number.to_string(), Duration::from_secs(2)).await?;
        took.push(begun.elapsed());
        if number <= 3 {
            println!("{number} squared is {}", String::from_utf8_lossy(reply.value()));
        }
    }
    took.sort();
    let median = took.get(took.len() / 2).context("no requests")?;
    println!("{requests} requests one after the other: {median:.1?} each at the median");

    match squares.request("seven", Duration::from_secs(2)).await {
        Err(RequestError::Failed { message, .. }) => println!("asked for seven: {message}"),
        other => println!("{other:?}"),
    }
    // Nobody answers: the error tells how far the request came.
    serving.abort();
    if let Err(error) = squares.request("8", Duration::from_millis(200)).await {
        println!("{error}");
    }
    squares.close().await?;
    Ok(())
}

async fn square(request: Request) -> anyhow::Result<busbar_client::Record> {
    let number: u64 = std::str::from_utf8(request.value())?.parse().context("not a number")?;
    let square = number.checked_mul(number).context("too large")?;
    Ok(square.to_string().into())
}
