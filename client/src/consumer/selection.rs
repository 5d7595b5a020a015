//! Which records a consumer wants, and which replicas it reads them from. The choice of a replica is pure: who is there,
//! how many partitions each serves already, and chance, are given.

use std::sync::Arc;

use busbar_proto::{
    NodeId,
    batch::RecordView,
    filter::{Filter, FilterError},
};

/// Which replica of a partition is read.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::ReadFrom;
///
/// let consumer = client.consumer("orders").read_from(ReadFrom::Any).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadFrom {
    /// Its leader: what is acknowledged is read at once.
    #[default]
    Leader,
    /// Any: the one that serves the fewest of this consumer's partitions, another when it fails. What is read is as
    /// durable as elsewhere, and comes a little later than from the leader (about a heartbeat when traffic is thin). A
    /// replica that hears of no leader ends its readers, which go on elsewhere.
    Any,
}

/// What is asked of every subscription of a consumer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    pub(crate) filter: Option<Arc<Filter>>,
    pub(crate) read_from: ReadFrom,
}

impl Selection {
    pub(crate) fn new(filter: Option<&str>, read_from: ReadFrom) -> Result<Self, FilterError> {
        let filter = filter.map(str::parse).transpose()?.map(Arc::new);
        Ok(Self { filter, read_from })
    }

    /// Whether a record is wanted: exactly, where the broker only knew what its batch may hold.
    pub(crate) fn wants(&self, record: &RecordView) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.matches(|name| record.header(name).map(|value| &value[..])))
    }
}

/// The replica to read next: the one that `serves` the fewest, by chance among equals; not the one that just failed, if
/// there is another.
pub(crate) fn choose(
    replicas: &[NodeId],
    failed: Option<NodeId>,
    serves: impl Fn(NodeId) -> usize,
    random: u64,
) -> Option<NodeId> {
    let others: Vec<_> = replicas.iter().copied().filter(|&node| Some(node) != failed).collect();
    let candidates = if others.is_empty() { replicas } else { &others };
    let fewest = candidates.iter().map(|&node| serves(node)).min()?;
    let best: Vec<_> = candidates.iter().copied().filter(|&node| serves(node) == fewest).collect();
    best.get((random % best.len() as u64) as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_is_read_and_what_failed_is_left() {
        let nodes = [1, 2, 3].map(NodeId::new);
        let pick = |nodes: &[NodeId], failed, load: [usize; 3], random| {
            let serves = |node: NodeId| load[node.get() as usize - 1];
            choose(nodes, failed, serves, random).map(NodeId::get)
        };
        assert_eq!(pick(&nodes, None, [2, 1, 3], 7), Some(2));
        assert_eq!(pick(&nodes, Some(nodes[1]), [2, 1, 3], 7), Some(1));
        assert_eq!(pick(&nodes[..1], Some(nodes[0]), [9, 0, 0], 7), Some(1), "better than none");
        assert_eq!(pick(&[], None, [0; 3], 7), None);
        let drawn: std::collections::BTreeSet<_> = (0..9).filter_map(|n| pick(&nodes, None, [1, 1, 1], n)).collect();
        assert_eq!(drawn.len(), 3, "chance among equals");
    }
}
