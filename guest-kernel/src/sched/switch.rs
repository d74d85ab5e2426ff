//! Leaving one task for the next. Entered by `sched` only, with interrupts off.
//!
//! `need_resched`: whoever wants another CPU to look again sets it with that CPU's run queue locked. It is cleared under the same
//! lock, at the head of [`reschedule`], and again when something was picked after the lock had been open in between. So a request
//! either comes before the pick, which then takes into account what it was made for, or survives it; and none is left
//! behind that nobody will look at, which would keep others from sending an interrupt.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use vcpu_sched::events::{ClassTag, MigrateReason, Side, flag};
use vcpu_sched::ids::Nanos;
use vcpu_sched::placement::Level;
use vcpu_sched::policy::{EnqueueReason, PutReason};
use vcpu_sched::task::state::{Action, Event, State};

use super::place::{self, Why};
use super::{Queue, balance, delegated, load_fs_base, tick, with_queue_of};
use crate::arch::{fpu, instr, switch};
use crate::chaos::{self, Point};
use crate::cpu::{self, Cpu, shown};
use crate::mm::layout::{CPU_SLOT, USER_CPU_SLOT};
use crate::mm::page_table::Entry;
use crate::mm::shootdown;
use crate::rcu;
use crate::sync::{IrqGuard, SpinLockGuard};
use crate::task::{Task, TaskRef};
use crate::time;
use crate::trace;

/// What became of the task that is being left.
#[derive(Clone, Copy)]
struct Left {
    /// The reference that it ran on is the queue's now.
    queued: bool,
    state: State,
}

/// Applies `event` to the current task and switches to whoever runs next. Interrupts are off.
///
/// Inlined into its few callers, each of which has one event: the state table then shrinks to a comparison.
#[inline(always)]
pub(super) fn reschedule(event: Event) {
    let me = cpu::this();
    // SAFETY: the scheduler owns a reference for the running task.
    let prev: &Task = unsafe { &*me.current.load(Ordering::Relaxed) };
    let was_idle = core::ptr::eq(prev, me.idle.load(Ordering::Relaxed));

    let mut rq = me.run_queue.lock_irqs_off();
    // Relaxed: the lock orders it, see the module's text.
    me.need_resched.store(false, Ordering::Relaxed);
    let tsc = time::tsc();
    let now = me.clock.at(tsc);
    add(&prev.stats.run_ns, now.0.wrapping_sub(me.picked_time.load(Ordering::Relaxed)));
    let left =
        if was_idle { Left { queued: false, state: State::Ready } } else { put_prev(me, prev, &mut rq, event, now) };
    go_on(me, prev, rq, left, event == Event::Preempt, tsc, now);
}

/// Tells the state table and the queue what becomes of the task that is being left.
#[inline(always)]
fn put_prev(me: &Cpu, prev: &Task, rq: &mut Queue, event: Event, now: Nanos) -> Left {
    // SAFETY: tasks live in Arcs, and the scheduler owns a reference for the running one: this one. It is given away only
    // where `queued` is true.
    let held = unsafe { place::borrowed(prev) };
    let wanted_to_block = prev.state.load() == State::Blocking;
    match prev.state.apply(event) {
        Ok(Action::Enqueue) => {
            // A block that a wake-up overtook is no yield: the task asked for nothing and must not be made to pay.
            let yields = event == Event::Deschedule && !wanted_to_block;
            let (put, why) = if yields {
                (PutReason::Yield, EnqueueReason::Yield)
            } else {
                (PutReason::Preempted, EnqueueReason::Preempted)
            };
            add(if event == Event::Preempt { &prev.stats.involuntary } else { &prev.stats.voluntary }, 1);
            rq.put_prev(&held, put, now);
            if delegated::leaves(prev) {
                me.gave_way.store(yields, Ordering::Relaxed);
                me.forward.store(true, Ordering::Relaxed);
                return Left { queued: false, state: State::Ready };
            }
            if prev.allowed_on(me.id) {
                rq.enqueue(core::mem::ManuallyDrop::into_inner(held), why, now);
                return Left { queued: true, state: State::Ready };
            }
            // It may not stay here: its successor sends it on.
            me.forward.store(true, Ordering::Relaxed);
            Left { queued: false, state: State::Ready }
        }
        Ok(Action::Nothing) => {
            rq.put_prev(&held, PutReason::Block, now);
            add(&prev.stats.voluntary, 1);
            Left { queued: false, state: State::Blocked }
        }
        Ok(Action::Reap) => {
            rq.put_prev(&held, PutReason::Exit, now);
            Left { queued: false, state: State::Dead }
        }
        Err(_) => left_wrongly(prev, event),
    }
}

