//! Order processing: members of the group `billing` share the topic `orders`. Each order is charged once as far as the
//! payment service allows; what fails is tried again after a while, what can't be read goes to the dead letters.
//!
//! ```text
//! busbar dev up &
//! busbar topic create orders --partitions 4
//! busbar pub orders -k customer-7 12.50 9.99 nonsense 3.00
//! cargo run --release -p busbar-client --example orders
//! busbar sub orders.dlq -o json -n 1
//! ```
//! Start it twice to see partitions move; end it with Ctrl-C.

use std::time::Duration;

use busbar_client::{Client, GroupStats, Received, SettleError};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let servers = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    let client = Client::connect(servers).await?;
    let mut consumer = client
        .group("billing")
        .topics(["orders"])
        .lease(Duration::from_secs(10))
        .backoff(Duration::from_millis(500), Duration::from_secs(30))
        .build()
        .await?;
    tokio::select! {
        ended = consumer.for_each_concurrent(16, charge) => ended?,
        ended = tokio::signal::ctrl_c() => ended?,
    }
    consumer.close().await?;
    let GroupStats { acked, redelivered, dead_lettered, .. } = consumer.stats();
    println!("{acked} orders charged, {redelivered} redeliveries, {dead_lettered} dead letters");
    Ok(())
}

/// Orders of one customer (the key) come one after the other, those of others meanwhile.
async fn charge(order: Received) {
    let settled = match std::str::from_utf8(order.value()).ok().and_then(|text| text.parse::<f64>().ok()) {
        None => reject(order),
        Some(amount) => match pay(&order, amount).await {
            Ok(()) => order.ack(),
            Err(error) => order.nack_because(None, error.to_string()),
        },
    };
    if let Err(late) = settled {
        // Somebody else has it by now; the payment service knows the order by its place and pays once.
        eprintln!("{late}");
    }
}

fn reject(order: Received) -> Result<(), SettleError> {
    eprintln!("{}/{} is no amount", order.partition(), order.offset());
    order.reject("not an amount")
}

/// Stands for a call to a service that knows by (partition, offset) what it has done already.
async fn pay(order: &Received, amount: f64) -> Result<(), std::io::Error> {
    tokio::time::sleep(Duration::from_millis(20)).await;
    let customer = order.key().map_or("nobody".into(), |key| String::from_utf8_lossy(key));
    println!("{customer} pays {amount:.2} for {}/{}", order.partition(), order.offset());
    Ok(())
}
