//! From one task's registers, stack and page table to the next one's, and what the next one then does for the one that was left. Called
//! by `switch` only, with interrupts off, when the choice is made and the run queue is open again.
//!
//! Invariants: a task's page table has the slot of the CPU that runs it ([`Task::ran_on`]); and what the task that was left still needs
//! from its CPU is done when the CPU stands on it no more.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use vcpu_sched::events::MigrateReason;

use super::{balance, delegated, load_fs_base, place};
use crate::arch::{debug_port, fpu, instr, switch};
use crate::chaos::{self, Point};
use crate::cpu::{self, Cpu, shown};
use crate::mm::layout::{CPU_SLOT, USER_CPU_SLOT};
use crate::mm::page_table::Entry;
use crate::mm::shootdown;
use crate::task::{Task, TaskRef};

/// Leaves `prev` and continues `next`. Interrupts are off.
#[inline(always)]
pub(super) fn switch_to(me: &Cpu, prev: &Task, next: &Task) {
    add(&me.stats.switches, 1);
    // Relaxed, as `on_cpu`: read by others only together with the state or the queue's lock that made `next` ours.
    if next.ran_on.load(Ordering::Relaxed) != me.id.0 {
        arrives(me, next);
    }
    next.on_cpu.store(true, Ordering::Relaxed);
    fpu::switch(me, prev, next);
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

/// `next`, which is about to run here, ran elsewhere before, or never.
#[inline(never)]
fn arrives(me: &Cpu, next: &Task) {
    next.ran_on.store(me.id.0, Ordering::Relaxed);
    let slot = Entry(me.slot_entry.load(Ordering::Relaxed));
    let top = next.block.top();
    top.set(CPU_SLOT, slot);
    top.set(USER_CPU_SLOT, shown::user_entry(slot));
    fpu::arrives(me, next);
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
    if debug_port::keeps_task() {
        debug_port::switched();
    }
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
        place::place_again(prev, MigrateReason::Affinity);
    }
}

/// Adds to a counter that only this CPU writes, for now: the task's own, or this CPU's.
#[inline(always)]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// First thing that a new task does.
#[unsafe(no_mangle)]
extern "C" fn finish_first_switch() {
    finish_switch();
    instr::sti();
}
