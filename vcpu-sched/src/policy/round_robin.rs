//! Round robin: first come, first served, each for a slice. Called through [`Policy`] by a run queue; the invariant is
//! that tasks leave in the order they came, but for those that were removed out of turn.

use alloc::collections::VecDeque;

use super::{EnqueueReason, Entity, Policy};
use crate::ids::{Nanos, TaskId};

/// A slice of 10 ms: a compromise between a console that answers at once and a kernel whose every switch may be
/// interpreted. Linux's round robin has 100 ms (`RR_TIMESLICE`), its fair class about 3 ms (`base_slice_ns`).
pub const DEFAULT_SLICE: Nanos = Nanos::from_millis(10);

/// See the module's text.
#[derive(Clone, Debug)]
pub struct RoundRobin<E> {
    queue: VecDeque<E>,
    slice: Nanos,
}

impl<E> RoundRobin<E> {
    /// An empty queue with [`DEFAULT_SLICE`].
    pub const fn new() -> Self {
        Self::with_slice(DEFAULT_SLICE)
    }

    /// An empty queue whose tasks run for `slice` at a time. A slice of zero means that a task gives way at every tick.
    pub const fn with_slice(slice: Nanos) -> Self {
        Self { queue: VecDeque::new(), slice }
    }
}

impl<E> Default for RoundRobin<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Entity> Policy<E> for RoundRobin<E> {
    /// To the end, whatever the reason: a preempted task has used up its slice, because nothing else preempts here.
    #[inline]
    fn enqueue(&mut self, e: E, _why: EnqueueReason, _now: Nanos) {
        self.queue.push_back(e);
    }

    fn dequeue(&mut self, id: TaskId) -> Option<E> {
        self.steal(|e| e.id() == id)
    }

    #[inline]
    fn pick_next(&mut self, _now: Nanos) -> Option<E> {
        self.queue.pop_front()
    }

    #[inline]
    fn len(&self) -> usize {
        self.queue.len()
    }

    /// The slice is over, and there is somebody to give way to.
    #[inline]
    fn tick(&mut self, _current: &E, ran: Nanos) -> bool {
        ran >= self.slice && !self.queue.is_empty()
    }

    /// Never: a woken task waits for its turn.
    #[inline]
    fn wakeup_preempts(&self, _current: &E, _woken: &E) -> bool {
        false
    }

    #[inline]
    fn slice(&self, _current: &E) -> Nanos {
        self.slice
    }

    /// From the front: it has waited longest, and its cache lines are the coldest.
    fn steal(&mut self, wanted: impl FnMut(&E) -> bool) -> Option<E> {
        let at = self.queue.iter().position(wanted)?;
        self.queue.remove(at)
    }
}
