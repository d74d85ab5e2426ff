//! What the control interface shows: the running machine, as seen from beside it.
//!
//! [`crate::vm`] makes one when the vCPUs have started. What it shows is read from counters, the guest's memory and /proc; no
//! vCPU is asked or interrupted. What is done to it is in [`super::act`].

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::Pid;
use rustix::thread::sched_getaffinity;
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::taskview::TaskKind;

use super::api::{Classed, Exits, Pinned, Stats, TaskCounts, TaskName, Tasks, Vcpu, Vcpus, Vm, VmState};
use super::programs::Streams;
use super::runs::Runs;
use crate::affinity::live::{self, LiveError};
use crate::affinity::{Class, Entry, sys};
use crate::clock::Clock;
use crate::config::text::IdSet;
use crate::guestview::{GuestViewError, Reader, Snapshot, TaskState};
use crate::memory::{self, Ram};
use crate::requests::Mailbox;
use crate::trace::Live;
use crate::vcpu::counts::{ExitCounts, Kind};

/// One vCPU's thread, as others may see it.
#[derive(Debug, Clone)]
pub struct VcpuThread {
    /// Number of the vCPU.
    pub index: u32,
    /// The guest knows it by this.
    pub apic_id: u32,
    /// Host thread id.
    pub tid: i32,
    /// Its exits.
    pub counts: Arc<ExitCounts>,
}

/// What doesn't change while the machine runs.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Bytes of guest memory.
    pub memory: u64,
    /// The kernel's file.
    pub kernel: String,
    /// The program and its arguments.
    pub program: Vec<String>,
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    /// What it was made as.
    pub facts: Facts,
    /// When its vCPUs started.
    pub start: Instant,
    /// Its vCPUs.
    pub vcpus: Vec<VcpuThread>,
    /// What its guest shows.
    pub reader: Reader,
    /// Its guest's memory.
    pub ram: Ram,
    /// What its guest's kernel is asked through.
    pub mailbox: Mailbox,
    /// Whether it runs.
    pub run: Runs,
    /// Which streams of programs have clients.
    pub streams: Streams,
    /// Its guest's clock.
    pub clock: Clock,
    /// What records its guest on request.
    pub trace: Option<Live>,
}

impl Machine {
    fn time_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The machine as a whole.
    pub fn vm(&self) -> Vm {
        Vm {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            vcpus: self.vcpus.len() as u32,
            memory: self.facts.memory,
            kernel: self.facts.kernel.clone(),
            program: self.facts.program.clone(),
            uptime_ns: self.time_ns(),
            state: if self.run.paused() { VmState::Paused } else { VmState::Running },
            tasks_unavailable: self.reader.snapshot().err().map(|error| error.to_string()),
        }
    }

    /// All vCPUs. A guest that shows nothing leaves its part out.
    pub fn vcpus(&self) -> Vcpus {
        let snapshot = self.reader.snapshot().unwrap_or_default();
        Vcpus {
            time_ns: self.time_ns(),
            vcpus: self.vcpus.iter().map(|vcpu| show(vcpu, &snapshot, self.time_ns())).collect(),
        }
    }

    /// Sums over the whole machine.
    pub fn stats(&self) -> Stats {
        let times = self.vcpus.iter().filter_map(|vcpu| schedstat(vcpu.tid));
        let (host_run_ns, host_wait_ns) = times.fold((0, 0), |(run, wait), (r, w)| (run + r, wait + w));
        Stats {
            time_ns: self.time_ns(),
            memory_touched: memory::touched(&self.ram),
            exits: self.vcpus.iter().map(|vcpu| vcpu.counts.total()).sum(),
            host_run_ns,
            host_wait_ns,
            tasks: self.task_counts(),
        }
    }

