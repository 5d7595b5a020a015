//! `busbar-bench` as a process: exit codes and what is said on which stream.

use std::process::{Command, Output};

fn bench(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_busbar-bench"))
        .args(line.split_whitespace())
        .env_remove("BUSBAR_SERVER")
        .output()
        .expect("the tool starts")
}

#[test]
fn usage_errors_exit_with_2_and_name_the_option() {
    for (line, says) in [
        ("--size 3", "--size"),
        ("--rate 0", "--rate"),
        ("--durability never", "--durability"),
        ("--no-such", "--no-such"),
    ] {
        let output = bench(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        assert!(said.contains(says), "{line}: {said}");
    }
}

#[test]
fn nobody_there_exits_with_1_and_says_where() {
    // Bound and dropped: nobody listens on it for now.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
    let output = bench(&format!("--server 127.0.0.1:{port} --duration 1 -o json"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("busbar-bench: ") && said.contains(&format!("127.0.0.1:{port}")), "{said}");
    assert_eq!(said.matches("refused").count(), 1, "a cause is told once: {said}");
    assert!(output.stdout.is_empty(), "a failed run prints no results");
}

#[test]
fn a_matrix_goes_on_when_a_cell_fails_and_exits_with_1() {
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
    let out = tempfile::tempdir().expect("a folder");
    let folder = out.path().display();
    let output =
        bench(&format!("matrix --server 127.0.0.1:{port} --partitions 1,4 --sizes 100 --pause 0 --out {folder}"));
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("[1/4] fsync, 100 B, 1 partition: failed: ") && said.contains("[4/4] replicated"), "{said}");
    let failure = String::from_utf8_lossy(&output.stderr);
    assert!(failure.starts_with("busbar-bench: 4 of 4 cells failed, first fsync, 100 B, 1 partition"), "{failure}");
    let table = std::fs::read_to_string(out.path().join("matrix.md")).expect("the table is written");
    assert_eq!(table.matches("| failed: ").count(), 4, "{table}");
    let json = std::fs::read_to_string(out.path().join("matrix.json")).expect("the JSON is written");
    assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok());
}

#[test]
fn a_matrix_of_a_cluster_that_is_not_there_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = bench(&format!("matrix --dir {0} --out {0}/out", dir.path().display()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cluster.json") && said.contains("busbar dev up"), "{said}");
}

#[test]
fn the_disk_is_measured_and_left_clean() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = bench(&format!("disk {} --writers 2 --duration 50ms -o json", dir.path().display()));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert!(result["megabytes_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{result}");
    assert_eq!((&result["writers"], std::fs::read_dir(dir.path()).expect("there").count()), (&2.into(), 0));
}

#[test]
fn help_names_every_exit_code() {
    let output = bench("--help");
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("Exit codes: 0 done; 1 failed"));
}
