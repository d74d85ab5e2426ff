//! The queue of armed timers of a CPU.
//!
//! Pure: no clock and no interrupt. The CPU that owns it arms its hardware timer for
//! [`next_deadline`](TimerQueue::next_deadline) after every change, and after an interrupt calls
//! [`pop_expired`](TimerQueue::pop_expired) until it returns `None`. The invariant: timers come out by deadline, equal
//! ones in the order they were armed, and each exactly once, by `pop_expired` or [`cancel`](TimerQueue::cancel).

use alloc::collections::BTreeMap;

use crate::ids::Nanos;

/// Names one armed timer of one queue. Never used again in that queue, so cancelling late is harmless.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TimerId {
    deadline: Nanos,
    seq: u64,
}

impl TimerId {
    /// When the timer expires or expired.
    #[inline]
    pub const fn deadline(self) -> Nanos {
        self.deadline
    }
}

/// Timers, each with what is to be done when it expires. See the module's text.
#[derive(Clone, Debug)]
pub struct TimerQueue<T> {
    timers: BTreeMap<TimerId, T>,
    next_seq: u64,
}

impl<T> TimerQueue<T> {
    /// No timer armed.
    pub const fn new() -> Self {
        Self { timers: BTreeMap::new(), next_seq: 0 }
    }

    /// Arms a timer. A deadline that has passed already expires at the next [`pop_expired`](TimerQueue::pop_expired).
    pub fn arm(&mut self, deadline: Nanos, what: T) -> TimerId {
        let id = TimerId { deadline, seq: self.next_seq };
        self.next_seq += 1;
        self.timers.insert(id, what);
        id
    }

    /// Disarms a timer. `None` if it has expired or was cancelled before.
    pub fn cancel(&mut self, id: TimerId) -> Option<T> {
        self.timers.remove(&id)
    }

    /// Takes out the first timer whose deadline is not after `now`.
    pub fn pop_expired(&mut self, now: Nanos) -> Option<T> {
        let first = self.timers.first_entry()?;
        (first.key().deadline <= now).then(|| first.remove())
    }

    /// When the first timer expires; `None` if none is armed.
    #[inline]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.timers.first_key_value().map(|(id, _)| id.deadline)
    }

    /// How many timers are armed.
    #[inline]
    pub fn len(&self) -> usize {
        self.timers.len()
    }

    /// Is none armed?
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.timers.is_empty()
    }
}

impl<T> Default for TimerQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// A task that waits with a timeout: it is woken by whoever comes first, and by nobody else.
#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::sync::{AtomicU8, AtomicU32, Ordering};
    use crate::task::state::{Action, AtomicState, Event, State};
    use loom::sync::Mutex;
    use loom::thread;
    // Loom's threads are coroutines of one thread. Its own Arc adds orderings, and aborts where a model is to fail.
    use std::rc::Rc;

    const DEADLINE: Nanos = Nanos(10);

    struct Machine {
        state: AtomicState,
        timers: Mutex<TimerQueue<()>>,
        /// How often it was put into a queue.
        enqueued: AtomicU32,
        /// Timers that were taken out: by expiry, by cancelling.
        expired: AtomicU8,
        cancelled: AtomicU8,
    }

    impl Machine {
        /// The task is asleep, with a timer armed.
        fn new() -> (Rc<Self>, TimerId) {
            let mut timers = TimerQueue::new();
            let id = timers.arm(DEADLINE, ());
            let machine = Self {
                state: AtomicState::new(State::Blocked),
                timers: Mutex::new(timers),
                enqueued: AtomicU32::new(0),
                expired: AtomicU8::new(0),
                cancelled: AtomicU8::new(0),
            };
            (Rc::new(machine), id)
        }

        fn wake(&self) -> bool {
            let won = self.state.apply(Event::Wake) == Ok(Action::Enqueue);
            if won {
                self.enqueued.fetch_add(1, Ordering::Relaxed);
            }
            won
        }

        /// The timer interrupt. The queue is left before the task is woken: waking takes other locks.
        fn expire(&self) -> bool {
            let due = self.timers.lock().unwrap().pop_expired(DEADLINE);
            if due.is_none() {
                return false;
            }
            self.expired.fetch_add(1, Ordering::Relaxed);
            self.wake()
        }

        fn cancel(&self, id: TimerId) {
            if self.timers.lock().unwrap().cancel(id).is_some() {
                self.cancelled.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn loom_of_waker_and_timeout_one_wins() {
        loom::model(|| {
            let (machine, id) = Machine::new();
            let timer = thread::spawn({
                let machine = machine.clone();
                move || machine.expire()
            });
            let woken = machine.wake();
            // The task, when it runs again, takes its timer back if it is still there.
            machine.cancel(id);
            let timed_out = timer.join().unwrap();
            assert!(woken != timed_out, "exactly one of them may queue the task");
            assert_eq!(machine.enqueued.load(Ordering::Relaxed), 1);
            assert_eq!(machine.state.load(), State::Ready);
            let gone = machine.expired.load(Ordering::Relaxed) + machine.cancelled.load(Ordering::Relaxed);
            assert_eq!(gone, 1, "a timer is taken out once");
        });
    }
}
