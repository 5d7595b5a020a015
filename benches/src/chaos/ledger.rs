//! Who is missing, doubled or out of order, and how long each partition stood still. Pure but for the clock that it is
//! given.
//!
//! Every record names itself: producer, key, and number within the key. A key's records go to one partition, so within a
//! key the numbers must come in order. A record that comes again from the same place was *delivered again*, which a
//! group is allowed to do; from another place it was *stored twice*, which nothing is allowed to.

use crate::load::{
    clock::{Clock, Nanos},
    meter::Latencies,
};

/// Keys of each producer.
pub(super) const KEYS: u32 = 64;

/// A record's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) producer: u32,
    pub(super) key: u32,
    /// Within the key, from 0.
    pub(super) number: u32,
}

impl Name {
    /// Bytes of an encoded name.
    pub(super) const BYTES: usize = 12;

    pub(super) fn encode(self, value: &mut [u8]) {
        for (part, bytes) in [self.producer, self.key, self.number].into_iter().zip(value.chunks_exact_mut(4)) {
            bytes.copy_from_slice(&part.to_be_bytes());
        }
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let mut parts = value.get(..Self::BYTES)?.chunks_exact(4).filter_map(|part| part.try_into().ok());
        let mut next = || parts.next().map(u32::from_be_bytes);
        Some(Self { producer: next()?, key: next()?, number: next()? })
    }
}

/// What a producer was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Pending,
    Acknowledged,
    /// Certainly not stored.
    Rejected,
    /// May be stored.
    Unknown,
}

/// Where a record was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) partition: u32,
    pub(super) offset: u64,
}

#[derive(Clone, Copy)]
struct Line {
    begun: Nanos,
    fate: Fate,
    first: Option<Place>,
}

#[derive(Clone, Default)]
struct Key {
    lines: Vec<Line>,
    /// The highest number that was done.
    newest: Option<u32>,
}

/// What a partition did since the last cut.
#[derive(Clone, Copy)]
struct Partition {
    last: Nanos,
    holder: Option<u32>,
    longest: u64,
    moved: bool,
}

/// How large a run is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) producers: u32,
    pub(super) partitions: u32,
}

/// The counts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Count {
    pub(super) acknowledged: u64,
    pub(super) rejected: u64,
    pub(super) unknown: u64,
    /// Of the acknowledged: not done yet.
    pub(super) missing: u64,
    /// Told to be rejected, and yet done.
    pub(super) rejected_yet_stored: u64,
    pub(super) stored_twice: u64,
    pub(super) delivered_again: u64,
    pub(super) reordered: u64,
    /// Values that are none of this run's.
    pub(super) foreign: u64,
}

/// A partition's longest pause since the last cut, and whether it changed hands meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) nanos: u64,
    pub(super) moved: bool,
}

/// See the module.
pub(super) struct Ledger {
    clock: Clock,
    keys: Vec<Key>,
    partitions: Vec<Partition>,
    tally: Count,
    /// From a record's beginning to its first being done.
    delays: Latencies,
}

impl Ledger {
    pub(super) fn new(clock: Clock, shape: Shape) -> Self {
        let idle = Partition { last: clock.now(), holder: None, longest: 0, moved: false };
        Self {
            clock,
            keys: vec![Key::default(); (shape.producers * KEYS) as usize],
            partitions: vec![idle; shape.partitions as usize],
            tally: Count::default(),
            delays: Latencies::new(),
        }
    }

    /// A new record of a key, about to be sent.
    pub(super) fn begin(&mut self, producer: u32, key: u32) -> Name {
        let begun = self.clock.now();
        let lines = &mut self.keys[(producer * KEYS + key) as usize].lines;
        let number = u32::try_from(lines.len()).unwrap_or(u32::MAX);
        lines.push(Line { begun, fate: Fate::Pending, first: None });
        Name { producer, key, number }
    }

    /// What its producer was told.
    pub(super) fn told(&mut self, name: Name, fate: Fate) {
        let Some(line) = self.line(name) else { return };
        line.fate = fate;
        let stored = line.first.is_some();
        match fate {
            Fate::Acknowledged => self.tally.acknowledged += 1,
            Fate::Rejected => {
                self.tally.rejected += 1;
                self.tally.rejected_yet_stored += u64::from(stored);
            }
            Fate::Unknown => self.tally.unknown += 1,
            Fate::Pending => {}
        }
    }

