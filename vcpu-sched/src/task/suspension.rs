//! Whether somebody outside holds a task off its program: a word beside the task's state.
//!
//! A suspended task executes no instruction of its program. It isn't torn out of the kernel, where it may hold what others wait
//! for: on its way back to its program it finds the word set and waits, off the run queues, until nobody holds it any more. A
//! task that waits in the kernel stays there; if what it waits for comes, it finishes its call and then waits for its resumption.
//!
//! Several may hold a task at once (the control interface, a debugger): each has a bit, and only the last one's resumption lets
//! it go. A task that is to end can't be held: [`Suspension::lift`] is for good.
//!
//! # No lost resumption
//! The task announces that it blocks ([`Event::Block`](super::state::Event)), then looks at the word; whoever resumes clears a bit,
//! then wakes. That is the protocol of [`state`](super::state): one of the two sees the other.

use crate::sync::{AtomicU32, Ordering, const_new};

/// Who may hold a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Holder {
    /// The control interface.
    Api = 1,
    /// The debugger.
    Debugger = 2,
}

impl Holder {
    /// From its number.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Api,
            2 => Self::Debugger,
            _ => return None,
        })
    }
}

/// The task is to end: nobody holds it from now on.
const LIFTED: u32 = 1 << 31;

/// The word after an attempt to hold a task; `None`: it is to end.
const fn held(word: u32, by: Holder) -> Option<u32> {
    if word & LIFTED == 0 { Some(word | by as u32) } else { None }
}

/// The word after `by` lets go.
const fn released(word: u32, by: Holder) -> u32 {
    word & !(by as u32)
}

/// Whether the task must wait.
const fn waits(word: u32) -> bool {
    word != 0 && word & LIFTED == 0
}

/// Who holds a task.
#[derive(Debug)]
#[repr(transparent)]
pub struct Suspension(AtomicU32);

impl Default for Suspension {
    fn default() -> Self {
        Self::new()
    }
}

impl Suspension {
    const_new! {
        /// Nobody.
        pub const fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    /// `by` holds the task from now on. False: it is to end, and can't be held.
    ///
    /// Release: who then finds the task off its CPU knows that it will see this on its way back. Acquire: what was done before it
    /// was lifted is seen.
    #[must_use]
    pub fn hold(&self, by: Holder) -> bool {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| held(word, by)).is_ok()
    }

    /// `by` lets go. True: nobody holds it now, and it must be woken.
    ///
    /// Release: what was done to the task while it was held is seen by it when it goes on.
    #[must_use = "the task waits until it is woken"]
    pub fn release(&self, by: Holder) -> bool {
        let before = self.0.fetch_and(!(by as u32), Ordering::AcqRel);
        before != released(before, by) && !waits(released(before, by))
    }

    /// The task is to end: it is held no more, and can't be again. It must be woken.
    pub fn lift(&self) {
        self.0.fetch_or(LIFTED, Ordering::AcqRel);
    }

    /// What a copy of the word says: whether anybody holds the task.
    pub const fn held_by(word: u32) -> bool {
        waits(word)
    }

    /// Whether the task must wait. Acquire: see [`Suspension::release`].
    pub fn is_held(&self) -> bool {
        waits(self.0.load(Ordering::Acquire))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_task_goes_on_when_the_last_one_lets_go() {
        let held = Suspension::new();
        assert!(!held.is_held());
        assert!(held.hold(Holder::Api) && held.hold(Holder::Api) && held.hold(Holder::Debugger));
        assert!(!held.release(Holder::Api) && held.is_held());
        assert!(!held.release(Holder::Api), "it held no more");
        assert!(held.release(Holder::Debugger) && !held.is_held());
    }

    #[test]
    fn a_task_that_ends_is_not_held() {
        let held = Suspension::new();
        assert!(held.hold(Holder::Debugger));
        held.lift();
        assert!(!held.is_held() && !held.hold(Holder::Api) && !held.is_held());
    }

    #[test]
    fn every_word_is_left_by_letting_go() {
        for word in 0..4 {
            let word = released(released(word, Holder::Api), Holder::Debugger);
            assert!(!waits(word));
        }
        for number in 0..5 {
            assert_eq!(
                Holder::from_number(number).map(|holder| holder as u32),
                (1..=2).contains(&number).then_some(number)
            );
        }
    }
}

/// The task waits while another CPU resumes it.
#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::task::state::{Action, AtomicState, Event, State};
    use loom::thread;
    use std::rc::Rc;

    #[test]
    fn loom_no_resumption_is_lost() {
        loom::model(|| {
            let task = Rc::new((AtomicState::new(State::Running), Suspension::new()));
            assert!(task.1.hold(Holder::Api));
            let other = thread::spawn({
                let task = task.clone();
                move || task.1.release(Holder::Api) && task.0.apply(Event::Wake) == Ok(Action::Enqueue)
            });
            // The task on its way to its program.
            assert_eq!(task.0.apply(Event::Block), Ok(Action::Nothing));
            let goes_on = if task.1.is_held() {
                // Off its CPU, or woken just before: then it stays queued.
                task.0.apply(Event::Deschedule) == Ok(Action::Enqueue)
            } else {
                assert_eq!(task.0.apply(Event::CancelBlock), Ok(Action::Nothing));
                true
            };
            let woken = other.join().unwrap();
            assert!(goes_on ^ woken, "it goes on by itself or by the wake-up, and not by both");
        });
    }
}
