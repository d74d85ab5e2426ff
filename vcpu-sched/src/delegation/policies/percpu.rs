//! Per-CPU FIFO: a task waits for the CPU where it ran last, whose caches it knows; a CPU with nothing to do takes from the
//! longest queue. The first of each queue lies ready in its CPU's pick-next ring, so that a CPU needn't wait for the agent.

use alloc::vec::Vec;

use super::{Decisions, Policy, Queue, Ready, View};
use crate::ids::CpuId;

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub struct PerCpu {
    queues: Vec<Queue>,
    /// What was left ready last, for each CPU, so that it isn't again.
    left: Vec<Option<u32>>,
}

impl PerCpu {
    /// The CPU's queue number: its own, or the first member's if its last one isn't in the enclave.
    fn home(&mut self, view: &View<'_>, slot: u32) -> Option<usize> {
        self.queues.resize_with(view.cpus.len(), Queue::default);
        self.left.resize(view.cpus.len(), None);
        let last = view.task(slot)?.last_cpu;
        let member = |cpu: CpuId| view.cpu(cpu).is_some_and(|state| state.member);
        if member(last) { Some(last.index()) } else { view.cpus.iter().position(|state| state.member) }
    }

    fn longest(&mut self) -> Option<&mut Queue> {
        self.queues.iter_mut().filter(|queue| !queue.is_empty()).max_by_key(|queue| queue.len())
    }
}

impl Policy for PerCpu {
    fn enqueue(&mut self, view: &View<'_>, slot: u32, _why: Ready) {
        if let Some(queue) = self.home(view, slot).and_then(|home| self.queues.get_mut(home)) {
            queue.push(slot);
        }
    }

    fn dequeue(&mut self, _view: &View<'_>, slot: u32) {
        // Where it ran last may have changed since.
        let _ = self.queues.iter_mut().any(|queue| queue.remove(slot));
        self.left.iter_mut().filter(|left| **left == Some(slot)).for_each(|left| *left = None);
    }

    fn decide(&mut self, view: &View<'_>, decisions: &mut Decisions) {
        for cpu in view.idle.iter() {
            let own = self.queues.get_mut(cpu.index()).and_then(Queue::pop);
            let Some(slot) = own.or_else(|| self.longest().and_then(Queue::pop)) else { break };
            decisions.run(cpu, slot);
        }
        for (cpu, (queue, left)) in self.queues.iter().zip(&mut self.left).enumerate() {
            let first = queue.first();
            if first.is_some() && *left != first {
                *left = first;
                decisions.leave_ready(CpuId(cpu as u32), first.unwrap_or_default());
            }
        }
    }
}
