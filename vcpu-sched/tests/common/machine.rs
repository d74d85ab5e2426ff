//! One CPU on a virtual clock that runs a [`RunQueue`] as a kernel does: for tests of what the classes promise.

use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::policy::{EnqueueReason, PutReason};
use vcpu_sched::runqueue::{PolicyKind, RunQueue};

use super::Task;

/// See the module's text.
pub struct OneCpu {
    pub queue: RunQueue<Task>,
    pub now: Nanos,
    pub current: Option<Task>,
}

#[allow(dead_code)] // each test uses its part
impl OneCpu {
    pub fn new(kind: PolicyKind) -> Self {
        Self::with_slice(kind, kind.default_slice())
    }

    pub fn with_slice(kind: PolicyKind, slice: Nanos) -> Self {
        Self { queue: RunQueue::with_slice(CpuId(0), kind, slice), now: Nanos::ZERO, current: None }
    }

    /// A task becomes runnable. The CPU reschedules if the classes say so.
    pub fn add(&mut self, task: Task, why: EnqueueReason) {
        self.queue.enqueue(task, why, self.now);
        let gives_way = match self.current {
            None => true,
            Some(current) => self.queue.gives_way(&current, &task, self.now),
        };
        if gives_way {
            self.schedule(PutReason::Preempted);
        }
    }

    /// `schedule()` with this reason for the task that leaves.
    pub fn schedule(&mut self, why: PutReason) {
        if let Some(prev) = self.current.take() {
            match why {
                PutReason::Preempted | PutReason::Yield => {
                    self.queue.put_back(prev, why == PutReason::Yield, self.now);
                }
                PutReason::Block | PutReason::Exit | PutReason::Migrate => self.queue.put_prev(&prev, why, self.now),
            }
        }
        self.current = self.queue.pick_next(self.now);
    }

    /// The next time at which the CPU must look, however long it is until then.
    fn next_stop(&self, picked: Nanos) -> Nanos {
        let slice = self.current.and_then(|current| self.queue.slice(&current)).map(|slice| picked + slice);
        [slice, self.queue.next_event()].into_iter().flatten().min().unwrap_or(Nanos::MAX)
    }

    /// Time passes until `end`, with ticks when they are due and never later. `ran` is told who ran and for how long.
    pub fn run_until(&mut self, end: Nanos, mut ran: impl FnMut(Task, Nanos)) {
        let mut picked = self.now;
        let mut last = self.current;
        while self.now < end {
            if self.current != last {
                (picked, last) = (self.now, self.current);
            }
            // A nanosecond at least: nobody reschedules for ever at one moment.
            let stop = self.next_stop(picked).min(end).max(self.now + Nanos(1));
            if let Some(current) = self.current {
                ran(current, stop - self.now);
            }
            self.now = stop;
            let event = self.queue.next_event().is_some_and(|at| at <= self.now) && self.queue.event(self.now);
            let over = self.current.is_some_and(|current| self.queue.tick(&current, self.now));
            if event || over {
                self.schedule(PutReason::Preempted);
                (picked, last) = (self.now, self.current);
            }
        }
    }
}
