//! Writes down what happens to one batch while it happens; becomes its [`DeliveryReport`] in the end. Pure: the time
//! is given. Costs the untroubled batch one small allocation.
//!
//! Invariants: at most [`FIRST_KEPT`] + [`LAST_KEPT`] attempts are kept, however many there are; at most one is open,
//! the last.

use std::{sync::Arc, time::Duration};

use busbar_proto::{NodeId, Refusal};
use tokio::time::Instant;

use crate::producer::{
    report::{Attempt, DeliveryReport, NextStep, Story, Verdict},
    window::LinkId,
};

const FIRST_KEPT: usize = 4;
const LAST_KEPT: usize = 12;
/// Bytes of a broker's message that are kept.
const MESSAGE_BYTES_MAX: usize = 256;

/// The open book of a batch.
#[derive(Debug)]
pub(crate) struct Diary {
    begun: Instant,
    attempts: Vec<Attempt>,
    total: u32,
    open: Option<Open>,
    parked: Duration,
}

/// An attempt under way.
#[derive(Clone, Copy, Debug)]
struct Open {
    link: LinkId,
    node: NodeId,
    sent: Instant,
    /// That node has had it before.
    again: bool,
}

/// Where and when a story ends.
#[derive(Clone, Debug)]
pub(crate) struct Epilogue {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: u32,
    pub(crate) now: Instant,
    pub(crate) now_ms: i64,
}

impl Diary {
    pub(crate) fn new(begun: Instant) -> Self {
        Self { begun, attempts: Vec::new(), total: 0, open: None, parked: Duration::ZERO }
    }

    /// Another attempt begins.
    pub(crate) fn sent(&mut self, link: LinkId, node: NodeId, now: Instant) {
        self.unanswered("it was sent again", now);
        let again = self.was_sent_to(node);
        let begun = self.begun;
        if let Some(before) = self.attempts.last_mut() {
            let after = now.saturating_duration_since(begun + before.at + before.took);
            before.next = NextStep::SentAgain { after };
        }
        self.total = self.total.saturating_add(1);
        self.open = Some(Open { link, node, sent: now, again });
    }

    /// It was held back since then, as far as it was there.
    pub(crate) fn parked(&mut self, since: Instant, now: Instant) {
        let ended = self.attempts.last().map_or(self.begun, |last| self.begun + last.at + last.took);
        self.parked += now.saturating_duration_since(since.max(ended));
    }

    /// Whether the attempt under way, on that stream if one is named, is a retry at its node.
    pub(crate) fn is_retry(&self, link: Option<LinkId>) -> bool {
        self.open.is_some_and(|open| open.again && link.is_none_or(|link| open.link == link))
    }

    /// Whether that node has had it.
    pub(crate) fn was_sent_to(&self, node: NodeId) -> bool {
        self.open.is_some_and(|open| open.node == node)
            || self.attempts.iter().any(|attempt| attempt.node == node.get())
    }

    /// The broker refused it.
    pub(crate) fn refused(&mut self, refusal: &Refusal, now: Instant) {
        let Refusal { reason, message, .. } = refusal;
        self.close(now, || Verdict::Refused { reason: *reason, message: cut(message) });
    }

    /// No answer to the attempt under way will be awaited any more.
    pub(crate) fn unanswered(&mut self, why: &str, now: Instant) {
        self.close(now, || Verdict::Unanswered { why: cut(why) });
    }

    /// The same, with words that are made only where they are needed.
    pub(crate) fn unanswered_for(&mut self, why: impl FnOnce() -> String, now: Instant) {
        self.close(now, || Verdict::Unanswered { why: why() });
    }

    /// The same, if it went out on that stream.
    pub(crate) fn link_lost(&mut self, link: LinkId, why: &str, now: Instant) {
        if self.open.is_some_and(|open| open.link == link) {
            self.unanswered(why, now);
        }
    }

    /// The broker has it. The answer may be that of an attempt that was given up.
    pub(crate) fn stored(mut self, offset: u64, duplicate: bool, epilogue: Epilogue) -> DeliveryReport {
        let verdict = if duplicate { Verdict::Duplicate } else { Verdict::Acknowledged };
        if self.open.is_some() {
            self.close(epilogue.now, || verdict);
        } else if let Some(late) = self.attempts.last_mut() {
            late.took = epilogue.now.saturating_duration_since(self.begun + late.at);
            late.verdict = verdict;
        }
        self.end(Some(offset), epilogue)
    }

    /// It is not stored, or may not be.
    pub(crate) fn failed(mut self, epilogue: Epilogue) -> DeliveryReport {
        self.unanswered("the time for it was up", epilogue.now);
        self.end(None, epilogue)
    }

