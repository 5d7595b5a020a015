//! Connecting, metadata, administration.

use std::time::Duration;

use busbar_client::{Client, ClientError, Reason, StartAt, TopicOptions};

use crate::{
    fake::{Cluster, record},
    soon,
};

#[tokio::test]
async fn nobody_there_says_where_and_what_to_do() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let free = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let error = Client::connect(free.as_str()).await.expect_err("nobody listens");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("no broker answered at {free}: connection refused")), "{text}");
    assert!(text.contains("busbar dev up"), "{text}");
    assert!(error.is_retryable() && error.has_no_side_effects());
}

#[tokio::test]
async fn a_bad_address_is_refused_before_anything_is_sent() {
    let error = Client::connect("localhost:99999").await.expect_err("no such port");
    assert!(error.to_string().contains("\"localhost:99999\" is no broker address"), "{error}");
}

#[tokio::test]
async fn one_of_the_servers_is_enough() {
    let mut cluster = Cluster::start(2).await;
    cluster.kill(1).await;
    let client = soon("connect", Client::connect(cluster.servers())).await.expect("node 2 answers");
    assert!(client.admin().list_topics().await.expect("a list").is_empty());
}

#[tokio::test]
async fn servers_that_keep_silent_cost_no_timeout_each() {
    let cluster = Cluster::start(1).await;
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    }
    let address = |listener: &tokio::net::TcpListener| listener.local_addr().expect("an address").to_string();
    let servers: Vec<_> = silent.iter().map(address).chain([cluster.servers()]).collect();
    for seed in 0..4 {
        // Less than one silent server's timeout; the order of the servers is by chance.
        let env = busbar_client::env::Env::new(
            std::sync::Arc::new(busbar_client::env::SystemClock),
            std::sync::Arc::new(busbar_client::env::SeededEntropy::new(seed)),
        );
        let builder = Client::builder().servers(servers.join(",")).request_timeout(Duration::from_secs(4)).env(env);
        let client = soon("connect", builder.build()).await.expect("one of them answers");
        assert!(client.admin().list_topics().await.expect("a list").is_empty());
    }
}

#[tokio::test]
async fn something_that_is_no_broker_is_told() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.writable().await.expect("writable");
            stream.try_write(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("written");
        }
    });
    let error = soon("connect", Client::connect(address.as_str())).await.expect_err("it is no broker");
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn an_unknown_topic_is_refused_with_the_brokers_advice() {
    let (_cluster, client) = Cluster::with_topic(1).await;
    for error in [
        client.producer("tt").build().await.expect_err("no such topic"),
        client.consumer("tt").build().await.expect_err("no such topic"),
    ] {
        assert_eq!(error.reason(), Some(Reason::UnknownTopic));
        assert!(error.to_string().contains("did you mean Some(\"t\")"), "{error}");
    }
}

#[tokio::test]
async fn learned_nodes_outlive_the_bootstrap_list() {
    let mut cluster = Cluster::start(2).await;
    cluster.create("t", 2);
    let client = Client::connect(cluster.address(1)).await.expect("node 1 answers");
    cluster.kill(1).await;
    cluster.lead(0, 2);
    let producer = soon("build", client.producer("t").build()).await.expect("node 2 knows the topic");
    soon("send", producer.send(record(0)).await.expect("taken")).await.expect("stored");
    let consumer = client.consumer("t").from(StartAt::Latest).build();
    soon("build", consumer).await.expect("node 2 leads all partitions");
}

#[tokio::test]
async fn topics_are_created_listed_and_deleted() {
    let (cluster, client) = Cluster::with_topic(1).await;
    let admin = client.admin();
    let options = TopicOptions { partitions: 3, replicas: 1, ..TopicOptions::default() };
    let created = admin.create_topic("new", options).await.expect("created");
    assert_eq!((created.name.as_str(), created.partitions.len()), ("new", 3));
    let again = admin.create_topic("new", options).await.expect_err("taken");
    assert_eq!(again.reason(), Some(Reason::TopicExists));
    let names: Vec<_> = admin.list_topics().await.expect("a list").into_iter().map(|topic| topic.name).collect();
    assert_eq!(names, ["new", "t"]);
    admin.delete_topic("new").await.expect("deleted");
    assert_eq!(admin.delete_topic("new").await.expect_err("gone").reason(), Some(Reason::UnknownTopic));
    assert_eq!(admin.describe_cluster().await.expect("described").cluster, "fake");
    assert_eq!(admin.describe_replicas(2).await.expect("described")[0].leader, 2);
    drop(cluster);
}

#[tokio::test]
async fn options_out_of_range_are_named() {
    let (_cluster, client) = Cluster::with_topic(2).await;
    let producer = || client.producer("t");
    for (error, option) in [
        (producer().in_flight(6).build().await.err(), "in_flight"),
        (producer().in_flight(0).build().await.err(), "in_flight"),
        (producer().batch_bytes(1 << 30).build().await.err(), "batch_bytes"),
        (producer().buffer_bytes(1).build().await.err(), "buffer_bytes"),
        (producer().compression(busbar_client::Compression::Gzip).build().await.err(), "compression"),
        (client.consumer("t").partitions([2]).build().await.err(), "partitions"),
        (client.consumer("t").partitions([]).build().await.err(), "partitions"),
    ] {
        match error {
            Some(ClientError::InvalidOption { option: named, .. }) => assert_eq!(named, option),
            other => panic!("{option}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_deadline_that_a_broker_with_another_clock_calls_passed_is_not_sent_again() {
    let (cluster, client) = Cluster::with_topic(1).await;
    cluster.edit_all(|state| state.clock_ahead_ms = 3_600_000);
    let producer = client.producer("t").delivery_timeout(Duration::from_secs(15)).build().await.expect("a producer");
    soon("send", producer.send(record(0)).await.expect("taken")).await.expect("stored all the same");
    let deadlines = cluster.edit(0, |partition| partition.deadlines.clone());
    assert!(deadlines[0] > 0 && deadlines.last() == Some(&0), "{deadlines:?}");
}
