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
fn help_names_every_exit_code() {
    let output = bench("--help");
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("Exit codes: 0 done; 1 failed"));
}
