//! svsm's two policies: whoever was scheduled fewest times runs next (`count`), or whoever used the least CPU time
//! (`runtime`). Called through [`Policy`] by a run queue.
//!
//! Both keep their tasks in an ordered tree by that measure. The invariants: the task that is picked has the least measure,
//! and of equals the one that came first; and the measure of a task never changes while it is in the tree.
//!
//! A new task starts at the minimum, not at zero: it would have the CPU to itself until it has caught up with tasks that
//! have been running for hours. For the same reason, and beyond what svsm does, a task that slept comes back at no less than
//! the minimum; and one that yields goes behind the one that is first.

use alloc::collections::BTreeMap;

use super::round_robin::DEFAULT_SLICE;
use super::{EnqueueReason, Entity, Policy, PutReason};
use crate::ids::Nanos;

/// By what the tasks are ordered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Measure {
    /// Times scheduled.
    Count,
    /// CPU time really used.
    Runtime,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Ordered<E> {
    tree: BTreeMap<Key, E>,
    measure: Measure,
    slice: Nanos,
    /// The measure of the task that was picked last: nobody had less then, and nobody comes in with less since.
    minimum: u64,
    arrivals: u64,
    /// What of the current task's run is counted.
    charged: Nanos,
}

/// A task's measure, and for equals the order of their coming.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    measure: u64,
    arrival: u64,
}

impl<E: Entity> Ordered<E> {
    /// An empty queue.
    pub const fn new(measure: Measure) -> Self {
        Self { tree: BTreeMap::new(), measure, slice: DEFAULT_SLICE, minimum: 0, arrivals: 0, charged: Nanos::ZERO }
    }

    /// What it is ordered by.
    pub const fn measure(&self) -> Measure {
        self.measure
    }

    fn charge(&mut self, current: &E, ran: Nanos) {
        if self.measure == Measure::Runtime {
            let key = &current.sched().key;
            key.set(key.get().saturating_add((ran - self.charged).0));
        }
        self.charged = ran;
    }
}

impl<E: Entity> Policy<E> for Ordered<E> {
    fn enqueue(&mut self, e: E, why: EnqueueReason, _now: Nanos) {
        let sched = e.sched();
        let least = match why {
            EnqueueReason::Preempted => 0,
            EnqueueReason::Yield => self.tree.first_key_value().map_or(0, |(key, _)| key.measure),
            EnqueueReason::New | EnqueueReason::Wake | EnqueueReason::Migrate => self.minimum,
        };
        let key = Key { measure: sched.key.get().max(least), arrival: self.arrivals };
        self.arrivals += 1;
        sched.key.set(key.measure);
        sched.key_order.set(key.arrival);
        self.tree.insert(key, e);
    }

    fn dequeue(&mut self, e: &E) -> Option<E> {
        let key = Key { measure: e.sched().key.get(), arrival: e.sched().key_order.get() };
        self.tree.get(&key).filter(|there| there.id() == e.id())?;
        self.tree.remove(&key)
    }

    fn pick_next(&mut self, _now: Nanos) -> Option<E> {
        let (key, task) = self.tree.pop_first()?;
        self.minimum = key.measure;
        self.charged = Nanos::ZERO;
        if self.measure == Measure::Count {
            task.sched().key.set(key.measure.saturating_add(1));
        }
        Some(task)
    }

    fn put_prev(&mut self, prev: &E, ran: Nanos, why: PutReason) {
        self.charge(prev, ran);
        if why == PutReason::Migrate && self.measure == Measure::Count && ran == Nanos::ZERO {
            // The pick is taken back: it was not scheduled.
            prev.sched().key.set(prev.sched().key.get().saturating_sub(1));
        }
    }

    fn adopt(&mut self, e: &E, ran: Nanos, _now: Nanos) {
        let key = &e.sched().key;
        key.set(key.get().max(self.minimum));
        self.charged = ran;
    }

    fn len(&self) -> usize {
        self.tree.len()
    }

    /// The slice is over, and there is somebody to give way to.
    fn tick(&mut self, current: &E, ran: Nanos) -> bool {
        self.charge(current, ran);
        ran >= self.slice && !self.tree.is_empty()
    }

    /// Never, as in svsm: a woken task waits for its turn.
    fn wakeup_preempts(&self, _current: &E, _woken: &E) -> bool {
        false
    }

    fn slice(&self, _current: &E) -> Option<Nanos> {
        (!self.tree.is_empty()).then_some(self.slice)
    }

    /// The first that is wanted: it had least.
    fn steal(&mut self, mut wanted: impl FnMut(&E) -> bool) -> Option<E> {
        let key = self.tree.iter().find_map(|(&key, e)| wanted(e).then_some(key))?;
        self.tree.remove(&key)
    }
}
