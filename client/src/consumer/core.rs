//! What a consumer and its tasks share: the subscriptions, the feeds and the inbox.
//!
//! ```text
//!  feed --> heard --> subscription (lock) --> inbox --> next()
//!  next() --> consumed --> subscription (lock) --credit--> feed
//!  upkeep --> sweep: leaders, pauses, opens without answer --> each subscription
//! ```
//! Partitions may come and go: each stay is a tenure, and what is left of an earlier one reaches nobody.
//!
//! Invariants: locks are taken in the order book, subscription, then feeds or inbox, never two subscriptions at once;
//! a batch is put into the inbox under the lock that placed it, so a later stream can't overtake an earlier one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use busbar_proto::{
    NodeId, Offset, PartitionId, Reason, Refusal,
    v1::{self, subscribe_response::Event},
};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::{sync::Notify, time::Instant};

use crate::{
    alarm::Alarm,
    cluster::{Call, Cluster, Repeat},
    consumer::{
        feed::Feed,
        inbox::{Inbox, Item, Parcel},
        opening::{FeedId, SubscriptionId, Tenure},
        selection::{ReadFrom, Selection, choose},
        subscription::{self, Fault, StartAt, Subscription},
    },
    error::ConsumeError,
    pool,
    task::{Kind, Tasks},
    topic::Route,
    watch::TopicWatch,
};

/// Requests that wait for one stream: an open, a close and some credits for each partition.
const REQUESTS_PER_PARTITION: usize = 4;
const REQUESTS_MIN: usize = 16;

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) topic: Arc<TopicWatch>,
    pub(crate) tasks: Tasks,
    pub(crate) inbox: Arc<Inbox>,
    /// Something happened to a subscription that somebody may wait for.
    pub(crate) changed: Notify,
    pub(crate) selection: Selection,
    book: RwLock<Book>,
    /// With [`ReadFrom::Any`]: which replica each partition is read from.
    sources: Mutex<BTreeMap<PartitionId, NodeId>>,
    feeds: Mutex<HashMap<NodeId, Arc<Feed>>>,
    next_feed: AtomicU64,
    alarm: Alarm,
}

/// Who is read, and what those that were left behind came to.
#[derive(Debug, Default)]
struct Book {
    subscriptions: BTreeMap<PartitionId, Arc<Mutex<Subscription>>>,
    /// Openings of subscriptions that are gone. Grows with the partitions of the topic only.
    openings: BTreeMap<PartitionId, u32>,
}

