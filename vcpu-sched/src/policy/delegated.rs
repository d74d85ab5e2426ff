//! The class of tasks that an enclave's agent runs ([`delegation`](crate::delegation)), on one CPU: under real-time, over
//! the normal class.
//!
//! Who waits for what is the enclave's to know. A run queue has only the task that the enclave chose for it, as its current
//! one ([`RunQueue::pick_delegated`](crate::runqueue::RunQueue::pick_delegated)), with no slice and no successor: the agent
//! says when it ends. The invariant: a delegated task that isn't current is in the enclave; the queue here is for one that
//! was current and that somebody puts back all the same, so that it isn't lost. In order of arrival.

use super::list::{List, Nodes};
use super::{EnqueueReason, Entity, Policy};
use crate::ids::Nanos;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Delegated<E> {
    nodes: Nodes<E>,
    queue: List,
    len: usize,
}

impl<E: Entity> Delegated<E> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { nodes: Nodes::new(), queue: List::EMPTY, len: 0 }
    }

    #[inline(never)]
    fn pick_first(&mut self) -> Option<E> {
        let task = self.nodes.pop_front(&mut self.queue);
        self.len -= usize::from(task.is_some());
        task
    }
}

impl<E: Entity> Default for Delegated<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Entity> Policy<E> for Delegated<E> {
    fn enqueue(&mut self, e: E, _why: EnqueueReason, _now: Nanos) {
        self.nodes.push_back(&mut self.queue, e);
        self.len += 1;
    }

    fn dequeue(&mut self, e: &E) -> Option<E> {
        let task = self.nodes.remove(&mut self.queue, e);
        self.len -= usize::from(task.is_some());
        task
    }

    #[inline(always)]
    fn pick_next(&mut self, _now: Nanos) -> Option<E> {
        if self.len == 0 { None } else { self.pick_first() }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn tick(&mut self, _current: &E, _ran: Nanos) -> bool {
        false
    }

    fn wakeup_preempts(&self, _current: &E, _woken: &E) -> bool {
        false
    }

    fn slice(&self, _current: &E) -> Option<Nanos> {
        None
    }

    fn steal(&mut self, wanted: impl FnMut(&E) -> bool) -> Option<E> {
        let task = self.nodes.remove_first(&mut self.queue, wanted);
        self.len -= usize::from(task.is_some());
        task
    }
}
