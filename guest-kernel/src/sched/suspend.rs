//! Tasks that somebody outside holds off their programs. The protocol is `vcpu_sched::task::suspension`'s.
//!
//! [`hold`] is for the task that serves requests: it waits. A held task goes on in the kernel until it would return to its program,
//! so whatever it has locked is given back; there it waits ([`wait_while_held`], called by `arch::trap`) until it is let go.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::CpuId;
use vcpu_sched::task::state::Event;
use vcpu_sched::task::suspension::Holder;

use super::{block, set_affinity, wake};
use crate::cpu;
use crate::task::{Current, Task, current, work};
use crate::trace;

/// The task is to end and can't be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending;

/// Holds a task that isn't the current one. When this returns, it executes nothing of its program until it is let go; one that was
/// ready takes one more turn within the kernel, to park. Only for a task of the stop class, which no other keeps from a CPU.
///
/// # Errors
/// [`Ending`].
pub fn hold(task: &Arc<Task>, by: Holder) -> Result<(), Ending> {
    if !task.suspension.hold(by) {
        return Err(Ending);
    }
    // SeqCst, after the word: a task that doesn't see this on its way to ring 3 is still on its CPU when we look below.
    task.work.fetch_or(work::HELD, Ordering::SeqCst);
    let me = current().to_arc();
    let mut moved = false;
    // Where we run nobody else does. It may have gone elsewhere before we came, but only within the kernel. Acquire: if it reads
    // as clear, what it has saved is visible.
    while task.on_cpu.load(Ordering::Acquire) {
        let there = CpuId(task.cpu.load(Ordering::Relaxed));
        // A task of the stop class has no budget that could be refused.
        let _ = set_affinity(&me, &CpuMask::one_shot(there));
        moved = true;
    }
    if moved {
        let _ = set_affinity(&me, &CpuMask::full(cpu::MAX_CPUS as u32));
    }
    Ok(())
}

/// `by` holds the task no more.
pub fn let_go(task: &Arc<Task>, by: Holder) {
    if task.suspension.release(by) {
        wake(task);
    }
}

/// The task is to end: nobody holds it any more, now or later. The caller makes it look at its work.
pub fn lift(task: &Arc<Task>) {
    task.suspension.lift();
    wake(task);
}

/// Waits, on the way to ring 3, until nobody holds the running task.
pub fn wait_while_held(me: Current<'_>) {
    // Before the look: what holds us from now on sets it again.
    me.work.fetch_and(!work::HELD, Ordering::SeqCst);
    loop {
        me.set_wait_reason(WaitReason::Suspended);
        let announced = me.state.apply(Event::Block);
        debug_assert!(announced.is_ok());
        if !me.suspension.is_held() {
            let _ = me.state.apply(Event::CancelBlock);
            return;
        }
        trace::block(WaitReason::Suspended, 0);
        block();
    }
}
