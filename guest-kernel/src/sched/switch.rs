//! Leaving one task for the next. Entered by `sched` only, with interrupts off.
//!
//! `need_resched`: whoever wants another CPU to look again sets it with that CPU's run queue locked, and the head of
//! `reschedule` clears it under the same lock, which it holds until it has picked. So a request either comes before the pick,
//! which then takes into account what it was made for, or survives it.

use alloc::sync::Arc;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU64, Ordering};

use vcpu_sched::ids::Nanos;
use vcpu_sched::policy::{EnqueueReason, Policy, PutReason};
use vcpu_sched::task::state::{Action, Event, State};

use super::{RunQueue, balance, load_fs_base, place, tick};
use crate::arch::{fpu, instr, switch};
use crate::cpu::{self, Cpu};
use crate::mm::layout::CPU_SLOT;
use crate::mm::page_table::Entry;
use crate::mm::shootdown;
use crate::task::{Task, TaskRef};
use crate::time;

/// Applies `event` to the current task and switches to whoever runs next. Interrupts are off.
///
/// Inlined into its few callers, each of which has one event: the state table then shrinks to a comparison.
#[inline(always)]
pub(super) fn reschedule(event: Event) {
    let me = cpu::this();
    // SAFETY: the scheduler owns a reference for the running task.
    let prev: &Task = unsafe { &*me.current.load(Ordering::Relaxed) };
    let idle: *const Task = me.idle.load(Ordering::Relaxed);
    let was_idle = core::ptr::eq(prev, idle);

    let mut rq = me.run_queue.lock_irqs_off();
    // Relaxed: the lock orders it, see the module's text.
    me.need_resched.store(false, Ordering::Relaxed);
    let tsc = instr::rdtsc();
    let now = time::at_tsc(tsc);
    let ran = now - Nanos(me.picked_time.load(Ordering::Relaxed));
    add(&prev.stats.run_ticks, tsc.wrapping_sub(me.picked_at.load(Ordering::Relaxed)));
    // Whether the reference that `prev` runs on has moved to the queue.
    let mut moved = !was_idle && put_prev(me, prev, &mut rq, event, ran, now);
    let next = loop {
        let Some(t) = rq.pick_next(now) else {
            drop(rq);
            let stole = balance::steal(me, now);
            rq = me.run_queue.lock_irqs_off();
            // Something may also have come by itself while the lock was open.
            if stole || !rq.is_empty() {
                continue;
            }
            break None;
        };
        if t.allowed_on(me.id) {
            break Some(t);
        }
        one_less(me);
        if core::ptr::eq(Arc::as_ptr(&t.0), prev) {
            // It may not stay here (it was woken while it was leaving, or its affinity has just changed): its successor sends
            // it on, with the reference that it runs on.
            if core::mem::take(&mut moved) {
                core::mem::forget(t);
            }
            me.forward.store(true, Ordering::Relaxed);
            continue;
        }
        drop(rq); // one run-queue lock at a time
        fpu::flush_live(me, &t);
        place::place(t, EnqueueReason::Migrate);
        rq = me.run_queue.lock_irqs_off();
    };
    let has_competitor = !rq.is_empty();
    let next: *const Task = match next {
        Some(t) => {
            if t.state.apply(Event::Pick).is_err() {
                picked_wrongly(&t);
            }
            let next = Arc::into_raw(t.0);
            me.chosen.store(next.cast_mut(), Ordering::Relaxed);
            next
        }
        None => {
            me.chosen.store(core::ptr::null_mut(), Ordering::Relaxed);
            idle
        }
    };
    drop(rq);
    me.picked_at.store(tsc, Ordering::Relaxed);
    me.picked_time.store(now.0, Ordering::Relaxed);
    if has_competitor && !core::ptr::eq(next, idle) {
        me.timers.arm_slice(tick::slice_end(tsc));
    }
    if core::ptr::eq(next, prev) {
        if !was_idle && !moved {
            // It was woken while it was leaving: the waker's reference came on top of the one that it runs on.
            // SAFETY: `into_raw` above made it.
            drop(unsafe { Arc::from_raw(next) });
        }
        return;
    }
    me.leaving.store(
        if moved || was_idle { core::ptr::null_mut() } else { core::ptr::from_ref(prev).cast_mut() },
        Ordering::Relaxed,
    );
    // SAFETY: `next` is held by the reference that just moved into `current`.
    switch_to(me, prev, unsafe { &*next });
}

/// Tells the state table and the policy what becomes of the task that is being left. Returns whether the reference that it
/// ran on now belongs to the queue.
#[inline(always)]
fn put_prev(me: &Cpu, prev: &Task, rq: &mut RunQueue, event: Event, ran: Nanos, now: Nanos) -> bool {
    // SAFETY: tasks live in Arcs, and the scheduler owns a reference for the running one: this one. It is given away only
    // where `true` is returned.
    let held = ManuallyDrop::new(TaskRef(unsafe { Arc::from_raw(prev) }));
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
            let counter = if event == Event::Preempt { &prev.stats.involuntary } else { &prev.stats.voluntary };
            add(counter, 1);
            if prev.allowed_on(me.id) {
                rq.put_prev(&held, ran, put);
                rq.enqueue(ManuallyDrop::into_inner(held), why, now);
                return true;
            }
            // It may not stay here: its successor sends it on.
            rq.put_prev(&held, ran, PutReason::Migrate);
            me.forward.store(true, Ordering::Relaxed);
        }
        Ok(Action::Nothing) => {
            rq.put_prev(&held, ran, PutReason::Block);
            add(&prev.stats.voluntary, 1);
        }
        Ok(Action::Reap) => rq.put_prev(&held, ran, PutReason::Exit),
        Err(_) => left_wrongly(prev, event),
    }
    one_less(me);
    false
}

/// Adds to a counter that only this CPU writes, for now: the task's own, or this CPU's.
#[inline(always)]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// A task has left this CPU's queue, which is locked.
#[inline(always)]
fn one_less(me: &Cpu) {
    me.nr_running.store(me.nr_running.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
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
    if me.forward.load(Ordering::Relaxed) {
        fpu::flush_live(me, prev);
    }
    fpu::switch(me, prev, next);
    // Relaxed: read by others only together with the state or the queue's lock that made `next` ours.
    next.on_cpu.store(true, Ordering::Relaxed);
    let top = next.block.top();
    let slot = Entry(me.slot_entry.load(Ordering::Relaxed));
    if top.get(CPU_SLOT) != slot {
        top.set(CPU_SLOT, slot);
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
    if !prev.is_null() {
        let_go(me, prev);
    }
}

/// Drops the reference to the task that has left, or sends the task on.
fn let_go(me: &Cpu, prev: *mut Task) {
    me.leaving.store(core::ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: the reference that `current` held until the switch.
    let prev = unsafe { Arc::from_raw(prev.cast_const()) };
    if me.forward.load(Ordering::Relaxed) {
        me.forward.store(false, Ordering::Relaxed);
        place::place(TaskRef(prev), EnqueueReason::Migrate);
    }
}

/// First thing that a new task does.
#[unsafe(no_mangle)]
extern "C" fn finish_first_switch() {
    finish_switch();
    instr::sti();
}

