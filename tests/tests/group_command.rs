//! `busbar group` as scripts use it: the JSON of `docs/CLI.md`, what is refused, and where a reset takes a group.

use anyhow::{Context, ensure};
use busbar_client::TopicOptions;
use busbar_tests::{
    cli::{Ran, run},
    groups::{Member, join},
    process::ProcessCluster,
    wire,
};
use serde_json::{Value, json};

struct Busbar(String);

impl Busbar {
    async fn ran(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        run(&[&["group"], arguments, &["--server", &self.0]].concat()).await
    }

    async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        self.ran(&[arguments, &["-o", "json"]].concat()).await?.success()?.json()
    }

    async fn refused(&self, arguments: &[&str], words: &str) -> anyhow::Result<()> {
        let ran = self.ran(arguments).await?;
        ensure!(ran.code == Some(1) && ran.stderr.contains(words), "{arguments:?}: {ran:?}");
        Ok(())
    }
}

fn offsets(reset: &Value) -> Vec<u64> {
    let all = reset["offsets"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(|offset| offset["offset"].as_u64()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_listed_described_reset_and_deleted() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic("orders", TopicOptions { partitions: 2, ..TopicOptions::default() }).await?;
    let id = wire::topic_id(&client, "orders").await?;
    for partition in 0..2 {
        let leader = cluster.node(cluster.leader_of(&client, "orders", partition).await?)?.address.clone();
        // Two batches of ten; every record has the time stamp 1,000 ms.
        for _ in 0..2 {
            wire::store(&leader, &id, partition, wire::batch(&["v"; 10])).await?;
        }
    }
    let busbar = Busbar(cluster.servers());
    assert_eq!(busbar.json(&["list"]).await?, json!({ "groups": [], "unanswered_shards": [] }));
    busbar.refused(&["describe", "billing"], "UNKNOWN_GROUP").await?;

    let mut member = Member::join(&cluster, join("billing", &["orders"], "one")).await?;
    member.holds(2).await?;
    let first = member.claims().into_iter().find(|claim| claim.partition == 0).context("partition 0")?;
    ensure!(member.commit(&first, 15).await?.is_none());
    let listed = busbar.json(&["list"]).await?;
    let group = &listed["groups"][0];
    assert_eq!(
        (&group["group"], &group["members"], &group["topics"]),
        (&json!("billing"), &json!(1), &json!(["orders"]))
    );
    let described = busbar.json(&["describe", "billing"]).await?;
    assert_eq!((&described["lag"], described["members"].as_array().map(Vec::len)), (&json!(25), Some(1)));
    let [one, two] = [&described["partitions"][0], &described["partitions"][1]];
    assert_eq!((&one["committed"], &one["high_watermark"], &one["lag"]), (&json!(15), &json!(20), &json!(5)));
    assert!(one["lag_seconds"].as_f64().is_some_and(|seconds| seconds > 1e6), "the record is from 1970: {one}");
    assert_eq!((&two["committed"], &two["lag"], &two["lag_seconds"]), (&Value::Null, &json!(20), &Value::Null));
    assert_eq!(one["member"], json!(member.joined.member_id));
    ensure!(busbar.ran(&["describe", "billing"]).await?.success()?.stdout.contains("orders/1"));

    busbar.refused(&["reset", "billing", "--to", "earliest"], "GROUP_ACTIVE").await?;
    busbar.refused(&["delete", "billing"], "GROUP_ACTIVE").await?;
    let forced = busbar.json(&["reset", "billing", "--to", "12", "--partition", "0", "--force"]).await?;
    assert_eq!(forced["offsets"], json!([{ "topic": "orders", "partition": 0, "offset": 12 }]));
    member.assignment = member.told().await?;
    ensure!(member.committed(0) == Some(12), "{:?}", member.assignment);
    // Of a partition that nobody reads and nobody has committed to the group knows nothing: nor would a reset.
    let second = member.claims().into_iter().find(|claim| claim.partition == 1).context("partition 1")?;
    ensure!(member.commit(&second, 1).await?.is_none());
    member.leave().await?;

    for (to, want) in [
        ("earliest", [0, 0]),
        ("latest", [20, 20]),
        ("7", [7, 7]),
        ("1970-01-01T00:00:01Z", [0, 0]),
        ("1970-01-01T00:00:02Z", [20, 20]),
        ("1h", [20, 20]),
    ] {
        assert_eq!(offsets(&busbar.json(&["reset", "billing", "--to", to]).await?), want, "{to}");
        let described = busbar.json(&["describe", "billing"]).await?;
        assert_eq!(described["partitions"][1]["committed"], json!(want[1]), "{to}");
    }
    busbar.refused(&["reset", "billing", "--to", "21"], "orders/0 has no offset 21").await?;
    busbar.refused(&["reset", "billing", "--to", "1", "--topic", "other"], "reads no such partition").await?;
    assert_eq!(busbar.json(&["delete", "billing"]).await?, json!({ "deleted": "billing" }));
    assert_eq!(busbar.json(&["list"]).await?["groups"], json!([]));
    cluster.finish().await
}
