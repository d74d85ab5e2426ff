//! Taking work from other CPUs and giving it to them: the mechanism of the guest kernel's `sched::balance` and
//! `sched::place`, on simulated CPUs. Whom to take from or give to is [`balance`](crate::balance)'s decision where it has one.
//!
//! The invariant is the kernel's: a CPU that has found nothing is in `idle`, and whoever queues a task on a busy CPU calls one of
//! those that may run it. So no CPU idles beside a task that it could take.

use super::machine::{Machine, Sink};
use super::task::TaskRef;
use crate::balance;
use crate::cpumask::CpuMask;
use crate::entity::Rank;
use crate::events::MigrateReason;
use crate::ids::CpuId;
use crate::placement::Level;
use crate::runqueue::RunQueue;

use super::sched::Arrival;

/// How important a task is to placement.
pub(super) fn level(task: &TaskRef) -> Level {
    match task.sched.rank() {
        Rank::Stop => Level::STOP,
        Rank::Deadline => Level::DEADLINE,
        Rank::Realtime => Level::realtime(task.sched.rt_priority()),
        Rank::Delegated | Rank::Normal => Level::NORMAL,
    }
}

impl<S: Sink> Machine<'_, S> {
    /// A task that may run on these CPUs waits for the busy CPU `except`: an idle one of them, if any, comes for it.
    pub(super) fn call_idle(&mut self, me: CpuId, allowed: &CpuMask, except: CpuId) {
        let called = allowed.iter_both_from(&self.idle, CpuId(0)).find(|&cpu| cpu != except);
        if let Some(cpu) = called {
            // Taken off, so that the next one in need calls another. It puts itself back if it finds nothing.
            self.idle.clear(cpu);
            self.request(me, cpu);
        }
    }

    /// Asks a CPU to pick anew. True if it was sent an interrupt.
    pub(super) fn request(&mut self, me: CpuId, target: CpuId) -> bool {
        let cpu = &mut self.cpus[target.index()];
        let asked = core::mem::replace(&mut cpu.need_resched, true);
        if target == me {
            return false;
        }
        let asleep = cpu.sleep.kick();
        (asleep || (cpu.current.is_some() && !asked)) && self.send_interrupt(me, target)
    }

    /// Takes a task from another CPU into this CPU's queue, which is empty: from where the crate says, else from any with one to
    /// spare.
    pub(super) fn pull(&mut self, me: CpuId) -> bool {
        if self.waiting == 0 {
            return false;
        }
        let Some(first) = balance::idle_victim(me, &self.view()) else { return false };
        let mut from = Some(first);
        let mut next = 0;
        loop {
            if let Some(victim) = from
                && let Some(task) =
                    self.cpus[victim.index()].queue.steal(|task| task.allowed_on(me) && !task.on_cpu.get())
            {
                self.publish(victim);
                self.cpus[me.index()].figures.pulled += 1;
                self.enqueue_on(me, me, task, Arrival::Migrate(MigrateReason::IdlePull));
                return true;
            }
            let Some(cpu) = self.cpus.get(next) else { return false };
            from = (cpu.id != me && cpu.id != first && cpu.nr_running() > 1).then_some(cpu.id);
            next += 1;
        }
    }

    /// Gives a waiting task to the CPU with the least, if that evens the load out.
    pub(super) fn spread(&mut self, me: CpuId) {
        self.publish(me);
        let (load, least) = self.loads.least();
        let (to, cpu) = (CpuId(least as u32), &mut self.cpus[me.index()]);
        // So it is, too, if this CPU itself has the least.
        if cpu.nr_running() < load + 2 {
            return;
        }
        if let Some(task) = cpu.queue.steal(|task| task.allowed_on(to) && !task.on_cpu.get()) {
            self.publish(me);
            self.enqueue_on(me, to, task, Arrival::Migrate(MigrateReason::Balance));
        }
    }

    /// This CPU is about to pick: takes a real-time task that waits elsewhere, if it is above what waits here.
    pub(super) fn pull_realtime(&mut self, me: CpuId) {
        let above = self.cpus[me.index()].queue.highest_realtime();
        let level = if above == 0 { Level::NORMAL } else { Level::realtime(above) };
        let Some(from) = balance::pull_source(level, me, &self.view()) else { return };
        let queue = &mut self.cpus[from.index()].queue;
        if let Some(task) = queue.steal_realtime(above, |task| task.allowed_on(me) && !task.on_cpu.get()) {
            self.publish(from);
            self.enqueue_on(me, me, task, Arrival::Migrate(MigrateReason::Push));
        }
    }

    /// Sends a real-time task that waits here to a CPU that runs something lower.
    pub(super) fn push_realtime(&mut self, me: CpuId) {
        let at = me.index();
        // Out of the machine while its tasks are held against the other CPUs.
        let empty = RunQueue::new(me, self.config.policy);
        let mut queue = core::mem::replace(&mut self.cpus[at].queue, empty);
        let mut target = None;
        let task = queue.steal_realtime(0, |task| {
            if !task.on_cpu.get() {
                target = balance::push_target(level(task), &task.allowed.borrow(), me, &self.view());
            }
            target.is_some()
        });
        self.cpus[at].queue = queue;
        self.publish(me);
        if let (Some(task), Some(target)) = (task, target) {
            self.enqueue_on(me, target, task, Arrival::Migrate(MigrateReason::Push));
        }
    }

    /// What a CPU runs or has in its queue has changed: keeps the machine's figures of all CPUs true.
    pub(super) fn publish(&mut self, cpu: CpuId) {
        let this = &mut self.cpus[cpu.index()];
        let (queued, load) = (this.queue.len() as u32, this.nr_running());
        self.loads.set(cpu.index(), load);
        if load == 0 {
            self.vacant.set(cpu);
        } else {
            self.vacant.clear(cpu);
        }
        self.waiting = self.waiting - u64::from(this.published) + u64::from(queued);
        this.published = queued;
        if this.queue.highest_realtime() == 0 {
            self.realtime.clear(cpu);
        } else {
            self.realtime.set(cpu);
        }
    }
}
