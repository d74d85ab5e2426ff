//! A queue of bounded length between tasks: any number of senders and receivers. Sending and receiving wait; the `try_`
//! forms don't, and may be used in interrupts if the lock allows it. The invariant: the values are in the queue, in
//! order, and whoever is woken for one (or for a place) takes it or passes the wake-up on.
//!
//! One lock, taken once for each value on each side. Its buffer is made at the start.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker, ready};

use super::waiters::{Batch, Node, Place, Waiters};
use crate::runtime::budget;
use crate::runtime::lock::{Lock, RawLock, Spin};
use crate::runtime::waits::{self, Waits};

struct Inner<T> {
    queue: VecDeque<T>,
    capacity: usize,
    senders: usize,
    receivers: usize,
    /// Wait for a place, and for a value.
    sending: Waiters,
    receiving: Waiters,
}

impl<T> Inner<T> {
    /// Puts a value in if there is room, and says who must be woken.
    fn push(&mut self, value: T) -> Result<Option<Waker>, TrySendError<T>> {
        if self.receivers == 0 {
            return Err(TrySendError::Closed(value));
        }
        if self.queue.len() >= self.capacity {
            return Err(TrySendError::Full(value));
        }
        self.queue.push_back(value);
        Ok(self.receiving.grant())
    }

    /// Takes a value out.
    fn pop(&mut self) -> Option<(T, Option<Waker>)> {
        let value = self.queue.pop_front()?;
        Some((value, self.sending.grant()))
    }
}

struct Shared<T, R: RawLock>(Lock<Inner<T>, R>);

impl<T, R: RawLock> Shared<T, R> {
    /// Everyone who waits looks again: one side has gone.
    fn wake_all(&self) {
        loop {
            let mut batch = Batch::new();
            let more = self.0.with(|inner| {
                while !inner.sending.is_empty() || !inner.receiving.is_empty() {
                    if !batch.has_room() {
                        return true;
                    }
                    let waker =
                        if inner.sending.is_empty() { inner.receiving.dismiss() } else { inner.sending.dismiss() };
                    batch.push(waker);
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

/// Sends into a channel. The last one that goes closes it.
pub struct Sender<T, R: RawLock = Spin>(Arc<Shared<T, R>>);

/// Receives from a channel. The last one that goes closes it.
pub struct Receiver<T, R: RawLock = Spin>(Arc<Shared<T, R>>);

/// A value that was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrySendError<T> {
    /// There is no room at the moment.
    Full(T),
    /// Nobody receives any more.
    Closed(T),
}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "the channel is full",
            Self::Closed(_) => "nobody receives from the channel",
        })
    }
}

impl<T: fmt::Debug> core::error::Error for TrySendError<T> {}

/// A channel for so many values, at least one.
pub fn channel<T: Send, R: RawLock>(capacity: usize) -> (Sender<T, R>, Receiver<T, R>) {
    let capacity = capacity.max(1);
    let shared = Arc::new(Shared(Lock::new(Inner {
        queue: VecDeque::with_capacity(capacity),
        capacity,
        senders: 1,
        receivers: 1,
        sending: Waiters::default(),
        receiving: Waiters::default(),
    })));
    (Sender(shared.clone()), Receiver(shared))
}

impl<T, R: RawLock> Sender<T, R> {
    /// Sends if there is room.
    ///
    /// # Errors
    /// The value, and why it can't be sent.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let waker = self.0.0.with(|inner| inner.push(value))?;
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Waits for room and sends. Dropped before that, it sends nothing. The value comes back if nobody receives any
    /// more.
    pub fn send(&self, value: T) -> Sending<'_, T, R> {
        Sending { shared: &self.0, value: Some(value), node: Node::new() }
    }
}

impl<T, R: RawLock> Receiver<T, R> {
    /// The next value, if there is one.
    pub fn try_receive(&self) -> Option<T> {
        let (value, waker) = self.0.0.with(Inner::pop)?;
        waker.into_iter().for_each(Waker::wake);
        Some(value)
    }

    /// Waits for a value. `None` if there is none and nobody sends any more. Dropped before that, it takes nothing.
    pub fn receive(&self) -> Receiving<'_, T, R> {
        Receiving { shared: &self.0, node: Node::new() }
    }
}

/// Waits for room.
#[must_use = "a future does nothing until it is polled"]
pub struct Sending<'a, T, R: RawLock = Spin> {
    shared: &'a Shared<T, R>,
    value: Option<T>,
    node: Node,
}

