//! Tasks that come into the class or leave it: because an agent comes or goes, or because somebody changes them.
//!
//! Invariant: no run queue is locked here when the enclave's lock is taken, and the other way round.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::delegation::life::Life;
use vcpu_sched::events::MigrateReason;
use vcpu_sched::params::SchedParams;
use vcpu_sched::policy::EnqueueReason;

use super::super::place;
use super::super::{Queue, with_queue_of};
use super::{effects, exists, hosted, on};
use crate::cpu::{self, Cpu};
use crate::sync::IrqGuard;
use crate::task::{Task, TaskRef, table};
use crate::time;

/// An agent has come, and tasks of the class are still in run queues.
static GATHER: AtomicBool = AtomicBool::new(false);

/// Says in the log who decides from now on.
pub fn report(life: Life) {
    match life {
        Life::Ejected { nonce, reason } => {
            crate::warn!("enclave: agent {nonce:#x} was ejected: {reason}; its tasks run on as ordinary ones");
        }
        _ => crate::warn!("enclave: no agent any more; its tasks run on as ordinary ones"),
    }
}

/// An agent has come.
pub fn announce() {
    GATHER.store(true, Ordering::Relaxed);
    crate::info!("enclave: an agent decides for the delegated tasks");
}

/// Brings tasks where they belong since an agent has come or gone. Interrupts are off, no lock is held.
pub fn house(me: &Cpu) {
    let taken = hosted::with(|hosted, _| core::mem::take(&mut hosted.homeless));
    if let Some((homeless, effects)) = taken {
        for task in homeless {
            place::place_again(task, MigrateReason::Delegated);
        }
        effects::carry_out(me, effects);
    }
    if GATHER.swap(false, Ordering::Relaxed) {
        for task in table::snapshot() {
            if task.sched.wants_delegation() {
                pull_in(&task);
            }
        }
    }
}

/// What is left to do when the run queue is unlocked again.
enum Then {
    Nothing,
    /// The task's CPU needs an interrupt.
    Kick(&'static Cpu),
    /// The task was taken out of its queue.
    Place(TaskRef),
}

/// Takes a task out of a run queue, or has it leave its CPU soon; either way it comes into the enclave. One that is blocked comes
/// when it wakes.
fn pull_in(task: &Arc<Task>) {
    if !on() {
        return;
    }
    match with_queue_of(task, |cpu, rq| act(cpu, rq, task)) {
        None | Some(Then::Nothing) => {}
        Some(Then::Kick(cpu)) => place::kick_now(cpu),
        Some(Then::Place(task)) => place::place_again(task, MigrateReason::Delegated),
    }
}

/// With the run queue locked that the task is in, runs on or has left.
fn act(cpu: &Cpu, rq: &mut Queue, task: &Arc<Task>) -> Then {
    let Some(cpu) = cpu::get(cpu.id) else { return Then::Nothing };
    if core::ptr::eq(cpu.chosen.load(Ordering::Relaxed), Arc::as_ptr(task)) {
        let delegated = task.sched.is_delegated();
        return if !delegated && place::request(cpu::this(), cpu, true) { Then::Kick(cpu) } else { Then::Nothing };
    }
    // SAFETY: `task` is an Arc that outlives the handle.
    let handle = unsafe { place::borrowed(Arc::as_ptr(task)) };
    let Some(queued) = rq.dequeue(&handle) else { return Then::Nothing };
    if place::is_tied(task) {
        rq.enqueue(queued, EnqueueReason::Migrate, time::at_tsc(time::tsc()));
        return Then::Nothing;
    }
    place::publish(cpu, rq);
    Then::Place(queued)
}

/// A task's parameters were changed. No lock is held.
pub fn set_params(task: &Arc<Task>, new: &SchedParams) {
    if !exists() {
        return;
    }
    let _irq = IrqGuard::new();
    let me = cpu::this();
    let wants = task.sched.wants_delegation();
    let changed = hosted::with(|hosted, now| match hosted.seat_of(task) {
        Some(slot) if wants => {
            let _ = hosted.enclave.set_nice(slot, new.nice.get().into(), now);
            true
        }
        Some(slot) => {
            hosted.depart(slot, now);
            true
        }
        None => false,
    });
    let Some((seated, effects)) = changed else { return };
    effects::carry_out(me, effects);
    match (wants, seated) {
        (true, false) => pull_in(task),
        (false, true) => house(me),
        _ => {}
    }
}

/// Where the task may run was changed. No lock is held.
pub fn set_allowed(task: &Task, allowed: &CpuMask) {
    if !exists() {
        return;
    }
    let _irq = IrqGuard::new();
    let changed = hosted::with(|hosted, now| {
        if let Some(slot) = hosted.seat_of(task) {
            let _ = hosted.enclave.set_allowed(slot, allowed, now);
        }
    });
    if let Some(((), effects)) = changed {
        effects::carry_out(cpu::this(), effects);
    }
}