/// Picks the next task, and switches to it if it is another one.
#[inline(always)]
fn go_on(
    me: &'static Cpu,
    prev: &Task,
    mut rq: SpinLockGuard<'static, Queue, ()>,
    mut left: Left,
    preempted: bool,
    tsc: u64,
    now: Nanos,
) {
    let idle: *const Task = me.idle.load(Ordering::Relaxed);
    let was_idle = core::ptr::eq(prev, idle);
    // One ordinary task in, one out: the queue's figures stay as they are.
    let mut settled = left.queued && me.level.load(Ordering::Relaxed) == Level::NORMAL.get();
    // The pick is an ordinary task, for which there is less to ask below.
    let mut normal;
    let next = loop {
        if balance::realtime_waits() {
            settled = false;
            if let Some(from) = balance::realtime_source(me, rq.highest_realtime()) {
                rq = unlocked(me, rq, prev, &mut left, |me, own| balance::pull_realtime(me, from, own));
            }
        }
        let may_keep = me.forward.load(Ordering::Relaxed) && !me.gave_way.load(Ordering::Relaxed);
        if let Some(t) = delegated::pick(me, &mut rq, prev, may_keep, now) {
            if core::ptr::eq(Arc::as_ptr(&t.0), prev) {
                // It goes on.
                me.forward.store(false, Ordering::Relaxed);
            }
            (settled, normal) = (false, false);
            break Some(t);
        }
        normal = rq.has_only_normal();
        let Some(t) = rq.pick_next(now) else {
            settled = false;
            if cpu::count() == 1 {
                break None;
            }
            rq = unlocked(me, rq, prev, &mut left, |me, _| {
                place::announce_idle(me);
                balance::pull(me);
            });
            // What was pulled, or has come by itself while the lock was open.
            if rq.is_empty() {
                break None;
            }
            continue;
        };
        if t.allowed_on(me.id) {
            break Some(t);
        }
        settled = false;
        rq.put_prev(&t, PutReason::Migrate, now);
        if core::ptr::eq(Arc::as_ptr(&t.0), prev) {
            // It may not stay here (it was woken while it was leaving, or its affinity has just changed): its successor sends
            // it on, with the reference that it runs on.
            if core::mem::take(&mut left.queued) {
                core::mem::forget(t);
            }
            me.forward.store(true, Ordering::Relaxed);
            continue;
        }
        rq = unlocked(me, rq, prev, &mut left, |me, _| {
            fpu::flush_live(me, &t);
            place::place(t, Why::Migrate(MigrateReason::Affinity));
        });
    };
    let next: *const Task = match next {
        Some(t) => {
            if t.state.apply(Event::Pick).is_err() {
                picked_wrongly(&t);
            }
            let level = if normal { Level::NORMAL } else { place::level_of(&t) };
            me.level.store(level.get(), Ordering::Relaxed);
            me.picked_at.store(tsc, Ordering::Relaxed);
            let look = if normal { tick::first_look(me, &rq, &t, tsc) } else { tick::next_look(me, &rq, Some(&t)) };
            me.timers.arm_slice(look, tsc);
            let next = Arc::into_raw(t.0);
            me.chosen.store(next.cast_mut(), Ordering::Relaxed);
            next
        }
        None => {
            me.level.store(Level::IDLE.get(), Ordering::Relaxed);
            me.picked_at.store(tsc, Ordering::Relaxed);
            me.timers.arm_slice(tick::next_look(me, &rq, None), tsc);
            me.chosen.store(core::ptr::null_mut(), Ordering::Relaxed);
            idle
        }
    };
    me.picked_time.store(now.0, Ordering::Relaxed);
    let mut offers = false;
    if !settled {
        place::publish(me, &rq);
        if !core::ptr::eq(next, idle) && me.need_resched.load(Ordering::Relaxed) {
            // Asked while the lock was open, when we looked idle: perhaps to come for a task that waits elsewhere. We have
            // found one of our own; another idle CPU shall look.
            me.need_resched.store(false, Ordering::Relaxed);
            me.offer.fill_without(me.id);
            offers = true;
        }
    }
    let same = core::ptr::eq(next, prev);
    // SAFETY: `next` is held by the reference that just moved here.
    let next_task = unsafe { &*next };
    if trace::on() && !same {
        record(prev, next_task, idle, left.state, preempted, rq.len() as u32);
    }
    drop(rq);
    if same {
        if offers {
            place::call_idle(me, &me.offer);
        }
        if !was_idle && !left.queued {
            // It was woken while it was leaving: the waker's reference came on top of the one that it runs on.
            // SAFETY: `into_raw` above made it.
            drop(unsafe { Arc::from_raw(next) });
        }
        return;
    }
    if was_idle {
        place::leave_idle(me);
        rcu::leave_idle();
    }
    let gone = if left.queued || was_idle { core::ptr::null_mut() } else { core::ptr::from_ref(prev).cast_mut() };
    me.leaving.store(gone, Ordering::Relaxed);
    if !left.queued && (me.forward.load(Ordering::Relaxed) || delegated::roams(prev)) {
        fpu::flush_live(me, prev);
    }
    if cpu::count() > 1 {
        if left.queued && !offers {
            offers = me.offer.copy_without(&prev.may_run, me.id);
        }
        me.offers.store(offers, Ordering::Relaxed);
    }
    switch_to(me, prev, next_task);
}

