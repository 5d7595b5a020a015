//! Consumer groups as the broker coordinates them, with members spoken by hand: who holds what as members come, go, fall
//! silent and come back, and what was committed when the coordinator is killed or its node drained.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, ensure};
use busbar_client::{Client, TopicOptions};
use busbar_proto::v1;
use busbar_tests::{
    groups::{Member, commit, connect, find, join},
    process::ProcessCluster,
    wait::eventually,
    wire,
};

const LIMIT: Duration = Duration::from_secs(60);
const GROUP: &str = "billing";

async fn cluster_with_topic(partitions: u32) -> anyhow::Result<(ProcessCluster, Client)> {
    let cluster = ProcessCluster::start(3).await?;
    let client = cluster.client().await?;
    client.admin().create_topic("orders", TopicOptions { partitions, ..TopicOptions::default() }).await?;
    Ok((cluster, client))
}

/// Records so that offsets up to `count` may be committed.
async fn fill(cluster: &ProcessCluster, client: &Client, partitions: u32, count: usize) -> anyhow::Result<()> {
    let id = wire::topic_id(client, "orders").await?;
    for partition in 0..partitions {
        let leader = cluster.leader_of(client, "orders", partition).await?;
        wire::store(&cluster.node(leader)?.address, &id, partition, wire::batch(&vec!["value"; count])).await?;
    }
    Ok(())
}

async fn describe(cluster: &ProcessCluster, node: u64) -> anyhow::Result<v1::DescribeGroupResponse> {
    let request = v1::DescribeGroupRequest { group: GROUP.to_owned(), direct: false };
    Ok(connect(&cluster.node(node)?.address).await?.describe_group(request).await?.into_inner())
}

/// Commits wherever the coordinator is: it may be moving back to where it was.
async fn commit_at_leader(
    cluster: &ProcessCluster,
    member: &Member,
    claim: &v1::Claim,
    offset: u64,
) -> anyhow::Result<()> {
    eventually(LIMIT, "a commit is recorded", || async {
        let address = &cluster.node(find(cluster, GROUP).await?.leader)?.address;
        let refused = commit(address, GROUP, member.joined.member_id, claim, offset).await?;
        ensure!(refused.is_none(), "{refused:?}");
        Ok(())
    })
    .await
}

