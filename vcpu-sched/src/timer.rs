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
