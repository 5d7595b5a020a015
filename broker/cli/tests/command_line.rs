//! The command as scripts see it: exit codes, what goes to stdout and to stderr, and one local cluster from `dev up` to
//! `dev down`. What a cluster promises is tested in `tests/`.

#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

/// Nobody listens there: port 1 needs root, and has no service.
const NOBODY: &str = "127.0.0.1:1";

fn busbar(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_busbar"));
    command.args(args).env_remove("BUSBAR_SERVER").env_remove("BUSBAR_LOG");
    command
}

fn run(args: &[&str]) -> Output {
    busbar(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs it, expects success, and gives stdout.
fn done(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn failures_say_what_where_and_what_to_do() {
    for (args, code, words) in [
        (&["topic", "list", "--server", NOBODY][..], 1, &["127.0.0.1:1", "busbar dev up"][..]),
        (&["health", "--server", NOBODY], 1, &["127.0.0.1:1"]),
        (&["topic", "list", "--server", "no-port"], 1, &["no-port"]),
        (&["dev", "status", "--dir", "no/such"], 1, &["no/such", "busbar dev up"]),
        (&["pub", "t", "--file", "no/such", "--server", NOBODY], 1, &["no"]),
        (&["serve", "--config", "no/such.toml"], 2, &["no/such.toml", "can't be read"]),
        (&["serve", "--set", "log.segmnt_bytes=1MiB"], 2, &["log.segmnt_bytes", "log.segment_bytes"]),
        (&["serve", "--log.segmnt_bytes", "1MiB"], 2, &["--log.segment_bytes"]),
        (&["check-config", "--node.id", "0", "--cluster.name", "a b"], 2, &["node.id", "cluster.name", "2 places"]),
        (&["topic", "create", "a b"], 2, &["a b", "a-z A-Z 0-9"]),
        (&["sub", "t", "--from", "yesterday"], 2, &["earliest, latest, an offset, a time"]),
        (&["cluster", "move", "orders", "--to", "1"], 2, &["TOPIC/PARTITION"]),
        (&["nonsense"], 2, &["nonsense"]),
    ] {
        let output = run(args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}: results of a failure: {}", text(&output.stdout));
        for word in words {
            assert!(stderr.contains(word), "{args:?}: {word:?} is missing in: {stderr}");
        }
        assert!(!stderr.contains("backtrace") && !stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

#[test]
fn the_effective_configuration_is_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    let printed = done(&["check-config", "--log.segment_bytes", "32MiB"]);
    assert!(printed.contains("[log]\n") && printed.contains("segment_bytes = \"32MiB\""), "{printed}");
    std::fs::write(&path, &printed).unwrap();
    assert_eq!(done(&["check-config", "--config", path.to_str().unwrap()]), printed);
}

/// A `dev up` that is ended with the test, however it ends.
struct Up {
    child: Child,
    folder: tempfile::TempDir,
    server: String,
}

impl Up {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = free_base_port();
        let mut command = busbar(&["dev", "up", "-n", "1", "--base-port", &base.to_string(), "--dir"]);
        let mut child = command.arg(folder.path()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let lines: Vec<String> = lines.map(Result::unwrap).take_while(|line| line != "ready").collect();
        assert!(lines[0].starts_with("node ") && lines.len() == 2, "{lines:?}");
        Self { child, folder, server: format!("127.0.0.1:{base}") }
    }

    fn dir(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = run(&["dev", "down", "--dir", self.dir()]);
        let _ = self.child.wait();
    }
}

/// A port that is free now, and so is the one 100 above.
fn free_base_port() -> u16 {
    let free = |port| TcpListener::bind(("127.0.0.1", port)).ok()?.local_addr().ok().map(|address| address.port());
    std::iter::repeat_with(|| free(0).unwrap()).find(|&port| port < 60_000 && free(port + 100).is_some()).unwrap()
}

fn pids(dir: &Path) -> Vec<Value> {
    let file: Value = serde_json::from_slice(&std::fs::read(dir.join("cluster.json")).unwrap()).unwrap();
    file["nodes"].as_array().unwrap().iter().map(|node| node["pid"].clone()).collect()
}

#[test]
fn a_local_cluster_from_up_to_down() {
    let mut up = Up::start();
    let (dir, server) = (up.dir().to_owned(), up.server.clone());
    let on_server = |args: &[&str]| done(&[args, &["--server", &server]].concat());
    let created: Value =
        serde_json::from_str(&on_server(&["topic", "create", "t", "--replicas", "1", "-o", "json"])).unwrap();
    assert_eq!(
        (&created["name"], &created["partitions"], &created["durability"]),
        (&"t".into(), &1.into(), &"fsync".into())
    );

    let mut publish = busbar(&["pub", "t", "-k", "k", "-H", "h=v", "--server", &server]);
    let mut publish = publish.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    publish.stdin.take().unwrap().write_all(b"one\ntwo\n\nfour").unwrap();
    let output = publish.wait_with_output().unwrap();
    let summary = text(&output.stderr);
    assert!(output.status.success() && summary.starts_with("4 records: 4 acks, 0 duplicates, "), "{summary}");

    assert_eq!(on_server(&["sub", "t", "--count", "4"]), "one\ntwo\n\nfour\n");
    let record: Value =
        serde_json::from_str(&on_server(&["sub", "t", "--from", "3", "-n", "1", "-o", "json"])).unwrap();
    for (key, want) in [("topic", "t"), ("key", "k"), ("value", "four")] {
        assert_eq!(record[key], want);
    }
    assert_eq!(record["headers"], serde_json::json!([{"name": "h", "value": "v"}]));
    assert_eq!((&record["partition"], &record["offset"]), (&0.into(), &3.into()));

    let before = pids(Path::new(&dir));
    done(&["dev", "stop", "1", "--kill", "--dir", &dir]);
    assert_eq!(pids(Path::new(&dir)), [Value::Null]);
    assert_eq!(run(&["dev", "stop", "1", "--dir", &dir]).status.code(), Some(1), "it is stopped already");
    done(&["dev", "start", "1", "--dir", &dir]);
    assert_ne!(pids(Path::new(&dir)), before);
    assert_eq!(on_server(&["sub", "t", "--count", "4"]), "one\ntwo\n\nfour\n", "all is there after a kill");
    let again = run(&["dev", "up", "--dir", &dir]);
    assert!(!again.status.success() && text(&again.stderr).contains("runs in"), "{}", text(&again.stderr));

    assert_eq!(done(&["dev", "down", "--dir", &dir]), "stopped\n");
    assert_eq!(up.child.wait().unwrap().code(), Some(0));
    assert_eq!(
        run(&["health", "--server", &server]).status.code(),
        Some(1),
        "a node started with `dev start` is stopped too"
    );
}
