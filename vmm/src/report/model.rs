//! What a report says, as `--json` prints it. The field names are a promise (docs/report.md); fields may be added, and
//! `schema` rises when one changes its meaning.

use std::collections::BTreeMap;

use serde::Serialize;

/// Version of this structure.
pub const SCHEMA: u32 = 1;

/// The whole report.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The trace itself.
    pub trace: Trace,
    /// Every task, those that ran longest first.
    pub tasks: Vec<Task>,
    /// Tasks that are not listed, because there were too many.
    pub unlisted: Option<Unlisted>,
    /// Every CPU.
    pub cpus: Vec<Cpu>,
    /// From a wake-up to the first instruction.
    pub wakeup_latency: Distribution,
    /// From ready to running, woken or preempted.
    pub run_delay: Distribution,
    /// Tasks that ran on one CPU and then on another.
    pub migrations: Vec<Migration>,
    /// The longest run delays, longest first.
    pub worst_delays: Vec<Delay>,
    /// Every invariant of `vcpu_sched::checker`.
    pub invariants: Vec<Invariant>,
    /// The first violations of each.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Whether every invariant held.
    pub fn holds(&self) -> bool {
        self.invariants.iter().all(|i| i.violations == 0)
    }
}

/// The trace itself.
#[derive(Debug, Clone, Serialize)]
pub struct Trace {
    /// Program and arguments, if the trace tells.
    pub program: Vec<String>,
    /// Policy of ordinary tasks, if the trace tells.
    pub policy: String,
    /// CPUs.
    pub cpus: u32,
    /// First time stamp.
    pub begin_ns: u64,
    /// Last time stamp.
    pub end_ns: u64,
    /// Records read.
    pub records: u64,
    /// Records of unknown kinds.
    pub unknown_records: u64,
    /// Records that the rings report as lost.
    pub lost_records: u64,
    /// Places of tasks that are missing by the tasks' counts.
    pub missing_places: u64,
    /// Tasks whose beginning isn't in the trace.
    pub adopted_tasks: u64,
}

/// One task.
#[derive(Debug, Clone, Serialize)]
pub struct Task {
    /// Its number; the kernel may give it to another task later.
    pub id: u32,
    /// Its last name.
    pub name: String,
    /// Its last policy.
    pub policy: &'static str,
    /// Its last priority, as in `ClassTag`.
    pub prio: u8,
    /// Time on a CPU.
    pub run_ns: u64,
    /// Time in a queue.
    pub wait_ns: u64,
    /// Time blocked.
    pub sleep_ns: u64,
    /// Switches away that it asked for.
    pub switches_voluntary: u64,
    /// Switches away that it was made to do.
    pub switches_involuntary: u64,
    /// How often it ran on another CPU than before.
    pub migrations: u64,
    /// How often it was woken.
    pub wakeups: u64,
    /// From wake-up to the first instruction.
    pub wakeup_latency: Distribution,
    /// When it is first heard of.
    pub first_ns: u64,
    /// When it ended.
    pub ended_ns: Option<u64>,
}

/// Tasks that are not listed one by one: those that ended and ran least.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Unlisted {
    /// How many.
    pub tasks: u64,
    /// Their time on CPUs together.
    pub run_ns: u64,
}

/// One CPU.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Cpu {
    /// Its number.
    pub cpu: u32,
    /// Time with a task.
    pub busy_ns: u64,
    /// Time with its idle task.
    pub idle_ns: u64,
    /// Switches.
    pub switches: u64,
    /// Timer interrupts.
    pub ticks: u64,
    /// Interrupts sent to other CPUs, wake-ups' included.
    pub ipis_sent: u64,
    /// Interrupts received.
    pub ipis_received: u64,
    /// Time that the host took.
    pub steal_ns: u64,
    /// Records lost in its ring.
    pub lost: u64,
    /// VM exits to the VMM by reason.
    pub exits: BTreeMap<&'static str, u64>,
}

/// How spans of time are distributed. Quantiles are within 1%.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Distribution {
    /// How many.
    pub count: u64,
    /// Mean.
    pub mean_ns: u64,
    /// Half are at most so long.
    pub p50_ns: u64,
    /// 99 of 100 are at most so long.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// By powers of two, without holes; empty in the table of tasks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<Bucket>,
}

/// Spans of one order of magnitude.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Bucket {
    /// From this.
    pub from_ns: u64,
    /// To below this.
    pub to_ns: u64,
    /// How many.
    pub count: u64,
}

/// Tasks that went from one CPU to another.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Migration {
    /// Ran here.
    pub from: u32,
    /// Then there.
    pub to: u32,
    /// How often.
    pub count: u64,
}

/// A long wait in a queue.
#[derive(Debug, Clone, Serialize)]
pub struct Delay {
    /// Who waited.
    pub task: u32,
    /// Its name.
    pub name: String,
    /// The CPU that ran it in the end.
    pub cpu: u32,
    /// Since when it was ready.
    pub ready_ns: u64,
    /// How long.
    pub delay_ns: u64,
    /// Who woke it, if it was woken.
    pub woken_by: Option<u32>,
    /// What that CPU ran meanwhile, longest first.
    pub instead: Vec<Instead>,
}

/// What a CPU ran while somebody waited.
#[derive(Debug, Clone, Serialize)]
pub struct Instead {
    /// The task; none: the CPU was idle.
    pub task: Option<u32>,
    /// Its name.
    pub name: String,
    /// For how long.
    pub ran_ns: u64,
}

/// An invariant and how it fared.
#[derive(Debug, Clone, Serialize)]
pub struct Invariant {
    /// Its name.
    pub name: &'static str,
    /// Events that it was checked at.
    pub checked: u64,
    /// Times that it didn't hold.
    pub violations: u64,
}

/// One time that an invariant didn't hold.
#[derive(Debug, Clone, Serialize)]
pub struct Violation {
    /// The invariant.
    pub invariant: &'static str,
    /// When.
    pub time_ns: u64,
    /// On which CPU.
    pub cpu: u32,
    /// The tasks concerned.
    pub tasks: Vec<u32>,
    /// What was wrong.
    pub what: String,
    /// Records before it.
    pub around: Vec<Around>,
}

/// A record near a violation.
#[derive(Debug, Clone, Serialize)]
pub struct Around {
    /// When.
    pub time_ns: u64,
    /// On which CPU.
    pub cpu: u32,
    /// Its kind.
    pub kind: &'static str,
    /// Its task; of a switch, the one that leaves.
    pub task: u32,
    /// That task's count.
    pub seq: u16,
    /// Of a switch, the task that comes; of a wake-up or a move, the CPU that gets the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<u32>,
}
