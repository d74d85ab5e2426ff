//! Global FIFO: one queue, and whoever has waited longest gets the next idle CPU. A task runs until it blocks or yields.
//!
//! The first policy to read and to copy.

use super::{Decisions, Policy, Queue, Ready, View};

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub struct Fifo {
    queue: Queue,
}

impl Policy for Fifo {
    fn enqueue(&mut self, _view: &View<'_>, slot: u32, _why: Ready) {
        self.queue.push(slot);
    }

    fn dequeue(&mut self, _view: &View<'_>, slot: u32) {
        self.queue.remove(slot);
    }

    fn decide(&mut self, view: &View<'_>, decisions: &mut Decisions) {
        for cpu in view.idle.iter() {
            let Some(slot) = self.queue.pop() else { break };
            decisions.run(cpu, slot);
        }
    }
}