impl Core {
    /// Reads a topic's partitions into `inbox`, perhaps beside others of other topics.
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        topic: Arc<TopicWatch>,
        tasks: Tasks,
        inbox: Arc<Inbox>,
        selection: Selection,
        subscriptions: impl IntoIterator<Item = Subscription>,
    ) -> Arc<Self> {
        let by_partition = |subscription: Subscription| (subscription.partition(), Arc::new(Mutex::new(subscription)));
        let subscriptions = subscriptions.into_iter().map(by_partition).collect();
        Arc::new(Self {
            tasks,
            inbox,
            changed: Notify::new(),
            selection,
            book: RwLock::new(Book { subscriptions, openings: BTreeMap::new() }),
            sources: Mutex::default(),
            feeds: Mutex::default(),
            next_feed: AtomicU64::new(0),
            alarm: Alarm::new(cluster.env.now()),
            cluster,
            topic,
        })
    }

    /// Looks at every subscription, one after the other.
    pub(crate) fn read<T>(&self, look: impl Fn(&Subscription) -> T) -> Vec<(PartitionId, T)> {
        let look = |subscription: Arc<Mutex<Subscription>>| {
            let subscription = subscription.lock();
            (subscription.partition(), look(&subscription))
        };
        self.all().into_iter().map(look).collect()
    }

    /// Reads one more partition, as a stay of its own.
    pub(crate) fn add(&self, subscription: Subscription, tenure: Tenure) {
        let partition = subscription.partition();
        let mut book = self.book.write();
        let opening = book.openings.remove(&partition).unwrap_or(0);
        let subscription = Arc::new(Mutex::new(subscription.of_tenure(tenure, opening)));
        let former = book.subscriptions.insert(partition, subscription);
        assert!(former.is_none(), "a partition is read once");
        drop(book);
        self.alarm.ring();
    }

    /// Reads a partition no more, if this stay still lasts. What it put into the inbox is left there.
    pub(crate) fn remove(&self, partition: PartitionId, tenure: Tenure) {
        let mut book = self.book.write();
        let Some(subscription) = book.subscriptions.get(&partition).cloned() else { return };
        let mut subscription = subscription.lock();
        if subscription.tenure() != tenure {
            return;
        }
        if let Some(feed) = subscription.fed_by() {
            self.close(feed, subscription.id());
        }
        subscription.retire();
        self.sources.lock().remove(&partition);
        book.subscriptions.remove(&partition);
        book.openings.insert(partition, subscription.opening());
    }

    /// Another bound for the bytes that each partition holds.
    pub(crate) fn resize(&self, window: u64) {
        self.all().iter().for_each(|subscription| subscription.lock().resize(window));
    }

    fn all(&self) -> Vec<Arc<Mutex<Subscription>>> {
        self.book.read().subscriptions.values().cloned().collect()
    }

    pub(crate) fn one(&self, partition: PartitionId) -> Option<Arc<Mutex<Subscription>>> {
        self.book.read().subscriptions.get(&partition).cloned()
    }

    /// Opens what is due, moves what is led elsewhere, gives up what was not answered.
    fn tend(self: &Arc<Self>, subscription: &mut Subscription, now: Instant) {
        if self.topic.view().gone {
            return self.end(subscription);
        }
        let route = self.route(subscription);
        if let Some(old) = route.and_then(|route| subscription.follow(route)) {
            self.close(old, subscription.id());
        }
        if let Some(feed) = subscription.fed_by().filter(|_| subscription.is_overdue(now)) {
            self.close(feed, subscription.id());
            subscription.lost(feed, now, self.cluster.env.random());
        }
        subscription.tick(now);
        if let Some(route) = route.filter(|_| subscription.is_due()) {
            let feed = self.feed_to(route.leader);
            let opening = subscription.subscribe(feed.id, now);
            let topic_id = Bytes::copy_from_slice(self.topic.view().id.as_bytes());
            if !feed.subscribe(topic_id, opening, &self.selection) {
                subscription.lost(feed.id, now, self.cluster.env.random());
            }
        }
        self.alarm.set(subscription.wake_at());
    }

    /// The node that a partition is read from.
    fn route(&self, subscription: &Subscription) -> Option<Route> {
        let (partition, source) = (subscription.partition(), subscription.source());
        let view = self.topic.view();
        if self.selection.read_from == ReadFrom::Leader || subscription.needs_leader() {
            return view.route(partition);
        }
        let replicas: Vec<_> =
            view.replicas(partition).iter().copied().filter(|&node| self.cluster.is_alive(node)).collect();
        if replicas.is_empty() {
            return view.route(partition);
        }
        // Like hearsay: going from one to the next cuts a backoff short a few times only.
        let to = |leader| Some(Route { leader, epoch: 0, hinted: true });
        if let Some(source) = source.filter(|source| subscription.failures() == 0 && replicas.contains(source)) {
            return to(source);
        }
        let mut sources = self.sources.lock();
        sources.remove(&partition);
        let serves = |node| sources.values().filter(|&&source| source == node).count();
        let chosen = choose(&replicas, source, serves, self.cluster.env.random())?;
        sources.insert(partition, chosen);
        to(chosen)
    }

    /// The topic is gone: the application is told, each time that it asks for more.
    fn end(&self, subscription: &mut Subscription) {
        if let Some(feed) = subscription.fed_by() {
            self.close(feed, subscription.id());
        }
        if subscription.halt() {
            let text = "the topic was deleted; build another consumer once there is a topic of that name";
            let refusal = Refusal::new(Reason::UnknownTopic, text);
            self.tell(subscription, self.refused(subscription, refusal));
            self.changed.notify_waiters();
        }
    }

    /// Puts a fault where the application will find it.
    fn tell(&self, subscription: &Subscription, fault: ConsumeError) {
        self.inbox.put([Item::Fault(subscription.partition(), subscription.tenure(), fault)]);
    }

    fn feed_to(self: &Arc<Self>, node: NodeId) -> Arc<Feed> {
        let mut feeds = self.feeds.lock();
        if let Some(feed) = feeds.get(&node).filter(|feed| feed.is_open()) {
            return feed.clone();
        }
        let id = FeedId { node, number: self.next_feed.fetch_add(1, Ordering::Relaxed) };
        let capacity = REQUESTS_MIN + REQUESTS_PER_PARTITION * self.topic.view().partitions() as usize;
        let feed = Feed::open(self, id, capacity);
        feeds.insert(node, feed.clone());
        feed
    }

    fn existing(&self, feed: FeedId) -> Option<Arc<Feed>> {
        self.feeds.lock().get(&feed.node).filter(|existing| existing.id == feed).cloned()
    }

    fn close(&self, feed: FeedId, id: SubscriptionId) {
        if let Some(feed) = self.existing(feed) {
            feed.close(id);
        }
    }

    /// A node sent something.
    pub(crate) fn heard(self: &Arc<Self>, feed: FeedId, event: v1::SubscribeResponse) {
        let id = SubscriptionId::from_wire(event.subscription);
        let Some(subscription) = self.one(id.partition()) else { return };
        let Some(event) = event.event else { return };
        // The checksums of a large message take a while: not under the lock.
        let (checked, bytes) = match &event {
            Event::Batches(batches) => (subscription::check(batches.batches.clone()), batches.batches.len() as u64),
            _ => (Ok(Vec::new()), 0),
        };
        let mut subscription = subscription.lock();
        if subscription.id() != id || subscription.fed_by() != Some(feed) {
            return; // Closed before this came.
        }
        match event {
            Event::Opened(opened) => {
                let skipped = subscription.skipped();
                subscription.opened(Offset::new(opened.start_offset), Offset::new(opened.high_watermark));
                self.inbox.miss(subscription.skipped() - skipped);
                self.changed.notify_waiters();
            }
            Event::Batches(batches) => {
                self.take(&mut subscription, feed, bytes, checked, Offset::new(batches.high_watermark));
            }
            Event::CaughtUp(caught_up) => subscription.heard(Offset::new(caught_up.high_watermark)),
            Event::Passed(passed) => self.pass(&mut subscription, feed, passed),
            Event::Ended(error) => self.ended(&mut subscription, feed.node, Refusal::from_wire(error)),
        }
    }

    fn take(
        self: &Arc<Self>,
        subscription: &mut Subscription,
        feed: FeedId,
        bytes: u64,
        checked: Result<subscription::Checked, Fault>,
        high_watermark: Offset,
    ) {
        let (partition, tenure) = (subscription.partition(), subscription.tenure());
        match subscription.batches(bytes, checked, high_watermark) {
            Ok(accepted) => {
                let item = |(batch, from)| Item::Batch(Parcel { partition, tenure, batch: Some(batch), from });
                self.inbox.put(accepted.into_iter().map(item));
                let credit = subscription.refill();
                self.grant(subscription, credit);
            }
            Err(fault) => self.refuse(subscription, feed, fault),
        }
    }

    fn pass(self: &Arc<Self>, subscription: &mut Subscription, feed: FeedId, passed: v1::subscribe_response::Passed) {
        let (partition, tenure) = (subscription.partition(), subscription.tenure());
        let (next, end) = (Offset::new(passed.next_offset), Offset::new(passed.high_watermark));
        match subscription.passed(next, end) {
            Ok(place) => {
                let item = |from| Item::Batch(Parcel { partition, tenure, batch: None, from });
                self.inbox.put(place.map(item));
                let credit = subscription.refill();
                self.grant(subscription, credit);
            }
            Err(fault) => self.refuse(subscription, feed, fault),
        }
    }

    /// What a node sent can't be accepted: opened anew, and the application is told if that goes on.
    fn refuse(self: &Arc<Self>, subscription: &mut Subscription, feed: FeedId, fault: Fault) {
        let partition = subscription.partition();
        tracing::warn!(topic = %self.topic.name, %partition, node = %feed.node, %fault, "message refused; opening anew");
        self.close(feed, subscription.id());
        let now = self.cluster.env.now();
        if let Some(fault) = subscription.faulty(fault, now, self.cluster.env.random()) {
            self.tell(subscription, self.corrupt(subscription, &fault));
        }
        self.alarm.set(subscription.wake_at());
    }

    fn ended(self: &Arc<Self>, subscription: &mut Subscription, node: NodeId, refusal: Refusal) {
        let partition = subscription.partition();
        tracing::debug!(topic = %self.topic.name, %partition, %node, %refusal, "subscription ended");
        match refusal.reason {
            Reason::NotLeader => self.topic.hint(partition, node, refusal.leader),
            Reason::NoLeader => self.topic.doubt(),
            Reason::OffsetOutOfRange => self.look_for_log_start(partition),
            _ => {}
        }
        let now = self.cluster.env.now();
        if let Some(refusal) = subscription.ended(refusal, now, self.cluster.env.random()) {
            self.tell(subscription, self.refused(subscription, refusal));
            self.changed.notify_waiters();
        }
        self.tend(subscription, now);
    }

    /// Asks the leader for the bounds, to tell an offset that retention removed from one that is not there yet.
    fn look_for_log_start(self: &Arc<Self>, partition: PartitionId) {
        let core = self.clone();
        self.tasks.spawn(Kind::Bounds, async move {
            let timeout = core.cluster.request_timeout;
            let call = Call { what: "read the bounds of a partition", repeat: Repeat::Safe, timeout };
            let topic_id = Bytes::copy_from_slice(core.topic.view().id.as_bytes());
            let request = v1::OffsetsRequest { topic_id, partition: partition.get(), at_time_ms: None };
            let ask = |channel| {
                let request = request.clone();
                async move { pool::broker(channel).offsets(request).await }
            };
            // Without an answer the subscription goes on as after any failure.
            let Ok(bounds) = core.cluster.call(call, ask).await else { return };
            let Some(subscription) = core.one(partition) else { return };
            let mut subscription = subscription.lock();
            let wanted = match subscription.next() {
                StartAt::Offset(wanted) if wanted < bounds.log_start && subscription.fed_by().is_none() => wanted,
                _ => return,
            };
            let (end, skipped) = (Offset::new(bounds.high_watermark), subscription.skipped());
            if !subscription.below_log_start(Offset::new(bounds.log_start), end) {
                let text = format!("offset {wanted} is gone, the log starts at {}", bounds.log_start);
                let refusal = Refusal::new(Reason::OffsetOutOfRange, text);
                core.tell(&subscription, core.refused(&subscription, refusal));
            }
            core.inbox.miss(subscription.skipped() - skipped);
            core.tend(&mut subscription, core.cluster.env.now());
        });
    }

    /// A stream is gone, and with it every subscription on it.
    pub(crate) fn feed_lost(self: &Arc<Self>, feed: FeedId) {
        {
            let mut feeds = self.feeds.lock();
            if feeds.get(&feed.node).is_some_and(|existing| existing.id == feed) {
                feeds.remove(&feed.node);
            }
        }
        let now = self.cluster.env.now();
        for subscription in self.all() {
            let mut subscription = subscription.lock();
            if subscription.lost(feed, now, self.cluster.env.random()) {
                self.topic.doubt();
                self.tend(&mut subscription, now);
            }
        }
    }

    /// The application is done with a batch of that many bytes.
    pub(crate) fn consumed(&self, partition: PartitionId, tenure: Tenure, bytes: usize) {
        let Some(subscription) = self.one(partition) else { return };
        let mut subscription = subscription.lock();
        if subscription.tenure() != tenure {
            return;
        }
        let credit = subscription.consumed(bytes as u64);
        self.grant(&mut subscription, credit);
        if subscription.fed_by().is_none() {
            self.alarm.ring(); // It may have waited for room.
        }
    }

    /// The application has been told of a fault and wants to go on.
    pub(crate) fn resume(&self, partition: PartitionId) {
        if let Some(subscription) = self.one(partition) {
            subscription.lock().resume();
            self.alarm.ring();
        }
    }

    fn grant(&self, subscription: &mut Subscription, credit: Option<u64>) {
        let (Some(credit), Some(feed)) = (credit, subscription.fed_by()) else { return };
        let sent = self.existing(feed).is_some_and(|feed| feed.grant(subscription.id(), credit));
        if !sent {
            // The queue is full or the stream is going: granted with the next batch consumed, or anew.
            subscription.keep(credit);
        }
    }

    /// Looks after what time brings, and after news of leaders.
    pub(crate) async fn upkeep(self: Arc<Self>) {
        let mut news = self.topic.subscribe();
        loop {
            if self.topic.view().gone && self.book.read().subscriptions.is_empty() {
                return;
            }
            self.alarm.begin_sweep();
            let now = self.cluster.env.now();
            for subscription in self.all() {
                self.tend(&mut subscription.lock(), now);
            }
            tokio::select! {
                () = self.alarm.wait() => {}
                // Ends only with the topic's watch, which we hold.
                _ = news.changed() => {}
            }
        }
    }

    fn refused(&self, subscription: &Subscription, refusal: Refusal) -> ConsumeError {
        let position = match subscription.next() {
            StartAt::Earliest => "earliest".to_owned(),
            StartAt::Latest => "latest".to_owned(),
            StartAt::Offset(offset) => offset.to_string(),
            StartAt::Time(time_ms) => format!("time {time_ms} ms"),
        };
        let partition = subscription.partition().get();
        ConsumeError::Refused { topic: self.topic.name.to_string(), partition, position, refusal }
    }

    fn corrupt(&self, subscription: &Subscription, fault: &Fault) -> ConsumeError {
        let offset = match subscription.next() {
            StartAt::Offset(offset) => offset,
            StartAt::Earliest | StartAt::Latest | StartAt::Time(_) => 0,
        };
        let partition = subscription.partition().get();
        ConsumeError::Corrupt { topic: self.topic.name.to_string(), partition, offset, fault: fault.to_string() }
    }
}
