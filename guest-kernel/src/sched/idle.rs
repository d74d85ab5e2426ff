//! The idle task of each CPU.

use core::sync::atomic::Ordering;

use super::{delegated, place};
use crate::arch::instr;
use crate::chaos;
use crate::cpu;
use crate::rcu;
use crate::sched;
use crate::trace;

/// Halts until there is something to run; never returns. The CPU's own idle task runs it.
pub fn run() -> ! {
    // A CPU that has never looked for work is not known as idle, and nobody would call it for a task that waits elsewhere. It must
    // say so itself: while the CPUs come up their number is still 1, and a lone CPU looks nowhere.
    place::announce_idle(cpu::this());
    instr::cli();
    sched::preempt_now();
    loop {
        instr::cli();
        let me = cpu::this();
        delegated::poll(me);
        // The race with a remote enqueue is decided in `SleepState`: either the waker sees that we sleep and sends an
        // interrupt, or we see its kick here and look again.
        if me.need_resched.load(Ordering::Relaxed) || !me.sleep.prepare_idle() || delegated::is_asked(me) {
            me.sleep.leave_idle();
            sched::preempt_now();
            instr::sti();
            continue;
        }
        rcu::enter_idle();
        trace::halt(false, me.nr_running.load(Ordering::Relaxed));
        if !chaos::clock::skip(me) {
            instr::sti_hlt();
            instr::cli();
        }
        trace::halt(true, me.nr_running.load(Ordering::Relaxed));
        me.sleep.leave_idle();
        sched::preempt_now();
        instr::sti();
    }
}
