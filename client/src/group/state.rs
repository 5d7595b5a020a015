//! What a group remembers of a partition beside its committed offset: the bytes of `Committed.state`. Pure codec,
//! versioned, bounded.
//!
//! ```text
//!  version u8 = 1 | mark | count, (gap, length)*  done | count, (gap, deliveries*2 + out, first_ms, wait_ms)*  past
//!  version u8 = 2 | the same | count, (u64, little-endian)*  seen, oldest first
//! ```
//! Version 2 is written where there is something of it, so that members that know 1 only read the others. Numbers are
//! LEB128; mark and gaps count from the committed offset, or from the end of the entry before. Every
//! record below the mark that is not done may have been handed out when this was written; `past` tells what is known
//! of some of them; `seen` are the identities of what was acknowledged last.
//!
//! Invariants: decoding is total, and allocates nothing by a declared length; what was encoded decodes to the same,
//! but for the oldest of `seen` where they would not fit into [`STATE_BYTES_MAX`].

use std::{collections::BTreeMap, time::Duration};

use busbar_proto::{Offset, limits};
use bytes::Bytes;

use super::ranges::Ranges;

const VERSION: u8 = 1;
const VERSION_WITH_SEEN: u8 = 2;
/// The most that a coordinator stores for a partition.
pub(crate) const STATE_BYTES_MAX: usize = limits::COMMIT_STATE_BYTES_MAX;
/// Bytes of the longest number.
const NUMBER_BYTES_MAX: usize = 10;
/// Bytes of an identity.
const ID_BYTES: usize = size_of::<u64>();
/// Bytes of `past` beside its gap: deliveries, first time, wait.
const PAST_BYTES_MAX: usize = 5 + NUMBER_BYTES_MAX + 6;
/// Longest wait that is remembered, and longest pause before a redelivery: fits 6 bytes in milliseconds.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

const _: () = assert!(WAIT_MAX.as_millis() < 1 << 42);

/// What is known of the deliveries of a record that is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Past {
    /// Times it was handed out.
    pub(crate) deliveries: u32,
    /// The last of them was not known to have ended.
    pub(crate) out: bool,
    /// When it was first handed out, in milliseconds since the Unix epoch.
    pub(crate) first_ms: i64,
    /// How long it still had to wait for the next delivery.
    pub(crate) wait: Duration,
}

/// Everything beside the committed offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Records done beyond the committed offset.
    pub(crate) done: Ranges,
    /// Below this, what is not done may have been handed out. Never below the committed offset.
    pub(crate) mark: Offset,
    pub(crate) past: BTreeMap<Offset, Past>,
    /// Identities of records that were acknowledged last, oldest first.
    pub(crate) seen: Vec<u64>,
}

/// Bytes that are no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StateError {
    #[error("version {0} is not known here")]
    Version(u8),
    #[error("the bytes end too early, or are too many")]
    Length,
    #[error("a number is out of range")]
    Range,
}

impl State {
    /// Of a partition that nothing is remembered of.
    pub(crate) fn fresh(offset: Offset) -> Self {
        Self { mark: offset, ..Self::default() }
    }

    /// The most bytes that so many ranges, pasts and identities take, all of them within `span` offsets.
    pub(crate) fn bytes_max(ranges: usize, pasts: usize, span: u64, ids: usize) -> usize {
        let number = number_bytes(span);
        1 + 4 * NUMBER_BYTES_MAX + ranges * 2 * number + pasts * (number + PAST_BYTES_MAX) + ids * ID_BYTES
    }

    pub(crate) fn encode(&self, offset: Offset) -> Bytes {
        let Self { done, mark, past, seen } = self;
        let mut out = vec![if seen.is_empty() { VERSION } else { VERSION_WITH_SEEN }];
        put(&mut out, mark.distance_from(offset));
        put(&mut out, done.count() as u64);
        let mut at = offset;
        for (start, end) in done.iter() {
            put(&mut out, start.distance_from(at));
            put(&mut out, end.distance_from(start));
            at = end;
        }
        put(&mut out, past.len() as u64);
        let mut at = offset;
        for (&offset, past) in past {
            put(&mut out, offset.distance_from(at));
            put(&mut out, u64::from(past.deliveries) << 1 | u64::from(past.out));
            put(&mut out, past.first_ms.max(0) as u64);
            put(&mut out, past.wait.min(WAIT_MAX).as_millis() as u64);
            at = offset;
        }
        if !seen.is_empty() {
            let room = STATE_BYTES_MAX.saturating_sub(out.len() + NUMBER_BYTES_MAX) / ID_BYTES;
            let newest = seen.get(seen.len().saturating_sub(room)..).unwrap_or_default();
            put(&mut out, newest.len() as u64);
            newest.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        }
        out.into()
    }

    /// Of the state that was committed with `offset`. No bytes at all are a fresh one.
    pub(crate) fn decode(offset: Offset, bytes: &[u8]) -> Result<Self, StateError> {
        let Some((&version, mut rest)) = bytes.split_first() else { return Ok(Self::fresh(offset)) };
        if ![VERSION, VERSION_WITH_SEEN].contains(&version) {
            return Err(StateError::Version(version));
        }
        let from = &mut rest;
        let mut state = Self { mark: beyond(offset, get(from)?)?, ..Self::default() };
        let mut at = offset;
        for _ in 0..get(from)? {
            let start = beyond(at, get(from)?)?;
            let end = beyond(start, get(from)?)?;
            if start == end {
                return Err(StateError::Range);
            }
            state.done.insert(start, end);
            at = end;
        }
        let mut at = offset;
        for _ in 0..get(from)? {
            let offset = beyond(at, get(from)?)?;
            let raw = get(from)?;
            let past = Past {
                deliveries: u32::try_from(raw >> 1).map_err(|_| StateError::Range)?,
                out: raw & 1 == 1,
                first_ms: i64::try_from(get(from)?).map_err(|_| StateError::Range)?,
                wait: Duration::from_millis(get(from)?).min(WAIT_MAX),
            };
            state.past.insert(offset, past);
            at = offset;
        }
        if version == VERSION_WITH_SEEN {
            for _ in 0..get(from)? {
                let (id, left) = from.split_first_chunk::<ID_BYTES>().ok_or(StateError::Length)?;
                state.seen.push(u64::from_le_bytes(*id));
                *from = left;
            }
        }
        if rest.is_empty() { Ok(state) } else { Err(StateError::Length) }
    }
}

