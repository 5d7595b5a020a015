//! Which requests wait for a reply, and whose a reply is. Pure: no clock, no channel.
//!
//! Invariants: a waiter is handed out at most once, and only to the reply that names its request; there are never
//! more than `max` waiters; a number is never used twice.

use std::collections::HashMap;

use super::headers::Correlation;

/// The requests of one requester that wait.
#[derive(Debug)]
pub(crate) struct Pending<W> {
    requester: u64,
    next: u64,
    max: usize,
    waiting: HashMap<u64, W>,
}

/// Whose a reply is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owner<W> {
    /// A request that waits for it.
    Waiting(W),
    /// A request of ours that waits no more: its deadline has passed, it was answered before, or it was dropped.
    Late,
    /// No request of ours.
    Foreign,
}

impl<W> Pending<W> {
    pub(crate) fn new(requester: u64, max: usize) -> Self {
        Self { requester, next: 0, max, waiting: HashMap::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A request begins to wait; `None` when there are too many.
    pub(crate) fn begin(&mut self, waiter: W) -> Option<Correlation> {
        if self.waiting.len() >= self.max {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, waiter);
        Some(Correlation { requester: self.requester, number })
    }

    /// A reply arrived.
    pub(crate) fn answer(&mut self, correlation: Option<Correlation>) -> Owner<W> {
        let ours = correlation.filter(|found| found.requester == self.requester && found.number < self.next);
        match ours {
            None => Owner::Foreign,
            Some(ours) => self.waiting.remove(&ours.number).map_or(Owner::Late, Owner::Waiting),
        }
    }

    /// A request waits no more.
    pub(crate) fn forget(&mut self, correlation: Correlation) {
        self.waiting.remove(&correlation.number);
        // After a burst, its memory is given back.
        if self.waiting.capacity() > 1024 && self.waiting.len() < self.waiting.capacity() / 8 {
            self.waiting.shrink_to(self.waiting.capacity() / 2);
        }
    }

    /// None waits any more.
    pub(crate) fn clear(&mut self) {
        self.waiting = HashMap::new();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 4;

    #[derive(Clone, Debug)]
    enum Step {
        Begin,
        /// A reply to request number n of requester r.
        Answer(u64, u64),
        Malformed,
        Forget(u64),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => Just(Step::Begin),
            5 => (6_u64..9, 0_u64..12).prop_map(|(requester, number)| Step::Answer(requester, number)),
            1 => Just(Step::Malformed),
            2 => (0_u64..12).prop_map(Step::Forget),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        /// Against the plainest model: the set of numbers that wait. A waiter is its own number.
        #[test]
        fn every_reply_goes_to_its_own_request_once(steps in prop::collection::vec(step(), 0..200)) {
            let mut pending = Pending::new(7, MAX);
            let (mut begun, mut waiting) = (0, BTreeSet::new());
            for step in steps {
                match step {
                    Step::Begin => {
                        let given = pending.begin(begun);
                        prop_assert_eq!(given.is_some(), waiting.len() < MAX);
                        if let Some(given) = given {
                            prop_assert_eq!(given, Correlation { requester: 7, number: begun });
                            waiting.insert(begun);
                            begun += 1;
                        }
                    }
                    Step::Answer(requester, number) => {
                        let want = match requester == 7 && number < begun {
                            false => Owner::Foreign,
                            true if waiting.remove(&number) => Owner::Waiting(number),
                            true => Owner::Late,
                        };
                        prop_assert_eq!(pending.answer(Some(Correlation { requester, number })), want);
                    }
                    Step::Malformed => prop_assert_eq!(pending.answer(None), Owner::Foreign),
                    Step::Forget(number) => {
                        pending.forget(Correlation { requester: 7, number });
                        waiting.remove(&number);
                    }
                    Step::Clear => {
                        pending.clear();
                        waiting.clear();
                    }
                }
                prop_assert_eq!(pending.len(), waiting.len());
            }
        }
    }

    #[test]
    fn memory_is_given_back_after_a_burst() {
        let mut pending = Pending::new(1, 1 << 20);
        let begun: Vec<_> = (0..100_000).filter_map(|_| pending.begin(())).collect();
        assert_eq!(begun.len(), 100_000);
        begun.into_iter().for_each(|correlation| pending.forget(correlation));
        assert!(pending.waiting.capacity() <= 2048, "{}", pending.waiting.capacity());
    }
}
