//! Locks and waiting.
//!
//! - [`SpinLock`]: short critical sections, also from interrupt handlers. Taking one turns interrupts off on this CPU, so a
//!   holder is never preempted, and never deadlocks with a handler on its own CPU.
//! - [`WaitQueue`]: sleeping until a condition holds.
//! - [`Mutex`]: a sleeping lock for long sections in task context.
//!
//! Lock order (take from left to right, never two of one kind at once unless a line says so):
//! `Mutex`es of the Linux layer -> address space (`mm::AddressSpace`) -> wait queue -> run queue -> timer queue
//! -> task table -> heap -> frame allocator -> log UART.
//! A wake-up is always called with no run-queue lock held.

mod mutex;
mod spinlock;
mod wait_queue;

pub use mutex::{Mutex, MutexGuard};
pub use spinlock::{IrqGuard, SpinLock, SpinLockGuard};
pub use wait_queue::{Interrupted, WaitQueue, Waiter, WakeTarget};

mod boot_cell;
pub use boot_cell::BootCell;
