//! A task with its future: one allocation, made by [`spawn`] and freed with the last reference. Private to the runtime;
//! the invariant is that only whom the state makes its owner touches the [`Stage`].

use alloc::boxed::Box;
use core::future::Future;
use core::mem;
use core::panic::Location;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::{Context, Poll};

use super::executor::Runtime;
use super::header::{Header, TaskRef, VTable};
use super::owned::Owned;
use super::platform::Platform;

/// The future, then its output, then nothing.
enum Stage<F: Future> {
    Future(F),
    Output(F::Output),
    Gone,
}

/// The allocation. `repr(C)`, so that a pointer to it is one to its header.
#[repr(C)]
struct Task<F: Future, P: Platform> {
    header: Header,
    runtime: &'static Runtime<P>,
    stage: Owned<Stage<F>>,
}

/// Makes a task: its own reference, and the handle's.
pub(super) fn spawn<F, P>(
    runtime: &'static Runtime<P>,
    future: F,
    location: &'static Location<'static>,
    cpu: u32,
) -> (TaskRef, TaskRef)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
    P: Platform,
{
    let header = Header::new(Task::<F, P>::VTABLE, location, cpu);
    let task = Box::new(Task { header, runtime, stage: Owned::new(Stage::Future(future)) });
    let task = NonNull::from(Box::leak(task)).cast();
    // SAFETY: a new header has two references, and here they are.
    unsafe { (TaskRef::from_raw(task), TaskRef::from_raw(task)) }
}

impl<F, P> Task<F, P>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
    P: Platform,
{
    const VTABLE: &'static VTable = &VTable {
        schedule: Self::schedule,
        poll: Self::poll,
        clear: Self::clear,
        take: Self::take,
        unlink: Self::unlink,
        free: Self::free,
    };

    /// # Safety
    /// The header must be that of a `Task<F, P>`, kept alive by a reference for `'a`.
    #[inline(always)]
    unsafe fn of<'a>(header: NonNull<Header>) -> &'a Self {
        // SAFETY: `repr(C)` with the header first, so that its address is the allocation's; and all of it is shared.
        unsafe { header.cast().as_ref() }
    }

    fn schedule(task: TaskRef) {
        // SAFETY: our table is only in the headers that `spawn` makes.
        let runtime = unsafe { Self::of(task.as_ptr()) }.runtime;
        runtime.schedule(task);
    }

    unsafe fn poll(header: NonNull<Header>, cx: &mut Context<'_>) -> bool {
        // SAFETY: our table is only in our headers; the caller owns the stage.
        unsafe {
            Self::of(header).stage.with(|stage| {
                let Stage::Future(future) = stage else { return true };
                // SAFETY: the future lies in its allocation from the first poll until it is dropped there.
                let Poll::Ready(output) = Pin::new_unchecked(future).poll(cx) else { return false };
                *stage = Stage::Output(output);
                true
            })
        }
    }

    unsafe fn clear(header: NonNull<Header>) {
        // SAFETY: as in `poll`. Dropped in place: a pinned future may not be moved out.
        unsafe { Self::of(header).stage.with(|stage| *stage = Stage::Gone) }
    }

    unsafe fn take(header: NonNull<Header>, to: *mut ()) {
        // SAFETY: as in `poll`; `to` is an `Option` of our output by the caller's contract. What is moved is no future:
        // the task is dead.
        unsafe {
            Self::of(header).stage.with(|stage| {
                if let Stage::Output(output) = mem::replace(stage, Stage::Gone) {
                    *to.cast::<Option<F::Output>>() = Some(output);
                }
            });
        }
    }

    unsafe fn unlink(header: NonNull<Header>) {
        // SAFETY: as in `poll`, and by the caller's contract it is linked.
        unsafe { Self::of(header).runtime.unlink(header) }
    }

    unsafe fn free(header: NonNull<Header>) {
        // The models notice a use of the future that isn't ordered before this.
        #[cfg(all(test, loom))]
        // SAFETY: the last reference is gone.
        unsafe {
            Self::clear(header);
        }
        // SAFETY: it came from a box of this type, and the last reference is gone.
        drop(unsafe { Box::from_raw(header.cast::<Self>().as_ptr()) });
    }
}

/// How many bytes a task with this future takes.
pub const fn bytes_of<F, P>() -> usize
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
    P: Platform,
{
    mem::size_of::<Task<F, P>>()
}