/// Opens the run queue's lock for `f`, which gets the highest real-time priority in the queue. Until it is locked again, the CPU
/// looks idle to others: it runs nothing that could be preempted. If `prev`, which blocks, is woken meanwhile, it is in our
/// queue (it can go nowhere else), and the record of the switch must say so: that of the wake-up has been written.
#[cold]
fn unlocked(
    me: &'static Cpu,
    rq: SpinLockGuard<'static, Queue, ()>,
    prev: &Task,
    left: &mut Left,
    f: impl FnOnce(&Cpu, u8),
) -> SpinLockGuard<'static, Queue, ()> {
    me.chosen.store(core::ptr::null_mut(), Ordering::Relaxed);
    me.level.store(Level::IDLE.get(), Ordering::Relaxed);
    place::publish(me, &rq);
    let (above, places) = (rq.highest_realtime(), prev.sched.place_records());
    drop(rq);
    f(me, above);
    let rq = me.run_queue.lock_irqs_off();
    if prev.sched.place_records() != places {
        left.state = State::Ready;
    }
    rq
}

/// Writes the record of a switch. The run queue is locked.
#[cold]
fn record(prev: &Task, next: &Task, idle: *const Task, state: State, preempted: bool, queued: u32) {
    let side = |t: &Task| {
        let class = if core::ptr::eq(t, idle) { ClassTag::IDLE } else { t.sched.tag() };
        Side { task: t.id, seq: t.sched.next_place_record(), class }
    };
    let flags = state as u8 | if preempted { flag::PREEMPTED } else { 0 };
    trace::switch(side(prev), side(next), flags, queued);
}

