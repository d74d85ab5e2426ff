//! What a point may do. Only [`super::point`] and the places that hold interrupts back come here.
//!
//! What is allowed depends on where we are. With interrupts on, an interrupt could come right now, so everything that an
//! interrupt brings about is legal. With interrupts off, our caller may hold locks, this CPU's run queue among them: then the
//! current task is only asked to give way later, and ready tasks may move, if the queue is free. At the edges of system calls no
//! lock at all is held: there any blocked task may be woken.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use vcpu_sched::events::ChaosAction;
use vcpu_sched::ids::{CpuId, Nanos};

use super::{ON, PerCpu, Point, RATE, clock, this};
use crate::arch::instr;
use crate::cpu::{self, Cpu};
use crate::sched;
use crate::sync::IrqGuard;
use crate::task::{Task, current, table};
use crate::time::timer;
use crate::trace;

/// How long an interrupt is held back at most, if no other point comes first.
const HOLD: Nanos = Nanos::from_millis(1);
/// Virtual time that a point takes at most, in nanoseconds, as a mask; system calls and faults take longer.
const SHORT: u64 = 0xff;
const LONG: u64 = 0x3fff;

/// What is left to do when the point's own work is done.
#[derive(PartialEq, Eq)]
enum Then {
    GoOn,
    Preempt,
}

/// Carries a point out.
#[cold]
#[inline(never)]
pub(super) fn at(point: Point) {
    let interrupts = instr::interrupts_enabled();
    instr::cli();
    let then = decide(point, interrupts);
    if interrupts {
        match then {
            // Left and entered again like an interrupt: not through a guard, whose end would be a point.
            Then::Preempt => sched::preempt_now(),
            Then::GoOn => sched::preempt_if_needed(),
        }
        instr::sti();
    }
}

fn decide(point: Point, interrupts: bool) -> Then {
    let (me, mine) = (cpu::this(), this());
    if mine.busy.load(Ordering::Relaxed) || clock::quiet() {
        return Then::GoOn;
    }
    let random = mine.random.next();
    if clock::on() {
        let most = if matches!(point, Point::SyscallEnter | Point::Fault) { LONG } else { SHORT };
        clock::advance(1 + (random >> 32 & most));
        if interrupts && me.timers.armed_for() <= clock::now() {
            timer::interrupt(me);
        }
    }
    mine.busy.store(true, Ordering::Relaxed);
    release(mine);
    let hit = (random as u32).is_multiple_of(RATE.load(Ordering::Relaxed));
    let then = if hit { act(me, mine, point, interrupts) } else { Then::GoOn };
    mine.busy.store(false, Ordering::Relaxed);
    then
}

fn act(me: &Cpu, mine: &PerCpu, point: Point, interrupts: bool) -> Then {
    let random = mine.random.next();
    let record = |action| trace::chaos(point as u32, action, random);
    let edge = matches!(point, Point::SyscallEnter | Point::SyscallExit);
    match random % 4 {
        0 if point == Point::Block => {
            record(ChaosAction::SpuriousWake);
            sched::wake(&current().to_arc());
        }
        0 | 1 if edge => {
            if let Some(task) = victim(random) {
                record(ChaosAction::SpuriousWake);
                sched::wake(&task);
            }
        }
        2 if cpu::count() > 1 => {
            let to = CpuId((random >> 32) as u32 % cpu::count());
            if to != me.id && sched::give_away(me, to) {
                record(ChaosAction::Migrate);
            }
        }
        _ => {
            record(ChaosAction::Preempt);
            if interrupts {
                return Then::Preempt;
            }
            sched::preempt_soon(me);
        }
    }
    Then::GoOn
}

/// A living task, blocked or not.
fn victim(random: u64) -> Option<Arc<Task>> {
    table::random((random >> 32) as u32)
}

/// Whether the reschedule interrupt to `target` shall come later: at this CPU's next point, or when its timer fires.
#[inline(always)]
pub fn holds_back(target: &Cpu) -> bool {
    // Relaxed: as in `point`.
    ON.load(Ordering::Relaxed) && hold(target)
}

#[cold]
fn hold(target: &Cpu) -> bool {
    let _irq = IrqGuard::new();
    let mine = this();
    if mine.busy.load(Ordering::Relaxed) || clock::quiet() {
        return false;
    }
    let random = mine.random.next();
    // Interrupts are few: every fourth at least.
    if !(random as u32).is_multiple_of(RATE.load(Ordering::Relaxed).min(4)) {
        return false;
    }
    trace::chaos(Point::Ipi as u32, ChaosAction::DelayIpi, random);
    mine.held.insert(target.id, Ordering::Relaxed);
    cpu::this().timers.fire_within(HOLD);
    true
}

/// Sends what was held back. Own CPU, interrupts off.
pub fn send_held() {
    if ON.load(Ordering::Relaxed) {
        release(this());
    }
}

fn release(mine: &PerCpu) {
    mine.held.drain(Ordering::Relaxed, |id| cpu::get(id).into_iter().for_each(sched::send));
}

/// Tells, once, that this run can't be repeated.
pub(super) fn not_repeatable() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    trace::chaos(0, ChaosAction::RealTimer, 0);
    if !TOLD.swap(true, Ordering::Relaxed) {
        crate::warn!(
            "chaos: task {} computed for seconds without a system call: this run is not repeatable",
            current().id.0
        );
    }
}
