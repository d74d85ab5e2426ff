//! The life of a future's task: a pure transition table ([`State::on`]) and the atomic that wears it ([`AtomicState`]).
//!
//! Not to be mixed up with [`task::state`](crate::task::state), the life of a thread with a stack. The invariant:
//! whoever's event returns [`Action::Enqueue`] queues the task, exactly once; whoever's event made it `RUNNING` owns
//! its future until it says [`Event::Pending`] or [`Event::Finish`].
//!
//! ```text
//!             Wake              Poll                 Finish
//!   BLOCKED ---------> READY ---------> RUNNING ------------> DEAD
//!      ^                 ^               |   |                  ^
//!      |                 |       Pending |   | Wake             |
//!      +-----------------|---------------+   v                  |
//!                        +---------- READY|RUNNING -------------+
//!                           Pending               Finish
//! ```
//! Unlike a thread, a task that waits has no stack that a CPU could still stand on: `RUNNING` is left after `poll` has
//! returned, so `READY` alone means that any CPU may poll it.
//!
//! Three more bits ride in the word, so that what they are weighed against can't change beside them:
//! - `CANCEL`: the future is to be dropped where it would be polled next. It is dropped by an executor, never by
//!   whoever cancels, who may stand in an interrupt.
//! - `JOIN`: a [`JoinHandle`](super::JoinHandle) exists, and the output is its.
//! - `WAITER`: the handle has left its waker in the task. Without the bit the waker's place is the handle's, with it
//!   nobody's; [`Event::Finish`] takes the bit, and with it the waker.

use core::fmt;

use crate::sync::{AtomicU32, Ordering, const_new};

/// The bits of a task's word.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct State(u32);

/// What happens to a task.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// What it may wait for has happened. Anyone's, always legal, and harmless when surplus.
    Wake,
    /// It shall end. Anyone's, always legal.
    Cancel,
    /// An executor took it from a queue.
    Poll,
    /// `poll` returned without a result. The executor's.
    Pending,
    /// The future is gone, its output, if there is one, is in place. The executor's.
    Finish,
    /// The handle has put a waker into its place. The handle's.
    Deposit,
    /// The handle wants the place of its waker back. The handle's.
    Withdraw,
    /// The handle goes. The handle's.
    Release,
}

