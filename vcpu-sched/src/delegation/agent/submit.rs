//! From decisions to transactions, and from their end states to the books.

use super::super::abi::{GTID_IDLE, GTID_NONE, commit_flags, cpu_flags};
use super::super::pick::{Entry, Filler};
use super::super::policies::{Decision, Policy, Ready, Target};
use super::super::txn::{Kick, Request, Slot, TxnState};
use super::{Agent, Kicker, TaskState};
use crate::ids::{CpuId, Nanos};

impl<P: Policy> Agent<'_, P> {
    /// Looks at all transactions under way.
    pub(super) fn reap(&mut self, now: Nanos) -> bool {
        let mut any = false;
        let mut next = self.books.pending.first();
        while let Some(cpu) = next {
            any |= self.reap_cpu(cpu, now);
            next = self.books.pending.next(cpu);
        }
        let mut next = self.books.taken.first();
        while let Some(cpu) = next {
            // The guest tells of it in the CPU's word at any time.
            if self.region.read_cpu(cpu).is_some_and(|status| status.flags & cpu_flags::CPU_AVAIL != 0) {
                self.books.change(cpu, |state| state.available = true);
                any = true;
            }
            next = self.books.taken.next(cpu);
        }
        any
    }

    /// If the CPU's transaction is over, brings its end into the books.
    pub(super) fn reap_cpu(&mut self, cpu: CpuId, now: Nanos) -> bool {
        let Some(submitted) = self.books.cpus.get(cpu.index()).and_then(|state| state.submitted) else { return false };
        let Some(outcome) = self.region.transaction(cpu).and_then(Slot::new).and_then(|slot| slot.outcome()) else {
            return false;
        };
        self.books.change(cpu, |state| state.submitted = None);
        let is_task = submitted != NO_TASK;
        let newest = self.books.is_newest(cpu, outcome.cpu_seqnum);
        match outcome.state {
            TxnState::Complete => {
                self.counters.committed += 1;
                if !is_task {
                    // Idle, or unscheduled: the message of the task that runs will tell.
                } else if self.books.state(submitted) == TaskState::Submitted(cpu) {
                    self.books.run_on(submitted, cpu, outcome.commit_time, newest);
                }
                return true;
            }
            TxnState::TargetStale | TxnState::AgentStale => self.counters.stale += 1,
            TxnState::CpuUnavail | TxnState::CpuOffline => {
                self.counters.refused += 1;
                self.books.change(cpu, |state| state.available = false);
            }
            TxnState::NotPermitted => {
                self.counters.refused += 1;
                self.books.bar(submitted, cpu);
            }
            _ => self.counters.refused += 1,
        }
        if is_task && self.books.state(submitted) == TaskState::Submitted(cpu) {
            self.books.set_state(submitted, TaskState::Blocked);
            // One that waits has a message under way that says so; one that may run is decided on again.
            if outcome.state != TxnState::TargetNotRunnable {
                self.make_runnable(submitted, Ready::Refused, now);
            }
        }
        true
    }

    /// Asks the policy, and submits what it decided.
    pub(super) fn decide(&mut self, now: Nanos, kicker: &mut impl Kicker) -> bool {
        self.let_some_in(now);
        let mut decisions = core::mem::take(&mut self.decisions);
        self.policy.decide(&self.books.view(self.region, now), &mut decisions);
        let any = !decisions.is_empty();
        // A group's owner last: it commits for all, so all must be there.
        for owners in [false, true] {
            for decision in decisions.iter().filter(|decision| (decision.group == Some(decision.cpu)) == owners) {
                self.submit(decision, now, kicker);
            }
        }
        for (cpu, slot) in decisions.ready() {
            self.leave_ready(cpu, slot);
        }
        decisions.clear();
        self.decisions = decisions;
        any
    }

    /// Where the decision can be carried out: where the policy wants it, or, if the task may not run there, on another CPU that is
    /// idle, so that no policy has to know of affinities. `None`: nowhere now. The task is kept until that changes.
    fn redirected(&mut self, decision: &Decision) -> Option<CpuId> {
        let Target::Task(slot) = decision.target else { return Some(decision.cpu) };
        let task = self.books.tasks.get(slot as usize).filter(|task| task.is_barred(decision.cpu));
        let Some(task) = task else { return Some(decision.cpu) };
        if task.state != TaskState::Runnable {
            return None;
        }
        if decision.group.is_none()
            && let Some(cpu) = self.books.idle.iter().find(|&cpu| !task.is_barred(cpu))
        {
            return Some(cpu);
        }
        self.books.set_state(slot, TaskState::Blocked);
        self.outside.push(slot);
        None
    }

    /// Gives tasks that were kept back to the policy, if a CPU is idle on which they may run.
    fn let_some_in(&mut self, now: Nanos) {
        if self.outside.is_empty() {
            return;
        }
        for slot in self.outside.clone() {
            let task = self.books.tasks.get(slot as usize);
            if task.is_some_and(|task| self.books.idle.iter().any(|cpu| !task.is_barred(cpu))) {
                self.let_in(slot, now);
            }
        }
    }

    /// The task may be decided on again, if it was kept.
    pub(super) fn let_in(&mut self, slot: u32, now: Nanos) {
        if let Some(at) = self.outside.iter().position(|&kept| kept == slot) {
            self.outside.swap_remove(at);
            self.make_runnable(slot, Ready::Refused, now);
        }
    }

    fn submit(&mut self, decision: &Decision, now: Nanos, kicker: &mut impl Kicker) {
        let Some(cpu) = self.redirected(decision) else { return };
        let open = self.books.open.test(cpu);
        let (gtid, slot, barrier) = match decision.target {
            Target::Task(slot) => match self.books.tasks.get(slot as usize) {
                Some(task) if task.state == TaskState::Runnable => (task.gtid, slot, task.barrier),
                // The policy made it up, or named it twice.
                _ => return,
            },
            Target::Idle => (GTID_IDLE, NO_TASK, 0),
            Target::Nothing => (GTID_NONE, NO_TASK, 0),
        };
        let request = Request {
            sync_group_owner: decision.group,
            run_flags: decision.run_flags,
            commit_flags: commit_flags::ELIDE_AGENT_BARRIER_INC,
            ..Request::run(cpu, gtid, slot, barrier)
        };
        let submitted = match self.region.transaction(cpu).and_then(Slot::new) {
            Some(slot) if open => slot.submit(&request).ok(),
            _ => None,
        };
        let Some(kick) = submitted else {
            if let Target::Task(slot) = decision.target {
                self.books.set_state(slot, TaskState::Blocked);
                self.make_runnable(slot, Ready::Refused, now);
            }
            return;
        };
        self.counters.submitted += 1;
        if let Target::Task(slot) = decision.target {
            self.books.set_state(slot, TaskState::Submitted(cpu));
        }
        self.books.change(cpu, |state| state.submitted = Some(slot));
        // Of a group, only the owner looks; the guest kicks the others.
        if kick == Kick::Needed && decision.group.is_none_or(|owner| owner == cpu) {
            self.counters.kicks += 1;
            kicker.kick(cpu);
        }
    }

    /// Puts a task that the policy keeps into a CPU's pick-next ring.
    fn leave_ready(&mut self, cpu: CpuId, slot: u32) {
        let Some(task) = self
            .books
            .tasks
            .get(slot as usize)
            .filter(|task| task.state == TaskState::Runnable && !task.is_barred(cpu))
        else {
            return;
        };
        let entry = Entry { slot, task_barrier: task.barrier, gtid: task.gtid };
        let region = self.region;
        if let Some(filler) = self.fillers.get_mut(cpu.index()) {
            let _: bool = Filler::put(filler, &region, cpu, &entry);
        }
    }
}

/// In place of a task, for a CPU that was told to idle.
const NO_TASK: u32 = u32::MAX;
