//! The life of a task: a pure transition table ([`State::on`]) and the atomic that wears it ([`AtomicState`]).
//!
//! Anyone who holds a reference to a task may send it [`Event::Wake`]; all other events belong to the CPU that owns
//! the task at that moment (its creator, the CPU that picks it, the CPU that runs it). The invariant: whoever's event
//! returns [`Action::Enqueue`] queues the task, exactly once, and nobody else does.
//!
//! ```text
//!          Start           Pick            Block
//!   New ----------> Ready -------> Running ------> Blocking --+
//!                   ^  ^             | | ^            |  |    |
//!                   |  +-------------+ | +------------+  |    | Deschedule
//!                   |    Deschedule,   |  Wake,          |    |
//!                   |    Preempt       |  CancelBlock    |    v
//!                   |                  | Exit            |  Blocked
//!                   +------------------|-----------------+    |
//!                   |                  v      Preempt         |
//!                   |                 Dead                    |
//!                   +-----------------------------------------+
//!                                   Wake
//! ```
//!
//! # Blocking without losing a wake-up
//! A task that wants to wait announces it *before* it looks at its condition for the last time:
//!
//! ```text
//! loop {
//!     state.apply(Block);                  // Running -> Blocking
//!     if condition() {
//!         state.apply(CancelBlock);        // also fine if a waker was faster: Running stays Running
//!         break;
//!     }
//!     schedule();                          // applies Deschedule
//! }
//! ```
//!
//! while a waker makes the condition true and *then* sends [`Event::Wake`]. Wrong would be: the task reads "not yet"
//! and blocks, and the waker finds it running and does nothing. It can't be: both sides change the one word of the
//! state, so one is first.
//! - `Block` first: `Wake` finds `Blocking` and makes it `Running` again (the task has not left its CPU and simply
//!   carries on; its `Deschedule` then means a preemption), or finds `Blocked`, makes it `Ready` and enqueues it.
//! - `Wake` first: `Block` reads the word that `Wake` wrote, so it also sees the condition that was set before. This
//!   is why [`AtomicState::apply`] writes the word even where the table leads back to the same state.
//!
//! A task that is *preempted* between `Block` and its last look must not become `Blocked`: it may not even be on
//! the wait list yet, and nobody would wake it. [`Event::Preempt`] therefore makes `Blocking` `Ready`; the task runs
//! again, and its loop looks again. So `schedule()` applies `Deschedule` when the task called it, and `Preempt` when
//! an interrupt did.
//!
//! # Leaving a CPU: `on_cpu`
//! A task becomes `Blocked` or `Ready` while its CPU still stands on its stack. The kernel keeps that fact apart from
//! the state, in a word `on_cpu`: set by the CPU that picks the task before it switches to it, cleared (with release
//! ordering) by the next task's first instructions on that CPU, after stack and page table were left. A waker that wins
//! `Blocked -> Ready` reads `on_cpu` *after* that (with acquire ordering):
//! - clear: the stack is free, the task goes to any CPU of its affinity, see
//!   [`placement::select_cpu`](crate::placement::select_cpu);
//! - set to CPU c: the task is enqueued on c's own run queue. Nobody spins (two CPUs that spin on each other's `on_cpu`
//!   with interrupts off never end), because c can't misuse it: a CPU picks only for itself, and it switches to what it
//!   picked only when the switch before is over. The one pick that can meet the task while it is still on its stack is
//!   the one inside the very `schedule()` that leaves it, and then picking it means not to switch at all.
//!
//! [`placement::enqueue_target`](crate::placement::enqueue_target) and
//! [`placement::pick_verdict`](crate::placement::pick_verdict) are the two halves of this rule, affinity included. A CPU
//! that takes work from another's queue ([`Policy::steal`](crate::policy::Policy::steal)) must leave tasks alone whose
//! `on_cpu` is set.
//!
//! A dead task is reaped by the same rule: the CPU that got [`Action::Reap`] still stands on the stack it wants freed, so
//! its successor on that CPU frees it, after it has cleared `on_cpu`.

use core::fmt;

use crate::sync::{AtomicU8, Ordering, const_new};

/// Where a task is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum State {
    /// Being built; in no queue. Owned by its creator.
    New = 0,
    /// In exactly one run queue (or in the hands of the one who is about to put it there). Owned by that queue's CPU.
    Ready = 1,
    /// Chosen by a CPU, and owned by it.
    Running = 2,
    /// Running, and has announced that it wants to wait.
    Blocking = 3,
    /// Off the run queues until somebody wakes it. Owned by whoever wins [`Event::Wake`].
    Blocked = 4,
    /// Will never run again. Owned by the CPU that reaps it.
    Dead = 5,
}

impl State {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::New,
        Self::Ready,
        Self::Running,
        Self::Blocking,
        Self::Blocked,
        Self::Dead,
    ];

    /// From the number that [`AtomicState`] holds; `None` for one that is no state.
    #[inline]
    pub const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::New,
            1 => Self::Ready,
            2 => Self::Running,
            3 => Self::Blocking,
            4 => Self::Blocked,
            5 => Self::Dead,
            _ => return None,
        })
    }
}

