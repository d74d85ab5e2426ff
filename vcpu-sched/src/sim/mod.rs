//! A machine on a virtual clock, driven by this crate's own decisions: the simulator.
//!
//! It stands where a kernel would: it has CPUs, timers, interrupts and tasks that run programs, and asks the same run queues,
//! the same placement and the same state table what to do that the guest kernel asks. Nothing of scheduling is written twice:
//! what a policy does here it does in the guest. It writes the same trace records, so that the same checker and the same
//! reports read them.
//!
//! For tests and `taskvisor sim`; feature `sim`, which needs the standard library. A run is a function of the
//! [`Config`](config::Config) (seed included) and the [`Workload`](model::Workload): same input, same records, byte for byte.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`model`] | what the tasks do: groups, programs, channels |
//! | [`random`] | time spans drawn by chance |
//! | [`config`] | what the machine is |
//! | [`machine`] | the clock, interrupts, the world outside |
//! | `sched`, `balance` | the mechanism: queue, wake, switch; move |
//! | `exec`, `code` | the interpreter of programs |
//! | `channel` | what tasks wait for each other with |
//! | `life` | beginning and end of tasks |
//! | [`figures`] | what came of it |
//! | `agenda`, `tournament`, `cpu`, `task` | the data |
//!
//! # Where it is simpler than a kernel
//! A CPU does in one moment what a kernel does in a stretch of code with interrupts off; only computing, system calls,
//! switches and interrupts on their way take time ([`Costs`](config::Costs)). Races inside of such a stretch are the matter
//! of the loom models and of `tests/machine.rs`.

mod agenda;
mod balance;
mod channel;
mod code;
pub mod config;
mod cpu;
mod exec;
pub mod figures;
mod life;
pub mod machine;
pub mod model;
pub mod random;
mod sched;
mod task;
mod tournament;

pub use config::{Config, Costs};
pub use cpu::CpuFigures;
pub use figures::{Figures, GroupFigures, TaskFigures};
pub use machine::{End, Fault, Machine, Sink};

use crate::ids::Nanos;

/// Numbers of the idle tasks start here.
pub const IDLE_BASE: u32 = 1 << 31;
/// The vector of the interrupt by which CPUs make each other look into their queues; the guest kernel's.
const RESCHEDULE_VECTOR: u8 = 0xf0;
/// The shortest time for which the scheduler's timer is armed: a policy that is asked too early must not be asked for ever.
const LEAST_TICK: Nanos = Nanos::from_micros(1);
