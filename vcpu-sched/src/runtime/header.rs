//! What all tasks have in common, whatever their future: state, references, links. Used by the executor, the wakers and
//! the handles, each through a [`TaskRef`]. The invariant: a header lives as long as there is a reference; one of them,
//! the task's own, is there from the spawn until the task is dead, in whose hands soever the task is.
//!
//! So a waker that is dropped never drops a future: it frees the memory of a dead task at most, and may be dropped
//! anywhere. And a wake-up hands the task's own reference to a queue without counting.

use core::fmt;
use core::mem::{self, ManuallyDrop};
use core::panic::Location;
use core::ptr::NonNull;
use core::task::{Context, RawWaker, RawWakerVTable, Waker};

use super::owned::Owned;
use super::state::{Action, AtomicState, BadTransition, Event, State};
use crate::cell::{U8Cell, U32Cell, U64Cell};
use crate::sync::{AtomicPtr, AtomicU32, Ordering};

/// What depends on the future's type. Each is given the pointer that the allocation was made with: one made from a
/// `&Header` would not be good for what lies behind it.
pub(super) struct VTable {
    /// Puts a task that became ready into a queue.
    pub schedule: fn(TaskRef),
    /// Polls the future, whose owner the caller is; true if the output is in its place now.
    pub poll: unsafe fn(NonNull<Header>, &mut Context<'_>) -> bool,
    /// Drops future or output, whose owner the caller is.
    pub clear: unsafe fn(NonNull<Header>),
    /// Moves the output, whose owner the caller is, to where the second argument points (`*mut Option<T>`).
    pub take: unsafe fn(NonNull<Header>, *mut ()),
    /// Takes the dead task from the list of all tasks.
    pub unlink: unsafe fn(NonNull<Header>),
    /// Frees the memory.
    pub free: unsafe fn(NonNull<Header>),
}

/// Neighbours in the list of all tasks. The lock of the list owns them.
#[derive(Clone, Copy, Default)]
pub(super) struct Links {
    pub prev: Option<NonNull<Header>>,
    pub next: Option<NonNull<Header>>,
}

/// The common part of a task. The first field of its allocation.
pub(super) struct Header {
    pub state: AtomicState,
    refs: AtomicU32,
    /// The next in a queue; owned by whoever has the task between [`Action::Enqueue`] and [`Event::Poll`].
    pub next: AtomicPtr<Header>,
    vtable: &'static VTable,
    /// Owned as the state's `WAITER` says.
    joiner: Owned<Option<Waker>>,
    pub links: Owned<Links>,
    location: &'static Location<'static>,
    /// The CPU that polled it last.
    pub cpu: U32Cell,
    /// Which list of all tasks it is in.
    pub shard: u32,
    /// What is left of its budget; its poller's.
    pub budget: U32Cell,
    /// What it waits for ([`Waits`](super::Waits)), and which; its poller's.
    pub waits: U8Cell,
    pub waits_for: U64Cell,
}

// SAFETY: the pointers in `links` are only followed with the list's lock held, and `joiner` is a `Waker`, which is
// `Send`; everything else is shareable by itself.
unsafe impl Send for Header {}
// SAFETY: as above.
unsafe impl Sync for Header {}

impl Header {
    /// A header with two references: the task's own and the handle's.
    pub(super) fn new(vtable: &'static VTable, location: &'static Location<'static>, cpu: u32) -> Self {
        Self {
            state: AtomicState::new(State::SPAWNED),
            refs: AtomicU32::new(2),
            next: AtomicPtr::new(core::ptr::null_mut()),
            vtable,
            joiner: Owned::new(None),
            links: Owned::new(Links::default()),
            location,
            cpu: U32Cell::new(cpu),
            shard: cpu,
            budget: U32Cell::new(0),
            waits: U8Cell::new(0),
            waits_for: U64Cell::new(0),
        }
    }

    pub(super) fn location(&self) -> &'static Location<'static> {
        self.location
    }
}

/// One counted reference to a task.
pub(super) struct TaskRef(NonNull<Header>);

// SAFETY: a header may be used from any thread, and the future behind it is `Send` (see `Runtime::spawn`).
unsafe impl Send for TaskRef {}
// SAFETY: as above.
unsafe impl Sync for TaskRef {}

/// As in `Arc`: far from a wrap even if every CPU adds one more at once.
const MAX_REFS: u32 = u32::MAX / 2;

impl TaskRef {
    /// Takes over one reference.
    ///
    /// # Safety
    /// `header` must be that of a live task, and one of its references must be the caller's.
    #[inline(always)]
    pub(super) unsafe fn from_raw(header: NonNull<Header>) -> Self {
        Self(header)
    }

    /// Gives the reference to whoever keeps the pointer.
    #[inline(always)]
    pub(super) fn into_raw(self) -> NonNull<Header> {
        ManuallyDrop::new(self).0
    }

    /// The allocation's pointer; the reference stays here.
    #[inline(always)]
    pub(super) fn as_ptr(&self) -> NonNull<Header> {
        self.0
    }

    #[inline(always)]
    pub(super) fn header(&self) -> &Header {
        // SAFETY: the reference keeps it alive.
        unsafe { self.0.as_ref() }
    }

    /// Applies an event that its protocol never sends where it could be refused; a refusal would be a bug of this
    /// module, and doing nothing is then the answer that breaks least.
    #[inline(always)]
    pub(super) fn apply(&self, event: Event) -> Action {
        self.header().state.apply(event).unwrap_or_else(|refused: BadTransition| {
            debug_assert!(false, "{refused}");
            Action::Nothing
        })
    }

