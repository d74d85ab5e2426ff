//! Where a task may run, changed while it is queued, runs or sleeps.
//!
//! Wrong would be: we look where the task is and find nothing to do, while a CPU that has already looked at the old mask goes
//! on to run it. It can't happen, because each side writes before it reads:
//! - we write the mask (SeqCst), then read which queue the task is in (`SchedEntity::queue`) and lock that one;
//! - whoever queues the task writes that under the lock of the new queue, and the CPU that picks it reads the mask under
//!   the same lock, later.
//!
//! If we read the old CPU, our mask was written before the task entered the new queue, so its pick sees the new mask. If we read
//! the new one, we come to hold that queue's lock: then the task is still queued there, or it has been chosen (`Cpu::chosen`,
//! written under that lock), and we ask for a reschedule, which the pick that was made before can't wipe out any more (see
//! `switch`).

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::events::MigrateReason;
use vcpu_sched::ids::CpuId;
use vcpu_sched::policy::EnqueueReason;
use vcpu_sched::policy::deadline::Overcommitted;
use vcpu_sched::task::state::State;

use super::place;
use super::{Queue, delegated, params, with_queue_of};
use crate::cpu::{self, Cpu};
use crate::sync::IrqGuard;
use crate::task::{Task, TaskRef, current};
use crate::time;
use crate::trace;

/// What is left to do when the run queue is unlocked again.
enum Then {
    Nothing,
    /// The task's CPU needs an interrupt.
    Kick(CpuId),
    /// The task was taken out of its queue.
    Place(TaskRef),
    /// It waits in the queue of this CPU, which it may stay in.
    Offer(CpuId),
}

/// Restricts a task to `mask` (not empty, and with an online CPU in it) and moves it if it is elsewhere.
///
/// # Errors
/// [`Overcommitted`]: a deadline task whose budget no CPU of the mask can pay. Nothing has changed then.
pub fn set_affinity(task: &Arc<Task>, mask: &CpuMask) -> Result<(), Overcommitted> {
    params::readmit(task, mask)?;
    delegated::set_allowed(task, mask);
    record(task);
    settle(task);
    Ok(())
}

/// Tells the trace where a task may run, so that the checker knows.
pub(super) fn record(task: &Task) {
    if trace::on() {
        let mask = task.affinity.lock().to_le_bytes();
        trace::affinity(task.id, &mask[..(cpu::count() as usize).div_ceil(8)]);
    }
}

/// Moves a task that is where it may not be (any more).
pub(super) fn settle(task: &Arc<Task>) {
    {
        let _irq = IrqGuard::new();
        let me = cpu::this();
        match with_queue_of(task, |cpu, rq| act(me, cpu, rq, task)) {
            None | Some(Then::Nothing) => {}
            Some(Then::Kick(id)) => {
                if let Some(c) = cpu::get(id) {
                    place::kick_now(c);
                }
            }
            Some(Then::Place(task)) => place::place_again(task, MigrateReason::Affinity),
            Some(Then::Offer(id)) => {
                if me.elsewhere.copy_without(&task.may_run, id) {
                    place::call_idle(me, &me.elsewhere);
                }
            }
        }
    }
    if core::ptr::eq(&*current(), Arc::as_ptr(task)) && !task.allowed_on(cpu::this().id) {
        super::yield_now();
    }
}

/// With the run queue locked that the task is in, runs on or has left.
fn act(me: &Cpu, cpu: &Cpu, rq: &mut Queue, task: &Arc<Task>) -> Then {
    let allowed = task.allowed_on(cpu.id);
    if core::ptr::eq(cpu.chosen.load(Ordering::Relaxed), Arc::as_ptr(task)) {
        // Its CPU preempts it and sends it on.
        return if !allowed && place::request(me, cpu, true) { Then::Kick(cpu.id) } else { Then::Nothing };
    }
    if allowed {
        return if task.state.load() == State::Ready { Then::Offer(cpu.id) } else { Then::Nothing };
    }
    // SAFETY: `task` is an Arc that outlives the handle.
    let handle = unsafe { place::borrowed(Arc::as_ptr(task)) };
    // Not queued: it sleeps, or is on its way to a queue; the mask is looked at when it gets there. A tied one stays: its CPU
    // sends it on when it picks it.
    let Some(queued) = rq.dequeue(&handle) else { return Then::Nothing };
    if place::is_tied(task) {
        rq.enqueue(queued, EnqueueReason::Migrate, time::at_tsc(time::tsc()));
        return Then::Nothing;
    }
    place::publish(cpu, rq);
    Then::Place(queued)
}
