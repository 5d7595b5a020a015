//! The catalog on this node: its raft group, and commands from anyone to its leader, here or elsewhere.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use busbar_machine::catalog::{Catalog, Command, Outcome};
use busbar_proto::{NodeId, Reason, Refusal};
use bytes::Bytes;

use crate::{
    env::Clock,
    raft::{
        Applied, Group, Proposal, ProposeError,
        network::{AddressBook, calls::Calls},
    },
};

/// How long a command may look for a leader.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The catalog group and the way to its leader.
pub struct Cluster {
    node: NodeId,
    group: Group<Catalog>,
    calls: Arc<Calls>,
    addresses: Arc<AddressBook>,
    clock: Arc<dyn Clock>,
}

impl Cluster {
    /// Over a started group.
    pub fn new(
        node: NodeId,
        group: Group<Catalog>,
        calls: Arc<Calls>,
        addresses: Arc<AddressBook>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { node, group, calls, addresses, clock }
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The raft group.
    pub fn group(&self) -> &Group<Catalog> {
        &self.group
    }

    /// Looks at the applied catalog.
    pub fn read<T>(&self, look: impl FnOnce(&Catalog) -> T) -> T {
        look(&self.group.shared().read())
    }

    /// Carries out a command wherever the catalog's leader is; retries while there is none, up to a deadline.
    /// A retried command may run twice: commands are made so that a repetition changes nothing more.
    pub async fn submit(&self, command: Command) -> Result<Outcome, Refusal> {
        let bytes = command.encode();
        let under_way = AtomicBool::new(false);
        let attempts = async {
            loop {
                under_way.store(true, Ordering::Relaxed);
                let refusal = match self.attempt(bytes.clone()).await {
                    Ok(outcome) => return outcome.into_result(),
                    Err(refusal) => refusal,
                };
                under_way.store(false, Ordering::Relaxed);
                if !refusal.reason.is_retryable() {
                    return Err(refusal);
                }
                tokio::time::sleep(refusal.retry_after.unwrap_or(RETRY_PAUSE)).await;
            }
        };
        let outcome = tokio::time::timeout(COMMAND_TIMEOUT, attempts).await;
        outcome.unwrap_or_else(|_| match under_way.load(Ordering::Relaxed) {
            // Its leader may have it in its log, and may yet find a majority for it.
            true => {
                let message = "the catalog's leader has not reached a majority for 10 s: is one running? \
                               It may yet be done, so look before repeating";
                Err(Refusal::new(Reason::OutcomeUnknown, message))
            }
            false => {
                let message = "the catalog has had no leader for 10 s: is a majority of the cluster's nodes running?";
                Err(Refusal::new(Reason::NoLeader, message))
            }
        })
    }

    async fn attempt(&self, command: Bytes) -> Result<Outcome, Refusal> {
        let leadership = self.group.leadership();
        match leadership.leader {
            Some(leader) if leader == self.node => self.propose(command).await,
            Some(leader) => {
                let no_address = || Refusal::new(Reason::NoLeader, format!("no address of node {leader} is known"));
                let address = self.addresses.get(leader).ok_or_else(no_address)?;
                let outcome = self.calls.forward(&address, command).await?;
                Outcome::decode(&outcome).map_err(|error| Refusal::new(Reason::Internal, error.to_string()))
            }
            None => Err(Refusal::new(Reason::NoLeader, "the catalog has no leader now").retry_after(RETRY_PAUSE)),
        }
    }

    /// Carries out an encoded command here; refused unless this node leads the catalog.
    pub async fn propose(&self, command: Bytes) -> Result<Outcome, Refusal> {
        Command::decode(&command).map_err(|error| Refusal::new(Reason::InvalidArgument, error.to_string()))?;
        let head_len = u32::try_from(command.len())
            .map_err(|_| Refusal::new(Reason::InvalidArgument, "a catalog command of more than 4 GiB"))?;
        let proposal = Proposal { mark: 0, time_ms: self.clock.unix_ms(), head_len, payload: command };
        match self.group.propose(proposal).await {
            Ok(Applied::Catalog(outcome)) => Ok(outcome),
            Ok(other) => Err(Refusal::new(Reason::Internal, format!("the catalog answered {other:?}"))),
            Err(ProposeError::NotLeader { leader }) => {
                Err(Refusal::new(Reason::NotLeader, "this node does not lead the catalog").led_by(leader))
            }
            Err(error @ (ProposeError::NoQuorum | ProposeError::Unknown)) => {
                Err(Refusal::new(Reason::NoLeader, error.to_string()).retry_after(RETRY_PAUSE))
            }
            Err(error @ ProposeError::Stopped(_)) => Err(Refusal::new(Reason::ShuttingDown, error.to_string())),
        }
    }

    /// Waits until this node's catalog has applied what `done` looks for, at most `limit`. Cancel safe.
    pub async fn applied(&self, limit: Duration, mut done: impl FnMut(&Catalog) -> bool) -> bool {
        let mut watch = self.group.shared().watch();
        let reached = watch.wait_for(|_| self.read(&mut done));
        tokio::time::timeout(limit, reached).await.is_ok_and(|seen| seen.is_ok())
    }
}
