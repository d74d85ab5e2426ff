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
//! an interrupt did. It does so with its run queue locked, see [`policy`](crate::policy).
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
    pub const ALL: [Self; 6] = [Self::New, Self::Ready, Self::Running, Self::Blocking, Self::Blocked, Self::Dead];

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

    /// The state that it mostly finds.
    const fn usual(self) -> State {
        match self {
            Self::Start => State::New,
            Self::Pick => State::Ready,
            Self::Block | Self::Deschedule | Self::Preempt | Self::Exit => State::Running,
            Self::CancelBlock => State::Blocking,
            Self::Wake => State::Blocked,
        }
    }
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
        write!(f, "event {:?} can't happen to a task that is {:?}", self.event, self.from)
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
    #[inline(always)]
    pub fn apply(&self, event: Event) -> Result<Action, BadTransition> {
        match self.apply_if(event.usual(), event) {
            Some(action) => Ok(action),
            None => self.apply_to_any(event),
        }
    }

    /// [`apply`](Self::apply), but only if the state is `from`: one exchange of two constants, without a look before. `None`: it is
    /// another one, or the event can't happen to that one, and nothing has changed.
    #[inline(always)]
    pub fn apply_if(&self, from: State, event: Event) -> Option<Action> {
        let (new, action) = from.on(event).ok()?;
        // The orderings of `apply`.
        let done = self.0.compare_exchange(from as u8, new as u8, Ordering::AcqRel, Ordering::Relaxed);
        done.is_ok().then_some(action)
    }

    #[cold]
    #[inline(never)]
    fn apply_to_any(&self, event: Event) -> Result<Action, BadTransition> {
        let mut old = self.0.load(Ordering::Relaxed);
        loop {
            let (new, action) = Self::decode(old).on(event)?;
            match self.0.compare_exchange_weak(old, new as u8, Ordering::AcqRel, Ordering::Relaxed) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::{format, println};

    /// The table as a reader would draw it; `.` is refused, `+` enqueue, `x` reap.
    const TABLE: &str = "
            New       Ready     Running   Blocking  Blocked   Dead
Start       Ready+    .         .         .         .         .
Pick        .         Running   .         .         .         .
Block       .         .         Blocking  .         .         .
CancelBlock .         .         Running   Running   .         .
Wake        New       Ready     Running   Running   Ready+    Dead
Deschedule  .         .         Ready+    Blocked   .         .
Preempt     .         .         Ready+    Ready+    .         .
Exit        .         .         Deadx     .         .         .
";

    #[test]
    fn the_table_is_what_the_reader_expects() {
        let mut drawn = format!("\n{:12}", "");
        for state in State::ALL {
            drawn += &format!("{:10}", format!("{state:?}"));
        }
        for event in Event::ALL {
            drawn += &format!("\n{:12}", format!("{event:?}"));
            for from in State::ALL {
                let cell = match from.on(event) {
                    Ok((to, Action::Nothing)) => format!("{to:?}"),
                    Ok((to, Action::Enqueue)) => format!("{to:?}+"),
                    Ok((to, Action::Reap)) => format!("{to:?}x"),
                    Err(refused) => {
                        assert_eq!(refused, BadTransition { from, event });
                        ".".to_string()
                    }
                };
                drawn += &format!("{cell:10}");
            }
        }
        let trimmed: String = drawn.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        println!("{trimmed}");
        assert_eq!(trimmed, TABLE);
    }

    #[test]
    fn a_task_is_enqueued_exactly_when_it_becomes_ready() {
        for from in State::ALL {
            for event in Event::ALL {
                if let Ok((to, action)) = from.on(event) {
                    assert_eq!(
                        to == State::Ready && from != State::Ready,
                        action == Action::Enqueue,
                        "{from:?} {event:?}"
                    );
                    assert_eq!(to == State::Dead && from != State::Dead, action == Action::Reap, "{from:?} {event:?}");
                }
            }
        }
    }

    #[test]
    fn a_wake_up_is_never_refused_and_hides_no_owner_event() {
        for from in State::ALL {
            let (woken, _) = from.on(Event::Wake).expect("always legal");
            // What the owner may do it may still do after a wake-up that it has not seen. `Blocked` has no owner.
            for event in Event::ALL {
                if from.on(event).is_ok() && event != Event::Wake {
                    assert!(woken.on(event).is_ok(), "{event:?} after a Wake on {from:?}");
                }
            }
        }
    }

    #[test]
    fn numbers_are_states_and_back() {
        for number in 0..=u8::MAX {
            match State::from_u8(number) {
                Some(state) => assert_eq!(state as u8, number),
                None => assert!(usize::from(number) >= State::ALL.len()),
            }
        }
    }

    #[cfg(not(loom))]
    #[test]
    fn the_atomic_follows_the_table() {
        for from in State::ALL {
            for event in Event::ALL {
                let state = AtomicState::new(from);
                match from.on(event) {
                    Ok((to, action)) => {
                        assert_eq!(state.apply(event), Ok(action));
                        assert_eq!(state.load(), to);
                    }
                    Err(refused) => {
                        assert_eq!(state.apply(event), Err(refused));
                        assert_eq!(state.load(), from);
                    }
                }
            }
        }
    }

    #[cfg(not(loom))]
    #[test]
    fn a_condition_on_the_state_is_kept() {
        for (from, event) in State::ALL.into_iter().flat_map(|from| Event::ALL.map(|event| (from, event))) {
            for there in State::ALL {
                let state = AtomicState::new(there);
                let expected = from.on(event).ok().filter(|_| from == there);
                assert_eq!(
                    state.apply_if(from, event),
                    expected.map(|(_, action)| action),
                    "{there:?}: {from:?} {event:?}"
                );
                assert_eq!(state.load(), expected.map_or(there, |(to, _)| to));
            }
        }
    }

    #[test]
    fn a_refusal_says_what_and_where() {
        let refused = State::Blocked.on(Event::Pick).expect_err("not runnable");
        assert_eq!(refused.to_string(), "event Pick can't happen to a task that is Blocked");
    }
}

/// A task on CPU 0 waits for a condition; CPU 1 makes it true and wakes the task.
#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Mutex;
    use loom::sync::atomic::{AtomicBool, AtomicU32};
    use loom::thread;
    // Loom's threads are coroutines of one thread. Its own Arc adds orderings, and aborts where a model is to fail.
    use std::rc::Rc;

    const NO_CPU: u32 = u32::MAX;

    struct Machine {
        state: AtomicState,
        condition: AtomicBool,
        on_cpu: AtomicU32,
        /// Loom reports two CPUs that touch it at the same time, or in no order.
        stack: UnsafeCell<u32>,
        /// How often the task is in each CPU's queue.
        queues: [Mutex<u32>; 2],
    }

    impl Machine {
        /// CPU 0 runs the task.
        fn new() -> Rc<Self> {
            Rc::new(Self {
                state: AtomicState::new(State::Running),
                condition: AtomicBool::new(false),
                on_cpu: AtomicU32::new(0),
                stack: UnsafeCell::new(0),
                queues: [Mutex::new(0), Mutex::new(0)],
            })
        }

        fn apply(&self, event: Event) -> Action {
            self.state.apply(event).expect("a legal event")
        }

        fn use_stack(&self) {
            self.stack.with_mut(|_| ());
        }

        fn enqueue(&self, cpu: usize) {
            let mut queue = self.queues[cpu].lock().unwrap();
            *queue += 1;
            assert_eq!(*queue, 1, "enqueued twice");
        }

        fn pick(&self, cpu: usize) -> bool {
            let mut queue = self.queues[cpu].lock().unwrap();
            let found = *queue == 1;
            *queue = 0;
            if found {
                assert_eq!(self.apply(Event::Pick), Action::Nothing);
            }
            found
        }

        /// Runs the task, which `cpu` has picked, until its wait is over (true) or it has left the CPU (false).
        /// `preempt` says whether an interrupt comes between its announcement and its last look, the first time.
        fn run(&self, cpu: usize, mut preempt: bool) -> bool {
            loop {
                self.use_stack();
                assert_eq!(self.apply(Event::Block), Action::Nothing);
                let leave = if core::mem::take(&mut preempt) {
                    Event::Preempt
                } else if self.condition.load(Ordering::Relaxed) {
                    assert_eq!(self.apply(Event::CancelBlock), Action::Nothing);
                    assert_eq!(self.apply(Event::Exit), Action::Reap);
                    return true;
                } else {
                    Event::Deschedule
                };
                // schedule()
                if self.apply(leave) == Action::Enqueue {
                    self.enqueue(cpu);
                }
                if self.pick(cpu) {
                    continue; // it picked itself: nothing to switch
                }
                self.use_stack(); // saves its registers there
                self.on_cpu.store(NO_CPU, Ordering::Release);
                return false;
            }
        }

        /// `cpu` looks into its queue once and runs what is there. True if the task's wait is over.
        fn look(&self, cpu: usize) -> bool {
            if !self.pick(cpu) {
                return false;
            }
            assert_eq!(self.on_cpu.swap(cpu as u32, Ordering::Relaxed), NO_CPU, "picked from under a CPU");
            self.run(cpu, false)
        }

        /// Makes the condition true and wakes the task. `rule` is followed, or broken.
        fn wake(&self, rule: bool) {
            self.condition.store(true, Ordering::Relaxed);
            if self.apply(Event::Wake) == Action::Enqueue {
                let stack_on = self.on_cpu.load(Ordering::Acquire);
                self.enqueue(if rule && stack_on != NO_CPU { stack_on as usize } else { 1 });
            }
        }
    }

    fn wait_and_wake(preempt: bool) {
        loom::model(move || {
            let machine = Machine::new();
            let cpu1 = thread::spawn({
                let machine = machine.clone();
                move || {
                    machine.wake(true);
                    machine.look(1)
                }
            });
            let mut ended = u32::from(machine.run(0, preempt));
            ended += u32::from(machine.look(0));
            ended += u32::from(cpu1.join().unwrap());
            // Who looked too early looks again; that it does so is `cpu::sleep`'s promise.
            ended += u32::from(machine.look(0));
            assert_eq!(ended, 1, "the wake-up was lost");
            assert_eq!(machine.state.load(), State::Dead);
        });
    }

    #[test]
    fn loom_a_wake_up_is_not_lost_and_the_stack_has_one_user() {
        wait_and_wake(false);
    }

    #[test]
    fn loom_a_preemption_before_the_last_look_loses_nothing() {
        wait_and_wake(true);
    }

    #[test]
    fn loom_of_two_wakers_one_enqueues() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3); // all of it takes minutes
        model.check(|| {
            let machine = Machine::new();
            let wakers = [(); 2].map(|()| {
                let machine = machine.clone();
                thread::spawn(move || machine.wake(true))
            });
            let mut ended = u32::from(machine.run(0, false));
            for waker in wakers {
                waker.join().unwrap();
            }
            ended += u32::from(machine.look(0)) + u32::from(machine.look(1));
            assert_eq!(ended, 1);
        });
    }

    /// The model must be able to fail: without the hand-off rule two CPUs meet on one stack.
    #[test]
    #[should_panic = "Concurrent write accesses"]
    fn loom_sees_two_cpus_on_one_stack() {
        loom::model(|| {
            let machine = Machine::new();
            let cpu1 = thread::spawn({
                let machine = machine.clone();
                move || {
                    machine.wake(false);
                    machine.look(1)
                }
            });
            machine.run(0, false);
            cpu1.join().unwrap();
        });
    }
}
