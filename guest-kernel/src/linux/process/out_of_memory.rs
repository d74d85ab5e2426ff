//! No frame is left: the process with the most pages ends, so that the others and the kernel go on.

use core::sync::atomic::{AtomicU32, Ordering};

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::Nanos;

use super::signal::{self, SIGKILL};
use super::{Process, table};
use crate::mm::frame;
use crate::sched;
use crate::sync::WaitQueue;
use crate::time;

/// The process that was chosen last; until it has let go of its memory nobody else is chosen.
static VICTIM: AtomicU32 = AtomicU32::new(0);

/// Ends the largest process. Returns whether waiting may help. In task context, with no lock held.
pub fn make_room() -> bool {
    let last = VICTIM.load(Ordering::Acquire);
    if last != 0 && table::find(last).is_some_and(|p| p.space().is_some()) {
        return true;
    }
    // Of equals the youngest: the first program is what the guest is there for.
    let pages_of = |p: &Process| {
        let space = p.space().filter(|_| !p.is_exiting())?;
        Some(space.resident.load(Ordering::Relaxed))
    };
    let Some((pages, process)) = table::largest(pages_of) else { return false };
    if VICTIM.compare_exchange(last, process.pid, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return true; // another CPU has just chosen
    }
    crate::warn!(
        "out of memory: {} (process {}, {} MiB) is the largest and ends",
        process.name(),
        process.pid,
        pages >> 8
    );
    signal::start_group_exit(&process, SIGKILL);
    true
}

/// The kernel's own memory is nearly used up by what programs asked for: the caller, who asked for some of it, waits until
/// another process has ended, or it is chosen itself. On the way to ring 3, with nothing held.
pub fn wait_for_room(process: &Process) {
    const PAUSE: Nanos = Nanos(1_000_000);
    while frame::is_critical() && !process.is_exiting() && make_room() {
        // Nobody knows this queue: only the timer ends the wait, or something that the caller must look at soon.
        let until = time::now() + PAUSE;
        let _ =
            WaitQueue::of(WaitReason::Memory).wait_interruptible(Some(until), || process.is_exiting().then_some(()));
        sched::yield_now();
    }
}
