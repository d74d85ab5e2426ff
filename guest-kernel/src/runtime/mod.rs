//! Futures as tasks of this kernel: `vcpu_sched::runtime` with what it needs of a machine. docs/runtime.md tells the story.
//!
//! | file | what |
//! | --- | --- |
//! | `platform` | the executors: one kernel task for each CPU, a scheduled entity like any other |
//! | [`park`](mod@park) | a task sleeps until somebody has something for it |
//! | [`block_on`](mod@block_on) | a task waits for a future |
//! | [`stackful`](mod@stackful) | a future with a stack of its own, which the timer preempts |
//! | [`time`] | sleeping, on each CPU's own timers |
//! | [`sync`] | the waiting lists with this kernel's lock |
//!
//! Anybody in task context may [`spawn`] and [`block_on`](fn@block_on()); wakers may be used anywhere, in interrupts too. The executors are made
//! at the first use, so that a kernel whose programs need none boots without.
//!
//! Invariant: a future is polled where every CPU sees it at the address at which it is polled, since others follow pointers into it: in the heap,
//! or by the direct map's name of a kernel stack. Kernel stacks themselves are mapped at one address in every task.

pub mod block_on;
pub mod park;
mod platform;
pub mod stackful;
pub mod sync;
pub mod time;

use vcpu_sched::runtime::{JoinHandle, TaskInfo};

use crate::mm::frame::OutOfMemory;

pub use block_on::{block_on, interruptible};
pub use platform::{Kernel, KernelLock, Runtime, executor, get};
pub use stackful::stackful;

/// Makes a task of a future. It is named after the place of the call; dropping the handle cancels it.
///
/// # Errors
/// [`OutOfMemory`], for the executors of the first one.
#[track_caller]
pub fn spawn<F>(future: F) -> Result<JoinHandle<F::Output>, OutOfMemory>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    // Not by a closure: that would be where the task was spawned.
    match get() {
        Ok(runtime) => Ok(runtime.spawn(future)),
        Err(e) => Err(e),
    }
}

/// The same from a crash: lists that somebody has locked are left out.
pub fn try_for_each(f: impl FnMut(TaskInfo)) {
    if let Some(runtime) = platform::started() {
        runtime.try_for_each_task(f);
    }
}

/// Shows the tasks that live, if there ever was one. One CPU's list is locked meanwhile: `f` must be short.
pub fn for_each(f: impl FnMut(TaskInfo)) {
    if let Some(runtime) = platform::started() {
        runtime.for_each_task(f);
    }
}
