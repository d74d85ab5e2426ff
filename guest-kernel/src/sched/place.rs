//! Which CPU a ready task goes to, and telling that CPU. Used by the rest of `sched` and by everything that wakes tasks.
//!
//! Invariant: a task that another CPU still stands on, or whose FPU state lives in another CPU's registers, goes to that CPU and
//! no other; and whoever queues a task on another CPU makes sure that this CPU looks at it.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::CpuId;
use vcpu_sched::placement::{self, CpuView, Placement};
use vcpu_sched::policy::{EnqueueReason, Policy};
use vcpu_sched::task::state::{Action, Event};

use crate::arch::{apic, descriptors::vector, fpu, instr};
use crate::cpu;
use crate::sync::IrqGuard;
use crate::task::{Task, TaskRef};
use crate::time;

/// What placement sees of the CPUs.
pub(super) struct View {
    online: CpuMask,
}

impl View {
    pub(super) fn now() -> Self {
        Self { online: super::online_mask() }
    }
}

impl CpuView for View {
    fn online(&self) -> &CpuMask {
        &self.online
    }

    fn is_idle(&self, id: CpuId) -> bool {
        cpu::get(id).is_some_and(|c| c.nr_running.load(Ordering::Relaxed) == 0)
    }

    fn nr_running(&self, id: CpuId) -> u32 {
        cpu::get(id).map_or(u32::MAX, |c| c.nr_running.load(Ordering::Relaxed))
    }
}

/// Makes a blocked task ready. Costs nothing if it isn't blocked. Returns whether this call did it.
pub fn wake(task: &Arc<Task>) -> bool {
    if matches!(task.state.apply(Event::Wake), Ok(Action::Enqueue)) {
        place(TaskRef(task.clone()), EnqueueReason::Wake);
        return true;
    }
    false
}

/// Puts a ready task that is in no queue into one.
pub(super) fn place(task: TaskRef, why: EnqueueReason) {
    let _irq = IrqGuard::new();
    let me = cpu::this();
    let last = CpuId(task.cpu.load(Ordering::Relaxed));
    let target = if is_tied(&task) {
        last
    } else if cpu::count() == 1 {
        me.id
    } else if task.allowed_on(last) && cpu::get(last).is_some_and(|c| c.nr_running.load(Ordering::Relaxed) == 0) {
        last // the common answer of `select_cpu`, without building a view
    } else {
        let affinity = task.affinity.lock();
        placement::select_cpu(&Placement { last_cpu: last, allowed: &affinity }, me.id, &View::now())
    };
    enqueue_on(target, task, why);
}

/// Whether the task can only run on [`Task::cpu`], which still stands on its stack or has its FPU state in its registers.
///
/// Acquire on both: if they read as clear, the stack and the registers are left and their contents are visible.
#[inline(always)]
pub(super) fn is_tied(task: &Task) -> bool {
    task.on_cpu.load(Ordering::Acquire) || task.fpu_live.load(Ordering::Acquire) != fpu::NOT_LIVE
}

/// Puts a ready task into a CPU's queue and makes sure that the CPU will look at it. Interrupts are off.
pub(super) fn enqueue_on(target: CpuId, task: TaskRef, why: EnqueueReason) {
    let me = cpu::this();
    // Only CPUs of the online mask and CPUs that ran the task before are ever chosen.
    let Some(cpu) = cpu::get(target) else { return };
    let first = {
        let mut rq = cpu.run_queue.lock_irqs_off();
        let first = rq.is_empty();
        note_cpu(&task, target);
        rq.enqueue(task, why, time::at_tsc(instr::rdtsc()));
        cpu.nr_running.store(cpu.nr_running.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        first
    };
    if cpu.id == me.id {
        super::note_competitor(me);
        return;
    }
    // A sleeping CPU needs the interrupt to wake up; a busy one when this is the first competitor, because it runs without
    // a tick until then.
    let asleep = cpu.sleep.kick();
    if asleep || first {
        apic::send_ipi(cpu.apic_id(), vector::IPI_RESCHEDULE);
    }
}

/// The task enters a CPU's queue, which is locked.
#[inline(always)]
pub(super) fn note_cpu(task: &Task, to: CpuId) {
    if task.cpu.load(Ordering::Relaxed) != to.0 {
        task.cpu.store(to.0, Ordering::Relaxed);
        let migrations = &task.stats.migrations;
        migrations.store(migrations.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}
