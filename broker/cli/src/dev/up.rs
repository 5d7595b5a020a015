//! `busbar dev up`: starts a local cluster and stays until a signal or `dev down`.

use std::process::ExitCode;

use anyhow::bail;
use rustix::process::Signal;
use serde::Serialize;

use super::{
    DirArgs, Layout, LocalCluster, Ports,
    cluster_file::NodeEntry,
    layout::{BASE_PORT_DEFAULT, NODES_MAX},
    local::{Ended, Options},
};
use crate::{
    output::{self, Format, OutputArgs, Table},
    signals::EndSignals,
};

const NODES_DEFAULT: u16 = 3;

#[derive(Default, clap::Args)]
pub(crate) struct Args {
    /// Number of nodes [default: 3, or as many as the folder has]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: Option<u16>,
    /// Port of the first node; the others follow, and peers use ports 100 above [default: 7400, or as before]
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    /// Use a temporary folder and remove it at the end
    #[arg(long, conflicts_with = "dir")]
    ephemeral: bool,
    #[command(flatten)]
    dir: DirArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What `-o json` prints once the cluster is ready.
#[derive(Serialize)]
struct Up<'a> {
    ready: bool,
    dir: &'a std::path::Path,
    nodes: &'a [NodeEntry],
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut signals = EndSignals::listen()?;
    // Removed when dropped, that is after the nodes are gone.
    let temporary = if args.ephemeral { Some(tempfile::Builder::new().prefix("busbar-dev-").tempdir()?) } else { None };
    let layout = match &temporary {
        Some(dir) => Layout::at(dir.path())?,
        None => args.dir.layout()?,
    };
    let claim = LocalCluster::claim(&layout)?;
    let (ports, nodes) = plan(claim.earlier()?, args.base_port, args.nodes)?;
    let mut cluster = claim.start(Options { nodes, ports, ephemeral: args.ephemeral }).await?;
    let outcome = supervise(&mut cluster, &layout, args.output.format, &mut signals).await;
    let stopped = tokio::select! {
        stopped = cluster.stop(Signal::TERM) => stopped,
        () = signals.next() => {
            output::diagnose("killing the nodes, as the second signal asked");
            cluster.stop(Signal::KILL).await
        }
    };
    outcome.and(stopped)?;
    Ok(ExitCode::SUCCESS)
}

/// Ports and number of nodes: as asked, and as the folder has them, which can't be changed.
fn plan(earlier: Option<(Ports, u16)>, base_port: Option<u16>, nodes: Option<u16>) -> anyhow::Result<(Ports, u16)> {
    let Some((ports, count)) = earlier else {
        return Ok((Ports::from_base(base_port.unwrap_or(BASE_PORT_DEFAULT))?, nodes.unwrap_or(NODES_DEFAULT)));
    };
    if nodes.is_some_and(|nodes| nodes != count) {
        bail!("the folder holds a cluster of {count} nodes: leave out -n, use another --dir, or remove the folder");
    }
    if base_port.is_some_and(|port| port != ports.base()) {
        bail!(
            "the folder holds a cluster on the ports from {} on: leave out --base-port, use another --dir, or remove the folder",
            ports.base()
        );
    }
    Ok((ports, count))
}

/// From started nodes to the signal that ends it.
async fn supervise(
    cluster: &mut LocalCluster,
    layout: &Layout,
    format: Format,
    signals: &mut EndSignals,
) -> anyhow::Result<()> {
    let nodes: Vec<NodeEntry> = cluster.file().nodes.iter().filter(|node| !node.removed).cloned().collect();
    if format == Format::Text {
        output::line(table(&nodes))?;
    }
    tokio::select! {
        biased;
        () = signals.next() => return Ok(()),
        ready = cluster.ready() => ready?,
    }
    match format {
        Format::Text => output::line("ready")?,
        Format::Json => output::json(&Up { ready: true, dir: layout.dir(), nodes: &nodes })?,
    }
    loop {
        tokio::select! {
            biased;
            () = signals.next() => return Ok(()),
            ended = cluster.next_ended() => {
                let Ended { node, status } = ended?;
                if cluster.forget_if_removed(node).await? {
                    output::diagnose(format_args!("node {node} was removed from the cluster and has ended"));
                    continue;
                }
                let start = layout.hint(&format!("start {node}"));
                output::diagnose(format_args!("node {node} ended ({status}); start it again with {start}"));
            }
        }
    }
}

fn table(nodes: &[NodeEntry]) -> String {
    let mut table = Table::new(["node", "address", "peer address", "pid", "data"]);
    for node in nodes {
        let pid = node.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let data = node.data.display().to_string();
        table.row([node.id.to_string(), node.address.clone(), node.peer_address.clone(), pid, data]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_folder_decides() {
        let ports = |base| Ports::from_base(base).unwrap();
        assert_eq!(plan(None, None, None).unwrap(), (ports(7400), 3));
        assert_eq!(plan(None, Some(9000), Some(5)).unwrap(), (ports(9000), 5));
        let earlier = Some((ports(9000), 5));
        assert_eq!(plan(earlier, None, None).unwrap(), (ports(9000), 5));
        assert_eq!(plan(earlier, Some(9000), Some(5)).unwrap(), (ports(9000), 5));
        assert!(plan(earlier, None, Some(3)).unwrap_err().to_string().contains("a cluster of 5 nodes"));
        assert!(plan(earlier, Some(7400), None).unwrap_err().to_string().contains("ports from 9000 on"));
    }
}
