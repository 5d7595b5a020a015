//! `busbar request` and `busbar reply` against a cluster of real processes, and a requester that lives through the loss
//! of a leader.

use std::time::Duration;

use anyhow::{Context, ensure};
use busbar_client::{Record, RequestError};
use busbar_tests::{
    cli::{Ran, command, run},
    process::ProcessCluster,
    wait::within,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr},
};

const LIMIT: Duration = Duration::from_secs(60);

/// A running `busbar reply`.
struct Replying {
    child: Child,
    stderr: Lines<BufReader<ChildStderr>>,
}

impl Replying {
    async fn start(servers: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let arguments = [&["reply", "prices", "--server", servers], arguments].concat();
        let mut child = command(&arguments).spawn()?;
        let stderr = child.stderr.take().context("no stderr")?;
        let mut replying = Self { child, stderr: BufReader::new(stderr).lines() };
        let first = replying.line().await?;
        ensure!(first.starts_with("ready"), "{first}");
        Ok(replying)
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        let line = async { self.stderr.next_line().await?.context("busbar reply ended") };
        within(LIMIT, "a line of busbar reply", line).await
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).context("no pid")?;
        kill_process(pid, Signal::TERM)?;
        let status = within(LIMIT, "busbar reply ends", async { Ok(self.child.wait().await?) }).await?;
        ensure!(status.success(), "busbar reply ended with {status}");
        Ok(())
    }
}

/// Printing what the request was, or failing when it says so.
const SCRIPT: &str = r#"
value=$(cat)
if [ "$value" = fail ]; then echo "no such share"; exit 3; fi
if [ "$value" = hang ]; then sleep 1000; fi
echo "$value: $BUSBAR_TOPIC $BUSBAR_PARTITION $BUSBAR_KEY $BUSBAR_HEADER_CURRENCY offset $BUSBAR_OFFSET"
"#;

async fn request(servers: &str, arguments: &[&str]) -> anyhow::Result<Ran> {
    run(&[&["request", "prices", "--server", servers, "--timeout", "20s"], arguments].concat()).await
}

