//! Named producers: which instance holds a name, and which epochs that leaves.
//!
//! ```text
//!   claim by A     epoch 0    [A]
//!   renewal by A   epoch 1    [A A]        A goes on under either
//!   claim by B     epoch 2     . . [B]     what A had is fenced
//! ```
//! Invariants: a name's producer id and epoch are handed to one instance only; epochs of an id only grow; each id
//! belongs to one name. A claim that arrives twice (a retry, a copy that was long on its way) changes nothing: an
//! instance says who it is by a number that it drew, and the last few that were replaced are known. The table is
//! bounded: when it is full, a name that nobody claimed for long is given up for a new one; whoever still writes under
//! it then is not fenced by a later claim, which gets another id.

use std::collections::BTreeMap;

use busbar_proto::{ProducerEpoch, ProducerId, Reason, Refusal, TopicName, limits};
use serde::{Deserialize, Serialize};

use super::{Catalog, Outcome, refusal};

/// Instances before the present one that are known by their number.
const FORMER_INSTANCES_MAX: usize = 4;

/// A producer that an application has named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedProducer {
    /// Its name.
    pub name: String,
    /// Its id, as long as there are epochs left.
    pub id: ProducerId,
    /// The newest epoch that was handed out.
    pub epoch: ProducerEpoch,
    /// The first epoch of the instance that holds the name. Invariant: `oldest_epoch <= epoch`.
    pub oldest_epoch: ProducerEpoch,
    /// What that instance drew; 0 = nothing.
    instance: u64,
    /// What those before it drew, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<u64>,
    /// When the name was last claimed, in milliseconds since the Unix epoch.
    claimed_ms: i64,
    /// The id before, whose epochs are used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired: Option<ProducerId>,
}

/// What an instance asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) instance: u64,
    /// It holds the name, and needs an epoch after this one.
    pub(super) renews: Option<ProducerEpoch>,
    pub(super) now_ms: i64,
}

/// Every named producer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NamedProducers {
    by_name: BTreeMap<String, NamedProducer>,
    /// Retired ids too.
    names: BTreeMap<ProducerId, String>,
}

impl NamedProducers {
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &NamedProducer> {
        self.by_name.values()
    }

    pub(super) fn by_id(&self, id: ProducerId) -> Option<&NamedProducer> {
        self.by_name.get(self.names.get(&id)?)
    }

    /// Puts back what a snapshot says; `false` when that can't be.
    pub(super) fn restore(&mut self, producer: NamedProducer, next_id: ProducerId) -> bool {
        let NamedProducer { name, id, epoch, oldest_epoch, former, retired, .. } = &producer;
        let epochs = oldest_epoch.get() >= 0 && oldest_epoch <= epoch;
        let bounded = former.len() <= FORMER_INSTANCES_MAX && self.by_name.len() < limits::NAMED_PRODUCERS_MAX;
        let are_new = [Some(*id), *retired].into_iter().flatten().all(|id| {
            let is_known = id > ProducerId::new(0) && id < next_id;
            is_known && self.names.insert(id, name.clone()).is_none()
        });
        epochs && bounded && are_new && check(name).is_ok() && self.by_name.insert(name.clone(), producer).is_none()
    }

    /// Makes room for one more name.
    fn make_room(&mut self, now_ms: i64) -> Result<(), Refusal> {
        if self.by_name.len() < limits::NAMED_PRODUCERS_MAX {
            return Ok(());
        }
        let oldest = self.by_name.values().min_by_key(|producer| producer.claimed_ms);
        let oldest = oldest.filter(|oldest| now_ms.saturating_sub(oldest.claimed_ms) > limits::PRODUCER_NAME_KEPT_MS);
        let Some(NamedProducer { name, id, retired, .. }) = oldest.cloned() else {
            let most = limits::NAMED_PRODUCERS_MAX;
            let message = format!(
                "the cluster knows {most} names of producers, all claimed within a week: use fewer, or the same again"
            );
            return Err(refusal(Reason::LimitReached, message));
        };
        self.by_name.remove(&name);
        self.names.remove(&id);
        if let Some(retired) = retired {
            self.names.remove(&retired);
        }
        Ok(())
    }
}

impl NamedProducer {
    /// Whether batches of this id and epoch are of an instance that was replaced; if so, the epoch that counts.
    pub fn replaces(&self, id: ProducerId, epoch: ProducerEpoch) -> Option<ProducerEpoch> {
        (id != self.id || epoch < self.oldest_epoch).then_some(self.oldest_epoch)
    }

    fn outcome(&self) -> Outcome {
        Outcome::ProducerClaimed { id: self.id, epoch: self.epoch }
    }

