//! A group's state in memory, without disk.

use bytes::Bytes;

use super::*;

fn entry(index: u64, term: u64) -> Entry {
    Entry { term, index, kind: 0, mark: index, time_ms: 0, head_len: 0, payload: Bytes::from_static(b"x") }
}

fn slot(term: u64, pos: u64) -> Slot {
    Slot::new(1, pos, (term, 0, 0), 1)
}

#[test]
fn a_slot_stays_small() {
    assert_eq!(std::mem::size_of::<Slot>(), 40);
}

#[test]
fn writes_that_were_cut_meanwhile_get_no_place() {
    let mut inner = Inner::default();
    inner.push(&[entry(1, 1), entry(2, 1), entry(3, 1)]);
    let before = inner.epoch;
    inner.cut(2);
    inner.push(&[entry(2, 2)]);
    let after = inner.epoch;
    inner.located(before, 1, &[slot(1, 0), slot(1, 80), slot(1, 160)]);
    assert_eq!(inner.slots.end(), 2, "entries 2 and 3 of term 1 are gone");
    inner.durable(before, 4);
    assert_eq!(inner.durable_next, 2, "entry 2 of term 2 is not durable because that of term 1 is");
    inner.cut_written(after);
    inner.located(after, 2, &[slot(2, 240)]);
    inner.durable(after, 3);
    assert_eq!((inner.slots.get(2).unwrap().term, inner.durable_next), (2, 3));
}

#[test]
fn eviction_spares_what_is_nowhere_else() {
    let mut inner = Inner::default();
    let cost = inner.push(&[entry(5, 1), entry(6, 1), entry(7, 1)]);
    assert_eq!(inner.evict(7), 0);
    inner.located(0, 5, &[slot(1, 0), slot(1, 80)]);
    assert_eq!(inner.evict(7), cost / 3 * 2);
    assert_eq!((inner.cache_base(), inner.cached(7).is_some()), (7, true));
}

#[test]
fn purge_beyond_the_end_empties_the_log_and_fixes_where_it_goes_on() {
    let mut inner = Inner::default();
    inner.push(&[entry(1, 1), entry(2, 1)]);
    assert!(inner.purge(Position { term: 4, index: 9 }).is_some());
    assert_eq!(inner.last(), Some(Position { term: 4, index: 9 }));
    assert_eq!(inner.committed(), Some(Position { term: 4, index: 9 }));
    inner.located(0, 1, &[slot(1, 0), slot(1, 80)]);
    assert_eq!(inner.slots.end(), 10, "the queued write of what was purged leaves no trace");
    let gap = inner.check_append(GroupId(1), &[entry(11, 5)], 100);
    assert_eq!(gap, Err(AppendError::NotContiguous { group: GroupId(1), expected: 10, found: 11 }));
    inner.push(&[entry(10, 5)]);
    assert_eq!(inner.purge(Position { term: 4, index: 8 }), None, "never back");
}

#[test]
fn committed_is_clamped_to_what_is_durable() {
    let mut inner = Inner::default();
    inner.push(&[entry(1, 1), entry(2, 2)]);
    inner.now.committed = Some(Position { term: 2, index: 2 });
    assert_eq!(inner.committed(), None);
    inner.durable(0, 2);
    assert_eq!(inner.committed(), Some(Position { term: 1, index: 1 }));
    inner.durable(0, 3);
    assert_eq!(inner.committed(), Some(Position { term: 2, index: 2 }));
}

#[test]
#[should_panic(expected = "never removes what is committed")]
fn a_cut_below_committed_is_a_bug() {
    let mut inner = Inner::default();
    inner.push(&[entry(1, 1), entry(2, 1)]);
    inner.now.committed = Some(Position { term: 1, index: 2 });
    inner.cut(2);
}

#[test]
fn a_group_may_be_removed_while_its_entries_move_into_segments() {
    let mut inner = Inner::default();
    inner.push(&[entry(1, 1), entry(2, 1)]);
    inner.now.committed = Some(Position { term: 1, index: 2 });
    inner.clear();
    let last = Position { term: 1, index: 2 };
    inner.retired(SegmentEnd { first: 1, bytes: 4096, last, mark: 2, first_mark: 1, max_time_ms: 0, chain: 0 });
    assert!(inner.removed && inner.now.segment.is_none());
}

#[test]
fn a_run_from_memory_is_bounded_in_bytes_and_never_empty() {
    let mut inner = Inner::default();
    let cost = inner.push(&[entry(1, 1), entry(2, 1), entry(3, 1)]) as u64 / 3;
    let indexes = |bytes| inner.cached_run(1, 4, 64, bytes).iter().map(|entry| entry.index).collect::<Vec<_>>();
    assert_eq!(indexes(1), [1]);
    assert_eq!(indexes(cost * 2), [1, 2]);
    assert_eq!(indexes(cost * 9), [1, 2, 3]);
}
