//! What was read against what was published: pure, over two lists. It knows nothing of brokers.
//!
//! ```text
//!   acknowledged at offset o  =>  read exactly once, at o
//!   rejected                  =>  never read
//!   unknown                   =>  read once or never
//!   read                      =>  published by somebody; offsets without a gap; each producer's records in its order
//! ```
//! Whoever reads must have read to the end: what lies behind the last record read is judged as lost.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

/// One record: the `number`-th of `producer`. Its value on the wire is `p<producer>-<number>`, unique in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    /// Who published it.
    pub producer: u32,
    /// Its place among that producer's records.
    pub number: u64,
}

impl RecordId {
    /// Of a value as [`fmt::Display`] writes it, perhaps followed by a space and any bytes.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let word = value.split(|byte| *byte == b' ').next()?;
        let word = std::str::from_utf8(word).ok()?;
        let (producer, number) = word.strip_prefix('p')?.split_once('-')?;
        Some(Self { producer: producer.parse().ok()?, number: number.parse().ok()? })
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}-{}", self.producer, self.number)
    }
}

/// An offset of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.partition, self.offset)
    }
}

/// What a producer was told of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Stored there, for ever.
    Acknowledged(Place),
    /// Not stored, and it never will be.
    Rejected(String),
    /// Nobody knows.
    Unknown(String),
}

/// A record and its fate, in the order of publishing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The record.
    pub id: RecordId,
    /// Its fate.
    pub outcome: Outcome,
}

/// A record as it was read, in the order of reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRecord {
    /// Where.
    pub place: Place,
    /// What; `None` when it is no value of ours.
    pub id: Option<RecordId>,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anomaly {
    /// Acknowledged and not read.
    Lost(RecordId, Place),
    /// Acknowledged there, read elsewhere and not there.
    Misplaced(RecordId, Place, Vec<Place>),
    /// Read at more than one place.
    Duplicated(RecordId, Vec<Place>),
    /// Read, though it was rejected.
    Undead(RecordId, Place),
    /// Read, though nobody published it.
    Foreign(Place),
    /// Two records acknowledged at one place.
    Shared(Place, RecordId, RecordId),
    /// Within a partition, a record read after a later one of the same producer.
    Reordered(Place, RecordId, RecordId),
    /// Within a partition, the offset read is not the one after the last.
    Jump(Place, u64),
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |places: &[Place]| places.iter().map(Place::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::Lost(id, place) => write!(f, "{id} was acknowledged at {place} and is not there nor elsewhere"),
            Self::Misplaced(id, at, found) => write!(f, "{id} was acknowledged at {at} but read at {}", list(found)),
            Self::Duplicated(id, found) => write!(f, "{id} was read more than once: at {}", list(found)),
            Self::Undead(id, place) => write!(f, "{id} was rejected but read at {place}"),
            Self::Foreign(place) => write!(f, "nobody published what was read at {place}"),
            Self::Shared(place, first, second) => write!(f, "{first} and {second} were both acknowledged at {place}"),
            Self::Reordered(place, earlier, later) => write!(f, "{earlier} was read at {place}, after {later}"),
            Self::Jump(place, expected) => write!(f, "offset {expected} was expected, {place} was read"),
        }
    }
}

/// What a sound history amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records acknowledged, all of them read.
    pub acknowledged: usize,
    /// Records rejected, none of them read.
    pub rejected: usize,
    /// Records of unknown fate.
    pub unknown: usize,
    /// Those of them that were read.
    pub unknown_read: usize,
}

/// Checks a history that was read from offset 0.
///
/// # Errors
/// Every anomaly there is.
pub fn verify(published: &[Published], read: &[ReadRecord]) -> Result<Tally, Vec<Anomaly>> {
    verify_from(&BTreeMap::new(), published, read)
}

