//! The scheduler's mechanism on simulated CPUs: what the guest kernel's `sched` does with stacks and interrupts, done with
//! virtual time. All decisions are the crate's own: state table, run queue, placement, sleep states.
//!
//! Called by the interpreter of programs and by the interrupt handlers, always on behalf of a CPU (`me`). The invariants are
//! the kernel's: a ready task is queued by whoever made it ready, on the CPU that still stands on its stack if there is one;
//! and whoever queues a task on another CPU kicks that CPU.

use super::balance::level;
use super::cpu::{Cpu, Phase};
use super::machine::{Fault, Machine, Sink};
use super::task::TaskRef;
use crate::cpu::kick::Requests;
use crate::cpumask::CpuMask;
use crate::entity::Rank;
use crate::events::{ClassTag, Kind, MigrateReason, Record, Side, flag};
use crate::ids::{CpuId, Nanos, TaskId};
use crate::params::{Class, SchedParams};
use crate::placement::{self, CpuView, Level, PickVerdict, Placement};
use crate::policy::{EnqueueReason, PutReason};
use crate::task::state::{Action, Event, State};
use crate::topology::Topology;

/// What placement sees of the CPUs.
pub(super) struct View<'a> {
    cpus: &'a [Cpu],
    online: &'a CpuMask,
    vacant: &'a CpuMask,
    topology: &'a Topology,
}

impl CpuView for View<'_> {
    fn online(&self) -> &CpuMask {
        self.online
    }

    fn is_idle(&self, cpu: CpuId) -> bool {
        self.nr_running(cpu) == 0
    }

    fn maybe_idle(&self) -> &CpuMask {
        self.vacant
    }

    fn nr_running(&self, cpu: CpuId) -> u32 {
        self.cpus[cpu.index()].nr_running()
    }

    fn topology(&self) -> Option<&Topology> {
        Some(self.topology)
    }

    fn level(&self, cpu: CpuId) -> Level {
        self.cpus[cpu.index()].current.as_ref().map_or(Level::IDLE, level)
    }

    fn waiting_realtime(&self, cpu: CpuId) -> u8 {
        self.cpus[cpu.index()].queue.highest_realtime()
    }
}

/// Where a ready task comes from.
#[derive(Clone, Copy)]
pub(super) enum Arrival {
    New,
    Wake { from_interrupt: bool },
    Migrate(MigrateReason),
}

