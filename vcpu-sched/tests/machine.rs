//! A whole machine in miniature: CPUs that run, switch, halt and interrupt each other, tasks that block, yield, exit and
//! change their affinity, in any order of steps that proptest can think of. It does with the crate what the guest kernel
//! does, and checks after every step what a kernel can't check:
//! - a task is in exactly one place;
//! - no CPU switches to a stack that another one still stands on;
//! - a task runs only where its affinity allowed it when it was picked;
//! - no CPU halts beside its own queued work without an interrupt on its way, and no request is swallowed;
//! - the policy is called in the order that it is promised;
//!
//! and at the end that every task still gets to its own end: no wake-up was lost.

use std::collections::VecDeque;

use proptest::prelude::*;
use vcpu_sched::cpu::kick::{KickWord, Requests};
use vcpu_sched::cpu::sleep::SleepState;
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::placement::{
    CpuView, PickVerdict, Placement, enqueue_target, pick_verdict, select_cpu, select_cpu_new,
};
use vcpu_sched::policy::round_robin::RoundRobin;
use vcpu_sched::policy::{EnqueueReason, Policy, PutReason};
use vcpu_sched::task::state::{Action, AtomicState, Event, State};

mod common;
use common::Task;

const NOW: Nanos = Nanos::ZERO;

/// A run queue that watches over the order of calls that `policy` tells.
struct Checked {
    inner: RoundRobin<Task>,
    current: Option<Task>,
    /// Who was put back last and must be enqueued next, and how.
    returning: Option<(Task, EnqueueReason)>,
}

impl Policy<Task> for Checked {
    fn enqueue(&mut self, e: Task, why: EnqueueReason, now: Nanos) {
        assert_ne!(self.current, Some(e), "enqueued before it was put back");
        let expected = match why {
            EnqueueReason::Preempted | EnqueueReason::Yield => Some((e, why)),
            EnqueueReason::New | EnqueueReason::Wake | EnqueueReason::Migrate => None,
        };
        assert_eq!(self.returning.take(), expected);
        self.inner.enqueue(e, why, now);
    }
    fn dequeue(&mut self, task: &Task) -> Option<Task> {
        self.inner.dequeue(task)
    }
    fn pick_next(&mut self, now: Nanos) -> Option<Task> {
        assert_eq!((self.current, self.returning), (None, None));
        self.current = self.inner.pick_next(now);
        self.current
    }
    fn put_prev(&mut self, prev: &Task, ran: Nanos, why: PutReason) {
        assert_eq!(self.current.take(), Some(*prev));
        self.returning = match why {
            PutReason::Preempted => Some((*prev, EnqueueReason::Preempted)),
            PutReason::Yield => Some((*prev, EnqueueReason::Yield)),
            PutReason::Block | PutReason::Exit | PutReason::Migrate => None,
        };
        self.inner.put_prev(prev, ran, why);
    }
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn tick(&mut self, current: &Task, ran: Nanos) -> bool {
        assert_eq!(self.current, Some(*current));
        self.inner.tick(current, ran)
    }
    fn wakeup_preempts(&self, current: &Task, woken: &Task) -> bool {
        self.inner.wakeup_preempts(current, woken)
    }
    fn slice(&self, current: &Task) -> Option<Nanos> {
        self.inner.slice(current)
    }
    fn steal(&mut self, wanted: impl FnMut(&Task) -> bool) -> Option<Task> {
        self.inner.steal(wanted)
    }
}

struct TaskInfo {
    handle: Task,
    state: AtomicState,
    on_cpu: Option<CpuId>,
    last_cpu: CpuId,
    allowed: CpuMask,
    /// What it waits for. Taken when it is seen.
    condition: bool,
}

/// Where a CPU is in its code. The steps between are where others can come between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Runs its current task, or its idle loop from the top.
    Run,
    /// The current task has announced to block and has not looked yet.
    Announced,
    /// In `schedule()`: the current task is put back.
    Put(PutReason),
    /// In `schedule()`: the current task is off the books, its stack still in use.
    Pick,
    /// The next task's first instructions; the stack of `prev` is left now.
    Switched {
        prev: Option<Task>,
    },
    /// The idle loop has found nothing, with interrupts off.
    IdleDecision,
    Halted,
}

struct Cpu {
    current: Option<Task>,
    phase: Phase,
    queue: Checked,
    forward_after_switch: Option<Task>,
    sleep: SleepState,
    kicks: KickWord,
    /// Somebody raised a request that no handler has taken yet.
    requested: bool,
    /// An interrupt is pending in the APIC.
    interrupt: bool,
}

