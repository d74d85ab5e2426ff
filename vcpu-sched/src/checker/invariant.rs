//! The invariants by name, how often each was looked at, and what was found. Filled by [`super::rules`], read by whoever prints it.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::Stamped;
use crate::ids::{CpuId, Nanos, TaskId};

/// What must hold at every event. The order is the order of reports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Invariant {
    /// A task is in exactly one place: on a CPU, in one queue, waiting, or dead.
    OnePlace,
    /// At most one CPU runs a task, so that one CPU at most stands on its stack.
    OneStack,
    /// A task is queued on another CPU only after its own has left it.
    LeftBeforeEnqueued,
    /// A CPU runs only what was in its own queue.
    PickedAfterQueued,
    /// The task that leaves a CPU is the one that was there.
    SwitchesAlternate,
    /// A task runs only on CPUs that its affinity allows.
    Affinity,
    /// A wake-up queues a task exactly once.
    WakeOnce,
    /// No CPU idles beside a queued task that may run there.
    NoIdleBesideWork,
    /// A CPU doesn't run a lower class beside a queued higher one.
    PriorityOrder,
    /// The place records of a task follow each other without gap and without repetition.
    NoLostTask,
    /// Nothing happens to a task that has ended.
    DeadStaysDead,
    /// The sum of run times is at most the time that went by, times the CPUs.
    RuntimeSum,
    /// What was lost is counted: rings' counters and records agree.
    LostCounted,
}

impl Invariant {
    /// All, in the order of reports.
    pub const ALL: [Self; 13] = [
        Self::OnePlace,
        Self::OneStack,
        Self::LeftBeforeEnqueued,
        Self::PickedAfterQueued,
        Self::SwitchesAlternate,
        Self::Affinity,
        Self::WakeOnce,
        Self::NoIdleBesideWork,
        Self::PriorityOrder,
        Self::NoLostTask,
        Self::DeadStaysDead,
        Self::RuntimeSum,
        Self::LostCounted,
    ];

    /// The name in reports; it never changes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OnePlace => "one_place",
            Self::OneStack => "one_stack",
            Self::LeftBeforeEnqueued => "left_before_enqueued",
            Self::PickedAfterQueued => "picked_after_queued",
            Self::SwitchesAlternate => "switches_alternate",
            Self::Affinity => "affinity",
            Self::WakeOnce => "wake_once",
            Self::NoIdleBesideWork => "no_idle_beside_work",
            Self::PriorityOrder => "priority_order",
            Self::NoLostTask => "no_lost_task",
            Self::DeadStaysDead => "dead_stays_dead",
            Self::RuntimeSum => "runtime_sum",
            Self::LostCounted => "lost_counted",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How often an invariant was looked at and how often it didn't hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Which.
    pub invariant: Invariant,
    /// Events that it was checked at.
    pub checked: u64,
    /// Times that it didn't hold.
    pub violations: u64,
}

/// One time that an invariant didn't hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// When, by the record at which it was seen.
    pub time: Nanos,
    /// On which CPU.
    pub cpu: CpuId,
    /// The tasks concerned.
    pub tasks: Vec<TaskId>,
    /// What was wrong.
    pub what: String,
    /// The last records about these tasks or this CPU, the one that showed it last.
    pub around: Vec<Stamped>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} ns on CPU {}: {}", self.invariant, self.time.0, self.cpu, self.what)
    }
}

/// What a whole trace showed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// One entry for each of [`Invariant::ALL`], in that order.
    pub tallies: Vec<Tally>,
    /// The first violations of each invariant, see [`Options::kept`](super::Options::kept).
    pub first: Vec<Violation>,
    /// Records that the rings report as lost.
    pub lost: u64,
    /// Place records that are missing by the tasks' counts.
    pub missing: u64,
    /// Tasks whose beginning isn't in the trace.
    pub adopted: u64,
    /// Records of a kind that this version doesn't know.
    pub unknown: u64,
}

impl Outcome {
    /// Violations of all invariants together.
    pub fn violations(&self) -> u64 {
        self.tallies.iter().map(|t| t.violations).sum()
    }

    /// Whether everything held.
    pub fn holds(&self) -> bool {
        self.violations() == 0
    }

    /// The tally of one invariant.
    pub fn tally(&self, invariant: Invariant) -> Tally {
        self.tallies[invariant as usize]
    }
}

/// Counts, and keeps the first violations of each invariant with the records around them.
#[derive(Debug)]
pub(super) struct Findings {
    tallies: [Tally; Invariant::ALL.len()],
    first: Vec<Violation>,
    gaps: u64,
    first_gaps: Vec<Violation>,
    kept: u32,
    history: History,
    /// What is a violation unless the CPU's next record of stolen time explains it, by CPU.
    suspicions: BTreeMap<CpuId, Vec<Suspicion>>,
}

/// A CPU was late by `excess`. It may have had no host CPU meanwhile: that is told when the host has been asked, which is later.
#[derive(Debug)]
struct Suspicion {
    excess: Nanos,
    violation: Violation,
}

impl Findings {
    /// At most so many of a CPU wait to be explained; all others count at once.
    const SUSPICIONS: usize = 256;

