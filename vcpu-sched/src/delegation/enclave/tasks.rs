//! What happens to tasks: each event goes through the table of [`task`](super::super::task), and its messages are sent.

use super::super::abi::{GTID_AGENT, GTID_IDLE, GTID_NONE, message_flags, run_flags, tunables};
use super::super::message::MessageType;
use super::super::task::{BadTransition, Event, Leave, Place, Record, Tells};
use super::{Enclave, NO_SLOT, SlotId, Task};
use crate::cpumask::CpuMask;
use crate::ids::{CpuId, Nanos};

/// Where a task is when it comes into the enclave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// It may run.
    Queued,
    /// It waits.
    Blocked,
    /// It runs.
    Running,
}

/// A task that comes.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Its number, which was never used before.
    pub gtid: u64,
    /// Its parent's, or 0.
    pub parent: u64,
    /// Its nice value.
    pub nice: i16,
    /// Where it may run.
    pub allowed: CpuMask,
    /// CPU time it used before.
    pub runtime: Nanos,
    /// Where it ran last, or runs.
    pub cpu: CpuId,
    /// What it does.
    pub arrival: Arrival,
}

/// Why something can't be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnclaveError {
    /// All status words are used.
    Full,
    /// 0 or one of the special numbers.
    Gtid(u64),
    /// No such task.
    NoTask(SlotId),
    /// SWITCHTO_DISABLED, or the other task doesn't wait, or may not run there.
    SwitchTo,
    /// A fault of the caller's.
    Transition(BadTransition),
}

impl core::fmt::Display for EnclaveError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Full => f.write_str("the enclave has no room for another task"),
            Self::Gtid(gtid) => write!(f, "{gtid:#x} is no task's number"),
            Self::NoTask(slot) => write!(f, "no task in status word {slot}"),
            Self::SwitchTo => f.write_str("that task can't be given the CPU"),
            Self::Transition(bad) => bad.fmt(f),
        }
    }
}

impl core::error::Error for EnclaveError {}

impl From<BadTransition> for EnclaveError {
    fn from(bad: BadTransition) -> Self {
        Self::Transition(bad)
    }
}

