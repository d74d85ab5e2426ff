//! Brings records into an order that could have happened.
//!
//! A trace is merged by time stamps, and those of different CPUs may disagree: clocks differ a little, and a CPU may be
//! held up between reading its clock and taking the lock under which it writes. What is certain is the order of one CPU's
//! records, and the order of one task's place records, which `seq` gives. So a record whose task hasn't come that far yet is
//! held, and behind it all of its CPU, until the missing record has come from another CPU. If it doesn't come within a
//! window of trace time, or too much is held, the oldest is let through as it is: then there is a gap, and the checker says so.
//!
//! Invariant: records of one CPU come out in the order in which they came in, and nothing is held for longer than the window.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use super::Stamped;
use crate::events::{ClassTag, Event};
use crate::ids::{CpuId, Nanos, TaskId};
use crate::task::state::State;

/// Holds records back until those before them have come.
#[derive(Debug)]
pub(super) struct Sequencer {
    window: Nanos,
    limit: usize,
    now: Nanos,
    /// The last place record of each live task.
    last: BTreeMap<TaskId, u16>,
    /// CPUs that hold something.
    lanes: BTreeMap<CpuId, Lane>,
    held: usize,
    /// Each lane's first record by time, to let the oldest go.
    oldest: BTreeSet<(Nanos, CpuId)>,
    /// Each lane's [`Lane::waits_for`], to find the lanes that a record sets free.
    waiters: BTreeSet<(TaskId, CpuId)>,
    /// Lanes to look at again.
    stirred: Vec<CpuId>,
}

/// What one CPU holds: never empty.
#[derive(Debug)]
struct Lane {
    records: VecDeque<Stamped>,
    /// The task whose record must come before the first one.
    waits_for: TaskId,
}

/// A task's part in a place record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) task: TaskId,
    pub(super) seq: u16,
    /// The record begins a task.
    begins: bool,
    /// The record ends it.
    ends: bool,
}

/// The tasks whose place a record changes. Idle tasks have no place: they are where no other task is.
pub(super) fn parts(record: &Stamped, event: &Event) -> [Option<Part>; 2] {
    let r = &record.record;
    let own = |begins, ends| Some(Part { task: TaskId(r.task), seq: r.seq, begins, ends });
    match *event {
        Event::Queued { new, .. } => [own(new, false), None],
        Event::Migrate { .. } => [own(false, false), None],
        Event::Switch { prev_state, prev_class, next, .. } => {
            let prev = if is_idle(prev_class) { None } else { own(false, prev_state == State::Dead as u8) };
            let comes = !is_idle(next.class) && next.task.0 != r.task;
            [prev, comes.then_some(Part { task: next.task, seq: next.seq, begins: false, ends: false })]
        }
        Event::Name(_) | Event::Plain(_) => [None, None],
    }
}

/// Whether this is the class of idle tasks.
pub(super) const fn is_idle(class: ClassTag) -> bool {
    class.policy == ClassTag::IDLE.policy
}

/// How many records are missing before `seq`; `None` if it isn't after `last`.
pub(super) const fn missing(last: u16, seq: u16) -> Option<u16> {
    let distance = seq.wrapping_sub(last);
    // The count wraps: what is more than half a round ahead is behind.
    if distance == 0 || distance > 1 << 15 { None } else { Some(distance - 1) }
}

impl Sequencer {
    pub(super) fn new(window: Nanos, limit: usize) -> Self {
        Self {
            window,
            limit,
            now: Nanos::ZERO,
            last: BTreeMap::new(),
            lanes: BTreeMap::new(),
            held: 0,
            oldest: BTreeSet::new(),
            waiters: BTreeSet::new(),
            stirred: Vec::new(),
        }
    }

    /// Takes the next record of the trace; `emit` gets those whose turn it is.
    pub(super) fn push(&mut self, record: Stamped, emit: &mut impl FnMut(&Stamped)) {
        self.now = self.now.max(record.time);
        if let Some(lane) = self.lanes.get_mut(&record.cpu) {
            lane.records.push_back(record);
            self.held += 1;
        } else if let Some(waits_for) = self.blocker(&record) {
            self.held += 1;
            self.hold(record.cpu, Lane { records: VecDeque::from([record]), waits_for });
        } else {
            self.let_through(&record, emit);
            self.settle(emit);
        }
        while let Some(&(time, cpu)) = self.oldest.first()
            && (time + self.window < self.now || self.held > self.limit)
        {
            self.release(cpu, true, emit);
            self.settle(emit);
        }
    }

    /// The trace is over: everything that is held, oldest first.
    pub(super) fn flush(&mut self, emit: &mut impl FnMut(&Stamped)) {
        while let Some(&(_, cpu)) = self.oldest.first() {
            self.release(cpu, true, emit);
            self.settle(emit);
        }
    }

    /// The task whose earlier record must come first.
    fn blocker(&self, record: &Stamped) -> Option<TaskId> {
        let event = Event::decode(&record.record)?;
        parts(record, &event).into_iter().flatten().find(|part| !self.is_next(part)).map(|part| part.task)
    }

    /// A repeated record is not held: nothing that may come would put it right.
    fn is_next(&self, part: &Part) -> bool {
        match self.last.get(&part.task) {
            None => part.begins,
            Some(_) if part.begins => false, // the number is used again: its last user's end comes first
            Some(&last) => matches!(missing(last, part.seq), None | Some(0)),
        }
    }

    fn let_through(&mut self, record: &Stamped, emit: &mut impl FnMut(&Stamped)) {
        if let Some(event) = Event::decode(&record.record) {
            for part in parts(record, &event).into_iter().flatten() {
                if part.ends {
                    self.last.remove(&part.task);
                } else if self.last.get(&part.task).is_none_or(|&last| part.begins || missing(last, part.seq).is_some())
                {
                    self.last.insert(part.task, part.seq);
                }
                let waiting = self.waiters.range((part.task, CpuId(0))..=(part.task, CpuId(u32::MAX)));
                self.stirred.extend(waiting.map(|&(_, cpu)| cpu));
            }
        }
        emit(record);
    }

    /// Looks at the lanes that a record may have set free, until nothing moves.
    fn settle(&mut self, emit: &mut impl FnMut(&Stamped)) {
        while let Some(cpu) = self.stirred.pop() {
            self.release(cpu, false, emit);
        }
    }

    fn hold(&mut self, cpu: CpuId, lane: Lane) {
        if let Some(head) = lane.records.front() {
            self.oldest.insert((head.time, cpu));
            self.waiters.insert((lane.waits_for, cpu));
            self.lanes.insert(cpu, lane);
        }
    }

    /// Lets go what `cpu` holds, up to the next record that must wait; the first one in any case if `force` is set.
    fn release(&mut self, cpu: CpuId, mut force: bool, emit: &mut impl FnMut(&Stamped)) {
        let Some(mut lane) = self.lanes.remove(&cpu) else { return };
        if let Some(head) = lane.records.front() {
            self.oldest.remove(&(head.time, cpu));
            self.waiters.remove(&(lane.waits_for, cpu));
        }
        while let Some(&head) = lane.records.front() {
            if !core::mem::take(&mut force)
                && let Some(task) = self.blocker(&head)
            {
                lane.waits_for = task;
                self.hold(cpu, lane);
                return;
            }
            lane.records.pop_front();
            self.held -= 1;
            self.let_through(&head, emit);
        }
    }
}