async fn commands(servers: &str) -> anyhow::Result<()> {
    let mut replying = Replying::start(servers, &["--exec", SCRIPT, "--timeout", "1s", "--jobs", "4"]).await?;
    let asked = request(servers, &["ACME", "--key", "k", "-H", "currency=EUR"]).await?.success()?;
    assert_eq!(asked.stdout, "ACME: prices 0 k EUR offset 0\n");
    let asked: Value = request(servers, &["ACME", "-o", "json"]).await?.success()?.json()?;
    assert_eq!((&asked["topic"], &asked["value"]), (&json!("prices.replies"), &json!("ACME: prices 0   offset 1")));
    let failed = request(servers, &["fail"]).await?;
    assert_eq!((failed.code, failed.stdout.as_str()), (Some(1), ""));
    assert_eq!(failed.stderr, "error: the responder failed: exit code 3: no such share\n");
    let told = replying.line().await?;
    assert!(told.contains("offset 2: exit code 3: no such share"), "{told}");
    let hung = request(servers, &["hang"]).await?;
    assert!(hung.code == Some(1) && hung.stderr.contains("took longer than 1s: killed"), "{hung:?}");
    replying.stop().await?;
    let nobody = run(&["request", "prices", "x", "--server", servers, "--timeout", "300ms"]).await?;
    assert!(nobody.code == Some(1) && nobody.stderr.contains("no reply in time"), "{nobody:?}");
    assert!(nobody.stderr.contains("stored in partition 0 at offset 4"), "{nobody:?}");
    // What is asked meanwhile can be answered later, so many and no more.
    let counted = ["reply", "prices", "--server", servers, "--exec", "cat", "--from", "4", "--count", "1"];
    run(&counted).await?.success()?;
    let read = run(&["sub", "prices.replies", "--server", servers, "--count", "5", "-o", "json"]).await?;
    let read = read.success()?.json_lines()?;
    assert!(read.iter().any(|record| record["value"] == "x"), "{read:?}");
    let usage = run(&["reply", "prices", "--server", servers]).await?;
    assert_eq!(usage.code, Some(2), "{usage:?}");
    let unknown = request(servers, &["--reply-topic", "nowhere", "x"]).await?;
    assert!(unknown.code == Some(1) && unknown.stderr.contains("nowhere"), "{unknown:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_answered_by_a_command() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(1).await?;
    let servers = cluster.servers();
    run(&["topic", "create", "prices", "--replicas", "1", "--server", &servers]).await?.success()?;
    commands(&servers).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_on_when_the_leader_of_both_topics_is_killed() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic("prices", busbar_client::TopicOptions::default()).await?;
    let requester = client.requester("prices").build().await?;
    let mut responder = client.responder("prices").build().await?;
    let answering = tokio::spawn(async move {
        let echo = async |request: busbar_client::Request| anyhow::Ok(Record::new(request.value().clone()));
        responder.serve(64, echo).await
    });
    // Whoever asks at the moment of the kill waits for the election, and still gets its own reply.
    let ask = |number: u32| {
        let requester = requester.clone();
        async move {
            let reply = requester.request(number.to_string(), LIMIT).await?;
            ensure!(reply.value() == number.to_string().as_bytes(), "{number} got {:?}", reply.value());
            anyhow::Ok(())
        }
    };
    let leader = cluster.leader_of(&client, "prices", 0).await?;
    let asking = async { futures::future::try_join_all((0..200).map(ask)).await };
    let (asked, killed) = tokio::join!(asking, cluster.kill(leader));
    killed?;
    asked?;
    let (topic, partition) = requester.replies_come_to();
    let leader = cluster.leader_of(&client, topic, partition).await?;
    let (asked, killed) = tokio::join!(futures::future::try_join_all((200..400).map(ask)), async {
        // Two of three nodes are needed.
        cluster.restart_all().await?;
        cluster.kill(leader).await
    });
    killed?;
    asked?;
    let stats = requester.stats();
    ensure!(stats.replies == 400 && stats.waiting == 0, "{stats:?}");
    let late = requester.request("x", Duration::from_millis(1)).await;
    ensure!(!matches!(late, Err(RequestError::Closed)), "{late:?}");
    answering.abort();
    cluster.restart_all().await?;
    cluster.finish().await
}

/// Two commands of one group share the requests; one that is killed leaves its part to the other.
#[tokio::test(flavor = "multi_thread")]
async fn commands_of_one_group_share_the_requests() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(1).await?;
    let servers = cluster.servers();
    run(&["topic", "create", "prices", "--replicas", "1", "--partitions", "4", "--server", &servers])
        .await?
        .success()?;
    let start = |word: &'static str| {
        let servers = servers.clone();
        async move { Replying::start(&servers, &["--exec", word, "--group", "pricing"]).await }
    };
    let client = cluster.client().await?;
    let requester = client.requester("prices").build().await?;
    let ask = |number: u32| {
        let requester = requester.clone();
        async move {
            let reply = requester.request(Record::new("?").partition(number % 4), LIMIT).await?;
            anyhow::Ok(String::from_utf8(reply.value().to_vec())?)
        }
    };
    // Asked at once: whoever is ready misses nothing.
    let one = start("echo one").await?;
    ensure!(ask(0).await? == "one");
    let two = start("echo two").await?;
    let mut asked = 1_u64;
    let answers = within(LIMIT, "both answer", async {
        loop {
            let answers = futures::future::try_join_all((0..8).map(ask)).await?;
            asked += 8;
            if ["one", "two"].iter().all(|word| answers.iter().any(|answer| answer == word)) {
                return Ok(answers);
            }
        }
    });
    ensure!(answers.await?.len() == 8);
    one.stop().await?;
    let alone = futures::future::try_join_all((0..8).map(ask)).await?;
    ensure!(alone.iter().all(|answer| answer == "two"), "{alone:?}");
    two.stop().await?;
    let stats = requester.stats();
    ensure!((stats.replies, stats.late) == (asked + 8, 0), "{stats:?}");
    let described: Value = run(&["group", "describe", "pricing", "--server", &servers, "-o", "json"]).await?.json()?;
    ensure!(described["lag"] == 0, "everything is acknowledged: {described}");
    let usage = ["reply", "prices", "--server", &servers, "--exec", "cat", "--group", "g", "--partition", "0"];
    ensure!(run(&usage).await?.code == Some(2));
    cluster.finish().await
}
