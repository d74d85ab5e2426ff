//! All living tasks by number. To find one takes no lock: who looks is an RCU reader, who changes the table leaves what it took out to the
//! readers of that moment. [`init`] comes before the first task.
//!
//! Invariant: the table holds a reference to each task in it, which it gives back when it takes the task out; readers, who may still come upon
//! the entry, have a weak one and find out whether the task lives. So what a task holds (its stack above all) doesn't wait for readers.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use vcpu_sched::ids::TaskId;

use super::Task;
use super::listing::{Listing, Slot};
use crate::rcu::{self, RcuMap};
use crate::sync::{BootCell, SpinLock};
use crate::trace;

/// A task in the table.
struct Entry {
    task: Weak<Task>,
    /// The table's reference; null once it was taken out.
    own: AtomicPtr<Task>,
    slot: Slot,
}

/// Chains of the table: with fewer tasks than that, nearly each has its own.
const CHAINS: usize = 128;

/// The table.
static TASKS: BootCell<RcuMap<Entry>> = BootCell::new();
/// The VMM's list. Guards only itself.
static LISTING: SpinLock<Listing> = SpinLock::new(Listing::new());
/// 1 is the first program's task, so that it is Linux's init.
static NEXT: AtomicU32 = AtomicU32::new(1);
/// Idle and other kernel tasks are numbered from here, out of the programs' way.
static NEXT_KERNEL: AtomicU32 = AtomicU32::new(KERNEL_ID_BASE);
/// Largest user task number (Linux: PID_MAX_LIMIT on 64 bits).
const MAX_ID: u32 = 1 << 22;
/// First kernel task number.
pub const KERNEL_ID_BASE: u32 = MAX_ID + 1;

/// Makes the table. Boot CPU, once RCU is there, by the one task that is older: its idle task.
pub fn init() {
    TASKS.set(RcuMap::new(rcu::domain(), CHAINS));
    insert(&super::current().to_arc());
}

/// A number for a new user task: the next one that nobody has.
pub fn allocate_id() -> TaskId {
    loop {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        if id >= MAX_ID {
            // Relaxed: a second wrap-around at the same moment only repeats work.
            NEXT.store(2, Ordering::Relaxed);
            continue;
        }
        if TASKS.get().is_none_or(|tasks| tasks.get(&rcu::read(), id).is_none()) {
            return TaskId(id);
        }
    }
}

/// A number for a kernel task.
pub fn allocate_kernel_id() -> TaskId {
    TaskId(NEXT_KERNEL.fetch_add(1, Ordering::Relaxed))
}

/// Lists a task, whose number nobody has.
pub fn insert(task: &Arc<Task>) {
    let Some(tasks) = TASKS.get() else { return };
    let slot = LISTING.lock().insert(Arc::as_ptr(task));
    let own = AtomicPtr::new(Arc::into_raw(task.clone()).cast_mut());
    if tasks.insert(task.id.0, Entry { task: Arc::downgrade(task), own, slot }).is_err() {
        panic!("two tasks with the number {}", task.id.0);
    }
    trace::name(task.id, &task.name());
    trace::process(task.id, task.process());
}

/// Takes a task off the list.
pub fn remove(id: TaskId) {
    let removed = TASKS.get().and_then(|tasks| {
        // Relaxed: whoever takes the entry out is alone here, after the lock that it was changed under.
        tasks.remove(id.0, |entry| (entry.own.swap(core::ptr::null_mut(), Ordering::Relaxed), entry.slot))
    });
    if let Some(((own, slot), backlog)) = removed {
        LISTING.lock().remove(slot);
        // SAFETY: made by `insert`; whoever takes the entry out takes it, once.
        drop(unsafe { Arc::from_raw(own.cast_const()) });
        rcu::tidy(backlog);
    }
}

/// Finds a task.
pub fn find(id: TaskId) -> Option<Arc<Task>> {
    TASKS.get()?.get(&rcu::read(), id.0)?.task.upgrade()
}

/// Some task, by a random number. From any context.
pub fn random(number: u32) -> Option<Arc<Task>> {
    TASKS.get()?.find_map(&rcu::read(), number, |_, entry| entry.task.upgrade())
}

/// All tasks by number, for reports.
pub fn snapshot() -> Vec<Arc<Task>> {
    let mut all = Vec::new();
    if let Some(tasks) = TASKS.get() {
        tasks.find_map(&rcu::read(), 0, |_, entry| {
            all.extend(entry.task.upgrade());
            None::<()>
        });
    }
    all.sort_unstable_by_key(|task| task.id.0);
    all
}
