//! Waiting for a time: a [`TimerQueue`] of wakers. Whoever owns the hardware timer calls [`expire`](Timers::expire)
//! from its interrupt; the invariant: the clock is armed for the earliest sleeper, and a sleeper that goes takes its
//! timer with it.

use core::fmt;
use core::future::Future;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker, ready};

use super::budget;
use super::combine::{Either, select};
use super::lock::{Lock, RawLock, Spin};
use super::sync::waiters::Batch;
use crate::ids::Nanos;
use crate::timer::{TimerId, TimerQueue};

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
    queue: Lock<TimerQueue<Waker>, R>,
}

impl<C: Clock, R: RawLock> Timers<C, R> {
    /// Nobody waits.
    pub fn new(clock: C) -> Self {
        Self { clock, queue: Lock::new(TimerQueue::new()) }
    }

    /// The clock that was given to [`new`](Timers::new).
    pub fn clock(&self) -> &C {
        &self.clock
    }

    /// How many wait.
    pub fn sleepers(&self) -> usize {
        self.queue.with(|queue| queue.len())
    }

    /// Wakes those whose time has come, and arms the clock for the next. May be called in an interrupt.
    pub fn expire(&self) {
        let now = self.clock.now();
        loop {
            let mut batch = Batch::new();
            let next = self.queue.with(|queue| {
                while batch.has_room() {
                    let Some(waker) = queue.pop_expired(now) else { break };
                    batch.push(Some(waker));
                }
                queue.next_deadline()
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
        Sleep { timers: self, deadline, timer: None }
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

/// Waits for a time. Dropped before that, it takes its timer out.
#[must_use = "a future does nothing until it is polled"]
pub struct Sleep<'a, C: Clock, R: RawLock = Spin> {
    timers: &'a Timers<C, R>,
    deadline: Nanos,
    /// Armed, and not yet seen to have expired.
    timer: Option<TimerId>,
}

impl<C: Clock, R: RawLock> Future for Sleep<'_, C, R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        ready!(budget::step(cx));
        if self.timers.clock.now() >= self.deadline {
            return Poll::Ready(()); // the timer, if it is still there, goes with us
        }
        let (deadline, before) = (self.deadline, self.timer);
        let (timer, first, old) = self.timers.queue.with(|queue| {
            let old = before.and_then(|timer| queue.cancel(timer));
            let timer = queue.arm(deadline, cx.waker().clone());
            (timer, queue.next_deadline() == Some(deadline), old)
        });
        drop(old);
        self.timer = Some(timer);
        if first {
            self.timers.clock.arm(deadline);
        }
        Poll::Pending
    }
}

impl<C: Clock, R: RawLock> Drop for Sleep<'_, C, R> {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take() {
            drop(self.timers.queue.with(|queue| queue.cancel(timer)));
        }
    }
}
