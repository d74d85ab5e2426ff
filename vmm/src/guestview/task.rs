//! One task and one CPU of a guest, in the host's words. These are also the resources of the control API.

use serde::{Deserialize, Serialize};
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::requests::change;
use vcpu_sched::task::state::State;
use vcpu_sched::task::suspension::Suspension;
use vcpu_sched::taskview::{CpuField, Record, TaskField, TaskKind, wait_name};

use super::GuestClock;

/// Where a task is in its life, as a user sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// On a CPU.
    Running,
    /// Waits for a CPU.
    Ready,
    /// Waits for something else.
    Blocked,
    /// Not started yet.
    New,
    /// Has ended.
    Dead,
    /// The guest says something that is no state.
    Invalid,
}

impl TaskState {
    /// The word to print.
    pub fn name(self) -> &'static str {
        match self {
            TaskState::Running => "running",
            TaskState::Ready => "ready",
            TaskState::Blocked => "blocked",
            TaskState::New => "new",
            TaskState::Dead => "dead",
            TaskState::Invalid => "invalid",
        }
    }
}

/// Addresses are strings in JSON: its readers' numbers often have 53 bits only.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{value:#x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.strip_prefix("0x").ok_or_else(|| de::Error::custom("an address starts with 0x"))?;
        u64::from_str_radix(digits, 16).map_err(de::Error::custom)
    }
}

/// One task. What a guest kernel doesn't tell is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Number; Linux's tid.
    pub id: u32,
    /// Name, with what can't be printed replaced.
    pub name: String,
    /// `user`, `kernel` or `idle`.
    pub kind: String,
    /// Its process, for a thread of a program.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process: Option<u32>,
    /// Where it is in its life.
    pub state: TaskState,
    /// Some CPU stands on its stack.
    pub on_cpu: bool,
    /// Last or present CPU.
    pub cpu: u32,
    /// Somebody outside holds it off its program.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub suspended: Option<bool>,
    /// What it waits for, if it is blocked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waits_for: Option<String>,
    /// Scheduling policy, as Linux names it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy: Option<String>,
    /// Real-time priority.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub priority: Option<u8>,
    /// Nice value.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nice: Option<i8>,
    /// CPUs that it may run on, as a list.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub affinity: Option<String>,
    /// Time on a CPU, the present turn included.
    pub run_ns: u64,
    /// Time ready without a CPU.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wait_ns: Option<u64>,
    /// Time blocked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sleep_ns: Option<u64>,
    /// How long it has been blocked, or ready without a CPU, by now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state_ns: Option<u64>,
    /// Switches away from it that it asked for.
    pub voluntary_switches: u64,
    /// Switches that were forced on it.
    pub involuntary_switches: u64,
    /// Times it came to another CPU.
    pub migrations: u64,
    /// Page faults resolved.
    pub faults: u64,
    /// Guest-physical address of its structure in the kernel.
    #[serde(with = "hex")]
    pub address: u64,
    /// Guest-physical address of its top-level page table.
    #[serde(with = "hex")]
    pub page_table: u64,
    /// Kernel stack pointer that it continues with; stale while it is on a CPU.
    #[serde(with = "hex")]
    pub saved_rsp: u64,
    /// Thread pointer.
    #[serde(with = "hex")]
    pub fs_base: u64,
}

