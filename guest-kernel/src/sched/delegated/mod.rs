//! The class `delegated`: tasks that an agent outside of this kernel schedules (`vcpu_sched::delegation`). Used by `sched` and by
//! those who change a task's parameters.
//!
//! One enclave with all CPUs, if the command line asks for it (`enclave=1`); without one, or without an agent in it, nothing of this
//! does anything, and each of the scheduler's hooks is one test of a word. Over the fair class, under real-time.
//!
//! A task of the class that may run waits in the enclave ([`hosted`]) instead of a run queue, with its stack and its FPU registers
//! left: so any CPU can continue it at once. Whoever schedules asks [`pick`] before it looks into its own queue; what is picked is
//! the run queue's current task like any other. Its leaving is told ([`left`]) by its successor.
//!
//! | file | what |
//! | --- | --- |
//! | `hosted` | the enclave, its lock, and the tasks that wait in it |
//! | `region` | its memory, and telling the VMM of it |
//! | `moves` | tasks that come into the class or leave it |
//! | `effects` | what has to be done when the enclave's lock is let go |
//!
//! Invariants: the enclave's lock is taken after a run queue's, never before one; a task is in a run queue, waits in the enclave,
//! runs, or is blocked, and the enclave's table agrees for those that have a seat; without an agent no task waits in the enclave.

mod effects;
mod hosted;
mod moves;
mod region;

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use vcpu_sched::delegation::enclave::Occasion;
use vcpu_sched::delegation::txn::Rest;
use vcpu_sched::events::MigrateReason;
use vcpu_sched::ids::Nanos;
use vcpu_sched::params::{Class, SchedParams};

use super::Queue;
use super::place::{self, Why};
use crate::arch::instr;
use crate::cpu::{self, Cpu};
use crate::task::{Task, TaskRef};
use crate::time;
use crate::trace;

pub use hosted::NO_SEAT;
pub use moves::{set_allowed, set_params};
pub use region::init;

/// [`EXISTS`] and [`ON`].
static STATE: AtomicU8 = AtomicU8::new(0);
/// There is an enclave.
const EXISTS: u8 = 1;
/// Tasks wait for its agent.
const ON: u8 = 2;
/// Somebody waits in the enclave, or something there is due some time: CPUs look at it every [`TICK`].
static TICKS: AtomicBool = AtomicBool::new(false);
/// Programs start in the class.
static ALL: AtomicBool = AtomicBool::new(false);
/// How often an idle CPU looks for a commit before it halts, if the agent polls.
static SPIN: AtomicU32 = AtomicU32::new(0);
/// How late the watchdog may be.
const TICK: Nanos = Nanos::from_millis(20);

/// Is there an enclave?
#[inline(always)]
pub fn exists() -> bool {
    // Relaxed, as below: a hint. What is done about it is decided again with the enclave's lock held.
    STATE.load(Ordering::Relaxed) != 0
}

/// Do tasks wait for an agent?
#[inline(always)]
fn on() -> bool {
    STATE.load(Ordering::Relaxed) & ON != 0
}

/// How programs are scheduled that say nothing.
pub fn initial_params() -> SchedParams {
    // Relaxed: set at boot.
    if ALL.load(Ordering::Relaxed) { SchedParams::of_class(Class::Delegated) } else { SchedParams::NORMAL }
}

/// A ready task that is in no queue. `Some`: nor is it the enclave's, now.
#[inline(always)]
pub(super) fn take(task: TaskRef, why: Why) -> Option<TaskRef> {
    if on() && task.sched.wants_delegation() { take_in(task, why) } else { Some(task) }
}

#[cold]
fn take_in(task: TaskRef, why: Why) -> Option<TaskRef> {
    let me = cpu::this();
    let (rest, effects) = hosted::with(|hosted, now| hosted.take(me.id, task, why, now))?;
    effects::carry_out(me, effects);
    if rest.is_none() && me.watch_at.load(Ordering::Relaxed) == 0 {
        // The watchdog's timer runs where a task was left to the agent, if nowhere else.
        super::rearm(me);
    }
    rest
}

/// Must a task that gives way here leave its CPU before it is told where it may run again? Its run queue is locked.
#[inline(always)]
pub(super) fn leaves(task: &Task) -> bool {
    exists() && (task.sched.is_delegated() || on() && task.sched.wants_delegation())
}

/// Can the task be continued elsewhere as soon as it is left? Then nothing of it may stay in this CPU's registers.
#[inline(always)]
pub(super) fn roams(task: &Task) -> bool {
    exists() && task.sched.wants_delegation()
}

/// What the enclave has for this CPU, whose run queue is locked. `prev` has given way, and may go on if it can be continued and
/// wants to be. The task that is returned is the queue's current one; if it is `prev`, with a reference of its own.
#[inline(always)]
pub(super) fn pick(me: &Cpu, rq: &mut Queue, prev: &Task, now: Nanos) -> Option<TaskRef> {
    if on() { pick_there(me, rq, prev, now) } else { None }
}

