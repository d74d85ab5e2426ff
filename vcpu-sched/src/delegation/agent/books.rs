//! What the agent believes of tasks and CPUs, message by message.

use super::super::abi::message_flags;
use super::super::layout::Region;
use super::super::message::{Message, MessageType};
use super::super::policies::{Policy, Ready, View};
use super::super::txn::TxnState;
use super::Agent;
use crate::cpumask::CpuMask;
use crate::ids::{CpuId, Nanos};
use alloc::vec::Vec;

/// Where the agent believes a task to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TaskState {
    /// Not told of.
    #[default]
    Unknown,
    /// Waits.
    Blocked,
    /// May run; the policy has it.
    Runnable,
    /// Asked for on that CPU.
    Submitted(CpuId),
    /// Runs there.
    OnCpu(CpuId),
}

/// What the agent keeps of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskInfo {
    /// Its number; a policy may keep `slot` instead, which is smaller.
    pub gtid: u64,
    /// Its status word.
    pub slot: u32,
    /// Newest barrier seen.
    pub barrier: u32,
    /// Where it is.
    pub state: TaskState,
    /// CPU time it has used.
    pub runtime: Nanos,
    /// Nice value.
    pub nice: i16,
    /// Where it ran last.
    pub last_cpu: CpuId,
    /// CPUs of the first 64 on which the guest didn't let it run.
    barred: u64,
}

impl TaskInfo {
    const UNKNOWN: Self = Self {
        gtid: 0,
        slot: 0,
        barrier: 0,
        state: TaskState::Unknown,
        runtime: Nanos::ZERO,
        nice: 0,
        last_cpu: CpuId(0),
        barred: 0,
    };

    /// Has the guest refused to run it there, and nothing changed since?
    pub fn is_barred(&self, cpu: CpuId) -> bool {
        cpu.0 < u64::BITS && self.barred >> cpu.0 & 1 != 0
    }
}

/// What the agent keeps of a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuState {
    /// In the enclave.
    pub member: bool,
    /// No higher class has it, as far as is known.
    pub available: bool,
    /// The task that runs there.
    pub current: Option<u32>,
    /// Since when, by the guest's clock.
    pub since: Nanos,
    /// The task that was asked for.
    pub submitted: Option<u32>,
    /// Newest history seen.
    pub seqnum: u64,
}

impl CpuState {
    const fn new(member: bool) -> Self {
        Self { member, available: true, current: None, since: Nanos::ZERO, submitted: None, seqnum: 0 }
    }
}

/// The records of tasks and CPUs, with sets by which CPUs are found.
#[derive(Clone, Debug)]
pub(super) struct Books {
    pub tasks: Vec<TaskInfo>,
    pub cpus: Vec<CpuState>,
    /// CPUs that something may be asked for on.
    pub open: CpuMask,
    /// Of them, those that run nothing.
    pub idle: CpuMask,
    /// CPUs with a transaction under way.
    pub pending: CpuMask,
    /// CPUs that were refused because a higher class has them.
    pub taken: CpuMask,
}

impl Books {
    pub fn new(count: u32, members: &CpuMask) -> Self {
        let members = members.and(&CpuMask::full(count));
        Self {
            tasks: Vec::new(),
            cpus: (0..count).map(|cpu| CpuState::new(members.test(CpuId(cpu)))).collect(),
            open: members.clone(),
            idle: members,
            pending: CpuMask::empty(),
            taken: CpuMask::empty(),
        }
    }

    pub fn view<'a>(&'a self, region: Region<'a>, now: Nanos) -> View<'a> {
        View { region, tasks: &self.tasks, cpus: &self.cpus, open: &self.open, idle: &self.idle, now }
    }

