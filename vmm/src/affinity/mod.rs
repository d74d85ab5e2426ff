//! Where the VMM's threads run on the host, and how urgently.
//!
//! From the flags ([`parse`]) a [`Plan`] is made and checked by [`plan`] before anything of the guest exists; [`Plan::rehearse`]
//! tries all of it on a thread of its own, so that what the host refuses is known by then too. Each vCPU thread takes its
//! seat ([`Plan::take_seat`]) before its first KVM_RUN. [`live`] changes a running machine. [`sys`] holds the system calls.
//! Invariant: what was asked for is read back from the host. A pin that isn't in force is an error, never a log line.

pub mod live;
pub mod parse;
pub mod plan;
pub mod sys;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

pub use plan::Plan;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::text::IdSet;

/// How urgent a vCPU thread is (sched(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Class {
    /// SCHED_OTHER as it is.
    #[default]
    Other,
    /// SCHED_OTHER with this nice value, -20 to 19.
    Nice(i32),
    /// SCHED_FIFO with this priority, 1 to 99.
    Fifo(u32),
    /// SCHED_RR with this priority, 1 to 99.
    RoundRobin(u32),
}

/// As the flag takes it.
impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Class::Other => f.write_str("other"),
            Class::Nice(nice) => write!(f, "nice:{nice}"),
            Class::Fifo(priority) => write!(f, "fifo:{priority}"),
            Class::RoundRobin(priority) => write!(f, "rr:{priority}"),
        }
    }
}

/// Who may share a core's threads with whom (Linux, Documentation/admin-guide/hw-vuln/core-scheduling.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CoreScheduling {
    /// No restriction
    #[default]
    Off,
    /// Only threads of this VM run together on a core
    Vm,
    /// Each vCPU has its core to itself while it runs
    Vcpu,
}

/// An entry of `--affinity` or `--vcpu-sched`; no list means all vCPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// Which vCPUs.
    pub vcpus: Option<IdSet>,
    /// What for them.
    pub value: T,
}

/// As the flags take it.
impl<T: fmt::Display> fmt::Display for Entry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.vcpus {
            Some(vcpus) => write!(f, "{vcpus}={}", self.value),
            None => write!(f, "all={}", self.value),
        }
    }
}

/// What the flags say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// `--affinity`.
    pub affinity: Vec<Entry<IdSet>>,
    /// `--vcpu-sched`.
    pub classes: Vec<Entry<Class>>,
    /// `--exclusive`.
    pub exclusive: bool,
    /// `--io-affinity`.
    pub io: Option<IdSet>,
    /// `--core-scheduling`.
    pub core_scheduling: CoreScheduling,
}

/// Whose thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// A vCPU's.
    Vcpu(u32),
    /// The event loop's, and all others that are no vCPU's.
    Io,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Vcpu(vcpu) => write!(f, "vCPU {vcpu}"),
            Who::Io => f.write_str("the I/O threads"),
        }
    }
}

