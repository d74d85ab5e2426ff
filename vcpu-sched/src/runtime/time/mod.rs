//! Waiting for a time: a heap that is linked through those who wait. Whoever owns the hardware timer calls
//! [`expire`](Timers::expire) from its interrupt; the invariant: the clock is armed for the earliest sleeper, and a sleeper
//! that goes takes itself out.

mod heap;

use core::fmt;
use core::future::Future;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, ready};

use self::heap::{Heap, Node};
use super::budget;
use super::combine::{Either, select};
use super::lock::{Lock, RawLock, Spin};
use super::sync::waiters::Batch;
use super::waits::{self, Waits};
use crate::ids::Nanos;

/// The clock under the timers. Called with no lock held.
pub trait Clock: Send + Sync + 'static {
    /// The time.
    fn now(&self) -> Nanos;

    /// Has [`Timers::expire`] called at or after this time. Surplus and early calls are harmless.
    fn arm(&self, deadline: Nanos);
}

/// All who wait for a time of one clock.
pub struct Timers<C: Clock, R: RawLock = Spin> {
    clock: C,
    heap: Lock<Heap, R>,
}

impl<C: Clock, R: RawLock> Timers<C, R> {
    /// Nobody waits.
    pub fn new(clock: C) -> Self {
        Self { clock, heap: Lock::new(Heap::default()) }
    }

    /// The clock that was given to [`new`](Timers::new).
    pub fn clock(&self) -> &C {
        &self.clock
    }

    /// How many wait.
    pub fn sleepers(&self) -> usize {
        self.heap.with(|heap| heap.len())
    }

    /// Wakes those whose time has come, and arms the clock for the next. May be called in an interrupt.
    pub fn expire(&self) {
        let now = self.clock.now();
        loop {
            let mut batch = Batch::new();
            let next = self.heap.with(|heap| {
                while batch.has_room() {
                    let Some(waker) = heap.pop_expired(now) else { break };
                    batch.push(waker);
                }
                heap.next_deadline()
            });
            batch.wake();
            match next {
                Some(next) if next <= now => {}
                Some(next) => return self.clock.arm(next),
                None => return,
            }
        }
    }

    /// Waits until a time.
    pub fn sleep_until(&self, deadline: Nanos) -> Sleep<'_, C, R> {
        Sleep { timers: self, deadline, node: Node::new(deadline) }
    }

    /// Waits for so long from now on.
    pub fn sleep(&self, span: Nanos) -> Sleep<'_, C, R> {
        self.sleep_until(self.clock.now() + span)
    }

    /// Waits for a future, but not longer than until a time. A future that is ready counts also when it is late.
    ///
    /// # Errors
    /// [`Elapsed`]; the future is dropped then.
    pub async fn timeout_at<F: Future>(&self, deadline: Nanos, future: F) -> Result<F::Output, Elapsed> {
        match select(future, pin!(self.sleep_until(deadline))).await {
            Either::First(output) => Ok(output),
            Either::Second(()) => Err(Elapsed),
        }
    }
}

/// The time was up first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time was up")
    }
}

impl core::error::Error for Elapsed {}

/// Waits for a time. Dropped before that, it takes itself out.
#[must_use = "a future does nothing until it is polled"]
pub struct Sleep<'a, C: Clock, R: RawLock = Spin> {
    timers: &'a Timers<C, R>,
    deadline: Nanos,
    node: Node,
}

impl<C: Clock, R: RawLock> Future for Sleep<'_, C, R> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        ready!(budget::step(cx));
        if self.timers.clock.now() >= self.deadline {
            return Poll::Ready(()); // the node, if it is still in the heap, goes with us
        }
        let (timers, deadline) = (self.timers, self.deadline);
        // SAFETY: pinned with the future, out of which nothing is moved.
        let node = unsafe { self.as_ref().map_unchecked(|this| &this.node) };
        // SAFETY: the node is in this heap or none, and its future's drop takes it out.
        let (first, old) = timers.heap.with(|heap| unsafe { heap.insert(node, cx.waker()) });
        drop(old);
        if first {
            timers.clock.arm(deadline);
        }
        waits::note(cx.waker(), Waits::Time, deadline.0);
        Poll::Pending
    }
}

impl<C: Clock, R: RawLock> Drop for Sleep<'_, C, R> {
    fn drop(&mut self) {
        // SAFETY: whoever pinned the future keeps it where it is until this drop is over.
        let node = unsafe { Pin::new_unchecked(&self.node) };
        // SAFETY: as in `poll`.
        drop(self.timers.heap.with(|heap| unsafe { heap.remove(node) }));
    }
}
