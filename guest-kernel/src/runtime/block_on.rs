//! A task waits for a future: the future is polled in the task's own context, on its stack, and the task sleeps in between. For kernel tasks
//! and for programs' tasks in a system call; not for executors (a task of theirs would `await`) and not in interrupts.
//!
//! No memory is asked for: the future lies on the kernel stack, the waker is the task's own handle.
//!
//! Invariants: a future on a stack is touched by the direct map's name of that stack only (see [`super`]); a wake-up between two polls
//! leaves the task's token, so none is lost, whenever it comes.

use alloc::sync::Arc;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::pin::Pin;
use core::sync::atomic::Ordering;
use core::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use vcpu_sched::events::WaitReason;

use super::park::{park, park_for, unpark};
use crate::sync::Interrupted;
use crate::task::{Task, current};

/// Polls a future until it has its output, and sleeps while it has none.
pub fn block_on<F: Future>(future: F) -> F::Output {
    on_this_stack(future, wait)
}

/// The same for a program's system call: ends when the task has a signal, too. `why` and `number` tell what it waits for.
///
/// # Errors
/// [`Interrupted::Signal`]; the future is dropped.
pub fn interruptible<F: Future>(why: WaitReason, number: u64, future: F) -> Result<F::Output, Interrupted> {
    on_this_stack(future, |future| {
        let me = current();
        let park = || {
            if me.is_interrupted() {
                return Err(Interrupted::Signal);
            }
            park_for(why, number, || me.is_interrupted());
            Ok(())
        };
        poll_until(future, park)
    })
}

/// Lends a future to `f` where every CPU sees it at the same address: on this task's stack, by the direct map's name.
fn on_this_stack<F: Future, O>(future: F, f: impl FnOnce(Pin<&mut F>) -> O) -> O {
    let mut place = MaybeUninit::<F>::uninit();
    let name = current().block.stack_alias(place.as_mut_ptr().expose_provenance() as u64);
    let Some(name) = name else { panic!("a future that is waited for outside of a task's stack") };
    let shared = core::ptr::with_exposed_provenance_mut::<F>(name as usize);
    /// Ends the future before its place goes.
    struct End<F>(*mut F);
    impl<F> Drop for End<F> {
        fn drop(&mut self) {
            // SAFETY: written below, dropped once.
            unsafe { self.0.drop_in_place() };
        }
    }
    // SAFETY: another name of `place`, whose address is exposed and which is used by this name alone. All of a task's stack is mapped there.
    unsafe { shared.write(future) };
    let end = End(shared);
    // SAFETY: it lies in `place`, which stays where it is, until `end` drops it.
    let output = f(unsafe { Pin::new_unchecked(&mut *shared) });
    drop(end);
    // The compiler knows of no use of `place` after its address was taken: this is one.
    core::hint::black_box(&mut place);
    output
}

/// [`block_on`] for a future that lies in the heap.
pub(super) fn wait<F: Future>(future: Pin<&mut F>) -> F::Output {
    let output = poll_until(future, || {
        park();
        Ok::<(), Never>(())
    });
    match output {
        Ok(output) => output,
        Err(never) => match never {},
    }
}

/// There is none.
enum Never {}

/// Polls a future until it has its output, or `park`, which is to sleep until there is a token for this task, gives up.
fn poll_until<F: Future, E>(mut future: Pin<&mut F>, mut park: impl FnMut() -> Result<(), E>) -> Result<F::Output, E> {
    let me = current().to_arc();
    let waker = lend_waker(&me);
    loop {
        // Cleared before the poll: a wake-up during it counts. Acquire: with what was done for us.
        me.token.swap(false, Ordering::Acquire);
        let polled = match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => Ok(output),
            Poll::Pending => match park() {
                Ok(()) => continue,
                Err(e) => Err(e),
            },
        };
        // The token may have been another's, who waits further up on this stack and polls us: it looks again.
        me.token.store(true, Ordering::Release);
        return polled;
    }
}

/// A waker that counts no reference: whoever lends it has one.
pub(super) fn lend_waker(task: &Arc<Task>) -> ManuallyDrop<Waker> {
    let data = Arc::as_ptr(task).cast();
    // SAFETY: the functions of the table do with `data` what an `Arc<Task>` of it would, and the result is never dropped.
    ManuallyDrop::new(unsafe { Waker::from_raw(RawWaker::new(data, &WAKER)) })
}

static WAKER: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, release);

/// # Safety
/// `data` is that of a waker with our table.
unsafe fn borrowed(data: *const ()) -> ManuallyDrop<Arc<Task>> {
    // SAFETY: such a waker holds a reference, or was lent by one who does; this handle gives none back.
    ManuallyDrop::new(unsafe { Arc::from_raw(data.cast()) })
}

unsafe fn clone(data: *const ()) -> RawWaker {
    // SAFETY: called by a waker with our table.
    core::mem::forget(Arc::clone(&*unsafe { borrowed(data) }));
    RawWaker::new(data, &WAKER)
}

unsafe fn wake(data: *const ()) {
    // SAFETY: called by a waker with our table, whose reference is ours now.
    let task = ManuallyDrop::into_inner(unsafe { borrowed(data) });
    unpark(&task);
}

unsafe fn wake_by_ref(data: *const ()) {
    // SAFETY: called by a waker with our table.
    unpark(&*unsafe { borrowed(data) });
}

unsafe fn release(data: *const ()) {
    // SAFETY: called by a waker with our table, whose reference is ours now.
    drop(ManuallyDrop::into_inner(unsafe { borrowed(data) }));
}
