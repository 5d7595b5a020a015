//! Publishes a record and reads it back; README.md shows this file. Start a cluster with `busbar dev up`, then
//! `cargo run --release -p busbar-client --example quickstart`.

use busbar_client::{Client, Reason, Record, StartAt, TopicOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = Client::connect("127.0.0.1:7400").await?;
    match client.admin().create_topic("greetings", TopicOptions::default()).await {
        Err(error) if error.reason() != Some(Reason::TopicExists) => return Err(error.into()),
        _ => {} // it is there: made now, or by an earlier run
    }

    let producer = client.producer("greetings").build().await?;
    let delivery = producer.send(Record::new("hello").key("world")).await?; // waits only when the buffer is full
    let offset = delivery.await?.offset; // known once a majority has fsynced the record
    println!("stored for good at offset {offset}");
    producer.close().await?;

    let mut consumer = client.consumer("greetings").from(StartAt::Offset(offset)).build().await?;
    if let Some(record) = consumer.next().await? {
        println!("{}: {}", record.offset(), String::from_utf8_lossy(record.value()));
    }
    Ok(())
}
