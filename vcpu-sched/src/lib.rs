//! The scheduling core of Taskvisor: decisions without mechanism.
//!
//! The guest kernel supplies what only a kernel can (stack switch, IPI, timer, interrupt state); this crate supplies
//! what can be reasoned about and tested on any host. It is `no_std`, has no dependency, and knows neither KVM nor paging;
//! `unsafe` is refused everywhere but in [`runtime`] and [`rcu`]. The guest kernel runs it in ring 0, which on some hosts is
//! interpreted at about 1.4 million instructions a second: every function that runs at a switch or a wake-up is therefore
//! short and doesn't divide.
//!
//! | module | what lives there | on the hot path |
//! | --- | --- | --- |
//! | [`ids`] | task and CPU numbers, time and frequency | yes |
//! | [`cpumask`] | sets of CPUs | yes |
//! | [`task`] | the life of a task: a pure table under an atomic | yes |
//! | [`entity`], [`params`] | what the scheduler keeps of a task, and how a task wants to be scheduled | yes |
//! | [`runqueue`] | one CPU's tasks, in classes | yes |
//! | [`policy`] | who runs next: the contract and the policies | yes |
//! | [`placement`] | which CPU a task goes to | yes |
//! | [`balance`] | which task goes to another CPU | idle CPUs |
//! | [`topology`] | who shares cores and caches | yes |
//! | [`cpu`] | halting without losing a wake-up, coalescing IPIs | yes |
//! | [`accounting`] | what a task did with its time | yes |
//! | [`clock`] | ticks to nanoseconds and back, and the page by which the VMM steers that | yes |
//! | [`timer`] | the queue of armed timers | yes |
//! | [`events`] | trace records | yes |
//! | [`checker`] | whether a trace keeps the invariants | no |
//! | [`directory`] | where a guest keeps what its VMM may read | no |
//! | [`taskview`] | where in it tasks and CPUs are found | no |
//! | [`requests`] | what a VMM asks of its guest | no |
//! | [`delegation`] | scheduling from outside the guest: the memory, the messages, the commits | with an agent |
//! | [`runtime`] | futures as tasks: their life, queues, executors | with tasks |
//! | [`rcu`] | readers without locks or atomics, and when they have gone | yes |
//! | [`taskdebug`] | how a guest lets its VMM debug programs | no |
//!
//! # Three rules that hold everywhere
//! 1. A task's state ([`task::state`]) says what may happen to it; whether a CPU still stands on its stack (`on_cpu`,
//!    kept by the kernel) is a different fact, and never guessed from the state.
//! 2. A queued task is in exactly one queue, and whoever makes it [`Ready`](task::state::State::Ready) is the one who
//!    queues it. The state's compare-and-swap decides who that is.
//! 3. Every enqueue on another CPU's queue kicks that CPU ([`cpu::sleep`]) afterwards.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod accounting;
pub mod balance;
mod cell;
pub mod checker;
pub mod clock;
pub mod cpu;
pub mod cpumask;
pub mod delegation;
pub mod directory;
pub mod entity;
pub mod events;
pub mod ids;
pub mod params;
pub mod placement;
pub mod policy;
pub mod rcu;
pub mod requests;
pub mod runqueue;
pub mod runtime;
#[cfg(feature = "sim")]
pub mod sim;
mod sync;
pub mod task;
pub mod taskdebug;
pub mod taskview;
pub mod timer;
pub mod topology;
