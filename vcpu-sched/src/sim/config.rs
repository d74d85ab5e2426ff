//! What the simulated machine is: CPUs, their neighbourhood, and what things cost on it.
//!
//! Plain data. The invariant: [`Machine::new`](super::Machine::new) refuses what can't be simulated.

use crate::ids::Nanos;
use crate::runqueue::PolicyKind;
use crate::topology::Topology;

/// What the machine takes for what a kernel does. All may be zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Costs {
    /// From the decision to switch to the next task's first instruction, with interrupts off. The old task's stack is in use
    /// that long.
    pub switch: Nanos,
    /// CPU time of a system call: every step of a program but running.
    pub call: Nanos,
    /// From sending an interrupt to another CPU to its arrival.
    pub ipi: Nanos,
    /// From an interrupt to a halted CPU's first instruction.
    pub idle_exit: Nanos,
}

impl Costs {
    /// Nothing costs anything: for comparing decisions alone.
    pub const NONE: Self = Self { switch: Nanos::ZERO, call: Nanos::ZERO, ipi: Nanos::ZERO, idle_exit: Nanos::ZERO };
}

impl Default for Costs {
    /// The order of magnitude of a kernel on bare hardware.
    fn default() -> Self {
        Self {
            switch: Nanos::from_micros(1),
            call: Nanos(300),
            ipi: Nanos::from_micros(1),
            idle_exit: Nanos::from_micros(2),
        }
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many CPUs, 1 to [`MAX_CPUS`](crate::cpumask::MAX_CPUS).
    pub cpus: u32,
    /// Who shares what with whom.
    pub topology: Topology,
    /// The policy of ordinary tasks.
    pub policy: PolicyKind,
    /// Everything that is left to chance follows from it.
    pub seed: u64,
    /// What things cost.
    pub costs: Costs,
    /// Keep the figures of every task, not only those of the groups.
    pub per_task: bool,
}
