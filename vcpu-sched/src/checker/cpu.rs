//! What is known of the CPUs: who runs on each, since when, and whether one idles beside work. Used by [`super::rules`].

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;

use super::Options;
use super::invariant::{Findings, Invariant};
use super::task::Rank;
use crate::cpumask::{CpuMask, MAX_CPUS};
use crate::ids::{CpuId, Nanos, TaskId};

/// Who has a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Current {
    Unknown,
    Idle(TaskId),
    Task(TaskId),
}

impl Current {
    pub(super) const fn task(self) -> Option<TaskId> {
        match self {
            Self::Unknown => None,
            Self::Idle(task) | Self::Task(task) => Some(task),
        }
    }
}

/// One CPU.
#[derive(Debug)]
pub(super) struct CpuState {
    pub(super) current: Current,
    /// Since when it is there.
    pub(super) since: Nanos,
    pub(super) rank: Rank,
    /// An interrupt to it is on its way, or it has been told otherwise to look at its queue.
    pub(super) kicked: bool,
    /// Time that the host is known to have taken, and how much that was at `since`.
    stolen: Nanos,
    stolen_before: Nanos,
    paused: Option<Nanos>,
    /// Tasks in its queue but deadline ones, and since when there has been at least one.
    queued: u32,
    queued_since: Nanos,
    /// Those of them that any CPU may take, and since when there has been at least one.
    free: u32,
    free_since: Nanos,
    /// Queued stop and real-time tasks.
    high: BTreeSet<(Rank, TaskId)>,
    /// It runs something lower than the first of those.
    inversion: Option<Inversion>,
    /// Records that are known to be lost in its ring.
    pub(super) lost: u64,
}

impl CpuState {
    const fn new() -> Self {
        Self {
            current: Current::Unknown,
            since: Nanos::ZERO,
            rank: Rank::FAIR,
            kicked: false,
            stolen: Nanos::ZERO,
            stolen_before: Nanos::ZERO,
            paused: None,
            queued: 0,
            queued_since: Nanos::ZERO,
            free: 0,
            free_since: Nanos::ZERO,
            high: BTreeSet::new(),
            inversion: None,
            lost: 0,
        }
    }

    /// How long the current state and something that is so from `other` to `end` have stood side by side, without the time
    /// that the host took.
    pub(super) fn beside(&self, other: Nanos, end: Nanos) -> Nanos {
        let paused = self.paused.map_or(Nanos::ZERO, |at| end - at);
        end - self.since.max(other) - (self.stolen - self.stolen_before) - paused
    }

    pub(super) fn steal(&mut self, time: Nanos) {
        self.stolen += time;
    }

    pub(super) fn pause(&mut self, time: Nanos, begins: bool) {
        match (begins, self.paused) {
            (true, None) => self.paused = Some(time),
            (false, Some(at)) => {
                self.paused = None;
                self.stolen += time - at;
            }
            _ => {}
        }
    }
}

/// A CPU runs a lower class beside a queued higher one.
#[derive(Clone, Copy, Debug)]
struct Inversion {
    since: Nanos,
    stolen_before: Nanos,
    /// An interrupt was to end it.
    kicked: bool,
}

/// All CPUs that the trace has shown.
#[derive(Debug)]
pub(super) struct Fleet {
    options: Options,
    cpus: BTreeMap<CpuId, CpuState>,
    pub(super) seen: CpuMask,
    /// The idle ones, by since when.
    idle: BTreeSet<(Nanos, CpuId)>,
    /// Those with something in the queue that any CPU may take, by since when.
    supplied: BTreeSet<(Nanos, CpuId)>,
}

impl Fleet {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            cpus: BTreeMap::new(),
            seen: CpuMask::empty(),
            idle: BTreeSet::new(),
            supplied: BTreeSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.cpus.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (CpuId, &CpuState)> {
        self.cpus.iter().map(|(&id, cpu)| (id, cpu))
    }

    pub(super) fn get(&mut self, id: CpuId) -> &mut CpuState {
        if id.0 < MAX_CPUS {
            self.seen.set(id);
        }
        self.cpus.entry(id).or_insert_with(CpuState::new)
    }

    /// The CPU changes to `current`.
    pub(super) fn set(&mut self, id: CpuId, current: Current, rank: Rank, time: Nanos, findings: &mut Findings) {
        self.idle_ends(id, time, findings);
        let cpu = self.get(id);
        if let Some(inversion) = &mut cpu.inversion {
            inversion.kicked |= cpu.kicked;
        }
        cpu.current = current;
        cpu.since = time;
        cpu.rank = rank;
        cpu.kicked = false;
        cpu.stolen_before = cpu.stolen;
        if matches!(current, Current::Idle(_)) {
            self.idle.insert((time, id));
        }
    }

    /// A task came into the queue.
    pub(super) fn enqueue(&mut self, id: CpuId, task: TaskId, rank: Rank, free: bool, time: Nanos) {
        let cpu = self.get(id);
        if rank == Rank::DEADLINE {
            return;
        }
        if rank < Rank::FAIR {
            cpu.high.insert((rank, task));
        }
        if cpu.queued == 0 {
            cpu.queued_since = time;
        }
        cpu.queued += 1;
        if !free {
            return;
        }
        if cpu.free == 0 {
            cpu.free_since = time;
        }
        cpu.free += 1;
        if cpu.free == 1 {
            self.supplied.insert((time, id));
        }
    }