#[cold]
fn pick_there(me: &Cpu, rq: &mut Queue, prev: &Task, now: Nanos) -> Option<TaskRef> {
    let above = rq.waits_above_delegated();
    let may_keep = me.forward.load(Ordering::Relaxed) && !me.gave_way.load(Ordering::Relaxed);
    let keep = (may_keep && prev.allowed_on(me.id)).then_some(prev);
    let (picked, effects) = hosted::with(|hosted, _| hosted.pick(me.id, keep, above, now))?;
    effects::carry_out_locked(me, effects);
    let task = picked?;
    let from = place::note_cpu(&task, me.id);
    if from != me.id && trace::on() {
        trace::migrate(task.id, task.sched.next_place_record(), from, me.id, MigrateReason::Delegated, 0, false);
    }
    rq.pick_delegated(&task, now);
    Some(task)
}

/// A task's stack is left; `forward`: it may run, and is to be queued. `Some`: the enclave has nothing to do with it.
#[inline(always)]
pub(super) fn left(me: &Cpu, task: TaskRef, forward: bool) -> Option<TaskRef> {
    if exists() && task.seat.load(Ordering::Relaxed) != NO_SEAT { left_there(me, task, forward) } else { Some(task) }
}

#[cold]
fn left_there(me: &Cpu, task: TaskRef, forward: bool) -> Option<TaskRef> {
    let yielded = forward && me.gave_way.load(Ordering::Relaxed);
    let (rest, effects) = hosted::with(|hosted, now| hosted.left(me.id, task, forward, yielded, now))?;
    effects::carry_out(me, effects);
    rest
}

/// Somebody wants this CPU to look. Own CPU, in its interrupt.
pub fn kicked(me: &Cpu) {
    if !exists() {
        return;
    }
    let looked = hosted::with(|hosted, now| {
        hosted.enclave.poll_agent(now);
        hosted.enclave.poll(me.id, Occasion::Kick, now) || hosted.enclave.wants(me.id)
    });
    let Some((wanted, effects)) = looked else { return };
    if wanted {
        want(me);
    }
    effects::carry_out(me, effects);
    moves::house(me);
}

/// A timer has fired, perhaps for the enclave. Own CPU, interrupts off, no run queue locked.
pub(super) fn tick(me: &Cpu, tsc: u64) {
    let at = me.watch_at.load(Ordering::Relaxed);
    if at == 0 || tsc < at {
        return;
    }
    me.watch_at.store(0, Ordering::Relaxed);
    let Some((wanted, effects)) = hosted::with(|hosted, now| hosted.enclave.tick(me.id, now)) else { return };
    if wanted {
        want(me);
    }
    effects::carry_out(me, effects);
    moves::house(me);
    super::rearm(me);
}

/// When this CPU must be asked next, if its queue says `look`, both in TSC ticks. Its run queue is locked.
#[inline(always)]
pub(super) fn cap(cpu: &Cpu, look: u64) -> u64 {
    if exists() && TICKS.load(Ordering::Relaxed) { cap_now(cpu, look) } else { look }
}

#[cold]
fn cap_now(cpu: &Cpu, look: u64) -> u64 {
    // Not put off by each schedule: it stays until it fires.
    let mut at = cpu.watch_at.load(Ordering::Relaxed);
    if at == 0 {
        at = time::tsc().saturating_add(time::ticks(TICK));
        cpu.watch_at.store(at, Ordering::Relaxed);
    }
    look.min(at)
}

/// This CPU has nothing to do: polls for a while, if the agent is one that polls, too. A commit then costs no interrupt. Own CPU,
/// interrupts off; they are let in between two looks.
pub(super) fn poll(me: &Cpu) {
    let turns = SPIN.load(Ordering::Relaxed);
    if turns == 0 || !on() {
        return;
    }
    let begun = hosted::with(|hosted, now| {
        let enclave = &mut hosted.enclave;
        let polls = enclave.is_prompt();
        if polls && enclave.rest(me.id, Rest::Polls) {
            enclave.poll(me.id, Occasion::Idle, now);
        }
        (polls && !enclave.wants(me.id)).then(|| enclave.transaction_of(me.id)).flatten()
    });
    let Some((transaction, effects)) = begun else { return };
    effects::carry_out(me, effects);
    let Some(transaction) = transaction else { return };
    for _ in 0..turns {
        if transaction.is_ready() || me.need_resched.load(Ordering::Relaxed) {
            break;
        }
        core::hint::spin_loop();
        instr::sti();
        instr::cli();
    }
    // Whatever it does next, it must be kicked again.
    let ended = hosted::with(|hosted, now| {
        let enclave = &mut hosted.enclave;
        enclave.rest(me.id, Rest::Runs) && enclave.poll(me.id, Occasion::Idle, now) || enclave.wants(me.id)
    });
    let Some((asked, effects)) = ended else { return };
    effects::carry_out(me, effects);
    if asked {
        want(me);
    }
}

/// This CPU is about to halt. True: it must look again first. Own CPU, interrupts off.
pub(super) fn is_asked(me: &Cpu) -> bool {
    if !on() {
        return false;
    }
    let looked = hosted::with(|hosted, now| {
        let enclave = &mut hosted.enclave;
        enclave.rest(me.id, Rest::Halts) && enclave.poll(me.id, Occasion::Idle, now) || enclave.wants(me.id)
    });
    let Some((asked, effects)) = looked else { return false };
    effects::carry_out(me, effects);
    asked || me.need_resched.load(Ordering::Relaxed)
}

/// This CPU schedules soon. Own CPU, interrupts off, on its way out of the kernel or in the idle task.
fn want(me: &Cpu) {
    // Relaxed: as in `preempt_soon`.
    me.need_resched.store(true, Ordering::Relaxed);
}