/// Why a thread can't run as asked.
#[derive(Debug, thiserror::Error)]
pub enum AffinityError {
    /// A flag names a vCPU that isn't there.
    #[error("{flag} names vCPU {vcpu}, and there are vCPUs {have}")]
    NoSuchVcpu {
        /// Which flag.
        flag: &'static str,
        /// Which vCPU.
        vcpu: u32,
        /// All.
        have: IdSet,
    },
    /// Two entries for one vCPU.
    #[error("{flag} names vCPU {vcpu} twice")]
    Twice {
        /// Which flag.
        flag: &'static str,
        /// Which vCPU.
        vcpu: u32,
    },
    /// CPUs that don't run.
    #[error("{who} can't run on CPUs {wanted}: CPU {cpus} is offline or doesn't exist (online: {online})")]
    Offline {
        /// Whose thread.
        who: Who,
        /// What was asked for.
        wanted: IdSet,
        /// What of it is offline.
        cpus: IdSet,
        /// The host's.
        online: IdSet,
    },
    /// CPUs that this process may not use.
    #[error("{who} can't run on CPUs {wanted}: CPU {cpus} is outside the cpuset of this process (it has: {allowed})")]
    OutsideCpuset {
        /// Whose thread.
        who: Who,
        /// What was asked for.
        wanted: IdSet,
        /// What of it is outside.
        cpus: IdSet,
        /// What the process may use.
        allowed: IdSet,
    },
    /// `--exclusive` with too few CPUs.
    #[error(
        "--exclusive: vCPU {vcpu} finds no CPU of its own among CPUs {cpus}, which vCPUs {others} need: \
         give more CPUs or fewer vCPUs"
    )]
    TooFew {
        /// The vCPU.
        vcpu: u32,
        /// Where it may run.
        cpus: IdSet,
        /// Who has them.
        others: IdSet,
    },
    /// `--exclusive` with I/O threads that have all of a vCPU's CPUs.
    #[error(
        "--exclusive: vCPU {vcpu} finds no CPU of its own: --io-affinity {io} takes all of CPUs {cpus} that it may have"
    )]
    NoneLeft {
        /// The vCPU.
        vcpu: u32,
        /// Where it may run.
        cpus: IdSet,
        /// Where the I/O threads do.
        io: IdSet,
    },
    /// The host refuses the mask.
    #[error("{who} can't be pinned to CPUs {wanted}: {source}")]
    Refused {
        /// Whose thread.
        who: Who,
        /// What was asked for.
        wanted: IdSet,
        /// The system's answer.
        source: io::Error,
    },
    /// The host took the mask, but another one is in force.
    #[error("{who} was pinned to CPUs {wanted}, but the host reads back CPUs {got}")]
    NotInForce {
        /// Whose thread.
        who: Who,
        /// What was asked for.
        wanted: IdSet,
        /// What is.
        got: IdSet,
    },
    /// The host refuses the class.
    #[error("{who} on CPUs {cpus} can't be {class}: {}", class_cause(class, source))]
    Class {
        /// Whose thread.
        who: Who,
        /// Where it runs.
        cpus: IdSet,
        /// What was asked for.
        class: Class,
        /// The system's answer.
        source: io::Error,
    },
    /// The host took the class, but another one is in force.
    #[error("{who} was made {class}, but the host reads back {got}")]
    ClassNotInForce {
        /// Whose thread.
        who: Who,
        /// What was asked for.
        class: Class,
        /// What is.
        got: Class,
    },
    /// Core scheduling.
    #[error("--core-scheduling for {who}: {}", core_cause(source))]
    Core {
        /// Whose thread.
        who: Who,
        /// The system's answer.
        source: io::Error,
    },
    /// No thread to try on.
    #[error("can't start a thread: {0}")]
    Thread(io::Error),
}

fn class_cause(class: &Class, source: &io::Error) -> String {
    match (source.raw_os_error(), class) {
        (Some(libc::EPERM | libc::EACCES), Class::Fifo(priority) | Class::RoundRobin(priority)) => {
            format!(
                "no permission (it takes CAP_SYS_NICE, or RLIMIT_RTPRIO of {priority}, and a cgroup with real-time budget)"
            )
        }
        (Some(libc::EPERM | libc::EACCES), _) => "no permission (it takes CAP_SYS_NICE, or RLIMIT_NICE)".to_owned(),
        _ => source.to_string(),
    }
}

/// PR_SCHED_CORE's answers (prctl(2); Linux, kernel/sched/core_sched.c).
fn core_cause(source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::EINVAL) => "not supported by this host's kernel (it takes CONFIG_SCHED_CORE)".to_owned(),
        Some(libc::ENODEV) => {
            "not supported on this host: its cores have one thread each, so that nothing is shared".to_owned()
        }
        Some(libc::EPERM) => "no permission".to_owned(),
        _ => source.to_string(),
    }
}
