//! Steal-aware placement: FIFO, but a task is never given to a vCPU that the host has preempted while another is running or
//! halts: there it would wait for the host's scheduler, too. Among good ones, the one from which the host stole least lately.

use alloc::vec::Vec;

use super::{Decisions, Policy, Queue, Ready, View};
use crate::delegation::abi::host_flags;
use crate::ids::{CpuId, Nanos};

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub struct StealAware {
    queue: Queue,
    /// What was stolen up to the last look, and an average of what came since, for each CPU.
    stolen: Vec<(Nanos, u64)>,
    order: Vec<(bool, u64, CpuId)>,
}

impl StealAware {
    /// Is the vCPU preempted, and how much was stolen from it lately? Both are no without a word from the host.
    fn judge(&mut self, view: &View<'_>, cpu: CpuId) -> (bool, u64) {
        self.stolen.resize(view.cpus.len(), (Nanos::ZERO, 0));
        let (Some(host), Some((before, average))) = (view.host(cpu), self.stolen.get_mut(cpu.index())) else {
            return (false, 0);
        };
        let lately = (host.stolen - *before).0;
        *before = host.stolen;
        // An eighth of the new: one bad moment is forgotten after a few looks.
        *average = *average - *average / 8 + lately / 8;
        let preempted = host.flags & (host_flags::RUNNING | host_flags::HALTED) == 0;
        (preempted, *average)
    }
}

impl Policy for StealAware {
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
        let mut order = core::mem::take(&mut self.order);
        order.clear();
        for cpu in view.idle.iter() {
            let (preempted, stolen) = self.judge(view, cpu);
            order.push((preempted, stolen, cpu));
        }
        order.sort_unstable();
        // Is there one that will be free soon, and runs? Then a preempted one isn't worth it.
        let runs = |cpu: CpuId| view.host(cpu).is_some_and(|host| host.flags & host_flags::RUNNING != 0);
        let better = view.cpus.iter().enumerate().any(|(n, state)| state.member && runs(CpuId(n as u32)));
        for &(preempted, _, cpu) in &order {
            if preempted && better {
                break;
            }
            let Some(slot) = self.queue.pop() else { break };
            decisions.run(cpu, slot);
        }
        self.order = order;
    }
}