impl<T, R: RawLock> Future for Sending<'_, T, R> {
    type Output = Result<(), T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: `node` is only used pinned; the value is not pinned by us.
        let this = unsafe { self.get_unchecked_mut() };
        // SAFETY: pinned with the future.
        let node = unsafe { Pin::new_unchecked(&this.node) };
        ready!(budget::step(cx));
        let Some(value) = this.value.take() else { return Poll::Ready(Ok(())) };
        let (result, wakers) = this.shared.0.with(|inner| {
            // SAFETY: the node is in this list or none, and its future's drop takes it out.
            unsafe {
                // Behind those that wait already, unless a place was kept for us.
                let turn = inner.sending.is_empty() || inner.sending.place(node) == Place::Granted;
                let pushed =
                    if turn || inner.receivers == 0 { inner.push(value) } else { Err(TrySendError::Full(value)) };
                match pushed {
                    Ok(waker) => (Poll::Ready(Ok(())), [inner.sending.leave(node).1, waker]),
                    Err(TrySendError::Closed(value)) => (Poll::Ready(Err(value)), [inner.sending.leave(node).1, None]),
                    Err(TrySendError::Full(value)) => {
                        this.value = Some(value);
                        if inner.sending.place(node) == Place::Granted {
                            // A `try_send` was faster. Back in line.
                            drop(inner.sending.leave(node));
                        }
                        (Poll::Pending, [inner.sending.wait(node, 1, cx.waker()), None])
                    }
                }
            }
        });
        let [old, waker] = wakers;
        drop(old);
        waker.into_iter().for_each(Waker::wake);
        if result.is_pending() {
            waits::note(cx.waker(), Waits::Room, core::ptr::from_ref(this.shared).addr() as u64);
        }
        result
    }
}

impl<T, R: RawLock> Drop for Sending<'_, T, R> {
    fn drop(&mut self) {
        // SAFETY: whoever pinned the future keeps it where it is until this drop is over.
        let node = unsafe { Pin::new_unchecked(&self.node) };
        let (old, next) = self.shared.0.with(|inner| {
            // SAFETY: as in `poll`.
            let (place, old) = unsafe { inner.sending.leave(node) };
            // A place was ours and we go: the next may have it.
            (old, if place == Place::Granted { inner.sending.grant() } else { None })
        });
        drop(old);
        next.into_iter().for_each(Waker::wake);
    }
}

/// Waits for a value.
#[must_use = "a future does nothing until it is polled"]
pub struct Receiving<'a, T, R: RawLock = Spin> {
    shared: &'a Shared<T, R>,
    node: Node,
}

impl<T, R: RawLock> Future for Receiving<'_, T, R> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: nothing is moved out.
        let this = unsafe { self.get_unchecked_mut() };
        // SAFETY: pinned with the future.
        let node = unsafe { Pin::new_unchecked(&this.node) };
        ready!(budget::step(cx));
        let (result, wakers) = this.shared.0.with(|inner| {
            // SAFETY: the node is in this list or none, and its future's drop takes it out.
            unsafe {
                let turn = inner.receiving.is_empty() || inner.receiving.place(node) == Place::Granted;
                if turn || inner.senders == 0 {
                    if let Some((value, waker)) = inner.pop() {
                        return (Poll::Ready(Some(value)), [inner.receiving.leave(node).1, waker]);
                    }
                    if inner.senders == 0 {
                        return (Poll::Ready(None), [inner.receiving.leave(node).1, None]);
                    }
                }
                if inner.receiving.place(node) == Place::Granted {
                    // A `try_receive` was faster. Back in line.
                    drop(inner.receiving.leave(node));
                }
                (Poll::Pending, [inner.receiving.wait(node, 1, cx.waker()), None])
            }
        });
        let [old, waker] = wakers;
        drop(old);
        waker.into_iter().for_each(Waker::wake);
        if result.is_pending() {
            waits::note(cx.waker(), Waits::Value, core::ptr::from_ref(this.shared).addr() as u64);
        }
        result
    }
}

impl<T, R: RawLock> Drop for Receiving<'_, T, R> {
    fn drop(&mut self) {
        // SAFETY: whoever pinned the future keeps it where it is until this drop is over.
        let node = unsafe { Pin::new_unchecked(&self.node) };
        let (old, next) = self.shared.0.with(|inner| {
            // SAFETY: as in `poll`.
            let (place, old) = unsafe { inner.receiving.leave(node) };
            // A value was ours and we go: the next may have it.
            (old, if place == Place::Granted { inner.receiving.grant() } else { None })
        });
        drop(old);
        next.into_iter().for_each(Waker::wake);
    }
}

impl<T, R: RawLock> Clone for Sender<T, R> {
    fn clone(&self) -> Self {
        self.0.0.with(|inner| inner.senders += 1);
        Self(self.0.clone())
    }
}

impl<T, R: RawLock> Clone for Receiver<T, R> {
    fn clone(&self) -> Self {
        self.0.0.with(|inner| inner.receivers += 1);
        Self(self.0.clone())
    }
}

impl<T, R: RawLock> Drop for Sender<T, R> {
    fn drop(&mut self) {
        let last = self.0.0.with(|inner| {
            inner.senders -= 1;
            inner.senders == 0
        });
        if last {
            self.0.wake_all();
        }
    }
}

impl<T, R: RawLock> Drop for Receiver<T, R> {
    fn drop(&mut self) {
        let left = self.0.0.with(|inner| {
            inner.receivers -= 1;
            // Nobody will take them. Dropped without the lock.
            (inner.receivers == 0).then(|| core::mem::take(&mut inner.queue))
        });
        if left.is_some() {
            self.0.wake_all();
        }
    }
}
