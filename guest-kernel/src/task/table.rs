//! All living tasks by number. For reports, signals and the debugger; never on a hot path.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use vcpu_sched::ids::TaskId;

use super::Task;
use super::listing::{Listing, Slot};
use crate::sync::SpinLock;
use crate::trace;

struct Tasks {
    by_id: BTreeMap<u32, (Arc<Task>, Slot)>,
    listing: Listing,
}

/// Guards the map and the VMM's list, which change together.
static TASKS: SpinLock<Tasks> = SpinLock::new(Tasks { by_id: BTreeMap::new(), listing: Listing::new() });
/// 1 is the first program's task, so that it is Linux's init.
static NEXT: AtomicU32 = AtomicU32::new(1);
/// Idle and other kernel tasks are numbered from here, out of the programs' way.
static NEXT_KERNEL: AtomicU32 = AtomicU32::new(KERNEL_ID_BASE);
/// Largest user task number (Linux: PID_MAX_LIMIT on 64 bits).
const MAX_ID: u32 = 1 << 22;
/// First kernel task number.
pub const KERNEL_ID_BASE: u32 = MAX_ID + 1;

/// A number for a new user task: the next one that nobody has.
pub fn allocate_id() -> TaskId {
    loop {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        if id >= MAX_ID {
            // Relaxed: a second wrap-around at the same moment only repeats work.
            NEXT.store(2, Ordering::Relaxed);
            continue;
        }
        if !TASKS.lock().by_id.contains_key(&id) {
            return TaskId(id);
        }
    }
}

/// A number for a kernel task.
pub fn allocate_kernel_id() -> TaskId {
    TaskId(NEXT_KERNEL.fetch_add(1, Ordering::Relaxed))
}

/// Lists a task.
pub fn insert(task: &Arc<Task>) {
    let mut tasks = TASKS.lock();
    let slot = tasks.listing.insert(Arc::as_ptr(task));
    tasks.by_id.insert(task.id.0, (task.clone(), slot));
    trace::name(task.id, &task.name());
    trace::process(task.id, task.process());
}

/// Takes a task off the list.
pub fn remove(id: TaskId) {
    let removed = {
        let mut tasks = TASKS.lock();
        let removed = tasks.by_id.remove(&id.0);
        if let Some((_, slot)) = &removed {
            tasks.listing.remove(*slot);
        }
        removed
    };
    drop(removed); // after the lock is released
}

/// Finds a task.
pub fn find(id: TaskId) -> Option<Arc<Task>> {
    TASKS.lock().by_id.get(&id.0).map(|(task, _)| task.clone())
}

/// Some task, by a random number; none if the list is in use. From any context.
pub fn random(number: u32) -> Option<Arc<Task>> {
    let tasks = TASKS.try_lock()?;
    let from = number % NEXT.load(Ordering::Relaxed).max(1);
    let found = tasks.by_id.range(from..).next().or_else(|| tasks.by_id.first_key_value());
    found.map(|(_, (task, _))| task.clone())
}

/// All tasks, for reports.
pub fn snapshot() -> Vec<Arc<Task>> {
    TASKS.lock().by_id.values().map(|(task, _)| task.clone()).collect()
}
