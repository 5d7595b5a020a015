//! What a producer's handles and tasks share: the partitions, the buffer budget and the links.
//!
//! ```text
//!  send() --> shard (lock) --pump--> link queue --> stream --> node
//!  link   --> answered / link_lost --> shard (lock) --pump--> ...
//!  upkeep --> sweep: deadlines, pauses, lingers, leaders --> each shard --pump--> ...
//! ```
//! Whoever changes a shard pumps it: there is no task between a record and its stream.
//!
//! Invariants: locks are taken in the order shard, links, never two shards at once; outcomes are announced
//! outside all locks; buffer permits held = bytes held by unfinished records (`room`).

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use busbar_proto::{NodeId, PartitionId, Refusal, v1};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    alarm::Alarm,
    cluster::Cluster,
    context::metrics,
    destinations::{Destinations, Guards, Hold, Obstacle},
    partitioner::{Load, Sticky},
    producer::{
        identity::Named,
        link::{Correlation, Link, Outgoing},
        room::Room,
        sealed::SealedBatch,
        shard::{Clock, Ending, Finished, Shard},
        stats::Counters,
        ticket::Delivery,
        window::LinkId,
    },
    task::Tasks,
    watch::TopicWatch,
};

/// A leader that leaves a batch unanswered for this long may be frozen: other nodes are asked who leads, and again
/// as long as it stays silent. Its stream is kept until one of them names another, or the answer timeout is over.
const DOUBT_AFTER: Duration = Duration::from_secs(1);
const DOUBT_AGAIN: Duration = Duration::from_millis(500);

/// Bounds that the core itself applies.
#[derive(Clone, Debug)]
pub(crate) struct CoreOptions {
    pub(crate) in_flight_max: usize,
    pub(crate) buffer_bytes: usize,
    pub(crate) parked_bytes: usize,
    pub(crate) answer_timeout: Duration,
    pub(crate) batch_bytes: usize,
    pub(crate) guards: Guards,
    /// Each record needs a key.
    pub(crate) compacted: bool,
    pub(crate) named: Option<Named>,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) topic: Arc<TopicWatch>,
    pub(crate) tasks: Tasks,
    pub(super) room: Room,
    pub(crate) counters: Counters,
    pub(super) options: CoreOptions,
    pub(super) shards: Box<[Mutex<Shard>]>,
    pub(super) links: Mutex<HashMap<NodeId, Arc<Link>>>,
    /// The client's, or our own with guards of our own.
    pub(crate) destinations: Arc<Destinations>,
    next_link: AtomicU64,
    pub(super) sticky: Sticky,
    loads: Box<[Load]>,
    /// Milliseconds are counted from here.
    zero: Instant,
    pub(super) alarm: Alarm,
    /// Somebody is asking for a producer id.
    pub(super) identifying: AtomicBool,
    /// A broker called a deadline passed early: whether its clock is far off, another attempt tells.
    pub(super) doubted: AtomicBool,
    /// A broker's clock disagrees with ours so much that deadlines are not sent any more.
    pub(super) skewed: AtomicBool,
    pub(super) named: Option<Named>,
    /// Another instance has our name; how we were told.
    pub(super) fenced: OnceLock<Refusal>,
    closed: AtomicBool,
    /// The topic is gone, and everything that was queued for it has been told.
    pub(super) gone: AtomicBool,
}