    fn fenced(&self) -> Refusal {
        let Self { name, oldest_epoch, .. } = self;
        let message = format!(
            "another instance of producer {name:?} took over with epoch {oldest_epoch}: close this one, or give each \
             instance a name of its own"
        );
        refusal(Reason::ProducerFenced, message)
    }

    /// The instance that holds the name asks again. Whether anything changed.
    fn renew(&mut self, renews: Option<ProducerEpoch>) -> Result<bool, Refusal> {
        // An epoch after that one was handed out already, to an answer that was lost or to another partition.
        if renews != Some(self.epoch) {
            return Ok(false);
        }
        self.epoch = after(self.epoch).ok_or_else(|| {
            let message = format!("producer {:?} has used up its epochs: build it again", self.name);
            refusal(Reason::FailedPrecondition, message)
        })?;
        Ok(true)
    }

    /// Another instance takes over.
    fn replace(&mut self, instance: u64) {
        let before = std::mem::replace(&mut self.instance, instance);
        if before != 0 {
            self.former.insert(0, before);
            self.former.truncate(FORMER_INSTANCES_MAX);
        }
    }
}

impl Catalog {
    /// Every named producer, by name.
    pub fn named_producers(&self) -> impl ExactSizeIterator<Item = &NamedProducer> {
        self.producers.iter()
    }

    /// The named producer that has this id, or had it until its epochs were used up.
    pub fn named_producer(&self, id: ProducerId) -> Option<&NamedProducer> {
        self.producers.by_id(id)
    }

    pub(super) fn claim_producer(&mut self, name: String, claim: Claim) -> Result<Outcome, Refusal> {
        check(&name)?;
        let Claim { instance, renews, now_ms } = claim;
        let Some(known) = self.producers.by_name.get_mut(&name) else {
            return match renews {
                Some(_) => Err(forgotten(&name)),
                None => self.name_producer(name, instance, now_ms),
            };
        };
        if instance != 0 && instance == known.instance {
            self.version += u64::from(known.renew(renews)?);
            return Ok(known.outcome());
        }
        if renews.is_some() || known.former.contains(&instance) {
            return Err(known.fenced());
        }
        let (id, epoch) = match after(known.epoch) {
            Some(epoch) => (known.id, epoch),
            None => (take_ids(&mut self.next_producer_id, 1)?, ProducerEpoch::new(0)),
        };
        if id != known.id {
            if let Some(retired) = known.retired.replace(known.id) {
                self.producers.names.remove(&retired);
            }
            self.producers.names.insert(id, name);
        }
        known.replace(instance);
        (known.id, known.epoch, known.oldest_epoch) = (id, epoch, epoch);
        known.claimed_ms = known.claimed_ms.max(now_ms);
        self.version += 1;
        Ok(known.outcome())
    }

    fn name_producer(&mut self, name: String, instance: u64, now_ms: i64) -> Result<Outcome, Refusal> {
        self.producers.make_room(now_ms)?;
        let id = take_ids(&mut self.next_producer_id, 1)?;
        let epoch = ProducerEpoch::new(0);
        let (former, retired) = (Vec::new(), None);
        self.producers.names.insert(id, name.clone());
        let named = NamedProducer {
            name: name.clone(),
            id,
            epoch,
            oldest_epoch: epoch,
            instance,
            former,
            claimed_ms: now_ms,
            retired,
        };
        let outcome = named.outcome();
        self.producers.by_name.insert(name, named);
        self.version += 1;
        Ok(outcome)
    }
}

/// Takes so many ids from the sequence that gives none twice.
pub(super) fn take_ids(next: &mut ProducerId, count: u32) -> Result<ProducerId, Refusal> {
    let start = *next;
    let Some(end) = start.get().checked_add(count.into()) else {
        return Err(refusal(Reason::LimitReached, "the cluster has no producer id left: start a new cluster"));
    };
    *next = ProducerId::new(end);
    Ok(start)
}

fn after(epoch: ProducerEpoch) -> Option<ProducerEpoch> {
    epoch.get().checked_add(1).map(ProducerEpoch::new)
}

/// The rules are those of topic names.
fn check(name: &str) -> Result<(), Refusal> {
    match name.parse::<TopicName>() {
        Ok(_) => Ok(()),
        Err(error) => {
            let shown: String = name.chars().take(limits::TOPIC_NAME_BYTES_MAX).collect();
            let message = format!("{shown:?} can't name a producer; the rules are those of topics: {error}");
            Err(refusal(Reason::InvalidName, message))
        }
    }
}

fn forgotten(name: &str) -> Refusal {
    let message =
        format!("the cluster has forgotten producer {name:?}, as its name was not claimed for long: build it again");
    refusal(Reason::ProducerFenced, message)
}
