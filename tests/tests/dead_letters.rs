//! `busbar dlq` as scripts use it, and replays that are cut short: each letter is back at its origin once, whatever happened
//! to the replay, and no letter is replayed again unless that is asked for.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use anyhow::{Context, ensure};
use busbar_client::{Client, DeadLetterError, LetterSelection, Record, StartAt, TopicOptions};
use busbar_tests::{
    cli::{Ran, run},
    process::ProcessCluster,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

struct Busbar(String);

impl Busbar {
    async fn ran(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        run(&[&["dlq"], arguments, &["--server", &self.0]].concat()).await
    }

    async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        self.ran(&[arguments, &["-o", "json"]].concat()).await?.success()?.json()
    }
}

/// Everything that a topic holds: values by partition, and the headers of replays.
async fn stored(client: &Client, topic: &str) -> anyhow::Result<BTreeMap<u32, Vec<(String, Vec<String>)>>> {
    let described = client.admin().describe_topic(topic).await?;
    let mut all = BTreeMap::new();
    for state in described.partitions {
        let builder = client.consumer(topic).partitions([state.partition]).from(StartAt::Earliest);
        let mut consumer = builder.build().await?;
        let records: &mut Vec<_> = all.entry(state.partition).or_default();
        while (records.len() as u64) < state.high_watermark {
            let record = tokio::time::timeout(LIMIT, consumer.next()).await.context("no record")??;
            let record = record.context("the end")?;
            let replays = record.headers().filter(|(name, _)| *name == "busbar-dlq-replayed");
            let replays = replays.map(|(_, place)| String::from_utf8_lossy(place).into_owned()).collect();
            ensure!(record.header("busbar-dlq-reason").is_none(), "the story stays with the letter");
            records.push((String::from_utf8_lossy(record.value()).into_owned(), replays));
        }
    }
    Ok(all)
}

/// Records of a topic.
async fn end(client: &Client, topic: &str) -> anyhow::Result<u64> {
    Ok(client.admin().describe_topic(topic).await?.partitions.iter().map(|state| state.high_watermark).sum())
}

/// Four orders that group `billing` rejects, one of them with a header.
async fn reject_orders(client: &Client) -> anyhow::Result<()> {
    let producer = client.producer("orders").build().await?;
    for number in 0..4 {
        let record = Record::new(format!("order {number}")).key(format!("customer-{number}")).header("region", "eu");
        producer.send(record).await?.await?;
    }
    producer.close().await?;
    let mut consumer = client.group("billing").topics(["orders"]).build().await?;
    for _ in 0..4 {
        let record = tokio::time::timeout(LIMIT, consumer.next()).await.context("no record")??.context("the end")?;
        record.reject("not an amount")?;
    }
    consumer.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_listed_shown_and_replayed_once() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic("orders", TopicOptions { partitions: 4, ..TopicOptions::default() }).await?;
    reject_orders(&client).await?;
    let before = stored(&client, "orders").await?;
    let busbar = Busbar(cluster.servers());

    let listed = busbar.json(&["list"]).await?;
    let topic = &listed["topics"][0];
    assert_eq!((&topic["topic"], &topic["letters"], &topic["replayed"]), (&json!("orders.dlq"), &json!(4), &json!(0)));
    assert_eq!((&topic["groups"][0]["group"], &topic["groups"][0]["topic"]), (&json!("billing"), &json!("orders")));
    ensure!(busbar.ran(&["list"]).await?.success()?.stdout.contains("billing"));

    let shown = busbar.ran(&["show", "orders.dlq", "-o", "json"]).await?.success()?.json_lines()?;
    assert_eq!(shown.len(), 4);
    let story = &shown[0]["story"];
    assert_eq!((&story["reason"], &story["group"]), (&json!("not an amount"), &json!("billing")));
    assert_eq!(shown[0]["headers"], json!([{ "name": "region", "value": "eu" }]));
    let one = busbar.ran(&["show", "orders.dlq", "-n", "1"]).await?.success()?.stdout;
    ensure!(
        one.contains("given up by group billing after 1 delivery: not an amount") && one.contains("header region: eu")
    );
    ensure!(busbar.ran(&["show", "orders.dlq", "--group", "other"]).await?.success()?.stdout.is_empty());

    let dry = busbar.json(&["replay", "orders.dlq", "--dry-run"]).await?;
    assert_eq!((&dry["replayed"], &dry["dry_run"]), (&json!(4), &json!(true)));
    // One alone, then the rest, then nothing is left.
    let (partition, offset) = (shown[0]["partition"].to_string(), shown[0]["offset"].to_string());
    let place = ["replay", "orders.dlq", "--partition", &partition, "--offset", &offset];
    assert_eq!(busbar.json(&place).await?["replayed"], json!(1));
    let refused = busbar.ran(&place).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("--all"), "{refused:?}");
    let rest = busbar.json(&["replay", "orders.dlq", "--group", "billing"]).await?;
    assert_eq!(rest["to"], json!([{ "topic": "orders", "letters": 3 }]));
    assert_eq!(busbar.json(&["replay", "orders.dlq"]).await?["replayed"], json!(0));
    assert_eq!(busbar.json(&["list"]).await?["topics"][0]["replayed"], json!(4));
    ensure!(busbar.ran(&["show", "orders.dlq", "--waiting"]).await?.success()?.stdout.is_empty());

    // Each is once more where it was, in the same partition.
    let after = stored(&client, "orders").await?;
    for (partition, records) in &before {
        let again: Vec<_> = after[partition][records.len()..].iter().map(|(value, _)| value).collect();
        let first: Vec<_> = records.iter().map(|(value, _)| value).collect();
        assert!(again.len() == first.len() && first.iter().all(|value| again.contains(value)), "{after:?}");
        ensure!(after[partition][records.len()..].iter().all(|(_, replays)| replays.len() == 1), "{after:?}");
    }
    client.admin().create_topic("archive", TopicOptions::default()).await?;
    let elsewhere = busbar.json(&["replay", "orders.dlq", "--all", "--to", "archive"]).await?;
    assert_eq!(elsewhere["to"], json!([{ "topic": "archive", "letters": 4 }]));
    assert_eq!(stored(&client, "archive").await?[&0].len(), 4);

    // What was replayed of a topic says nothing of the next one of its name.
    client.admin().delete_topic("orders.dlq").await?;
    client.admin().create_topic("orders.dlq", TopicOptions::default()).await?;
    let producer = client.producer("orders.dlq").build().await?;
    producer.send(letter(0, 0)).await?.await?;
    producer.close().await?;
    assert_eq!(busbar.json(&["list"]).await?["topics"][0]["replayed"], json!(0));
    assert_eq!(busbar.json(&["replay", "orders.dlq"]).await?["replayed"], json!(1));
    let unknown = busbar.ran(&["replay", "order.dlq"]).await?;
    ensure!(unknown.code == Some(1) && unknown.stderr.contains("orders.dlq"), "{unknown:?}");
    cluster.finish().await
}

