//! The resources of the control interface, as they go over the wire. docs/openapi.json says the same for other clients.

use serde::{Deserialize, Serialize};

use crate::guestview::{Cpu, Task};

/// `GET /v1/vm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Process id of the VMM.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// How many vCPUs there are.
    pub vcpus: u32,
    /// Bytes of guest memory.
    pub memory: u64,
    /// The kernel's file.
    pub kernel: String,
    /// The program and its arguments.
    pub program: Vec<String>,
    /// Time since the vCPUs were started.
    pub uptime_ns: u64,
    /// Whether the vCPUs run.
    pub state: VmState,
    /// Why the guest's tasks can't be listed, if they can't.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tasks_unavailable: Option<String>,
}

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// It does.
    Running,
    /// Somebody holds its vCPUs.
    Paused,
}

impl VmState {
    /// The word to print.
    pub fn name(self) -> &'static str {
        match self {
            VmState::Running => "running",
            VmState::Paused => "paused",
        }
    }
}

/// `GET /v1/vm/stats`: sums over the whole machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// When this was true, on the clock of `uptime_ns`.
    pub time_ns: u64,
    /// Bytes of guest memory that the host has backed.
    pub memory_touched: u64,
    /// Exits of all vCPUs.
    pub exits: u64,
    /// Time of all vCPUs on host CPUs.
    pub host_run_ns: u64,
    /// Time that they waited for one.
    pub host_wait_ns: u64,
    /// The guest's tasks by state; absent if it shows none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tasks: Option<TaskCounts>,
}

/// How many tasks are in which state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskCounts {
    /// All that are listed.
    pub total: u64,
    /// On a CPU, idle tasks not counted.
    pub running: u64,
    /// Waiting for one, idle tasks not counted.
    pub ready: u64,
    /// Waiting for something else.
    pub blocked: u64,
    /// Held off their programs.
    pub suspended: u64,
}

/// `GET /v1/vcpus`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vcpus {
    /// When this was true, on the clock of `uptime_ns`.
    pub time_ns: u64,
    /// By number.
    pub vcpus: Vec<Vcpu>,
}

/// What `PUT /v1/vcpus/{index}/affinity` takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Affinity {
    /// Host CPUs, as a list: `0-1,3`.
    pub cpus: String,
}

/// What `PUT /v1/affinity` takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pins {
    /// As `taskvisor run --affinity` takes it: `0=0;1-2=1,3`.
    pub pins: String,
}

/// A pin as the host reads it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Number of the vCPU.
    pub index: u32,
    /// Host CPUs that its thread may run on, as a list.
    pub affinity: String,
}

/// What `PUT /v1/vcpu-sched` takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classes {
    /// As `taskvisor run --vcpu-sched` takes it: `0=fifo:10;1=nice:5`, or one class for all.
    pub classes: String,
}

/// A class as the host reads it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classed {
    /// Number of the vCPU.
    pub index: u32,
    /// Scheduling class of its thread.
    pub class: String,
}

/// One vCPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vcpu {
    /// Number.
    pub index: u32,
    /// Host thread id.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tid: Option<i32>,
    /// Name of that thread.
    pub thread: String,
    /// Host CPUs that the thread may run on, as a list.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub affinity: Option<String>,
    /// Host CPU that it ran on last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host_cpu: Option<u32>,
    /// Time that the thread has had on a host CPU.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host_run_ns: Option<u64>,
    /// Time that it has waited for one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host_wait_ns: Option<u64>,
    /// Share of the time since its start that it has neither run nor waited: the guest halted it, or somebody held it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub halted_share: Option<f64>,
    /// Scheduling class of the thread, as `--vcpu-sched` names it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub class: Option<String>,
    /// Exits to the VMM.
    pub exits: Exits,
    /// The guest's view of it, if the guest tells.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub guest: Option<Cpu>,
    /// The task that it runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub current: Option<TaskName>,
}

/// Exits by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// All.
    pub total: u64,
    /// Those that happened, by name.
    pub by_reason: std::collections::BTreeMap<String, u64>,
}

