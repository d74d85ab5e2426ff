//! Where a task may run, changed while it is queued, runs or sleeps.
//!
//! Wrong would be: we look where the task is and find nothing to do, while a CPU that has already looked at the old mask goes
//! on to run it. It can't happen, because each side writes before it reads:
//! - we write the mask (SeqCst), then read [`Task::cpu`] and lock that run queue;
//! - whoever queues the task writes [`Task::cpu`] under the lock of the new queue, and the CPU that picks it reads the mask under
//!   the same lock, later.
//!
//! If we read the old CPU, our mask was written before the task entered the new queue, so its pick sees the new mask. If we read
//! the new one, we come to hold that queue's lock: then the task is still queued there and its pick comes after us, or it has
//! been chosen (`Cpu::chosen`, written under that lock), and we ask for a reschedule, which the pick that was made before can't
//! wipe out any more (see `switch`).

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::CpuId;

use crate::arch::{apic, descriptors::vector};
use crate::cpu;
use crate::sync::IrqGuard;
use crate::task::{Task, current};

/// Restricts a task to `mask` (not empty, and with an online CPU in it) and moves it if it is elsewhere.
pub fn set_affinity(task: &Arc<Task>, mask: &CpuMask) {
    task.set_affinity_mask(mask);
    let irq = IrqGuard::new();
    let me = cpu::this();
    let target = loop {
        // Relaxed: the mask's SeqCst exchange before is a barrier, the lock below orders the second look.
        let on = CpuId(task.cpu.load(Ordering::Relaxed));
        let Some(c) = cpu::get(on) else { return };
        if mask.test(on) {
            return; // where it is it may be; if it is on its way elsewhere, its pick there sees the mask
        }
        let rq = c.run_queue.lock_irqs_off();
        if task.cpu.load(Ordering::Relaxed) != on.0 {
            continue;
        }
        if core::ptr::eq(c.chosen.load(Ordering::Relaxed), Arc::as_ptr(task)) {
            c.need_resched.store(true, Ordering::Relaxed);
        }
        drop(rq);
        break c;
    };
    // Running: its CPU preempts it, and sends it on. Queued: it is sent on when it is picked, which is soon if nothing else runs
    // there. Blocked: at its wake-up.
    if target.id != me.id {
        let _ = target.sleep.kick();
        apic::send_ipi(target.apic_id(), vector::IPI_RESCHEDULE);
    }
    drop(irq);
    if core::ptr::eq(&*current(), Arc::as_ptr(task)) {
        super::yield_now();
    }
}
