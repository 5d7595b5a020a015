//! Gets a replica's checkpoint from its peers when its own is gone, so that losing the state store costs a rebuild and no
//! data. What fits is for [`crate::raft::rebuild`] to say; here it is only asked for.

use busbar_proto::{GroupId, LogIndex, Reason, Refusal, peer::Checkpoint};
use futures::future::join_all;

use super::broker::Broker;
use crate::raft::{group::GroupError, network::calls::Calls, rebuild::Stored};

impl Broker {
    /// The oldest checkpoint that this node has stored for a group, from an index on.
    pub(super) fn checkpoint_from(&self, group: GroupId, from: LogIndex) -> Result<Option<Checkpoint>, Refusal> {
        let found = match group {
            GroupId::CATALOG => self.cluster().group().checkpoint_from(from),
            group => match self.replicas.read().get(&group).cloned() {
                Some(replica) => replica.group().checkpoint_from(from),
                None => Ok(None),
            },
        };
        found.map_err(|error| Refusal::new(Reason::Internal, error.to_string()))
    }
}

/// Asks `peers` for the checkpoint that `stored` lacks, if it lacks one; true when nothing is missing afterwards.
///
/// # Errors
/// The log or the state store can't be read or written.
pub async fn complete(stored: &Stored, peers: &[String], calls: &Calls) -> Result<bool, GroupError> {
    let Some(from) = stored.missing()? else { return Ok(true) };
    let group = stored.id;
    tracing::warn!(%group, %from, "the checkpoint at the log's start is gone; asking the other replicas for theirs");
    let asked = peers.iter().map(|peer| calls.fetch_checkpoint(peer, group, from));
    for (peer, answer) in peers.iter().zip(join_all(asked).await) {
        let adopted = match answer {
            Ok(Some(offered)) => stored.adopt(offered).await?,
            Ok(None) => false,
            Err(refusal) => {
                tracing::debug!(%group, %peer, %refusal, "did not answer");
                continue;
            }
        };
        if adopted {
            tracing::info!(%group, %peer, "rebuilt the state from another replica's checkpoint");
            return Ok(true);
        }
        tracing::debug!(%group, %peer, "has no checkpoint that fits this log");
    }
    Ok(false)
}
