//! The `busbar` command as scripts use it: what goes in, what comes out (the JSON of `docs/CLI.md`), exit codes.

use std::{collections::BTreeSet, fs, net::TcpListener, time::Duration};

use anyhow::{Context, ensure};
use busbar_tests::{
    cli::{self, Ran, command, end_of, run, run_with_input},
    process::ProcessCluster,
    wait::{eventually, within},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Child,
};

const LIMIT: Duration = Duration::from_secs(60);
const PARTITION_KEYS: [&str; 10] = [
    "partition",
    "leader",
    "epoch",
    "replicas",
    "in_sync",
    "log_start",
    "high_watermark",
    "lag",
    "moving_to",
    "asleep",
];

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
}

fn assert_keys(value: &Value, want: &[&str]) {
    assert_eq!(keys(value), want.iter().copied().collect(), "{value}");
}

/// A command against one cluster.
struct Busbar {
    servers: String,
}

impl Busbar {
    fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [arguments, &["--server", &self.servers]].concat()
    }

    async fn ran(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        run(&self.arguments(arguments)).await
    }

    async fn text(&self, arguments: &[&str]) -> anyhow::Result<String> {
        Ok(self.ran(arguments).await?.success()?.stdout)
    }

    async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        self.ran(&[arguments, &["-o", "json"]].concat()).await?.success()?.json()
    }
}

async fn topics(busbar: &Busbar) -> anyhow::Result<()> {
    let create = ["topic", "create", "orders", "--partitions", "2", "--replicas", "3", "--retention-ms", "3600000"];
    let created = busbar.json(&create).await?;
    let settings = ["replicas", "durability", "retention_bytes", "retention_ms", "max_batch_bytes", "cleanup"];
    assert_keys(&created, &[&["name", "id", "partitions"][..], &settings].concat());
    assert_eq!(created["name"], "orders");
    assert_eq!(created["partitions"], 2);
    assert_eq!(created["durability"], "fsync");
    assert_eq!((&created["retention_bytes"], &created["retention_ms"]), (&Value::Null, &json!(3_600_000)));
    assert_eq!(created["id"].as_str().map(str::len), Some(32));
    let listed = busbar.json(&["topic", "list"]).await?;
    assert_eq!(listed, json!({ "topics": [created] }));
    let described = busbar.json(&["topic", "describe", "orders"]).await?;
    assert_keys(&described, &[&["name", "id", "partitions"][..], &settings].concat());
    let partitions = described["partitions"].as_array().context("no partitions")?;
    assert_eq!(partitions.len(), 2);
    for partition in partitions {
        assert_keys(partition, &PARTITION_KEYS);
        assert!(
            partition["leader"].is_u64() && partition["replicas"].as_array().map(Vec::len) == Some(3),
            "{partition}"
        );
    }
    assert!(busbar.text(&["topic", "describe", "orders"]).await?.contains("partition"));
    let passing = ["topic", "create", "passing", "--replicas", "1", "--durability", "replicated"];
    assert!(busbar.text(&passing).await?.contains("passing"));
    assert_eq!(busbar.json(&["topic", "delete", "passing"]).await?, json!({ "deleted": "passing" }));
    let again = busbar.ran(&create).await?;
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("TOPIC_EXISTS") && again.stderr.contains("orders"), "{again:?}");
    let misspelt = busbar.ran(&["topic", "describe", "ordres"]).await?;
    assert_eq!(misspelt.code, Some(1));
    assert!(misspelt.stderr.contains("did you mean 'orders'?"), "{misspelt:?}");
    Ok(())
}

