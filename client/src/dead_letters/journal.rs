//! What was replayed of a topic of dead letters is written down in a topic beside it, `<topic>.replays`, by one writer at a
//! time: **before** the records of an entry are published. The next entry is written only when all of them are stored, so
//! only the last one may be unfinished, and an `end` says that it is not.
//!
//! ```text
//!  5f0c..e1 3 17-25,30 orders      letters 17 to 25 and 30 of partition 3 are published to "orders" now
//!  5f0c..e1 3 31-40 orders         .. they were; these now
//!  end                             .. and these were
//! ```
//! The first word is the id of the topic of dead letters: what was replayed of a topic that was deleted says nothing of
//! another one of its name.

use std::{collections::BTreeMap, fmt, str::FromStr};

use busbar_proto::{Offset, TopicId};

use crate::group::Ranges;

/// What is appended to the name of the topic of dead letters.
const SUFFIX: &str = ".replays";

/// The journal's name.
pub(super) fn name_of(topic: &str) -> String {
    format!("{topic}{SUFFIX}")
}

/// One record of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// These letters are about to be published.
    Replay(Batch),
    /// Those of the entry before are stored.
    End,
}

/// Letters of one partition that are published to one topic together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// The id of the letters' topic.
    pub(super) of: TopicId,
    /// The letters' partition.
    pub(super) partition: u32,
    pub(super) letters: Ranges,
    pub(super) to: String,
}

/// A record of the journal that nobody of us has written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no entry of a journal of replays")]
pub(super) struct NoEntry(String);

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Replay(Batch { of, partition, letters, to }) = self else { return f.write_str("end") };
        write!(f, "{of} {partition} ")?;
        for (place, (start, end)) in letters.iter().enumerate() {
            let (first, last) = (start.get(), end.get() - 1);
            f.write_str(if place == 0 { "" } else { "," })?;
            match first == last {
                true => write!(f, "{first}")?,
                false => write!(f, "{first}-{last}")?,
            }
        }
        write!(f, " {to}")
    }
}

impl FromStr for Entry {
    type Err = NoEntry;

    fn from_str(text: &str) -> Result<Self, NoEntry> {
        let no_entry = || NoEntry(text.chars().take(100).collect());
        if text == "end" {
            return Ok(Self::End);
        }
        let mut words = text.split(' ');
        let mut word = || words.next().ok_or_else(no_entry);
        let (of, partition, offsets, to) = (word()?, word()?, word()?, word()?);
        if words.next().is_some() {
            return Err(no_entry());
        }
        let of = of.parse().map_err(|_| no_entry())?;
        let number = |text: &str| text.parse::<u64>().ok().filter(|&offset| offset < u64::MAX);
        let mut letters = Ranges::default();
        for range in offsets.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = number(first).zip(number(last)).ok_or_else(no_entry)?;
            if first > last {
                return Err(no_entry());
            }
            letters.insert(Offset::new(first), Offset::new(last + 1));
        }
        let partition = partition.parse().map_err(|_| no_entry())?;
        Ok(Self::Replay(Batch { of, partition, letters, to: to.to_owned() }))
    }
}

/// What a journal says, read from its beginning. Pure.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    replayed: BTreeMap<u32, Ranges>,
    /// The entry that may not be finished, and its offset in the journal.
    open: Option<(u64, Batch)>,
}

impl History {
    /// Takes over the entry at `offset`, which comes after all others; `topic` is the one of dead letters as it is now.
    pub(super) fn add(&mut self, topic: TopicId, offset: u64, entry: Entry) {
        self.open = match entry {
            Entry::End => None,
            Entry::Replay(batch) if batch.of != topic => None,
            Entry::Replay(batch) => {
                let replayed = self.replayed.entry(batch.partition).or_default();
                batch.letters.iter().for_each(|(start, end)| replayed.insert(start, end));
                Some((offset, batch))
            }
        };
    }

    /// Whether a replay of the letter was begun.
    pub(super) fn contains(&self, partition: u32, offset: u64) -> bool {
        self.replayed.get(&partition).is_some_and(|replayed| replayed.contains(Offset::new(offset)))
    }

    /// The entry whose records may be stored only in part.
    pub(super) fn unfinished(&self) -> Option<&(u64, Batch)> {
        self.open.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: TopicId = TopicId::from_bytes([0xab; 16]);

    proptest! {
        #[test]
        fn entries_are_read_as_they_were_written(
            partition in any::<u32>(),
            offsets in prop::collection::vec((0..u64::MAX - 100, 1_u64..50), 1..50),
            to in "[a-zA-Z0-9._-]{1,249}",
        ) {
            let mut letters = Ranges::default();
            for (start, length) in offsets {
                letters.insert(Offset::new(start), Offset::new(start + length));
            }
            let entry = Entry::Replay(Batch { of: NOW, partition, letters, to });
            prop_assert_eq!(entry.to_string().parse(), Ok(entry));
        }

        #[test]
        fn nonsense_is_refused_not_believed(text in "([0-9a-f]{32} )?[0-9a-z ,-]{0,40}") {
            if let Ok(entry) = text.parse::<Entry>() {
                prop_assert_eq!(entry.to_string().parse(), Ok(entry));
            }
        }
    }

    #[test]
    fn only_the_last_entry_may_be_unfinished() {
        let entry = |text: &str| format!("{NOW} {text}").parse::<Entry>().expect("an entry");
        assert_eq!(entry("3 17-25,30 orders").to_string(), format!("{} 3 17-25,30 orders", "ab".repeat(16)));
        let mut history = History::default();
        assert!(history.unfinished().is_none() && !history.contains(3, 17));
        history.add(NOW, 0, entry("3 17-25,30 orders"));
        history.add(NOW, 1, entry("0 4 orders"));
        assert!(history.contains(3, 17) && history.contains(3, 30) && history.contains(0, 4));
        assert!(!history.contains(3, 26) && !history.contains(4, 4));
        assert_eq!(history.unfinished().map(|(offset, batch)| (*offset, batch.partition)), Some((1, 0)));
        history.add(NOW, 2, Entry::End);
        assert!(history.unfinished().is_none() && history.contains(0, 4));
        // Another topic has the name by now.
        let mut later = History::default();
        later.add(TopicId::from_bytes([1; 16]), 0, entry("3 17-25,30 orders"));
        assert!(later.unfinished().is_none() && !later.contains(3, 17));
    }

    #[test]
    fn what_no_replay_has_written_is_refused() {
        for wrong in ["", "3", "3 17", "3 25-17 t", "3 1,, t", "x 1 t", "3 1 t t", "3 18446744073709551615 t"] {
            assert!(format!("{NOW} {wrong}").parse::<Entry>().is_err(), "{wrong}");
        }
        for wrong in ["", "end ", "3 1 t", "ab 3 1 t"] {
            assert!(wrong.parse::<Entry>().is_err(), "{wrong}");
        }
    }
}
