//! Futures as the kernel's unit of work: tasks without a stack, one executor for each CPU. docs/runtime.md tells the
//! whole story.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`state`] | the life of a task: a pure table under an atomic |
//! | `header`, `task` | a task in memory: one allocation; wakers |
//! | `ring`, `inbox` | the queues: each CPU's own, and what comes from elsewhere |
//! | [`Runtime`], [`Worker`] | all queues together; the executor of one CPU |
//! | [`JoinHandle`], [`scope`](fn@scope) | waiting for tasks, cancelling them |
//! | [`budget`] | nobody stays on a CPU for ever |
//! | [`sync`], [`time`], [`combine`] | what a future waits for |
//! | [`Platform`], [`lock`] | what the kernel supplies |
//!
//! # The invariants
//! 1. A future is polled and dropped by executors only, by one at a time, and never after it was cancelled.
//! 2. A wake-up between the start of a poll and the moment the task is blocked queues it again: the state's word
//!    decides.
//! 3. A waker may be used and dropped anywhere, in interrupts too: it takes no lock, drops no future, and
//!    frees the memory of a dead task at most.
//!
//! This module and [`rcu`](crate::rcu) have `unsafe`, which the rest of the crate refuses: a task is shared between
//! queues, wakers and its handle by a protocol that no type of the language tells. Each `unsafe` names the edge of the
//! table, or the lock, that makes the caller the owner; loom models check them with memory that notices a second user.
// Elsewhere in the crate it is refused.
#![allow(unsafe_code)]

pub mod budget;
pub mod combine;
mod executor;
mod header;
mod inbox;
mod join;
pub mod lock;
pub(crate) mod owned;
mod platform;
mod registry;
mod ring;
mod scope;
pub mod state;
pub mod sync;
mod task;
pub mod time;
pub(crate) mod waits;
mod worker;

#[cfg(all(test, loom))]
mod loom_models;
#[cfg(test)]
mod testing;
#[cfg(all(test, not(loom)))]
mod tests;

pub use executor::{MAX_EXECUTORS, Runtime};
pub use join::{Cancelled, JoinHandle};
pub use platform::Platform;
pub use registry::TaskInfo;
pub use scope::{Scope, scope};
pub use task::bytes_of;
pub use waits::Waits;
pub use worker::Worker;
