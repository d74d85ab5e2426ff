//! Checks a trace: were the scheduler's invariants true at every event?
//!
//! Anyone with a trace may feed it: the report, the simulator, the stress tests. The checker knows nothing of policies; it
//! follows every task from place to place as the records tell, and holds each step against [`Invariant`]'s list. Its memory
//! grows with the tasks and CPUs that are alive, never with the length of the trace.
//!
//! # What is fed, and in which order
//! Records of all CPUs, merged by time. Small inversions between CPUs do no harm: `order` brings one task's records into the order
//! that `seq` gives before anything is judged, and holds them for at most [`Options::window`].
//!
//! # What a task's records must look like
//! ```text
//!            New                    Switch (to)               Switch (from), state Dead
//!  (nothing) ---> Queued(its CPU) -----------------> OnCpu -----------------------------> dead
//!                   ^  |  ^  ^                       |  |
//!           Migrate |__|  |  |___ Switch (from), ____|  | Switch (from), state Blocked
//!                         |       state Ready           v
//!                         |________________________ Waiting
//!                                  Wake
//! ```
//! - A wake-up may overtake the switch away from a task that is about to wait: then it is queued on the very CPU that still
//!   stands on its stack (`task::state`, "Leaving a CPU"), and the switch that follows tells its state: Ready. If the CPU picks it
//!   again at once there is no switch record, and the task just goes on.
//! - A task that was made to leave a CPU that it may no longer run on counts as queued there until its `Migrate`.
//! - Idle tasks (policy 254) have no place and no queue; each belongs to one CPU.
//!
//! # What is known, and what is not
//! - A task that the trace doesn't introduce is taken as it comes; so is every task after a gap in its count, and every CPU after a
//!   record was lost in its ring. With [`Options::complete`] a task without a beginning is a violation.
//! - Places that are missing are violations of `no_lost_task` unless the rings report at least half as many lost records (a switch
//!   is a place of two tasks).
//! - Affinity is known from a task's first [`Kind::Affinity`](crate::events::Kind::Affinity) record on. Until then a task
//!   may run anywhere, but no *other* CPU is held to be idle beside it.
//! - `no_idle_beside_work` and `priority_order` give the machine time, see [`Options`]: an interrupt travels, and the host may keep a
//!   vCPU from running. Time that is known to be stolen or paused doesn't count: what the host took is told when it has been
//!   asked, so a CPU that seems to be late is held to be so only if its next record of stolen time doesn't explain it. A deadline task may be out of budget, which no
//!   record shows, and is given its own time.
//! - A task that waits in the queue of a busy CPU beside an idle one is seen in two ways: the task has been queued for too long; or
//!   that queue was never without an unrestricted task for too long, even if not with the same one.

mod cpu;
mod dead;
mod invariant;
mod order;
mod rules;
mod task;
#[cfg(test)]
mod tests;

pub use invariant::{Invariant, Outcome, Tally, Violation};

use crate::events::{Event, Record};
use crate::ids::{CpuId, Nanos, TaskId};

/// A record with its CPU, and its time on the clock that all CPUs share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamped {
    /// Whose ring it was in.
    pub cpu: CpuId,
    /// When.
    pub time: Nanos,
    /// The record.
    pub record: Record,
}

impl Stamped {
    /// Whether the record tells of this CPU or one of these tasks.
    fn is_about(&self, cpu: CpuId, tasks: &[TaskId]) -> bool {
        let next = match Event::decode(&self.record) {
            Some(Event::Switch { next, .. }) => Some(next.task),
            _ => None,
        };
        self.cpu == cpu || tasks.iter().any(|&t| t.0 == self.record.task || next == Some(t))
    }
}

