//! Publishes lines from standard input, as fast as they come, and says what became of them:
//! `seq 100000 | cargo run --release -p busbar-client --example publish -- orders [SERVERS]`.
//!
//! `send` waits only while the buffer is full; the receipts are awaited behind it, so that many batches are under
//! way at once.

use std::time::Duration;

use busbar_client::{Client, Compression, Record};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    sync::mpsc,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().unwrap_or_else(|| "orders".to_owned());
    let servers = arguments.next().unwrap_or_else(|| "127.0.0.1:7400".to_owned());

    let client = Client::connect(servers).await?;
    let producer = client
        .producer(&topic)
        .linger(Duration::from_millis(2))
        .compression(Compression::Lz4)
        .delivery_timeout(Duration::from_secs(60))
        .build()
        .await?;

    let (receipts, mut outstanding) = mpsc::channel(100_000);
    let watcher = tokio::spawn(async move {
        while let Some(receipt) = outstanding.recv().await {
            let receipt: busbar_client::Delivery = receipt;
            if let Err(error) = receipt.await {
                let certain = if error.has_no_side_effects() { "send it again" } else { "look before sending again" };
                eprintln!("{error} ({certain})");
            }
        }
    });
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        receipts.send(producer.send(Record::new(line)).await?).await?;
    }
    drop(receipts);
    let closed = producer.close().await;
    watcher.await?;

    let stats = producer.stats();
    println!(
        "{} records: {} acknowledged in {} batches, {} duplicates, {} retries, {} failed, {:?} waited for space",
        stats.records, stats.acknowledged, stats.batches, stats.duplicates, stats.retries, stats.failed, stats.waited
    );
    Ok(closed?)
}