/// What the sender of an event must do. Decided by the table, carried out by the caller.
#[must_use = "the table decides what must be done, and only the caller can do it"]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Put it into a queue.
    Enqueue,
    /// Poll the future, which is the caller's now.
    Poll,
    /// Drop the future, which is the caller's now, and send [`Event::Finish`].
    DropFuture,
    /// Leave the output to the handle.
    Publish,
    /// Leave the output to the handle and wake it: the waker is the caller's.
    PublishAndWake,
    /// Nobody wants the output: drop it.
    DropOutput,
    /// The output is the caller's.
    TakeOutput,
    /// The waker that was deposited is the caller's.
    TakeWaker,
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
    /// Waits for a wake-up; in no queue.
    pub const BLOCKED: Self = Self(0);
    /// In a queue, or in the hands of the one who is about to put it there.
    pub const READY: Self = Self(1);
    /// Being polled.
    pub const RUNNING: Self = Self(2);
    /// Being polled, and was woken since the poll began.
    pub const WOKEN: Self = Self(1 | 2);
    /// Its future is gone.
    pub const DEAD: Self = Self(1 << 31);

    const LIFE: u32 = Self::WOKEN.0 | Self::DEAD.0;
    const CANCEL: u32 = 4;
    const JOIN: u32 = 8;
    const WAITER: u32 = 16;

    /// A new task: on its way into a queue, with a handle.
    pub const SPAWNED: Self = Self(Self::READY.0 | Self::JOIN);

    /// Without the bits about cancelling and joining.
    #[inline]
    pub const fn life(self) -> Self {
        Self(self.0 & Self::LIFE)
    }

    /// Shall its future be dropped instead of polled?
    #[inline]
    pub const fn is_cancelled(self) -> bool {
        self.0 & Self::CANCEL != 0
    }

    /// Has it ended?
    #[inline]
    pub const fn is_dead(self) -> bool {
        self.0 & Self::DEAD.0 != 0
    }

    const fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    /// The same bits beside another life.
    const fn become_(self, life: Self) -> Self {
        Self(self.0 & !Self::LIFE | life.0)
    }

    const fn with(self, bit: u32) -> Self {
        Self(self.0 | bit)
    }

    const fn without(self, bits: u32) -> Self {
        Self(self.0 & !bits)
    }

    /// The whole life of a task, one line per edge.
    ///
    /// # Errors
    /// An impossible edge is refused, never a panic.
    #[inline(always)]
    pub const fn on(self, event: Event) -> Result<(Self, Action), BadTransition> {
        use Action::*;
        let life = self.life();
        Ok(match (life, event) {
            (Self::BLOCKED, Event::Wake) => (self.become_(Self::READY), Enqueue),
            (Self::RUNNING, Event::Wake) => (self.become_(Self::WOKEN), Nothing), // its poller will queue it
            (_, Event::Wake) => (self, Nothing), // will be polled anyway, or never again

            (Self::DEAD, Event::Cancel) => (self, Nothing),
            (Self::BLOCKED, Event::Cancel) => (self.become_(Self::READY).with(Self::CANCEL), Enqueue),
            (Self::RUNNING, Event::Cancel) => (self.become_(Self::WOKEN).with(Self::CANCEL), Nothing),
            (_, Event::Cancel) => (self.with(Self::CANCEL), Nothing),

            (Self::READY, Event::Poll) if self.is_cancelled() => (self.become_(Self::RUNNING), DropFuture),
            (Self::READY, Event::Poll) => (self.become_(Self::RUNNING), Poll),

            (Self::WOKEN, Event::Pending) if self.is_cancelled() => (self.become_(Self::RUNNING), DropFuture),
            (Self::RUNNING, Event::Pending) => (self.become_(Self::BLOCKED), Nothing),
            (Self::WOKEN, Event::Pending) => (self.become_(Self::READY), Enqueue), // woken while it looked

            (Self::RUNNING | Self::WOKEN, Event::Finish) => {
                let action = match (self.has(Self::JOIN), self.has(Self::WAITER)) {
                    (false, _) => DropOutput,
                    (true, false) => Publish,
                    (true, true) => PublishAndWake,
                };
                (self.become_(Self::DEAD).without(Self::WAITER), action)
            }

            // A handle sends nothing after `Release`, and deposits only into the place that it has.
            (_, Event::Deposit | Event::Withdraw | Event::Release) if !self.has(Self::JOIN) => {
                return Err(BadTransition { from: self, event });
            }
            (Self::DEAD, Event::Deposit | Event::Withdraw) => (self, TakeOutput),
            (_, Event::Deposit) if !self.has(Self::WAITER) => (self.with(Self::WAITER), Nothing),
            (_, Event::Withdraw) if self.has(Self::WAITER) => (self.without(Self::WAITER), Nothing),
            (Self::DEAD, Event::Release) => (self.without(Self::JOIN), TakeOutput),
            (_, Event::Release) if self.has(Self::WAITER) => (self.without(Self::JOIN | Self::WAITER), TakeWaker),
            (_, Event::Release) => (self.without(Self::JOIN), Nothing),

            (_, event) => return Err(BadTransition { from: self, event }),
        })
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.life() {
            Self::BLOCKED => "BLOCKED",
            Self::READY => "READY",
            Self::RUNNING => "RUNNING",
            Self::WOKEN => "READY|RUNNING",
            _ => "DEAD",
        })?;
        for (bit, name) in [(Self::CANCEL, "CANCEL"), (Self::JOIN, "JOIN"), (Self::WAITER, "WAITER")] {
            if self.has(bit) {
                write!(f, "+{name}")?;
            }
        }
        Ok(())
    }
}