    /// Changes a CPU's record, and the sets with it. Nothing happens for a CPU that isn't there.
    pub fn change(&mut self, cpu: CpuId, change: impl FnOnce(&mut CpuState)) {
        let Some(state) = self.cpus.get_mut(cpu.index()) else { return };
        change(state);
        let open = state.member && state.available && state.submitted.is_none();
        let idle = open && state.current.is_none();
        let taken = state.member && !state.available;
        for (set, on) in [
            (&mut self.open, open),
            (&mut self.idle, idle),
            (&mut self.pending, state.submitted.is_some()),
            (&mut self.taken, taken),
        ] {
            if on {
                set.set(cpu);
            } else {
                set.clear(cpu);
            }
        }
    }

    pub fn set_state(&mut self, slot: u32, state: TaskState) {
        if let Some(task) = self.tasks.get_mut(slot as usize) {
            task.state = state;
        }
    }

    /// The guest didn't let it run there.
    pub fn bar(&mut self, slot: u32, cpu: CpuId) {
        if let Some(task) = self.tasks.get_mut(slot as usize)
            && cpu.0 < u64::BITS
        {
            task.barred |= 1 << cpu.0;
        }
    }

    pub fn state(&self, slot: u32) -> TaskState {
        self.tasks.get(slot as usize).map_or(TaskState::Unknown, |task| task.state)
    }

    /// Does this number say what the CPU does *now*? If so, older ones won't count.
    pub fn is_newest(&mut self, cpu: CpuId, seqnum: u64) -> bool {
        match self.cpus.get_mut(cpu.index()) {
            Some(state) if seqnum > state.seqnum => {
                state.seqnum = seqnum;
                true
            }
            _ => false,
        }
    }

    /// The task is on a CPU. If that is the newest of the CPU, it is what it runs.
    pub fn run_on(&mut self, slot: u32, cpu: CpuId, since: Nanos, newest: bool) {
        self.set_state(slot, TaskState::OnCpu(cpu));
        if let Some(task) = self.tasks.get_mut(slot as usize) {
            task.last_cpu = cpu;
        }
        if newest {
            self.change(cpu, |state| (state.current, state.since) = (Some(slot), since));
        }
    }

    /// The task is on no CPU (any more).
    fn off_cpu(&mut self, slot: u32, message: &Message, newest: bool) {
        let Some(task) = self.tasks.get_mut(slot as usize) else { return };
        let believed = match task.state {
            TaskState::OnCpu(cpu) | TaskState::Submitted(cpu) => Some(cpu),
            TaskState::Unknown | TaskState::Blocked | TaskState::Runnable => None,
        };
        task.last_cpu = message.cpu;
        // A chain goes on there: the CPU stays taken, in the name of its first task, until the chain's last message.
        let chain_begins = message.kind == MessageType::SwitchTo;
        let chain_ends = message.has(message_flags::FROM_SWITCHTO);
        if let Some(cpu) = believed {
            self.change(cpu, |state| {
                if state.submitted == Some(slot) {
                    state.submitted = None;
                }
                if state.current == Some(slot) && !chain_begins {
                    state.current = None;
                }
            });
        }
        if newest && chain_begins {
            self.change(message.cpu, |state| state.current = Some(slot));
        }
        if newest && chain_ends {
            self.change(message.cpu, |state| state.current = None);
        }
    }
}

