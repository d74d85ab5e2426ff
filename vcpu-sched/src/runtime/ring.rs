//! A CPU's own queue: its executor puts tasks in, and anyone takes them out, one at a time, first come first served.
//! The invariant: a slot is written only when what was in it has been taken, so whoever wins the exchange of `head` has
//! read the right task.
//!
//! To put something in costs no locked instruction; to take something out costs one.

use core::ptr::{self, NonNull};

use super::header::{Header, TaskRef};
use crate::sync::{AtomicPtr, AtomicU32, Ordering};

/// How many tasks fit. What doesn't goes to the inbox. A power of two.
#[cfg(not(all(test, loom)))]
pub(super) const SLOTS: usize = 256;
#[cfg(all(test, loom))]
pub(super) const SLOTS: usize = 2;

const _: () = assert!(SLOTS.is_power_of_two());

/// The ring. `head` and `tail` count for ever and wrap; their difference is what is in it.
pub(super) struct Ring {
    /// What was taken.
    head: AtomicU32,
    /// What was put in; only the owner writes it.
    tail: AtomicU32,
    slots: [AtomicPtr<Header>; SLOTS],
}

impl Ring {
    pub(super) fn new() -> Self {
        Self {
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            slots: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
        }
    }

    #[inline(always)]
    fn slot(&self, at: u32) -> &AtomicPtr<Header> {
        &self.slots[at as usize % SLOTS]
    }

    /// Puts a task in, or gives it back if there is no room.
    ///
    /// # Safety
    /// Only the owner may call it, once at a time.
    #[inline(always)]
    pub(super) unsafe fn push(&self, task: TaskRef) -> Result<(), TaskRef> {
        // Relaxed: we are the only writer.
        let tail = self.tail.load(Ordering::Relaxed);
        // Acquire: whoever took the task from the slot that we overwrite has read it before.
        let head = self.head.load(Ordering::Acquire);
        if tail.wrapping_sub(head) as usize >= SLOTS {
            return Err(task);
        }
        self.slot(tail).store(task.into_raw().as_ptr(), Ordering::Relaxed);
        // Release: who sees the new tail sees the slot, and what was done before.
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
        Ok(())
    }

    /// Takes the oldest out. Anyone may.
    #[inline(always)]
    pub(super) fn pop(&self) -> Option<TaskRef> {
        // Acquire: a head that somebody else has moved on comes with the tail that he saw.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            // Acquire: see `push`.
            let tail = self.tail.load(Ordering::Acquire);
            // A thief's head may be older than the tail by more than the ring holds; the exchange fails then. A tail
            // that is older than the head can't be read: the head's mover saw the tail before it.
            if head == tail {
                return None;
            }
            // Relaxed: the tail brought it. What we read may be a later task, if `head` is stale; the exchange fails
            // then.
            let task = self.slot(head).load(Ordering::Relaxed);
            // Release, so that the owner writes the slot after we have read it; acquire as in the first look. A count
            // that came round to the same value is 2^32 tasks away.
            match self.head.compare_exchange_weak(head, head.wrapping_add(1), Ordering::AcqRel, Ordering::Acquire) {
                // SAFETY: the exchange gave us the task that `push` put there, with its reference.
                Ok(_) => return NonNull::new(task).map(|task| unsafe { TaskRef::from_raw(task) }),
                Err(now) => head = now,
            }
        }
    }

    /// How many are in it, at some moment.
    ///
    /// Acquire for the head, so that the tail is not older; the difference can still be too large, never negative.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        let head = self.head.load(Ordering::Acquire);
        self.tail.load(Ordering::Acquire).wrapping_sub(head) as usize
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
