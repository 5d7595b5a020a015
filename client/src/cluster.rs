//! Who the brokers are: the bootstrap list and every node learned since, and calls that any node answers, with
//! failover from one to the next. Learned nodes outlive the bootstrap list: once connected, a client survives
//! every bootstrap node being gone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use busbar_proto::{NodeId, Refusal, v1};
use futures::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Response, Status, transport::Channel};

use crate::{
    address::Address,
    destinations::{Destinations, Guards},
    env::Env,
    error::{ClientError, TransportError},
    pool::Pool,
    retry::{Backoff, BackoffPolicy},
    task::Tasks,
    timekeeper::Timekeeper,
    watch::TopicWatch,
};

/// Waiting time of one node's answer to what may be asked of several.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A node that has not answered for so long gets company: the next is asked too, and the first answer counts. A
/// node that is frozen or whose packets vanish costs this much, not a timeout.
const NEXT_NODE_AFTER: Duration = Duration::from_millis(250);

/// Shared by all parts of a client.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) env: Env,
    pub(crate) pool: Pool,
    pub(crate) tasks: Tasks,
    pub(crate) request_timeout: Duration,
    bootstrap: Vec<Address>,
    nodes: Mutex<Nodes>,
    timekeeper: Mutex<Timekeeper>,
    pub(crate) topics: Mutex<HashMap<String, Weak<TopicWatch>>>,
    /// How the brokers fare, for all producers with the default guards.
    pub(crate) destinations: Arc<Destinations>,
}

#[derive(Debug, Default)]
struct Nodes {
    by_id: BTreeMap<NodeId, Address>,
    /// Not heard of lately, says the node that told of them.
    silent: BTreeSet<NodeId>,
    /// Answered last.
    preferred: Option<Address>,
}

/// What may be done again after a connection broke under a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// The call reads, or does the same when done twice.
    Safe,
    /// Only when it certainly was not sent.
    Unsent,
}

/// How a call is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// For messages: "create topic".
    pub(crate) what: &'static str,
    pub(crate) repeat: Repeat,
    pub(crate) timeout: Duration,
}

/// How one node answered.
enum Answer<T> {
    Done(T),
    Failed(ClientError),
    /// Ask the next node; after the last, wait as advised and begin anew.
    Next {
        error: ClientError,
        wait: Option<Duration>,
        unreachable: bool,
    },
}

/// What a round over all nodes came to, when none did what was asked.
#[derive(Default)]
struct Round {
    last: Option<ClientError>,
    /// The longest that one of them advised.
    wait: Option<Duration>,
    /// Whether any could be reached.
    anybody: bool,
}

