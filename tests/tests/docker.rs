//! The container image and the three nodes of `docker/compose.yaml`: a node is cut off the network under load and comes
//! back. Skipped, with the reason printed, where no Docker engine answers. Where the engine has no `compose`, the
//! containers that its file describes are started one by one.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use busbar_client::{Client, TopicOptions};
use busbar_tests::{
    node::busbar,
    process::partition_state,
    verify::verify,
    wait::{eventually, within},
    workload::{Load, LoadOptions, read_everything},
};
use tokio::process::Command;

const PROJECT: &str = "busbar-test";
const IMAGE: &str = "busbar:test";
const NETWORK: &str = "busbar-test_cluster";
const SUBNET: &str = "172.29.74";
const TOPIC: &str = "orders";
const LIMIT: Duration = Duration::from_secs(60);
/// Copying the image into the engine can be slow.
const ENGINE_LIMIT: Duration = Duration::from_secs(120);
const STEADY: u64 = 200;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docker"))
}

fn address(node: u64) -> String {
    format!("{SUBNET}.{}", 10 + node)
}

fn container(node: u64) -> String {
    format!("{PROJECT}-node{node}-1")
}

/// Runs a command to its end; its stdout, or an error with what it said.
async fn run(command: &mut Command) -> anyhow::Result<String> {
    let what = format!("{:?}", command.as_std());
    let output = within(ENGINE_LIMIT, &what, async { Ok(command.stdin(Stdio::null()).output().await?) }).await?;
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

async fn docker(arguments: &[&str]) -> anyhow::Result<String> {
    run(Command::new("docker").args(arguments).env("BUSBAR_IMAGE", IMAGE)).await
}

/// The containers, removed with their network and volumes when dropped.
struct Containers;

impl Containers {
    async fn up() -> anyhow::Result<Self> {
        remove_all();
        let image = run(Command::new("sh")
            .arg(folder().join("image.sh"))
            .env("BUSBAR_BINARY", busbar())
            .env("TAG", IMAGE)
            .env_remove("BASE"))
        .await?;
        eprintln!("{image}");
        let containers = Self;
        let compose = folder().join("compose.yaml");
        let compose = compose.to_str().context("a folder name that is no UTF-8")?;
        match docker(&["compose", "version"]).await {
            Ok(version) => {
                eprintln!("{version}");
                docker(&["compose", "--project-name", PROJECT, "--file", compose, "up", "--detach", "--wait"]).await?;
            }
            Err(_) => {
                eprintln!("this engine has no compose: starting the containers one by one");
                containers.start_one_by_one().await?;
            }
        }
        Ok(containers)
    }

    async fn start_one_by_one(&self) -> anyhow::Result<()> {
        docker(&["network", "create", "--subnet", &format!("{SUBNET}.0/24"), NETWORK]).await?;
        let nodes = (1..=3).map(|id| format!("{id}={0}:7400/{0}:7500", address(id))).collect::<Vec<_>>().join(",");
        for id in 1..=3 {
            let (ip, volume) = (address(id), format!("{PROJECT}_data{id}:/var/lib/busbar"));
            let settings = [
                "BUSBAR_CLUSTER__NAME=compose".to_owned(),
                format!("BUSBAR_CLUSTER__INITIAL_NODES={nodes}"),
                format!("BUSBAR_NODE__ID={id}"),
                format!("BUSBAR_LISTEN__ADVERTISE={ip}:7400"),
                format!("BUSBAR_LISTEN__ADVERTISE_PEER={ip}:7500"),
            ];
            let name = container(id);
            let mut arguments = vec!["run", "--detach", "--name", &name, "--network", NETWORK, "--ip", &ip];
            arguments.extend(["--volume", &volume]);
            arguments.extend(settings.iter().flat_map(|setting| ["--env", setting]));
            arguments.push(IMAGE);
            docker(&arguments).await?;
        }
        Ok(())
    }

    async fn cut(&self, node: u64) -> anyhow::Result<()> {
        docker(&["network", "disconnect", NETWORK, &container(node)]).await.map(drop)
    }

    async fn heal(&self, node: u64) -> anyhow::Result<()> {
        docker(&["network", "connect", "--ip", &address(node), NETWORK, &container(node)]).await.map(drop)
    }

    async fn tell_logs(&self) {
        for node in 1..=3 {
            let logs = Command::new("docker").args(["logs", "--tail", "40", &container(node)]).output().await;
            let logs = logs.map_or_else(|error| error.to_string(), |told| String::from_utf8_lossy(&told.stderr).into());
            eprintln!("---- {} ----\n{logs}", container(node));
        }
    }

    async fn is_healthy(&self, node: u64) -> anyhow::Result<()> {
        eventually(LIMIT, &format!("node {node} passes its health check"), || async {
            let state = docker(&["inspect", "--format", "{{.State.Health.Status}}", &container(node)]).await?;
            ensure!(state == "healthy", "{state}");
            Ok(())
        })
        .await
    }
}

/// Removes what this test made, now or in an earlier run that was killed; what is not there is no matter.
fn remove_all() {
    let quietly = |arguments: &[&str]| {
        let mut command = std::process::Command::new("docker");
        drop(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status());
    };
    for node in 1..=3 {
        quietly(&["rm", "--force", "--volumes", &container(node)]);
        quietly(&["volume", "rm", &format!("{PROJECT}_data{node}")]);
    }
    quietly(&["network", "rm", NETWORK]);
    quietly(&["image", "rm", IMAGE]);
}

impl Drop for Containers {
    fn drop(&mut self) {
        remove_all();
    }
}

async fn leader(client: &Client) -> anyhow::Result<u64> {
    eventually(LIMIT, "a leader", || async {
        let state = partition_state(client, TOPIC, 0).await?;
        ensure!(state.leader != 0, "{state:?}");
        Ok(state.leader)
    })
    .await
}

async fn cut_and_heal(containers: &Containers) -> anyhow::Result<()> {
    let servers: Vec<String> = (1..=3).map(|node| format!("{}:7400", address(node))).collect();
    let client = eventually(LIMIT, "the containers answer", || async {
        let client = Client::connect(servers.join(",")).await?;
        let answered = client.admin().describe_cluster().await?.nodes.iter().filter(|node| node.answered).count();
        ensure!(answered == 3, "{answered} of 3 nodes answer");
        Ok(client)
    })
    .await?;
    for node in 1..=3 {
        containers.is_healthy(node).await?;
    }
    client.admin().create_topic(TOPIC, TopicOptions::default()).await?;
    let mut load = Load::start(&client, TOPIC, LoadOptions::default()).await?;
    load.acknowledged(STEADY, LIMIT).await?;
    let cut = leader(&client).await?;
    containers.cut(cut).await?;
    let pause = load.acknowledged(STEADY, LIMIT).await?;
    eprintln!("cut node {cut}, the leader, off: {STEADY} more acknowledgements for each publisher after {pause:?}");
    containers.heal(cut).await?;
    eventually(LIMIT, "the node is back", || async {
        let state = partition_state(&client, TOPIC, 0).await?;
        ensure!(state.in_sync.len() == 3, "{state:?}");
        Ok(())
    })
    .await?;
    load.acknowledged(STEADY, LIMIT).await?;
    let mut published = load.stop().await?;
    let read = read_everything(&client, TOPIC, &mut published).await?;
    let tally = verify(&published, &read);
    let tally = tally.map_err(|found| anyhow::anyhow!("{} anomalies: {:#?}", found.len(), found.first()))?;
    eprintln!("{tally:?}");
    ensure!(tally.acknowledged > 0 && tally.rejected == 0, "{tally:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_cut_off_the_network_comes_back() -> anyhow::Result<()> {
    if let Err(reason) = docker(&["info"]).await {
        eprintln!("skipped: no Docker engine answers: {reason:#}");
        return Ok(());
    }
    let containers = Containers::up().await?;
    let outcome = cut_and_heal(&containers).await;
    if outcome.is_err() {
        containers.tell_logs().await;
    }
    outcome
}
