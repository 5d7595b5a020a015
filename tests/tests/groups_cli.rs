//! `busbar sub --group`: acknowledges what it prints, goes on where it was, runs a command for each record.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use busbar_tests::{
    cli::{Ran, command, end_of, run},
    process::ProcessCluster,
    wait::within,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};

const LIMIT: Duration = Duration::from_secs(60);

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
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_group_on_the_command_line() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(3).await?;
    let busbar = Busbar { servers: cluster.servers() };
    busbar.text(&["topic", "create", "orders"]).await?;
    busbar.text(&["pub", "orders", "a", "b", "c"]).await?;
    let group = ["sub", "orders", "--group", "billing"];
    assert_eq!(busbar.text(&[&group[..], &["-n", "2"]].concat()).await?, "a\nb\n");
    busbar.text(&["pub", "orders", "d"]).await?;
    assert_eq!(busbar.text(&[&group[..], &["-n", "2"]].concat()).await?, "c\nd\n");
    // SIGTERM commits what was printed.
    busbar.text(&["pub", "orders", "e", "f"]).await?;
    let mut child = command(&busbar.arguments(&group)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.as_mut().context("its stdout")?).lines();
    for want in ["e", "f"] {
        let line = within(LIMIT, "a line", async { Ok(lines.next_line().await?) }).await?;
        ensure!(line.as_deref() == Some(want), "{line:?} in place of {want}");
    }
    let pid = child.id().and_then(|id| Pid::from_raw(id as i32)).context("its pid")?;
    kill_process(pid, Signal::TERM)?;
    end_of(child, "sub").await?.success()?;
    busbar.text(&["pub", "orders", "g"]).await?;
    assert_eq!(busbar.text(&[&group[..], &["-n", "1"]].concat()).await?, "g\n");

    // Another group begins where it is told, gives each record to a command, and buries what that refuses.
    let command = r#"read -r value; echo "$BUSBAR_TOPIC/$BUSBAR_PARTITION/$BUSBAR_OFFSET $value"; test "$value" != c"#;
    let arguments = ["sub", "orders", "--group", "checks", "--exec", command, "--max-deliveries", "1", "-n", "6"];
    let out = busbar.text(&arguments).await?;
    let want: String =
        "abcdefg".chars().enumerate().map(|(offset, value)| format!("orders/0/{offset} {value}\n")).collect();
    assert_eq!(out, want);
    let letter = busbar.ran(&["sub", "orders.dlq", "-n", "1", "-o", "json"]).await?.success()?.json()?;
    assert_eq!(letter["value"], "c");
    let headers = letter["headers"].as_array().context("headers")?;
    let told = |name: &str| headers.iter().find(|header| header["name"] == name).map(|header| header["value"].clone());
    assert_eq!(told("busbar-dlq-offset"), Some("2".into()));
    let reason = told("busbar-dlq-reason").context("a reason")?;
    ensure!(reason.as_str().is_some_and(|reason| reason.contains("exit status: 1")), "{reason}");

    // Faults are told at once, with the option's name.
    for (wrong, want) in [
        (&["sub", "orders", "--exec", "true"][..], "--group"),
        (&["sub", "orders", "--group", "a b"][..], "a b"),
        (&["sub", "orders", "--group", "g", "--partition", "0"][..], "--partition"),
        (&["sub", "orders", "--group", "g", "--dead-letter", "none"][..], "none"),
        (&["sub", "none", "--group", "g"][..], "none"),
    ] {
        let ran = busbar.ran(wrong).await?;
        ensure!(ran.code != Some(0) && ran.stderr.contains(want), "{wrong:?}: {ran:?}");
    }
    cluster.finish().await
}
