//! A cluster in this process that speaks `busbar.v1` over loopback: an in-memory log with the broker's rules for
//! sequences, and a script of faults. Nodes can be killed (their connections break) and started again.
//!
//! Invariant: what is acknowledged is in the log; a partition has one log, whoever leads it.

mod groups;
mod log;
mod node;
mod publish;
mod service;
mod subscribe;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use busbar_client::{Client, Reason, Record, Refusal};
use busbar_proto::v1;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

pub(crate) use self::log::Log;
use self::node::Node;

/// What happens to the next publish of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PublishFault {
    /// Nothing: it is stored and acknowledged.
    None,
    Refuse(Reason),
    /// Another node leads from now on, and this one says so.
    NotLeader,
    /// The same, but it does not know who.
    NotLeaderNoHint,
    /// `OUTCOME_UNKNOWN`.
    Unknown {
        stored: bool,
    },
    /// The stream breaks.
    Drop {
        stored: bool,
    },
    /// The whole node loses its connections.
    Disconnect {
        stored: bool,
    },
    /// No answer, ever, for this and everything after it on the stream.
    Hang {
        stored: bool,
    },
    Slow(Duration),
}

/// What happens to the next batch that a subscription of a partition would get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubscribeFault {
    None,
    End(Reason),
    /// Another node leads from now on, and this one says so.
    NotLeader,
    Drop,
    Disconnect,
    /// A byte of the batch is flipped.
    Corrupt,
    /// The batch is left out.
    Gap,
    /// The batch is sent twice.
    Twice,
}

pub(crate) struct Topic {
    pub(crate) id: [u8; 16],
    pub(crate) max_batch_bytes: u32,
    pub(crate) partitions: Vec<Partition>,
}

impl Topic {
    /// One without partitions, to take an id away from the next one.
    pub(crate) fn empty(id: u8) -> Self {
        Self { id: [id; 16], max_batch_bytes: 1 << 20, partitions: Vec::new() }
    }
}

/// A producer's name.
#[derive(Default)]
pub(crate) struct Name {
    id: i64,
    epoch: i16,
    /// Of the instance that has it.
    oldest_epoch: i16,
    instances: Vec<u64>,
}

#[derive(Default)]
pub(crate) struct Partition {
    pub(crate) leader: u64,
    pub(crate) epoch: u64,
    pub(crate) log: Log,
    pub(crate) publish_faults: VecDeque<PublishFault>,
    pub(crate) subscribe_faults: VecDeque<SubscribeFault>,
    /// Bytes of batches sent to subscriptions.
    pub(crate) sent_bytes: usize,
    /// Deadlines that publishes carried.
    pub(crate) deadlines: Vec<u64>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) topics: BTreeMap<String, Topic>,
    next_producer: i64,
    /// Instances by producer name, oldest first; the last one has it.
    pub(crate) names: BTreeMap<String, Name>,
    /// No node has heard of claims: only the partitions' logs fence.
    pub(crate) claims_unheard: bool,
    /// Addresses by node id - 1.
    addresses: Vec<String>,
    /// Publishes are kept back while set.
    pub(crate) held: bool,
    /// Every publish is refused with this while set.
    pub(crate) sick: Option<Reason>,
    /// Publishes received.
    pub(crate) publishes: usize,
    /// Producer ids are refused while set.
    pub(crate) no_producer_ids: bool,
    /// This node has not heard of any topic yet.
    pub(crate) lagging: Option<u64>,
    pub(crate) coordinator: groups::Coordinator,
    /// The brokers' clock runs ahead by this much, or behind.
    pub(crate) clock_ahead_ms: i64,
}

/// The part of the cluster that all nodes share.
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    /// Counts changes of anything.
    changes: watch::Sender<u64>,
    disconnect: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Waits until `look` finds something. Cancel safe.
    pub(crate) async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let found = look(&mut self.state.lock());
            if let Some(found) = found {
                return found;
            }
            let alive = changes.changed().await;
            assert!(alive.is_ok(), "the cluster is gone");
        }
    }
}

impl State {
    pub(crate) fn by_id(&mut self, id: &[u8], partition: u32) -> Result<&mut Partition, Refusal> {
        let topic = self.topics.values_mut().find(|topic| topic.id[..] == *id);
        let topic = topic.ok_or_else(|| Refusal::new(Reason::UnknownTopic, "no topic of that id"))?;
        let missing = || Refusal::new(Reason::UnknownPartition, format!("no partition {partition}"));
        topic.partitions.get_mut(partition as usize).ok_or_else(missing)
    }