impl Cluster {
    pub(crate) fn new(
        env: Env,
        tasks: Tasks,
        bootstrap: Vec<Address>,
        connect_timeout: Duration,
        request_timeout: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            env,
            pool: Pool::new(connect_timeout),
            tasks,
            request_timeout,
            bootstrap,
            nodes: Mutex::default(),
            timekeeper: Mutex::default(),
            topics: Mutex::default(),
            destinations: Arc::new(Destinations::new(Guards::default())),
        })
    }

    /// A broker has told its time, in answer to what it was asked so long ago; 0 = it did not.
    pub(crate) fn told_time(&self, broker_ms: i64, round_trip: Duration) {
        let mut timekeeper = self.timekeeper.lock();
        if broker_ms > 0 && timekeeper.told(broker_ms, self.env.now(), self.env.unix_ms(), round_trip) {
            let ahead_ms = timekeeper.ahead_ms();
            tracing::warn!(
                ahead_ms,
                "the clock of this machine differs from the brokers': delays and expiry go by theirs"
            );
        }
    }

    /// Milliseconds since the Unix epoch by the brokers' clock, for who hears of it all the time.
    pub(crate) fn time_ms(&self, now: Instant, own_ms: i64) -> i64 {
        self.timekeeper.lock().unix_ms(now, own_ms)
    }

    /// The same for who does not.
    pub(crate) fn time_ms_unless_wrong(&self) -> i64 {
        self.timekeeper.lock().unix_ms_unless_wrong(self.env.now(), self.env.unix_ms())
    }

    /// How far our clock is ahead of the brokers', in milliseconds.
    pub(crate) fn clock_ahead_ms(&self) -> i64 {
        self.timekeeper.lock().ahead_ms()
    }

    /// Takes over what a node says about the others. A node that left the cluster is forgotten.
    pub(crate) fn learn(&self, nodes: &[v1::Node]) {
        if nodes.is_empty() {
            return;
        }
        let listed = nodes.iter().filter_map(|node| Some((NodeId::new(node.id), node.address.parse().ok()?)));
        let silent = nodes.iter().filter(|node| !node.alive).map(|node| NodeId::new(node.id));
        let mut known = self.nodes.lock();
        known.by_id = listed.collect();
        known.silent = silent.collect();
    }

    /// Whether a node is there, and was heard of lately by the one that told of it.
    pub(crate) fn is_alive(&self, node: NodeId) -> bool {
        let nodes = self.nodes.lock();
        nodes.by_id.contains_key(&node) && !nodes.silent.contains(&node)
    }

    pub(crate) fn address_of(&self, node: NodeId) -> Option<Address> {
        self.nodes.lock().by_id.get(&node).cloned()
    }

    /// Every address worth asking, the one that answered last first, the others in random order.
    pub(crate) fn candidates(&self) -> Vec<Address> {
        let nodes = self.nodes.lock();
        let mut known: Vec<_> = nodes.by_id.values().chain(&self.bootstrap).cloned().collect();
        known.sort();
        known.dedup();
        for last in (1..known.len()).rev() {
            known.swap(last, (self.env.random() % (last as u64 + 1)) as usize);
        }
        if let Some(at) = nodes.preferred.as_ref().and_then(|wanted| known.iter().position(|known| known == wanted)) {
            known.swap(0, at);
        }
        known
    }

    /// The addresses of all nodes of the cluster; the bootstrap list until they are known.
    pub(crate) fn members(&self) -> Vec<Address> {
        let nodes = self.nodes.lock();
        match nodes.by_id.is_empty() {
            true => self.bootstrap.clone(),
            false => nodes.by_id.values().cloned().collect(),
        }
    }

    pub(crate) fn prefer(&self, address: &Address) {
        self.nodes.lock().preferred = Some(address.clone());
    }

    /// This one does not answer: calls begin with another, unless another was preferred meanwhile.
    pub(crate) fn avoid(&self, address: &Address) {
        self.nodes.lock().preferred.take_if(|preferred| preferred == address);
    }

    /// The next call begins with any node.
    pub(crate) fn prefer_another(&self) {
        self.nodes.lock().preferred = None;
    }

    /// Asks the nodes in turn until one does it, one refuses for good, or the time is up. The first round in which
    /// no node can be reached ends it: with nobody there, waiting is the caller's decision.
    pub(crate) async fn call<T, F>(&self, call: Call, ask: impl Fn(Channel) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = self.env.now() + call.timeout;
        let mut backoff = Backoff::new(BackoffPolicy::default());
        loop {
            let addresses = self.candidates();
            let Round { last, wait, anybody } = match self.ask_all(call, &addresses, deadline, &ask).await {
                Ok(outcome) => return outcome,
                Err(round) => round,
            };
            let last = last.unwrap_or(ClientError::Closed);
            if !anybody {
                return Err(match last {
                    ClientError::Unreachable { source, .. } => ClientError::Unreachable { addresses, source },
                    other => other,
                });
            }
            let resume = self.env.now() + backoff.failed(self.env.random(), wait);
            if resume >= deadline {
                return Err(timeout(call, &last));
            }
            tokio::time::sleep_until(resume).await;
        }
    }

    /// One round: each node after the one before has failed or, where that does no harm, has kept us waiting.
    async fn ask_all<T, F>(
        &self,
        call: Call,
        addresses: &[Address],
        deadline: Instant,
        ask: &impl Fn(Channel) -> F,
    ) -> Result<Result<T, ClientError>, Round>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut round = Round::default();
        let mut waiting = addresses.iter();
        let mut asked = FuturesUnordered::new();
        asked.extend(waiting.next().map(|address| self.ask_one(call, address, deadline, ask)));
        while !asked.is_empty() {
            let company = call.repeat == Repeat::Safe && waiting.len() > 0;
            let answer = tokio::select! {
                biased;
                answer = asked.next() => answer,
                () = tokio::time::sleep(NEXT_NODE_AFTER), if company => None,
            };
            match answer {
                Some(Answer::Done(answer)) => return Ok(Ok(answer)),
                Some(Answer::Failed(error)) => return Ok(Err(error)),
                Some(Answer::Next { error, wait, unreachable }) => {
                    round.anybody |= !unreachable;
                    round.wait = round.wait.max(wait);
                    round.last = Some(error);
                }
                None => {}
            }
            asked.extend(waiting.next().map(|address| self.ask_one(call, address, deadline, ask)));
        }
        Err(round)
    }

    /// Asks one node, once.
    pub(crate) async fn call_at<T, F>(
        &self,
        call: Call,
        address: &Address,
        ask: impl Fn(Channel) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        match self.ask_one(call, address, self.env.now() + call.timeout, &ask).await {
            Answer::Done(answer) => Ok(answer),
            Answer::Failed(error) | Answer::Next { error, .. } => Err(error),
        }
    }

    async fn ask_one<T, F>(
        &self,
        call: Call,
        address: &Address,
        deadline: Instant,
        ask: &impl Fn(Channel) -> F,
    ) -> Answer<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let channel = match self.pool.channel(address) {
            Ok(channel) => channel,
            Err(error) => return Answer::Failed(error),
        };
        // A change may take its time; a read is asked elsewhere sooner.
        let patience = match call.repeat {
            Repeat::Safe => ANSWER_TIMEOUT.min(call.timeout),
            Repeat::Unsent => call.timeout,
        };
        let until = deadline.min(self.env.now() + patience);
        let failure = match tokio::time::timeout_at(until, ask(channel)).await {
            Ok(Ok(answer)) => {
                self.prefer(address);
                return Answer::Done(answer.into_inner());
            }
            Ok(Err(status)) => match Refusal::from_status(&status) {
                Some(refusal) => return refused(call, refusal),
                None if status.source_is_missing() => return no_broker(address, &status),
                None => TransportError::of(&status),
            },
            Err(_) => TransportError::timed_out(patience),
        };
        if failure.was_connected() && call.repeat == Repeat::Unsent {
            let address = address.clone();
            return Answer::Failed(ClientError::Interrupted { what: call.what, address, source: failure });
        }
        let error = ClientError::Unreachable { addresses: vec![address.clone()], source: failure };
        Answer::Next { error, wait: None, unreachable: true }
    }
}

