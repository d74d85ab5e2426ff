//! Any policy of this crate, run from outside: a [`RunQueue`] for each CPU, as the guest kernel has, with the same placement by
//! last CPU and the same order, slices and preemption; the agent plays the kernel.
//!
//! The invariant of [`policy`](crate::policy) is kept: each task is in at most one queue, or current on one CPU.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Decisions, Policy, Ready, View};
use crate::entity::{Entity, SchedEntity};
use crate::ids::{CpuId, Nanos, TaskId};
use crate::params::{Nice, SchedParams};
use crate::policy::{EnqueueReason, PutReason};
use crate::runqueue::{PolicyKind, RunQueue};

/// A task as the run queues have it; its number is its status word's.
#[derive(Clone, Debug)]
struct Handle(Arc<(TaskId, SchedEntity)>);

impl Entity for Handle {
    fn id(&self) -> TaskId {
        self.0.0
    }

    fn sched(&self) -> &SchedEntity {
        &self.0.1
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Nowhere,
    Queued(usize),
    Current(usize),
}

/// See the module's text.
#[derive(Debug)]
pub struct Remote {
    kind: PolicyKind,
    queues: Vec<RunQueue<Handle>>,
    current: Vec<Option<Handle>>,
    tasks: BTreeMap<u32, (Handle, At)>,
}

impl Remote {
    /// With that policy for normal tasks.
    pub fn new(kind: PolicyKind) -> Self {
        Self { kind, queues: Vec::new(), current: Vec::new(), tasks: BTreeMap::new() }
    }

    fn grow(&mut self, cpus: usize) {
        let kind = self.kind;
        let from = self.queues.len();
        self.queues.extend((from..cpus).map(|cpu| RunQueue::new(CpuId(cpu as u32), kind)));
        self.current.resize(self.queues.len(), None);
    }

    /// The member CPU where it ran last, if that is none the shorter queue's.
    fn home(&self, view: &View<'_>, slot: u32) -> Option<usize> {
        let member = |cpu: usize| view.cpus.get(cpu).is_some_and(|state| state.member);
        let last = view.task(slot).map(|task| task.last_cpu.index()).filter(|&cpu| member(cpu));
        let idle =
            last.filter(|&cpu| view.idle.test(CpuId(cpu as u32))).or_else(|| view.idle.first().map(CpuId::index));
        let shortest = || (0..self.queues.len()).filter(|&cpu| member(cpu)).min_by_key(|&cpu| self.queues[cpu].len());
        idle.or(last).or_else(shortest).filter(|&cpu| cpu < self.queues.len())
    }

    /// Takes it out of wherever it is, as a task that left its CPU for `why`.
    fn put(&mut self, slot: u32, why: PutReason, now: Nanos) -> Option<Handle> {
        let (handle, at) = self.tasks.get_mut(&slot)?;
        let handle = handle.clone();
        match core::mem::replace(at, At::Nowhere) {
            At::Nowhere => {}
            At::Queued(cpu) => drop(self.queues.get_mut(cpu).and_then(|queue| queue.dequeue(&handle))),
            At::Current(cpu) => {
                if let (Some(queue), Some(current)) = (self.queues.get_mut(cpu), self.current.get_mut(cpu)) {
                    queue.put_prev(&handle, why, now);
                    *current = None;
                }
            }
        }
        Some(handle)
    }