impl<S: Sink> Machine<'_, S> {
    pub(super) fn view(&self) -> View<'_> {
        View { cpus: &self.cpus, online: &self.online, vacant: &self.vacant, topology: &self.config.topology }
    }

    /// The idle task's number on a CPU: out of the way of the others, see [`super::IDLE_BASE`].
    pub(super) fn idle_id(cpu: CpuId) -> TaskId {
        TaskId(super::IDLE_BASE + cpu.0)
    }

    /// The task that runs on a CPU.
    pub(super) fn current_id(&self, cpu: CpuId) -> TaskId {
        self.cpus[cpu.index()].current.as_ref().map_or(Self::idle_id(cpu), |task| task.id)
    }

    /// Starts a new task.
    pub(super) fn start(&mut self, me: CpuId, task: TaskRef) -> Result<(), Fault> {
        if task.state.apply(Event::Start)? == Action::Enqueue {
            let target = placement::select_cpu_new(&task.allowed.borrow(), self.placed_last, &self.view());
            self.placed_last = target;
            self.enqueue_on(me, target, task, Arrival::New);
        }
        Ok(())
    }

    /// Makes a blocked task ready; costs nothing if it isn't blocked.
    pub(super) fn wake(&mut self, me: CpuId, task: &TaskRef, from_interrupt: bool) -> Result<(), Fault> {
        if task.state.apply(Event::Wake)? == Action::Enqueue {
            task.since.set(self.now);
            task.woken_at.set(Some(self.now));
            self.place(me, task.clone(), Arrival::Wake { from_interrupt });
        }
        Ok(())
    }

    /// Puts a ready task that is in no queue into one.
    fn place(&mut self, me: CpuId, task: TaskRef, why: Arrival) {
        let stack_on = task.on_cpu.get().then(|| task.cpu.get());
        let target = {
            let allowed = task.allowed.borrow();
            let place = Placement { last_cpu: task.cpu.get(), allowed: &allowed };
            if stack_on.is_none() && task.sched.rank() == Rank::Realtime {
                placement::select_cpu_realtime(level(&task), &place, me, &self.view())
            } else {
                placement::enqueue_target(stack_on, &place, me, &self.view())
            }
        };
        self.enqueue_on(me, target, task, why);
    }

    /// Puts a ready task into a CPU's queue and makes sure that the CPU will look at it.
    pub(super) fn enqueue_on(&mut self, me: CpuId, target: CpuId, task: TaskRef, why: Arrival) {
        let now = self.now;
        let waker = self.current_id(me);
        let from = task.cpu.replace(target);
        let cpu = &mut self.cpus[target.index()];
        let timer_before = cpu.wanted_tick(now);
        let reason = match why {
            Arrival::New => EnqueueReason::New,
            Arrival::Wake { .. } => EnqueueReason::Wake,
            Arrival::Migrate(_) => EnqueueReason::Migrate,
        };
        cpu.queue.enqueue(task.clone(), reason, now);
        let queued = cpu.queue.len() as u32;
        cpu.figures.longest_queue = cpu.figures.longest_queue.max(queued);
        let preempts = match &cpu.current {
            Some(current) => cpu.queue.gives_way(current, &task, now),
            None => true,
        };
        let earlier = cpu.wanted_tick(now).is_some_and(|at| timer_before.is_none_or(|before| at < before));
        // An idle CPU that wakes up runs the first of those that it was given.
        let waits = cpu.current.is_some() || queued > 1;
        if target == me {
            cpu.arm_tick(now);
        }
        self.publish(target);
        let kicked = if preempts {
            self.request(me, target)
        } else {
            // It may run without a timer, or with a later one, and only it can arm its own.
            target != me && earlier && self.send_interrupt(me, target)
        };
        let (seq, tag) = task.sched.next_place();
        let (id, tsc) = (task.id, now.0);
        let mut flags = if kicked { flag::KICKED } else { 0 };
        let record = match why {
            Arrival::New => Record::queued(Kind::New, tsc, id, seq, flags, waker, target, tag, queued),
            Arrival::Wake { from_interrupt } => {
                if from_interrupt {
                    flags |= flag::FROM_INTERRUPT;
                }
                Record::queued(Kind::Wake, tsc, id, seq, flags, waker, target, tag, queued)
            }
            Arrival::Migrate(reason) => Record::migrate(tsc, id, seq, from, target, reason, queued, kicked),
        };
        self.write(me, &record);
        self.touch(target);
        if waits {
            self.call_idle(me, &task.allowed.borrow(), target);
        }
    }

    /// Asks another CPU to look into its queue. False if an interrupt that does so is on its way already.
    pub(super) fn send_interrupt(&mut self, me: CpuId, target: CpuId) -> bool {
        let cpu = &mut self.cpus[target.index()];
        if !cpu.kicks.raise(Requests::RESCHEDULE) {
            return false;
        }
        cpu.interrupt_at = Some(self.now + self.config.costs.ipi);
        let a = u64::from(target.0) | u64::from(super::RESCHEDULE_VECTOR) << 32;
        self.write(me, &Record { tsc: self.now.0, kind: Kind::Ipi as u8, a, ..Record::default() });
        self.touch(target);
        true
    }

    /// Applies `event` to the current task and switches to whoever runs next.
    pub(super) fn reschedule(&mut self, me: CpuId, event: Event) -> Result<(), Fault> {
        let now = self.now;
        let at = me.index();
        self.cpus[at].need_resched = false;
        let prev = self.cpus[at].current.clone();
        if let Some(prev) = &prev {
            if let Some(end) = self.cpus[at].burst_end.take() {
                prev.exec.borrow_mut().left = end - now;
            }
            self.put_prev(me, prev, event)?;
            let ran = now - self.cpus[at].picked_at;
            self.cpus[at].figures.busy += ran;
        }
        // Until it has picked, it runs nothing that could be preempted.
        self.cpus[at].current = None;
        let next = loop {
            self.publish(me);
            if self.realtime.iter().any(|cpu| cpu != me) {
                self.pull_realtime(me);
            }
            let Some(task) = self.cpus[at].queue.pick_next(now) else {
                self.idle.set(me);
                if self.pull(me) {
                    continue;
                }
                break None;
            };
            let in_use = prev.as_ref().is_some_and(|prev| prev.is(&task));
            let verdict = placement::pick_verdict(me, &task.allowed.borrow(), in_use);
            match verdict {
                PickVerdict::Run => break Some(task),
                PickVerdict::Forward => {
                    self.cpus[at].queue.put_prev(&task, PutReason::Migrate, now);
                    self.publish(me);
                    self.place(me, task, Arrival::Migrate(MigrateReason::Affinity));
                }
                PickVerdict::ForwardAfterSwitch => {
                    self.cpus[at].queue.put_prev(&task, PutReason::Migrate, now);
                    self.cpus[at].forward = true;
                }
            }
        };
        if let Some(task) = &next {
            task.state.apply(Event::Pick).map(drop)?;
            task.since.set(now);
            if let Some(woken) = task.woken_at.take() {
                self.figures[task.group].latency(now - woken);
            }
        }
        if next.is_some() {
            self.idle.clear(me);
        }
        self.cpus[at].current = next.clone();
        self.publish(me);
        let cpu = &mut self.cpus[at];
        cpu.need_resched = false; // what was asked for meanwhile was taken into account
        cpu.picked_at = now;
        let same = match (&prev, &next) {
            (Some(prev), Some(next)) => prev.is(next),
            (None, None) => true,
            _ => false,
        };
        cpu.arm_tick(now);
        if same {
            cpu.phase = if next.is_some() { Phase::Run } else { Phase::Idle };
            return Ok(());
        }
        cpu.figures.switches += 1;
        cpu.phase = Phase::Switching(now + self.config.costs.switch, prev.clone());
        let queued = cpu.queue.len() as u32;
        let mut flags = if event == Event::Preempt { flag::PREEMPTED } else { 0 };
        if let Some(prev) = &prev {
            flags |= prev.state.load() as u8;
        } else {
            flags = State::Running as u8; // the idle task is never anything else
        }
        let record = Record::switch(now.0, Self::side(me, prev.as_ref()), Self::side(me, next.as_ref()), flags, queued);
        self.write(me, &record);
        if let Some(next) = &next {
            next.on_cpu.set(true);
            next.cpu.set(me);
        }
        Ok(())
    }

    fn side(cpu: CpuId, task: Option<&TaskRef>) -> Side {
        match task {
            Some(task) => {
                let (seq, class) = task.sched.next_place();
                Side { task: task.id, seq, class }
            }
            None => Side { task: Self::idle_id(cpu), seq: 0, class: ClassTag::IDLE },
        }
    }

    /// Tells the state table and the policy what becomes of the task that is being left.
    fn put_prev(&mut self, me: CpuId, prev: &TaskRef, event: Event) -> Result<(), Fault> {
        let now = self.now;
        prev.since.set(now);
        let wanted_to_block = prev.state.load() == State::Blocking;
        let action = prev.state.apply(event)?;
        let cpu = &mut self.cpus[me.index()];
        match action {
            Action::Enqueue => {
                // A block that a wake-up overtook is no yield: the task asked for nothing and must not be made to pay.
                let yields = event == Event::Deschedule && !wanted_to_block;
                if prev.allowed_on(me) {
                    cpu.queue.put_back(prev.clone(), yields, now);
                } else {
                    // It may not stay here: its successor sends it on.
                    cpu.queue.put_prev(prev, PutReason::Migrate, now);
                    cpu.forward = true;
                }
            }
            Action::Nothing => cpu.queue.put_prev(prev, PutReason::Block, now),
            Action::Reap => cpu.queue.put_prev(prev, PutReason::Exit, now),
        }
        Ok(())
    }

    /// What the task that was left needs to be done, once its stack is left.
    pub(super) fn finish_switch(&mut self, me: CpuId, prev: Option<TaskRef>) {
        let Some(prev) = prev else { return };
        prev.on_cpu.set(false);
        if core::mem::take(&mut self.cpus[me.index()].forward) {
            self.place(me, prev, Arrival::Migrate(MigrateReason::Affinity));
        } else if prev.state.load() == State::Dead {
            self.reap(&prev);
        } else if prev.state.load() == State::Ready {
            // Nobody could take it before: this CPU stood on its stack.
            self.call_idle(me, &prev.allowed.borrow(), me);
            if self.realtime.test(me) {
                self.push_realtime(me);
            }
        }
    }

    /// Restricts a task to `mask` and moves it if it is elsewhere. A deadline task stays where it was admitted, as
    /// `sched_setaffinity(2)` refuses it.
    pub(super) fn set_affinity(&mut self, me: CpuId, task: &TaskRef, mask: CpuMask) {
        if task.sched.home().is_some() {
            return;
        }
        self.write_affinity(me, task.id, &mask);
        let on = task.cpu.get();
        let stays = mask.test(on);
        task.allowed.replace(mask);
        let cpu = &mut self.cpus[on.index()];
        if cpu.current.as_ref().is_some_and(|current| current.is(task)) {
            // Its CPU preempts it, and sends it on.
            if !stays {
                self.request(me, on);
            }
        } else if stays {
            if task.state.load() == State::Ready && cpu.current.is_some() {
                self.call_idle(me, &task.allowed.borrow(), on);
            }
        } else if !task.on_cpu.get()
            && let Some(task) = cpu.queue.dequeue(task)
        {
            self.publish(on);
            self.place(me, task, Arrival::Migrate(MigrateReason::Affinity));
        }
        // Blocked: at its wake-up. Still on its way out of its CPU: that one sends it on.
    }

    /// Changes how a task is scheduled. What can't be promised changes nothing, as `sched_setattr(2)` refuses it.
    pub(super) fn set_params(&mut self, me: CpuId, task: &TaskRef, params: &SchedParams) {
        let now = self.now;
        if let Class::Deadline(_) = params.class {
            // Becoming a deadline task moves it first, like a change of its affinity.
            let allowed = task.allowed.borrow().clone();
            let Ok((_, Some(home))) = self.admit(*params, &allowed, task.cpu.get()) else {
                self.figures[task.group].refused += 1;
                return;
            };
            self.release(task);
            self.set_affinity(me, task, CpuMask::one_shot(home));
            task.sched.set_home(Some(home));
        } else {
            self.release(task);
        }
        task.sched.request(params);
        if let Some(on) = task.sched.queue() {
            let cpu = &mut self.cpus[on.index()];
            let must = cpu.queue.apply_params(task, now);
            if on == me {
                cpu.arm_tick(now);
            }
            self.publish(on);
            if must {
                self.request(me, on);
            }
        }
        let tag = params.tag();
        let a = u64::from(tag.policy) | u64::from(tag.prio) << 8 | u64::from(params.nice.get() as u8) << 16;
        let b = params.slice.map_or(0, |slice| slice.get().0);
        let (tsc, kind) = (now.0, Kind::Params as u8);
        self.write(me, &Record { tsc, task: task.id.0, kind, a, b, ..Record::default() });
    }
}

impl Cpu {
    /// When the scheduler wants a timer interrupt, as things are.
    fn wanted_tick(&self, now: Nanos) -> Option<Nanos> {
        let current = self.current.as_ref()?;
        let slice = self.queue.slice(current)?;
        // A slice that is over already was told to a policy that didn't end it: it is asked again, but not at once.
        Some((self.picked_at + slice).max(now + super::LEAST_TICK))
    }

    /// Arms the timer for that.
    pub(super) fn arm_tick(&mut self, now: Nanos) {
        self.tick_at = self.wanted_tick(now);
    }
}
