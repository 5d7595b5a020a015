//! Where a partition's log may start: whole sealed segments go when they are too old or when there is too much.
//!
//! Invariants: the newest data always stays (an unsealed segment, or what is not in a segment yet, is never given up);
//! at least `bytes` remain after a cut by size; the log start only moves forward. The decision is the leader's; what
//! every replica does is the `Trim` entry that comes of it.

use busbar_proto::Offset;

/// One stored stretch of the log, in order, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset of its first record.
    pub first_offset: Offset,
    /// Offset after its last record; equal to `first_offset` when it holds none.
    pub next_offset: Offset,
    /// Its size.
    pub bytes: u64,
    /// Time of its newest record, in milliseconds since the Unix epoch.
    pub last_time_ms: i64,
    /// Whether nothing will be added to it any more.
    pub sealed: bool,
}

/// What may stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes to keep at least; `None` = all.
    pub bytes: Option<u64>,
    /// Age to keep at least, in milliseconds; `None` = for ever.
    pub ms: Option<u64>,
}

/// The new log start, or `None` when nothing has to go.
///
/// `segments` are the oldest stretches in order; `total_bytes` counts them and everything newer.
pub fn new_log_start(
    log_start: Offset,
    segments: &[Segment],
    total_bytes: u64,
    now_ms: i64,
    limits: Limits,
) -> Option<Offset> {
    let mut left_bytes = total_bytes;
    let mut start = log_start;
    for segment in segments.iter().take_while(|segment| segment.sealed) {
        let rest_bytes = left_bytes.saturating_sub(segment.bytes);
        let is_surplus = limits.bytes.is_some_and(|keep| rest_bytes >= keep);
        let is_expired = limits.ms.is_some_and(|keep| is_older(segment.last_time_ms, now_ms, keep));
        if !(is_surplus || is_expired) {
            break;
        }
        left_bytes = rest_bytes;
        start = start.max(segment.next_offset);
    }
    (start > log_start).then_some(start)
}

/// Whether `time_ms` lies more than `keep_ms` before `now_ms`. A time in the future is never old.
fn is_older(time_ms: i64, now_ms: i64, keep_ms: u64) -> bool {
    i128::from(now_ms) - i128::from(time_ms) > i128::from(keep_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten records and 100 bytes each, sealed but for the last, the newest record of the n-th at n seconds.
    fn segments(count: u64) -> Vec<Segment> {
        (0..count)
            .map(|n| Segment {
                first_offset: Offset::new(n * 10),
                next_offset: Offset::new(n * 10 + 10),
                bytes: 100,
                last_time_ms: n as i64 * 1_000,
                sealed: n + 1 < count,
            })
            .collect()
    }

    #[test]
    fn decisions() {
        let by_bytes = |keep| Limits { bytes: Some(keep), ms: None };
        let by_ms = |keep| Limits { bytes: None, ms: Some(keep) };
        // (limits, bytes beyond the segments, now_ms, log start, want)
        for (limits, tail_bytes, now_ms, log_start, want) in [
            (Limits::default(), 0, i64::MAX, 0, None),
            (by_bytes(400), 0, 0, 0, None),
            (by_bytes(399), 0, 0, 0, None),
            (by_bytes(300), 0, 0, 0, Some(10)),
            (by_bytes(299), 0, 0, 0, Some(10)),
            (by_bytes(200), 0, 0, 0, Some(20)),
            (by_bytes(0), 0, 0, 0, Some(30)),
            (by_bytes(400), 100, 0, 0, Some(10)),
            (by_bytes(300), 0, 0, 10, None),
            (by_bytes(300), 0, 0, 5, Some(10)),
            (by_ms(1_000), 0, 1_000, 0, None),
            (by_ms(1_000), 0, 1_001, 0, Some(10)),
            (by_ms(1_000), 0, 2_001, 0, Some(20)),
            (by_ms(0), 0, i64::MAX, 0, Some(30)),
            (by_ms(u64::MAX), 0, i64::MAX, 0, None),
            (by_ms(0), 0, i64::MIN, 0, None),
            (Limits { bytes: Some(350), ms: Some(1_000) }, 0, 2_001, 0, Some(20)),
            (Limits { bytes: Some(100), ms: Some(1_000) }, 0, 1_001, 0, Some(30)),
        ] {
            let got = new_log_start(Offset::new(log_start), &segments(4), 400 + tail_bytes, now_ms, limits);
            assert_eq!(got.map(Offset::get), want, "{limits:?} +{tail_bytes} at {now_ms} from {log_start}");
        }
    }

    #[test]
    fn an_old_segment_behind_a_young_one_stays() {
        let mut all = segments(4);
        all[0].last_time_ms = 50_000;
        let limits = Limits { bytes: None, ms: Some(1_000) };
        assert_eq!(new_log_start(Offset::ZERO, &all, 400, 10_000, limits), None);
    }

    #[test]
    fn no_segment_no_change() {
        let limits = Limits { bytes: Some(0), ms: Some(0) };
        assert_eq!(new_log_start(Offset::ZERO, &[], 0, i64::MAX, limits), None);
    }
}
