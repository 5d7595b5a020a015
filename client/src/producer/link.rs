//! One Publish stream to one node, carrying every partition that the node leads for this producer. A link that
//! broke is never mended: the producer opens another.

use std::sync::Arc;

use busbar_proto::{NodeId, PartitionId, Refusal, limits, v1};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    address::Address,
    error::TransportError,
    pool,
    producer::{
        core::Core,
        ticket::Ticket,
        window::{AttemptId, LinkId},
    },
    task::Kind,
};

/// The producer's end of a link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) node: NodeId,
    outgoing: mpsc::Sender<Outgoing>,
    cut: CancellationToken,
}

/// A batch on its way.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) request: v1::PublishRequest,
    pub(crate) ticket: Arc<Ticket>,
}

/// Names an attempt on the wire: partition, batch and attempt in one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Correlation {
    pub(crate) partition: PartitionId,
    pub(crate) attempt: AttemptId,
}

const _: () = assert!(limits::PARTITIONS_PER_TOPIC_MAX <= 1 << 16);

impl Correlation {
    pub(crate) fn pack(self) -> u64 {
        let Self { partition, attempt: AttemptId { serial, attempt } } = self;
        u64::from(partition.get()) << 48 | u64::from(serial) << 16 | u64::from(attempt)
    }

    pub(crate) fn unpack(raw: u64) -> Self {
        let attempt = AttemptId { serial: (raw >> 16) as u32, attempt: raw as u16 };
        Self { partition: PartitionId::new((raw >> 48) as u32), attempt }
    }
}

impl Link {
    /// Starts connecting; batches may be put at once. `capacity` = batches that can be under way together.
    pub(crate) fn open(core: &Arc<Core>, id: LinkId, node: NodeId, capacity: usize) -> Arc<Self> {
        let (outgoing, queue) = mpsc::channel(capacity);
        let link = Arc::new(Self { id, node, outgoing, cut: CancellationToken::new() });
        let (core, cut) = (core.clone(), link.cut.clone());
        core.tasks.clone().spawn(Kind::PublishLink, async move {
            let cause = tokio::select! {
                biased;
                cause = run(&core, node, queue) => cause,
                () = cut.cancelled() => lost(node, "it did not answer in time"),
            };
            core.link_lost(id, node, cause);
        });
        link
    }

    /// Queues a batch; `false` when the link is broken.
    pub(crate) fn put(&self, outgoing: Outgoing) -> bool {
        self.outgoing.try_send(outgoing).is_ok()
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.outgoing.is_closed() && !self.cut.is_cancelled()
    }

    /// Why nothing can be put on it any more.
    pub(crate) fn closed(&self) -> Refusal {
        lost(self.node, "it is closed")
    }

    /// Gives the stream up; everything under way on it is lost.
    pub(crate) fn cut(&self) {
        self.cut.cancel();
    }
}

/// Serves the stream until it ends; returns why.
async fn run(core: &Arc<Core>, node: NodeId, queue: mpsc::Receiver<Outgoing>) -> Refusal {
    let Some(address) = core.cluster.address_of(node) else { return lost(node, "its address is not known") };
    let channel = match core.cluster.pool.channel(&address) {
        Ok(channel) => channel,
        Err(error) => return lost(node, &error.to_string()),
    };
    let requests = ReceiverStream::new(queue).map(|outgoing| {
        outgoing.ticket.hand_over();
        outgoing.request
    });
    let mut answers = match pool::broker(channel).publish(requests).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return failure(&address, &status),
    };
    loop {
        match answers.message().await {
            Ok(Some(answer)) => core.answered(node, answer),
            Ok(None) => return lost(node, "it closed the stream"),
            Err(status) => return failure(&address, &status),
        }
    }
}

fn failure(address: &Address, status: &Status) -> Refusal {
    Refusal::from_status(status).unwrap_or_else(|| {
        Refusal::new(
            busbar_proto::Reason::OutcomeUnknown,
            format!("the connection to {address} broke: {}", TransportError::of(status)),
        )
    })
}

fn lost(node: NodeId, why: &str) -> Refusal {
    Refusal::new(busbar_proto::Reason::OutcomeUnknown, format!("the stream to node {node} ended: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn correlations_survive_packing(partition in 0_u32..limits::PARTITIONS_PER_TOPIC_MAX, serial: u32, attempt: u16) {
            let correlation =
                Correlation { partition: PartitionId::new(partition), attempt: AttemptId { serial, attempt } };
            prop_assert_eq!(Correlation::unpack(correlation.pack()), correlation);
        }
    }
}
