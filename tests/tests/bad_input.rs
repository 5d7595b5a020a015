//! Whatever comes in: a clear refusal, nothing stored by it, nobody else disturbed. Each case ends with a publish that
//! must be stored at the very next offset.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, ensure};
use busbar_client::{Client, ClientError, Reason, Record, SendError, TopicOptions};
use busbar_proto::v1::{
    self, publish_response::Outcome, subscribe_request, subscribe_request::open::From, subscribe_response::Event,
};
use busbar_tests::{
    cli,
    node::free_addresses,
    process::ProcessCluster,
    verify::verify,
    wire,
    workload::{Load, LoadOptions, read_everything},
};
use bytes::Bytes;

const TOPIC: &str = "orders";
/// Position of the checksum, the magic byte and the record count in a batch.
const CRC_AT: usize = 17;
const MAGIC_AT: usize = 16;
const LENGTH_AT: usize = 8;
const COUNT_AT: usize = 57;

/// One node with one topic of one partition, and how many records that holds.
struct Solo {
    cluster: ProcessCluster,
    client: Client,
    address: String,
    topic_id: Bytes,
    stored: u64,
}

impl Solo {
    async fn start() -> anyhow::Result<Self> {
        let cluster = ProcessCluster::start(1).await?;
        let client = cluster.client().await?;
        let options = TopicOptions { replicas: 1, max_batch_bytes: Some(64 << 10), ..TopicOptions::default() };
        client.admin().create_topic(TOPIC, options).await?;
        let (address, topic_id) = (cluster.node(1)?.address.clone(), wire::topic_id(&client, TOPIC).await?);
        Ok(Self { cluster, client, address, topic_id, stored: 0 })
    }

    /// The node serves, and nothing was stored since the last time but what the test knows of.
    async fn still_serves(&mut self, after: &str) -> anyhow::Result<()> {
        let batch = wire::batch(&["sound"]);
        let stored = wire::store(&self.address, &self.topic_id, 0, batch).await.with_context(|| after.to_owned())?;
        ensure!(stored == (self.stored, false), "after {after}: stored at {stored:?}, not at {}", self.stored);
        self.stored += 1;
        Ok(())
    }

    /// What the broker says to a request for this topic.
    async fn refusal(&self, change: impl FnOnce(&mut v1::PublishRequest)) -> anyhow::Result<v1::Error> {
        let batch = wire::batch(&["one", "two", "three"]);
        let mut request = v1::PublishRequest { topic_id: self.topic_id.clone(), batch, ..Default::default() };
        change(&mut request);
        match wire::publish(&self.address, request).await? {
            Outcome::Error(error) => Ok(error),
            Outcome::Acknowledged(stored) => anyhow::bail!("it was stored: {stored:?}"),
        }
    }
}

fn with_bytes(request: &mut v1::PublishRequest, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = request.batch.to_vec();
    change(&mut bytes);
    request.batch = bytes.into();
}

fn reseal(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[CRC_AT + 4..]);
    batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
}

type Change = Box<dyn FnOnce(&mut v1::PublishRequest)>;

