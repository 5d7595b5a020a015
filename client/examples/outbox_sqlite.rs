//! The outbox with SQLite: an order and its event are written in one transaction, so there is never one without the other,
//! and a relay publishes each event once, in order, whatever crashes when.
//!
//! ```text
//! busbar dev up &
//! busbar topic create orders --partitions 4
//! cargo run --release -p busbar-client --example outbox_sqlite -- shop.db     # kill it, start it again
//! busbar sub orders -o json
//! ```

use std::path::Path;

use busbar_client::{Client, OutboxRow, OutboxStore, Record, RelayHandle};
use rusqlite::{Connection, TransactionBehavior, params};

/// `AUTOINCREMENT`: a number is never used again. SQLite lets one transaction write at a time, so numbers are in the order
/// of commits, which is what the relay relies on.
const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, amount TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS outbox (
        seq   INTEGER PRIMARY KEY AUTOINCREMENT,
        topic TEXT NOT NULL,
        key   BLOB,
        value BLOB NOT NULL
    );";

/// The relay's own connection.
struct SqliteOutbox(Connection);

impl OutboxStore for SqliteOutbox {
    type Error = rusqlite::Error;

    async fn pending(&mut self, after: u64, limit: usize) -> Result<Vec<OutboxRow>, rusqlite::Error> {
        // SQLite's calls block: the other tasks of this thread move to another one meanwhile.
        tokio::task::block_in_place(|| {
            let sql = "SELECT seq, topic, key, value FROM outbox WHERE seq > ?1 ORDER BY seq LIMIT ?2";
            let mut select = self.0.prepare(sql)?;
            let rows = select.query_map(params![after as i64, limit as i64], |row| {
                let (sequence, topic): (i64, String) = (row.get(0)?, row.get(1)?);
                let (key, value): (Option<Vec<u8>>, Vec<u8>) = (row.get(2)?, row.get(3)?);
                let record = Record { key: key.map(Into::into), ..Record::new(value) };
                Ok(OutboxRow::new(sequence as u64, topic, record))
            })?;
            rows.collect()
        })
    }

    async fn done(&mut self, up_to: u64) -> Result<(), rusqlite::Error> {
        tokio::task::block_in_place(|| self.0.execute("DELETE FROM outbox WHERE seq <= ?1", [up_to as i64]).map(drop))
    }
}

/// What the application does: one transaction for the order and its event. The relay hears of it once it is committed.
fn place_order(database: &mut Connection, relay: &RelayHandle, customer: &str, amount: &str) -> rusqlite::Result<i64> {
    let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute("INSERT INTO orders (customer, amount) VALUES (?1, ?2)", [customer, amount])?;
    let order = transaction.last_insert_rowid();
    let event = format!(r#"{{"order":{order},"customer":"{customer}","amount":"{amount}"}}"#);
    let columns = params!["orders", customer.as_bytes(), event.as_bytes()];
    transaction.execute("INSERT INTO outbox (topic, key, value) VALUES (?1, ?2, ?3)", columns)?;
    transaction.commit()?;
    relay.notify();
    Ok(order)
}

fn waiting(database: &Connection) -> rusqlite::Result<i64> {
    database.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or_else(|| "shop.db".to_owned());
    let servers = arguments.next().unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    let path = Path::new(&path);
    let mut database = Connection::open(path)?;
    database.execute_batch(SCHEMA)?;
    println!("{} events are left from last time", waiting(&database)?);

    let client = Client::connect(servers).await?;
    let mut relay = client.outbox_relay("shop-sqlite", SqliteOutbox(Connection::open(path)?)).build()?;
    let handle = relay.handle();
    let relaying = tokio::spawn(async move { relay.run().await });

    for number in 0..100 {
        let customer = format!("customer-{}", number % 7);
        tokio::task::block_in_place(|| place_order(&mut database, &handle, &customer, "12.50"))?;
    }
    println!("100 orders placed");
    while waiting(&database)? > 0 && !relaying.is_finished() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    handle.stop();
    relaying.await??;
    let stats = handle.stats();
    println!("{} events sent, {} found stored already", stats.sent, stats.stored_before);
    Ok(())
}
