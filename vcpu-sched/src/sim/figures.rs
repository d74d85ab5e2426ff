//! What a simulation has shown: by task, by group, by CPU, in all.
//!
//! The times come from each task's [`Accounting`](crate::accounting::Accounting), as in the guest; what is still going on at
//! the end is added to it. The invariant: run, wait and sleep of a task add up to the time from its beginning to its end.

use alloc::vec::Vec;

use hdrhistogram::Histogram;

use super::cpu::CpuFigures;
use super::machine::{End, Machine, Sink};
use super::task::Task;
use crate::accounting::Snapshot;
use crate::entity::Rank;
use crate::ids::{Nanos, TaskId};
use crate::task::state::State;

/// Figures of one task.
#[derive(Clone, PartialEq, Debug)]
pub struct TaskFigures {
    /// Its number.
    pub id: TaskId,
    /// Index of its group.
    pub group: usize,
    /// Its number in the group.
    pub index: u32,
    /// Counters, up to the end.
    pub counters: Snapshot,
    /// When it came.
    pub born: Nanos,
    /// When it ended; `None`: it was still there.
    pub ended: Option<Nanos>,
    /// Passages through its program.
    pub passes: u64,
    /// Jobs of a periodic task.
    pub jobs: u64,
    /// Jobs that ended after their deadline.
    pub misses: u64,
    /// CPU time, as a part of its life, per weight; only for tasks of the normal class.
    pub share: Option<f64>,
}

impl TaskFigures {
    pub(super) fn of(task: &Task, now: Nanos, ended: Option<Nanos>) -> Self {
        let mut counters = task.sched.accounting().snapshot();
        let open = now - task.since.get();
        match task.state.load() {
            State::Running | State::Blocking => counters.run += open,
            State::Ready => counters.wait += open,
            State::Blocked => counters.sleep += open,
            State::New | State::Dead => {}
        }
        let exec = task.exec.borrow();
        let life = ended.unwrap_or(now) - task.born;
        let normal = task.sched.rank() == Rank::Normal && life > Nanos::ZERO;
        let share = normal.then(|| counters.run.0 as f64 / life.0 as f64 * 1024.0 / f64::from(task.sched.weight()));
        let (passes, jobs, misses) = (exec.passes, exec.jobs, exec.misses);
        Self {
            id: task.id,
            group: task.group,
            index: task.index,
            counters,
            born: task.born,
            ended,
            passes,
            jobs,
            misses,
            share,
        }
    }
}

/// Figures of a group.
#[derive(Clone, Debug)]
pub struct GroupFigures {
    /// Tasks that came.
    pub tasks: u64,
    /// Tasks that ended.
    pub ended: u64,
    /// Time on CPUs.
    pub run: Nanos,
    /// Time in queues.
    pub wait: Nanos,
    /// Time blocked.
    pub sleep: Nanos,
    /// Switches away that a task wanted.
    pub voluntary: u64,
    /// Switches away that a task was made to.
    pub involuntary: u64,
    /// Wake-ups.
    pub wakeups: u64,
    /// Runs on another CPU than before.
    pub migrations: u64,
    /// Passages through the program.
    pub passes: u64,
    /// Jobs of periodic tasks.
    pub jobs: u64,
    /// Jobs that ended after their deadline.
    pub misses: u64,
    /// Deadline tasks that no CPU could promise what they asked for: they ran as ordinary tasks.
    pub refused: u64,
    /// Time from wake-up to CPU, in nanoseconds.
    pub latency: Histogram<u64>,
    /// Time from release to end of the jobs, in nanoseconds.
    pub response: Histogram<u64>,
    shares: Shares,
}

/// Sums for Jain's index.
#[derive(Clone, Copy, Default, Debug)]
struct Shares {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Shares {
    fn add(&mut self, share: f64) {
        self.count += 1.0;
        self.sum += share;
        self.squares += share * share;
    }

