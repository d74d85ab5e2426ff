//! The machine: CPUs, tasks and the world around them on one virtual clock.
//!
//! [`Machine::run`] takes the next moment from the [agenda](super::agenda) and lets the CPU whose moment it is do everything
//! that it can do without time passing. What a task computes, and what a switch, a system call or an interrupt costs, is all
//! that takes time. The invariant: between two calls of `run` every CPU has its next moment on the agenda.

use alloc::collections::BinaryHeap;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt;

use super::agenda::Agenda;
use super::channel::Channel;
use super::code::{self, Instr};
use super::config::Config;
use super::cpu::{Cpu, Errand, Phase};
use super::figures::{GroupFigures, TaskFigures};
use super::model::{Change, MAX_TASKS, Workload, WorkloadError};
use super::random::Stream;
use super::task::TaskRef;
use super::tournament::Tournament;
use crate::cpumask::{CpuMask, MAX_CPUS};
use crate::events::{Kind, Record, flag};
use crate::ids::{CpuId, Nanos, TaskId};
use crate::policy::deadline::Budget;
use crate::task::state::{BadTransition, Event};

/// Who gets the records, in the order of their time. Records of the same moment come in the order of cause and effect.
pub trait Sink {
    /// `cpu` writes `record` into its ring.
    fn record(&mut self, cpu: CpuId, record: &Record);
}

/// Nobody.
impl Sink for () {
    fn record(&mut self, _cpu: CpuId, _record: &Record) {}
}

impl<S: Sink + ?Sized> Sink for &mut S {
    fn record(&mut self, cpu: CpuId, record: &Record) {
        (**self).record(cpu, record);
    }
}

/// Why a simulation can't go on.
#[derive(Clone, PartialEq, Debug)]
pub enum Fault {
    /// No CPU, or more than [`MAX_CPUS`].
    Cpus(u32),
    /// A workload that can't be run.
    Workload(WorkloadError),
    /// The state table refused an event: an error of the simulator.
    State(BadTransition),
    /// Tasks do things without end and without time passing.
    NoProgress {
        /// The group of the task that was caught.
        group: usize,
        /// When.
        at: Nanos,
    },
    /// More tasks than [`MAX_TASKS`] at a time.
    TooManyTasks {
        /// When.
        at: Nanos,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpus(cpus) => write!(f, "a machine with {cpus} CPUs can't be simulated (1 to {MAX_CPUS})"),
            Self::Workload(error) => write!(f, "{error}"),
            Self::State(error) => write!(f, "the simulator is wrong: {error}"),
            Self::NoProgress { group, at } => write!(
                f,
                "at {at} tasks of group {} go on without time passing: let them run or sleep, or let calls cost something",
                group + 1
            ),
            Self::TooManyTasks { at } => write!(f, "at {at} there are more than {MAX_TASKS} tasks"),
        }
    }
}

impl core::error::Error for Fault {}

impl From<BadTransition> for Fault {
    fn from(error: BadTransition) -> Self {
        Self::State(error)
    }
}

