//! How a task is scheduled, changed while it is queued, runs or sleeps; and what deadline tasks were promised.
//!
//! The protocol is `vcpu_sched::runqueue`'s: the request is written before the task's queue is read. Called by the ABI layer, in
//! task context with no lock held. Invariants: one change at a time (`BUDGETS`); a deadline task has a home, the CPU whose budget
//! pays for it, and `Task::may_run` holds that CPU alone, while its mask stays what the program asked for; what a task was
//! promised is given back when it leaves the class or ends.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::CpuId;
use vcpu_sched::params::{Class, DeadlineParams, SchedParams};
use vcpu_sched::policy::deadline::{Budget, Overcommitted, choose_cpu};

use super::{Queue, affinity, delegated, place, tick, with_queue_of};
use crate::cpu::{self, Cpu, MAX_CPUS};
use crate::sync::SpinLock;
use crate::task::{Task, table};
use crate::time;
use crate::trace;

/// What of each CPU is promised. Its lock also lets one change of parameters at a time happen. Taken before any run queue's.
static BUDGETS: SpinLock<[Budget; MAX_CPUS]> = SpinLock::new([const { Budget::new() }; MAX_CPUS]);

/// Changes how a task is scheduled.
///
/// # Errors
/// [`Overcommitted`]: no CPU that it may use can promise that much.
pub fn set_params(task: &Arc<Task>, new: &SchedParams) -> Result<(), Overcommitted> {
    let mut budgets = BUDGETS.lock();
    if !is_alive(task) {
        return Ok(());
    }
    let mask = task.affinity.lock().clone();
    rehome(&mut budgets, task, deadline_of(new), &mask)?;
    task.sched.request(new);
    let kick = with_queue_of(task, |cpu, rq| apply(cpu::this(), cpu, rq, task)).flatten();
    trace::params(task.id, new.tag(), new.nice.get(), task.sched.slice().0);
    drop(budgets);
    if let Some(c) = kick.and_then(cpu::get) {
        place::kick_now(c);
    }
    delegated::set_params(task, new);
    affinity::settle(task);
    Ok(())
}

/// Sets where a task may run. A deadline task is promised what it has by one of those CPUs.
///
/// # Errors
/// [`Overcommitted`]; nothing has changed then.
pub(super) fn readmit(task: &Arc<Task>, mask: &CpuMask) -> Result<(), Overcommitted> {
    let mut budgets = BUDGETS.lock();
    if is_alive(task) {
        rehome(&mut budgets, task, deadline_of(&task.sched.params()), mask)?;
        *task.affinity.lock() = mask.clone();
    }
    Ok(())
}

/// The task ends: what it was promised is free. The task has left the task table, so nobody promises it anything again.
pub(super) fn forget(task: &Task) {
    let mut budgets = BUDGETS.lock();
    release(&mut budgets, task);
}

fn is_alive(task: &Arc<Task>) -> bool {
    table::find(task.id).is_some_and(|found| Arc::ptr_eq(&found, task))
}

fn deadline_of(params: &SchedParams) -> Option<DeadlineParams> {
    match params.class {
        Class::Deadline(promise) => Some(promise),
        _ => None,
    }
}

fn release(budgets: &mut [Budget; MAX_CPUS], task: &Task) {
    if let (Some(home), Some(old)) = (task.sched.home(), deadline_of(&task.sched.params())) {
        budgets[home.index()].release(&old);
        task.sched.set_home(None);
    }
}

/// Gives back what the task was promised, and promises the new.
fn rehome(
    budgets: &mut [Budget; MAX_CPUS],
    task: &Task,
    new: Option<DeadlineParams>,
    mask: &CpuMask,
) -> Result<(), Overcommitted> {
    let before = task.sched.home().map(|home| (home, budgets[home.index()]));
    release(budgets, task);
    let Some(promise) = new else {
        task.restrict_to(mask);
        return Ok(());
    };
    let online = mask.and(&super::online_mask());
    let preferred = before.map_or_else(|| CpuId(task.cpu.load(Ordering::Relaxed)), |(home, _)| home);
    let chosen = choose_cpu(&promise, &online, preferred, |cpu| budgets[cpu.index()])
        .and_then(|cpu| budgets[cpu.index()].admit(&promise).map(|()| cpu));
    match chosen {
        Ok(home) => {
            task.sched.set_home(Some(home));
            task.restrict_to(&CpuMask::one_shot(home));
            Ok(())
        }
        Err(e) => {
            if let Some((home, budget)) = before {
                budgets[home.index()] = budget;
            }
            task.sched.set_home(before.map(|(home, _)| home));
            Err(e)
        }
    }
}

/// With the run queue locked that the task is in, runs on or has left. The CPU that needs an interrupt.
fn apply(me: &Cpu, cpu: &Cpu, rq: &mut Queue, task: &Arc<Task>) -> Option<CpuId> {
    let tsc = time::tsc();
    // SAFETY: `task` is an Arc that outlives the handle.
    let handle = unsafe { place::borrowed(Arc::as_ptr(task)) };
    let resched = rq.apply_params(&handle, time::at_tsc(tsc));
    place::publish(cpu, rq);
    let running = place::running(cpu, rq);
    if let Some(running) = &running {
        cpu.level.store(running.sched.level().get(), Ordering::Relaxed);
    }
    let kick = if resched {
        place::request(me, cpu, running.is_some())
    } else {
        let look = tick::next_look(cpu, rq, running.as_deref());
        if cpu.id == me.id {
            me.timers.arm_slice(look, tsc);
            false
        } else {
            look < cpu.timers.slice_end()
        }
    };
    kick.then_some(cpu.id)
}
