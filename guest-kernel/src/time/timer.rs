//! One-shot timers and the slice timer of each CPU, on one local APIC timer.
//!
//! Tickless: the hardware timer is armed only for the earliest thing that is due. Invariant: `programmed` is no later than
//! the earliest deadline of the queue and the slice; firing early costs one interrupt, firing late can't happen. A time in
//! `programmed` that has passed counts as not armed, so an interrupt that got lost delays things until somebody arms the next
//! timer here, and not for ever.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::timer::{TimerId, TimerQueue};

use crate::arch::apic;
use crate::chaos::{self, Point};
use crate::cpu::{self, Cpu};
use crate::runtime;
use crate::sched;
use crate::sync::{IrqGuard, SpinLock};
use crate::task::Task;

/// Something that a timer calls. In interrupt context: must not sleep.
pub trait TimerTarget: Send + Sync {
    /// The deadline has passed.
    fn fire(&self);
}

enum Action {
    Wake(Arc<Task>),
    Call(Arc<dyn TimerTarget>),
}

/// Timers of one CPU.
pub struct CpuTimers {
    /// Guards the queue only.
    queue: SpinLock<TimerQueue<Action>>,
    /// TSC value at which the run queue must be asked again; `u64::MAX`: never. Written with the run queue locked.
    slice_end: AtomicU64,
    /// When the first of this CPU's sleeping futures (`runtime::time`) is to be woken, in nanoseconds; `u64::MAX`: none sleeps. Own CPU,
    /// interrupts off.
    sleepers_due: AtomicU64,
    /// TSC value for which the hardware is armed; `u64::MAX`: not armed.
    programmed: AtomicU64,
}

/// An armed timer.
#[must_use = "a timer that is not cancelled will fire"]
pub struct TimerHandle {
    cpu: CpuId,
    id: TimerId,
}

impl TimerHandle {
    /// Disarms it. Returns whether it had not fired yet.
    pub fn cancel(self) -> bool {
        let action = cpu::get(self.cpu).and_then(|c| c.timers.queue.lock().cancel(self.id));
        action.is_some() // drops after the lock
    }
}

/// Wakes `task` when the monotonic clock has reached `deadline`.
pub fn wake_at(deadline: Nanos, task: Arc<Task>) -> TimerHandle {
    arm(deadline, Action::Wake(task))
}

/// Calls `target` when the monotonic clock has reached `deadline`.
pub fn call_at(deadline: Nanos, target: Arc<dyn TimerTarget>) -> TimerHandle {
    arm(deadline, Action::Call(target))
}

fn arm(deadline: Nanos, action: Action) -> TimerHandle {
    chaos::point(Point::TimerArm);
    let _irq = IrqGuard::new();
    let me = cpu::this();
    let id = me.timers.queue.lock().arm(deadline, action);
    me.timers.program(super::tsc_at(deadline), super::tsc());
    TimerHandle { cpu: me.id, id }
}

impl CpuTimers {
    /// Nothing armed.
    pub const fn new() -> Self {
        Self {
            queue: SpinLock::new(TimerQueue::new()),
            slice_end: AtomicU64::new(u64::MAX),
            sleepers_due: AtomicU64::new(u64::MAX),
            programmed: AtomicU64::new(u64::MAX),
        }
    }

    /// Has the run queue asked again at a TSC value, `u64::MAX`: not at all. `now` is the TSC. Own CPU, interrupts off, run queue
    /// locked.
    #[inline(always)]
    pub fn arm_slice(&self, end: u64, now: u64) {
        self.slice_end.store(end, Ordering::Relaxed);
        if end != u64::MAX {
            self.program(end, now);
        }
    }

    /// See [`CpuTimers::arm_slice`]. For other CPUs, with the run queue locked.
    #[inline]
    pub fn slice_end(&self) -> u64 {
        self.slice_end.load(Ordering::Relaxed)
    }

    /// Has `runtime::time` called at `deadline` or earlier. Own CPU, interrupts off.
    pub fn arm_sleepers(&self, deadline: Nanos) {
        if deadline.0 < self.sleepers_due.load(Ordering::Relaxed) {
            self.sleepers_due.store(deadline.0, Ordering::Relaxed);
        }
        self.program(super::tsc_at(deadline), super::tsc());
    }

    /// Makes the hardware fire at `tsc` or earlier. Own CPU, interrupts off.
    #[inline(always)]
    fn program(&self, tsc: u64, now: u64) {
        let programmed = self.programmed.load(Ordering::Relaxed);
        // The second: that interrupt is pending, or lost.
        if tsc < programmed || programmed < now {
            self.program_anew(tsc, programmed);
        }
    }

    #[inline(never)]
    fn program_anew(&self, tsc: u64, programmed: u64) {
        if chaos::clock::on() {
            // Nothing gets lost there, and what is due stays due until somebody looks.
            self.programmed.store(programmed.min(tsc), Ordering::Relaxed);
            return;
        }
        self.programmed.store(tsc, Ordering::Relaxed);
        apic::arm_timer(tsc);
    }

    /// What the hardware is armed for means another time now: whatever comes next arms it anew. Own CPU, interrupts off.
    pub(super) fn forget_programmed(&self) {
        self.programmed.store(u64::MAX, Ordering::Relaxed);
    }

    /// TSC value at which the timer fires; `u64::MAX`: not at all.
    pub fn armed_for(&self) -> u64 {
        self.programmed.load(Ordering::Relaxed)
    }

    /// Has the timer fire within `delay`, whatever else is armed. Own CPU, interrupts off.
    pub fn fire_within(&self, delay: Nanos) {
        let now = super::tsc();
        self.program(now.saturating_add(super::ticks(delay)), now);
    }
}

/// The hardware timer has fired on this CPU. Interrupts off.
pub fn interrupt(me: &Cpu) {
    me.stats.timer_interrupts.fetch_add(1, Ordering::Relaxed);
    let timers = &me.timers;
    timers.programmed.store(u64::MAX, Ordering::Relaxed);
    super::sync(me);
    let now = super::now();
    loop {
        // One at a time: the action runs without the lock, it may arm or cancel timers.
        let Some(action) = timers.queue.lock().pop_expired(now) else { break };
        match action {
            Action::Wake(task) => {
                sched::wake(&task);
            }
            Action::Call(target) => target.fire(),
        }
    }
    if timers.sleepers_due.load(Ordering::Relaxed) <= now.0 {
        timers.sleepers_due.store(u64::MAX, Ordering::Relaxed);
        runtime::time::expire(me);
    }
    let tsc = super::tsc();
    // Early (a hardware timer that can't count as far, a timer that was cancelled): what is left is armed again.
    let slice_end = timers.slice_end();
    if slice_end <= tsc {
        sched::timer(me);
    } else if slice_end != u64::MAX {
        timers.program(slice_end, tsc);
    }
    let next = timers.queue.lock().next_deadline();
    let next = next.map_or(u64::MAX, |next| next.0).min(timers.sleepers_due.load(Ordering::Relaxed));
    if next != u64::MAX {
        timers.program(super::tsc_at(Nanos(next)), tsc);
    }
}
