//! Unary calls between nodes, few and rare: forwarding a catalog command to its leader, joining, gathering replica
//! states for `describe`. Each has a deadline; connections are made on demand and kept by the channel cache.

use std::{collections::BTreeMap, time::Duration};

use busbar_proto::{
    GroupId, LogIndex, Reason, Refusal,
    peer::{
        Checkpoint, FetchCheckpointRequest, ForwardCommandRequest, JoinRequest, JoinResponse, peer_client::PeerClient,
    },
    v1::{
        DeleteGroupRequest, DescribeGroupRequest, DescribeGroupResponse, DescribeReplicasRequest,
        DescribeReplicasResponse, ListGroupsRequest, ListGroupsResponse, ResetGroupRequest, admin_client::AdminClient,
        groups_client::GroupsClient,
    },
};
use bytes::Bytes;
use parking_lot::Mutex;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes calls to other nodes.
#[derive(Debug, Default)]
pub struct Calls {
    channels: Mutex<BTreeMap<String, Channel>>,
}

fn refusal(address: &str, status: &Status) -> Refusal {
    Refusal::from_status(status).unwrap_or_else(|| {
        let message = format!("the node at {address} did not answer: {}", status.message());
        Refusal::new(Reason::NoLeader, message).retry_after(Duration::from_millis(100))
    })
}

impl Calls {
    fn channel(&self, address: &str) -> Result<Channel, Refusal> {
        if let Some(channel) = self.channels.lock().get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Refusal::new(Reason::InvalidArgument, format!("{address:?} is no host:port: {error}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .tcp_nodelay(true);
        let channel = endpoint.connect_lazy();
        self.channels.lock().insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Hands a catalog command to the node at `peer_address`, which must lead the catalog; its encoded outcome.
    pub async fn forward(&self, peer_address: &str, command: Bytes) -> Result<Bytes, Refusal> {
        let mut client = PeerClient::new(self.channel(peer_address)?);
        let answer = client.forward_command(ForwardCommandRequest { command }).await;
        answer.map(|done| done.into_inner().outcome).map_err(|status| refusal(peer_address, &status))
    }

    /// Asks the node at `peer_address` to take this node into the cluster.
    pub async fn join(&self, peer_address: &str, request: JoinRequest) -> Result<JoinResponse, Refusal> {
        let mut client = PeerClient::new(self.channel(peer_address)?);
        client.join(request).await.map(tonic::Response::into_inner).map_err(|status| refusal(peer_address, &status))
    }

    /// The oldest checkpoint of a group that the node at `peer_address` has stored, from an index on.
    pub async fn fetch_checkpoint(
        &self,
        peer_address: &str,
        group: GroupId,
        from: LogIndex,
    ) -> Result<Option<Checkpoint>, Refusal> {
        let mut client = PeerClient::new(self.channel(peer_address)?)
            .max_decoding_message_size(busbar_proto::limits::MESSAGE_BYTES_MAX);
        let request = FetchCheckpointRequest { group: group.get(), from_index: from.get() };
        let answer = client.fetch_checkpoint(request).await;
        answer.map(|done| done.into_inner().checkpoint).map_err(|status| refusal(peer_address, &status))
    }

    /// The replicas on the node whose client address this is.
    pub async fn describe_replicas(
        &self,
        address: &str,
        topic_id: Bytes,
        limit: Duration,
    ) -> Result<DescribeReplicasResponse, Refusal> {
        let mut client =
            AdminClient::new(self.channel(address)?).max_decoding_message_size(busbar_proto::limits::MESSAGE_BYTES_MAX);
        let mut request = tonic::Request::new(DescribeReplicasRequest { topic_id });
        request.set_timeout(limit);
        let answer = tokio::time::timeout(limit, client.describe_replicas(request)).await;
        match answer {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(refusal(address, &status)),
            Err(_) => Err(Refusal::new(Reason::NoLeader, format!("the node at {address} did not answer in time"))),
        }
    }

    fn groups(&self, address: &str) -> Result<GroupsClient<Channel>, Refusal> {
        let client = GroupsClient::new(self.channel(address)?);
        Ok(client
            .max_decoding_message_size(busbar_proto::limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(busbar_proto::limits::MESSAGE_BYTES_MAX))
    }

    /// The consumer groups of the shards that the node at this client address leads.
    pub async fn list_groups(&self, address: &str, limit: Duration) -> Result<ListGroupsResponse, Refusal> {
        let mut request = tonic::Request::new(ListGroupsRequest { direct: true });
        request.set_timeout(limit);
        let mut client = self.groups(address)?;
        match tokio::time::timeout(limit, client.list_groups(request)).await {
            Ok(answer) => answer.map(tonic::Response::into_inner).map_err(|status| refusal(address, &status)),
            Err(_) => Err(Refusal::new(Reason::NoLeader, format!("the node at {address} did not answer in time"))),
        }
    }

    /// A consumer group, from the node at this client address, which must lead its shard.
    pub async fn describe_group(&self, address: &str, group: String) -> Result<DescribeGroupResponse, Refusal> {
        let answer = self.groups(address)?.describe_group(DescribeGroupRequest { group, direct: true }).await;
        answer.map(tonic::Response::into_inner).map_err(|status| refusal(address, &status))
    }

    /// Sets a consumer group's offsets at the node at this client address, which must lead its shard.
    pub async fn reset_group(&self, address: &str, request: ResetGroupRequest) -> Result<(), Refusal> {
        let answer = self.groups(address)?.reset_group(ResetGroupRequest { direct: true, ..request }).await;
        answer.map(drop).map_err(|status| refusal(address, &status))
    }

    /// Deletes a consumer group at the node at this client address, which must lead its shard.
    pub async fn delete_group(&self, address: &str, group: String) -> Result<(), Refusal> {
        let answer = self.groups(address)?.delete_group(DeleteGroupRequest { group, direct: true }).await;
        answer.map(drop).map_err(|status| refusal(address, &status))
    }
}
