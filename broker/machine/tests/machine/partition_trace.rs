//! A partition's life as text, through elections, lost entries and void ones; see `golden/partition.txt`.
//!
//! ```text
//! lead TERM            a leader is elected: its blank entry is applied, a sequencer begins
//! admit P/EPOCH/SEQ xN the leader gets a batch of producer P; `anon` for none
//! seal MS              it proposes what it accepted
//! apply                the oldest proposed entry is committed and applied
//! swap                 the two oldest proposed entries change places (which raft never does)
//! lose                 what is proposed never gets committed
//! trim OFFSET          retention
//! fence P/EPOCH MS     a producer begins again
//! show                 the machine, which is also encoded and decoded
//! ```

use std::collections::VecDeque;

use busbar_machine::partition::{Admission, Applied, EntryHead, PartitionMachine, Sequencer};
use busbar_proto::{Offset, ProducerEpoch, ProducerId, Term};

use crate::{
    golden,
    support::{Log, Sent},
};

#[derive(Default)]
struct Trace {
    log: Log,
    term: u64,
    machine: PartitionMachine,
    sequencer: Option<Sequencer>,
    proposed: VecDeque<EntryHead>,
}

impl Trace {
    fn step(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["lead", term] => {
                self.term = term.parse().unwrap();
                let at = self.log.next(self.term);
                self.machine.advance(at);
                self.sequencer = Some(Sequencer::new(&self.machine, Term::new(self.term)));
                format!("{at} blank, next offset {}", self.machine.next_offset())
            }
            ["admit", whose, count] => {
                let admission = self.sequencer.as_mut().unwrap().admit(&sent(whose, count).header());
                match admission {
                    Admission::Accept { base_offset } => format!("accept at {base_offset}"),
                    Admission::DuplicateStored { base_offset } => format!("stored at {base_offset}"),
                    Admission::DuplicateInFlight { base_offset } => format!("in flight at {base_offset}"),
                    Admission::Reject(refusal) => format!("{}: {refusal}", refusal.reason.as_str()),
                }
            }
            ["seal", now_ms] => match self.sequencer.as_mut().unwrap().seal(now_ms.parse().unwrap()) {
                Some(head) => {
                    let text = format!("{} bytes, end {}", head.encode().len(), head.end_offset().unwrap());
                    self.proposed.push_back(head);
                    text
                }
                None => "nothing".to_owned(),
            },
            ["apply"] => {
                let head = self.proposed.pop_front().unwrap();
                self.apply(&head)
            }
            ["swap"] => {
                self.proposed.swap(0, 1);
                "swapped".to_owned()
            }
            ["lose"] => format!("{} entries lost", std::mem::take(&mut self.proposed).len()),
            ["trim", log_start] => self.apply(&EntryHead::Trim { log_start: Offset::new(log_start.parse().unwrap()) }),
            ["fence", whose, stamped_ms] => {
                let (producer, epoch) = whose.split_once('/').unwrap();
                let producer = ProducerId::new(producer.parse().unwrap());
                let epoch = ProducerEpoch::new(epoch.parse().unwrap());
                self.apply(&EntryHead::Fence { producer, epoch, stamped_ms: stamped_ms.parse().unwrap() })
            }
            ["show"] => self.show(),
            _ => panic!("no such command: {line}"),
        }
    }

    fn apply(&mut self, head: &EntryHead) -> String {
        let at = self.log.next(self.term);
        match self.machine.apply(at, head) {
            Applied::Stored { base_offset, next_offset, batches } => {
                self.sequencer.as_mut().unwrap().committed(at, next_offset);
                format!("{at} stored {base_offset}..{next_offset} in {batches} batches")
            }
            Applied::Voided(reason) => format!("{at} void: {reason}"),
            Applied::Trimmed { log_start } => format!("{at} log starts at {log_start}"),
            Applied::Fenced { producer, epoch } => format!("{at} producer {producer} is fenced below epoch {epoch}"),
            Applied::Settled { offset } => format!("{at} tombstones settled below {offset}"),
            Applied::Nothing => format!("{at} nothing"),
        }
    }

    fn show(&self) -> String {
        let bytes = self.machine.encode();
        assert_eq!(PartitionMachine::decode(&bytes).as_ref(), Ok(&self.machine));
        let (start, end) = (self.machine.log_start(), self.machine.next_offset());
        let voids: Vec<String> = self.machine.voids().map(|index| index.to_string()).collect();
        let mut text = format!("offsets {start}..{end}, void [{}], {} bytes\n", voids.join(" "), bytes.len());
        for (id, producer) in self.machine.producers() {
            text += &format!("producer {id} epoch {} next {}:", producer.epoch(), producer.next_sequence());
            for batch in producer.recent() {
                text += &format!(" {}+{}@{}", batch.base_sequence, batch.record_count, batch.base_offset);
            }
            text.push('\n');
        }
        for (id, epoch) in self.machine.fences() {
            text += &format!("producer {id} fenced below epoch {epoch}\n");
        }
        text
    }
}

fn sent(whose: &str, count: &str) -> Sent {
    let count = count.trim_start_matches('x').parse().unwrap();
    if whose == "anon" {
        return Sent::anonymous(count);
    }
    let parts: Vec<i32> = whose.split('/').map(|part| part.parse().unwrap()).collect();
    Sent::new(parts[0].into(), parts[1].try_into().unwrap(), parts[2], count)
}

#[test]
fn partition() {
    let mut trace = Trace::default();
    golden::replay("partition.txt", |line| trace.step(line));
}