async fn records(busbar: &Busbar) -> anyhow::Result<()> {
    // Arguments, with key and headers; the summary is for people and on stderr.
    let published = ["pub", "orders", "--key", "k", "-H", "a=1", "-H", "b=x=y", "first", "second"];
    let ran = busbar.ran(&published).await?.success()?;
    assert!(ran.stdout.is_empty() && ran.stderr.contains("2 records: 2 acks"), "{ran:?}");
    let read = busbar.ran(&["sub", "orders", "--count", "2", "-o", "json"]).await?.success()?.json_lines()?;
    for (record, value) in read.iter().zip(["first", "second"]) {
        assert_keys(record, &["topic", "partition", "offset", "timestamp", "key", "headers", "value"]);
        let headers = json!([{ "name": "a", "value": "1" }, { "name": "b", "value": "x=y" }]);
        assert_eq!((&record["value"], &record["key"], &record["headers"]), (&json!(value), &json!("k"), &headers));
    }
    let partition = read[0]["partition"].to_string();
    let from = ["sub", "orders", "--partition", &partition, "--from", "1", "--count", "1"];
    assert_eq!(busbar.text(&from).await?, "second\n");
    // Lines of stdin and of a file; each command says what became of them.
    let summary = ["records", "acknowledged", "duplicates", "retries", "failed", "seconds"];
    let lines: Vec<String> = (0..500).map(|n| format!("line {n}")).collect();
    let arguments = busbar.arguments(&["pub", "orders", "--compression", "zstd", "-o", "json"]);
    let piped = run_with_input(&arguments, &lines.join("\n")).await?.success()?.json()?;
    assert_keys(&piped, &summary);
    assert_eq!((&piped["records"], &piped["acknowledged"], &piped["failed"]), (&json!(500), &json!(500), &json!(0)));
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("lines.txt");
    fs::write(&file, "from a file\nand more\n")?;
    let file = file.to_str().context("a folder name that is no UTF-8")?;
    assert_eq!(busbar.json(&["pub", "orders", "--file", file]).await?["acknowledged"], 2);
    let all = busbar.text(&["sub", "orders", "--count", "504"]).await?;
    let read: BTreeSet<&str> = all.lines().collect();
    let sent = lines.iter().map(String::as_str).chain(["first", "second", "from a file", "and more"]);
    assert_eq!(read, sent.collect());
    let unknown = busbar.ran(&["pub", "order", "x"]).await?;
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("did you mean 'orders'?"), "{unknown:?}");
    Ok(())
}

async fn latest_waits_for_what_comes(busbar: &Busbar) -> anyhow::Result<()> {
    busbar.text(&["topic", "create", "live"]).await?;
    busbar.text(&["pub", "live", "before"]).await?;
    let waiting = ["sub", "live", "--from", "latest", "--count", "1"];
    let child = command(&busbar.arguments(&waiting)).spawn()?;
    let end = end_of(child, "sub --from latest");
    tokio::pin!(end);
    // Nobody tells when it has subscribed: publish until it has seen one.
    let read = within(LIMIT, "a record from latest", async {
        loop {
            tokio::select! {
                ended = &mut end => return ended,
                published = busbar.text(&["pub", "live", "after"]) => drop(published?),
            }
        }
    });
    assert_eq!(read.await?.success()?.stdout, "after\n");
    Ok(())
}