/// How a simulation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Every task has ended.
    AllEnded,
    /// The time was over.
    TimeUp,
    /// Tasks wait for each other, and nothing will ever wake them.
    Deadlock {
        /// How many.
        waiting: u32,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct Machine<'w, S> {
    pub(super) workload: &'w Workload,
    pub(super) config: Config,
    pub(super) sink: S,
    pub(super) now: Nanos,
    agenda: Agenda,
    pub(super) cpus: Vec<Cpu>,
    pub(super) online: CpuMask,
    /// CPUs that have found no work: all of them at the beginning.
    pub(super) idle: CpuMask,
    /// CPUs that run nothing and have nothing in their queues.
    pub(super) vacant: CpuMask,
    /// How many tasks run and wait on each CPU: tells who has the least.
    pub(super) loads: Tournament<u32>,
    /// CPUs in whose queues real-time tasks wait.
    pub(super) realtime: CpuMask,
    /// Tasks in all queues.
    pub(super) waiting: u64,
    /// What of each CPU is promised to deadline tasks.
    pub(super) budgets: Vec<Budget>,
    /// By number, less one; `None`: ended.
    pub(super) tasks: Vec<Option<TaskRef>>,
    pub(super) live: u32,
    /// How many tasks of each group have come by themselves, and were made in all.
    arrived: Vec<u32>,
    pub(super) made: Vec<u32>,
    pub(super) code: Vec<Rc<[Instr]>>,
    pub(super) channels: Vec<Channel>,
    /// First channel and number of channels of each family.
    pub(super) families: Vec<(usize, usize)>,
    /// Next arrival of each group that has any left.
    arrivals: BinaryHeap<Reverse<(Nanos, usize)>>,
    world: Vec<Stream>,
    /// The interventions in the order of their time, and how many are done.
    script: Vec<usize>,
    scripted: usize,
    /// CPU that gets the next arrival's interrupt, modulo their number.
    turn: u32,
    /// Where the last new task was placed.
    pub(super) placed_last: CpuId,
    pub(super) woken: Vec<TaskId>,
    pub(super) figures: Vec<GroupFigures>,
    pub(super) ended: Vec<TaskFigures>,
    pub(super) moments: u64,
    pub(super) records: u64,
    /// Steps since the clock last moved.
    pub(super) steps: u64,
}

impl<'w, S: Sink> Machine<'w, S> {
    /// A machine at time zero, all CPUs idle.
    ///
    /// # Errors
    /// [`Fault::Cpus`]; [`Fault::Workload`] if [`Workload::check`] refuses it.
    pub fn new(config: Config, workload: &'w Workload, sink: S) -> Result<Self, Fault> {
        workload.check().map_err(Fault::Workload)?;
        let count = config.cpus;
        if !(1..=MAX_CPUS).contains(&count) {
            return Err(Fault::Cpus(count));
        }
        let mut families = Vec::new();
        let mut channels = Vec::new();
        for family in &workload.channels {
            families.push((channels.len(), family.count as usize));
            channels.extend((0..family.count).map(|_| Channel::new(family.kind)));
        }
        let mut script: Vec<usize> = (0..workload.script.len()).collect();
        script.sort_by_key(|&i| workload.script[i].at); // stable: those of one moment stay in the file's order
        let groups = workload.groups.len();
        let mut machine = Self {
            sink,
            now: Nanos::ZERO,
            agenda: Agenda::new(count as usize + 1),
            cpus: (0..count).map(|cpu| Cpu::new(CpuId(cpu), config.policy)).collect(),
            online: CpuMask::full(count),
            idle: CpuMask::full(count),
            vacant: CpuMask::full(count),
            loads: Tournament::new(count as usize, 0, u32::MAX),
            realtime: CpuMask::empty(),
            waiting: 0,
            budgets: alloc::vec![Budget::new(); count as usize],
            tasks: Vec::new(),
            live: 0,
            arrived: alloc::vec![0; groups],
            made: alloc::vec![0; groups],
            code: workload.groups.iter().map(|group| code::compile(&group.program).into()).collect(),
            channels,
            families,
            arrivals: BinaryHeap::new(),
            world: (0..groups).map(|group| Stream::new(config.seed, u64::MAX - group as u64)).collect(),
            script,
            scripted: 0,
            turn: 0,
            placed_last: CpuId(count - 1),
            woken: Vec::new(),
            figures: (0..groups).map(|_| GroupFigures::new()).collect(),
            ended: Vec::new(),
            moments: 0,
            records: 0,
            steps: 0,
            workload,
            config,
        };
        for (i, group) in workload.groups.iter().enumerate().filter(|(_, group)| group.count > 0) {
            let first = group.start.draw(&mut machine.world[i]);
            machine.arrivals.push(Reverse((first, i)));
        }
        machine.boot();
        Ok(machine)
    }

    fn boot(&mut self) {
        /// Virtual time counts nanoseconds: a clock of 1 GHz.
        const KHZ: u64 = 1_000_000;
        for cpu in (0..self.cpus.len() as u32).map(CpuId) {
            self.write(cpu, &Record { kind: Kind::Clock as u8, b: KHZ, ..Record::default() });
            self.write_name(cpu, Self::idle_id(cpu), &format!("idle/{cpu}"));
            self.write(cpu, &Record { kind: Kind::Online as u8, flags: 1, ..Record::default() });
            self.touch(cpu);
        }
        self.touch_world();
    }