impl Cpu {
    /// The handler of a pending interrupt, if any.
    fn take_interrupt(&mut self) -> Requests {
        if !core::mem::take(&mut self.interrupt) {
            return Requests::NONE;
        }
        self.requested = false;
        self.kicks.take()
    }
}

/// What a waker is in the middle of.
#[derive(Clone, Copy, Debug)]
enum Errand {
    Place { task: Task, waker: CpuId, why: EnqueueReason },
    Enqueue { task: Task, to: CpuId, why: EnqueueReason },
    Kick { to: CpuId },
}

struct Machine {
    cpus: Vec<Cpu>,
    tasks: Vec<TaskInfo>,
    errands: VecDeque<Errand>,
    online: CpuMask,
}

impl CpuView for Machine {
    fn online(&self) -> &CpuMask {
        &self.online
    }
    fn is_idle(&self, cpu: CpuId) -> bool {
        self.nr_running(cpu) == 0
    }
    fn nr_running(&self, cpu: CpuId) -> u32 {
        let cpu = &self.cpus[cpu.index()];
        cpu.queue.len() as u32 + u32::from(cpu.current.is_some())
    }
}

impl Machine {
    fn new(cpus: u32, tasks: usize) -> Self {
        let mut machine = Self {
            cpus: (0..cpus)
                .map(|_| Cpu {
                    current: None,
                    phase: Phase::Run,
                    queue: Checked { inner: RoundRobin::new(), current: None, returning: None },
                    forward_after_switch: None,
                    sleep: SleepState::new(),
                    kicks: KickWord::new(),
                    requested: false,
                    interrupt: false,
                })
                .collect(),
            tasks: (0..tasks)
                .map(|number| TaskInfo {
                    handle: Task::new(number as u32),
                    state: AtomicState::new(State::New),
                    on_cpu: None,
                    last_cpu: CpuId(0),
                    allowed: CpuMask::full(cpus),
                    condition: false,
                })
                .collect(),
            errands: VecDeque::new(),
            online: CpuMask::full(cpus),
        };
        for task in machine.handles() {
            assert_eq!(machine.apply(task, Event::Start), Action::Enqueue);
            machine.errands.push_back(Errand::Place { task, waker: CpuId(0), why: EnqueueReason::New });
        }
        machine
    }

    fn handles(&self) -> Vec<Task> {
        self.tasks.iter().map(|info| info.handle).collect()
    }

    fn apply(&self, task: Task, event: Event) -> Action {
        self.tasks[task.index()].state.apply(event).expect("a legal event")
    }

    fn wake(&mut self, task: Task, waker: CpuId) {
        self.tasks[task.index()].condition = true;
        if self.apply(task, Event::Wake) == Action::Enqueue {
            self.errands.push_back(Errand::Place { task, waker, why: EnqueueReason::Wake });
        }
    }

    /// Does one step of the `which`-th errand. The others wait: their CPUs are slow.
    fn run_errand(&mut self, which: usize) {
        let Some(errand) = which.checked_rem(self.errands.len()).and_then(|at| self.errands.remove(at)) else {
            return;
        };
        match errand {
            Errand::Place { task, waker, why } => {
                let info = &self.tasks[task.index()];
                let to = if why == EnqueueReason::New {
                    select_cpu_new(&info.allowed, waker, self)
                } else {
                    let placement = Placement { last_cpu: info.last_cpu, allowed: &info.allowed };
                    enqueue_target(info.on_cpu, &placement, waker, self)
                };
                self.errands.push_back(Errand::Enqueue { task, to, why });
            }
            Errand::Enqueue { task, to, why } => {
                self.cpus[to.index()].queue.enqueue(task, why, NOW);
                self.errands.push_back(Errand::Kick { to });
            }
            Errand::Kick { to } => {
                let cpu = &mut self.cpus[to.index()];
                if cpu.sleep.kick() {
                    cpu.interrupt = true;
                } else if cpu.current.is_some() {
                    cpu.requested = true;
                    cpu.interrupt |= cpu.kicks.raise(Requests::RESCHEDULE);
                }
            }
        }
    }

    fn forward(&mut self, task: Task, from: CpuId) {
        let info = &self.tasks[task.index()];
        let to = select_cpu(&Placement { last_cpu: info.last_cpu, allowed: &info.allowed }, from, self);
        self.errands.push_back(Errand::Enqueue { task, to, why: EnqueueReason::Migrate });
    }

