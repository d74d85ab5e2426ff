//! The handle of a spawned task: waits for the output, or cancels. One for each task at most; the invariant is that the
//! task's place for a waker is touched as [`super::state`] allows.

use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll};

use super::header::TaskRef;
use super::state::{Action, Event};
use super::waits::{self, Waits};

/// The task was cancelled, or its future panicked, or its output was taken before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cancelled;

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task ended without an output")
    }
}

impl core::error::Error for Cancelled {}

/// Waits for a task's output. Dropping it cancels the task: its future is dropped by an executor, at once if it isn't
/// being polled and soon after if it is, and not by the one who drops the handle.
#[must_use = "dropping the handle cancels the task; `detach` lets it run"]
pub struct JoinHandle<T> {
    task: TaskRef,
    /// Our waker lies in the task.
    deposited: bool,
    /// The task lives on without us.
    detached: bool,
    _output: PhantomData<fn() -> T>,
}

// The output comes out of the handle by value, so no part of it is pinned.
impl<T> Unpin for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    /// For a task whose output is a `T`.
    pub(super) fn new(task: TaskRef) -> Self {
        Self { task, deposited: false, detached: false, _output: PhantomData }
    }

    /// Lets the task run without a handle; its output is dropped when it comes.
    pub fn detach(mut self) {
        self.detached = true;
    }

    /// Asks the task to end. What it then gives is [`Cancelled`], unless it was done already.
    pub fn cancel(&self) {
        self.task.rouse(Event::Cancel);
    }

    /// Has the task ended?
    pub fn is_finished(&self) -> bool {
        self.task.header().state.load().is_dead()
    }

    /// The output is ours.
    fn take(&self) -> Poll<Result<T, Cancelled>> {
        // SAFETY: the task is dead and has a handle, us; `T` is what its future gives.
        Poll::Ready(unsafe { self.task.take() }.ok_or(Cancelled))
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Cancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.is_finished() {
            return self.take();
        }
        if self.deposited {
            if self.task.apply(Event::Withdraw) == Action::TakeOutput {
                return self.take(); // its poller has the waker
            }
            self.deposited = false;
        }
        // SAFETY: no waker of ours is deposited, so the place is ours.
        let replaced = unsafe {
            self.task.joiner(|place| match place {
                Some(old) if old.will_wake(cx.waker()) => None,
                _ => place.replace(cx.waker().clone()),
            })
        };
        drop(replaced);
        if self.task.apply(Event::Deposit) == Action::TakeOutput {
            return self.take(); // the waker that was not needed goes with the task
        }
        self.deposited = true;
        waits::note(cx.waker(), Waits::Task, self.task.as_ptr().addr().get() as u64);
        Poll::Pending
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if !self.detached {
            self.cancel();
        }
        match self.task.apply(Event::Release) {
            // SAFETY: the task is dead, and we were its handle.
            Action::TakeOutput => unsafe { self.task.clear() },
            // SAFETY: the waker lay there, and nobody can take it any more.
            Action::TakeWaker => drop(unsafe { self.task.joiner(Option::take) }),
            _ => {}
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JoinHandle").field(&self.task).finish()
    }
}
