//! A number of permits. Anyone may give some, in interrupts too if the lock allows it; the invariant: a permit is in
//! the count, in somebody's hands, or granted to a waiter, and one that was granted to a waiter who goes is granted to
//! the next.
//!
//! Fair: who comes while others wait queues up behind them, also if there are permits enough for him.

use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use super::waiters::{Batch, Node, Place, Waiters};
use crate::runtime::budget;
use crate::runtime::lock::{Lock, RawLock, Spin};
use crate::runtime::waits::{self, Waits};

/// See the module's text.
pub struct Semaphore<R: RawLock = Spin>(Lock<Inner, R>);

struct Inner {
    permits: usize,
    closed: bool,
    waiters: Waiters,
}

/// The semaphore was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed")
    }
}

impl core::error::Error for Closed {}

/// Permits that go back when this is dropped.
#[must_use = "dropping it gives the permits back"]
pub struct Permits<'a, R: RawLock = Spin> {
    semaphore: &'a Semaphore<R>,
    count: usize,
}

impl<R: RawLock> Permits<'_, R> {
    /// The permits are used up: they don't go back.
    pub fn forget(mut self) {
        self.count = 0;
    }
}

impl<R: RawLock> Drop for Permits<'_, R> {
    fn drop(&mut self) {
        self.semaphore.give(self.count);
    }
}

impl<R: RawLock> Semaphore<R> {
    /// A semaphore with so many permits.
    pub fn new(permits: usize) -> Self {
        Self(Lock::new(Inner { permits, closed: false, waiters: Waiters::default() }))
    }

    /// How many permits are free at this moment.
    pub fn available(&self) -> usize {
        self.0.with(|inner| inner.permits)
    }

    /// Adds permits. More than `usize::MAX` of them can't be told apart.
    pub fn give(&self, count: usize) {
        let mut count = count;
        loop {
            let mut batch = Batch::new();
            let more = self.0.with(|inner| {
                inner.permits = inner.permits.saturating_add(core::mem::take(&mut count));
                while let Some(wanted) = inner.waiters.wanted().filter(|&wanted| wanted <= inner.permits) {
                    if !batch.has_room() {
                        return true;
                    }
                    inner.permits -= wanted;
                    batch.push(inner.waiters.grant());
                }
                false
            });
            batch.wake();
            if !more {
                return;
            }
        }
    }

    /// Takes permits if there are so many and nobody waits.
    ///
    /// # Errors
    /// [`Closed`]; `Ok(None)` if there are too few.
    pub fn try_acquire(&self, count: usize) -> Result<Option<Permits<'_, R>>, Closed> {
        let taken = self.0.with(|inner| {
            if inner.closed {
                return Err(Closed);
            }
            let enough = inner.waiters.is_empty() && inner.permits >= count;
            if enough {
                inner.permits -= count;
            }
            Ok(enough)
        })?;
        Ok(taken.then(|| Permits { semaphore: self, count }))
    }

    /// Waits for so many permits.
    pub fn acquire(&self, count: usize) -> Acquire<'_, R> {
        Acquire { semaphore: self, count, node: Node::new(), done: false }
    }

    /// All who wait, and all who come, are refused. What was granted stays granted.
    pub fn close(&self) {
        loop {
            let mut batch = Batch::new();
            let more = self.0.with(|inner| {
                inner.closed = true;
                while !inner.waiters.is_empty() {
                    if !batch.has_room() {
                        return true;
                    }
                    // It looks again, and finds the semaphore closed.
                    batch.push(inner.waiters.dismiss());
                }
                false
            });
            batch.wake();
            if !more {
                return;
            }
        }
    }
}

/// Waits for permits. Dropped while it waits it takes nothing; dropped with a grant that it hasn't seen, it gives it
/// back.
#[must_use = "a future does nothing until it is polled"]
pub struct Acquire<'a, R: RawLock = Spin> {
    semaphore: &'a Semaphore<R>,
    count: usize,
    node: Node,
    done: bool,
}

impl<'a, R: RawLock> Future for Acquire<'a, R> {
    type Output = Result<Permits<'a, R>, Closed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: nothing is moved out, and `node` is only used pinned.
        let this = unsafe { self.get_unchecked_mut() };
        // SAFETY: pinned with the future.
        let node = unsafe { Pin::new_unchecked(&this.node) };
        ready!(budget::step(cx));
        let (result, old) = this.semaphore.0.with(|inner| {
            // SAFETY: the node is this semaphore's only, and its future's drop takes it out.
            let place = unsafe { inner.waiters.place(node) };
            let result = match place {
                Place::Granted => Some(Ok(())),
                _ if inner.closed => Some(Err(Closed)),
                Place::Outside if inner.waiters.is_empty() && inner.permits >= this.count => {
                    inner.permits -= this.count;
                    Some(Ok(()))
                }
                _ => None,
            };
            // SAFETY: as above.
            let old = unsafe {
                match result {
                    Some(_) => inner.waiters.leave(node).1,
                    None => inner.waiters.wait(node, this.count, cx.waker()),
                }
            };
            (result, old)
        });
        drop(old);
        match result {
            None => {
                waits::note(cx.waker(), Waits::Permits, core::ptr::from_ref(this.semaphore).addr() as u64);
                Poll::Pending
            }
            Some(result) => {
                this.done = true;
                Poll::Ready(result.map(|()| Permits { semaphore: this.semaphore, count: this.count }))
            }
        }
    }
}

impl<R: RawLock> Drop for Acquire<'_, R> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // SAFETY: whoever pinned the future keeps it where it is until this drop is over.
        let node = unsafe { Pin::new_unchecked(&self.node) };
        // SAFETY: as in `poll`.
        let (place, waker) = self.semaphore.0.with(|inner| unsafe { inner.waiters.leave(node) });
        drop(waker);
        match place {
            // Granted, and never seen: it goes on to the next.
            Place::Granted => self.semaphore.give(self.count),
            // The next may want less than we did.
            Place::Inside => self.semaphore.give(0),
            Place::Outside => {}
        }
    }
}
