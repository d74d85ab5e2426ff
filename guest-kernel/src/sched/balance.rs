//! Taking work from other CPUs. Called by `switch` when a CPU has found nothing in its own queue.

use core::sync::atomic::Ordering;

use vcpu_sched::ids::Nanos;
use vcpu_sched::policy::{EnqueueReason, Policy};

use super::place;
use crate::cpu::{self, Cpu};

/// Takes a task from the CPU with the most into this CPU's queue, which is empty. Interrupts are off, no run queue is locked.
pub(super) fn steal(me: &Cpu, now: Nanos) -> bool {
    if cpu::count() == 1 {
        return false;
    }
    let busiest = cpu::all()
        .filter(|c| c.id != me.id && c.nr_running.load(Ordering::Relaxed) > 1)
        .max_by_key(|c| c.nr_running.load(Ordering::Relaxed));
    let Some(busiest) = busiest else { return false };
    let stolen = {
        let mut rq = busiest.run_queue.lock_irqs_off();
        let stolen = rq.steal(|t| t.allowed_on(me.id) && !place::is_tied(t));
        if stolen.is_some() {
            busiest.nr_running.store(busiest.nr_running.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        }
        stolen
    };
    let Some(stolen) = stolen else { return false };
    let mut rq = me.run_queue.lock_irqs_off();
    place::note_cpu(&stolen, me.id);
    rq.enqueue(stolen, EnqueueReason::Migrate, now);
    me.nr_running.store(me.nr_running.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    true
}
