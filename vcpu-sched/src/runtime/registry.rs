//! All tasks that live, for reports and for the end. One list for each CPU, linked through the tasks; a task stays in
//! the list of the CPU that spawned it. The invariant: a task in a list is alive and has its own reference, because it
//! leaves the list before that one goes.

use core::panic::Location;
use core::ptr::NonNull;

use super::header::{Header, TaskRef};
use super::lock::{Lock, RawLock};
use super::state::{Event, State};
use super::waits::Waits;

/// What a report can tell of a task.
#[derive(Clone, Copy, Debug)]
pub struct TaskInfo {
    /// Its address: tells it from all others that live.
    pub id: u64,
    /// Where it was spawned: its name.
    pub location: &'static Location<'static>,
    /// Its state at some moment.
    pub state: State,
    /// The CPU that polled it last.
    pub cpu: u32,
    /// What it was waiting for when it was polled last.
    pub waits: Waits,
    /// The address of that, or the time in nanoseconds.
    pub waits_for: u64,
}

impl TaskInfo {
    fn of(header: &Header) -> Self {
        Self {
            id: core::ptr::from_ref(header) as u64,
            location: header.location(),
            state: header.state.load(),
            cpu: header.cpu.get(),
            waits: Waits::from_u8(header.waits.get()),
            waits_for: header.waits_for.get(),
        }
    }
}

#[derive(Default)]
struct List {
    first: Option<NonNull<Header>>,
    len: usize,
}

// SAFETY: the pointers are followed only with the lock held, and headers may be used from any thread.
unsafe impl Send for List {}

impl List {
    fn for_each(&self, mut f: impl FnMut(TaskInfo)) {
        let mut at = self.first;
        while let Some(task) = at {
            // SAFETY: the lock is held, so all links of this list are ours; all its tasks are alive.
            let header = unsafe { task.as_ref() };
            f(TaskInfo::of(header));
            // SAFETY: as above.
            at = unsafe { header.links.with(|links| links.next) };
        }
    }
}

/// The tasks that one CPU spawned.
pub(super) struct Shard<R: RawLock>(Lock<List, R>);

impl<R: RawLock> Shard<R> {
    pub(super) fn new() -> Self {
        Self(Lock::new(List::default()))
    }

    /// Puts a new task in.
    pub(super) fn link(&self, task: &TaskRef) {
        let task = task.as_ptr();
        self.0.with(|list| {
            // SAFETY: the lock is held, so all links of this list are ours; all its tasks are alive.
            unsafe {
                task.as_ref().links.with(|links| links.next = list.first);
                if let Some(first) = list.first {
                    first.as_ref().links.with(|links| links.prev = Some(task));
                }
            }
            list.first = Some(task);
            list.len += 1;
        });
    }

    /// Takes a task out.
    ///
    /// # Safety
    /// It must be in this list.
    pub(super) unsafe fn unlink(&self, task: NonNull<Header>) {
        self.0.with(|list| {
            // SAFETY: as in `link`.
            unsafe {
                let links = task.as_ref().links.with(core::mem::take);
                match links.prev {
                    Some(prev) => prev.as_ref().links.with(|of_prev| of_prev.next = links.next),
                    None => list.first = links.next,
                }
                if let Some(next) = links.next {
                    next.as_ref().links.with(|of_next| of_next.prev = links.prev);
                }
            }
            list.len -= 1;
        });
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.with(|list| list.len)
    }

    /// Shows each task to `f`, newest first, with the lock held: `f` must be short, and not spawn.
    pub(super) fn for_each(&self, f: impl FnMut(TaskInfo)) {
        self.0.with(|list| list.for_each(f));
    }

    /// The same, unless somebody has the lock.
    pub(super) fn try_for_each(&self, f: impl FnMut(TaskInfo)) {
        _ = self.0.try_with(|list| list.for_each(f));
    }

    /// Cancels each task, with the lock held: queues take no lock, and no future is dropped here.
    pub(super) fn cancel_all(&self) {
        self.0.with(|list| {
            let mut at = list.first;
            while let Some(task) = at {
                // SAFETY: the task's own reference is there while it is in the list; it is only borrowed.
                let own = core::mem::ManuallyDrop::new(unsafe { TaskRef::from_raw(task) });
                own.rouse(Event::Cancel);
                // SAFETY: as in `link`.
                at = unsafe { own.header().links.with(|links| links.next) };
            }
        });
    }
}