impl<P: Policy> Agent<'_, P> {
    /// Brings one message into the books.
    pub(super) fn note(&mut self, message: &Message, now: Nanos) {
        // What was committed there before is the older history; its end state is seen by now, as it was written before.
        if message.cpu_seqnum != 0 {
            self.reap_cpu(message.cpu, now);
        }
        if !message.kind.is_task() {
            let newest = self.books.is_newest(message.cpu, message.cpu_seqnum);
            match message.kind {
                MessageType::Available if newest => self.books.change(message.cpu, |state| state.available = true),
                MessageType::Busy if newest => self.books.change(message.cpu, |state| state.available = false),
                _ => {}
            }
            return;
        }
        let slot = message.slot;
        if slot >= self.region.sizes().tasks {
            self.counters.nonsense += 1;
            return;
        }
        if slot as usize >= self.books.tasks.len() {
            self.books.tasks.resize(slot as usize + 1, TaskInfo::UNKNOWN);
        }
        let Some(task) = self.books.tasks.get(slot as usize) else { return };
        let known = task.state != TaskState::Unknown && task.gtid == message.gtid;
        // Barriers wrap; half of all numbers are newer.
        let newer = message.seqnum.wrapping_sub(task.barrier) as i32 > 0;
        if message.kind != MessageType::New && !known || known && !newer {
            // Of a task that has left, or of one that the last agent was told of: its NEW will come.
            return;
        }
        if message.kind == MessageType::New {
            self.forget(slot, now);
            if let Some(task) = self.books.tasks.get_mut(slot as usize) {
                (task.gtid, task.slot, task.state, task.last_cpu) =
                    (message.gtid, slot, TaskState::Blocked, message.cpu);
            }
        }
        if let Some(task) = self.books.tasks.get_mut(slot as usize) {
            (task.barrier, task.runtime, task.nice) = (message.seqnum, message.runtime, message.nice);
        }
        self.note_task(slot, message, now);
    }

    fn note_task(&mut self, slot: u32, message: &Message, now: Nanos) {
        use MessageType as M;
        let newest = self.books.is_newest(message.cpu, message.cpu_seqnum);
        match message.kind {
            M::New if message.is_runnable() => self.make_runnable(slot, Ready::New, now),
            M::Wakeup => self.make_runnable(slot, Ready::Woken, now),
            M::Blocked | M::SwitchTo => {
                self.take_from_policy(slot, now);
                self.books.off_cpu(slot, message, newest);
                self.books.set_state(slot, TaskState::Blocked);
            }
            M::Yield | M::Preempt => {
                self.take_from_policy(slot, now);
                self.books.off_cpu(slot, message, newest);
                self.books.set_state(slot, TaskState::Blocked);
                self.make_runnable(slot, if message.kind == M::Yield { Ready::Yielded } else { Ready::Preempted }, now);
            }
            M::OnCpu if !message.has(message_flags::WAS_LATCHED) => {
                self.take_from_policy(slot, now);
                self.books.run_on(slot, message.cpu, message.time, newest);
            }
            M::AffinityChanged => {
                if let Some(task) = self.books.tasks.get_mut(slot as usize) {
                    task.barred = 0;
                }
                self.let_in(slot, now);
            }
            // What was left ready, is not any more; it is still where it was.
            M::LatchFailure if self.books.state(slot) == TaskState::Runnable => {
                if message.extra == TxnState::NotPermitted as u64 {
                    self.books.bar(slot, message.cpu);
                }
                self.take_from_policy(slot, now);
                self.make_runnable(slot, Ready::Refused, now);
            }
            M::Dead | M::Departed => self.forget(slot, now),
            _ => {}
        }
    }

    /// The policy has it from now on.
    pub(super) fn make_runnable(&mut self, slot: u32, why: Ready, now: Nanos) {
        if self.books.state(slot) == TaskState::Blocked {
            self.books.set_state(slot, TaskState::Runnable);
            self.policy.enqueue(&self.books.view(self.region, now), slot, why);
        }
    }

    /// The policy has it no more.
    fn take_from_policy(&mut self, slot: u32, now: Nanos) {
        if self.books.state(slot) == TaskState::Runnable {
            self.policy.dequeue(&self.books.view(self.region, now), slot);
            self.books.set_state(slot, TaskState::Blocked);
        }
    }

    /// The task has gone, or is told of anew.
    fn forget(&mut self, slot: u32, now: Nanos) {
        self.take_from_policy(slot, now);
        if let TaskState::OnCpu(cpu) | TaskState::Submitted(cpu) = self.books.state(slot) {
            self.books.change(cpu, |state| {
                if state.current == Some(slot) {
                    state.current = None;
                }
                if state.submitted == Some(slot) {
                    state.submitted = None;
                }
            });
        }
        self.policy.forget(slot);
        self.outside.retain(|&parked| parked != slot);
        if let Some(task) = self.books.tasks.get_mut(slot as usize) {
            *task = TaskInfo::UNKNOWN;
        }
    }
}
