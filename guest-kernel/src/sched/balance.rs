//! Taking work from other CPUs, and giving it to them.
//!
//! An idle CPU pulls (`switch` calls [`pull`]); a busy one gives from its queue when its slice timer fires ([`spread`]), so the load
//! evens out without a periodic tick. Real-time tasks are placed on, pushed to and pulled by CPUs that run something lower
//! ([`lower_cpu`], [`push_realtime`], [`pull_realtime`]). All figures of other CPUs are hints; affinity is looked at again when a
//! task is picked.

use core::sync::atomic::{AtomicU64, Ordering};

use vcpu_sched::entity::Rank;
use vcpu_sched::events::MigrateReason;
use vcpu_sched::ids::CpuId;

use super::place::{self, Why};
use super::Queue;
use crate::cpu::{self, Cpu};
use crate::task::{Task, TaskRef};

/// CPUs in whose queues real-time tasks wait, one bit each. Written with that CPU's run queue locked.
static REALTIME: AtomicU64 = AtomicU64::new(0);

fn load(cpu: &Cpu) -> u32 {
    cpu.nr_running.load(Ordering::Relaxed)
}

/// Takes a task that `wanted` finds in another CPU's queue out of it.
fn take(from: &Cpu, wanted: impl FnOnce(&mut Queue) -> Option<TaskRef>) -> Option<TaskRef> {
    let mut rq = from.run_queue.lock_irqs_off();
    let task = wanted(&mut rq)?;
    place::publish(from, &rq);
    Some(task)
}

/// Takes a task from another CPU into this CPU's queue, which is empty: from the one with the most, else from any. Interrupts
/// are off, no run queue is locked.
pub(super) fn pull(me: &Cpu) -> bool {
    let crowded = |c: &&Cpu| c.id != me.id && load(c) > 1;
    let from = |c: &Cpu| take(c, |rq| rq.steal(|t| t.allowed_on(me.id) && !place::is_tied(t)));
    let busiest = cpu::all().filter(crowded).max_by_key(|c| load(c));
    let Some(busiest) = busiest else { return false };
    let others = cpu::all().filter(|c| crowded(c) && c.id != busiest.id);
    let Some(task) = core::iter::once(busiest).chain(others).find_map(from) else { return false };
    place::enqueue_on(me.id, task, Why::Migrate(MigrateReason::IdlePull));
    true
}

/// Gives a waiting task to the CPU with the least, if that evens the load out. Interrupts are off, no run queue is locked.
pub(super) fn spread(me: &Cpu) {
    let Some(to) = cpu::all().filter(|c| c.id != me.id).min_by_key(|c| load(c)) else { return };
    if load(me) < load(to) + 2 {
        return;
    }
    let task = take(me, |rq| rq.steal(|t| t.allowed_on(to.id) && !place::is_tied(t)));
    if let Some(task) = task {
        place::enqueue_on(to.id, task, Why::Migrate(MigrateReason::Balance));
    }
}

/// The CPU whose running task is lowest and lower than `task`, for a real-time task that would otherwise wait. The one that it
/// ran on last is preferred to its equals.
pub(super) fn lower_cpu(task: &Task) -> Option<CpuId> {
    if task.sched.rank() != Rank::Realtime {
        return None;
    }
    lowest(task, task.sched.tag().prio)
}

/// The allowed CPU with the lowest running task, if it is lower than priority `than` (greater numbers are lower).
fn lowest(task: &Task, than: u8) -> Option<CpuId> {
    let last = task.cpu.load(Ordering::Relaxed);
    let allowed = cpu::all().filter(|c| task.allowed_on(c.id));
    let lowest = allowed.max_by_key(|c| (c.prio.load(Ordering::Relaxed), c.id.0 == last))?;
    (lowest.prio.load(Ordering::Relaxed) > than).then_some(lowest.id)
}

/// Keeps [`REALTIME`] true for a CPU, whose queue is locked.
#[inline(always)]
pub(super) fn note_realtime(cpu: &Cpu, rq: &Queue) {
    let (waits, bit) = (rq.highest_realtime() != 0, 1 << cpu.id.0);
    if waits != (REALTIME.load(Ordering::Relaxed) & bit != 0) {
        if waits {
            REALTIME.fetch_or(bit, Ordering::Relaxed);
        } else {
            REALTIME.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}

/// Whether real-time tasks wait in this CPU's queue.
#[inline(always)]
pub(super) fn realtime_here(me: &Cpu) -> bool {
    REALTIME.load(Ordering::Relaxed) & 1 << me.id.0 != 0
}

/// Whether real-time tasks wait in other CPUs' queues.
#[inline(always)]
pub(super) fn realtime_elsewhere(me: &Cpu) -> bool {
    REALTIME.load(Ordering::Relaxed) & !(1 << me.id.0) != 0
}

/// This CPU is about to pick, and has no real-time task above priority `above` in its queue: takes one that waits elsewhere.
/// Interrupts are off, no run queue is locked.
#[cold]
pub(super) fn pull_realtime(me: &Cpu, above: u8) {
    let mask = REALTIME.load(Ordering::Relaxed);
    let wanted = |rq: &mut Queue| rq.steal_realtime(above, |t| t.allowed_on(me.id) && !place::is_tied(t));
    let from = cpu::all().filter(|c| c.id != me.id && mask >> c.id.0 & 1 != 0);
    let task = { from }.find_map(|c| take(c, wanted));
    if let Some(task) = task {
        place::enqueue_on(me.id, task, Why::Migrate(MigrateReason::Push));
    }
}

/// Sends a real-time task that waits here to a CPU that runs something lower. Own CPU, interrupts off, no run queue locked.
#[cold]
pub(super) fn push_realtime(me: &Cpu) {
    if cpu::count() == 1 {
        return;
    }
    let mut target = None;
    let task = take(me, |rq| {
        rq.steal_realtime(0, |t| {
            target = (!place::is_tied(t)).then(|| lowest(t, t.sched.tag().prio)).flatten();
            target.is_some_and(|cpu| cpu != me.id)
        })
    });
    if let (Some(task), Some(target)) = (task, target) {
        place::enqueue_on(target, task, Why::Migrate(MigrateReason::Push));
    }
}