    /// A task left the queue.
    pub(super) fn dequeue(
        &mut self,
        id: CpuId,
        task: TaskId,
        rank: Rank,
        free: bool,
        time: Nanos,
        findings: &mut Findings,
    ) {
        let cpu = self.get(id);
        if rank == Rank::DEADLINE {
            return;
        }
        cpu.high.remove(&(rank, task));
        cpu.queued = cpu.queued.saturating_sub(1);
        if cpu.queued == 0 && matches!(cpu.current, Current::Idle(_)) {
            self.check_own(id, true, time, findings);
        }
        if !free {
            return;
        }
        let cpu = self.get(id);
        cpu.free = cpu.free.saturating_sub(1);
        if cpu.free == 0 {
            let since = cpu.free_since;
            self.supplied.remove(&(since, id));
            let beside = self.idle.iter().take_while(|&&(idle, _)| idle + self.options.elsewhere < time);
            let found = beside.map(|&(_, other)| other).find(|&other| other != id && self.overdue(other, since, time));
            if let Some(other) = found {
                self.report(other, id, since, time, findings);
            }
        }
    }

    /// Something has changed on the CPU: does it run a lower class beside a higher one, and if not, since when did it?
    pub(super) fn compare(&mut self, id: CpuId, time: Nanos, findings: &mut Findings) {
        let Options { lower_class, kicked, .. } = self.options;
        let cpu = self.get(id);
        let waiting = cpu.high.first().copied();
        let lower = waiting.is_some_and(|(rank, _)| rank < cpu.rank) && matches!(cpu.current, Current::Task(_));
        if lower {
            let (since, stolen_before) = (time, cpu.stolen);
            cpu.inversion.get_or_insert(Inversion { since, stolen_before, kicked: false });
            return;
        }
        findings.checked(Invariant::PriorityOrder);
        let Some(inversion) = cpu.inversion.take() else { return };
        let lasted = time - inversion.since - (cpu.stolen - inversion.stolen_before);
        let limit = if cpu.kicked || inversion.kicked { kicked } else { lower_class };
        if lasted > limit {
            let task: Option<TaskId> = cpu.current.task();
            findings.late(Invariant::PriorityOrder, (time, id), lasted - limit, task.as_slice(), || {
                format!("CPU {id} ran lower classes for {} ns beside a queued stop or real-time task", lasted.0)
            });
        }
    }

    /// CPUs that have been idle for too long beside something that waits since `since`, and by how much.
    pub(super) fn idle_beside(&self, since: Nanos, time: Nanos, grace: Nanos) -> impl Iterator<Item = (CpuId, Nanos)> {
        let idle = self.idle.iter().take_while(move |&&(idle, _)| idle + grace < time);
        idle.filter_map(move |&(_, id)| {
            let cpu = self.cpus.get(&id)?;
            let limit = if cpu.kicked { self.options.kicked.max(grace) } else { grace };
            let beside = cpu.beside(since, time);
            (beside > limit).then(|| (id, beside - limit))
        })
    }

    /// The trace is over.
    pub(super) fn finish(&mut self, time: Nanos, findings: &mut Findings) {
        while let Some(&(_, id)) = self.idle.first() {
            self.idle_ends(id, time, findings);
        }
        let inverted: Vec<CpuId> = self.cpus.iter().filter(|(_, c)| c.inversion.is_some()).map(|(&id, _)| id).collect();
        for id in inverted {
            self.get(id).high.clear();
            self.compare(id, time, findings);
        }
    }

    fn overdue(&self, idle: CpuId, since: Nanos, time: Nanos) -> bool {
        self.cpus.get(&idle).is_some_and(|cpu| cpu.beside(since, time) > self.patience(cpu))
    }

    /// How long a CPU may idle beside another's queue.
    fn patience(&self, cpu: &CpuState) -> Nanos {
        if cpu.kicked { self.options.kicked } else { self.options.elsewhere }
    }

    fn idle_ends(&mut self, id: CpuId, time: Nanos, findings: &mut Findings) {
        let cpu = self.get(id);
        let (since, waiting) = (cpu.since, cpu.queued > 0);
        if !self.idle.remove(&(since, id)) {
            return;
        }
        self.check_own(id, waiting, time, findings);
        findings.checked(Invariant::NoIdleBesideWork);
        let supplied = self.supplied.iter().take_while(|&&(free, _)| free + self.options.elsewhere < time);
        let found = supplied.copied().find(|&(free, other)| other != id && self.overdue(id, free, time));
        if let Some((free, other)) = found {
            self.report(id, other, free, time, findings);
        }
    }

    /// An idle CPU and its own queue, in which something has been waiting or not.
    fn check_own(&mut self, id: CpuId, waiting: bool, time: Nanos, findings: &mut Findings) {
        let Options { own_queue, kicked, .. } = self.options;
        let cpu = self.get(id);
        let beside = cpu.beside(cpu.queued_since, time);
        let limit = if cpu.kicked { kicked } else { own_queue };
        findings.checked(Invariant::NoIdleBesideWork);
        if waiting && beside > limit {
            findings.late(Invariant::NoIdleBesideWork, (time, id), beside - limit, &[], || {
                format!("CPU {id} has been idle for {} ns beside its own queue", beside.0)
            });
        }
    }

    fn report(&self, idle: CpuId, queue: CpuId, since: Nanos, time: Nanos, findings: &mut Findings) {
        let Some(cpu) = self.cpus.get(&idle) else { return };
        let beside = cpu.beside(since, time);
        findings.late(Invariant::NoIdleBesideWork, (time, idle), beside - self.patience(cpu), &[], || {
            format!(
                "CPU {idle} has been idle for {} ns while the queue of CPU {queue} was never without a task that it could have run",
                beside.0
            )
        });
    }
}