/// Lets the future go on for so many steps, and drops it where it is then.
async fn crash_after<T>(steps: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = steps;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

/// A dead letter as a group leaves it.
fn letter(number: u64, partition: u32) -> Record {
    let story = [
        ("group", "billing".to_owned()),
        ("topic", "orders".to_owned()),
        ("partition", (number % 2).to_string()),
        ("offset", number.to_string()),
        ("reason", "not an amount".to_owned()),
    ];
    let letter = Record::new(number.to_string()).partition(partition);
    story.into_iter().fold(letter, |letter, (name, value)| letter.header(format!("busbar-dlq-{name}"), value))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_cut_short_anywhere_is_finished_and_replays_nothing_twice() -> anyhow::Result<()> {
    const LETTERS: u64 = 4_000;
    let cluster = ProcessCluster::start(1).await?;
    let client = cluster.client().await?;
    for topic in ["orders", "orders.dlq"] {
        client.admin().create_topic(topic, TopicOptions { partitions: 2, replicas: 1, ..Default::default() }).await?;
    }
    let producer = client.producer("orders.dlq").build().await?;
    drop(producer.send(Record::new("no letter").partition(0)).await?);
    for number in 0..LETTERS {
        drop(producer.send(letter(number, (number / 4 % 2) as u32)).await?);
    }
    producer.close().await?;

    let dead = client.dead_letters("orders.dlq");
    let dead_once = dead.clone();
    let replay = || dead.replay(LetterSelection::waiting(), None);
    let (mut replayed, mut taken_up, mut crashes, mut steps) = (0, 0, 0, 1);
    let report = loop {
        match crash_after(steps, replay()).await {
            None => crashes += 1,
            Some(report) => break report?,
        }
        steps += 1 + steps / 12;
    };
    replayed += report.replayed();
    taken_up += report.taken_up;
    assert_eq!(report.others, 1, "what is no letter stays where it is");
    eprintln!("{crashes} crashes; the last replay: {replayed} letters, {taken_up} taken up");
    assert_eq!(replay().await?.replayed(), 0);

    let all = stored(&client, "orders").await?;
    let mut numbers = Vec::new();
    for (partition, records) in &all {
        for (value, replays) in records {
            let number: u64 = value.parse()?;
            ensure!(number % 2 == u64::from(*partition), "letter {number} is in partition {partition}");
            ensure!(replays.len() == 1, "{replays:?}");
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..LETTERS).collect::<Vec<_>>());

    // A replay may run on any thread.
    assert_eq!(
        tokio::spawn(async move { dead_once.replay(LetterSelection::waiting(), None).await }).await??.replayed(),
        0
    );

    // A second replay takes over from one that is under way, and that one says so.
    let again = || dead.replay(LetterSelection::all(), None);
    let mut older = pin!(again());
    while end(&client, "orders").await? == LETTERS {
        let ended = crash_after(5, older.as_mut()).await;
        ensure!(ended.is_none(), "too quick: {ended:?}");
    }
    let newer = again().await?;
    let older = older.await;
    ensure!(matches!(older, Err(DeadLetterError::Fenced { .. })), "{older:?}");
    ensure!(newer.replayed() >= LETTERS, "{newer:?}");
    cluster.finish().await
}