fn beyond(offset: Offset, distance: u64) -> Result<Offset, StateError> {
    // Room is left for "the next one" of every offset.
    let raw = offset.get().checked_add(distance).filter(|&raw| raw < u64::MAX);
    raw.map(Offset::new).ok_or(StateError::Range)
}

fn number_bytes(number: u64) -> usize {
    (u64::BITS as usize - (number | 1).leading_zeros() as usize).div_ceil(7)
}

fn put(out: &mut Vec<u8>, number: u64) {
    let mut rest = number;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn get(from: &mut &[u8]) -> Result<u64, StateError> {
    let mut number = 0_u64;
    for shift in (0..).step_by(7) {
        let (&byte, rest) = from.split_first().ok_or(StateError::Length)?;
        *from = rest;
        let bits = u64::from(byte & 0x7f);
        if shift >= u64::BITS || bits << shift >> shift != bits {
            return Err(StateError::Range);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn past() -> impl Strategy<Value = Past> {
        (any::<u32>(), any::<bool>(), 0..i64::MAX, 0..WAIT_MAX.as_millis() as u64).prop_map(
            |(deliveries, out, first_ms, wait)| Past { deliveries, out, first_ms, wait: Duration::from_millis(wait) },
        )
    }

    fn states() -> impl Strategy<Value = (Offset, State)> {
        let base = prop_oneof![0_u64..1000, (1_u64 << 62)..(1 << 63)];
        let done = prop::collection::vec((1_u64..5000, 1_u64..5000), 0..50);
        let pasts = prop::collection::btree_map(0_u64..100_000, past(), 0..50);
        let seen = prop::collection::vec(any::<u64>(), 0..50);
        (base, done, pasts, 0_u64..100_000, seen).prop_map(|(base, ranges, pasts, mark, seen)| {
            let offset = Offset::new(base);
            let (mut done, mut at) = (Ranges::default(), offset);
            for (gap, length) in ranges {
                done.insert(at.advance(gap), at.advance(gap + length));
                at = at.advance(gap + length);
            }
            let past = pasts.into_iter().map(|(at, past)| (offset.advance(at), past)).collect();
            (offset, State { done, mark: offset.advance(mark), past, seen })
        })
    }

    #[test]
    fn the_bytes_are_these() {
        let offset = Offset::new(1000);
        let mut state = State { mark: Offset::new(1300), ..State::default() };
        state.done.insert(Offset::new(1001), Offset::new(1003));
        let wait = Duration::from_millis(5);
        state.past.insert(offset, Past { deliveries: 3, out: true, first_ms: 1, wait });
        assert_eq!(state.encode(offset)[..], [1, 0xac, 2, 1, 1, 2, 1, 0, 7, 1, 5]);
        state.seen = vec![0x0102_0304_0506_0708];
        let with_seen = [2, 0xac, 2, 1, 1, 2, 1, 0, 7, 1, 5, 1, 8, 7, 6, 5, 4, 3, 2, 1];
        assert_eq!(state.encode(offset)[..], with_seen);
        assert_eq!(State::decode(offset, &[]), Ok(State::fresh(offset)));
        assert_eq!(State::decode(offset, &[3]), Err(StateError::Version(3)));
        assert_eq!(State::decode(offset, &[1, 0, 0, 0, 0]), Err(StateError::Length));
        assert_eq!(State::decode(offset, &with_seen[..19]), Err(StateError::Length));
    }

    #[test]
    fn of_what_was_seen_the_oldest_give_way_to_the_rest() {
        let (offset, mut state) = (Offset::ZERO, State::fresh(Offset::ZERO));
        let ids = STATE_BYTES_MAX as u64 / 8;
        state.seen = (0..ids).collect();
        (0..20_000).for_each(|n| state.done.insert(Offset::new(2 * n + 1), Offset::new(2 * n + 2)));
        let bytes = state.encode(offset);
        assert!(bytes.len() <= STATE_BYTES_MAX);
        let decoded = State::decode(offset, &bytes).expect("what was encoded");
        assert_eq!(decoded.done, state.done);
        assert!(decoded.seen.len() > 3000, "{} are left", decoded.seen.len());
        assert_eq!(decoded.seen[..], state.seen[ids as usize - decoded.seen.len()..]);
    }

    proptest! {
        #[test]
        fn survives_the_trip_within_its_bound((offset, state) in states()) {
            let bytes = state.encode(offset);
            let ends = state.done.iter().map(|(_, end)| end).chain(state.past.keys().copied());
            let span = ends.chain([state.mark]).max().expect("a mark").distance_from(offset);
            prop_assert!(bytes.len() <= State::bytes_max(state.done.count(), state.past.len(), span, state.seen.len()));
            prop_assert_eq!(State::decode(offset, &bytes), Ok(state));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(offset: u64, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = State::decode(Offset::new(offset), &bytes);
            for version in [VERSION, VERSION_WITH_SEEN] {
                let versioned = [&[version][..], &bytes].concat();
                let _ = State::decode(Offset::new(offset), &versioned);
            }
        }
    }
}