/// A [`State`] that many CPUs change: a thin coat over [`State::on`].
#[derive(Debug)]
#[repr(transparent)]
pub struct AtomicState(AtomicU32);

impl AtomicState {
    const_new! {
        /// The state that the task begins with.
        pub const fn new(state: State) -> Self {
            Self(AtomicU32::new(state.0))
        }
    }

    /// The state at some moment. Acquire: who sees a task dead also sees its output.
    #[inline]
    pub fn load(&self) -> State {
        State(self.0.load(Ordering::Acquire))
    }

    /// Changes the state as the table says and returns what the caller must do.
    ///
    /// The word is written even where it stays the same: a `Wake` that finds the task queued must be seen by the `Poll`
    /// that follows, together with what the waker did before. Only a dead task's is not, since nobody looks again.
    /// Acquire and release on success: release, so that whoever changes the word next sees what this caller did before
    /// (a condition before `Wake`, the future's own memory before `Pending`, the output before `Finish`, the waker
    /// before `Deposit`); acquire, so that this caller sees the same of the one before. Relaxed for the first look and
    /// for a failed exchange, which decide nothing but what to try next; a refused event was its sender's mistake.
    ///
    /// # Errors
    /// [`BadTransition`] if the event can't happen now; nothing has changed then.
    #[inline(always)]
    pub fn apply(&self, event: Event) -> Result<Action, BadTransition> {
        let mut old = self.0.load(Ordering::Relaxed);
        loop {
            let (new, action) = State(old).on(event)?;
            match self.0.compare_exchange_weak(old, new.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(action),
                Err(now) => old = now,
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec::Vec;
    use std::{format, println};

    const EVENTS: [Event; 8] = [
        Event::Wake,
        Event::Cancel,
        Event::Poll,
        Event::Pending,
        Event::Finish,
        Event::Deposit,
        Event::Withdraw,
        Event::Release,
    ];
    const LIVES: [State; 5] = [State::BLOCKED, State::READY, State::RUNNING, State::WOKEN, State::DEAD];

    fn all() -> impl Iterator<Item = State> {
        LIVES.into_iter().flat_map(|life| {
            (0..8u32).map(move |bits| State(life.0 | bits << 2)).filter(|state| {
                // A waker is never left without a handle, nor in a dead task.
                !state.has(State::WAITER) || (state.has(State::JOIN) && !state.is_dead())
            })
        })
    }

    /// The table as a reader would draw it, for a task with a handle; `.` is refused.
    const TABLE: &str = "
          BLOCKED             READY               RUNNING             READY|RUNNING       DEAD
Wake      READY Enqueue       READY               READY|RUNNING       READY|RUNNING       DEAD
Cancel    READY Enqueue       READY               READY|RUNNING       READY|RUNNING       DEAD
Poll      .                   RUNNING Poll        .                   .                   .
Pending   .                   .                   BLOCKED             READY Enqueue       .
Finish    .                   .                   DEAD Publish        DEAD Publish        .
Deposit   BLOCKED             READY               RUNNING             READY|RUNNING       DEAD TakeOutput
Withdraw  .                   .                   .                   .                   DEAD TakeOutput
Release   BLOCKED             READY               RUNNING             READY|RUNNING       DEAD TakeOutput
";

    #[test]
    fn the_table_is_what_the_reader_expects() {
        let mut drawn = format!("\n{:10}", "");
        for life in LIVES {
            drawn += &format!("{:20}", format!("{life:?}"));
        }
        for event in EVENTS {
            drawn += &format!("\n{:10}", format!("{event:?}"));
            for life in LIVES {
                let cell = match life.with(State::JOIN).on(event) {
                    Ok((to, Action::Nothing)) => format!("{:?}", to.life()),
                    Ok((to, action)) => format!("{:?} {action:?}", to.life()),
                    Err(_) => String::from("."),
                };
                drawn += &format!("{cell:20}");
            }
        }
        let trimmed: String = drawn.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        println!("{trimmed}");
        assert_eq!(trimmed, TABLE);
    }

    #[test]
    fn a_task_is_queued_exactly_when_it_becomes_ready() {
        for from in all() {
            for event in EVENTS {
                if let Ok((to, action)) = from.on(event) {
                    let became = to.life() == State::READY && from.life() != State::READY;
                    assert_eq!(became, action == Action::Enqueue, "{from:?} {event:?}");
                }
            }
        }
    }

    #[test]
    fn the_dead_stay_dead_and_a_wake_or_cancel_of_them_changes_nothing() {
        for from in all().filter(|state| state.is_dead()) {
            for event in [Event::Wake, Event::Cancel] {
                assert_eq!(from.on(event), Ok((from, Action::Nothing)));
            }
            for event in EVENTS {
                if let Ok((to, _)) = from.on(event) {
                    assert!(to.is_dead());
                }
            }
        }
    }

    #[test]
    fn no_state_that_cannot_be_is_ever_reached() {
        let legal: Vec<State> = all().collect();
        for from in all() {
            for event in EVENTS {
                match from.on(event) {
                    Ok((to, _)) => assert!(legal.contains(&to), "{from:?} {event:?} {to:?}"),
                    Err(refused) => assert_eq!(refused, BadTransition { from, event }),
                }
            }
        }
    }

    #[test]
    fn wakes_and_cancels_are_never_refused_and_hide_no_owner_event() {
        for from in all() {
            for outside in [Event::Wake, Event::Cancel] {
                let (after, _) = from.on(outside).expect("always legal");
                for event in EVENTS {
                    if from.on(event).is_ok() {
                        assert!(after.on(event).is_ok(), "{event:?} after {outside:?} on {from:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_cancelled_future_is_dropped_and_never_polled() {
        for from in all().filter(|state| state.is_cancelled()) {
            for event in EVENTS {
                if let Ok((_, action)) = from.on(event) {
                    assert_ne!(action, Action::Poll, "{from:?} {event:?}");
                }
            }
        }
    }

    proptest! {
        /// Any order of events, those that are refused left out: the task is in one queue or none, its future has one
        /// owner, and output and waker are given to one each.
        #[test]
        fn any_life_keeps_its_books(order in proptest::collection::vec(0..EVENTS.len(), 1..200)) {
            let state = AtomicState::new(State::SPAWNED);
            let (mut queued, mut owned, mut deposited, mut finished, mut taken) = (1, 0, 0, 0, 0);
            for event in order.into_iter().map(|index| EVENTS[index]) {
                let before = state.load();
                let Ok(action) = state.apply(event) else {
                    prop_assert_eq!(state.load(), before);
                    continue;
                };
                match (event, action) {
                    (Event::Poll, _) => { queued -= 1; owned += 1 }
                    (Event::Pending, Action::DropFuture) => {}
                    (Event::Pending, _) => owned -= 1,
                    (Event::Finish, _) => { owned -= 1; finished += 1 }
                    (Event::Deposit, Action::Nothing) => deposited += 1,
                    (Event::Withdraw, Action::Nothing) => deposited -= 1,
                    _ => {}
                }
                match action {
                    Action::Enqueue => queued += 1,
                    Action::TakeWaker | Action::PublishAndWake => deposited -= 1,
                    Action::DropOutput => taken += 1,
                    Action::TakeOutput if event == Event::Release => taken += 1,
                    _ => {}
                }
                let now = state.load();
                prop_assert_eq!(queued, i32::from(now.life() == State::READY));
                prop_assert_eq!(owned, i32::from(now.has(State::RUNNING.0)));
                prop_assert_eq!(finished, i32::from(now.is_dead()));
                prop_assert_eq!(deposited, i32::from(now.has(State::WAITER)));
                prop_assert_eq!(taken, i32::from(now.is_dead() && !now.has(State::JOIN)));
            }
        }
    }
}
