//! The running task, and what only it may do to itself.

use alloc::sync::Arc;
use core::ops::Deref;
use core::sync::atomic::Ordering;

use super::Task;
use crate::arch::instr;
use crate::cpu;
use crate::mm::address_space::AddressSpace;
use crate::mm::shootdown;
use crate::sync::IrqGuard;

/// Proof that the caller is the task. Can't leave it: neither `Send` nor storable beyond the borrow.
#[derive(Clone, Copy)]
pub struct Current<'a> {
    task: &'a Task,
    _not_send: core::marker::PhantomData<*mut ()>,
}

/// The running task.
#[inline(always)]
pub fn current() -> Current<'static> {
    // SAFETY: the scheduler owns a reference for the running task for as long as it runs.
    Current { task: unsafe { &*cpu::current_task() }, _not_send: core::marker::PhantomData }
}

impl Deref for Current<'_> {
    type Target = Task;
    #[inline(always)]
    fn deref(&self) -> &Task {
        self.task
    }
}

impl Current<'_> {
    /// A counted handle.
    pub fn to_arc(self) -> Arc<Task> {
        // SAFETY: tasks are made by `Arc::new`, and the scheduler's reference keeps this one alive.
        unsafe {
            Arc::increment_strong_count(self.task);
            Arc::from_raw(self.task)
        }
    }

    /// The task's address space.
    #[inline(always)]
    pub fn space(&self) -> Option<&Arc<AddressSpace>> {
        // SAFETY: only the running task changes it, by `replace_space`, which can't run while this borrow of it is used on
        // the same task (callers clone the Arc if they need it across that).
        unsafe { (*self.task.space.get()).as_ref() }
    }

    /// Leaves the address space, if any, and enters another, if any (exec, exit).
    pub fn replace_space(&self, new: Option<Arc<AddressSpace>>) {
        // SAFETY: own field; nobody else looks at it, and a switch meanwhile still finds the space alive in `old`.
        let old = unsafe { (*self.task.space.get()).take() };
        if let Some(old) = old {
            old.uninstall(self.block.top());
            {
                let _irq = IrqGuard::new();
                shootdown::enter_space(cpu::this(), core::ptr::null());
                // SAFETY: the same root, now without user half.
                unsafe { instr::write_cr3(instr::read_cr3()) };
            }
            old.threads.fetch_sub(1, Ordering::AcqRel);
            drop(old); // may tear it down, with interrupts on
        }
        if let Some(new) = new {
            // SAFETY: we are the task.
            unsafe { self.task.attach(new) };
            let _irq = IrqGuard::new();
            // SAFETY: we are the task; the space is kept by it.
            shootdown::enter_space(cpu::this(), unsafe { self.task.space_ptr() });
        }
    }

    /// Sets the thread pointer.
    pub fn set_fs_base(&self, base: u64) {
        let _irq = IrqGuard::new();
        self.task.fs_base.store(base, Ordering::Relaxed);
        crate::sched::load_fs_base(cpu::this(), base);
    }
}