    pub(super) fn new(kept: u32) -> Self {
        let tallies = Invariant::ALL.map(|invariant| Tally { invariant, checked: 0, violations: 0 });
        let (first, first_gaps, history, suspicions) = (Vec::new(), Vec::new(), History::new(), BTreeMap::new());
        Self { tallies, first, gaps: 0, first_gaps, kept, history, suspicions }
    }

    /// The record that is looked at from now on.
    pub(super) fn note(&mut self, record: &Stamped) {
        self.history.push(*record);
    }

    pub(super) fn checked(&mut self, invariant: Invariant) {
        self.tallies[invariant as usize].checked += 1;
    }

    /// Counts a check and, if `holds` is false, a violation that `what` describes.
    pub(super) fn check(
        &mut self,
        invariant: Invariant,
        holds: bool,
        at: (Nanos, CpuId),
        tasks: &[TaskId],
        what: impl FnOnce() -> String,
    ) {
        self.checked(invariant);
        if !holds {
            self.violated(invariant, at, tasks, what);
        }
    }

    /// Counts a violation at a check that was counted before.
    pub(super) fn violated(
        &mut self,
        invariant: Invariant,
        (time, cpu): (Nanos, CpuId),
        tasks: &[TaskId],
        what: impl FnOnce() -> String,
    ) {
        let tally = &mut self.tallies[invariant as usize];
        tally.violations += 1;
        if tally.violations <= u64::from(self.kept) {
            let around = self.history.about(cpu, tasks);
            self.first.push(Violation { invariant, time, cpu, tasks: tasks.into(), what: what(), around });
        }
    }

    /// A CPU was late by `excess`: a violation, if the CPU's next record of stolen time tells of less.
    pub(super) fn late(
        &mut self,
        invariant: Invariant,
        (time, cpu): (Nanos, CpuId),
        excess: Nanos,
        tasks: &[TaskId],
        what: impl FnOnce() -> String,
    ) {
        let around = self.history.about(cpu, tasks);
        let violation = Violation { invariant, time, cpu, tasks: tasks.into(), what: what(), around };
        let waiting = self.suspicions.entry(cpu).or_default();
        if waiting.len() < Self::SUSPICIONS {
            waiting.push(Suspicion { excess, violation });
        } else {
            self.found(violation);
        }
    }

    /// The host has kept the CPU from running for so long, since it was last asked.
    pub(super) fn stolen(&mut self, cpu: CpuId, time: Nanos) {
        for Suspicion { excess, violation } in self.suspicions.remove(&cpu).into_iter().flatten() {
            if excess > time {
                self.found(violation);
            }
        }
    }

    /// The trace is over: nothing explains the rest.
    pub(super) fn settle_suspicions(&mut self) {
        let mut rest: Vec<_> = core::mem::take(&mut self.suspicions).into_values().flatten().collect();
        rest.sort_by_key(|suspicion| suspicion.violation.time);
        rest.into_iter().for_each(|suspicion| self.found(suspicion.violation));
    }

    fn found(&mut self, violation: Violation) {
        let tally = &mut self.tallies[violation.invariant as usize];
        tally.violations += 1;
        if tally.violations <= u64::from(self.kept) {
            self.first.push(violation);
        }
    }

    /// A gap in a task's count: a violation of `no_lost_task`, unless it is explained at the end.
    pub(super) fn gap(&mut self, (time, cpu): (Nanos, CpuId), task: TaskId, what: impl FnOnce() -> String) {
        self.gaps += 1;
        if self.gaps <= u64::from(self.kept) {
            let (invariant, around) = (Invariant::NoLostTask, self.history.about(cpu, &[task]));
            self.first_gaps.push(Violation { invariant, time, cpu, tasks: [task].into(), what: what(), around });
        }
    }

    /// So many of the gaps are not explained by lost records.
    pub(super) fn settle_gaps(&mut self, unexplained: u64) {
        let unexplained = self.gaps.min(unexplained);
        self.tallies[Invariant::NoLostTask as usize].violations += unexplained;
        let keep = usize::try_from(unexplained).unwrap_or(usize::MAX);
        self.first.extend(self.first_gaps.drain(..).take(keep));
    }

    pub(super) fn into_parts(mut self) -> (Vec<Tally>, Vec<Violation>) {
        self.first.sort_by_key(|v| v.invariant);
        (self.tallies.into(), self.first)
    }
}

/// The last records, to show what came before a violation.
#[derive(Debug)]
struct History {
    ring: Vec<Stamped>,
    next: usize,
}

impl History {
    const LEN: usize = 64;
    /// At most so many are shown with a violation.
    const SHOWN: usize = 8;

    const fn new() -> Self {
        Self { ring: Vec::new(), next: 0 }
    }

    fn push(&mut self, record: Stamped) {
        match self.ring.get_mut(self.next) {
            Some(slot) => *slot = record,
            None => self.ring.push(record),
        }
        self.next = (self.next + 1) % Self::LEN;
    }

    fn about(&self, cpu: CpuId, tasks: &[TaskId]) -> Vec<Stamped> {
        let (newer, older) = self.ring.split_at(self.next.min(self.ring.len()));
        let mut found: Vec<Stamped> = newer
            .iter()
            .rev()
            .chain(older.iter().rev())
            .filter(|r| r.is_about(cpu, tasks))
            .take(Self::SHOWN)
            .copied()
            .collect();
        found.reverse();
        found
    }
}
