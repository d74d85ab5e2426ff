//! Earliest deadline first over all CPUs: each time a task becomes runnable it gets a deadline, and the tasks with the earliest
//! ones run. How long the deadline is follows from the nice value: 1 ms for each step above -21, so that nicer tasks have later ones.

use alloc::collections::{BTreeMap, BTreeSet};

use super::{Decisions, Policy, Ready, View};
use crate::ids::{CpuId, Nanos};

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub struct Edf {
    queue: BTreeSet<(Nanos, u32)>,
    /// Of every task that may run or runs.
    deadlines: BTreeMap<u32, Nanos>,
}

impl Edf {
    fn relative(nice: i16) -> Nanos {
        Nanos::from_millis((i64::from(nice.clamp(-20, 19)) + 21).unsigned_abs())
    }

    fn deadline(&self, slot: u32) -> Nanos {
        self.deadlines.get(&slot).copied().unwrap_or(Nanos::MAX)
    }
}

impl Policy for Edf {
    fn enqueue(&mut self, view: &View<'_>, slot: u32, why: Ready) {
        let fresh = matches!(why, Ready::New | Ready::Woken | Ready::Yielded) || !self.deadlines.contains_key(&slot);
        if fresh {
            let nice = view.task(slot).map_or(0, |task| task.nice);
            self.deadlines.insert(slot, view.now + Self::relative(nice));
        }
        self.queue.insert((self.deadline(slot), slot));
    }

    fn dequeue(&mut self, _view: &View<'_>, slot: u32) {
        self.queue.remove(&(self.deadline(slot), slot));
    }

    fn decide(&mut self, view: &View<'_>, decisions: &mut Decisions) {
        for cpu in view.idle.iter() {
            let Some((_, slot)) = self.queue.pop_first() else { return };
            decisions.run(cpu, slot);
        }
        let mut busy: BTreeSet<(Nanos, CpuId)> = BTreeSet::new();
        if !self.queue.is_empty() {
            let runs = |cpu: CpuId| view.cpu(cpu).and_then(|state| state.current);
            busy.extend(view.open.iter().filter_map(|cpu| Some((self.deadline(runs(cpu)?), cpu))));
        }
        // The earliest that waits against the latest that runs.
        while let (Some(&(waits, slot)), Some(&(runs, cpu))) = (self.queue.first(), busy.last())
            && waits < runs
        {
            self.queue.pop_first();
            busy.pop_last();
            decisions.run(cpu, slot);
        }
    }

    fn forget(&mut self, slot: u32) {
        self.deadlines.remove(&slot);
    }
}