/// Adds to a counter that only this CPU writes, for now: the task's own, or this CPU's.
#[inline(always)]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

#[cold]
fn picked_wrongly(task: &Task) -> ! {
    panic!("task {} picked while {:?}", task.id.0, task.state.load())
}

#[cold]
fn left_wrongly(task: &Task, event: Event) -> ! {
    panic!("task {} left its CPU by {event:?} while {:?}", task.id.0, task.state.load())
}

/// Leaves `prev` and continues `next`. Interrupts are off.
#[inline(always)]
fn switch_to(me: &Cpu, prev: &Task, next: &Task) {
    add(&me.stats.switches, 1);
    fpu::switch(me, prev, next);
    // Relaxed: read by others only together with the state or the queue's lock that made `next` ours.
    next.on_cpu.store(true, Ordering::Relaxed);
    let top = next.block.top();
    let slot = Entry(me.slot_entry.load(Ordering::Relaxed));
    if top.get(CPU_SLOT) != slot {
        top.set(CPU_SLOT, slot);
        top.set(USER_CPU_SLOT, shown::user_entry(slot));
    }
    if next.user().is_some() {
        load_fs_base(me, next.fs_base());
    }
    // SAFETY: we are about to run it.
    shootdown::enter_space(me, unsafe { next.space_ptr() });
    me.current.store(core::ptr::from_ref(next).cast_mut(), Ordering::Relaxed);
    // SAFETY: interrupts are off; `next`'s stack pointer was saved or laid out; its root has the kernel half and now this
    // CPU's slot; tasks live in the heap, that is, in the direct map.
    unsafe { switch::switch_task(prev.saved_rsp(), *next.saved_rsp(), next.block.root().0, prev.on_cpu.as_ptr()) };
    finish_switch();
}

/// What the previous task left to be done, by the task that now runs. Interrupts are off.
#[inline(always)]
fn finish_switch() {
    let me = cpu::this();
    let prev = me.leaving.load(Ordering::Relaxed);
    // Before the task that was left is sent on, which takes the flag back.
    let offers = me.offers.load(Ordering::Relaxed);
    if !prev.is_null() {
        let_go(me, prev);
    }
    if offers {
        // It could not be taken before: this CPU stood on its stack.
        place::call_idle(me, &me.offer);
        if balance::realtime_waits() {
            balance::push_realtime(me);
        }
    }
    chaos::point(Point::Switch);
}

/// Drops the reference to the task that has left, or sends the task on.
fn let_go(me: &Cpu, prev: *mut Task) {
    me.leaving.store(core::ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: the reference that `current` held until the switch.
    let prev = TaskRef(unsafe { Arc::from_raw(prev.cast_const()) });
    let forward = me.forward.load(Ordering::Relaxed);
    me.forward.store(false, Ordering::Relaxed);
    if let Some(prev) = delegated::left(me, prev, forward)
        && forward
    {
        place::place(prev, Why::Migrate(MigrateReason::Affinity));
    }
}

/// How long a task has run, its present slice included. Callable from interrupt context.
pub fn ran(task: &Task) -> Nanos {
    let _irq = IrqGuard::new();
    let before = || Nanos(task.stats.run_ns.load(Ordering::Relaxed));
    // With its queue locked the slice is either in the counter, or the CPU's present one.
    let exact = with_queue_of(task, |cpu, rq| {
        let runs = place::running(cpu, rq).is_some_and(|running| core::ptr::eq(Arc::as_ptr(&running.0), task));
        let picked = Nanos(cpu.picked_time.load(Ordering::Relaxed));
        let slice = if runs { cpu.clock.at(time::tsc()) - picked } else { Nanos::ZERO };
        before() + slice
    });
    exact.unwrap_or_else(before)
}

/// First thing that a new task does.
#[unsafe(no_mangle)]
extern "C" fn finish_first_switch() {
    finish_switch();
    instr::sti();
}
