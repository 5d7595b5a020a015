//! Prints what is published from now on, until Ctrl-C, then says where to go on and what was left:
//! `cargo run --release -p busbar-client --example subscribe -- orders [SERVERS]`.

use busbar_client::{Client, StartAt};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().unwrap_or_else(|| "orders".to_owned());
    let servers = arguments.next().unwrap_or_else(|| "127.0.0.1:7400".to_owned());

    let client = Client::connect(servers).await?;
    let mut consumer = client.consumer(&topic).from(StartAt::Latest).credit_bytes(4 << 20).build().await?;
    loop {
        // `next` is cancel safe: no record is lost when Ctrl-C wins.
        let record = tokio::select! {
            record = consumer.next() => record?,
            _ = tokio::signal::ctrl_c() => break,
        };
        let Some(record) = record else { break };
        let key = record.key().map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default();
        let value = String::from_utf8_lossy(record.value());
        println!("{}/{} {key} {value}", record.partition(), record.offset());
        for (name, value) in record.headers() {
            println!("    {name}: {}", String::from_utf8_lossy(value));
        }
    }
    println!("go on at {:?}; not read: {:?}", consumer.positions(), consumer.lag());
    Ok(())
}
