//! Dead letters after the fact: what did the group `billing` give up, and why? What failed because something was down is
//! replayed to where it came from; each letter once, however often this is run or cut short.
//!
//! ```text
//! busbar dev up &
//! busbar topic create orders --partitions 4
//! busbar pub orders -k customer-7 12.50 nonsense
//! cargo run --release -p busbar-client --example orders           # Ctrl-C once "nonsense" is rejected
//! cargo run --release -p busbar-client --example dead_letters
//! ```
//! `busbar dlq list | show | replay` does the same on the command line.

use std::collections::BTreeMap;

use busbar_client::{Client, LetterSelection};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let servers = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    let client = Client::connect(servers).await?;
    let dead = client.dead_letters("orders.dlq");

    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    let mut letters = dead.read(LetterSelection::waiting().of_group("billing")).await?;
    while let Some(letter) = letters.next().await? {
        println!("{}: {}", letter.place(), letter.story());
        *reasons.entry(letter.story().reason.clone()).or_default() += 1;
    }
    println!("why: {reasons:?}");

    let report = dead.replay(LetterSelection::waiting().of_group("billing"), None).await?;
    println!("{} letters replayed to {:?}", report.replayed(), report.to.keys());
    Ok(())
}