    fn end(mut self, offset: Option<u64>, epilogue: Epilogue) -> DeliveryReport {
        let Epilogue { topic, partition, now, now_ms } = epilogue;
        if let Some(last) = self.attempts.last_mut() {
            last.next = if offset.is_some() { NextStep::Delivered } else { NextStep::GaveUp };
        }
        let took = now.saturating_duration_since(self.begun);
        let begun_ms = now_ms.saturating_sub(i64::try_from(took.as_millis()).unwrap_or(i64::MAX));
        let Self { attempts, total, parked, .. } = self;
        DeliveryReport::new(Story { topic, partition, offset, begun_ms, took, parked, attempts, total })
    }

    fn close(&mut self, now: Instant, verdict: impl FnOnce() -> Verdict) {
        let Some(Open { node, sent, .. }) = self.open.take() else { return };
        if self.attempts.len() == FIRST_KEPT + LAST_KEPT {
            self.attempts.remove(FIRST_KEPT);
        }
        self.attempts.push(Attempt {
            number: self.total,
            node: node.get(),
            at: sent.saturating_duration_since(self.begun),
            took: now.saturating_duration_since(sent),
            verdict: verdict(),
            next: NextStep::GaveUp,
        });
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use busbar_proto::Reason;
    use proptest::prelude::*;

    use super::*;

    fn epilogue(now: Instant) -> Epilogue {
        Epilogue { topic: "orders".into(), partition: 3, now, now_ms: 1_000_000 }
    }

    fn link(number: u64) -> LinkId {
        LinkId(number)
    }

    #[test]
    fn a_story_is_told_attempt_by_attempt() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut diary = Diary::new(begun);
        diary.sent(link(1), NodeId::new(1), at(5));
        diary.refused(&Refusal::new(Reason::Overloaded, "too much"), at(7));
        diary.sent(link(1), NodeId::new(1), at(20));
        diary.link_lost(link(9), "another stream", at(21));
        diary.link_lost(link(1), "it closed the stream", at(30));
        diary.sent(link(2), NodeId::new(2), at(30));
        let report = diary.stored(70, true, epilogue(at(34)));
        assert_eq!(
            report.to_string(),
            "partition 3 of \"orders\": 3 attempts, 34.0ms in all, first sent after 5.0ms\n  \
             1: at +5.0ms to node 1, OVERLOADED within 2.0ms (too much); sent again after 13.0ms\n  \
             2: at +20.0ms to node 1, no answer within 10.0ms (it closed the stream); sent again after 0.0ns\n  \
             3: at +30.0ms to node 2, known to be stored already, within 4.0ms"
        );
        assert_eq!(
            (report.base_offset(), report.begun()),
            (Some(70), std::time::UNIX_EPOCH + Duration::from_millis(999_966))
        );
    }

    #[test]
    fn what_was_never_sent_says_so() {
        let begun = Instant::now();
        let report = Diary::new(begun).failed(epilogue(begun + Duration::from_secs(30)));
        assert_eq!(report.to_string(), "partition 3 of \"orders\": never sent, given up after 30.0s");
    }

    #[test]
    fn an_answer_to_an_attempt_that_was_given_up_counts() {
        let begun = Instant::now();
        let mut diary = Diary::new(begun);
        diary.sent(link(1), NodeId::new(1), begun);
        diary.unanswered("another node leads", begun + Duration::from_secs(1));
        let report = diary.stored(0, false, epilogue(begun + Duration::from_secs(2)));
        assert_eq!(report.attempts()[0].verdict, Verdict::Acknowledged);
        assert_eq!(report.attempts()[0].took, Duration::from_secs(2));
    }

    proptest! {
        #[test]
        fn however_many_attempts_the_first_and_the_last_are_kept(count in 0_u32..100) {
            let begun = Instant::now();
            let mut diary = Diary::new(begun);
            let endless = "é".repeat(1000);
            for attempt in 0..count {
                diary.sent(link(attempt.into()), NodeId::new(1), begun);
                diary.refused(&Refusal::new(Reason::Overloaded, endless.clone()), begun);
            }
            let report = diary.failed(epilogue(begun));
            prop_assert_eq!(report.attempt_count(), count);
            let numbers: Vec<_> = report.attempts().iter().map(|attempt| attempt.number).collect();
            let want: Vec<_> = (1..=count).filter(|&number| number <= 4 || number + 12 > count).collect();
            prop_assert_eq!(numbers, want);
            for attempt in report.attempts() {
                let Verdict::Refused { message, .. } = &attempt.verdict else { panic!("{attempt:?}") };
                prop_assert!(message.len() <= 256);
            }
        }
    }
}