    /// (sum of x)^2 / (n * sum of x^2): 1 if all are equal, 1/n if one has all. Jain, Chiu, Hawe: A Quantitative Measure of
    /// Fairness, DEC TR-301, 1984.
    fn index(self) -> Option<f64> {
        (self.squares > 0.0).then(|| self.sum * self.sum / (self.count * self.squares))
    }
}

/// A histogram that grows as it needs to, with two exact decimal digits.
fn histogram() -> Histogram<u64> {
    /// At most five are possible (`CreationError::SigFigExceedsMax`), so `new` can't fail.
    const DIGITS: u8 = 2;
    match Histogram::new(DIGITS) {
        Ok(histogram) => histogram,
        Err(_) => unreachable!("two digits are allowed"),
    }
}

impl GroupFigures {
    pub(super) fn new() -> Self {
        Self {
            tasks: 0,
            ended: 0,
            run: Nanos::ZERO,
            wait: Nanos::ZERO,
            sleep: Nanos::ZERO,
            voluntary: 0,
            involuntary: 0,
            wakeups: 0,
            migrations: 0,
            passes: 0,
            jobs: 0,
            misses: 0,
            refused: 0,
            latency: histogram(),
            response: histogram(),
            shares: Shares::default(),
        }
    }

    /// How equally its tasks of the normal class were served, by weight and time of life: 1 is best.
    pub fn fairness(&self) -> Option<f64> {
        self.shares.index()
    }

    pub(super) fn latency(&mut self, latency: Nanos) {
        // It grows as needed; nothing is lost but for want of memory.
        let _ = self.latency.record(latency.0);
    }

    pub(super) fn job(&mut self, response: Nanos) {
        let _ = self.response.record(response.0);
    }

    pub(super) fn add(&mut self, task: &TaskFigures) {
        let counters = &task.counters;
        self.tasks += 1;
        self.ended += u64::from(task.ended.is_some());
        self.run += counters.run;
        self.wait += counters.wait;
        self.sleep += counters.sleep;
        self.voluntary += counters.voluntary;
        self.involuntary += counters.involuntary;
        self.wakeups += counters.wakeups;
        self.migrations += counters.migrations;
        self.passes += task.passes;
        self.jobs += task.jobs;
        self.misses += task.misses;
        if let Some(share) = task.share {
            self.shares.add(share);
        }
    }
}

/// What a whole simulation has shown.
#[derive(Clone, Debug)]
pub struct Figures {
    /// How it ended.
    pub end: End,
    /// Virtual time that went by.
    pub time: Nanos,
    /// By group, in the workload's order.
    pub groups: Vec<GroupFigures>,
    /// By CPU.
    pub cpus: Vec<CpuFigures>,
    /// By task, if asked for.
    pub tasks: Vec<TaskFigures>,
    /// How equally all tasks of the normal class were served, whatever their group.
    pub fairness: Option<f64>,
    /// Moments on the clock at which something happened.
    pub moments: u64,
    /// Trace records written.
    pub records: u64,
}

impl<S: Sink> Machine<'_, S> {
    /// Virtual time.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Trace records written so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The figures at the end.
    pub fn finish(mut self, end: End) -> Figures {
        let now = self.now;
        for task in core::mem::take(&mut self.tasks).into_iter().flatten() {
            self.keep_figures(&task, None);
        }
        for cpu in &mut self.cpus {
            if cpu.current.is_some() {
                cpu.figures.busy += now - cpu.picked_at;
            }
        }
        let mut all = Shares::default();
        for group in &self.figures {
            all.count += group.shares.count;
            all.sum += group.shares.sum;
            all.squares += group.shares.squares;
        }
        self.ended.sort_by_key(|task| (task.group, task.index));
        Figures {
            end,
            time: now,
            cpus: self.cpus.iter().map(|cpu| cpu.figures).collect(),
            groups: self.figures,
            tasks: self.ended,
            fairness: all.index(),
            moments: self.moments,
            records: self.records,
        }
    }
}
