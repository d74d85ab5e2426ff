//! What a CPU runs next.
//!
//! The order: the agent if it is a task here and may run; the transaction; what is latched; the task that ran, unless it must
//! give way; the pick-next ring, looked at once; nothing. The invariant: a task is returned only if it was latched for this CPU,
//! or runs here.

use super::super::abi::{GTID_AGENT, GTID_IDLE, GTID_NONE, run_flags};
use super::super::check::How;
use super::super::message::MessageType;
use super::super::task::Event;
use super::super::txn::{Request, Rest, Slot, TxnState};
use super::{AgentTask, Enclave, EnclaveError, Occasion, SlotId};
use crate::ids::{CpuId, Nanos};

/// What to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pick {
    /// The agent's task.
    Agent,
    /// This one, which was latched. [`Enclave::switched_in`] follows.
    Task(SlotId),
    /// The one that ran.
    Keep(SlotId),
    /// Nothing of this enclave.
    Idle,
}

impl Enclave<'_> {
    /// What `cpu` runs next. `prev` is the enclave's task that ran there and may go on; one that blocked or yielded has
    /// [left](Enclave::leave) already. If something else is picked, `prev` leaves with
    /// [`Leave::Preempt`](super::super::task::Leave::Preempt) once it is off.
    pub fn pick(&mut self, cpu: CpuId, prev: Option<SlotId>, now: Nanos) -> Pick {
        self.poll(cpu, Occasion::Schedule, now);
        let Some(record) = self.cpus.get(cpu.index()) else { return Pick::Idle };
        if record.agent == AgentTask::Runnable {
            let deferred = record.latched.and_then(|slot| self.task(slot));
            if deferred.is_none_or(|task| task.run_flags & run_flags::DEFER_LATCHED_PREEMPTION_BY_AGENT == 0) {
                self.displace(cpu, now);
            }
            return Pick::Agent;
        }
        if let Some(slot) = record.latched {
            return Pick::Task(slot);
        }
        if let Some(prev) = prev.filter(|prev| !record.must_resched && record.current == Some(*prev)) {
            return Pick::Keep(prev);
        }
        if record.told_to_idle.is_none()
            && let Some(slot) = self.pick_ready(cpu, now)
        {
            return Pick::Task(slot);
        }
        let wake_agent =
            prev.and_then(|prev| self.task(prev)).is_some_and(|task| task.run_flags & run_flags::RTLA_ON_IDLE != 0)
                || self
                    .cpu(cpu)
                    .and_then(|record| record.told_to_idle)
                    .is_some_and(|flags| flags & run_flags::RTLA_ON_IDLE != 0);
        if wake_agent {
            self.run_agent(cpu, now);
            if self.cpu(cpu).is_some_and(|record| record.agent == AgentTask::Runnable) {
                return Pick::Agent;
            }
        }
        Pick::Idle
    }

    /// The first of the ring's entries that may be latched; no more are looked at than the ring holds.
    fn pick_ready(&mut self, cpu: CpuId, now: Nanos) -> Option<SlotId> {
        for _ in 0..self.region.sizes().pick_len {
            let region = self.region;
            let entry = self.cpu_mut(cpu)?.taker.take(&region, cpu)?;
            let request = Request::run(cpu, entry.gtid, entry.slot, entry.task_barrier);
            // Only tasks: the special numbers ask for something else of a CPU, and name no slot.
            let verdict = match entry.gtid {
                GTID_NONE | GTID_AGENT | GTID_IDLE => Err(TxnState::InvalidTarget),
                _ => self.verdict(cpu, &request, How::Remote),
            };
            // The check has seen it queued under the same lock.
            let verdict = verdict.and_then(|()| {
                self.apply(entry.slot, Event::Latch(cpu), now).map(|_| ()).map_err(|_| TxnState::TargetNotRunnable)
            });
            match verdict {
                Ok(()) => {
                    if let Some(task) = self.task_mut(entry.slot) {
                        // The agent can't know which entry was taken but by this message.
                        task.run_flags = run_flags::SEND_TASK_ON_CPU;
                    }
                    self.cpu_mut(cpu)?.latched = Some(entry.slot);
                    self.publish_cpu(cpu);
                    return Some(entry.slot);
                }
                Err(state) => {
                    self.publish_cpu(cpu);
                    if self.task(entry.slot).is_some_and(|task| task.gtid == entry.gtid && !task.record.new_deferred)
                        && !self.is_gone(entry.slot)
                    {
                        self.tell_latch_failure(entry.slot, cpu, state as u16, now);
                    }
                    self.count_refusal(now);
                }
            }
        }
        None
    }

    fn is_gone(&self, slot: SlotId) -> bool {
        self.place(slot).is_none_or(|place| place == super::super::task::Place::Gone)
    }

    /// The CPU runs the task from now on: one that was picked, or, without an agent, any that may run.
    ///
    /// # Errors
    /// [`EnclaveError`] if it was neither.
    pub fn switched_in(&mut self, slot: SlotId, cpu: CpuId, now: Nanos) -> Result<(), EnclaveError> {
        let task = self.task(slot).ok_or(EnclaveError::NoTask(slot))?;
        let tell = task.run_flags & run_flags::SEND_TASK_ON_CPU != 0;
        let gtid = task.gtid;
        let event = Event::SwitchIn { cpu, tell, undelegated: !self.delegates() };
        let tells = self.apply(slot, event, now)?;
        if let Some(task) = self.task_mut(slot) {
            (task.switch_time, task.cpu) = (now, cpu);
        }
        // The one that ran leaves once it is off, which may be later: what its successor's commit asked for is about it.
        let (before, elide) = self
            .cpu_mut(cpu)
            .map_or((None, false), |record| (record.current, core::mem::take(&mut record.elide_preempt)));
        if let Some(task) = before.filter(|&before| before != slot).and_then(|before| self.task_mut(before)) {
            task.elided = elide;
        }
        let mut told_to_idle = None;
        if let Some(record) = self.cpu_mut(cpu) {
            if record.latched == Some(slot) {
                record.latched = None;
            }
            (record.current, record.switch_time, record.must_resched) = (Some(slot), now, false);
            told_to_idle = record.told_to_idle.take();
        }
        self.tell_task(slot, tells, cpu, now, |_| {});
        self.tell_not_idle(cpu, told_to_idle, gtid, now);
        self.publish_cpu(cpu);
        let _ = self.rest(cpu, Rest::Runs);
        Ok(())
    }

    pub(super) fn tell_not_idle(&mut self, cpu: CpuId, told_to_idle: Option<u32>, gtid: u64, now: Nanos) {
        if told_to_idle.is_some_and(|flags| flags & run_flags::NEED_CPU_NOT_IDLE != 0) {
            self.tell_cpu(cpu, MessageType::NotIdle, now, gtid);
        }
    }

    /// How the CPU waits for the next commit from now on. True: there is one already, so don't halt.
    #[must_use = "a CPU that halts although there is a transaction is not kicked for it"]
    pub fn rest(&mut self, cpu: CpuId, rest: Rest) -> bool {
        let Some(record) = self.cpus.get_mut(cpu.index()) else { return false };
        if record.rest == rest && rest != Rest::Halts {
            return false;
        }
        record.rest = rest;
        self.region.transaction(cpu).and_then(Slot::new).is_some_and(|slot| slot.rest(rest))
    }
}
