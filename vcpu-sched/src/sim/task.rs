//! A simulated task: what the scheduler keeps of it, and how far it has come in its program.
//!
//! Owned by the machine, which drops it when it has ended; run queues hold further references. The invariant is the one of
//! [`task::state`](crate::task::state): `state` is changed by [`AtomicState::apply`] alone, and `on_cpu` says whether a CPU
//! still stands on the task's stack, whatever the state is.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Deref;

use super::random::Stream;
use crate::cpumask::CpuMask;
use crate::entity::{Entity, SchedEntity};
use crate::ids::{CpuId, Nanos, TaskId};
use crate::task::state::AtomicState;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: TaskId,
    /// Index of its group, and its number in it.
    pub(super) group: usize,
    pub(super) index: u32,
    pub(super) state: AtomicState,
    pub(super) sched: SchedEntity,
    /// A CPU stands on its stack.
    pub(super) on_cpu: Cell<bool>,
    /// Where it runs, ran last or is queued first.
    pub(super) cpu: Cell<CpuId>,
    pub(super) allowed: RefCell<CpuMask>,
    /// When it was woken, until it runs.
    pub(super) woken_at: Cell<Option<Nanos>>,
    pub(super) born: Nanos,
    /// Since when it has been running, queued or blocked.
    pub(super) since: Cell<Nanos>,
    pub(super) exec: RefCell<Exec>,
}

/// How far a task is in its program.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) pc: usize,
    pub(super) stage: Stage,
    /// CPU time until the stage is over.
    pub(super) left: Nanos,
    /// Passages left in the loops that it is in, the innermost last.
    pub(super) loops: Vec<u32>,
    /// Passages through the whole program.
    pub(super) passes: u64,
    /// Of the instruction that it waits in: tokens still wanted, ticket of the barrier, or time of its end.
    pub(super) pending: u64,
    /// The channel that the present instruction names.
    pub(super) channel: usize,
    /// The channel whose list it is on.
    pub(super) waits_for: Option<usize>,
    pub(super) chance: Stream,
    pub(super) parent: Option<TaskId>,
    pub(super) children: u32,
    /// Start of the present period.
    pub(super) release: Nanos,
    pub(super) jobs: u64,
    pub(super) misses: u64,
}

/// Where in an instruction a task is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// It comes to the instruction.
    Fetch,
    /// It spends the CPU time that the instruction takes; then its effect comes.
    Work,
    /// It was waiting and looks whether it may go on.
    Look,
}

impl Exec {
    pub(super) fn new(chance: Stream, parent: Option<TaskId>, now: Nanos) -> Self {
        Self {
            pc: 0,
            stage: Stage::Fetch,
            left: Nanos::ZERO,
            loops: Vec::new(),
            passes: 0,
            pending: 0,
            channel: 0,
            waits_for: None,
            chance,
            parent,
            children: 0,
            release: now,
            jobs: 0,
            misses: 0,
        }
    }
}

/// A handle to a task.
#[derive(Clone, Debug)]
pub(super) struct TaskRef(pub(super) Rc<Task>);

impl Deref for TaskRef {
    type Target = Task;
    fn deref(&self) -> &Task {
        &self.0
    }
}

impl Entity for TaskRef {
    fn id(&self) -> TaskId {
        self.0.id
    }

    fn sched(&self) -> &SchedEntity {
        &self.0.sched
    }
}

impl TaskRef {
    pub(super) fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn allowed_on(&self, cpu: CpuId) -> bool {
        self.allowed.borrow().test(cpu)
    }
}
