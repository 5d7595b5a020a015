//! Options of a group consumer, and its making.

use std::{sync::Arc, time::Duration};

use busbar_proto::{GroupName, limits};

use super::{
    GroupConsumer,
    dead_letter::{DeadLetter, Graves},
    dedup::{Dedup, IDS_MAX},
    member::{Member, Options},
    window::{Expired, Policy},
};
use crate::{
    cluster::Cluster,
    consumer::{ReadFrom, StartAt, selection::Selection},
    error::ClientError,
    retry::BackoffPolicy,
    task::Kind,
    watch::TopicWatch,
};

const RECORDS_MAX: usize = 10_000;
const LEASE_MIN: Duration = Duration::from_millis(10);
const COMMIT_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// Options of a [`GroupConsumer`]; `build` makes it.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let builder = client.group("billing").topics(["orders"]).member_name("billing-1");
/// let consumer = builder.lease(Duration::from_secs(10)).max_deliveries(3).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until build() is called"]
pub struct GroupBuilder {
    cluster: Arc<Cluster>,
    options: Options,
    dead_letter: DeadLetter,
    filter: Option<String>,
}

impl GroupBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>, group: String) -> Self {
        let policy = Policy {
            lease: Duration::from_secs(30),
            backoff: BackoffPolicy { base: Duration::from_millis(200), cap: Duration::from_secs(60) },
            deliveries_max: 5,
            records_max: 1000,
            bytes_max: 8 << 20,
            by_key: false,
            ids_max: 0,
            expired: Expired::Drop,
        };
        let options = Options {
            group,
            topics: Vec::new(),
            member_name: String::new(),
            session_timeout: None,
            from: StartAt::Earliest,
            policy,
            dedup: None,
            commit_interval: Duration::from_millis(100),
            revoke_timeout: Duration::from_secs(10),
            credit_bytes: 8 << 20,
            selection: Selection::default(),
        };
        Self { cluster, options, dead_letter: DeadLetter::default(), filter: None }
    }

    /// The topics to read; at least one. All members together decide what the group reads.
    pub fn topics(mut self, topics: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.options.topics = topics.into_iter().map(Into::into).collect();
        self.options.topics.sort();
        self.options.topics.dedup();
        self
    }

    /// A name that is the same after a restart: the member then gets back what it had, without the others noticing, and
    /// an instance that still runs under that name is fenced. Default: none.
    pub fn member_name(mut self, name: impl Into<String>) -> Self {
        self.options.member_name = name.into();
        self
    }

    /// Only records whose headers match: see [`ConsumerBuilder::filter`](crate::ConsumerBuilder::filter). What does not
    /// match counts as done; all members of a group should have the same filter. Default: all records.
    pub fn filter(mut self, filter: impl Into<String>) -> Self {
        self.filter = Some(filter.into());
        self
    }

    /// Which replica of a partition is read. Default: its leader.
    pub fn read_from(mut self, read_from: ReadFrom) -> Self {
        self.options.selection.read_from = read_from;
        self
    }

    /// Where to begin in partitions that the group has committed nothing of. Default: earliest.
    pub fn from(mut self, from: StartAt) -> Self {
        self.options.from = from;
        self
    }

    /// How long a record may be in the application's hands before it is delivered again. Default 30 s;
    /// [`Received::extend`](super::Received::extend) renews it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.options.policy.lease = lease;
        self
    }

    /// Deliveries of a record until it becomes a dead letter; 0 = any number. Default 5.
    pub fn max_deliveries(mut self, deliveries: u32) -> Self {
        self.options.policy.deliveries_max = if deliveries == 0 { u32::MAX } else { deliveries };
        self
    }

    /// Pause before another delivery: doubled by each from `base` up to `cap`, and spread by chance over the upper half
    /// of that. Default 200 ms to 60 s.
    pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
        self.options.policy.backoff = BackoffPolicy { base, cap };
        self
    }

    /// What becomes of records that are rejected, or not acknowledged after the last delivery. Default: the topic
    /// `<topic>.dlq`, created if it is missing.
    pub fn dead_letter(mut self, dead_letter: DeadLetter) -> Self {
        self.dead_letter = dead_letter;
        self
    }

    /// Drops records that the application has acknowledged already: the last of each partition are remembered with the
    /// committed offset, so also after a crash, and when another member has the partition. What was dropped is counted
    /// ([`GroupStats::duplicates`](crate::GroupStats::duplicates)). A record whose like is not done yet waits: it is dropped once that one is
    /// acknowledged, and delivered if that one is given up. All members of a group should choose the same.
    ///
    /// Default: off, as only the application knows what makes two records the same, and each record that is remembered
    /// costs 8 bytes in every commit of its partition.
    ///
    /// ```no_run
    /// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use busbar_client::Dedup;
    ///
    /// let mut consumer = client.group("billing").topics(["orders"]).dedup(Dedup::by_event()).build().await?;
    /// # Ok(()) }
    /// ```
    pub fn dedup(mut self, dedup: Dedup) -> Self {
        self.options.policy.ids_max = dedup.ids_max();
        self.options.dedup = Some(dedup);
        self
    }

    /// What becomes of records that have expired ([`Record::ttl`](crate::Record::ttl)) before they were acknowledged.
    /// Default: they are done, and counted ([`GroupStats::expired_records`](crate::GroupStats::expired_records)).
    pub fn expired(mut self, expired: Expired) -> Self {
        self.options.policy.expired = expired;
        self
    }

    /// Records of one partition that are read and not done; then nothing more of it is handed out, also where
    /// what was read waits for its time ([`Record::deliver_after`](crate::Record::deliver_after)). Default 1000.
    pub fn window_records(mut self, records: usize) -> Self {
        self.options.policy.records_max = records;
        self
    }

    /// Bytes received and not done, all partitions together; each gets an equal part, but at least one batch of its
    /// topic's largest size. Records that wait for another delivery may take as much again. Default 8 MiB.
    pub fn credit_bytes(mut self, credit_bytes: usize) -> Self {
        self.options.credit_bytes = credit_bytes;
        self
    }

    /// How long after an acknowledgement it is committed, at most, while the coordinator answers. Default 100 ms.
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.options.commit_interval = interval;
        self
    }

    /// How long the member may be unheard of before its partitions go to others. Default: the broker's.
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.options.session_timeout = Some(timeout);
        self
    }

    /// How long a partition that is to be given up waits for the records in the application's hands. Default 10 s.
    pub fn revoke_timeout(mut self, timeout: Duration) -> Self {
        self.options.revoke_timeout = timeout;
        self
    }

    /// Joins the group. Returns once the coordinator has let the member in; partitions are assigned after that.
    ///
    /// # Errors
    /// An option out of range; a filter that does not parse; no such topic (the broker names the closest), or no topic for the dead letters; the
    /// group refuses the member; nobody answers.
    pub async fn build(self) -> Result<GroupConsumer, ClientError> {
        self.check()?;
        let Self { cluster, mut options, dead_letter, filter } = self;
        options.selection = Selection::new(filter.as_deref(), options.selection.read_from)?;
        // Held until the member reads: what was looked up for one need not be looked up again.
        let mut watches = Vec::new();
        for topic in &options.topics {
            watches.push(TopicWatch::open(&cluster, topic).await?);
        }
        let graves = Graves::dig(&cluster, &options.group, &options.topics, &dead_letter).await?;
        let timeout = cluster.request_timeout;
        let member = Member::new(cluster, options, graves);
        let consumer = GroupConsumer::new(member.clone());
        member.tasks.spawn(Kind::GroupSession, member.clone().attend());
        member.tasks.spawn(Kind::GroupUpkeep, member.clone().keep_up());
        member.tasks.spawn(Kind::Undertaker, member.clone().undertake());
        let joined = consumer.until(|| member.seat.lock().member_id > 0);
        match tokio::time::timeout(timeout, joined).await {
            Ok(joined) => joined?,
            Err(_) => {
                let what = format!("join group {:?}", member.options.group);
                let last = member.last_word.lock().clone();
                return Err(ClientError::Timeout { what, waited: timeout, last });
            }
        }
        drop(watches);
        Ok(consumer)
    }

    fn check(&self) -> Result<(), ClientError> {
        let Self { options, .. } = self;
        let name_rule = "1 to 249 of a-z A-Z 0-9 . _ -, and neither . nor ..";
        let must = |ok: bool, option, found: String, rule| match ok {
            true => Ok(()),
            false => Err(ClientError::InvalidOption { option, found, rule }),
        };
        let is_name = |name: &str| name.parse::<GroupName>().is_ok();
        must(is_name(&options.group), "group", format!("{:?}", options.group), name_rule)?;
        let name = &options.member_name;
        must(name.is_empty() || is_name(name), "member_name", format!("{name:?}"), name_rule)?;
        let topics = options.topics.len();
        must((1..=limits::MEMBER_TOPICS_MAX).contains(&topics), "topics", topics.to_string(), "1 to 100 topics")?;
        if let Some(timeout) = options.session_timeout {
            let range = u128::from(limits::SESSION_TIMEOUT_MS_MIN)..=u128::from(limits::SESSION_TIMEOUT_MS_MAX);
            let in_range = range.contains(&timeout.as_millis());
            must(in_range, "session_timeout", format!("{timeout:?}"), "0.5 s to 1 h")?;
        }
        let Policy { lease, backoff, records_max, .. } = options.policy;
        must(lease >= LEASE_MIN, "lease", format!("{lease:?}"), "at least 10 ms")?;
        must(
            !backoff.base.is_zero() && backoff.base <= backoff.cap,
            "backoff",
            format!("{backoff:?}"),
            "0 < base <= cap",
        )?;
        let in_range = (1..=RECORDS_MAX).contains(&records_max);
        must(in_range, "window_records", records_max.to_string(), "1 to 10000")?;
        if options.dedup.is_some() {
            let ids = options.policy.ids_max;
            must((1..=IDS_MAX).contains(&ids), "dedup", format!("{ids} ids"), "1 to 4096 ids")?;
        }
        let interval = options.commit_interval;
        must(interval >= COMMIT_INTERVAL_MIN, "commit_interval", format!("{interval:?}"), "at least 1 ms")
    }
}
