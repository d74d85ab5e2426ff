//! Something happened: to one who waits, or to all. Anyone may notify, in interrupts too if the lock allows it; the
//! invariant: a [`notify_one`](Notify::notify_one) reaches one waiter who lives to see it, or is kept for the next who
//! comes.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use super::waiters::{Batch, Node, Place, Waiters};
use crate::runtime::lock::{Lock, RawLock, Spin};
use crate::runtime::waits::{self, Waits};

/// See the module's text.
pub struct Notify<R: RawLock = Spin>(Lock<Inner, R>);

struct Inner {
    /// One notification that nobody has seen; more are not counted.
    kept: bool,
    /// How often all were notified.
    rounds: usize,
    waiters: Waiters,
}

impl<R: RawLock> Default for Notify<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R: RawLock> Notify<R> {
    /// Nothing has happened.
    pub fn new() -> Self {
        Self(Lock::new(Inner { kept: false, rounds: 0, waiters: Waiters::default() }))
    }

    /// Wakes the one who has waited longest, or the next who comes.
    pub fn notify_one(&self) {
        let waker = self.0.with(|inner| {
            if inner.waiters.is_empty() {
                inner.kept = true;
            }
            inner.waiters.grant()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes all who wait now, and nobody who comes later.
    pub fn notify_all(&self) {
        // Each waiter knows the round in which it came: those who come while we are at it are of a later one.
        let round = self.0.with(|inner| {
            inner.rounds = inner.rounds.wrapping_add(1);
            inner.rounds
        });
        loop {
            let mut batch = Batch::new();
            let more = self.0.with(|inner| {
                // Oldest first, so the first of a later round ends it. The difference is right also when the count
                // wraps.
                while inner.waiters.wanted().is_some_and(|came| (came.wrapping_sub(round) as isize) < 0) {
                    if !batch.has_room() {
                        return true;
                    }
                    // Not a grant: it sees by the round that it is meant, and has nothing to pass on.
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

    /// Waits for a notification from now on: it counts from here, not from the first poll.
    pub fn notified(&self) -> Notified<'_, R> {
        Notified { notify: self, came: self.0.with(|inner| inner.rounds), node: Node::new(), done: false }
    }
}

/// Waits. Dropped with a notification that it hasn't seen, it passes it on.
#[must_use = "a future does nothing until it is polled"]
pub struct Notified<'a, R: RawLock = Spin> {
    notify: &'a Notify<R>,
    came: usize,
    node: Node,
    done: bool,
}

impl<R: RawLock> Future for Notified<'_, R> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: nothing is moved out, and `node` is only used pinned.
        let this = unsafe { self.get_unchecked_mut() };
        // SAFETY: pinned with the future.
        let node = unsafe { Pin::new_unchecked(&this.node) };
        let (done, old) = this.notify.0.with(|inner| {
            // SAFETY: the node is in this list or none, and its future's drop takes it out.
            unsafe {
                let all = inner.rounds != this.came;
                let done = all || inner.waiters.place(node) == Place::Granted || core::mem::take(&mut inner.kept);
                let old = match done {
                    true => inner.waiters.leave(node).1,
                    false => inner.waiters.wait(node, this.came, cx.waker()),
                };
                (done, old)
            }
        });
        drop(old);
        this.done |= done;
        if done {
            return Poll::Ready(());
        }
        waits::note(cx.waker(), Waits::Notification, core::ptr::from_ref(this.notify).addr() as u64);
        Poll::Pending
    }
}

impl<R: RawLock> Drop for Notified<'_, R> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // SAFETY: whoever pinned the future keeps it where it is until this drop is over.
        let node = unsafe { Pin::new_unchecked(&self.node) };
        let (pass_on, waker) = self.notify.0.with(|inner| {
            // SAFETY: as in `poll`.
            let (place, waker) = unsafe { inner.waiters.leave(node) };
            (place == Place::Granted, waker)
        });
        drop(waker);
        if pass_on {
            self.notify.notify_one();
        }
    }
}
