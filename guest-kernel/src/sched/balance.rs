//! Taking work from other CPUs, and giving it to them. `vcpu_sched::balance` decides, over figures of other CPUs that are hints;
//! affinity is looked at with the queue locked that a task is taken from.
//!
//! An idle CPU pulls (`switch` calls [`pull`]); a busy one gives from its queue when its slice timer fires ([`spread`]), so the load
//! evens out without a periodic tick. Real-time tasks go to CPUs that run something less important: pushed when they have to
//! wait ([`push_realtime`]), pulled by a CPU that is about to run something lower ([`pull_realtime`]).

use core::sync::atomic::{AtomicU32, Ordering};

use vcpu_sched::balance;
use vcpu_sched::events::MigrateReason;
use vcpu_sched::ids::CpuId;
use vcpu_sched::placement::{CpuView, Level};

use super::Queue;
use super::place::{self, View, Why};
use crate::cpu::{self, Cpu};
use crate::task::TaskRef;

/// How many CPUs have real-time tasks waiting in their queues: those whose `Cpu::waiting_realtime` isn't 0, which is written with that CPU's
/// run queue locked, as this is.
static REALTIME: AtomicU32 = AtomicU32::new(0);

/// Takes a task that `wanted` finds in another CPU's queue out of it.
fn take(from: CpuId, wanted: impl FnOnce(&mut Queue) -> Option<TaskRef>) -> Option<TaskRef> {
    let from = cpu::get(from)?;
    let mut rq = from.run_queue.lock_irqs_off();
    let task = wanted(&mut rq)?;
    place::publish(from, &rq);
    Some(task)
}

/// An ordinary task that may run on `to`, out of a locked queue.
fn steal_for(to: CpuId, rq: &mut Queue) -> Option<TaskRef> {
    rq.steal(|t| t.allowed_on(to) && !place::is_tied(t))
}

/// Takes an ordinary task that may run on `to`.
fn take_for(to: CpuId, from: CpuId) -> Option<TaskRef> {
    take(from, |rq| steal_for(to, rq))
}

/// Takes a task from another CPU into this CPU's queue, which is empty: from the best one, and if that has none that may run
/// here, from any. Interrupts are off, no run queue is locked.
pub(super) fn pull(me: &Cpu) -> bool {
    let view = View::now();
    let Some(best) = balance::idle_victim(me.id, &view) else { return false };
    let others = cpu::all().map(|c| c.id).filter(|&id| id != me.id && id != best && view.nr_running(id) > 1);
    let Some(task) = core::iter::once(best).chain(others).find_map(|from| take_for(me.id, from)) else { return false };
    place::enqueue_on(me.id, task, Why::Migrate(MigrateReason::IdlePull));
    true
}

/// Gives waiting tasks to the CPU with the least, as far as that evens the load out. Interrupts are off, no run queue is locked.
pub(super) fn spread(me: &Cpu) {
    let view = View::now();
    let Some(to) = cpu::all().map(|c| c.id).filter(|&id| id != me.id).min_by_key(|&id| view.nr_running(id)) else {
        return;
    };
    // Seen from there: it may take from us if we have the most.
    let Some(moves) = balance::periodic(to, &view).filter(|moves| moves.from == me.id) else { return };
    for _ in 0..moves.count {
        let Some(task) = take_for(to, me.id) else { return };
        place::enqueue_on(to, task, Why::Migrate(MigrateReason::Balance));
    }
}

/// Gives an ordinary task that waits here to another CPU, even or not; none while this CPU's queue is locked, even by our caller. Own
/// CPU, interrupts off, no other run queue locked.
pub fn give_away(me: &Cpu, to: CpuId) -> bool {
    let Some(mut rq) = me.run_queue.try_lock() else { return false };
    let Some(task) = steal_for(to, &mut rq) else { return false };
    place::publish(me, &rq);
    drop(rq);
    place::enqueue_on(to, task, Why::Migrate(MigrateReason::Balance));
    true
}

/// Publishes the highest real-time priority that waits in a queue, which is locked.
#[inline(always)]
pub(super) fn note_realtime(cpu: &Cpu, rq: &Queue) {
    let highest = rq.highest_realtime();
    let before = cpu.waiting_realtime.load(Ordering::Relaxed);
    if highest != before {
        note_change(cpu, before, highest);
    }
}

#[cold]
fn note_change(cpu: &Cpu, before: u8, highest: u8) {
    // Relaxed: hints, and the lock has one writer for each CPU.
    cpu.waiting_realtime.store(highest, Ordering::Relaxed);
    match (before, highest) {
        (0, _) => REALTIME.fetch_add(1, Ordering::Relaxed),
        (_, 0) => REALTIME.fetch_sub(1, Ordering::Relaxed),
        _ => return,
    };
}

/// Whether real-time tasks wait in another CPU's queue.
#[inline(always)]
pub(super) fn realtime_waits_elsewhere(me: &Cpu) -> bool {
    // Relaxed: a hint. This CPU's own part of it is right, if its queue is locked.
    let waiting = REALTIME.load(Ordering::Relaxed);
    waiting != 0 && waiting != u32::from(me.waiting_realtime.load(Ordering::Relaxed) != 0)
}

/// Whether real-time tasks wait in any queue.
#[inline(always)]
pub(super) fn realtime_waits() -> bool {
    REALTIME.load(Ordering::Relaxed) != 0
}

/// Whether this CPU, whose best waiting real-time task has priority `own` (0: none waits), should take one from elsewhere, where one waits.
#[cold]
pub(super) fn realtime_source(me: &Cpu, own: u8) -> Option<CpuId> {
    balance::pull_source(Level::realtime(own), me.id, &View::now())
}

/// Takes the most important real-time task above priority `own` that waits on `from`. Interrupts are off, no run queue is locked.
pub(super) fn pull_realtime(me: &Cpu, from: CpuId, own: u8) {
    let task = take(from, |rq| rq.steal_realtime(own, |t| t.allowed_on(me.id) && !place::is_tied(t)));
    if let Some(task) = task {
        place::enqueue_on(me.id, task, Why::Migrate(MigrateReason::Push));
    }
}

/// Sends a real-time task that waits here to a CPU that runs something lower. Own CPU, interrupts off, no run queue locked.
#[cold]
pub(super) fn push_realtime(me: &Cpu) {
    let view = View::now();
    let mut target = None;
    let task = take(me.id, |rq| {
        rq.steal_realtime(0, |t| {
            let allowed = (!place::is_tied(t)).then(|| t.affinity.lock().clone());
            target = allowed.and_then(|mask| balance::push_target(t.sched.level(), &mask, me.id, &view));
            target.is_some()
        })
    });
    if let (Some(task), Some(target)) = (task, target) {
        place::enqueue_on(target, task, Why::Migrate(MigrateReason::Push));
    }
}
