//! The stop class: the kernel's own errands on a CPU, above everything, each until it blocks or ends. In order of
//! arrival; nothing preempts one, not even another. Called through [`Policy`] by a run queue.

use super::list::{List, Nodes};
use super::{EnqueueReason, Entity, Policy};
use crate::ids::Nanos;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Stop<E> {
    nodes: Nodes<E>,
    queue: List,
    len: usize,
}

impl<E: Entity> Stop<E> {
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

impl<E: Entity> Default for Stop<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Entity> Policy<E> for Stop<E> {
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

    /// Nothing: such a task is there for this CPU.
    fn steal(&mut self, _wanted: impl FnMut(&E) -> bool) -> Option<E> {
        None
    }
}
