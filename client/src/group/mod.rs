//! Consumer groups: a [`GroupConsumer`] shares topics with the other members of its group, acknowledges record by
//! record, and loses nothing that was not acknowledged.
//!
//! | file | owns |
//! |---|---|
//! | `window/` | one partition: what is handed out, waits, is done (pure); `ranges`, `state`: what of it is committed |
//! | `dedup` | what makes two records the same (pure) |
//! | `holding` | one partition in the member's hands, from assignment to release; `reading`: what was received of it |
//! | `roster` | what an assignment means for what is held (pure) |
//! | `member` | all of it together; who must hear of what |
//! | `session` | the stream to the coordinator |
//! | `opening` | beginning with a partition |
//! | `upkeep` | commits and releases |
//! | `dead_letter` | records that will not be done |
//! | `builder`, `received`, `each`, `stats`, `error` | what the application sees |

mod builder;
mod dead_letter;
mod dedup;
mod each;
mod error;
mod holding;
mod member;
mod opening;
mod ranges;
mod reading;
mod received;
mod roster;
mod session;
mod state;
mod stats;
mod upkeep;
mod window;

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
};

use tokio::time::{Instant, Sleep};

pub(crate) use self::ranges::Ranges;
pub use self::{
    builder::GroupBuilder,
    dead_letter::DeadLetter,
    dedup::Dedup,
    error::{GroupError, SettleError},
    received::Received,
    stats::GroupStats,
    window::Expired,
};
use self::{
    holding::{Holding, Next},
    member::Member,
};
use crate::{consumer::Item, context};

/// Records taken from one partition before the next one has its turn.
const TURN_RECORDS: u32 = 64;

/// Reads topics as a member of a group: each partition is read by one member at a time, and each record is settled on
/// its own ([`Received`]). What is acknowledged is committed in the background; what is not is delivered again, here
/// or to another member.
///
/// [`GroupConsumer::close`] ends it in order. Dropped, it is missed by its group after the session timeout only, and
/// what it had acknowledged within the last commit interval is delivered again.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let mut consumer = client.group("billing").topics(["orders"]).build().await?;
/// while let Some(record) = consumer.next().await? {
///     println!("{}/{}: {:?}", record.partition(), record.offset(), record.value());
///     record.ack()?;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct GroupConsumer {
    member: Arc<Member>,
    items: VecDeque<Item>,
    /// The member's, as of `edition`.
    holdings: Vec<Arc<Holding>>,
    edition: u64,
    /// Whose turn it is, and for how many records still.
    turn: usize,
    left: u32,
    timer: Pin<Box<Sleep>>,
}

/// What one look for a record came to.
enum Look {
    Found(Result<Option<Received>, GroupError>),
    /// Nothing before news, or before this.
    Nothing(Option<Instant>),
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.member.tasks.stop();
        self.member.lose_all();
    }
}

impl GroupConsumer {
    fn new(member: Arc<Member>) -> Self {
        let timer = Box::pin(tokio::time::sleep_until(member.cluster.env.now()));
        let (items, holdings) = (VecDeque::new(), Vec::new());
        Self { member, items, holdings, edition: 0, turn: 0, left: TURN_RECORDS, timer }
    }