    /// By the brokers' clock.
    pub(crate) fn time_ms(&self) -> i64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        since_epoch.as_millis() as i64 + self.clock_ahead_ms
    }

    fn topic(&self, name: &str) -> Option<v1::Topic> {
        let topic = self.topics.get(name)?;
        let partitions = topic.partitions.iter().zip(0..).map(|(partition, number)| v1::Partition {
            partition: number,
            leader: partition.leader,
            epoch: partition.epoch,
            replicas: vec![1, 2],
        });
        Some(v1::Topic {
            name: name.to_owned(),
            id: Bytes::copy_from_slice(&topic.id),
            partitions: partitions.collect(),
            config: Some(v1::TopicConfig { max_batch_bytes: topic.max_batch_bytes, ..Default::default() }),
        })
    }

    /// As the catalog does it.
    fn claim(&mut self, request: &v1::AllocateProducerRequest) -> Result<(i64, i16), Refusal> {
        let v1::AllocateProducerRequest { producer_name, instance, renews_epoch } = request;
        let fenced = || Refusal::new(Reason::ProducerFenced, "another instance took over");
        let name = self.names.entry(producer_name.clone()).or_default();
        if name.instances.last() == Some(instance) {
            name.epoch += i16::from(*renews_epoch == Some(name.epoch.into()));
        } else if renews_epoch.is_some() || name.instances.contains(instance) {
            return Err(fenced());
        } else if name.instances.is_empty() {
            self.next_producer += 1;
            name.id = self.next_producer;
            name.instances.push(*instance);
        } else {
            name.epoch += 1;
            name.oldest_epoch = name.epoch;
            name.instances.push(*instance);
        }
        Ok((name.id, name.epoch))
    }

    /// Whether another instance is known to have the name of this producer.
    fn is_replaced(&self, id: i64, epoch: i16) -> bool {
        !self.claims_unheard && self.names.values().any(|name| name.id == id && epoch < name.oldest_epoch)
    }

    fn other_node(&self, node: u64) -> u64 {
        node % self.addresses.len() as u64 + 1
    }
}

pub(crate) struct Cluster {
    pub(crate) shared: Arc<Shared>,
    nodes: Vec<Node>,
}

impl Cluster {
    /// A cluster of so many nodes.
    pub(crate) async fn start(nodes: u64) -> Self {
        let (changes, disconnect) = (watch::Sender::new(0), watch::Sender::new(0));
        let shared = Arc::new(Shared { state: Mutex::default(), changes, disconnect });
        let mut started = Vec::new();
        for id in 1..=nodes {
            let node = Node::start(id, shared.clone()).await;
            shared.state.lock().addresses.push(node.address());
            started.push(node);
        }
        Self { shared, nodes: started }
    }

    /// One topic "t" on a cluster of two nodes, leaders spread; and a client.
    pub(crate) async fn with_topic(partitions: u32) -> (Self, Client) {
        let cluster = Self::start(2).await;
        cluster.create("t", partitions);
        let client = cluster.client().await;
        (cluster, client)
    }

    pub(crate) fn create(&self, name: &str, partitions: u32) {
        let mut state = self.shared.state.lock();
        let nodes = state.addresses.len() as u64;
        let leaders = (0..u64::from(partitions)).map(|number| number % nodes + 1);
        let partition = |leader| Partition { leader, epoch: 1, ..Default::default() };
        let id = [state.topics.len() as u8 + 1; 16];
        let topic = Topic { id, max_batch_bytes: 1 << 20, partitions: leaders.map(partition).collect() };
        state.topics.insert(name.to_owned(), topic);
        drop(state);
        self.shared.changed();
    }

    pub(crate) fn servers(&self) -> String {
        self.nodes.iter().map(Node::address).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn address(&self, node: u64) -> String {
        self.nodes[node as usize - 1].address()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.servers()).await.expect("the fake cluster answers")
    }

    /// Breaks all connections of a node and accepts no more.
    pub(crate) async fn kill(&mut self, node: u64) {
        self.nodes[node as usize - 1].kill().await;
    }

    /// The node accepts connections again, at the same address.
    pub(crate) async fn restart(&mut self, node: u64) {
        self.nodes[node as usize - 1].restart().await;
    }

    /// The node stops answering, as under SIGSTOP, or goes on.
    pub(crate) fn freeze(&self, node: u64, frozen: bool) {
        self.nodes[node as usize - 1].freeze(frozen);
    }

    /// Topic "t" is deleted; one of the same name gets another id.
    pub(crate) fn delete(&self) {
        self.edit_all(|state| {
            state.topics.remove("t");
            state.topics.insert(format!("placeholder {}", state.topics.len()), Topic::empty(77));
        });
    }

    /// Changes the state of a partition of "t".
    pub(crate) fn edit<T>(&self, partition: u32, change: impl FnOnce(&mut Partition) -> T) -> T {
        let done = {
            let mut state = self.shared.state.lock();
            let topic = state.topics.get_mut("t").expect("topic t");
            change(&mut topic.partitions[partition as usize])
        };
        self.shared.changed();
        done
    }

    pub(crate) fn edit_all<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.shared.state.lock());
        self.shared.changed();
        done
    }

    /// Another node leads a partition of "t" from now on.
    pub(crate) fn lead(&self, partition: u32, leader: u64) {
        self.edit(partition, |partition| {
            partition.leader = leader;
            partition.epoch += 1;
        });
    }

    /// The values stored in a partition of "t".
    pub(crate) fn values(&self, partition: u32) -> Vec<String> {
        self.edit(partition, |partition| partition.log.values())
    }

    /// Stores batches of so many records each, named from 0 on.
    pub(crate) fn fill(&self, partition: u32, batches: usize, records_each: usize) {
        self.edit(partition, |partition| {
            for _ in 0..batches {
                partition.log.append_plain(records_each);
            }
        });
    }
}

/// Record number `number`.
pub(crate) fn record(number: usize) -> Record {
    Record::new(number.to_string())
}

/// "0", "1", ...
pub(crate) fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}