    /// One step of a CPU; `choice` is what its task does, if it has one.
    fn step(&mut self, at: CpuId, choice: u8) {
        let cpu = &mut self.cpus[at.index()];
        match cpu.phase {
            Phase::Run => match cpu.current {
                Some(task) => {
                    cpu.phase = match choice % 8 {
                        0..3 => Phase::Announced,
                        3 => Phase::Put(PutReason::Yield),
                        4 => Phase::Put(PutReason::Exit),
                        5 => Phase::Put(PutReason::Preempted),
                        _ if cpu.take_interrupt().contains(Requests::RESCHEDULE) => Phase::Put(PutReason::Preempted),
                        _ => Phase::Run,
                    };
                    if cpu.phase == Phase::Announced {
                        assert_eq!(self.apply(task, Event::Block), Action::Nothing);
                    }
                }
                None => {
                    let _ = cpu.take_interrupt();
                    cpu.sleep.leave_idle();
                    cpu.phase = Phase::Pick;
                }
            },
            Phase::Announced => {
                let task = cpu.current.expect("somebody announced");
                if choice.is_multiple_of(4) {
                    cpu.phase = Phase::Put(PutReason::Preempted);
                } else if core::mem::take(&mut self.tasks[task.index()].condition) {
                    cpu.phase = Phase::Run;
                    assert_eq!(self.apply(task, Event::CancelBlock), Action::Nothing);
                } else {
                    cpu.phase = Phase::Put(PutReason::Block);
                }
            }
            Phase::Put(wanted) => {
                let task = cpu.current.expect("idle is never put");
                let event = match wanted {
                    PutReason::Preempted | PutReason::Migrate => Event::Preempt,
                    PutReason::Yield | PutReason::Block => Event::Deschedule,
                    PutReason::Exit => Event::Exit,
                };
                let action = self.apply(task, event);
                let cpu = &mut self.cpus[at.index()];
                cpu.phase = Phase::Pick;
                match (action, wanted) {
                    (Action::Enqueue, PutReason::Yield) => {
                        cpu.queue.put_prev(&task, NOW, PutReason::Yield);
                        cpu.queue.enqueue(task, EnqueueReason::Yield, NOW);
                    }
                    (Action::Enqueue, _) => {
                        cpu.queue.put_prev(&task, NOW, PutReason::Preempted);
                        cpu.queue.enqueue(task, EnqueueReason::Preempted, NOW);
                    }
                    (Action::Nothing | Action::Reap, _) => cpu.queue.put_prev(&task, NOW, wanted),
                }
            }
            Phase::Pick => self.pick(at, choice),
            Phase::Switched { prev } => {
                let forward = cpu.forward_after_switch.take();
                cpu.phase = Phase::Run;
                if let Some(prev) = prev {
                    assert_eq!(self.tasks[prev.index()].on_cpu.take(), Some(at));
                }
                if let Some(task) = forward {
                    assert_eq!(Some(task), prev, "only the task that was left can wait for the switch");
                    self.forward(task, at);
                }
            }
            Phase::IdleDecision => {
                cpu.phase = if cpu.sleep.prepare_idle() { Phase::Halted } else { Phase::Run };
            }
            Phase::Halted => {
                if cpu.interrupt {
                    cpu.phase = Phase::Run;
                }
            }
        }
    }

    fn pick(&mut self, at: CpuId, choice: u8) {
        let prev = self.cpus[at.index()].current;
        let mut next = None;
        if prev.is_none() && self.cpus[at.index()].queue.is_empty() && choice.is_multiple_of(2) {
            self.pull(at);
        }
        while let Some(task) = self.cpus[at.index()].queue.pick_next(NOW) {
            let info = &self.tasks[task.index()];
            let verdict = pick_verdict(at, &info.allowed, info.on_cpu.is_some());
            if verdict == PickVerdict::Run {
                next = Some(task);
                break;
            }
            let cpu = &mut self.cpus[at.index()];
            cpu.queue.put_prev(&task, NOW, PutReason::Migrate);
            if verdict == PickVerdict::Forward {
                self.forward(task, at);
            } else {
                assert_eq!(cpu.forward_after_switch.replace(task), None, "one place is enough");
            }
        }
        let cpu = &mut self.cpus[at.index()];
        if next.is_none() && prev.is_none() {
            cpu.phase = Phase::IdleDecision;
            return;
        }
        cpu.current = next;
        if let Some(task) = next {
            assert_eq!(self.apply(task, Event::Pick), Action::Nothing);
            let info = &mut self.tasks[task.index()];
            assert!(info.allowed.test(at), "affinity violated");
            if next == prev {
                assert_eq!(info.on_cpu, Some(at));
                self.cpus[at.index()].phase = Phase::Run;
                return;
            }
            assert_eq!(info.on_cpu, None, "task {} picked from under a CPU", task.index());
            info.on_cpu = Some(at);
            info.last_cpu = at;
        }
        self.cpus[at.index()].phase = Phase::Switched { prev };
    }

