//! The end of a slice, and whatever else only time brings about. Tickless: the timer is armed for the moment at which the run
//! queue must be asked again, and not at all while the running task has no competitor. Called by `time::timer` and by whoever
//! changes a queue.

use core::sync::atomic::Ordering;

use vcpu_sched::ids::Nanos;

use super::{Queue, balance, delegated, place};
use crate::cpu::Cpu;
use crate::task::TaskRef;
use crate::time;
use crate::trace;

/// When a CPU's queue, which is locked, must be asked again, in TSC ticks; `u64::MAX`: never, as things are.
#[inline(always)]
pub(super) fn next_look(cpu: &Cpu, rq: &Queue, running: Option<&TaskRef>) -> u64 {
    let slice = running.and_then(|running| rq.slice(running));
    look_at(cpu, slice, rq.next_event(), cpu.picked_at.load(Ordering::Relaxed))
}

/// [`next_look`] while a task runs that was picked at the TSC value `picked` and has this slice, and something is due at `event`.
#[inline(always)]
pub(super) fn look_at(cpu: &Cpu, slice: Option<Nanos>, event: Option<Nanos>, picked: u64) -> u64 {
    let slice = slice.map_or(u64::MAX, |slice| picked.saturating_add(cpu.clock.span_ticks(slice)));
    let look = match event {
        Some(event) => slice.min(time::tsc_at(event)),
        None => slice,
    };
    delegated::cap(cpu, look)
}

/// The timer has fired, or should have. Own CPU, interrupts off.
pub fn timer(me: &Cpu) {
    let over = {
        let mut rq = me.run_queue.lock_irqs_off();
        let tsc = time::tsc();
        me.timers.arm_slice(u64::MAX, tsc);
        let least = me.picked_at.load(Ordering::Relaxed).saturating_add(time::least_turn());
        if tsc < least {
            // Virtual time is fast, and the turn was over before its task had done anything.
            me.timers.arm_slice(least, tsc);
            return;
        }
        let over = ask(me, &mut rq, me.clock.at(tsc));
        if over {
            // Relaxed: the lock orders it. Looked at on the way out of this interrupt.
            me.need_resched.store(true, Ordering::Relaxed);
        } else {
            let running = place::running(me, &rq);
            me.timers.arm_slice(next_look(me, &rq, running.as_deref()), tsc);
        }
        over
    };
    trace::tick(over);
    if delegated::exists() {
        delegated::tick(me, time::tsc());
    }
    if me.nr_running.load(Ordering::Relaxed) > 1 {
        balance::spread(me);
    }
}

/// Whether somebody else must run now.
fn ask(me: &Cpu, rq: &mut Queue, now: Nanos) -> bool {
    let event = rq.next_event().is_some_and(|at| at <= now) && rq.event(now);
    let running = place::running(me, rq);
    // Both: a tick charges.
    let over = running.is_some_and(|running| rq.tick(&running, now));
    event || over
}

/// Another CPU has put something into this one's queue: arms the timer for it. Own CPU, interrupts off.
pub fn rearm(me: &Cpu) {
    let rq = me.run_queue.lock_irqs_off();
    if !me.need_resched.load(Ordering::Relaxed) {
        let running = place::running(me, &rq);
        me.timers.arm_slice(next_look(me, &rq, running.as_deref()), time::tsc());
    }
}
