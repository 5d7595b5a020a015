//! Publishes three records and reads them back. Start a cluster with `busbar dev up`, then
//! `cargo run --release -p busbar-client --example quickstart`.

use busbar_client::{Client, Reason, Record, StartAt, TopicOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect("127.0.0.1:7400").await?;
    match client.admin().create_topic("quickstart", TopicOptions::default()).await {
        Err(error) if error.reason() != Some(Reason::TopicExists) => return Err(error.into()),
        _ => {}
    }

    let producer = client.producer("quickstart").build().await?;
    let mut first = None;
    for word in ["one", "two", "three"] {
        let stored = producer.send(Record::new(word).key("greeting")).await?.await?;
        println!("{word:?} is stored at offset {}", stored.offset);
        first.get_or_insert(stored.offset);
    }
    producer.close().await?;

    let from = StartAt::Offset(first.unwrap_or(0));
    let mut consumer = client.consumer("quickstart").from(from).build().await?;
    for _ in 0..3 {
        if let Some(record) = consumer.next().await? {
            println!("{}: {}", record.offset(), String::from_utf8_lossy(record.value()));
        }
    }
    Ok(())
}
