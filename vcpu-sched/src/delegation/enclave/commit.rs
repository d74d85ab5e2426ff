//! Commits: a CPU's transaction is claimed, checked, and latched or answered.
//!
//! A CPU commits its own transaction, at the [`Occasion`]s that its flags allow; the transactions of a sync group are all
//! committed by its owner. The invariant: what is decided rests on a copy that was made after the claim, and on the guest's own
//! tables; each transaction that was claimed is answered before the call ends.

use super::super::abi::{GTID_AGENT, GTID_IDLE, GTID_NONE, commit_flags, run_flags, tunables};
use super::super::check::{CpuFacts, How, TargetFacts, check};
use super::super::life::Reason;
use super::super::task::{Event, Place};
use super::super::txn::{Outcome, Request, Rest, Slot, TxnState};
use super::{AgentTask, Config, Enclave, SlotId};
use crate::ids::{CpuId, Nanos};

/// Why the CPU looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Occasion {
    /// The agent kicked it.
    Kick,
    /// It schedules.
    Schedule,
    /// It has nothing to do.
    Idle,
    /// A tick.
    Tick,
}

impl Enclave<'_> {
    /// Looks at the CPU's transaction. True: something was committed, so the CPU must schedule.
    pub fn poll(&mut self, cpu: CpuId, occasion: Occasion, now: Nanos) -> bool {
        let Some(slot) = self.region.transaction(cpu).and_then(Slot::new) else { return false };
        if !slot.is_ready() {
            return false;
        }
        let Some(request) = slot.peek() else { return false };
        let timely = match occasion {
            Occasion::Idle => true,
            Occasion::Schedule => request.commit_flags & commit_flags::AT_TXN_COMMIT == 0,
            Occasion::Kick => request.commit_flags & commit_flags::AT_SCHEDULE == 0,
            Occasion::Tick => request.commit_flags & commit_flags::ALL == 0 && self.tuned(tunables::COMMIT_AT_TICK),
        };
        timely && self.commit(cpu, cpu, How::Remote, now)
    }

    /// Commits the transaction of `target`, or the whole group that it owns. `claimer` is the CPU that we are on. True: something
    /// was committed.
    pub fn commit(&mut self, claimer: CpuId, target: CpuId, how: How, now: Nanos) -> bool {
        let Some(slot) = self.region.transaction(target).and_then(Slot::new) else { return false };
        match slot.peek().map(|request| request.sync_group_owner) {
            None => false,
            Some(Some(owner)) if owner == target => self.commit_group(claimer, owner, now),
            // The owner commits it; one that can't is as good as a CPU that isn't there.
            Some(Some(owner)) if self.cpu(owner).is_some_and(|record| record.member && record.online) => false,
            Some(owner) => {
                let Some(request) = slot.claim(claimer) else { return false };
                let verdict =
                    if owner.is_some() { Err(TxnState::InvalidCpu) } else { self.verdict(target, &request, how) };
                match verdict {
                    Ok(()) => self.carry_out(claimer, target, &request, now),
                    Err(state) => self.refuse(target, &request, state, now),
                }
                verdict.is_ok()
            }
        }
    }

    /// All or nothing: each is checked with those before it in place, then all are latched, or none.
    fn commit_group(&mut self, claimer: CpuId, owner: CpuId, now: Nanos) -> bool {
        let mut group = core::mem::take(&mut self.group);
        // Own CPU last: it is the one that may schedule at once.
        let others = (0..self.cpus.len() as u32).map(CpuId).filter(|&cpu| cpu != owner);
        for cpu in others.chain([owner]) {
            let Some(slot) = self.region.transaction(cpu).and_then(Slot::new) else { continue };
            if slot.peek().is_some_and(|request| request.sync_group_owner == Some(owner))
                && let Some(request) = slot.claim(claimer)
            {
                group.push((cpu, request));
            }
        }
        let mut failed = None;
        for (n, (cpu, request)) in group.iter().enumerate() {
            let twice = request.gtid != GTID_NONE
                && request.gtid != GTID_IDLE
                && request.gtid != GTID_AGENT
                && group[..n].iter().any(|(_, other)| other.gtid == request.gtid);
            let verdict = if twice { Err(TxnState::TargetOncpu) } else { self.verdict(*cpu, request, How::Remote) };
            if let Err(state) = verdict {
                failed = Some((n, state));
                break;
            }
        }
        for (n, (cpu, request)) in group.iter().enumerate() {
            match failed {
                None => self.carry_out(claimer, *cpu, request, now),
                Some((culprit, state)) => {
                    self.refuse(*cpu, request, if n == culprit { state } else { TxnState::Poisoned }, now);
                }
            }
        }
        let committed = failed.is_none() && !group.is_empty();
        group.clear();
        self.group = group;
        committed
    }

    pub(super) fn verdict(&self, cpu: CpuId, request: &Request, how: How) -> Result<(), TxnState> {
        let Some(record) = self.cpu(cpu) else { return Err(TxnState::InvalidCpu) };
        let flags = |slot: Option<SlotId>| slot.and_then(|slot| self.task(slot)).map_or(0, |task| task.run_flags);
        let facts = CpuFacts {
            cpu,
            in_enclave: record.member,
            online: record.online,
            agent: self.life.is_online(),
            agent_task: record.agent != AgentTask::None,
            do_not_preempt: (flags(record.current) | flags(record.latched)) & run_flags::DO_NOT_PREEMPT != 0,
            higher_class: record.higher_class,
            agent_barrier: record.agent_barrier,
        };
        let target = self.task(request.slot).filter(|task| task.gtid == request.gtid).map(|task| TargetFacts {
            gated: task.record.new_deferred,
            gone: task.record.place == Place::Gone,
            barrier: task.barrier,
            runnable: !matches!(task.record.place, Place::Blocked | Place::Gone),
            on_cpu: match task.record.place {
                Place::OnCpu(cpu) | Place::Latched(cpu) => Some(cpu),
                Place::Gone | Place::Blocked | Place::Queued => None,
            },
            running: matches!(task.record.place, Place::OnCpu(_)),
            in_enclave: task.record.place != Place::Gone,
            allowed: task.allowed.test(cpu),
        });
        check(request, &facts, target.as_ref(), how)
    }

    fn carry_out(&mut self, claimer: CpuId, cpu: CpuId, request: &Request, now: Nanos) {
        let in_place = self
            .cpu(cpu)
            .and_then(|record| record.current)
            .is_some_and(|slot| slot == request.slot && self.task(slot).is_some_and(|task| task.gtid == request.gtid));
        self.displace(cpu, now);
        if let Some(record) = self.cpus.get_mut(cpu.index()) {
            record.told_to_idle = None;
            match request.gtid {
                GTID_NONE => record.must_resched = true,
                GTID_IDLE => (record.must_resched, record.told_to_idle) = (true, Some(request.run_flags)),
                GTID_AGENT => {}
                _ if in_place => record.must_resched = false,
                _ => {
                    record.latched = Some(request.slot);
                    record.elide_preempt = request.run_flags & run_flags::ELIDE_PREEMPT != 0;
                }
            }
            if request.commit_flags & commit_flags::ELIDE_AGENT_BARRIER_INC == 0 {
                record.agent_barrier = record.agent_barrier.wrapping_add(1);
            }
        }
        match request.gtid {
            GTID_AGENT => self.run_agent(cpu, now),
            GTID_NONE | GTID_IDLE => {}
            _ => {
                if !in_place {
                    // The check has seen it queued under the same lock.
                    let _ = self.apply(request.slot, Event::Latch(cpu), now);
                }
                if let Some(task) = self.task_mut(request.slot) {
                    task.run_flags = request.run_flags;
                }
                self.publish_task(request.slot);
            }
        }
        if claimer != cpu {
            self.effects.reschedule.set(cpu);
        }
        self.answer(cpu, TxnState::Complete, now);
    }

    fn refuse(&mut self, cpu: CpuId, request: &Request, state: TxnState, now: Nanos) {
        if request.commit_flags & commit_flags::INC_AGENT_BARRIER_ON_FAILURE != 0
            && let Some(record) = self.cpu_mut(cpu)
        {
            record.agent_barrier = record.agent_barrier.wrapping_add(1);
        }
        self.answer(cpu, state, now);
        self.count_refusal(now);
    }

    /// The history of the CPU goes on: an end state is like a message that says what the CPU does.
    fn answer(&mut self, cpu: CpuId, state: TxnState, now: Nanos) {
        let cpu_seqnum = self.next_seqnum(cpu);
        self.publish_cpu(cpu);
        let rest = self.cpu(cpu).map_or(Rest::Polls, |record| record.rest);
        if let Some(slot) = self.region.transaction(cpu).and_then(Slot::new) {
            slot.finish(&Outcome { state, commit_time: now, cpu_seqnum }, rest);
        }
        self.wake_agent_outside();
    }

    pub(super) fn count_refusal(&mut self, now: Nanos) {
        if now.saturating_sub(self.refused_since) > Config::FLOOD_INTERVAL {
            (self.refused, self.refused_since) = (0, now);
        }
        self.refused = self.refused.saturating_add(1);
        if self.refused > self.config.flood_limit {
            self.eject(Reason::Flood, now);
        }
    }
}
