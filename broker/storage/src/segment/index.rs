//! The sparse index of a segment: every so many bytes, which entry stands where.
//!
//! ```text
//!  file: points of 40 bytes, one after the other
//!   0 index u64 · 8 pos u64 · 16 mark u64 · 24 max time i64 · 32 crc u32 of (segment seed, bytes 0..32) · 36 zero u32
//! ```
//! `mark` and `max time` are those of the entries *before* `index`, so that the last point at or below what is
//! searched is always a place from which scanning forward finds it.
//!
//! A point is a hint: the frame at `pos` proves it or not, and any subset of the points is a valid index. So the file
//! is synced only when its segment is sealed, points with a bad crc are skipped, and a lost index is rebuilt by
//! walking the segment.

use crate::frame::{Place, u32_at, u64_at};

/// Bytes of a point.
pub(crate) const POINT: usize = 40;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) index: u64,
    pub(crate) pos: u64,
    pub(crate) mark: u64,
    pub(crate) max_time_ms: i64,
}

impl Point {
    pub(crate) fn encode(&self, place: &Place) -> [u8; POINT] {
        let mut b = [0; POINT];
        b[..8].copy_from_slice(&self.index.to_le_bytes());
        b[8..16].copy_from_slice(&self.pos.to_le_bytes());
        b[16..24].copy_from_slice(&self.mark.to_le_bytes());
        b[24..32].copy_from_slice(&self.max_time_ms.to_le_bytes());
        let crc = place.crc(0, &b[..32]);
        b[32..36].copy_from_slice(&crc.to_le_bytes());
        b
    }

    fn decode(b: &[u8], place: &Place) -> Option<Point> {
        (u32_at(b, 32) == place.crc(0, &b[..32])).then(|| Point {
            index: u64_at(b, 0),
            pos: u64_at(b, 8),
            mark: u64_at(b, 16),
            max_time_ms: u64_at(b, 24) as i64,
        })
    }
}

/// The valid, ascending points below `end`.
pub(crate) fn decode_points(bytes: &[u8], place: &Place, end: u64) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::with_capacity(bytes.len() / POINT);
    for point in bytes.chunks_exact(POINT).filter_map(|b| Point::decode(b, place)) {
        let ascends = points.last().is_none_or(|last| last.index < point.index && last.pos < point.pos);
        if ascends && point.pos < end {
            points.push(point);
        }
    }
    points
}

/// Collects points while frames go by, in order.
#[derive(Clone, Debug)]
pub(crate) struct PointMaker {
    interval: u64,
    last_pos: u64,
    mark: u64,
    max_time_ms: i64,
}

impl PointMaker {
    /// Continues behind a point at `last_pos` (the segment's start, for the first), with the mark and the largest
    /// time of everything before.
    pub(crate) fn new(interval: u64, last_pos: u64, mark: u64, max_time_ms: i64) -> PointMaker {
        PointMaker { interval, last_pos, mark, max_time_ms }
    }

    /// The next entry stands at `pos`; returns a point when one is due.
    pub(crate) fn pass(&mut self, index: u64, pos: u64, mark: u64, time_ms: i64) -> Option<Point> {
        let due = pos - self.last_pos >= self.interval;
        let point = due.then_some(Point { index, pos, mark: self.mark, max_time_ms: self.max_time_ms });
        if due {
            self.last_pos = pos;
        }
        self.mark = mark;
        self.max_time_ms = self.max_time_ms.max(time_ms);
        point
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::GroupId;

    #[test]
    fn round_trip_skips_what_is_damaged_or_beyond_the_end() {
        let place = Place::segment(GroupId(1), 1);
        let points: Vec<Point> =
            (1..=4).map(|n| Point { index: n, pos: n * 100, mark: n, max_time_ms: -(n as i64) }).collect();
        let mut bytes: Vec<u8> = points.iter().flat_map(|p| p.encode(&place)).collect();
        assert_eq!(decode_points(&bytes, &place, 1000), points);
        assert_eq!(decode_points(&bytes, &place, 300), points[..2]);
        assert_eq!(decode_points(&bytes, &Place::segment(GroupId(1), 2), 1000), []);
        bytes[POINT + 3] ^= 1;
        assert_eq!(decode_points(&bytes, &place, 1000), [points[0], points[2], points[3]]);
        assert_eq!(decode_points(&bytes[..POINT + 7], &place, 1000), points[..1]);
    }
}
