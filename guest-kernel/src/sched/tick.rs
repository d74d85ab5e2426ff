//! The end of a slice. Tickless: the timer is armed only while somebody waits for the CPU. Called by `time::timer` and by
//! whoever queues a task.

use core::sync::atomic::{AtomicU64, Ordering};

use vcpu_sched::policy::Policy;

use crate::cpu::Cpu;
use crate::time;

/// Length of a slice in TSC ticks: the same for every task under round robin.
static SLICE_TICKS: AtomicU64 = AtomicU64::new(u64::MAX >> 1);

/// Takes the slice's length, once the clock is there. Boot CPU.
pub fn init() {
    SLICE_TICKS.store(time::ticks(vcpu_sched::policy::round_robin::DEFAULT_SLICE), Ordering::Relaxed);
}

/// When the slice of the current task ends, in TSC ticks.
#[inline(always)]
pub(super) fn slice_end(picked_at: u64) -> u64 {
    picked_at.wrapping_add(SLICE_TICKS.load(Ordering::Relaxed))
}

/// This CPU's queue has something: leave the idle task, or limit the current one's time. Own CPU, interrupts off.
pub fn note_competitor(me: &Cpu) {
    if super::is_idle(me) {
        me.need_resched.store(true, Ordering::Relaxed);
    } else {
        me.timers.arm_slice(slice_end(me.picked_at.load(Ordering::Relaxed)));
    }
}

/// The timer has fired: has the current task had its share? Own CPU, interrupts off.
pub fn slice_over(me: &Cpu, now: u64) {
    if super::is_idle(me) || me.run_queue.lock_irqs_off().is_empty() {
        return;
    }
    let end = slice_end(me.picked_at.load(Ordering::Relaxed));
    if now >= end {
        me.need_resched.store(true, Ordering::Relaxed);
    } else {
        me.timers.arm_slice(end);
    }
}