async fn the_cluster(busbar: &Busbar) -> anyhow::Result<()> {
    let status = busbar.json(&["cluster", "status"]).await?;
    let top = ["cluster", "version", "catalog_leader", "nodes", "partitions", "under_replicated", "leaderless"];
    assert_keys(&status, &top);
    let nodes = status["nodes"].as_array().context("no nodes")?;
    assert_eq!(nodes.iter().map(|node| node["id"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
    for node in nodes {
        assert_keys(node, &["id", "address", "alive", "draining", "leaders", "replicas"]);
        assert_eq!((&node["alive"], &node["draining"]), (&json!(true), &json!(false)));
    }
    for partition in status["partitions"].as_array().context("no partitions")? {
        assert_keys(partition, &[&["topic"][..], &PARTITION_KEYS].concat());
    }
    assert_eq!(status["leaderless"], json!([]));
    assert!(busbar.text(&["cluster", "status"]).await?.contains("0 leaderless"));
    let moved = busbar.json(&["cluster", "move", "orders/1", "--to", "3,1", "--wait"]).await?;
    assert_eq!(moved, json!({ "topic": "orders", "partition": 1, "to": [3, 1], "done": true }));
    let described = busbar.json(&["topic", "describe", "orders"]).await?;
    assert_eq!(described["partitions"][1]["replicas"], json!([3, 1]));
    assert_eq!(busbar.json(&["health"]).await?["healthy"], true);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_do_what_their_page_says() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(3).await?;
    let busbar = Busbar { servers: cluster.servers() };
    topics(&busbar).await.context("topic")?;
    records(&busbar).await.context("pub and sub")?;
    latest_waits_for_what_comes(&busbar).await.context("sub --from latest")?;
    the_cluster(&busbar).await.context("cluster")?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_is_2_and_an_absent_cluster_1() -> anyhow::Result<()> {
    for arguments in [
        &["frobnicate"][..],
        &["topic", "create"],
        &["topic", "create", "a b"],
        &["topic", "create", "t", "--partitions", "0"],
        &["topic", "create", "t", "--durability", "maybe"],
        &["sub", "t", "--from", "tomorrow"],
        &["pub", "t", "-H", "nameless", "x"],
        &["cluster", "move", "orders", "--to", "1"],
        &["dev", "up", "-n", "0"],
    ] {
        let ran = run(arguments).await?;
        assert_eq!(ran.code, Some(2), "{arguments:?}: {ran:?}");
        assert!(!ran.stderr.is_empty() && ran.stdout.is_empty(), "{arguments:?}: {ran:?}");
    }
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    for arguments in [&["topic", "list"][..], &["pub", "t", "x"], &["sub", "t"], &["cluster", "status"], &["health"]] {
        let ran = run(&[arguments, &["--server", &address]].concat()).await?;
        assert_eq!(ran.code, Some(1), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains(&address) && ran.stderr.contains("busbar dev up"), "{arguments:?}: {ran:?}");
    }
    Ok(())
}

/// A range of 110 ports of which the ones that two nodes use are free: `dev up` has peers 100 above clients.
fn base_port() -> anyhow::Result<u16> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let found = (0..200).map(|_| rand::random_range(20_000..31_000));
    let mut found = found.filter(|&base| [0, 1, 100, 101].into_iter().all(|more| free(base + more)));
    found.next().context("no free ports")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_cluster_is_one_command() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("cluster");
    let dir = dir.to_str().context("a folder name that is no UTF-8")?;
    let base = base_port()?.to_string();
    let up = up(dir, &["-n", "2", "--base-port", &base]).await?;
    let outcome = use_local_cluster(dir).await;
    // Whatever happened: nothing may stay behind.
    let down = run(&["dev", "down", "--dir", dir, "-o", "json"]).await?.success()?;
    outcome?;
    assert_eq!(down.json()?, json!({ "stopped": true }));
    assert!(end_of(up, "dev up").await?.success().is_ok());
    let file: Value = serde_json::from_slice(&fs::read(folder.path().join("cluster/cluster.json"))?)?;
    assert!(file["nodes"].as_array().is_some_and(|nodes| nodes.iter().all(|node| node["pid"].is_null())), "{file}");
    Ok(())
}

async fn use_local_cluster(dir: &str) -> anyhow::Result<()> {
    let file: Value = serde_json::from_slice(&fs::read(format!("{dir}/cluster.json"))?)?;
    let nodes = file["nodes"].as_array().context("no nodes")?;
    assert_eq!(nodes.len(), 2);
    for node in nodes {
        assert_keys(node, &["id", "pid", "address", "peer_address", "data"]);
    }
    let dev = |arguments: &[&'static str]| {
        let arguments = [arguments, &["--dir", dir, "-o", "json"]].concat();
        async move { run(&arguments).await?.success()?.json() }
    };
    let states = |status: &Value| -> Vec<String> {
        let nodes = status["nodes"].as_array().into_iter().flatten();
        nodes.filter_map(|node| node["state"].as_str().map(str::to_owned)).collect()
    };
    let status = dev(&["dev", "status"]).await?;
    assert!(status["supervisor"].is_u64(), "{status}");
    assert_eq!(states(&status), ["running", "running"]);
    let busbar = Busbar { servers: nodes[0]["address"].as_str().context("no address")?.to_owned() };
    busbar.text(&["topic", "create", "t", "--replicas", "2"]).await?;
    busbar.text(&["pub", "t", "kept"]).await?;
    for stop in [&["dev", "stop", "2"][..], &["dev", "stop", "2", "--kill"]] {
        let stopped = dev(stop).await?;
        assert_eq!(stopped, json!({ "node": 2, "pid": null, "state": "stopped" }));
        assert_eq!(states(&dev(&["dev", "status"]).await?), ["running", "stopped"]);
        let started = dev(&["dev", "start", "2"]).await?;
        assert_eq!((&started["node"], &started["state"]), (&json!(2), &json!("running")));
    }
    assert_eq!(busbar.text(&["sub", "t", "--count", "1"]).await?, "kept\n");
    let second = run(&["dev", "up", "--dir", dir]).await?;
    ensure!(second.code == Some(1) && second.stderr.contains("already"), "a second dev up: {second:?}");
    let unknown = run(&["dev", "stop", "9", "--dir", dir]).await?;
    ensure!(unknown.code == Some(1) && unknown.stderr.contains("no node 9"), "{unknown:?}");
    Ok(())
}

/// `dev up` in the folder, and what it prints after it is ready.
async fn up(dir: &str, more: &[&str]) -> anyhow::Result<Child> {
    let mut up = command(&[&["dev", "up", "--dir", dir], more].concat()).spawn()?;
    let stdout = up.stdout.take().context("no stdout")?;
    let mut lines = BufReader::new(stdout).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await? {
            if line == "ready" {
                return Ok(());
            }
        }
        anyhow::bail!("dev up ended before it was ready")
    };
    within(LIMIT, "dev up gets ready", ready).await?;
    Ok(up)
}

/// A node that the cluster has removed ends for good; the local cluster goes on without it, also the next time.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_cluster_goes_on_without_a_removed_node() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("cluster");
    let dir = dir.to_str().context("a folder name that is no UTF-8")?;
    let base = base_port()?;
    let first = up(dir, &["-n", "2", "--base-port", &base.to_string()]).await?;
    let busbar = Busbar { servers: format!("127.0.0.1:{base}") };
    let state = || async { run(&["dev", "status", "--dir", dir, "-o", "json"]).await?.success()?.json() };
    let removed = async {
        busbar.text(&["cluster", "drain", "2"]).await?;
        busbar.text(&["cluster", "remove", "2"]).await?;
        eventually(LIMIT, "node 2 counts as removed", || async {
            let state = state().await?;
            ensure!(state["nodes"][1]["state"] == "removed", "{state}");
            Ok(())
        })
        .await
    };
    let removed = removed.await;
    run(&["dev", "down", "--dir", dir]).await?.success()?;
    end_of(first, "dev up").await?.success()?;
    removed?;
    let second = up(dir, &[]).await;
    let state = state().await;
    let again = run(&["dev", "start", "2", "--dir", dir]).await?;
    run(&["dev", "down", "--dir", dir]).await?.success()?;
    end_of(second?, "dev up").await?.success()?;
    ensure!(state?["nodes"][0]["state"] == "running");
    ensure!(again.code == Some(1) && again.stderr.contains("was removed"), "{again:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_cluster_leaves_nothing() -> anyhow::Result<()> {
    let base = base_port()?.to_string();
    let mut up = command(&["dev", "up", "-n", "2", "--ephemeral", "--base-port", &base, "-o", "json"]).spawn()?;
    let stdout = up.stdout.take().context("no stdout")?;
    let mut lines = BufReader::new(stdout).lines();
    let ready = async { lines.next_line().await?.context("dev up ended before it was ready") };
    let ready: Value = serde_json::from_str(&within(LIMIT, "dev up gets ready", ready).await?)?;
    assert_keys(&ready, &["ready", "dir", "nodes"]);
    let dir = ready["dir"].as_str().context("no dir")?;
    assert!(fs::exists(format!("{dir}/cluster.json"))?);
    let pid = up.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).context("no pid")?;
    kill_process(pid, Signal::INT)?;
    cli::end_of(up, "dev up").await?.success()?;
    assert!(!fs::exists(dir)?, "{dir} is still there");
    for node in ready["nodes"].as_array().context("no nodes")? {
        let pid = node["pid"].as_u64().context("no pid")?;
        assert!(!fs::exists(format!("/proc/{pid}"))?, "process {pid} still runs");
    }
    Ok(())
}