    /// CPUs whose current task the agent no longer has there: it blocked.
    fn catch_up(&mut self, view: &View<'_>) {
        for cpu in 0..self.current.len() {
            let Some(slot) = self.current.get(cpu).and_then(|current| current.as_ref()).map(|task| task.id().0) else {
                continue;
            };
            let there =
                view.cpus.get(cpu).is_some_and(|state| state.current == Some(slot) || state.submitted == Some(slot));
            if !there {
                self.put(slot, PutReason::Block, view.now);
            }
        }
    }
}

impl Policy for Remote {
    fn enqueue(&mut self, view: &View<'_>, slot: u32, why: Ready) {
        self.grow(view.cpus.len());
        let nice = view.task(slot).map_or(0, |task| i32::from(task.nice));
        let params = SchedParams::fair(Nice::clamped(nice));
        let known = self.tasks.contains_key(&slot);
        let (left, reason) = match why {
            Ready::New => (PutReason::Block, EnqueueReason::New),
            Ready::Woken => (PutReason::Block, EnqueueReason::Wake),
            Ready::Yielded => (PutReason::Yield, EnqueueReason::Yield),
            Ready::Preempted => (PutReason::Preempted, EnqueueReason::Preempted),
            Ready::Refused => (PutReason::Migrate, EnqueueReason::Migrate),
        };
        if !known {
            let entity = SchedEntity::new(params);
            self.tasks.insert(slot, (Handle(Arc::new((TaskId(slot), entity))), At::Nowhere));
        }
        let before = self.tasks.get(&slot).map_or(At::Nowhere, |(_, at)| *at);
        let Some(handle) = self.put(slot, left, view.now) else { return };
        // Yield and preemption come back to the queue that they left; everything else is placed.
        let (cpu, reason) = match (before, reason) {
            (At::Current(cpu), EnqueueReason::Yield | EnqueueReason::Preempted) => (Some(cpu), reason),
            (_, EnqueueReason::Yield | EnqueueReason::Preempted) => (self.home(view, slot), EnqueueReason::Migrate),
            _ if !known => (self.home(view, slot), EnqueueReason::New),
            _ => (self.home(view, slot), reason),
        };
        let Some(cpu) = cpu else { return };
        if handle.sched().params().nice != params.nice {
            handle.sched().request(&params);
        }
        if let Some(queue) = self.queues.get_mut(cpu) {
            queue.enqueue(handle, reason, view.now);
        }
        if let Some((_, at)) = self.tasks.get_mut(&slot) {
            *at = At::Queued(cpu);
        }
    }

    fn dequeue(&mut self, view: &View<'_>, slot: u32) {
        self.put(slot, PutReason::Block, view.now);
    }

    fn decide(&mut self, view: &View<'_>, decisions: &mut Decisions) {
        self.catch_up(view);
        for cpu in view.open.iter() {
            let Some(queue) = self.queues.get_mut(cpu.index()) else { continue };
            // A current task that isn't ours runs out of turn (it was left by the last agent); its message will come.
            let current = self.current.get(cpu.index()).and_then(|current| current.as_ref());
            let picks = match current {
                Some(current) => queue.tick(current, view.now) && !queue.is_empty(),
                None => view.idle.test(cpu),
            };
            if !picks {
                continue;
            }
            let taken = if current.is_none() && queue.is_empty() { self.pull(cpu, view) } else { None };
            if taken.is_none() && current_slot(&self.current, cpu).is_some() {
                self.preempt(cpu, view);
            }
            let Some(queue) = self.queues.get_mut(cpu.index()) else { continue };
            if let Some(task) = queue.pick_next(view.now) {
                let slot = task.id().0;
                if let Some((_, at)) = self.tasks.get_mut(&slot) {
                    *at = At::Current(cpu.index());
                }
                if let Some(current) = self.current.get_mut(cpu.index()) {
                    *current = Some(task);
                }
                decisions.run(cpu, slot);
            }
        }
    }

    fn forget(&mut self, slot: u32) {
        self.put(slot, PutReason::Exit, Nanos::ZERO);
        self.tasks.remove(&slot);
    }
}

fn current_slot(current: &[Option<Handle>], cpu: CpuId) -> Option<u32> {
    current.get(cpu.index())?.as_ref().map(|task| task.id().0)
}

impl Remote {
    /// The task that runs is replaced. It stays the guest's until its PREEMPT comes, which queues it here again.
    fn preempt(&mut self, cpu: CpuId, view: &View<'_>) {
        if let Some(slot) = current_slot(&self.current, cpu) {
            self.put(slot, PutReason::Preempted, view.now);
        }
    }

    /// An idle CPU takes from the longest queue.
    fn pull(&mut self, cpu: CpuId, view: &View<'_>) -> Option<u32> {
        let from = (0..self.queues.len()).filter(|&n| n != cpu.index()).max_by_key(|&n| self.queues[n].len())?;
        let task = self.queues.get_mut(from)?.steal(|_| true)?;
        let slot = task.id().0;
        self.queues.get_mut(cpu.index())?.enqueue(task, EnqueueReason::Migrate, view.now);
        if let Some((_, at)) = self.tasks.get_mut(&slot) {
            *at = At::Queued(cpu.index());
        }
        Some(slot)
    }
}