    /// Tasks by state, if the guest shows them.
    pub fn task_counts(&self) -> Option<TaskCounts> {
        let mut counts = TaskCounts::default();
        for task in self.reader.snapshot().ok()?.tasks {
            let idle = task.kind == TaskKind::Idle.name();
            counts.total += 1;
            counts.running += u64::from(task.state == TaskState::Running && !idle);
            counts.ready += u64::from(task.state == TaskState::Ready && !idle);
            counts.blocked += u64::from(task.state == TaskState::Blocked);
            counts.suspended += u64::from(task.suspended == Some(true));
        }
        Some(counts)
    }

    /// Moves vCPU threads: all that the entries name, or none.
    pub fn pin(&self, entries: &[Entry<IdSet>]) -> Result<Vec<Pinned>, LiveError> {
        let tids: Vec<i32> = self.vcpus.iter().map(|vcpu| vcpu.tid).collect();
        let done = live::set_live(&live::changes(entries, &tids)?)?;
        Ok(done.into_iter().map(|(index, cpus)| Pinned { index, affinity: cpus.to_string() }).collect())
    }

    /// Changes how urgently vCPU threads run: all that the entries name, or none.
    pub fn set_classes(&self, entries: &[Entry<Class>]) -> Result<Vec<Classed>, LiveError> {
        let tids: Vec<i32> = self.vcpus.iter().map(|vcpu| vcpu.tid).collect();
        let done = live::set_live(&live::changes(entries, &tids)?)?;
        Ok(done.into_iter().map(|(index, class)| Classed { index, class: class.to_string() }).collect())
    }

    /// All tasks.
    pub fn tasks(&self) -> Result<Tasks, GuestViewError> {
        let Snapshot { tasks, torn, left_out, .. } = self.reader.snapshot()?;
        Ok(Tasks { time_ns: self.time_ns(), torn, left_out, tasks })
    }
}

fn show(vcpu: &VcpuThread, snapshot: &Snapshot, uptime_ns: u64) -> Vcpu {
    let guest = snapshot.cpus.iter().find(|cpu| cpu.apic_id == vcpu.apic_id).cloned();
    let current = guest.as_ref().and_then(|cpu| snapshot.current(cpu.index)).map(TaskName::from);
    let (host_run_ns, host_wait_ns) = schedstat(vcpu.tid).unzip();
    Vcpu {
        index: vcpu.index,
        tid: Some(vcpu.tid),
        thread: format!("vcpu{}", vcpu.index),
        affinity: affinity(vcpu.tid),
        host_cpu: last_cpu(vcpu.tid),
        host_run_ns,
        host_wait_ns,
        halted_share: halted_share(uptime_ns, host_run_ns, host_wait_ns),
        class: sys::class(vcpu.tid).ok().map(|class| class.to_string()),
        exits: exits(&vcpu.counts),
        guest,
        current,
    }
}

/// The rest of the time, in which the thread slept.
fn halted_share(uptime_ns: u64, run: Option<u64>, wait: Option<u64>) -> Option<f64> {
    let awake = run?.saturating_add(wait?);
    (uptime_ns != 0).then(|| uptime_ns.saturating_sub(awake) as f64 / uptime_ns as f64)
}

fn exits(counts: &ExitCounts) -> Exits {
    let by_reason = Kind::ALL.into_iter().map(|kind| (kind.name().to_owned(), counts.get(kind)));
    Exits { total: counts.total(), by_reason: by_reason.filter(|(_, count)| *count != 0).collect() }
}

/// Host CPUs that a thread may run on.
fn affinity(tid: i32) -> Option<String> {
    let set = sched_getaffinity(Some(Pid::from_raw(tid)?)).ok()?;
    let mut mask = CpuMask::empty();
    for cpu in (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)) {
        mask.set(vcpu_sched::ids::CpuId(u32::try_from(cpu).ok()?));
    }
    Some(mask.to_string())
}

/// Time on a CPU and time waiting for one (Linux, Documentation/scheduler/sched-stats.rst, "/proc/<pid>/schedstat").
fn schedstat(tid: i32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).ok()?;
    let mut words = text.split_ascii_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// The CPU that a thread ran on last: field 39 of stat, the 37th behind the name (proc(5)).
fn last_cpu(tid: i32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(36)?.parse().ok()
}