/// How patient the checker is. [`Options::default`] suits guests whose vCPUs share host CPUs with others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// A record waits so long for those that must come before it.
    pub window: Nanos,
    /// At most so many records wait.
    pub held: usize,
    /// A CPU may idle so long beside a task in its own queue.
    pub own_queue: Nanos,
    /// The same, and a lower class may run, when an interrupt to the CPU is on its way.
    pub kicked: Nanos,
    /// A CPU may idle so long beside a task in another's queue.
    pub elsewhere: Nanos,
    /// A deadline task may be queued so long beside an idle or lower CPU.
    pub throttled: Nanos,
    /// A lower class may run so long beside a queued higher one.
    pub lower_class: Nanos,
    /// A task may stay so long on a CPU that its affinity has just forbidden.
    pub forbidden: Nanos,
    /// The trace has every task's beginning.
    pub complete: bool,
    /// Violations of each invariant that are described; all are counted.
    pub kept: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            window: Nanos::from_millis(100),
            held: 1 << 16,
            own_queue: Nanos::from_millis(10),
            kicked: Nanos::from_secs(1),
            elsewhere: Nanos::from_millis(100),
            throttled: Nanos::from_secs(5),
            lower_class: Nanos::from_millis(10),
            forbidden: Nanos::from_secs(1),
            complete: false,
            kept: 8,
        }
    }
}

impl Options {
    /// The same, with every patience at least so long: for a host that is known to be busy.
    #[must_use]
    pub fn at_least(self, grace: Nanos) -> Self {
        let patient = |patience: Nanos| patience.max(grace);
        Self {
            own_queue: patient(self.own_queue),
            kicked: patient(self.kicked),
            elsewhere: patient(self.elsewhere),
            throttled: patient(self.throttled),
            lower_class: patient(self.lower_class),
            forbidden: patient(self.forbidden),
            ..self
        }
    }
}

/// Takes a trace record by record and tells at the end what it found.
///
/// ```
/// use vcpu_sched::checker::{Checker, Options, Stamped};
/// use vcpu_sched::events::{ClassTag, Kind, Record};
/// use vcpu_sched::ids::{CpuId, Nanos, TaskId};
///
/// let mut checker = Checker::new(Options::default());
/// let cpu = CpuId(0);
/// let class = ClassTag { prio: 120, policy: 0 };
/// for (time, kind, seq) in [(10, Kind::New, 1), (20, Kind::Wake, 2)] {
///     let record = Record::queued(kind, time, TaskId(5), seq, 0, TaskId(1), cpu, class, 1);
///     checker.feed(Stamped { cpu, time: Nanos(time), record });
/// }
/// let outcome = checker.finish();
/// assert_eq!(outcome.first[0].to_string(), "wake_once at 20 ns on CPU 0: task 5 is woken, but it is queued on CPU 0");
/// ```
#[derive(Debug)]
pub struct Checker {
    order: order::Sequencer,
    rules: rules::Rules,
}

impl Checker {
    /// At the beginning of a trace.
    pub fn new(options: Options) -> Self {
        Self { order: order::Sequencer::new(options.window, options.held), rules: rules::Rules::new(options) }
    }

    /// The next record.
    pub fn feed(&mut self, record: Stamped) {
        self.feed_then(record, |_| ());
    }

    /// The next record. `each` gets the records in the order in which they were judged: one that could have happened, each
    /// task's and each CPU's records in sequence. It may be called for none, one or several of those fed until now.
    pub fn feed_then(&mut self, record: Stamped, mut each: impl FnMut(&Stamped)) {
        let Self { order, rules } = self;
        order.push(record, &mut |r| {
            rules.judge(r);
            each(r);
        });
    }

    /// What the ring of a CPU says at the end about how many records found no room in it.
    pub fn ring_total(&mut self, cpu: CpuId, lost: u64) {
        self.rules.ring_total(cpu, lost);
    }

    /// How many tasks are being followed.
    pub fn live_tasks(&self) -> usize {
        self.rules.live_tasks()
    }

    /// The trace is over.
    pub fn finish(self) -> Outcome {
        self.finish_then(|_| ())
    }

    /// The trace is over; `each` as for [`Checker::feed_then`].
    pub fn finish_then(self, mut each: impl FnMut(&Stamped)) -> Outcome {
        let Self { mut order, mut rules } = self;
        order.flush(&mut |r| {
            rules.judge(r);
            each(r);
        });
        rules.finish()
    }
}
