//! svsm's two policies: whoever was scheduled fewest times runs next (`count`), or whoever used the least CPU time
//! (`runtime`). Called through [`Policy`] by a run queue.
//!
//! Both keep their tasks in an ordered tree by that measure. The invariants: the task that is picked has the least measure,
//! and of equals the one that came first; and the measure of a task never changes while it is in the tree.
//!
//! A new task starts at the minimum, not at zero: it would have the CPU to itself until it has caught up with tasks that
//! have been running for hours. Beyond what svsm does, and for the same reason, nobody who comes can have another wait for
//! long:
//! - a task that slept comes back at no less than the minimum;
//! - a task from another CPU brings only how far it was ahead of the minimum there, for its own measure says nothing here;
//! - time that a task ran alone is nobody's loss: the minimum goes along with it.
//!
//! So all measures in a queue lie within about a slice of its minimum. A task that yields goes behind the one that is first.

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
    /// Nobody here has less, and nobody comes in with less: the measure of the task that was picked last, or of the current one
    /// while it is alone. Never decreases.
    minimum: u64,
    arrivals: u64,
    /// What of the current task's run is counted.
    charged: Nanos,
    current: Option<Current>,
}

/// The current task, if it is of this class.
#[derive(Clone, Copy, Debug)]
struct Current {
    /// At this time...
    at: Nanos,
    /// ...it had this measure.
    measure: u64,
}

/// A task's measure, and for equals the order of their coming.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    measure: u64,
    arrival: u64,
}

impl<E: Entity> Ordered<E> {
    /// An empty queue with [`DEFAULT_SLICE`].
    pub const fn new(measure: Measure) -> Self {
        Self::with_slice(measure, DEFAULT_SLICE)
    }

    /// An empty queue whose tasks run for `slice` at a time.
    pub const fn with_slice(measure: Measure, slice: Nanos) -> Self {
        Self { tree: BTreeMap::new(), measure, slice, minimum: 0, arrivals: 0, charged: Nanos::ZERO, current: None }
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

    /// Takes a task out that goes elsewhere.
    fn remove(&mut self, key: &Key) -> Option<E> {
        let task = self.tree.remove(key)?;
        task.sched().key_base.set(self.minimum);
        Some(task)
    }

    /// The minimum is at least `measure` from now on.
    fn raise(&mut self, measure: u64) {
        self.minimum = self.minimum.max(measure);
    }

    /// The measure of a task that comes from elsewhere. It left a minimum of `key_base` behind, which is not above this one
    /// if it comes back to the queue that it left: then it has what it had.
    fn arriving(&self, e: &E) -> u64 {
        let (key, base) = (e.sched().key.get(), e.sched().key_base.get());
        let ahead = self.minimum.saturating_add(key.saturating_sub(base));
        key.min(ahead).max(self.minimum)
    }
}

impl<E: Entity> Policy<E> for Ordered<E> {
    fn enqueue(&mut self, e: E, why: EnqueueReason, now: Nanos) {
        if let Some(current) = self.current
            && self.tree.is_empty()
        {
            let ran = if self.measure == Measure::Runtime { (now - current.at).0 } else { 0 };
            self.raise(current.measure.saturating_add(ran));
        }
        let sched = e.sched();
        let first = self.tree.first_key_value().map_or(0, |(key, _)| key.measure);
        let measure = match why {
            EnqueueReason::Preempted => sched.key.get(),
            EnqueueReason::Yield => sched.key.get().max(first),
            EnqueueReason::New | EnqueueReason::Wake | EnqueueReason::Migrate => self.arriving(&e),
        };
        let key = Key { measure, arrival: self.arrivals };
        self.arrivals += 1;
        sched.key.set(key.measure);
        sched.key_order.set(key.arrival);
        self.tree.insert(key, e);
    }

    fn dequeue(&mut self, e: &E) -> Option<E> {
        let key = Key { measure: e.sched().key.get(), arrival: e.sched().key_order.get() };
        self.tree.get(&key).filter(|there| there.id() == e.id())?;
        self.remove(&key)
    }

    fn pick_next(&mut self, now: Nanos) -> Option<E> {
        let (key, task) = self.tree.pop_first()?;
        self.raise(key.measure);
        self.charged = Nanos::ZERO;
        let mut measure = key.measure;
        if self.measure == Measure::Count {
            measure = measure.saturating_add(1);
            task.sched().key.set(measure);
        }
        self.current = Some(Current { at: now, measure });
        Some(task)
    }

    fn put_prev(&mut self, prev: &E, ran: Nanos, why: PutReason) {
        self.charge(prev, ran);
        if why == PutReason::Migrate && self.measure == Measure::Count && ran == Nanos::ZERO {
            // The pick is taken back: it was not scheduled.
            prev.sched().key.set(prev.sched().key.get().saturating_sub(1));
        }
        self.current = None;
        if self.tree.is_empty() {
            self.raise(prev.sched().key.get());
        }
        prev.sched().key_base.set(self.minimum);
    }

    fn adopt(&mut self, e: &E, ran: Nanos, now: Nanos) {
        let measure = self.arriving(e);
        e.sched().key.set(measure);
        self.charged = ran;
        self.current = Some(Current { at: now, measure });
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
        self.remove(&key)
    }
}