fn reason<T>(outcome: &Result<T, tonic::Status>) -> Option<busbar_client::Reason> {
    let status = outcome.as_ref().err()?;
    busbar_proto::Refusal::from_status(status).map(|refusal| refusal.reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_partitions_and_only_what_must_move_moves() -> anyhow::Result<()> {
    let (cluster, client) = cluster_with_topic(6).await?;
    fill(&cluster, &client, 6, 20).await?;
    let mut one = Member::join(&cluster, join(GROUP, &["orders"], "one")).await?;
    one.holds(6).await?;
    let all = one.held();
    for claim in one.claims() {
        ensure!(one.commit(&claim, 5).await?.is_none(), "its own partition");
    }
    let mut two = Member::join(&cluster, join(GROUP, &["orders"], "two")).await?;
    // Nothing is taken from the first before it has let go.
    ensure!(two.told().await?.partitions.is_empty());
    let stale = {
        let wanted = one.told().await?;
        let kept: BTreeSet<u32> = wanted.partitions.iter().filter_map(|p| Some(p.claim.as_ref()?.partition)).collect();
        ensure!(kept.len() == 3, "{wanted:?}");
        let given_up: Vec<_> = one.claims().into_iter().filter(|held| !kept.contains(&held.partition)).collect();
        // What it still holds it may commit, though it should let go.
        ensure!(one.commit(&given_up[0], 6).await?.is_none());
        one.assignment = wanted;
        let released = v1::member_request::Released { claims: given_up.clone() };
        one.say(v1::member_request::Action::Released(released)).await?;
        given_up
    };
    two.holds(3).await?;
    ensure!(one.held().iter().all(|(partition, claim)| all.get(partition) == Some(claim)), "what it kept, it kept");
    let mut got: Vec<_> = two.held().into_keys().map(|partition| two.committed(partition)).collect();
    got.sort_unstable();
    ensure!(got == [Some(5), Some(5), Some(6)], "it begins where the other ended: {got:?}");
    // The old holder can't commit any more, and says so under its old claim.
    ensure!(one.commit(&stale[0], 9).await?.as_deref() == Some("STALE_CLAIM"));
    for claim in two.claims() {
        ensure!(two.commit(&claim, 7).await?.is_none());
        ensure!(two.commit(&claim, 6).await?.as_deref() == Some("OFFSET_OUT_OF_RANGE"), "a group does not go back");
    }
    // Two more; then one leaves, and one falls silent.
    let mut three = Member::join(&cluster, join(GROUP, &["orders"], "three")).await?;
    one.holds(2).await?;
    two.holds(2).await?;
    three.holds(2).await?;
    let kept = (one.held(), three.held());
    two.leave().await?;
    one.holds(3).await?;
    three.holds(3).await?;
    ensure!(
        kept.0.iter().all(|held| one.held().contains_key(held.0))
            && kept.1.iter().all(|h| three.held().contains_key(h.0))
    );
    three.silence();
    one.holds(6).await?;
    ensure!(three.ended().await? == "UNKNOWN_MEMBER");
    let leader = find(&cluster, GROUP).await?.leader;
    let again = Member::join_at(&cluster.node(leader)?.address, three.rejoin()).await.map(drop);
    ensure!(again.is_err_and(|error| format!("{error:#}").contains("UNKNOWN_MEMBER")), "its session is over");
    drop(one);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_member_comes_back_to_what_it_had_and_fences_its_older_self() -> anyhow::Result<()> {
    let (cluster, client) = cluster_with_topic(4).await?;
    fill(&cluster, &client, 4, 20).await?;
    let named =
        |instance: &str| v1::member_request::Join { member_name: "m1".into(), ..join(GROUP, &["orders"], instance) };
    let mut one = Member::join(&cluster, named("first")).await?;
    let mut other = Member::join(&cluster, join(GROUP, &["orders"], "other")).await?;
    one.holds(2).await?;
    other.holds(2).await?;
    let (had, others, old_claim) = (one.held(), other.held(), one.claims()[0].clone());
    let (id, address) = (one.joined.member_id, cluster.node(find(&cluster, GROUP).await?.leader)?.address.clone());
    // A restart within the session timeout: it says goodbye, and comes back as another instance.
    one.leave().await?;
    let mut two = Member::join(&cluster, named("second")).await?;
    two.holds(2).await?;
    ensure!(two.joined.member_id == id && two.held().keys().eq(had.keys()), "{:?}", two.held());
    ensure!(two.held().iter().all(|(partition, claim)| had[partition] < *claim), "under new claims");
    ensure!(commit(&address, GROUP, id, &old_claim, 3).await?.as_deref() == Some("STALE_CLAIM"));
    // A third instance takes over while the second still runs.
    let mut three = Member::join(&cluster, named("third")).await?;
    three.holds(2).await?;
    ensure!(two.ended().await? == "FENCED_MEMBER");
    let again = Member::join_at(&address, two.rejoin()).await.map(drop);
    ensure!(again.is_err_and(|error| format!("{error:#}").contains("FENCED_MEMBER")));
    ensure!(other.held() == others, "the other member was not disturbed");
    // The same instance on a new stream keeps its claims.
    let claims = three.held();
    let mut back = Member::join(&cluster, three.rejoin()).await?;
    back.holds(2).await?;
    ensure!(back.held() == claims);
    drop((other, back));
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_coordinator_loses_nothing_and_members_go_on() -> anyhow::Result<()> {
    let patient =
        |instance| v1::member_request::Join { session_timeout_ms: 60_000, ..join(GROUP, &["orders"], instance) };
    let (mut cluster, client) = cluster_with_topic(4).await?;
    fill(&cluster, &client, 4, 200).await?;
    let mut one = Member::join(&cluster, patient("one")).await?;
    let mut two = Member::join(&cluster, patient("two")).await?;
    one.holds(2).await?;
    two.holds(2).await?;
    for round in 1..=3 {
        for member in [&one, &two] {
            for claim in member.claims() {
                commit_at_leader(&cluster, member, &claim, round * 10).await?;
            }
        }
        let leader = find(&cluster, GROUP).await?.leader;
        cluster.kill(leader).await?;
        // On a new stream, as the same instances, under the claims that they have.
        let mut back = [Member::join(&cluster, one.rejoin()).await?, Member::join(&cluster, two.rejoin()).await?];
        for (member, before) in back.iter_mut().zip([&one, &two]) {
            member.holds(2).await?;
            ensure!(member.held() == before.held(), "round {round}: {:?}, not {:?}", member.held(), before.held());
            for partition in member.held().into_keys() {
                ensure!(member.committed(partition) == Some(round * 10), "round {round}: a commit is lost");
            }
        }
        [one, two] = back;
        cluster.restart(leader).await?;
    }
    // Any node lists them, also one that has just started and led nothing yet.
    eventually(LIMIT, "the group is listed", || async {
        let listed = connect(&cluster.node(1)?.address).await?.list_groups(v1::ListGroupsRequest::default()).await?;
        let listed = listed.into_inner();
        ensure!(listed.groups.len() == 1 && listed.groups[0].members == 2, "{listed:?}");
        ensure!(listed.unanswered_shards.is_empty(), "{listed:?}");
        Ok(())
    })
    .await?;
    drop((one, two));
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_gives_its_shards_away() -> anyhow::Result<()> {
    let (mut cluster, client) = cluster_with_topic(2).await?;
    fill(&cluster, &client, 2, 20).await?;
    let mut one = Member::join(&cluster, join(GROUP, &["orders"], "one")).await?;
    one.holds(2).await?;
    for claim in one.claims() {
        ensure!(one.commit(&claim, 8).await?.is_none());
    }
    cluster.add_node().await?;
    let leader = find(&cluster, GROUP).await?.leader;
    client.admin().drain_node(leader).await?;
    eventually(LIMIT, "the drained node holds no shard", || async {
        for state in client.admin().describe_cluster().await?.partitions {
            let state_of = state.state.context("no state")?;
            ensure!(!state_of.replicas.contains(&leader) && state_of.moving_to.is_empty(), "{state_of:?}");
            ensure!(state_of.leader != 0, "{state_of:?}");
        }
        Ok(())
    })
    .await?;
    client.admin().remove_node(leader).await?;
    let mut back = Member::join(&cluster, one.rejoin()).await?;
    back.holds(2).await?;
    ensure!(back.held() == one.held() && back.committed(0) == Some(8));
    drop((one, back));
    cluster.ends(leader).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_described_reset_and_deleted_through_any_node() -> anyhow::Result<()> {
    let (cluster, client) = cluster_with_topic(2).await?;
    fill(&cluster, &client, 2, 20).await?;
    let mut groups = connect(&cluster.node(1)?.address).await?;
    let unknown = groups.describe_group(v1::DescribeGroupRequest { group: GROUP.into(), direct: false }).await;
    ensure!(reason(&unknown) == Some(busbar_client::Reason::UnknownGroup), "{unknown:?}");
    let mut one = Member::join(&cluster, join(GROUP, &["orders"], "one")).await?;
    one.holds(2).await?;
    for claim in one.claims() {
        ensure!(one.commit(&claim, 12).await?.is_none());
        // If another node leads the partition nobody here can know better.
        let beyond = one.commit(&claim, 1_000).await?;
        ensure!(beyond.is_none() || beyond.as_deref() == Some("OFFSET_OUT_OF_RANGE"), "{beyond:?}");
    }
    for node in 1..=3 {
        let described = describe(&cluster, node).await?;
        ensure!(described.members.len() == 1 && described.partitions.len() == 2, "{described:?}");
        for partition in &described.partitions {
            ensure!(partition.topic == "orders" && partition.member_id == one.joined.member_id, "{partition:?}");
            ensure!(partition.high_watermark == Some(20) && partition.committed.is_some(), "{partition:?}");
        }
    }
    let topic_id = wire::topic_id(&client, "orders").await?;
    let entry = |partition| v1::reset_group_request::Entry { topic_id: topic_id.clone(), partition, offset: 3 };
    let reset = |force| v1::ResetGroupRequest { group: GROUP.into(), entries: vec![entry(0)], force, direct: false };
    for node in 1..=3 {
        let mut groups = connect(&cluster.node(node)?.address).await?;
        let refused = groups.reset_group(reset(false)).await;
        ensure!(reason(&refused) == Some(busbar_client::Reason::GroupActive), "{refused:?}");
        let refused = groups.delete_group(v1::DeleteGroupRequest { group: GROUP.into(), direct: false }).await;
        ensure!(reason(&refused) == Some(busbar_client::Reason::GroupActive), "{refused:?}");
    }
    let before = one.claims();
    groups.reset_group(reset(true)).await?;
    one.assignment = one.told().await?;
    ensure!(one.held().len() == 2 && one.committed(0) == Some(3), "{:?}", one.assignment);
    for old in before.iter().filter(|claim| claim.partition == 0) {
        ensure!(one.commit(old, 13).await?.as_deref() == Some("STALE_CLAIM"), "its claim is gone");
    }
    one.leave().await?;
    groups.delete_group(v1::DeleteGroupRequest { group: GROUP.into(), direct: false }).await?;
    ensure!(describe(&cluster, 2).await.is_err(), "it is gone");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_with_a_reason() -> anyhow::Result<()> {
    let (cluster, client) = cluster_with_topic(1).await?;
    let leader = find(&cluster, GROUP).await?.leader;
    let address = cluster.node(leader)?.address.clone();
    let sound = join(GROUP, &["orders"], "one");
    let long = "x".repeat(250);
    for (wrong, want) in [
        (v1::member_request::Join { group: String::new(), ..sound.clone() }, "INVALID_NAME"),
        (v1::member_request::Join { group: long.clone(), ..sound.clone() }, "INVALID_NAME"),
        (v1::member_request::Join { member_name: long, ..sound.clone() }, "INVALID"),
        (v1::member_request::Join { topics: vec![], ..sound.clone() }, "INVALID_ARGUMENT"),
        (v1::member_request::Join { topics: vec!["no/name".into()], ..sound.clone() }, "INVALID_NAME"),
        (v1::member_request::Join { topics: vec!["order".into()], ..sound.clone() }, "did you mean 'orders'"),
        (v1::member_request::Join { topics: vec!["__groups".into()], ..sound.clone() }, "UNKNOWN_TOPIC"),
        (v1::member_request::Join { instance: Default::default(), ..sound.clone() }, "INVALID_ARGUMENT"),
        (v1::member_request::Join { member_id: 77, ..sound.clone() }, "UNKNOWN_MEMBER"),
    ] {
        let refused = Member::join_at(&address, wrong.clone()).await.map(drop);
        let text = format!("{:#}", refused.err().with_context(|| format!("{wrong:?} was taken"))?);
        ensure!(text.contains(want), "{wrong:?}: {text}");
    }
    let elsewhere = cluster.ids().into_iter().find(|id| *id != leader).context("one node")?;
    let refused = Member::join_at(&cluster.node(elsewhere)?.address, sound.clone()).await.map(drop);
    ensure!(refused.is_err_and(|error| format!("{error:#}").contains("NOT_LEADER")));
    // The shards are the cluster's own: hidden, without records, and nobody's to make or delete.
    let admin = client.admin();
    ensure!(admin.list_topics().await?.iter().all(|topic| topic.name == "orders"));
    let id = wire::topic_id(&client, "__groups").await?;
    let request = v1::PublishRequest { topic_id: id, batch: wire::batch(&["x"]), ..Default::default() };
    let outcome = wire::publish(&address, request).await?;
    let refused = matches!(&outcome, v1::publish_response::Outcome::Error(error) if error.reason == "UNKNOWN_TOPIC" || error.reason == "NOT_LEADER");
    ensure!(refused, "{outcome:?}");
    for outcome in
        [admin.create_topic("__mine", TopicOptions::default()).await.map(drop), admin.delete_topic("__groups").await]
    {
        ensure!(
            outcome.as_ref().is_err_and(|error| error.reason() == Some(busbar_client::Reason::InvalidName)),
            "{outcome:?}"
        );
    }
    cluster.finish().await
}