/// Checks a history that was read from these log starts on (by partition; 0 where none is given): records
/// acknowledged below are not expected.
///
/// # Errors
/// Every anomaly there is.
pub fn verify_from(
    starts: &BTreeMap<u32, u64>,
    published: &[Published],
    read: &[ReadRecord],
) -> Result<Tally, Vec<Anomaly>> {
    let mut anomalies = Vec::new();
    let mut places: HashMap<RecordId, Vec<Place>> = HashMap::new();
    for record in read {
        if let Some(id) = record.id {
            places.entry(id).or_default().push(record.place);
        }
    }
    let start = |partition| starts.get(&partition).copied().unwrap_or(0);
    let tally = check_outcomes(published, &places, start, &mut anomalies);
    check_reading(published, read, start, &mut anomalies);
    for (id, found) in places.into_iter().filter(|(_, found)| found.len() > 1) {
        anomalies.push(Anomaly::Duplicated(id, found));
    }
    if anomalies.is_empty() { Ok(tally) } else { Err(anomalies) }
}

/// Each outcome against where the record was read.
fn check_outcomes(
    published: &[Published],
    places: &HashMap<RecordId, Vec<Place>>,
    start: impl Fn(u32) -> u64,
    anomalies: &mut Vec<Anomaly>,
) -> Tally {
    let mut tally = Tally::default();
    let mut acknowledged: HashMap<Place, RecordId> = HashMap::new();
    for Published { id, outcome } in published {
        let found = places.get(id).map(Vec::as_slice).unwrap_or_default();
        match outcome {
            Outcome::Acknowledged(at) => {
                tally.acknowledged += 1;
                if let Some(other) = acknowledged.insert(*at, *id) {
                    anomalies.push(Anomaly::Shared(*at, other, *id));
                }
                if at.offset < start(at.partition) {
                    continue;
                }
                match found {
                    [] => anomalies.push(Anomaly::Lost(*id, *at)),
                    found if !found.contains(at) => anomalies.push(Anomaly::Misplaced(*id, *at, found.to_vec())),
                    _ => {}
                }
            }
            Outcome::Rejected(_) => {
                tally.rejected += 1;
                anomalies.extend(found.first().map(|place| Anomaly::Undead(*id, *place)));
            }
            Outcome::Unknown(_) => {
                tally.unknown += 1;
                tally.unknown_read += usize::from(!found.is_empty());
            }
        }
    }
    tally
}