    /// A member has done this value.
    pub(super) fn done(&mut self, member: u32, place: Place, value: &[u8]) {
        let now = self.clock.now();
        self.pass(member, place.partition, now);
        let Some(name) = Name::decode(value).filter(|name| self.line(*name).is_some()) else {
            self.tally.foreign += 1;
            return;
        };
        let key = &mut self.keys[(name.producer * KEYS + name.key) as usize];
        let line = &mut key.lines[name.number as usize];
        match line.first {
            Some(first) if first == place => self.tally.delivered_again += 1,
            Some(_) => self.tally.stored_twice += 1,
            None => {
                line.first = Some(place);
                self.delays.record(line.begun, now);
                self.tally.rejected_yet_stored += u64::from(line.fate == Fate::Rejected);
                self.tally.reordered += u64::from(key.newest.is_some_and(|newest| newest > name.number));
                key.newest = key.newest.max(Some(name.number));
            }
        }
    }

    fn line(&mut self, name: Name) -> Option<&mut Line> {
        let known = name.key < KEYS;
        let key = self.keys.get_mut(name.producer.checked_mul(KEYS)?.checked_add(name.key)? as usize)?;
        key.lines.get_mut(name.number as usize).filter(|_| known)
    }

    fn pass(&mut self, member: u32, partition: u32, now: Nanos) {
        let Some(seen) = self.partitions.get_mut(partition as usize) else { return };
        seen.longest = seen.longest.max(now.since(seen.last));
        seen.moved |= seen.holder.is_some_and(|holder| holder != member);
        (seen.last, seen.holder) = (now, Some(member));
    }

    /// The pauses since the last cut, one a partition; a pause that goes on counts up to now, and goes on counting.
    pub(super) fn cut(&mut self) -> Vec<Pause> {
        let now = self.clock.now();
        let pause = |seen: &mut Partition| {
            let nanos = seen.longest.max(now.since(seen.last));
            let moved = std::mem::take(&mut seen.moved);
            seen.longest = 0;
            Pause { nanos, moved }
        };
        self.partitions.iter_mut().map(pause).collect()
    }

    /// How long records took from being sent to being done, since this was last asked.
    pub(super) fn take_delays(&mut self) -> Latencies {
        std::mem::replace(&mut self.delays, Latencies::new())
    }

    /// The counts so far.
    pub(super) fn count(&self) -> Count {
        let lines = self.keys.iter().flat_map(|key| &key.lines);
        let missing = lines.filter(|line| line.fate == Fate::Acknowledged && line.first.is_none()).count();
        Count { missing: missing as u64, ..self.tally }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: Name) -> Vec<u8> {
        let mut value = vec![0; 20];
        name.encode(&mut value);
        value
    }

    fn at(offset: u64) -> Place {
        Place { partition: 0, offset }
    }

    fn ledger() -> Ledger {
        Ledger::new(Clock::start(), Shape { producers: 2, partitions: 1 })
    }

    #[test]
    fn a_record_is_its_value() {
        let name = Name { producer: 1, key: 63, number: 7 };
        assert_eq!(Name::decode(&value(name)), Some(name));
        assert_eq!(Name::decode(&[0; 11]), None);
    }

    #[test]
    fn each_anomaly_is_told_apart() {
        let mut ledger = ledger();
        let names: Vec<Name> = (0..5).map(|_| ledger.begin(1, 3)).collect();
        for name in &names[..3] {
            ledger.told(*name, Fate::Acknowledged);
        }
        ledger.told(names[3], Fate::Rejected);
        ledger.told(names[4], Fate::Unknown);
        assert_eq!(ledger.count().missing, 3);
        ledger.done(0, at(0), &value(names[0]));
        ledger.done(0, at(0), &value(names[0]));
        ledger.done(0, at(2), &value(names[2]));
        ledger.done(0, at(3), &value(names[2]));
        ledger.done(0, at(4), &value(names[1]));
        ledger.done(0, at(5), &value(names[3]));
        ledger.done(0, at(6), b"somebody else's record");
        let count = ledger.count();
        assert_eq!((count.acknowledged, count.rejected, count.unknown, count.missing), (3, 1, 1, 0));
        assert_eq!((count.delivered_again, count.stored_twice, count.reordered), (1, 1, 1));
        assert_eq!((count.rejected_yet_stored, count.foreign), (1, 1));
    }

    #[test]
    fn pauses_are_told_by_hands() {
        let mut ledger = ledger();
        let name = ledger.begin(0, 0);
        ledger.done(0, at(0), &value(name));
        assert!(!ledger.cut()[0].moved);
        ledger.done(1, at(0), &value(name));
        assert!(ledger.cut()[0].moved);
        assert!(!ledger.cut()[0].moved, "a cut begins anew");
    }
}
