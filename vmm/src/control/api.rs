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
    /// Why the guest's tasks can't be listed, if they can't.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tasks_unavailable: Option<String>,
}

/// `GET /v1/vcpus`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// One vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
