//! Tasks that come from elsewhere: from interrupts, from threads that are no executor, and what a full ring leaves
//! over. Any CPU puts in, and any CPU takes *all* out, so there is no node that could come back behind someone's back.
//! Without a lock, so an interrupt may use it whatever it came upon. The invariant: what is in it has [`Header::next`]
//! for its own.

use core::ptr::{self, NonNull};

use super::header::{Header, TaskRef};
use crate::sync::{AtomicPtr, Ordering};

/// A stack of tasks, linked through themselves.
pub(super) struct Inbox(AtomicPtr<Header>);

/// What was taken from an inbox, oldest first.
pub(super) struct Chain(*mut Header);

// SAFETY: it owns its tasks, which may be used from any thread.
unsafe impl Send for Chain {}

impl Inbox {
    pub(super) fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Puts a task in.
    pub(super) fn push(&self, task: TaskRef) {
        let task = task.into_raw();
        // Relaxed: only a first guess.
        let mut top = self.0.load(Ordering::Relaxed);
        loop {
            // SAFETY: its reference came with the task, and nobody can take it out before it is in. Relaxed: the
            // exchange publishes the link.
            unsafe { task.as_ref() }.next.store(top, Ordering::Relaxed);
            // Release: whoever takes the task sees its link, and all that was done before it was put in. The links
            // below are seen as well: each push continues the release sequence of the ones before. Relaxed on failure.
            match self.0.compare_exchange_weak(top, task.as_ptr(), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Takes all out, in the order in which they came.
    pub(super) fn take_all(&self) -> Chain {
        if self.is_empty() {
            return Chain(ptr::null_mut());
        }
        // Acquire: see `push`.
        let mut newest_first = self.0.swap(ptr::null_mut(), Ordering::Acquire);
        let mut chain = ptr::null_mut();
        while let Some(task) = NonNull::new(newest_first) {
            // SAFETY: what was in the inbox is ours now, with its reference and its link. Relaxed: nobody else reads
            // it.
            let next = &unsafe { task.as_ref() }.next;
            newest_first = next.load(Ordering::Relaxed);
            next.store(chain, Ordering::Relaxed);
            chain = task.as_ptr();
        }
        Chain(chain)
    }

    /// Is nothing in it? Relaxed, a look that is stale at once: whoever puts something in kicks afterwards, and the
    /// kick brings the order.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed).is_null()
    }
}

impl Chain {
    pub(super) const fn empty() -> Self {
        Self(ptr::null_mut())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_null()
    }

    /// Puts back what came out last.
    pub(super) fn put_back(&mut self, task: TaskRef) {
        // Relaxed: the chain owns the links of its tasks.
        task.header().next.store(self.0, Ordering::Relaxed);
        self.0 = task.into_raw().as_ptr();
    }
}

impl Iterator for Chain {
    type Item = TaskRef;

    #[inline]
    fn next(&mut self) -> Option<TaskRef> {
        let task = NonNull::new(self.0)?;
        // SAFETY: the chain owns its tasks. Relaxed: so it does their links.
        self.0 = unsafe { task.as_ref() }.next.load(Ordering::Relaxed);
        // SAFETY: the reference that came with the task goes with it.
        Some(unsafe { TaskRef::from_raw(task) })
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.take_all().for_each(drop);
    }
}
