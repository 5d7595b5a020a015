//! From frames to groups: the pure half of recovery.
//!
//! Frames of all files come in the order in which they were written. The hard state is accumulated and compared with
//! the snapshot at the head of each further file: they must be equal, or something was lost in between. Entries may
//! come out of order, since an old one is carried to the journal's head when its file is recycled; holes left by files
//! that are gone must be filled by the end.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::frame::{Kind, Read};
use crate::group::{Inner, Slot, Slots};
use crate::hard::{HardState, Snapshot};
use crate::types::{GroupId, Position};

#[derive(Debug, Default)]
struct Run {
    base: u64,
    slots: VecDeque<Option<Slot>>,
    damaged: BTreeSet<u64>,
}

impl Run {
    fn set(&mut self, index: u64, slot: Slot, carried: bool, damaged: bool) {
        if self.slots.is_empty() {
            self.base = index;
        }
        while index < self.base {
            self.slots.push_front(None);
            self.base -= 1;
        }
        let at = (index - self.base) as usize;
        if at >= self.slots.len() {
            self.slots.resize(at + 1, None);
        }
        if carried && self.slots[at].is_some_and(|newer| newer.term != slot.term) {
            return; // truncated and replaced while it was being carried
        }
        self.slots[at] = Some(slot);
        self.damaged.remove(&index);
        if damaged {
            self.damaged.insert(index);
        }
    }

    /// Keeps `first..next`.
    fn keep(&mut self, first: u64, next: u64) {
        let below = (first.saturating_sub(self.base) as usize).min(self.slots.len());
        self.slots.drain(..below);
        self.base += below as u64;
        self.slots.truncate(next.saturating_sub(self.base) as usize);
        self.damaged.retain(|index| (first..next).contains(index));
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    state: Option<Snapshot>,
    runs: HashMap<GroupId, Run>,
    /// Files up to this generation hold nothing that is needed.
    pub(crate) freed: u64,
    /// The highest count of openings seen.
    pub(crate) opened: u64,
    pub(crate) frames: u64,
}

impl Replay {
    /// A file begins; `None` when its snapshot cannot be read. Errors say what does not fit.
    pub(crate) fn begin_file(&mut self, snapshot: Option<Snapshot>) -> Result<(), String> {
        match (&self.state, snapshot) {
            (None, Some(snapshot)) => self.state = Some(snapshot),
            (None, None) => return Err("the oldest file's group states are unreadable".to_owned()),
            (Some(state), Some(snapshot)) if *state != snapshot => {
                return Err("the group states do not match what the file before them ended with".to_owned());
            }
            (Some(_), _) => {}
        }
        Ok(())
    }

    /// One frame at `pos` of a file; the payload is `None` when it is damaged.
    pub(crate) fn frame(
        &mut self,
        generation: u64,
        pos: u64,
        read: &Read,
        payload: Option<&[u8]>,
    ) -> Result<(), String> {
        let head = &read.head;
        let can_miss = matches!(head.kind, Kind::Entry | Kind::Carried | Kind::Pad);
        if payload.is_none() && !can_miss {
            return Err(format!("a {:?} frame of group {} has lost its content", head.kind, head.group));
        }
        let state = self.state.get_or_insert_default();
        let fits = state.apply(head, payload.unwrap_or_default());
        fits.ok_or_else(|| format!("{:?} {} of group {} does not follow", head.kind, head.index, head.group))?;
        self.frames += 1;
        let hard = state.groups.get(&head.group).copied().unwrap_or_default();
        match head.kind {
            Kind::Entry | Kind::Carried => {
                if !(hard.first..hard.next).contains(&head.index) {
                    return Ok(()); // carried, and purged since
                }
                let slot = Slot::new(generation, pos, (head.term, head.mark, head.time_ms), head.len);
                let carried = head.kind == Kind::Carried;
                self.runs.entry(head.group).or_default().set(head.index, slot, carried, payload.is_none());
            }
            Kind::Truncate | Kind::Purge => {
                if let Some(run) = self.runs.get_mut(&head.group) {
                    run.keep(hard.first, hard.next);
                }
            }
            Kind::Remove => {
                self.runs.remove(&head.group);
            }
            Kind::Freed => self.freed = self.freed.max(head.index),
            Kind::Opened => self.opened = self.opened.max(head.index),
            _ => {}
        }
        Ok(())
    }

    /// The groups as they were, and the state the journal's writer continues with. Errors name the group and the first
    /// index that is nowhere.
    pub(crate) fn finish(mut self) -> Result<(BTreeMap<GroupId, Inner>, Snapshot), String> {
        let state = self.state.take().unwrap_or_default();
        let mut groups = BTreeMap::new();
        for (id, hard) in &state.groups {
            let mut run = self.runs.remove(id).unwrap_or_default();
            let from = hard.segment.map_or(hard.first, |end| end.last.index + 1).max(hard.first);
            run.keep(from, hard.next);
            let mut slots = VecDeque::with_capacity(run.slots.len());
            let missing = |index: u64| format!("entry {index} of group {id} is in no file");
            if run.slots.is_empty() {
                run.base = from;
            } else if run.base != from {
                return Err(missing(from));
            }
            for (index, slot) in (from..).zip(run.slots) {
                slots.push_back(slot.ok_or_else(|| missing(index))?);
            }
            let end = from + slots.len() as u64;
            if end < hard.next {
                return Err(missing(end));
            }
            let now = HardState { committed: committed(hard), ..*hard };
            groups.insert(*id, Inner::recovered(now, Slots::from_run(from, slots), run.damaged));
        }
        Ok((groups, state))
    }
}

/// Committed rides along lazily: segments and purges prove more than was noted, lost unsynced entries leave less.
fn committed(hard: &HardState) -> Option<Position> {
    let proven = [hard.committed, hard.segment.map(|end| end.last), hard.purged];
    let proven = proven.into_iter().flatten().max_by_key(|at| at.index)?;
    if proven.index < hard.next {
        return Some(proven);
    }
    let last = Position { term: hard.last_term, index: hard.next.checked_sub(1)? };
    if hard.next > hard.first { Some(last) } else { hard.purged }
}