/// What was read, partition by partition, in itself: known records, dense offsets, each producer's order.
fn check_reading(
    published: &[Published],
    read: &[ReadRecord],
    start: impl Fn(u32) -> u64,
    anomalies: &mut Vec<Anomaly>,
) {
    let known: std::collections::HashSet<RecordId> = published.iter().map(|published| published.id).collect();
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    let mut last: HashMap<(u32, u32), RecordId> = HashMap::new();
    for ReadRecord { place, id } in read {
        let expected = next.entry(place.partition).or_insert_with(|| start(place.partition));
        if place.offset != *expected {
            anomalies.push(Anomaly::Jump(*place, *expected));
        }
        *expected = place.offset + 1;
        let Some(id) = id.filter(|id| known.contains(id)) else {
            anomalies.push(Anomaly::Foreign(*place));
            continue;
        };
        let before = last.insert((place.partition, id.producer), id);
        // Equal numbers are a duplicate, told once elsewhere.
        if let Some(before) = before.filter(|before| before.number > id.number) {
            anomalies.push(Anomaly::Reordered(*place, id, before));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(number: u64) -> RecordId {
        RecordId { producer: 1, number }
    }

    const fn at(offset: u64) -> Place {
        Place { partition: 0, offset }
    }

    fn acknowledged(number: u64, offset: u64) -> Published {
        Published { id: id(number), outcome: Outcome::Acknowledged(at(offset)) }
    }

    fn read(offset: u64, number: u64) -> ReadRecord {
        ReadRecord { place: at(offset), id: Some(id(number)) }
    }

    fn three() -> Vec<Published> {
        vec![acknowledged(0, 0), acknowledged(1, 1), acknowledged(2, 2)]
    }

    #[test]
    fn sound_histories_pass() {
        let rejected = |number| Published { id: id(number), outcome: Outcome::Rejected("x".into()) };
        let unknown = |number| Published { id: id(number), outcome: Outcome::Unknown("x".into()) };
        let tally = Tally { acknowledged: 2, rejected: 1, unknown: 2, unknown_read: 1 };
        let published = [acknowledged(0, 0), unknown(1), rejected(2), acknowledged(3, 2), unknown(4)];
        assert_eq!(verify(&published, &[read(0, 0), read(1, 1), read(2, 3)]), Ok(tally));
        assert_eq!(verify(&[], &[]), Ok(Tally::default()));
    }

    #[test]
    fn each_anomaly_is_found_by_name() {
        let misplaced =
            vec![Anomaly::Misplaced(id(1), at(1), vec![at(2)]), Anomaly::Misplaced(id(2), at(2), vec![at(1)])];
        for (name, read, want) in [
            ("the last is lost", vec![read(0, 0), read(1, 1)], vec![Anomaly::Lost(id(2), at(2))]),
            (
                "the middle is lost",
                vec![read(0, 0), read(2, 2)],
                vec![Anomaly::Lost(id(1), at(1)), Anomaly::Jump(at(2), 1)],
            ),
            (
                "stored twice",
                vec![read(0, 0), read(1, 1), read(2, 2), read(3, 2)],
                vec![Anomaly::Duplicated(id(2), vec![at(2), at(3)])],
            ),
            (
                "read twice",
                vec![read(0, 0), read(1, 1), read(1, 1), read(2, 2)],
                vec![Anomaly::Jump(at(1), 2), Anomaly::Duplicated(id(1), vec![at(1), at(1)])],
            ),
            (
                "swapped",
                vec![read(0, 0), read(1, 2), read(2, 1)],
                [misplaced, vec![Anomaly::Reordered(at(2), id(1), id(2))]].concat(),
            ),
            (
                "a value of nobody",
                vec![read(0, 0), read(1, 1), read(2, 2), read(3, 9), ReadRecord { place: at(4), id: None }],
                vec![Anomaly::Foreign(at(3)), Anomaly::Foreign(at(4))],
            ),
        ] {
            assert_eq!(verify(&three(), &read), Err(want), "{name}");
        }
    }

    #[test]
    fn the_rejected_stay_away_and_no_place_is_given_twice() {
        let rejected = Published { id: id(1), outcome: Outcome::Rejected("no".into()) };
        let undead = verify(&[acknowledged(0, 0), rejected], &[read(0, 0), read(1, 1)]);
        assert_eq!(undead, Err(vec![Anomaly::Undead(id(1), at(1))]));
        let shared = verify(&[acknowledged(0, 0), acknowledged(1, 0)], &[read(0, 0)]);
        assert_eq!(shared, Err(vec![Anomaly::Shared(at(0), id(0), id(1)), Anomaly::Lost(id(1), at(0))]));
    }

    #[test]
    fn order_counts_within_a_partition_and_producer_only() {
        let place = |partition, offset| Place { partition, offset };
        let record = |producer, number, place| {
            let id = RecordId { producer, number };
            (Published { id, outcome: Outcome::Acknowledged(place) }, ReadRecord { place, id: Some(id) })
        };
        let (published, read): (Vec<_>, Vec<_>) = [
            record(1, 5, place(0, 0)),
            record(2, 0, place(0, 1)),
            record(1, 4, place(1, 0)),
            record(1, 6, place(0, 2)),
        ]
        .into_iter()
        .unzip();
        assert_eq!(verify(&published, &read), Ok(Tally { acknowledged: 4, ..Tally::default() }));
    }

    #[test]
    fn what_retention_removed_is_not_expected() {
        let starts = BTreeMap::from([(0, 1)]);
        let tally = Tally { acknowledged: 3, ..Tally::default() };
        assert_eq!(verify_from(&starts, &three(), &[read(1, 1), read(2, 2)]), Ok(tally));
        let lost = vec![Anomaly::Lost(id(1), at(1)), Anomaly::Jump(at(2), 1)];
        assert_eq!(verify_from(&starts, &three(), &[read(2, 2)]), Err(lost));
    }

    #[test]
    fn values_name_their_record() {
        for (value, want) in [
            ("p1-0", Some(id(0))),
            ("p1-17 ......", Some(id(17))),
            ("p1-", None),
            ("1-1", None),
            ("p1-1x", None),
            ("", None),
        ] {
            assert_eq!(RecordId::parse(value.as_bytes()), want, "{value}");
        }
        assert_eq!(RecordId::parse(b"p1-0 \xff \xff"), Some(id(0)));
        assert_eq!(RecordId::parse(id(3).to_string().as_bytes()), Some(id(3)));
    }
}