    /// Sends `Wake` or `Cancel`, and queues the task if that fell to us.
    #[inline(always)]
    pub(super) fn rouse(&self, event: Event) {
        if self.apply(event) == Action::Enqueue {
            // SAFETY: the task was blocked, so its own reference was in nobody's hands; now it is in ours.
            let own = unsafe { Self::from_raw(self.0) };
            (self.header().vtable.schedule)(own);
        }
    }

    /// The waker that the poller lends to the future: it counts no reference, since the poller has one.
    #[inline(always)]
    pub(super) fn lend_waker(&self) -> ManuallyDrop<Waker> {
        let data = self.0.as_ptr().cast_const().cast();
        // SAFETY: the functions of the table do with `data` what a `TaskRef` of it would. The one reference too few is
        // made up for by the waker never being dropped.
        ManuallyDrop::new(unsafe { Waker::from_raw(RawWaker::new(data, &WAKER)) })
    }

    /// # Safety
    /// The caller must own the future: [`Action::Poll`].
    #[inline(always)]
    pub(super) unsafe fn poll(&self, cx: &mut Context<'_>) -> bool {
        // SAFETY: this function's contract.
        unsafe { (self.header().vtable.poll)(self.0, cx) }
    }

    /// # Safety
    /// The caller must own future or output.
    pub(super) unsafe fn clear(&self) {
        // SAFETY: this function's contract.
        unsafe { (self.header().vtable.clear)(self.0) }
    }

    /// # Safety
    /// The caller must own the output ([`Action::TakeOutput`]), and `T` must be its type.
    pub(super) unsafe fn take<T>(&self) -> Option<T> {
        let mut output = None::<T>;
        // SAFETY: this function's contract.
        unsafe { (self.header().vtable.take)(self.0, (&raw mut output).cast()) };
        output
    }

    /// # Safety
    /// The place of the handle's waker must be the caller's, as [`super::state`] tells.
    #[inline(always)]
    pub(super) unsafe fn joiner<R>(&self, f: impl FnOnce(&mut Option<Waker>) -> R) -> R {
        // SAFETY: this function's contract.
        unsafe { self.header().joiner.with(f) }
    }

    /// The future is gone and its output in place, if there is one: the task is dead, and its own reference goes.
    #[inline(always)]
    pub(super) fn finish(self) {
        match self.apply(Event::Finish) {
            Action::PublishAndWake => {
                // SAFETY: `Finish` took the `WAITER` bit, and with it the place.
                if let Some(waker) = unsafe { self.joiner(mem::take) } {
                    waker.wake();
                }
            }
            // SAFETY: dead and without a handle: nobody else looks at the output.
            Action::DropOutput => unsafe { self.clear() },
            _ => {}
        }
        // SAFETY: it was linked when it was spawned, and only a task's end unlinks it, which comes once.
        unsafe { (self.header().vtable.unlink)(self.0) };
    }
}

impl Clone for TaskRef {
    #[inline]
    fn clone(&self) -> Self {
        // Relaxed: whoever can clone has a reference already, so nothing can be freed meanwhile, and what the new one
        // is used for is ordered by how it gets there.
        let old = self.header().refs.fetch_add(1, Ordering::Relaxed);
        assert!(old < MAX_REFS, "two thousand million references to one task");
        Self(self.0)
    }
}

impl Drop for TaskRef {
    #[inline]
    fn drop(&mut self) {
        // Release, so that our uses of the task come before its end; acquire, so that, if we are the last, those of all
        // others do too. One order for both cases: a fence for the last one alone would be no cheaper on x86.
        if self.header().refs.fetch_sub(1, Ordering::AcqRel) == 1 {
            let free = self.header().vtable.free;
            // SAFETY: that was the last reference.
            unsafe { free(self.0) };
        }
    }
}

impl fmt::Debug for TaskRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.header().location, self.header().state.load())
    }
}

/// One table for all types of futures, so that a waker can be recognised as one of ours. A static has one address.
static WAKER: RawWakerVTable = RawWakerVTable::new(clone_waker, wake, wake_by_ref, drop_waker);

/// The task behind a waker; `None` if it is somebody else's waker.
pub(super) fn task_of(waker: &Waker) -> Option<&Header> {
    let data = core::ptr::eq(waker.vtable(), &WAKER).then(|| waker.data().cast::<Header>())?;
    // SAFETY: a waker with our table holds a pointer to a header and a reference that keeps it alive, or was lent by
    // someone who has one and is borrowed as long.
    Some(unsafe { &*data })
}

/// # Safety
/// `data` must come from a waker with our table that the result doesn't outlive.
#[inline(always)]
unsafe fn borrowed(data: *const ()) -> ManuallyDrop<TaskRef> {
    // SAFETY: such a waker's pointer is that of a header; never null. Nothing is counted, nothing is dropped.
    ManuallyDrop::new(TaskRef(unsafe { NonNull::new_unchecked(data.cast_mut().cast()) }))
}

unsafe fn clone_waker(data: *const ()) -> RawWaker {
    // SAFETY: called by a waker with our table.
    let task = unsafe { borrowed(data) };
    let cloned = TaskRef::clone(&task).into_raw();
    RawWaker::new(cloned.as_ptr().cast_const().cast(), &WAKER)
}

unsafe fn wake(data: *const ()) {
    // SAFETY: called by a waker with our table, whose reference is ours now.
    let task = ManuallyDrop::into_inner(unsafe { borrowed(data) });
    task.rouse(Event::Wake);
}

unsafe fn wake_by_ref(data: *const ()) {
    // SAFETY: called by a waker with our table.
    unsafe { borrowed(data) }.rouse(Event::Wake);
}

unsafe fn drop_waker(data: *const ()) {
    // SAFETY: called by a waker with our table, whose reference is ours now.
    drop(ManuallyDrop::into_inner(unsafe { borrowed(data) }));
}
