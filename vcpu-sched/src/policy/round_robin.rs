//! Round robin: first come, first served, each for a slice. Called through [`Policy`] by a run queue; the invariant is
//! that tasks leave in the order they came, but for those that were removed out of turn.

use super::list::{List, Nodes};
use super::{EnqueueReason, Entity, Policy};
use crate::ids::Nanos;

/// A slice of 10 ms: a compromise between a console that answers at once and a kernel whose every switch may be
/// interpreted. Linux's round robin has 100 ms (`RR_TIMESLICE`), its fair class about 3 ms (`base_slice_ns`).
pub const DEFAULT_SLICE: Nanos = Nanos::from_millis(10);

/// See the module's text.
#[derive(Clone, Debug)]
pub struct RoundRobin<E> {
    nodes: Nodes<E>,
    queue: List,
    len: usize,
    slice: Nanos,
}

impl<E: Entity> RoundRobin<E> {
    /// An empty queue with [`DEFAULT_SLICE`].
    pub const fn new() -> Self {
        Self::with_slice(DEFAULT_SLICE)
    }

    /// An empty queue whose tasks run for `slice` at a time. A slice of zero means that a task gives way at every tick.
    pub const fn with_slice(slice: Nanos) -> Self {
        Self { nodes: Nodes::new(), queue: List::EMPTY, len: 0, slice }
    }

    fn left(&mut self, task: Option<E>) -> Option<E> {
        self.len -= usize::from(task.is_some());
        task
    }
}

impl<E: Entity> Default for RoundRobin<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Entity> Policy<E> for RoundRobin<E> {
    /// To the end, whatever the reason: within this policy a preempted task has used up its slice, and what preempts it
    /// from another class is rare enough.
    #[inline]
    fn enqueue(&mut self, e: E, _why: EnqueueReason, _now: Nanos) {
        self.nodes.push_back(&mut self.queue, e);
        self.len += 1;
    }

    fn dequeue(&mut self, e: &E) -> Option<E> {
        let task = self.nodes.remove(&mut self.queue, e);
        self.left(task)
    }

    #[inline]
    fn pick_next(&mut self, _now: Nanos) -> Option<E> {
        let task = self.nodes.pop_front(&mut self.queue);
        self.left(task)
    }

    #[inline(always)]
    fn turn(&mut self, prev: E, _ran: Nanos, _yields: bool, _now: Nanos) -> Option<E> {
        Some(self.nodes.rotate(&mut self.queue, prev))
    }

    #[inline]
    fn len(&self) -> usize {
        self.len
    }

    /// The slice is over, and there is somebody to give way to.
    #[inline]
    fn tick(&mut self, _current: &E, ran: Nanos) -> bool {
        ran >= self.slice && self.len != 0
    }

    /// Never: a woken task waits for its turn.
    #[inline]
    fn wakeup_preempts(&self, _current: &E, _woken: &E) -> bool {
        false
    }

    #[inline]
    fn slice(&self, _current: &E) -> Option<Nanos> {
        (self.len != 0).then_some(self.slice)
    }

    /// From the front: it has waited longest, and its cache lines are the coldest.
    fn steal(&mut self, wanted: impl FnMut(&E) -> bool) -> Option<E> {
        let task = self.nodes.remove_first(&mut self.queue, wanted);
        self.left(task)
    }
}
