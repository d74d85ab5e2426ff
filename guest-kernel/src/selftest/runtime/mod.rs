//! Futures as tasks of the kernel, in the guest: what the host can't test, which is executors on CPUs, interrupts, stacks and preemption.
//! The tables, queues and lists themselves are tested and modelled in vcpu-sched.

mod figures;
mod stacks;
mod tasks;

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use vcpu_sched::runtime::JoinHandle;

use super::{Test, TestResult, check, rounds, tests};
use crate::runtime;

pub(super) use figures::TESTS as FIGURES;
pub(super) use stacks::TESTS as STACKS;
pub(super) use tasks::TESTS as TASKS;

/// Starts a task.
#[track_caller]
fn start<F>(future: F) -> Result<JoinHandle<F::Output>, String>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match runtime::spawn(future) {
        Ok(handle) => Ok(handle),
        Err(_) => Err(String::from("no memory for the executors")),
    }
}

/// Waits for a task in this one.
fn join<T>(handle: JoinHandle<T>) -> Result<T, String> {
    runtime::block_on(handle).map_err(|e| alloc::format!("{e}"))
}

/// Counts how many of it there are.
#[derive(Clone, Default)]
struct Alive(Arc<AtomicU32>);

struct One(Arc<AtomicU32>);

impl Alive {
    fn one(&self) -> One {
        self.0.fetch_add(1, Ordering::Relaxed);
        One(self.0.clone())
    }

    fn count(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}