    /// The next record; waits for one. `None` after [`Self::close`].
    ///
    /// Cancel safe: a call that was dropped while it waited loses no record.
    ///
    /// # Errors
    /// [`GroupError::Consume`], when a partition can't be read without somebody doing something: the others are read
    /// on, and calling again tries again. The others are for good: the member is not in its group any more.
    pub async fn next(&mut self) -> Result<Option<Received>, GroupError> {
        poll_fn(|cx| {
            loop {
                if let Look::Found(found) = self.look() {
                    return Poll::Ready(found);
                }
                // Once more: news between the look and the registration would be missed.
                self.member.inbox.register(cx);
                let wake_at = match self.look() {
                    Look::Found(found) => return Poll::Ready(found),
                    Look::Nothing(wake_at) => wake_at,
                };
                let Some(wake_at) = wake_at else { return Poll::Pending };
                self.timer.as_mut().reset(wake_at);
                if self.timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// The next record if there is one now.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn try_next(&mut self) -> Result<Option<Received>, GroupError> {
        match self.look() {
            Look::Found(found) => found,
            Look::Nothing(_) => Ok(None),
        }
    }

    /// Waits until everything that was acknowledged before is committed, or not the member's business any more. Cancel
    /// safe.
    ///
    /// # Errors
    /// The member is not in its group any more.
    pub async fn commit(&self) -> Result<(), GroupError> {
        let options = &self.member.options;
        context::spans::committing(&options.topics, &options.group, self.commit_now()).await
    }

    async fn commit_now(&self) -> Result<(), GroupError> {
        let wanted: Vec<_> = self
            .member
            .holdings()
            .iter()
            .filter_map(|holding| Some((holding.clone(), holding.with_window(|window| window.version())?)))
            .collect();
        self.member.urgent.store(true, Ordering::Release);
        self.member.upkeep.notify_one();
        for (holding, version) in wanted {
            self.until(|| holding.with_window(|window| window.is_durable(version)) != Some(false)).await?;
        }
        Ok(())
    }

    /// What it has done so far.
    pub fn stats(&self) -> GroupStats {
        self.member.counters.read(self.member.inbox.missed())
    }

    /// How far this machine's clock is ahead of the brokers', in milliseconds; 0 while they differ by less than half a
    /// second. Delays and expiry go by the brokers' clock then.
    pub fn clock_ahead_ms(&self) -> i64 {
        self.member.cluster.clock_ahead_ms()
    }

    /// Its group.
    pub fn group(&self) -> &str {
        &self.member.options.group
    }

    /// The partitions that it reads now: topic and number.
    pub fn assignment(&self) -> Vec<(String, u32)> {
        let place = |holding: &Arc<Holding>| (holding.topic.to_string(), holding.claim.partition.get());
        let mut places: Vec<_> = self.member.holdings().iter().map(place).collect();
        places.sort();
        places
    }

    /// Ends the member in order: hands out nothing more, waits for what is in the application's hands (for the revoke
    /// timeout at most), commits, and leaves the group, so that others go on at once. A record that is settled after
    /// that says so.
    ///
    /// # Errors
    /// What was acknowledged last could not be committed in time, or the member was out of its group before.
    pub async fn close(&mut self) -> Result<(), GroupError> {
        let member = self.member.clone();
        let was_faulty = member.fault();
        member.closing.store(true, Ordering::Release);
        let now = member.cluster.env.now();
        for holding in member.holdings() {
            holding.give_up(now, now + member.options.revoke_timeout);
        }
        member.upkeep.notify_one();
        let patience = member.options.revoke_timeout + member.cluster.request_timeout;
        let finished = tokio::time::timeout(patience, self.until(|| member.is_empty_handed())).await;
        let finished = finished.unwrap_or_else(|_| {
            let last = "the coordinator did not answer".to_owned();
            Err(GroupError::Uncommitted { group: member.options.group.clone(), waited: patience, last })
        });
        if finished.is_ok() {
            member.tell.notify_one();
            let left = self.until(|| member.has_left.load(Ordering::Acquire));
            let _ = tokio::time::timeout(session::LEAVE_TIMEOUT, left).await;
        }
        member.graves.close().await;
        member.tasks.stop();
        member.tasks.ended().await;
        member.lose_all();
        match was_faulty {
            Some(error) => Err(error),
            None => finished,
        }
    }

    /// Waits until `done`, or until the member can't go on.
    async fn until(&self, done: impl Fn() -> bool) -> Result<(), GroupError> {
        loop {
            let changed = self.member.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(fault) = self.member.fault() {
                return Err(fault);
            }
            if done() {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Looks for a record, partition by partition.
    fn look(&mut self) -> Look {
        if let Some(fault) = self.member.fault() {
            return Look::Found(Err(fault));
        }
        if self.member.tasks.is_stopped() {
            return Look::Found(Ok(None));
        }
        if let Err(fault) = self.sort() {
            return Look::Found(Err(fault));
        }
        let clock = self.member.clock();
        if self.member.has_lapsed(clock.now) {
            return Look::Nothing(None);
        }
        let mut wake_at: Option<Instant> = None;
        for _ in 0..=self.holdings.len() {
            if self.turn >= self.holdings.len() || self.left == 0 {
                self.turn = (self.turn + 1) % self.holdings.len().max(1);
                self.left = TURN_RECORDS;
            }
            let Some(holding) = self.holdings.get(self.turn) else { break };
            let (next, news) = holding.next(&clock, &self.member.trials);
            self.member.heed(news);
            match next {
                Next::Record(handout, record) => {
                    self.left -= 1;
                    let counters = &self.member.counters;
                    counters.delivered.add(1);
                    counters.redelivered.add(u64::from(handout.delivery > 1));
                    counters.tried.add(u64::from(handout.on_trial));
                    let received = Received::new(record, self.member.clone(), holding.clone(), handout);
                    return Look::Found(Ok(Some(received)));
                }
                Next::Fault(fault) => return Look::Found(Err(fault.into())),
                Next::Nothing(at) => {
                    wake_at = [wake_at, at].into_iter().flatten().min();
                    self.left = 0;
                }
            }
        }
        Look::Nothing(wake_at)
    }

    /// Gives what was received to the partitions that it belongs to.
    fn sort(&mut self) -> Result<(), GroupError> {
        let edition = self.member.edition.load(Ordering::Acquire);
        if edition != self.edition {
            self.edition = edition;
            self.holdings = self.member.holdings();
        }
        if self.items.is_empty() {
            self.member.inbox.take(&mut self.items);
        }
        while let Some(item) = self.items.pop_front() {
            match item {
                Item::Batch(parcel) => {
                    if let Some(holding) = self.member.holding(parcel.tenure) {
                        context::received(&holding.topic, Some(&self.member.options.group), &parcel);
                        holding.put(parcel);
                    }
                }
                Item::Fault(_, tenure, fault) => {
                    match self.member.holding(tenure).is_some_and(|holding| holding.resume()) {
                        true => return Err(fault.into()),
                        false => tracing::debug!(%fault, "a partition that is going"),
                    }
                }
            }
        }
        Ok(())
    }
}