fn refused<T>(call: Call, refusal: Refusal) -> Answer<T> {
    let again = refusal.reason.is_retryable() && (call.repeat == Repeat::Safe || refusal.reason.has_no_side_effects());
    let wait = refusal.retry_after;
    let error = ClientError::Refused(refusal);
    match again {
        true => Answer::Next { error, wait, unreachable: false },
        false => Answer::Failed(error),
    }
}

fn no_broker<T>(address: &Address, status: &Status) -> Answer<T> {
    let text = format!("{address} answered {:?}: {}; is it a Busbar broker?", status.code(), status.message());
    Answer::Next { error: ClientError::Protocol(text), wait: None, unreachable: true }
}

fn timeout(call: Call, last: &ClientError) -> ClientError {
    match last {
        // What the broker said helps more than how long we asked.
        ClientError::Refused(refusal) => ClientError::Refused(refusal.clone()),
        last => ClientError::Timeout { what: call.what.to_owned(), waited: call.timeout, last: last.to_string() },
    }
}

/// Tells a status made by a peer from one made here when a connection failed.
trait MadeByPeer {
    fn source_is_missing(&self) -> bool;
}

impl MadeByPeer for Status {
    fn source_is_missing(&self) -> bool {
        std::error::Error::source(self).is_none() && self.code() != tonic::Code::Unavailable
    }
}
