//! Preemptive global queue: FIFO, but after a slice a task goes back to the end if another waits. Short requests don't wait for
//! long ones (Kaffes et al., "Shinjuku", NSDI 2019).

use super::{Decisions, Policy, Queue, Ready, View};
use crate::ids::Nanos;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Shinjuku {
    queue: Queue,
    slice: Nanos,
}

impl Shinjuku {
    /// The usual slice.
    pub const SLICE: Nanos = Nanos::from_micros(1_000);

    /// With that slice.
    pub fn new(slice: Nanos) -> Self {
        Self { queue: Queue::default(), slice }
    }
}

impl Policy for Shinjuku {
    fn enqueue(&mut self, _view: &View<'_>, slot: u32, _why: Ready) {
        self.queue.push(slot);
    }

    fn dequeue(&mut self, _view: &View<'_>, slot: u32) {
        self.queue.remove(slot);
    }

    fn decide(&mut self, view: &View<'_>, decisions: &mut Decisions) {
        if self.queue.is_empty() {
            return;
        }
        for cpu in view.idle.iter() {
            let Some(slot) = self.queue.pop() else { return };
            decisions.run(cpu, slot);
        }
        for cpu in view.open.iter().filter(|&cpu| !view.idle.test(cpu)) {
            let over = view.cpu(cpu).is_some_and(|state| view.now - state.since >= self.slice);
            if over {
                let Some(slot) = self.queue.pop() else { return };
                // The one that runs is preempted by this, and comes back by `enqueue`.
                decisions.run(cpu, slot);
            }
        }
    }
}