impl Core {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        topic: Arc<TopicWatch>,
        options: CoreOptions,
        shard: impl Fn(PartitionId) -> Shard,
    ) -> Arc<Self> {
        let partitions = topic.view().partitions();
        let first = PartitionId::new((cluster.env.random() % u64::from(partitions)) as u32);
        Arc::new(Self {
            tasks: cluster.tasks.child(),
            room: Room::new(partitions, options.buffer_bytes, options.parked_bytes),
            counters: Counters::default(),
            shards: (0..partitions).map(|partition| Mutex::new(shard(PartitionId::new(partition)))).collect(),
            links: Mutex::default(),
            destinations: match options.guards == cluster.destinations.guards() {
                true => cluster.destinations.clone(),
                false => Arc::new(Destinations::new(options.guards)),
            },
            next_link: AtomicU64::new(0),
            sticky: Sticky::new(first),
            loads: (0..partitions).map(|_| Load::default()).collect(),
            zero: cluster.env.now(),
            alarm: Alarm::new(cluster.env.now()),
            identifying: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            skewed: AtomicBool::new(false),
            named: options.named.clone(),
            fenced: OnceLock::new(),
            closed: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            cluster,
            topic,
            options,
        })
    }

    pub(crate) fn partitions(&self) -> u32 {
        self.shards.len() as u32
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.get().is_some()
    }

    /// No record is taken from now on; calls of `send()` that wait for space end.
    pub(crate) fn refuse_records(&self) {
        self.closed.store(true, Ordering::Release);
        self.room.close();
    }

    pub(super) fn clock(&self, now: Instant) -> Clock {
        let env = &self.cluster.env;
        Clock { now, now_ms: env.unix_ms(), random: env.random() }
    }

    pub(super) fn load(&self, partition: PartitionId) -> &Load {
        &self.loads[partition.get() as usize]
    }

    pub(super) fn load_ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.zero).as_millis() as u64
    }

    /// Panics never: a partition is checked where it comes in.
    pub(super) fn shard(&self, partition: PartitionId) -> &Mutex<Shard> {
        &self.shards[partition.get() as usize]
    }

    /// Sends what may be sent, and sets the alarm for what may be later.
    pub(super) fn pump(self: &Arc<Self>, shard: &mut Shard, now: Instant) {
        shard.follow(self.topic.view().route(shard.partition), now);
        shard.window.tick(now);
        if self.is_fenced() {
            self.end_fenced(shard, now);
            self.weigh(shard, now);
            return;
        }
        shard.fill_window(now);
        while let Some((node, again)) = shard.destination(now) {
            if let Err(Hold { obstacle, until }) = self.destinations.admit(node, shard.breaker.as_mut(), again, now) {
                self.hold(shard, obstacle, now);
                self.alarm.set(Some(until));
                break;
            }
            let link = self.link_of(shard, node);
            let partition = shard.partition;
            let Some(flight) = shard.send(&link, now) else { break };
            self.counters.sent(flight.attempts);
            let correlation = Correlation { partition, attempt: flight.attempt_id() };
            let request = self.request(correlation, &flight.batch, self.told(flight.deadlines, flight.attempts));
            if !link.put(Outgoing { request, ticket: flight.batch.ticket.clone() }) {
                shard.link = None;
                shard.link_lost(link.id, &link.closed(), self.clock(now));
            }
            shard.fill_window(now);
        }
        if shard.wants_identity() {
            self.identify();
        }
        self.weigh(shard, now);
        self.alarm.set(shard.window.wake_at(self.options.answer_timeout));
        self.alarm.set(shard.window.sent_at().map(|sent| (sent + DOUBT_AFTER).max(now + DOUBT_AGAIN)));
        // A window that is closed now is opened by news, not by time: only the deadline matters then.
        self.alarm.set(shard.batcher.wake_at(if shard.window.may_admit() { shard.window.len() } else { usize::MAX }));
    }

    /// Notes whether a partition gets anything done, and what its records count for if it does not. After whatever
    /// changes that.
    pub(super) fn weigh(&self, shard: &mut Shard, now: Instant) {
        shard.judge(now, DOUBT_AFTER);
        self.load(shard.partition).hold_back(shard.stuck);
        let stuck_with = shard.stuck.then(|| shard.held_bytes() as u64);
        self.room.recount(shard.partition, &mut shard.counted_bytes, stuck_with);
    }

    /// Nothing is sent; once nothing is under way, the upkeep tells the rest.
    fn end_fenced(&self, shard: &Shard, now: Instant) {
        if shard.window.sent_at().is_none() && !shard.is_empty() {
            self.alarm.ring();
        }
        self.alarm.set(shard.window.wake_at(self.options.answer_timeout).map(|at| at.max(now + DOUBT_AGAIN)));
    }

    fn request(&self, correlation: Correlation, batch: &SealedBatch, deadline: Instant) -> v1::PublishRequest {
        let skewed = self.skewed.load(Ordering::Relaxed);
        v1::PublishRequest {
            correlation: correlation.pack(),
            topic_id: bytes::Bytes::copy_from_slice(self.topic.view().id.as_bytes()),
            partition: correlation.partition.get(),
            batch: batch.bytes.clone(),
            envelope: Some(v1::Envelope { digest: batch.digest.clone(), keys: batch.keys.clone() }),
            deadline_unix_ms: if skewed { 0 } else { self.cluster.env.unix_ms_at(deadline) },
        }
    }

    fn hold(&self, shard: &mut Shard, obstacle: Obstacle, now: Instant) {
        if shard.park(obstacle, now) {
            tracing::debug!(partition = %shard.partition, %obstacle, "held back");
            self.counters.held(obstacle);
        }
    }

    /// The link to the shard's leader.
    fn link_of(self: &Arc<Self>, shard: &mut Shard, node: NodeId) -> Arc<Link> {
        match &shard.link {
            Some(link) if link.node == node && link.is_open() => link.clone(),
            _ => shard.link.insert(self.link_to(node)).clone(),
        }
    }

    fn link_to(self: &Arc<Self>, node: NodeId) -> Arc<Link> {
        let mut links = self.links.lock();
        if let Some(link) = links.get(&node).filter(|link| link.is_open()) {
            return link.clone();
        }
        let id = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let link = Link::open(self, id, node, self.shards.len() * self.options.in_flight_max);
        links.insert(node, link.clone());
        link
    }

    /// Looks after everything that time brings, and after news of leaders and of brokers, which other producers of the
    /// client may bring.
    pub(crate) async fn upkeep(self: Arc<Self>) {
        let mut news = self.topic.subscribe();
        let mut guards = self.destinations.subscribe();
        loop {
            self.sweep();
            tokio::select! {
                () = self.alarm.wait() => {}
                // End only with the topic's watch and the guards, which we hold.
                _ = news.changed() => {}
                _ = guards.changed() => {}
            }
        }
    }

    fn sweep(self: &Arc<Self>) {
        self.alarm.begin_sweep();
        let now = self.cluster.env.now();
        if self.topic.view().gone {
            return self.give_up();
        }
        for shard in &self.shards {
            let mut finished = Vec::new();
            let overdue = {
                let mut shard = shard.lock();
                shard.expired(self.clock(now), &mut finished);
                if let Some(refusal) = self.fenced.get().filter(|_| shard.window.sent_at().is_none()) {
                    shard.abandon(&Ending::Fenced(refusal.clone()), self.clock(now), &mut finished);
                }
                self.pump(&mut shard, now);
                if shard.window.overdue(now, DOUBT_AFTER).is_some() {
                    self.topic.doubt();
                }
                shard.window.overdue(now, self.options.answer_timeout).and(shard.link.clone())
            };
            if let Some(link) = overdue {
                link.cut();
            }
            self.announce(finished);
        }
    }

    /// Sends all that waits for company, and returns a receipt for each unfinished batch.
    pub(crate) fn expedite(self: &Arc<Self>) -> Vec<Delivery> {
        let now = self.cluster.env.now();
        let mut receipts = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.batcher.expedite();
            self.pump(&mut shard, now);
            receipts.extend(shard.tickets().map(|ticket| Delivery::new(ticket.clone(), 0)));
        }
        receipts
    }

    /// The topic is gone: nothing is stored any more, and everybody who waits is told now.
    fn give_up(&self) {
        // Before the round: a record that comes behind us is refused under its shard's lock.
        self.gone.store(true, Ordering::Release);
        self.room.wake();
        self.end(&Ending::TopicGone);
    }

    /// Ends everything at once; what is unfinished is told so.
    pub(crate) fn abandon(&self) {
        self.refuse_records();
        self.tasks.stop();
        self.end(&Ending::Dropped);
    }

    fn end(&self, ending: &Ending) {
        let clock = self.clock(self.cluster.env.now());
        for shard in &self.shards {
            let mut finished = Vec::new();
            {
                let mut shard = shard.lock();
                shard.abandon(ending, clock, &mut finished);
                self.weigh(&mut shard, clock.now);
            }
            self.announce(finished);
        }
    }

    pub(super) fn announce(&self, finished: impl IntoIterator<Item = Finished>) {
        for finished in finished {
            self.counters.finished(&finished);
            let (took, error) = match &finished.outcome {
                Ok(stored) => (stored.report.took(), None),
                Err(error) => (error.report().took(), Some(error)),
            };
            metrics::sent(&self.topic.name, finished.records, took, error);
            self.load(finished.partition).finished(finished.held_bytes);
            if let Some(took) = finished.answered_within {
                self.load(finished.partition).acknowledged(took, self.load_ms(self.cluster.env.now()));
            }
            self.room.space.add_permits(finished.held_bytes);
            finished.ticket.resolve(finished.outcome);
        }
    }
}
