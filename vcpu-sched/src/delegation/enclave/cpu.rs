//! What happens to CPUs: ticks, higher classes, the agent's own task, going on- and offline.

use super::super::abi::tunables;
use super::super::life::Reason;
use super::super::message::MessageType;
use super::{AgentTask, Enclave, Occasion};
use crate::ids::{CpuId, Nanos};

impl Enclave<'_> {
    /// The CPU comes or goes. What was latched on one that goes returns to its queue.
    pub fn set_online(&mut self, cpu: CpuId, online: bool, now: Nanos) {
        if let Some(record) = self.cpu_mut(cpu) {
            record.online = online;
        }
        if !online {
            self.displace(cpu, now);
        }
        self.publish_cpu(cpu);
    }

    /// A higher class takes the CPU (`busy`), or leaves it. What was latched there returns to its queue.
    pub fn higher_class(&mut self, cpu: CpuId, busy: bool, now: Nanos) {
        let Some(record) = self.cpu_mut(cpu).filter(|record| record.higher_class != busy) else { return };
        record.higher_class = busy;
        let told_to_idle = if busy { record.told_to_idle.take() } else { None };
        if busy {
            self.displace(cpu, now);
        }
        self.tell_not_idle(cpu, told_to_idle, 0, now);
        if self.tuned(tunables::DELIVER_CPU_AVAILABILITY) {
            let kind = if busy { MessageType::Busy } else { MessageType::Available };
            self.tell_cpu(cpu, kind, now, 0);
        }
        self.publish_cpu(cpu);
    }

    /// A tick on that CPU. True: it must schedule.
    pub fn tick(&mut self, cpu: CpuId, now: Nanos) -> bool {
        self.poll_agent(now);
        if !self.delegates() {
            return false;
        }
        self.watch(now);
        if self.tuned(tunables::DELIVER_TICKS) {
            self.tell_cpu(cpu, MessageType::Tick, now, 0);
        }
        let due = self.cpu_mut(cpu).and_then(|record| record.timer.take_if(|(at, _)| *at <= now));
        if let Some((_, cookie)) = due {
            self.tell_cpu(cpu, MessageType::TimerExpired, now, cookie);
        }
        self.poll(cpu, Occasion::Tick, now)
    }

    /// Has a task waited too long? The oldest is the first of its list, so this costs one look.
    fn watch(&mut self, now: Nanos) {
        let waited = self.task(self.oldest).map_or(Nanos::ZERO, |task| now.saturating_sub(task.queued));
        // In a hand-off there is nobody to blame, and its own limit holds.
        if self.life.is_online() && self.timeout != Nanos::MAX && waited > self.timeout {
            self.eject(Reason::Timeout, now);
        }
    }

    /// An agent in the guest is there for this CPU, and waits.
    pub fn agent_joined(&mut self, cpu: CpuId) {
        if let Some(record) = self.cpu_mut(cpu) {
            record.agent = AgentTask::Blocked;
        }
        self.publish_cpu(cpu);
    }

    /// The agent in the guest has gone from this CPU.
    pub fn agent_left(&mut self, cpu: CpuId) {
        if let Some(record) = self.cpu_mut(cpu) {
            record.agent = AgentTask::None;
        }
        self.publish_cpu(cpu);
    }

    /// The agent in the guest waits: its local commit was accepted.
    pub fn agent_blocked(&mut self, cpu: CpuId, now: Nanos) {
        let Some(record) = self.cpu_mut(cpu).filter(|record| record.agent == AgentTask::Runnable) else { return };
        record.agent = AgentTask::Blocked;
        if self.tuned(tunables::DELIVER_AGENT_RUNNABILITY) {
            self.tell_cpu(cpu, MessageType::AgentBlocked, now, 0);
        }
        self.publish_cpu(cpu);
    }

    /// Makes the agent run: the one that is a task here, or the one outside if it sleeps.
    pub fn run_agent(&mut self, cpu: CpuId, now: Nanos) {
        self.wake_agent_outside();
        let Some(record) = self.cpu_mut(cpu).filter(|record| record.agent == AgentTask::Blocked) else { return };
        record.agent = AgentTask::Runnable;
        self.effects.reschedule.set(cpu);
        if self.tuned(tunables::DELIVER_AGENT_RUNNABILITY) {
            self.tell_cpu(cpu, MessageType::AgentWakeup, now, 0);
        }
        self.publish_cpu(cpu);
    }

    /// Somebody wants the agent's attention on that CPU: counts in the agent barrier, and wakes it.
    pub fn ping(&mut self, cpu: CpuId, now: Nanos) {
        if let Some(record) = self.cpu_mut(cpu) {
            record.agent_barrier = record.agent_barrier.wrapping_add(1);
        }
        self.publish_cpu(cpu);
        self.run_agent(cpu, now);
    }
}
