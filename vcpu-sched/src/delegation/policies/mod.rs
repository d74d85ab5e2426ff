//! What an agent decides: the contract, and policies that a newcomer can copy.
//!
//! A [`Policy`] is told by the [`Agent`](super::agent::Agent) which tasks may run ([`enqueue`](Policy::enqueue)) and which of them may not
//! any more ([`dequeue`](Policy::dequeue)); when asked to [`decide`](Policy::decide), it says what to run where. It knows tasks by their status
//! word's number (`slot`), and looks at the rest in the [`View`]. It takes no lock, reads no clock, and never blocks.
//!
//! The invariants: a task that was enqueued is the policy's until it is dequeued, or decided on; one that was decided on and could
//! not be run comes back by `enqueue` with [`Ready::Refused`]. What a policy decides wrongly (a task that isn't its, a CPU that isn't open)
//! is not carried out; it can lose time, never tasks.
//! [`named`] finds them by name.
//!
//! | file | order | where |
//! | --- | --- | --- |
//! | [`fifo`] | of arrival | any idle CPU |
//! | [`percpu`] | of arrival, for each CPU | where it ran last |
//! | [`shinjuku`] | of arrival, at most a slice at a time | any idle CPU |
//! | [`edf`] | earliest deadline | any CPU, also instead of a later deadline |
//! | [`cores`] | of arrival | siblings of a core never run different cookies |
//! | [`steal`] | of arrival | a CPU that the host runs now |
//! | [`remote`] | of any policy of this crate | where that policy's queue is |

pub mod cores;
pub mod edf;
pub mod fifo;
pub mod named;
pub mod percpu;
pub mod remote;
pub mod shinjuku;
pub mod steal;

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::abi::host_flags;
use super::agent::{CpuState, TaskInfo};
use super::layout::Region;
use super::status::HostStatus;
use crate::cpumask::CpuMask;
use crate::ids::{CpuId, Nanos};

/// Why a task may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ready {
    /// It is new.
    New,
    /// What it waited for has happened.
    Woken,
    /// It ran, and gave way.
    Yielded,
    /// It ran, and had to give way.
    Preempted,
    /// It was decided on, and could not be run.
    Refused,
}

/// What an agent believes at this moment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub(super) region: Region<'a>,
    /// By slot.
    pub tasks: &'a [TaskInfo],
    /// By number.
    pub cpus: &'a [CpuState],
    /// CPUs that a decision may be made for.
    pub open: &'a CpuMask,
    /// Of them, those that run nothing.
    pub idle: &'a CpuMask,
    /// The guest's time.
    pub now: Nanos,
}

impl View<'_> {
    /// The task in that status word.
    pub fn task(&self, slot: u32) -> Option<&TaskInfo> {
        self.tasks.get(slot as usize)
    }

    /// What the host does with that vCPU, if the VMM tells.
    pub fn host(&self, cpu: CpuId) -> Option<HostStatus> {
        self.region.read_host(cpu).filter(|host| host.flags & host_flags::KNOWN != 0)
    }

    /// That CPU.
    pub fn cpu(&self, cpu: CpuId) -> Option<&CpuState> {
        self.cpus.get(cpu.index())
    }
}

/// What to do with a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Run that task.
    Task(u32),
    /// Idle until the next decision.
    Idle,
    /// Take its task from it.
    Nothing,
}

/// One decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Where.
    pub cpu: CpuId,
    /// What.
    pub target: Target,
    /// [`run_flags`](super::abi::run_flags).
    pub run_flags: u32,
    /// All decisions with the same owner are carried out, or none; the owner's is among them.
    pub group: Option<CpuId>,
}

/// What a policy decided.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    list: Vec<Decision>,
    ready: Vec<(CpuId, u32)>,
}

impl Decisions {
    /// Run that task there. It is no longer the policy's.
    pub fn run(&mut self, cpu: CpuId, slot: u32) {
        self.push(Decision { cpu, target: Target::Task(slot), run_flags: 0, group: None });
    }

    /// Any decision.
    pub fn push(&mut self, decision: Decision) {
        self.list.push(decision);
    }

    /// Should that CPU find nothing to do, it may take that task. It stays the policy's until it runs; then it is dequeued.
    pub fn leave_ready(&mut self, cpu: CpuId, slot: u32) {
        self.ready.push((cpu, slot));
    }

    /// The decisions.
    pub fn iter(&self) -> impl Iterator<Item = &Decision> {
        self.list.iter()
    }

    /// What was left ready.
    pub fn ready(&self) -> impl Iterator<Item = (CpuId, u32)> {
        self.ready.iter().copied()
    }

    /// Was nothing decided?
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.ready.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.ready.clear();
    }
}

/// See the module's text.
pub trait Policy {
    /// The task may run, and is the policy's.
    fn enqueue(&mut self, view: &View<'_>, slot: u32, why: Ready);

    /// The task is not the policy's any more: it has gone, or runs without a decision.
    fn dequeue(&mut self, view: &View<'_>, slot: u32);

    /// Says what to run where, on [open](View::open) CPUs.
    fn decide(&mut self, view: &View<'_>, decisions: &mut Decisions);

    /// The task has gone for good; it isn't the policy's. For policies that keep something of tasks that wait.
    fn forget(&mut self, slot: u32) {
        let _ = slot;
    }
}

impl<P: Policy + ?Sized> Policy for Box<P> {
    fn enqueue(&mut self, view: &View<'_>, slot: u32, why: Ready) {
        (**self).enqueue(view, slot, why);
    }

    fn dequeue(&mut self, view: &View<'_>, slot: u32) {
        (**self).dequeue(view, slot);
    }

    fn decide(&mut self, view: &View<'_>, decisions: &mut Decisions) {
        (**self).decide(view, decisions);
    }

    fn forget(&mut self, slot: u32) {
        (**self).forget(slot);
    }
}

/// A policy's queue: slots in order, found and removed by number.
#[derive(Clone, Debug, Default)]
pub struct Queue(alloc::collections::VecDeque<u32>);

impl Queue {
    /// At the end.
    pub fn push(&mut self, slot: u32) {
        self.0.push_back(slot);
    }

    /// Takes the first.
    pub fn pop(&mut self) -> Option<u32> {
        self.0.pop_front()
    }

    /// The first, which stays.
    pub fn first(&self) -> Option<u32> {
        self.0.front().copied()
    }

    /// Takes the first that is wanted.
    pub fn take(&mut self, wanted: impl Fn(u32) -> bool) -> Option<u32> {
        let at = self.0.iter().position(|&slot| wanted(slot))?;
        self.0.remove(at)
    }

    /// Removes that one.
    pub fn remove(&mut self, slot: u32) -> bool {
        self.take(|queued| queued == slot).is_some()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