    /// An idle CPU takes work from others.
    fn pull(&mut self, at: CpuId) {
        let Self { cpus, tasks, .. } = self;
        let pulled = cpus.iter_mut().find_map(|cpu| {
            cpu.queue.steal(|task| tasks[task.index()].on_cpu.is_none() && tasks[task.index()].allowed.test(at))
        });
        if let Some(task) = pulled {
            cpus[at.index()].queue.enqueue(task, EnqueueReason::Migrate, NOW);
        }
    }

    fn check(&mut self) {
        let mut places = vec![0; self.tasks.len()];
        for (number, cpu) in self.cpus.iter_mut().enumerate() {
            let mut queued = Vec::new();
            while let Some(task) = cpu.queue.inner.pick_next(NOW) {
                queued.push(task);
            }
            for &task in &queued {
                places[task.index()] += 1;
                cpu.queue.inner.enqueue(task, EnqueueReason::Migrate, NOW);
                let on_cpu = self.tasks[task.index()].on_cpu;
                assert!(on_cpu.is_none_or(|on| on.index() == number), "queued away from the CPU on its stack");
                assert_eq!(self.tasks[task.index()].state.load(), State::Ready);
            }
            if let Some(task) = cpu.forward_after_switch {
                places[task.index()] += 1;
                assert_eq!(self.tasks[task.index()].state.load(), State::Ready);
            }
            if let (Some(task), Phase::Run | Phase::Announced | Phase::Put(_) | Phase::Switched { .. }) =
                (cpu.current, cpu.phase)
            {
                places[task.index()] += 1;
                assert!(matches!(self.tasks[task.index()].state.load(), State::Running | State::Blocking));
                assert_eq!(self.tasks[task.index()].on_cpu, Some(CpuId(number as u32)));
            }
            let kick_coming =
                self.errands.iter().any(|errand| matches!(errand, Errand::Kick { to } if to.index() == number));
            assert!(
                cpu.phase != Phase::Halted || queued.is_empty() || cpu.interrupt || kick_coming,
                "CPU {number} sleeps beside its work"
            );
            assert!(!cpu.requested || cpu.interrupt, "CPU {number} never hears of a request");
        }
        for errand in &self.errands {
            if let Errand::Place { task, .. } | Errand::Enqueue { task, .. } = errand {
                places[task.index()] += 1;
            }
        }
        for (number, (info, &places)) in self.tasks.iter().zip(&places).enumerate() {
            let off_the_books = matches!(info.state.load(), State::Blocked | State::Dead);
            assert_eq!(places + u32::from(off_the_books), 1, "task {number}, {:?}", info.state.load());
        }
    }

    /// Lets every task come to its end, in turns. Panics if one doesn't.
    fn drain(&mut self) {
        const EXIT: u8 = 4;
        for task in self.handles() {
            self.wake(task, CpuId(0));
        }
        for _ in 0..100 * (self.tasks.len() + self.cpus.len()) {
            self.run_errand(0);
            for cpu in self.online.clone().iter() {
                // A task that looks must look before it can end; an odd choice pulls nothing, so that only kicks help.
                let choice = if self.cpus[cpu.index()].phase == Phase::Run { EXIT } else { 1 };
                self.step(cpu, choice);
            }
            self.check();
        }
        for (number, info) in self.tasks.iter().enumerate() {
            assert_eq!(info.state.load(), State::Dead, "task {number} was lost");
            assert_eq!(info.on_cpu, None, "task {number} was never left");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Cpu(u32, u8),
    Errand(usize),
    Wake(usize, u32),
    Affinity(usize, Vec<u32>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => (any::<u32>(), any::<u8>()).prop_map(|(cpu, choice)| Step::Cpu(cpu, choice)),
        6 => any::<usize>().prop_map(Step::Errand),
        3 => (any::<usize>(), any::<u32>()).prop_map(|(task, waker)| Step::Wake(task, waker)),
        1 => (any::<usize>(), prop::collection::vec(any::<u32>(), 1..3)).prop_map(|(task, cpus)| Step::Affinity(task, cpus)),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    #[test]
    fn every_task_is_in_one_place_and_gets_to_its_end(cpus in 1..5u32, tasks in 1..7usize, steps in steps()) {
        let mut machine = Machine::new(cpus, tasks);
        machine.check();
        for step in steps {
            match step {
                Step::Cpu(cpu, choice) => machine.step(CpuId(cpu % cpus), choice),
                Step::Errand(which) => machine.run_errand(which),
                Step::Wake(task, waker) => machine.wake(machine.tasks[task % tasks].handle, CpuId(waker % cpus)),
                Step::Affinity(task, allowed) => {
                    machine.tasks[task % tasks].allowed = allowed.iter().map(|cpu| CpuId(cpu % cpus)).collect();
                }
            }
            machine.check();
        }
        machine.drain();
    }
}