impl Task {
    /// From a task's bytes, on a machine with the CPUs `present`, at `now` by the kernel's monotonic clock. `None` if this kernel
    /// doesn't even tell numbers.
    pub(super) fn read(
        record: Record<'_>,
        address: u64,
        clock: &GuestClock,
        present: &CpuMask,
        now: Option<u64>,
    ) -> Option<Self> {
        let get = |field| record.task_field(field);
        let small = |field| get(field).and_then(|value| u8::try_from(value).ok());
        let number = |field| get(field).unwrap_or(0);
        let id = get(super::read::IDENTITY)? as u32;
        let state = match small(TaskField::State).and_then(State::from_u8) {
            Some(State::New) => TaskState::New,
            Some(State::Ready) => TaskState::Ready,
            // An idle task that isn't on its CPU is always ready, which its state doesn't say.
            Some(State::Running)
                if small(TaskField::Kind) == Some(TaskKind::Idle as u8) && number(TaskField::OnCpu) == 0 =>
            {
                TaskState::Ready
            }
            // It has announced to wait, and still runs.
            Some(State::Running | State::Blocking) => TaskState::Running,
            Some(State::Blocked) => TaskState::Blocked,
            Some(State::Dead) => TaskState::Dead,
            None => TaskState::Invalid,
        };
        let kind = small(TaskField::Kind).and_then(TaskKind::from_u8).map_or("unknown", TaskKind::name);
        let waits_for = (state == TaskState::Blocked)
            .then(|| small(TaskField::WaitReason).and_then(wait_name))
            .flatten()
            .map(str::to_owned);
        // Nobody counts an idle task's waiting.
        let waits = matches!(state, TaskState::Blocked | TaskState::Ready)
            && small(TaskField::Kind) != Some(TaskKind::Idle as u8);
        let since = get(TaskField::Since).filter(|since| waits && *since != 0);
        Some(Self {
            id,
            name: printable(record.task_name().unwrap_or_default()),
            kind: kind.to_owned(),
            process: get(TaskField::Process).map(|process| process as u32).filter(|process| *process != 0),
            state,
            on_cpu: number(TaskField::OnCpu) != 0,
            cpu: number(TaskField::Cpu) as u32,
            suspended: get(TaskField::Suspension).map(|word| Suspension::held_by(word as u32)),
            waits_for,
            policy: small(TaskField::Policy).map(policy_name),
            priority: small(TaskField::Priority),
            nice: small(TaskField::Nice).map(|nice| nice as i8),
            // A task that may run anywhere has all bits set, CPUs that aren't there included.
            affinity: record.task_affinity().map(|mask| mask.and(present).to_string()),
            run_ns: get(TaskField::RunNanos).unwrap_or_else(|| clock.nanos(number(TaskField::RunTicks))),
            wait_ns: get(TaskField::WaitNanos),
            sleep_ns: get(TaskField::SleepNanos),
            // It may have come to wait after `now` was taken.
            state_ns: since.and_then(|since| now.map(|now| now.saturating_sub(since))),
            voluntary_switches: number(TaskField::Voluntary),
            involuntary_switches: number(TaskField::Involuntary),
            migrations: number(TaskField::Migrations),
            faults: number(TaskField::Faults),
            address,
            page_table: number(TaskField::Root),
            saved_rsp: number(TaskField::SavedRsp),
            fs_base: number(TaskField::FsBase),
        })
    }

    /// The task is on a CPU, for so long already: its counters stand still until its next switch.
    pub(super) fn still_running(&mut self, nanos: u64) {
        self.run_ns = self.run_ns.saturating_add(nanos);
    }
}

/// A Linux policy number (uapi/linux/sched.h) by name.
fn policy_name(number: u8) -> String {
    match number {
        // Our own: `vcpu_sched::events::ClassTag`.
        254 => "idle task".into(),
        255 => "stop".into(),
        n => change::policy_name(n.into()).map_or_else(|| format!("policy {n}"), str::to_owned),
    }
}

/// Guest bytes as text for a terminal: letters, digits and visible ASCII stay, the rest becomes a question mark.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_alphanumeric() || c.is_ascii_graphic() || c == ' ' { c } else { '?' })
        .collect()
}

/// One CPU, as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Number.
    pub index: u32,
    /// APIC id, which says which vCPU it is.
    pub apic_id: u32,
    /// The task that it runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub current: Option<u32>,
    /// Tasks ready or running, the idle task not counted.
    pub nr_running: u32,
    /// Time that its idle task has run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idle_ns: Option<u64>,
    /// Task switches.
    pub switches: u64,
    /// System calls.
    pub syscalls: u64,
    /// Page faults.
    pub faults: u64,
    /// Timer interrupts.
    pub timer_interrupts: u64,
    /// Reschedule interrupts received.
    pub reschedule_ipis: u64,
}

impl Cpu {
    pub(super) fn read(record: Record<'_>, index: u32) -> Self {
        let number = |field| record.cpu_field(field).unwrap_or(0);
        Self {
            index,
            apic_id: number(CpuField::ApicId) as u32,
            current: None,
            nr_running: number(CpuField::NrRunning) as u32,
            idle_ns: None,
            switches: number(CpuField::Switches),
            syscalls: number(CpuField::Syscalls),
            faults: number(CpuField::Faults),
            timer_interrupts: number(CpuField::TimerInterrupts),
            reschedule_ipis: number(CpuField::RescheduleIpis),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_not_drive_a_terminal() {
        assert_eq!(printable(b"sh\x1b[2J\n"), "sh?[2J?");
        assert_eq!(printable("grün ok\u{202e}".as_bytes()), "grün ok?");
        assert_eq!(printable(&[0xff, b'a']), "?a");
    }
}
