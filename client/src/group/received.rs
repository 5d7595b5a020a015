//! A record in the application's hands: itself, and the right to say what became of it.
//!
//! Invariant: one word on each delivery. One that is dropped without a word is given back.

use std::{fmt, ops::Deref, sync::Arc, time::Duration};

use super::{
    error::SettleError,
    holding::Holding,
    member::Member,
    window::{Handout, Verdict},
};
use crate::{consumer::ConsumedRecord, context::spans};

/// A record of a group consumer, to be settled: acknowledged, given back or rejected.
///
/// Settling is local and takes no time; it is committed in the background. While it is held, its lease runs: 30 s
/// unless set otherwise, renewed by [`Received::extend`]. A record that is dropped unsettled is given back as by
/// [`Received::nack`], so that an early return or a panic leads to another delivery at once.
///
/// ```no_run
/// # async fn charge(_: &busbar_client::ConsumedRecord) -> Result<(), std::io::Error> { Ok(()) }
/// # async fn example(mut consumer: busbar_client::GroupConsumer) -> Result<(), Box<dyn std::error::Error>> {
/// while let Some(record) = consumer.next().await? {
///     match charge(&record).await {
///         Ok(()) => record.ack()?,
///         Err(error) if record.value().is_empty() => record.reject(format!("no value: {error}"))?,
///         Err(error) => record.nack_because(None, error.to_string())?,
///     }
/// }
/// # Ok(()) }
/// ```
#[must_use = "a record that is dropped unsettled is delivered again"]
pub struct Received {
    record: Arc<ConsumedRecord>,
    member: Arc<Member>,
    holding: Arc<Holding>,
    handout: Handout,
    settled: bool,
}

impl Received {
    pub(super) fn new(
        record: Arc<ConsumedRecord>,
        member: Arc<Member>,
        holding: Arc<Holding>,
        handout: Handout,
    ) -> Self {
        Self { record, member, holding, handout, settled: false }
    }

    /// Which delivery of the record this is, from 1, as far as is known: earlier holders' deliveries count where they
    /// failed, and where they ended their consumer.
    pub fn attempt(&self) -> u32 {
        self.handout.delivery
    }

    /// It is done, and will not be delivered again once that is committed. A second word on it does not compile:
    ///
    /// ```compile_fail,E0382
    /// fn twice(record: busbar_client::Received) -> Result<(), busbar_client::SettleError> {
    ///     record.ack()?;
    ///     record.ack()
    /// }
    /// ```
    ///
    /// # Errors
    /// [`SettleError`]: the word comes too late and changes nothing; the record is delivered again.
    pub fn ack(mut self) -> Result<(), SettleError> {
        self.settled = true;
        let Handout { offset, delivery, .. } = self.handout;
        self.settling("ack", || {
            self.member.settle(&self.holding, self.handout, |window, _| window.ack(offset, delivery))
        })?;
        self.member.counters.acked.add(1);
        Ok(())
    }

    /// It could not be done now: delivered again after so long, or after a backoff that grows with each delivery. After
    /// the last delivery allowed it becomes a dead letter instead.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub fn nack(self, after: impl Into<Option<Duration>>) -> Result<(), SettleError> {
        self.nack_because(after, "not acknowledged")
    }

    /// As [`Self::nack`], and why: told in the dead letter, should it come to that.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub fn nack_because(
        mut self,
        after: impl Into<Option<Duration>>,
        reason: impl Into<Arc<str>>,
    ) -> Result<(), SettleError> {
        self.settled = true;
        self.give_back(after.into(), reason.into()).map(drop)
    }

    /// It can never be done: it becomes a dead letter now.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub fn reject(mut self, reason: impl Into<Arc<str>>) -> Result<(), SettleError> {
        self.settled = true;
        let Handout { offset, delivery, .. } = self.handout;
        let reason = reason.into();
        let say = |window: &mut super::window::Window<_>, clock: &_| window.reject(offset, delivery, reason, clock);
        self.settling("reject", || self.member.settle(&self.holding, self.handout, say))?;
        self.member.counters.rejected.add(1);
        Ok(())
    }

    /// The lease lasts for at least so long from now.
    ///
    /// # Errors
    /// As [`Self::ack`]: better to stop working on it.
    pub fn extend(&self, by: Duration) -> Result<(), SettleError> {
        let (said, news) = self.holding.extend(self.handout, by, &self.member.clock());
        self.member.heed(news);
        said
    }

    /// The record itself, to be kept beyond its settling.
    pub fn record(&self) -> &Arc<ConsumedRecord> {
        &self.record
    }

    fn settling<T>(
        &self,
        operation: &'static str,
        settle: impl FnOnce() -> Result<T, SettleError>,
    ) -> Result<T, SettleError> {
        spans::settling(&self.record, &self.member.options.group, operation, settle)
    }

    fn give_back(&self, after: Option<Duration>, reason: Arc<str>) -> Result<Verdict, SettleError> {
        let Handout { offset, delivery, .. } = self.handout;
        let say =
            |window: &mut super::window::Window<_>, clock: &_| window.nack(offset, delivery, after, reason, clock);
        let verdict = self.settling("nack", || self.member.settle(&self.holding, self.handout, say))?;
        self.member.counters.nacked.add(1);
        Ok(verdict)
    }
}

impl Deref for Received {
    type Target = ConsumedRecord;

    fn deref(&self) -> &ConsumedRecord {
        &self.record
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if !self.settled {
            // Too late is as good: it is delivered again anyway.
            let _ = self.give_back(None, "dropped without being settled".into());
        }
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received").field("record", &self.record).field("attempt", &self.attempt()).finish()
    }
}