/// Name, what is done to a sound request, the reason it is refused for, a word of the message.
fn bad_requests() -> Vec<(&'static str, Change, &'static str, &'static str)> {
    let bytes = |change: fn(&mut Vec<u8>)| -> Change { Box::new(move |request| with_bytes(request, change)) };
    vec![
        ("no batch at all", bytes(Vec::clear), "CORRUPT_BATCH", "61"),
        ("a batch cut off in its header", bytes(|b| b.truncate(40)), "CORRUPT_BATCH", "61"),
        ("a batch cut off in its records", bytes(|b| b.truncate(b.len() - 1)), "CORRUPT_BATCH", ""),
        ("bytes behind the batch", bytes(|b| b.extend_from_slice(b"xx")), "CORRUPT_BATCH", ""),
        ("a flipped bit", bytes(|b| *b.last_mut().unwrap_or(&mut 0) ^= 1), "CORRUPT_BATCH", "crc"),
        ("a length beyond the end", bytes(|b| b[LENGTH_AT] = 0x7f), "CORRUPT_BATCH", ""),
        ("a negative length", bytes(|b| b[LENGTH_AT] = 0xff), "CORRUPT_BATCH", ""),
        ("an old magic byte", bytes(|b| b[MAGIC_AT] = 1), "CORRUPT_BATCH", "magic"),
        (
            "a count that is none of its records",
            bytes(|b| {
                b[COUNT_AT + 3] = 7;
                reseal(b);
            }),
            "CORRUPT_BATCH",
            "",
        ),
        (
            "more than the topic allows",
            Box::new(|request| request.batch = wire::batch(&[&"x".repeat(70 << 10)])),
            "BATCH_TOO_LARGE",
            "65536",
        ),
        ("an unknown topic id", Box::new(|r| r.topic_id = vec![9; 16].into()), "UNKNOWN_TOPIC", ""),
        ("a topic id of five bytes", Box::new(|r| r.topic_id = vec![9; 5].into()), "INVALID_ARGUMENT", "16 bytes"),
        ("an unknown partition", Box::new(|r| r.partition = 99), "UNKNOWN_PARTITION", "99"),
        ("a deadline that has passed", Box::new(|r| r.deadline_unix_ms = 1), "DEADLINE_EXCEEDED", ""),
        (
            "a digest beyond its limit",
            Box::new(|request| {
                request.envelope = Some(v1::Envelope { digest: vec![1; 5 << 10].into(), ..Default::default() })
            }),
            "INVALID_ARGUMENT",
            "2048",
        ),
        (
            "a digest that is none",
            Box::new(|request| {
                request.envelope =
                    Some(v1::Envelope { digest: b"\x01\x01\x7f\x03a".to_vec().into(), ..Default::default() })
            }),
            "INVALID_ARGUMENT",
            "digest",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_batches_are_refused_with_a_reason() -> anyhow::Result<()> {
    let mut solo = Solo::start().await?;
    solo.still_serves("the start").await?;
    for (name, change, reason, word) in bad_requests() {
        let error = solo.refusal(change).await.context(name)?;
        assert_eq!(error.reason, reason, "{name}: {}", error.message);
        assert!(error.message.to_lowercase().contains(word), "{name}: {}", error.message);
        solo.still_serves(name).await?;
    }
    // The client knows the limit and does not even send.
    let producer = solo.client.producer(TOPIC).build().await?;
    let refused = producer.send(Record::new(vec![0; 70 << 10])).await.map(drop);
    assert!(matches!(refused, Err(SendError::TooLarge { limit: 65_536, .. })), "{refused:?}");
    solo.still_serves("a record too large").await?;
    solo.cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_names_and_numbers_are_answered_with_advice() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    let admin = client.admin();
    let plain = TopicOptions::default();
    admin.create_topic(TOPIC, plain).await?;
    let said = |outcome: Result<(), ClientError>| match outcome {
        Err(ClientError::Refused(refusal)) => (Some(refusal.reason), refusal.message),
        other => (None, format!("{other:?}")),
    };
    let long = "x".repeat(250);
    for (what, outcome, reason, word) in [
        ("taken", admin.create_topic(TOPIC, plain).await.map(drop), Reason::TopicExists, TOPIC),
        ("slash", admin.create_topic("a/b", plain).await.map(drop), Reason::InvalidName, "'/'"),
        ("space", admin.create_topic("a b", plain).await.map(drop), Reason::InvalidName, "' '"),
        ("empty", admin.create_topic("", plain).await.map(drop), Reason::InvalidName, "empty"),
        ("dots", admin.create_topic("..", plain).await.map(drop), Reason::InvalidName, "'..'"),
        ("long", admin.create_topic(long, plain).await.map(drop), Reason::InvalidName, "249"),
        (
            "replicas",
            admin.create_topic("wide", TopicOptions { replicas: 5, ..plain }).await.map(drop),
            Reason::FailedPrecondition,
            "5 nodes",
        ),
        (
            "no partitions",
            admin.create_topic("none", TopicOptions { partitions: 0, ..plain }).await.map(drop),
            Reason::InvalidArgument,
            "10000",
        ),
        (
            "many partitions",
            admin.create_topic("many", TopicOptions { partitions: 10_001, ..plain }).await.map(drop),
            Reason::InvalidArgument,
            "10000",
        ),
        ("describe", admin.describe_topic("ordres").await.map(drop), Reason::UnknownTopic, "'orders'"),
        ("delete", admin.delete_topic("order").await, Reason::UnknownTopic, "'orders'"),
        ("publish", client.producer("Orders").build().await.map(drop), Reason::UnknownTopic, "'orders'"),
        ("consume", client.consumer("0rders").build().await.map(drop), Reason::UnknownTopic, "'orders'"),
        ("nothing near", client.consumer("payments").build().await.map(drop), Reason::UnknownTopic, "create it"),
        ("move where", admin.move_partition(TOPIC, 0, vec![1, 2, 9]).await, Reason::UnknownNode, "9"),
        ("move what", admin.move_partition(TOPIC, 7, vec![1]).await, Reason::UnknownPartition, "7"),
        ("move twice", admin.move_partition(TOPIC, 0, vec![1, 1]).await, Reason::InvalidArgument, "once"),
        ("drain whom", admin.drain_node(9).await.map(drop), Reason::UnknownNode, "9"),
        ("drain too far", admin.drain_node(1).await.map(drop), Reason::FailedPrecondition, "add nodes"),
        ("remove early", admin.remove_node(1).await, Reason::FailedPrecondition, "drain"),
    ] {
        let (found, message) = said(outcome);
        assert_eq!(found, Some(reason), "{what}: {message}");
        assert!(message.contains(word), "{what}: {message}");
    }
    assert_eq!(admin.list_topics().await?.len(), 1, "nothing was created by what was refused");
    let producer = client.producer(TOPIC).build().await?;
    assert_eq!(producer.send(Record::new("v")).await?.await?.offset, 0);
    cluster.finish().await
}

/// Runs `busbar serve` with these flags; it must end by itself with this code and say these words on stderr.
async fn refuses_to_serve(what: &str, flags: &[&str], code: i32, words: &[&str]) -> anyhow::Result<()> {
    let ran = cli::run(&[&["serve"], flags].concat()).await.with_context(|| what.to_owned())?;
    ensure!(ran.code == Some(code), "{what}: {ran:#?}");
    for word in words {
        ensure!(ran.stderr.contains(word), "{what}: {word:?} is missing in: {}", ran.stderr);
    }
    ensure!(!ran.stderr.contains("panicked"), "{what}: {}", ran.stderr);
    ensure!(ran.stdout.is_empty(), "{what}: it printed {:?}", ran.stdout);
    Ok(())
}

fn text(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).context("a folder name that is no UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_must_not_start_does_not() -> anyhow::Result<()> {
    let mut solo = Solo::start().await?;
    solo.still_serves("the start").await?;
    let node = solo.cluster.node(1)?;
    let (config, data, address) = (text(&node.config_file())?, text(&node.data())?, node.address.clone());
    let [free, free_peer] = free_addresses()?;
    let elsewhere = ["--listen.address", &free, "--listen.peer_address", &free_peer];
    let on_same_folder = [&["--config", &config][..], &elsewhere].concat();
    refuses_to_serve("the folder is in use", &on_same_folder, 1, &["in use by another process", &data]).await?;
    let other = tempfile::tempdir()?;
    let other = text(&other.path().join("data"))?;
    let taken = ["--node.data_dir", &other, "--listen.address", &address, "--listen.peer_address", &free_peer];
    refuses_to_serve("the port is taken", &taken, 1, &[&address, "another process has it"]).await?;
    solo.still_serves("two intruders").await?;

    ensure!(solo.cluster.stop(1).await?.success(), "the node did not stop in order");
    let renamed = [&on_same_folder[..], &["--cluster.name", "another"]].concat();
    refuses_to_serve("another cluster's folder", &renamed, 1, &[&data, "\"test\"", "\"another\""]).await?;
    let renumbered = [&on_same_folder[..], &["--node.id", "7"]].concat();
    refuses_to_serve("another node's folder", &renumbered, 1, &[&data, "node 1", "node 7"]).await?;
    solo.cluster.restart(1).await?;
    // Elected first: a publish by hand is not repeated.
    solo.cluster.leader_of(&solo.client, TOPIC, 0).await?;
    solo.still_serves("four that were turned away").await?;
    solo.cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_refused_by_name() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("node.toml");
    let path = text(&file)?;
    for (what, content, words) in [
        ("a key", "[log]\nsegment_byte = 4\n", &["log.segment_byte", "log.segment_bytes"][..]),
        ("a section", "[lisen]\naddress = \"127.0.0.1:1\"\n", &["lisen", "listen"]),
        ("a value", "[log]\nsegment_bytes = \"many\"\n", &["log.segment_bytes", "many"]),
        ("too small", "[log]\njournal_file_bytes = \"1KiB\"\n", &["log.journal_file_bytes", "16MiB"]),
        ("no TOML", "[log\n", &["TOML"]),
        ("two faults", "[log]\na = 1\n[node]\nidd = 1\n", &["log.a", "node.idd", "node.id"]),
    ] {
        fs::write(&file, content)?;
        let words = [words, &[path.as_str()]].concat();
        refuses_to_serve(what, &["--config", &path], 2, &words).await?;
    }
    let missing = text(&folder.path().join("missing.toml"))?;
    refuses_to_serve("no file", &["--config", &missing], 2, &[&missing]).await?;
    refuses_to_serve("a flag", &["--log.segment_byte", "4MiB"], 2, &["--log.segment_byte", "--log.segment_bytes"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_protocol_disturb_nobody() -> anyhow::Result<()> {
    let mut solo = Solo::start().await?;
    solo.still_serves("the start").await?;
    let peer_address = solo.cluster.node(1)?.peer_address.clone();
    let tls_hello = [&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03][..], &[7; 506]].concat();
    let garbage: Vec<u8> = (0..100_000).map(|_| rand::random()).collect();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let huge_frame = [&preface[..], &[0xff, 0xff, 0xff, 0x00, 0, 0, 0, 0, 1]].concat();
    for (what, bytes) in [
        ("random bytes", &garbage[..]),
        ("a TLS hello", &tls_hello),
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("a preface and garbage", &[&preface[..], &garbage[..5_000]].concat()),
        ("a frame of 16 MiB", &huge_frame),
    ] {
        for address in [&solo.address, &peer_address] {
            wire::send_raw(address, bytes).await.with_context(|| format!("{what} to {address}"))?;
        }
        solo.still_serves(what).await?;
    }
    ensure!(solo.cluster.node(1)?.log().contains("TLS"), "the log says nothing of TLS on a plain port");
    let before = solo.cluster.node(1)?.resident_bytes()?;
    for path in ["/busbar.v1.Broker/Publish", "/busbar.v1.Broker/Metadata", "/busbar.v1.Admin/CreateTopic"] {
        let status = wire::declare_message(&solo.address, path, 2 << 30).await.context(path)?;
        assert_eq!(status, tonic::Code::OutOfRange as i32, "{path} with a message of 2 GiB");
        solo.still_serves(path).await?;
    }
    let after = solo.cluster.node(1)?.resident_bytes()?;
    ensure!(after < before + (64 << 20), "declaring 2 GiB took {} bytes", after - before);
    solo.cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_never_reads_stalls_nobody() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic(TOPIC, TopicOptions::default()).await?;
    let topic_id = wire::topic_id(&client, TOPIC).await?;
    let leader = cluster.leader_of(&client, TOPIC, 0).await?;
    let address = cluster.node(leader)?.address.clone();
    let open = subscribe_request::Open {
        topic_id,
        partition: 0,
        from: Some(From::Earliest(true)),
        credit: 1 << 40,
        any_replica: true,
        filter: String::new(),
    };
    let mut sleepers = Vec::new();
    for _ in 0..20 {
        let mut sleeper = wire::subscribe(&address, open.clone()).await?;
        ensure!(matches!(sleeper.next().await?, Event::Opened(_)), "the subscription did not open");
        sleepers.push(sleeper);
    }
    let before = cluster.node(leader)?.resident_bytes()?;
    // Far more than any buffer on the way could hold for them.
    let options = LoadOptions { value_bytes: 4_000, burst: 10, ..LoadOptions::default() };
    let mut load = Load::start(&client, TOPIC, options).await?;
    load.acknowledged(8_000, Duration::from_secs(90)).await?;
    let mut published = load.stop().await?;
    let read = read_everything(&client, TOPIC, &mut published).await?;
    verify(&published, &read).map_err(|found| anyhow::anyhow!("{} anomalies: {:#?}", found.len(), found.first()))?;
    let grown = cluster.node(leader)?.resident_bytes()?.saturating_sub(before);
    eprintln!("20 sleeping consumers of {} records: the leader grew by {} KiB", published.len(), grown >> 10);
    ensure!(grown < 256 << 20, "the leader grew by {grown} bytes");
    drop(sleepers);
    cluster.finish().await
}
