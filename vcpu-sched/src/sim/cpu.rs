//! One simulated CPU: what it is doing and what will interrupt it.
//!
//! Used by the machine alone. The invariant: only the CPU itself arms its timer, as on real hardware; whatever another CPU
//! wants of it travels as an interrupt ([`Cpu::interrupt_at`]).

use alloc::collections::VecDeque;

use super::task::TaskRef;
use crate::cpu::kick::KickWord;
use crate::cpu::sleep::SleepState;
use crate::ids::{CpuId, Nanos, TaskId};
use crate::runqueue::{PolicyKind, RunQueue};
use crate::timer::TimerQueue;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Cpu {
    pub(super) id: CpuId,
    pub(super) queue: RunQueue<TaskRef>,
    /// `None`: the idle task.
    pub(super) current: Option<TaskRef>,
    pub(super) phase: Phase,
    pub(super) picked_at: Nanos,
    pub(super) need_resched: bool,
    pub(super) sleep: SleepState,
    pub(super) kicks: KickWord,
    /// When an interrupt that another CPU sent arrives.
    pub(super) interrupt_at: Option<Nanos>,
    /// What the world outside wants done here, by an interrupt that is pending.
    pub(super) errands: VecDeque<Errand>,
    /// Sleepers that this CPU will wake.
    pub(super) timers: TimerQueue<TaskId>,
    /// What the timer is armed for on behalf of the scheduler.
    pub(super) tick_at: Option<Nanos>,
    /// When the current task's work is done, if nothing comes between.
    pub(super) burst_end: Option<Nanos>,
    /// The task that was left must go to another CPU.
    pub(super) forward: bool,
    /// How many tasks its queue had when the machine was told last.
    pub(super) published: u32,
    pub(super) figures: CpuFigures,
}

/// What a CPU is doing.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// Runs its current task, interrupts on.
    Run,
    /// In the idle loop, about to look for a reason not to halt.
    Idle,
    /// Halted.
    Halted,
    /// An interrupt has ended the halt; the first instruction comes then.
    Waking(Nanos),
    /// Between two tasks, with interrupts off, until then.
    Switching(Nanos, Option<TaskRef>),
}

/// Something that an interrupt handler is to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Errand {
    /// A task of this group comes.
    Arrival(usize),
    /// That intervention of the script.
    Intervention(usize),
}

/// What a CPU did with its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuFigures {
    /// Time with a current task that isn't the idle task.
    pub busy: Nanos,
    /// Switches from one task to another, the idle task included.
    pub switches: u64,
    /// Interrupts from other CPUs.
    pub interrupts: u64,
    /// Timer interrupts.
    pub ticks: u64,
    /// Times that it halted.
    pub halts: u64,
    /// Tasks that it took from other CPUs.
    pub pulled: u64,
    /// Most tasks that were queued here.
    pub longest_queue: u32,
}

impl Cpu {
    pub(super) fn new(id: CpuId, kind: PolicyKind) -> Self {
        Self {
            id,
            queue: RunQueue::new(id, kind),
            current: None,
            phase: Phase::Idle,
            picked_at: Nanos::ZERO,
            need_resched: false,
            sleep: SleepState::new(),
            kicks: KickWord::new(),
            interrupt_at: None,
            errands: VecDeque::new(),
            timers: TimerQueue::new(),
            tick_at: None,
            burst_end: None,
            forward: false,
            published: 0,
            figures: CpuFigures::default(),
        }
    }

    /// Tasks that run and wait here.
    pub(super) fn nr_running(&self) -> u32 {
        self.queue.len() as u32 + u32::from(self.current.is_some())
    }

    /// When the timer fires.
    pub(super) fn timer_at(&self) -> Option<Nanos> {
        [self.tick_at, self.timers.next_deadline(), self.queue.next_event()].into_iter().flatten().min()
    }

    /// When something happens here by itself; [`Nanos::MAX`]: never.
    pub(super) fn next_moment(&self, now: Nanos) -> Nanos {
        let interrupt = || {
            let errand = (!self.errands.is_empty()).then_some(now);
            [errand, self.interrupt_at, self.timer_at()].into_iter().flatten().min()
        };
        let when = match self.phase {
            Phase::Switching(until, _) | Phase::Waking(until) => Some(until),
            Phase::Halted => interrupt(),
            Phase::Idle => Some(now),
            Phase::Run => [interrupt(), self.burst_end].into_iter().flatten().min(),
        };
        when.unwrap_or(Nanos::MAX)
    }

    /// Is an interrupt pending?
    pub(super) fn interrupted(&self, now: Nanos) -> bool {
        !self.errands.is_empty()
            || self.interrupt_at.is_some_and(|at| at <= now)
            || self.timer_at().is_some_and(|at| at <= now)
    }
}
