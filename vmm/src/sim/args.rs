//! The flags of `taskvisor sim`.
//!
//! Pure grammar, like [`crate::config::cli`], which has it as a subcommand.

use std::path::PathBuf;

use clap::Args;
use vcpu_sched::ids::Nanos;
use vcpu_sched::runqueue::PolicyKind;

use super::span::parse_time;
use crate::topology::{TopologyChoice, parse};

/// Shown under the help.
pub const EXAMPLES: &str = "\
Examples:
  taskvisor sim --workload list
  taskvisor sim --cpus 8 --policy fair --workload builtin:mixed
  taskvisor sim --topology sockets=2,cores=16,threads=2 --workload builtin:hackbench
  taskvisor sim --workload my.toml --policy rr --seed 7 --trace out.pftrace
  taskvisor sim --workload recorded.pftrace --cpus 2 --policy runtime

A workload is a TOML file (docs/simulator.md), a built-in one, or a trace that `taskvisor run --trace` or this command wrote,
whose tasks then do the same again on another machine. Exit code: 0; 1 an invariant of the scheduler was broken; 125 an error.";

/// Flags of `sim`.
#[derive(Debug, Clone, Args)]
pub struct SimArgs {
    /// What runs: a file, builtin:NAME, a trace, or list to see the built-in ones
    #[arg(long, value_name = "FILE|builtin:NAME|list")]
    pub workload: String,

    /// Number of CPUs, 1 to 1024 [default: what --topology says, else the workload's, else 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,

    /// Which of them share cores, caches and memory, as `run` takes it [default: the workload's, else nobody does]
    #[arg(long, value_name = "TREE", value_parser = parse::topology)]
    pub topology: Option<TopologyChoice>,

    /// Policy of ordinary tasks: fair, rr, count or runtime [default: the workload's, else fair]
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<PolicyKind>,

    /// Where chance starts: the same seed gives the same run
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,

    /// How long in virtual time, as in 500ms or 10s [default: the workload's, else 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub duration: Option<Nanos>,

    /// Write what happened: a Perfetto trace, or JSON lines
    #[arg(long, value_name = "FILE[.pftrace|.jsonl]")]
    pub trace: Option<PathBuf>,

    /// Machine-readable output
    #[arg(long)]
    pub json: bool,

    /// Also tell every task's figures
    #[arg(long)]
    pub tasks: bool,

    /// Don't hold every event against the scheduler's invariants
    #[arg(long)]
    pub no_check: bool,

    /// Time from one task to the next [default: the workload's, else 1us]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub switch_cost: Option<Nanos>,

    /// CPU time of a system call [default: the workload's, else 300ns]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub call_cost: Option<Nanos>,

    /// How long an interrupt to another CPU travels [default: the workload's, else 1us]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub ipi_latency: Option<Nanos>,

    /// How long a halted CPU takes to wake up [default: the workload's, else 2us]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub idle_exit: Option<Nanos>,
}