/// A task by number and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskName {
    /// Number.
    pub id: u32,
    /// Name.
    pub name: String,
    /// `user`, `kernel` or `idle`.
    pub kind: String,
}

impl From<&Task> for TaskName {
    fn from(task: &Task) -> Self {
        Self { id: task.id, name: task.name.clone(), kind: task.kind.clone() }
    }
}

/// `GET /v1/tasks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tasks {
    /// When this was true, on the clock of `uptime_ns`.
    pub time_ns: u64,
    /// Tasks came and went while the list was read: it is not that of one moment.
    pub torn: bool,
    /// Tasks that exist but are not listed.
    pub left_out: u64,
    /// All others.
    pub tasks: Vec<Task>,
}

/// What `PATCH /v1/tasks/{id}` takes. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskChange {
    /// `other`, `batch`, `idle`, `fifo`, `rr`, `deadline`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy: Option<String>,
    /// -20 to 19.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nice: Option<i32>,
    /// Real-time priority, 1 to 99.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub priority: Option<u32>,
    /// Budget of a deadline task, slice of a fair one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub runtime_ns: Option<u64>,
    /// Of a deadline task.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deadline_ns: Option<u64>,
    /// Of a deadline task.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub period_ns: Option<u64>,
    /// Guest CPUs that it may run on, as a list: `0-1,3`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub affinity: Option<String>,
}

/// What `POST /v1/tasks/{id}/signal` takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    /// A number, or a name with or without SIG.
    pub signal: String,
    /// To this thread alone, not to its process.
    #[serde(default)]
    pub thread: bool,
}

/// What `POST /v1/tasks` takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpawnRequest {
    /// Path in the guest.
    pub path: String,
    /// Arguments, without the program's name; that is the path's last part.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment, NAME=VALUE.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory; the root if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cwd: Option<String>,
    /// Where its standard output goes.
    #[serde(default)]
    pub streams: StreamsChoice,
}

/// Where the streams of a spawned program go. It has input only if they are attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StreamsChoice {
    /// To the console, with that of the first program
    #[default]
    Console,
    /// Nowhere
    Null,
    /// To whoever asks for them, see /v1/programs
    Attached,
}

/// `GET /v1/programs/{process}`: a program that was spawned with its streams attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Number of its process.
    pub process: u32,
    /// Whether it runs.
    pub state: ProgramState,
    /// Its exit code, if it has exited.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<u8>,
    /// Number of the signal, if it was killed by one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<u32>,
}

impl Program {
    /// As a shell gives it; none while it runs.
    pub fn exit_code(&self) -> Option<u8> {
        let killed = |signal| u8::try_from(signal).map_or(u8::MAX, |signal| signal.saturating_add(128));
        self.code.or(self.signal.map(killed))
    }
}

/// Whether a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgramState {
    /// It has not ended.
    Running,
    /// By itself.
    Exited,
    /// By a signal.
    Killed,
}

/// A file that was put into the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its path there.
    pub path: String,
}

/// What `PATCH /v1/clock` takes. Each that is there is done, in this order; the first that fails ends it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockChange {
    /// Seconds of virtual time in a second of the host's, as a decimal number: `0.5`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate: Option<String>,
    /// All clocks jump ahead.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step_forward_ns: Option<u64>,
    /// All clocks jump back: programs see time run backwards.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step_backward_ns: Option<u64>,
    /// By how much a vCPU's clock, or all of them, shall be ahead.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offset: Option<ClockOffset>,
}

/// By how much clocks are ahead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockOffset {
    /// Whose; absent: all.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vcpu: Option<u32>,
    /// By how much.
    pub ns: i64,
    /// A clock may be set back by it.
    #[serde(default)]
    pub backward: bool,
}

/// A program that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawned {
    /// Number of its process, and of its first task.
    pub process: u32,
}

/// Every error: problem details as in RFC 9457, with what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// What went wrong, in a few words.
    pub title: String,
    /// What exactly.
    pub detail: String,
    /// Where: the path asked for.
    pub instance: String,
    /// What to do.
    pub hint: String,
}

/// Content type of a [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";