    /// Goes on until virtual time `until`, or for so many moments. `None`: there is more to do before `until`.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn run(&mut self, until: Nanos, moments: u64) -> Result<Option<End>, Fault> {
        for _ in 0..moments {
            match self.agenda.first() {
                Some((when, actor)) if when <= until => {
                    if when > self.now {
                        self.now = when;
                        self.steps = 0;
                    }
                    self.moments += 1;
                    if actor == self.cpus.len() {
                        self.turn_world();
                    } else {
                        self.settle(CpuId(actor as u32))?;
                    }
                }
                Some(_) => {
                    self.now = until;
                    return Ok(Some(End::TimeUp));
                }
                None if self.live == 0 => return Ok(Some(End::AllEnded)),
                None => return Ok(Some(End::Deadlock { waiting: self.live })),
            }
        }
        Ok(None)
    }

    /// Everything that a CPU does now, without time passing.
    fn settle(&mut self, me: CpuId) -> Result<(), Fault> {
        let at = me.index();
        loop {
            let now = self.now;
            let cpu = &mut self.cpus[at];
            match &cpu.phase {
                Phase::Switching(until, _) | Phase::Waking(until) if *until > now => break,
                Phase::Switching(_, prev) => {
                    let prev = prev.clone();
                    cpu.phase = if cpu.current.is_some() { Phase::Run } else { Phase::Idle };
                    self.finish_switch(me, prev);
                }
                Phase::Idle => {
                    if cpu.need_resched || cpu.interrupted(now) || !cpu.sleep.prepare_idle() {
                        self.leave_idle(me)?;
                    } else {
                        cpu.phase = Phase::Halted;
                        cpu.figures.halts += 1;
                        self.write_halt(me, 0);
                    }
                }
                Phase::Halted if cpu.interrupted(now) => cpu.phase = Phase::Waking(now + self.config.costs.idle_exit),
                Phase::Halted => break,
                Phase::Waking(_) => {
                    self.write_halt(me, 1);
                    self.leave_idle(me)?;
                }
                Phase::Run => {
                    if cpu.interrupted(now) {
                        self.interrupt(me)?;
                    } else if cpu.need_resched {
                        self.reschedule(me, Event::Preempt)?;
                    } else if !self.compute(me)? {
                        break;
                    }
                }
            }
        }
        self.touch(me);
        Ok(())
    }

    /// The idle task is awake: interrupts are handled, and then it looks for work.
    fn leave_idle(&mut self, me: CpuId) -> Result<(), Fault> {
        if self.cpus[me.index()].interrupted(self.now) {
            self.interrupt(me)?;
        }
        self.cpus[me.index()].sleep.leave_idle();
        self.reschedule(me, Event::Deschedule)
    }

    /// Lets the current task compute. False if it has to go on doing so.
    fn compute(&mut self, me: CpuId) -> Result<bool, Fault> {
        let cpu = &mut self.cpus[me.index()];
        let Some(task) = cpu.current.clone() else { return Ok(false) };
        let end = *cpu.burst_end.get_or_insert_with(|| self.now + task.exec.borrow().left);
        if end > self.now {
            return Ok(false);
        }
        cpu.burst_end = None;
        task.exec.borrow_mut().left = Nanos::ZERO;
        self.step(me, &task)?;
        Ok(true)
    }

    /// The handlers of all pending interrupts.
    fn interrupt(&mut self, me: CpuId) -> Result<(), Fault> {
        self.steps += 1;
        let now = self.now;
        let cpu = &mut self.cpus[me.index()];
        if cpu.interrupt_at.is_some_and(|at| at <= now) {
            cpu.interrupt_at = None;
            let _ = cpu.kicks.take();
            cpu.figures.interrupts += 1;
            cpu.arm_tick(now);
            let (kind, a) = (Kind::Ipi as u8, u64::from(super::RESCHEDULE_VECTOR));
            self.write(me, &Record { tsc: now.0, kind, flags: flag::RECEIVED, a, ..Record::default() });
        }
        if self.cpus[me.index()].timer_at().is_some_and(|at| at <= now) {
            self.timer(me)?;
        }
        while let Some(errand) = self.cpus[me.index()].errands.pop_front() {
            self.run_errand(me, errand)?;
        }
        Ok(())
    }

    /// The timer's handler.
    fn timer(&mut self, me: CpuId) -> Result<(), Fault> {
        let now = self.now;
        let cpu = &mut self.cpus[me.index()];
        cpu.figures.ticks += 1;
        if cpu.queue.next_event().is_some_and(|at| at <= now) && cpu.queue.event(now) {
            cpu.need_resched = true;
        }
        let mut flags = 0;
        let mut task = Self::idle_id(me);
        if let Some(current) = cpu.current.clone() {
            task = current.id;
            if cpu.tick_at.is_some_and(|at| at <= now) && cpu.queue.tick(&current, now) {
                cpu.need_resched = true;
                flags = flag::SLICE_OVER;
            }
        }
        cpu.arm_tick(now);
        self.write(me, &Record { tsc: now.0, task: task.0, kind: Kind::Tick as u8, flags, ..Record::default() });
        if self.cpus[me.index()].nr_running() > 1 {
            self.spread(me);
        }
        while let Some(id) = self.cpus[me.index()].timers.pop_expired(now) {
            if let Some(task) = self.task(id) {
                self.wake(me, &task, true)?;
            }
        }
        Ok(())
    }

    fn run_errand(&mut self, me: CpuId, errand: Errand) -> Result<(), Fault> {
        match errand {
            Errand::Arrival(group) => {
                let task = self.create(me, group, None);
                self.start(me, task)
            }
            Errand::Intervention(number) => {
                let step = &self.workload.script[number];
                let hit = |task: &&TaskRef| task.group == step.group && step.task.is_none_or(|n| n == task.index);
                let tasks: Vec<TaskRef> = self.tasks.iter().flatten().filter(hit).cloned().collect();
                for task in tasks {
                    match &step.what {
                        Change::Params(params) => self.set_params(me, &task, params),
                        Change::Affinity(mask) => {
                            let mask = self.usable(mask.clone());
                            self.set_affinity(me, &task, mask);
                        }
                        Change::Wake => self.wake(me, &task, true)?,
                    }
                }
                Ok(())
            }
        }
    }

    /// The world's next moment has come: it sends the interrupts for what happens now.
    fn turn_world(&mut self) {
        let now = self.now;
        while let Some(&Reverse((when, group))) = self.arrivals.peek()
            && when <= now
        {
            self.arrivals.pop();
            let cpu = CpuId(self.turn % self.cpus.len() as u32);
            self.turn = self.turn.wrapping_add(1);
            self.cpus[cpu.index()].errands.push_back(Errand::Arrival(group));
            self.touch(cpu);
            self.arrived[group] += 1;
            if self.arrived[group] < self.workload.groups[group].count {
                let next = when + self.workload.groups[group].every.draw(&mut self.world[group]);
                self.arrivals.push(Reverse((next, group)));
            }
        }
        while let Some(&number) = self.script.get(self.scripted)
            && self.workload.script[number].at <= now
        {
            self.scripted += 1;
            let cpu = CpuId(self.workload.script[number].on.0 % self.cpus.len() as u32);
            self.cpus[cpu.index()].errands.push_back(Errand::Intervention(number));
            self.touch(cpu);
        }
        self.touch_world();
    }

    fn touch_world(&mut self) {
        let arrival = self.arrivals.peek().map(|&Reverse((when, _))| when);
        let script = self.script.get(self.scripted).map(|&number| self.workload.script[number].at);
        let when = [arrival, script].into_iter().flatten().min().unwrap_or(Nanos::MAX);
        self.agenda.set(self.cpus.len(), when);
    }

    /// A CPU's next moment may have changed.
    pub(super) fn touch(&mut self, cpu: CpuId) {
        let when = self.cpus[cpu.index()].next_moment(self.now);
        self.agenda.set(cpu.index(), when);
    }
}
