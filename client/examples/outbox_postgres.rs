//! The outbox with PostgreSQL, where transactions commit in another order than that in which they drew their numbers: the
//! relay numbers the rows when it first sees them, under a lock, so that no row turns up behind one that is relayed.
//! Writers need no lock.
//!
//! ```text
//! busbar dev up &
//! busbar topic create orders --partitions 4
//! cargo run --release -p busbar-client --example outbox_postgres -- "host=localhost user=shop dbname=shop"
//! busbar sub orders -o json
//! ```

use busbar_client::{Client, OutboxRow, OutboxStore, Record, RelayHandle};
use tokio_postgres::{NoTls, Row};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS orders (
        id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        customer text NOT NULL,
        amount   text NOT NULL
    );
    CREATE SEQUENCE IF NOT EXISTS outbox_seq;
    CREATE TABLE IF NOT EXISTS outbox (
        id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        seq   bigint UNIQUE, -- given by the relay
        topic text NOT NULL,
        key   bytea,
        value bytea NOT NULL
    );
    CREATE INDEX IF NOT EXISTS outbox_without_number ON outbox (id) WHERE seq IS NULL;";
/// Two relays at once, as when one takes over, number one after the other. Any number that nobody else locks.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7400)";
const NUMBER: &str = "
    UPDATE outbox SET seq = numbered.seq
    FROM (SELECT id, nextval('outbox_seq') AS seq
          FROM (SELECT id FROM outbox WHERE seq IS NULL ORDER BY id LIMIT $1) AS fresh) AS numbered
    WHERE outbox.id = numbered.id";

/// The relay's own connection.
struct PostgresOutbox(tokio_postgres::Client);

impl OutboxStore for PostgresOutbox {
    type Error = tokio_postgres::Error;

    async fn pending(&mut self, after: u64, limit: usize) -> Result<Vec<OutboxRow>, tokio_postgres::Error> {
        let (after, limit) = (after as i64, limit as i64);
        let transaction = self.0.transaction().await?;
        transaction.batch_execute(LOCK).await?;
        transaction.execute(NUMBER, &[&limit]).await?;
        let select = "SELECT seq, topic, key, value FROM outbox WHERE seq > $1 ORDER BY seq LIMIT $2";
        let rows = transaction.query(select, &[&after, &limit]).await?;
        transaction.commit().await?;
        rows.iter().map(outbox_row).collect()
    }

    async fn done(&mut self, up_to: u64) -> Result<(), tokio_postgres::Error> {
        self.0.execute("DELETE FROM outbox WHERE seq <= $1", &[&(up_to as i64)]).await.map(drop)
    }
}

fn outbox_row(row: &Row) -> Result<OutboxRow, tokio_postgres::Error> {
    let (sequence, topic): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
    let (key, value): (Option<Vec<u8>>, Vec<u8>) = (row.try_get(2)?, row.try_get(3)?);
    let record = Record { key: key.map(Into::into), ..Record::new(value) };
    Ok(OutboxRow::new(sequence as u64, topic, record))
}

/// What the application does: one transaction for the order and its event. The relay hears of it once it is committed;
/// relays of other processes look again within their poll interval.
async fn place_order(
    database: &mut tokio_postgres::Client,
    relay: &RelayHandle,
    customer: &str,
    amount: &str,
) -> Result<i64, tokio_postgres::Error> {
    let transaction = database.transaction().await?;
    let insert = "INSERT INTO orders (customer, amount) VALUES ($1, $2) RETURNING id";
    let order: i64 = transaction.query_one(insert, &[&customer, &amount]).await?.try_get(0)?;
    let event = format!(r#"{{"order":{order},"customer":"{customer}","amount":"{amount}"}}"#);
    let insert = "INSERT INTO outbox (topic, key, value) VALUES ($1, $2, $3)";
    transaction.execute(insert, &[&"orders", &customer.as_bytes(), &event.as_bytes()]).await?;
    transaction.commit().await?;
    relay.notify();
    Ok(order)
}

async fn connect(database: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(database, NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            eprintln!("the connection to the database broke: {error}");
        }
    });
    Ok(client)
}

async fn waiting(database: &tokio_postgres::Client) -> Result<i64, tokio_postgres::Error> {
    database.query_one("SELECT count(*) FROM outbox", &[]).await?.try_get(0)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let database = arguments.next().unwrap_or_else(|| "host=localhost user=postgres".to_owned());
    let servers = arguments.next().unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    let mut orders = connect(&database).await?;
    orders.batch_execute(SCHEMA).await?;
    println!("{} events are left from last time", waiting(&orders).await?);

    let client = Client::connect(servers).await?;
    let mut relay = client.outbox_relay("shop-postgres", PostgresOutbox(connect(&database).await?)).build()?;
    let handle = relay.handle();
    let relaying = tokio::spawn(async move { relay.run().await });

    for number in 0..100 {
        place_order(&mut orders, &handle, &format!("customer-{}", number % 7), "12.50").await?;
    }
    println!("100 orders placed");
    while waiting(&orders).await? > 0 && !relaying.is_finished() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    handle.stop();
    relaying.await??;
    let stats = handle.stats();
    println!("{} events sent, {} found stored already", stats.sent, stats.stored_before);
    Ok(())
}