/// What happens to a task.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// Its creator is done with it.
    Start,
    /// A CPU took it from its queue to run it.
    Pick,
    /// The task announces that it will wait, and looks at its condition once more.
    Block,
    /// The task found its condition true after it announced to wait.
    CancelBlock,
    /// What it may be waiting for has happened. Always legal, and a surplus one costs nothing.
    Wake,
    /// The task called `schedule()`, to wait or to yield.
    Deschedule,
    /// An interrupt takes the CPU from the task, wherever it is in its code.
    Preempt,
    /// The task has ended.
    Exit,
}

impl Event {
    /// All events.
    pub const ALL: [Self; 8] = [
        Self::Start,
        Self::Pick,
        Self::Block,
        Self::CancelBlock,
        Self::Wake,
        Self::Deschedule,
        Self::Preempt,
        Self::Exit,
    ];
}

/// What the sender of an event must do. Decided by the table, carried out by the caller.
#[must_use = "the table decides what must be done, and only the caller can do it"]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Nothing; after [`Event::Deschedule`] the CPU just drops the task, after [`Event::Wake`] somebody else cares.
    Nothing,
    /// Put it in a run queue: the caller's own after `Deschedule` and `Preempt`, the chosen one after `Start` and `Wake`
    /// ([`placement`](crate::placement)). If that is another CPU's, kick it.
    Enqueue,
    /// Free it, once its stack is left.
    Reap,
}

/// An event that can't happen in this state: a bug of the caller. The state is unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadTransition {
    /// The state that the event found.
    pub from: State,
    /// The event that was refused.
    pub event: Event,
}

impl fmt::Display for BadTransition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "event {:?} can't happen to a task that is {:?}",
            self.event, self.from
        )
    }
}

impl core::error::Error for BadTransition {}

impl State {
    /// The whole life of a task, one line per edge.
    ///
    /// # Errors
    /// An impossible edge is refused, never a panic.
    #[inline]
    pub const fn on(self, event: Event) -> Result<(State, Action), BadTransition> {
        use {Action::*, Event::*, State::*};
        Ok(match (self, event) {
            (New, Start) => (Ready, Enqueue),
            (Ready, Pick) => (Running, Nothing),

            (Running, Block) => (Blocking, Nothing),
            (Blocking, CancelBlock) => (Running, Nothing),
            (Running, CancelBlock) => (Running, Nothing), // a waker did it already

            (Blocked, Wake) => (Ready, Enqueue),
            (Blocking, Wake) => (Running, Nothing), // still on its CPU: it carries on there
            (New | Ready | Running, Wake) => (self, Nothing), // will look at its condition anyway
            (Dead, Wake) => (Dead, Nothing),        // a wake-up that lost the race with the end

            (Blocking, Deschedule) => (Blocked, Nothing),
            (Running, Deschedule) => (Ready, Enqueue), // yields, or was woken just before it left

            (Running, Preempt) => (Ready, Enqueue),
            (Blocking, Preempt) => (Ready, Enqueue), // has not looked yet: must run to look

            (Running, Exit) => (Dead, Reap),

            (from, event) => return Err(BadTransition { from, event }),
        })
    }
}

/// A [`State`] that many CPUs change: a thin coat over [`State::on`].
#[derive(Debug)]
#[repr(transparent)]
pub struct AtomicState(AtomicU8);

impl AtomicState {
    const_new! {
        /// A task starts as [`State::New`]; one that is there from the beginning (a CPU's idle task) as
        /// [`State::Running`].
        pub const fn new(state: State) -> Self {
            Self(AtomicU8::new(state as u8))
        }
    }

    /// The state at some moment: for reports and hints. A decision belongs into [`AtomicState::apply`].
    ///
    /// Acquire: whoever sees a state also sees what its sender did before.
    #[inline]
    pub fn load(&self) -> State {
        Self::decode(self.0.load(Ordering::Acquire))
    }

    /// Changes the state as the table says and returns what the caller must do.
    ///
    /// The word is written even where the state stays the same, see the module's text. Acquire and release on success:
    /// release, so that whoever changes the state next sees all that this caller did before (a condition set before
    /// `Wake`, a stack saved before `Deschedule`); acquire, so that this caller sees the same of the one before.
    /// Relaxed for the first look and for a failed exchange, which decide nothing but what to try next. A refusal can
    /// rest on such a look alone: the events that can be refused belong to the task's owner, who sees its own last
    /// change or a later one, and the only later one is `Wake`, which no owner's event is refused for.
    ///
    /// # Errors
    /// [`BadTransition`] if the event can't happen now; nothing has changed then.
    #[inline]
    pub fn apply(&self, event: Event) -> Result<Action, BadTransition> {
        let mut old = self.0.load(Ordering::Relaxed);
        loop {
            let (new, action) = Self::decode(old).on(event)?;
            match self
                .0
                .compare_exchange_weak(old, new as u8, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return Ok(action),
                Err(now) => old = now,
            }
        }
    }

    /// Only `new` and `apply` write the word, and only states; `Dead` is the safe reading of what can't be there.
    #[inline]
    const fn decode(word: u8) -> State {
        match State::from_u8(word) {
            Some(state) => state,
            None => State::Dead,
        }
    }
}