impl Enclave<'_> {
    /// A task comes into the enclave.
    ///
    /// # Errors
    /// [`EnclaveError::Full`], [`EnclaveError::Gtid`].
    pub fn join(&mut self, new: &NewTask, now: Nanos) -> Result<SlotId, EnclaveError> {
        if matches!(new.gtid, GTID_NONE | GTID_AGENT | GTID_IDLE) {
            return Err(EnclaveError::Gtid(new.gtid));
        }
        let task = Task {
            gtid: new.gtid,
            record: Record::GONE,
            barrier: 0,
            channel: 0,
            runtime: new.runtime,
            switch_time: now,
            cpu: new.cpu,
            queued: now,
            older: NO_SLOT,
            newer: NO_SLOT,
            nice: new.nice,
            parent: new.parent,
            allowed: new.allowed.clone(),
            run_flags: 0,
            elided: false,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                if let Some(place) = self.task_mut(slot) {
                    // The barrier goes on, so that what an agent believes of the last task there is stale.
                    *place = Task { barrier: place.barrier, ..task };
                }
                slot
            }
            None if self.tasks.len() < self.region.sizes().tasks as usize => {
                self.tasks.push(task);
                self.tasks.len() as SlotId - 1
            }
            None => return Err(EnclaveError::Full),
        };
        let event = match new.arrival {
            Arrival::Queued => Event::Join { runnable: true },
            Arrival::Blocked => Event::Join { runnable: false },
            Arrival::Running => {
                if let Some(record) = self.cpu_mut(new.cpu) {
                    record.current = Some(slot);
                    record.switch_time = now;
                    // Its NEW comes when it is off; that should be soon.
                    record.must_resched = true;
                }
                if self.delegates() {
                    self.effects.reschedule.set(new.cpu);
                }
                Event::JoinRunning(new.cpu)
            }
        };
        let tells = self.apply(slot, event, now)?;
        self.tell_task(slot, tells, new.cpu, now, |_| {});
        self.publish_cpu(new.cpu);
        Ok(slot)
    }

    /// Sends an event through the table, and keeps the list of those who wait.
    pub(super) fn apply(&mut self, slot: SlotId, event: Event, now: Nanos) -> Result<Tells, EnclaveError> {
        let task = self.tasks.get_mut(slot as usize).ok_or(EnclaveError::NoTask(slot))?;
        let before = task.record.place;
        let (record, tells) = task.record.on(event)?;
        task.record = record;
        match (before == Place::Queued, record.place == Place::Queued) {
            (false, true) => self.link(slot, now),
            (true, false) => self.unlink(slot),
            _ => {}
        }
        Ok(tells)
    }

    fn link(&mut self, slot: SlotId, now: Nanos) {
        let newest = self.newest;
        if let Some(task) = self.task_mut(slot) {
            (task.older, task.newer, task.queued) = (newest, NO_SLOT, now);
        }
        match self.task_mut(newest) {
            Some(task) => task.newer = slot,
            None => self.oldest = slot,
        }
        self.newest = slot;
    }

    fn unlink(&mut self, slot: SlotId) {
        let Some((older, newer)) = self.task(slot).map(|task| (task.older, task.newer)) else { return };
        match self.task_mut(older) {
            Some(task) => task.newer = newer,
            None => self.oldest = newer,
        }
        match self.task_mut(newer) {
            Some(task) => task.older = older,
            None => self.newest = older,
        }
    }

    /// What the task waited for has happened. The CPU where it is queued now, if this did it: its own, or the waker's, never a
    /// third one, which others could flood with interrupts.
    ///
    /// # Errors
    /// [`EnclaveError::NoTask`].
    pub fn wake(
        &mut self,
        slot: SlotId,
        waker: CpuId,
        deferrable: bool,
        now: Nanos,
    ) -> Result<Option<CpuId>, EnclaveError> {
        let task = self.task(slot).ok_or(EnclaveError::NoTask(slot))?;
        if task.record.place != Place::Blocked {
            return Ok(None);
        }
        let last = task.cpu;
        let target = if self.tuned(tunables::WAKE_ON_WAKER_CPU) { waker } else { last };
        let tells = self.apply(slot, Event::Wake, now)?;
        if let Some(task) = self.task_mut(slot) {
            task.cpu = target;
        }
        self.tell_task(slot, tells, last, now, |message| {
            message.flags |= if deferrable { message_flags::DEFERRABLE } else { 0 };
            (message.wake_up_cpu, message.waker_cpu) = (target, waker);
        });
        Ok(Some(target))
    }

    /// The task is off its CPU, having run for `ran` since it was switched to.
    ///
    /// # Errors
    /// [`EnclaveError`] if it was on none.
    pub fn leave(&mut self, slot: SlotId, why: Leave, ran: Nanos, now: Nanos) -> Result<(), EnclaveError> {
        let cpu = self.running_on(slot)?;
        let elide = self.task_mut(slot).is_some_and(|task| core::mem::take(&mut task.elided))
            || self.cpu(cpu).is_some_and(|record| record.current == Some(slot) && record.elide_preempt);
        let tells = self.apply(slot, Event::Leave { why, elide }, now)?;
        self.off(slot, cpu, ran);
        self.tell_task(slot, tells, cpu, now, |_| {});
        let wanted = match why {
            Leave::Blocked => run_flags::RTLA_ON_BLOCKED,
            Leave::Yield => run_flags::RTLA_ON_YIELD,
            Leave::Preempt => run_flags::RTLA_ON_PREEMPT,
        };
        if self.task_mut(slot).is_some_and(|task| core::mem::take(&mut task.run_flags) & wanted != 0) {
            self.run_agent(cpu, now);
        }
        self.publish_cpu(cpu);
        Ok(())
    }

    fn running_on(&self, slot: SlotId) -> Result<CpuId, EnclaveError> {
        let task = self.task(slot).ok_or(EnclaveError::NoTask(slot))?;
        match task.record.place {
            Place::OnCpu(cpu) => Ok(cpu),
            _ => {
                Err(BadTransition { from: task.record, event: Event::Leave { why: Leave::Preempt, elide: false } }
                    .into())
            }
        }
    }

    /// Books of a task that is off `cpu`.
    fn off(&mut self, slot: SlotId, cpu: CpuId, ran: Nanos) {
        if let Some(task) = self.task_mut(slot) {
            task.runtime += ran;
            task.cpu = cpu;
        }
        if let Some(record) = self.cpu_mut(cpu)
            && record.current == Some(slot)
        {
            record.current = None;
            record.must_resched = false;
            record.elide_preempt = false;
        }
    }

    /// The task gives its CPU to `next` and waits; it ran for `ran`. The caller switches from the one to the other, without a
    /// pick and without [`switched_in`](Self::switched_in).
    ///
    /// # Errors
    /// [`EnclaveError::SwitchTo`]: let it block, and wake the other.
    pub fn switch_to(&mut self, slot: SlotId, next: SlotId, ran: Nanos, now: Nanos) -> Result<(), EnclaveError> {
        let cpu = self.running_on(slot)?;
        let taker = self.task(next).ok_or(EnclaveError::NoTask(next))?;
        let record = self.cpu(cpu).ok_or(EnclaveError::SwitchTo)?;
        let free = record.latched.is_none() && !record.must_resched && !record.higher_class;
        if taker.record.place != Place::Blocked
            || !taker.allowed.test(cpu)
            || !free
            || self.tuned(tunables::SWITCHTO_DISABLED)
            || !self.delegates()
        {
            return Err(EnclaveError::SwitchTo);
        }
        let tells = self.apply(slot, Event::GiveAway, now)?;
        self.off(slot, cpu, ran);
        // The chain inherits what the commit asked for at its end.
        let inherited = self.task_mut(slot).map_or(0, |task| core::mem::take(&mut task.run_flags));
        self.tell_task(slot, tells, cpu, now, |_| {});
        let silent = self.apply(next, Event::TakeOver(cpu), now)?;
        if let Some(task) = self.task_mut(next) {
            (task.run_flags, task.switch_time, task.cpu) = (inherited, now, cpu);
        }
        if let Some(record) = self.cpu_mut(cpu) {
            (record.current, record.switch_time) = (Some(next), now);
        }
        self.tell_task(next, silent, cpu, now, |_| {});
        self.publish_cpu(cpu);
        Ok(())
    }

    /// The task leaves the enclave, wherever it is. If it runs, it goes on in another class.
    ///
    /// # Errors
    /// [`EnclaveError`] if it isn't in it.
    pub fn depart(&mut self, slot: SlotId, now: Nanos) -> Result<(), EnclaveError> {
        self.end(slot, Event::Depart, now)
    }

    /// The task has ended, and is off its CPU.
    ///
    /// # Errors
    /// [`EnclaveError`] if it isn't in the enclave.
    pub fn die(&mut self, slot: SlotId, now: Nanos) -> Result<(), EnclaveError> {
        self.end(slot, Event::Die, now)
    }

    fn end(&mut self, slot: SlotId, event: Event, now: Nanos) -> Result<(), EnclaveError> {
        let task = self.task(slot).ok_or(EnclaveError::NoTask(slot))?;
        let place = task.record.place;
        let mut cpu = task.cpu;
        let ran = now.saturating_sub(task.switch_time);
        let tells = self.apply(slot, event, now)?;
        match place {
            Place::OnCpu(on) => {
                cpu = on;
                self.off(slot, on, ran);
            }
            Place::Latched(on) => {
                cpu = on;
                if let Some(record) = self.cpu_mut(on) {
                    record.latched = None;
                }
            }
            Place::Gone | Place::Blocked | Place::Queued => {}
        }
        self.tell_task(slot, tells, cpu, now, |_| {});
        self.publish_cpu(cpu);
        // The status word is told to be free; its next task has another gtid, and a barrier that goes on.
        self.free.push(slot);
        Ok(())
    }

    /// The task may run on other CPUs than before. If it is where it may not be any more, it is made to leave.
    ///
    /// # Errors
    /// [`EnclaveError::NoTask`].
    pub fn set_allowed(&mut self, slot: SlotId, allowed: &CpuMask, now: Nanos) -> Result<(), EnclaveError> {
        let task = self.task_mut(slot).ok_or(EnclaveError::NoTask(slot))?;
        task.allowed = allowed.clone();
        let (place, last) = (task.record.place, task.cpu);
        let tells = self.apply(slot, Event::AffinityChanged, now)?;
        match place {
            Place::Latched(cpu) if !allowed.test(cpu) => self.displace(cpu, now),
            Place::OnCpu(cpu) if !allowed.test(cpu) => {
                if let Some(record) = self.cpu_mut(cpu) {
                    record.must_resched = true;
                }
                self.effects.reschedule.set(cpu);
            }
            _ => {}
        }
        self.tell_task(slot, tells, last, now, |_| {});
        Ok(())
    }

    /// The task has another nice value.
    ///
    /// # Errors
    /// [`EnclaveError::NoTask`].
    pub fn set_nice(&mut self, slot: SlotId, nice: i16, now: Nanos) -> Result<(), EnclaveError> {
        let task = self.task_mut(slot).ok_or(EnclaveError::NoTask(slot))?;
        task.nice = nice;
        let cpu = task.cpu;
        let tells = self.apply(slot, Event::PriorityChanged, now)?;
        self.tell_task(slot, tells, cpu, now, |_| {});
        Ok(())
    }

    /// What is latched on that CPU goes back to its queue.
    pub(super) fn displace(&mut self, cpu: CpuId, now: Nanos) {
        let Some(slot) = self.cpu_mut(cpu).and_then(|record| record.latched.take()) else { return };
        let tell = self
            .task_mut(slot)
            .is_some_and(|task| core::mem::take(&mut task.run_flags) & run_flags::SEND_TASK_ON_CPU != 0);
        if let Ok(tells) = self.apply(slot, Event::Displace { tell }, now) {
            self.tell_task(slot, tells, cpu, now, |_| {});
        }
        self.publish_cpu(cpu);
    }

    /// A task of which nothing could be latched though the agent left it ready: tells it.
    pub(super) fn tell_latch_failure(&mut self, slot: SlotId, cpu: CpuId, state: u16, now: Nanos) {
        let told = [Some((MessageType::LatchFailure, 0)), None];
        self.tell_task(slot, told, cpu, now, |message| message.extra = state.into());
    }
}
