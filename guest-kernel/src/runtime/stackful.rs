//! A future with a stack of its own: it is polled by a task that exists for it alone, so the timer preempts it wherever it is, and it may
//! wait as any task does, for a lock, a queue or another stackful future. Who awaits it is a task without a stack, or anybody else.
//!
//! A stack in this kernel is a task: it is mapped, over its guard page, at one address by the task's own page table, and what stands on it is
//! what `current` names. A second stack under an executor would have no name, and a blocking wait on it would take the executor away from
//! everybody else; so the stack that is captured is a scheduled entity. It yields to the scheduler, which the executor is an equal of.
//!
//! Invariant: the future is touched by its task only, from its start to its end; the output and the waker by who holds the lock.

use alloc::sync::Arc;
use core::cell::UnsafeCell;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

use super::block_on::wait;
use super::park::unpark;
use crate::mm::frame::OutOfMemory;
use crate::sched;
use crate::sync::SpinLock;
use crate::task::{Spawn, Task, table};

/// What is to be told to the one who waits. Guards only itself.
enum End<T> {
    /// Not yet; whom to wake then.
    Awaited(Option<Waker>),
    Output(T),
    /// Taken, or nobody wants it any more.
    Gone,
}

struct Shared<F: Future> {
    future: UnsafeCell<Option<F>>,
    end: SpinLock<End<F::Output>>,
    /// Who waited has gone: the future shall be dropped where it is polled next.
    cancelled: AtomicBool,
}

// SAFETY: the future is touched by one task only, to which it is sent; the rest is shareable by itself.
unsafe impl<F: Future + Send> Sync for Shared<F> where F::Output: Send {}
// SAFETY: as above.
unsafe impl<F: Future + Send> Send for Shared<F> where F::Output: Send {}

/// The end of a future with a stack, awaited by somebody. Dropping it cancels the future, which is dropped on its own stack.
#[must_use = "it starts at its first poll"]
pub struct Stackful<F: Future + Send + 'static>
where
    F::Output: Send,
{
    shared: Arc<Shared<F>>,
    task: Arc<Task>,
    started: bool,
}

/// Gives a future a stack. It may run anywhere, and is a kernel task of this name.
///
/// # Errors
/// [`OutOfMemory`], for the stack.
pub fn stackful<F>(name: &str, future: F) -> Result<Stackful<F>, OutOfMemory>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let shared = Arc::new(Shared {
        future: UnsafeCell::new(Some(future)),
        end: SpinLock::new(End::Awaited(None)),
        cancelled: AtomicBool::new(false),
    });
    let argument = Arc::into_raw(shared.clone()) as usize;
    let spawn = Spawn { name, affinity: None, entry: run::<F>, argument, user: None };
    match Task::new(table::allocate_kernel_id(), spawn) {
        Ok(task) => Ok(Stackful { shared, task, started: false }),
        Err(e) => {
            // SAFETY: made above, and no task takes it.
            drop(unsafe { Arc::from_raw(argument as *const Shared<F>) });
            Err(e)
        }
    }
}

/// The life of the task.
extern "C" fn run<F>(argument: usize) -> !
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    // SAFETY: made by `stackful` for exactly one task.
    let shared = unsafe { Arc::from_raw(argument as *const Shared<F>) };
    let output = {
        // SAFETY: ours from here on.
        let place = unsafe { &mut *shared.future.get() };
        let polled = place.as_mut().map(|future| {
            wait(core::pin::pin!(UnlessCancelled {
                // SAFETY: it lies in the shared allocation until it is dropped there.
                future: unsafe { Pin::new_unchecked(future) },
                cancelled: &shared.cancelled,
            }))
        });
        *place = None;
        polled.flatten()
    };
    let end = output.map_or(End::Gone, End::Output);
    let before = core::mem::replace(&mut *shared.end.lock(), end);
    if let End::Awaited(Some(waker)) = before {
        waker.wake();
    }
    drop(shared);
    sched::exit_current()
}

/// A future that ends without an output when nobody wants it any more.
struct UnlessCancelled<'a, F> {
    future: Pin<&'a mut F>,
    cancelled: &'a AtomicBool,
}

impl<F: Future> Future for UnlessCancelled<'_, F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Acquire: what its canceller did before. It leaves the task's token afterwards, so we come here again.
        if self.cancelled.load(Ordering::Acquire) {
            return Poll::Ready(None);
        }
        self.future.as_mut().poll(cx).map(Some)
    }
}

impl<F: Future + Send + 'static> Future for Stackful<F>
where
    F::Output: Send,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if !core::mem::replace(&mut self.started, true) {
            *self.shared.end.lock() = End::Awaited(Some(cx.waker().clone()));
            sched::start(self.task.clone());
            return Poll::Pending;
        }
        let mut end = self.shared.end.lock();
        let (polled, old) = match &mut *end {
            End::Awaited(waker) if waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) => (Poll::Pending, None),
            End::Awaited(waker) => (Poll::Pending, waker.replace(cx.waker().clone())),
            End::Output(_) => match core::mem::replace(&mut *end, End::Gone) {
                End::Output(output) => (Poll::Ready(output), None),
                _ => (Poll::Pending, None),
            },
            // Polled after its end: nothing will come.
            End::Gone => (Poll::Pending, None),
        };
        drop(end);
        drop(old);
        polled
    }
}

impl<F: Future + Send + 'static> Drop for Stackful<F>
where
    F::Output: Send,
{
    fn drop(&mut self) {
        // Release: see `UnlessCancelled`.
        self.shared.cancelled.store(true, Ordering::Release);
        if self.started {
            unpark(&self.task);
        } else {
            // It never runs, so what it was to take is given back here.
            // SAFETY: the reference that its argument is; nobody else takes it.
            drop(unsafe { Arc::from_raw(Arc::as_ptr(&self.shared)) });
        }
    }
}
