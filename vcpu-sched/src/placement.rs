//! Which CPU a task goes to: when it wakes, when it is new, and what a CPU does with one that it may not run.
//!
//! Pure functions, called by whoever won the right to enqueue a task ([`Action::Enqueue`](crate::task::state::Action)).
//! They take no lock and read no clock; [`CpuView`] is a snapshot that may be stale, and a stale choice is only slower,
//! never wrong. The invariant: a choice is always in the task's affinity mask, and online unless no CPU of the mask is.

use crate::cpumask::CpuMask;
use crate::ids::CpuId;

/// What placement needs to know of a task.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'a> {
    /// Where it ran last: its cache lines may still be there.
    pub last_cpu: CpuId,
    /// Where it may run. Never empty: `sched_setaffinity(2)` refuses that.
    pub allowed: &'a CpuMask,
}

/// What placement needs to know of the CPUs. May be stale.
pub trait CpuView {
    /// The CPUs that take tasks.
    fn online(&self) -> &CpuMask;
    /// Does the CPU have nothing to do? Asked only for CPUs that are online.
    fn is_idle(&self, cpu: CpuId) -> bool;
    /// How many tasks run and wait there, the current one included. Asked only for CPUs that are online.
    fn nr_running(&self, cpu: CpuId) -> u32;
}

/// Chooses the CPU for a waking task, in this order: its last CPU if idle; the waker's if idle; any idle one, searched
/// from the last CPU upwards; else the less loaded of the last and the waker's, the last if equal; else (neither is
/// allowed) the least loaded of all.
///
/// If no allowed CPU is online, it is the first allowed one: the task waits there until it comes. An empty `allowed`,
/// which must not be, gives `last_cpu`.
pub fn select_cpu(task: &Placement<'_>, waker: CpuId, view: &impl CpuView) -> CpuId {
    let online = view.online();
    let usable = |cpu| task.allowed.test(cpu) && online.test(cpu);
    let last = task.last_cpu;
    let last_usable = usable(last);
    if last_usable && view.is_idle(last) {
        return last;
    }
    let waker_usable = usable(waker);
    if waker_usable && view.is_idle(waker) {
        return waker;
    }
    if let Some(idle) = task.allowed.iter_both_from(online, last).find(|&cpu| view.is_idle(cpu)) {
        return idle;
    }
    match (last_usable, waker_usable) {
        (true, true) if view.nr_running(waker) < view.nr_running(last) => waker,
        (true, _) => last,
        (false, true) => waker,
        (false, false) => least_loaded(task.allowed, last, view).unwrap_or(last),
    }
}

/// Chooses the CPU for a task that never ran: the least loaded one of its mask, and of equally loaded ones the next
/// after `after`. A caller that passes the CPU chosen last gets round robin among equals.
///
/// If no allowed CPU is online, it is the first allowed one; an empty `allowed`, which must not be, gives `after`.
pub fn select_cpu_new(allowed: &CpuMask, after: CpuId, view: &impl CpuView) -> CpuId {
    least_loaded(allowed, CpuId(after.0.wrapping_add(1)), view).unwrap_or(after)
}

/// The least loaded allowed CPU that is online, the first from `start` of equals; else the first allowed one, if any.
fn least_loaded(allowed: &CpuMask, start: CpuId, view: &impl CpuView) -> Option<CpuId> {
    let mut best = None;
    for cpu in allowed.iter_both_from(view.online(), start) {
        let load = view.nr_running(cpu);
        if best.is_none_or(|(_, least)| load < least) {
            best = Some((cpu, load));
            if load == 0 {
                break;
            }
        }
    }
    best.map(|(cpu, _)| cpu).or_else(|| allowed.first())
}

/// Chooses the queue for a task that the caller has just woken (`Blocked -> Ready`).
///
/// `stack_on` is the task's `on_cpu`, read after the wake-up was won. If a CPU still stands on the task's stack, the task
/// goes to that CPU's queue even if its affinity now forbids that CPU: it is the only one that knows when the stack is
/// free, and it forwards the task then ([`pick_verdict`]). Else it is [`select_cpu`].
#[inline]
pub fn enqueue_target(stack_on: Option<CpuId>, task: &Placement<'_>, waker: CpuId, view: &impl CpuView) -> CpuId {
    match stack_on {
        Some(cpu) => cpu,
        None => select_cpu(task, waker, view),
    }
}

/// What a CPU does with a task that it took from its own queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PickVerdict {
    /// Run it. If this CPU still stands on its stack, it is the task that called `schedule()`, and nothing is switched.
    Run,
    /// Its affinity forbids this CPU: take the pick back ([`PutReason::Migrate`](crate::policy::PutReason)), enqueue it
    /// where [`select_cpu`] says, kick that CPU, and pick again.
    Forward,
    /// As `Forward`, but this CPU still stands on its stack: take the pick back, pick again, switch, and forward it after
    /// the switch, when its `on_cpu` is cleared. Only the task that is being left can be so, hence one place to remember it is enough.
    ForwardAfterSwitch,
}

/// Decides what the CPU `this` does with a task that it picked. `stack_in_use` says whether the task's `on_cpu` is set,
/// which for a task in `this` CPU's queue can only mean this CPU.
#[inline]
pub const fn pick_verdict(this: CpuId, allowed: &CpuMask, stack_in_use: bool) -> PickVerdict {
    match (allowed.test(this), stack_in_use) {
        (true, _) => PickVerdict::Run,
        (false, false) => PickVerdict::Forward,
        (false, true) => PickVerdict::ForwardAfterSwitch,
    }
}
